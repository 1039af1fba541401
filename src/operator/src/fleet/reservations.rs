//! Placements that were decided on and are not known to exist yet.
//!
//! A decision and its reservation are taken under one lock, so that no two decisions see the same
//! free GPU. A reservation goes when the Placement is in the cache, or when the API server
//! positively refused it. When it is not known what became of the request, it stays for as long
//! as that request could still take effect.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use creo_market::placement::Amounts;
use tokio::time::Instant;

use crate::base::Key;

/// How long a create without an answer may still take effect.
const IN_DOUBT: Duration = Duration::from_mins(1);

/// What one Placement needs of a Kubernetes node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reservation {
    /// The Placement.
    pub placement: Key,
    /// Its Kubernetes node.
    pub kubernetes_node: String,
    /// CPU, memory, storage and the pod's slot.
    pub amounts: Amounts,
    /// Where its GPUs come from.
    pub gpu_resource: String,
    /// How many.
    pub gpu_count: i64,
}

/// All reservations; bounded by the number of creates under way.
#[derive(Debug, Default)]
pub struct Reservations {
    held: Mutex<HashMap<Key, (Reservation, Option<Instant>)>>,
}

impl Reservations {
    /// Decides with the reservations of all others in view, and takes what was decided. Deciding
    /// must not wait for anything: everyone else waits for it.
    pub fn decide<T>(&self, decide: impl FnOnce(&[Reservation]) -> (T, Vec<Reservation>)) -> T {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        held.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        let others: Vec<Reservation> = held.values().map(|(one, _)| one.clone()).collect();
        let (answer, taken) = decide(&others);
        for one in taken {
            held.insert(one.placement.clone(), (one, None));
        }
        answer
    }

    /// The Placement is in the cache, or does positively not exist.
    pub fn release(&self, placement: &Key) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(placement);
    }

    /// It is not known whether the Placement was created.
    pub fn leave_in_doubt(&self, placement: &Key) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, until)) = held.get_mut(placement) {
            *until = Some(Instant::now() + IN_DOUBT);
        }
    }
}
