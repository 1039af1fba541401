//! What Prometheus sees of the GPUs and of the plugin.
//!
//! What is said of the cards is put together anew for every scrape, from what is known at that
//! moment: a card that is gone and a figure that is not known any more leave no series behind.
//! Every label has bounded values: at most 128 cards and their partitions, the pods that hold
//! them, known XIDs, and words of this program.

mod cards;
mod family;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::watch;

use crate::driver::Snapshot;
use crate::driver::session::Reading;
use crate::health::xid;
use crate::pod_resources::PodsByDevice;
use crate::processes::Uses;
use crate::unit::Offered;
use cards::Cards;

/// A question to the driver's library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvmlCall {
    /// Opening the library, or closing it.
    Open,
    /// Describing a card.
    Describe,
    /// Reading a card.
    Read,
    /// Listening to events.
    Listen,
}

impl NvmlCall {
    fn word(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Describe => "describe",
            Self::Read => "read",
            Self::Listen => "listen",
        }
    }
}

/// How a question to the driver's library failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvmlFailure {
    /// It was answered by an error.
    Error,
    /// It was not answered in time.
    Timeout,
}

impl NvmlFailure {
    fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
        }
    }
}

/// The metrics of the process. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    shown: Arc<Mutex<Shown>>,
    told: Arc<Told>,
    registrations: IntCounterVec,
    allocations: IntCounterVec,
    claims_writes: IntCounterVec,
    nvml_failures: IntCounterVec,
}

/// What is known of the cards.
#[derive(Debug, Default)]
struct Shown {
    snapshot: Snapshot,
    readings: BTreeMap<String, Arc<Reading>>,
    /// XIDs by card and by their name in metrics.
    xids: BTreeMap<String, BTreeMap<String, u64>>,
}

/// What others know of the cards.
#[derive(Debug, Default)]
struct Told {
    offered: OnceLock<watch::Receiver<Offered>>,
    pods: OnceLock<watch::Receiver<Option<PodsByDevice>>>,
    uses: OnceLock<watch::Receiver<Uses>>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            shown: Arc::default(),
            told: Arc::default(),
            registrations: counters(
                registry,
                "creo_gpu_plugin_registrations_total",
                "Registrations with the kubelet, by outcome.",
                &["outcome"],
            )?,
            allocations: counters(
                registry,
                "creo_gpu_plugin_allocations_total",
                "Containers that the kubelet asked devices for, by outcome.",
                &["outcome"],
            )?,
            claims_writes: counters(
                registry,
                "creo_gpu_plugin_claims_writes_total",
                "Writes of this node's claims, by outcome.",
                &["outcome"],
            )?,
            nvml_failures: counters(
                registry,
                "creo_gpu_plugin_nvml_failures_total",
                "Questions to the driver's library that were answered by an error or not in time.",
                &["call", "failure"],
            )?,
        };
        registry.register(Box::new(Cards::new(&metrics)?))?;
        Ok(metrics)
    }

    /// Shows what is offered, from now on.
    pub fn show_offered(&self, offered: watch::Receiver<Offered>) {
        // There is one offer in a process.
        let _ = self.told.offered.set(offered);
    }

    /// Shows the pods that hold the devices, from now on.
    pub fn show_pods(&self, pods: watch::Receiver<Option<PodsByDevice>>) {
        // There is one kubelet.
        let _ = self.told.pods.set(pods);
    }

    /// Shows who uses the cards and partitions, from now on.
    pub fn show_uses(&self, uses: watch::Receiver<Uses>) {
        // There is one machine.
        let _ = self.told.uses.set(uses);
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows what is known of the GPUs, and nothing of those that are not known any more.
    pub fn snapshot(&self, snapshot: &Snapshot) {
        let mut shown = self.shown();
        shown.snapshot.clone_from(snapshot);
        let known = |uuid: &String| snapshot.devices.iter().any(|one| one.gpu.uuid == *uuid);
        shown.readings.retain(|uuid, _| known(uuid));
        shown.xids.retain(|uuid, _| known(uuid));
    }

    /// Shows what a GPU says of itself.
    pub fn reading(&self, uuid: &str, reading: &Arc<Reading>) {
        let mut shown = self.shown();
        shown.readings.insert(uuid.to_owned(), Arc::clone(reading));
    }

    /// Shows no figures of a GPU that does not answer.
    pub fn unknown(&self, uuid: &str) {
        self.shown().readings.remove(uuid);
    }

    /// Counts an XID.
    pub fn xid(&self, uuid: &str, code: u64) {
        let mut shown = self.shown();
        let of_card = shown.xids.entry(uuid.to_owned()).or_default();
        *of_card.entry(xid::label(code)).or_default() += 1;
    }

    /// Counts an attempt to register with the kubelet.
    pub fn registration(&self, succeeded: bool) {
        self.registrations
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }

    /// Counts a container that the kubelet asked devices for.
    pub fn allocation(&self, succeeded: bool) {
        self.allocations
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }

    /// Counts an attempt to write the claims.
    pub fn claims_write(&self, succeeded: bool) {
        self.claims_writes
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }

    /// Counts a question to the driver's library that failed.
    pub fn nvml_failed(&self, call: NvmlCall, failure: NvmlFailure) {
        self.nvml_failures
            .with_label_values(&[call.word(), failure.word()])
            .inc();
    }
}

fn outcome(succeeded: bool) -> &'static str {
    if succeeded { "ok" } else { "error" }
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

#[cfg(test)]
mod tests;
