//! Holds the lease, or waits for it. The rules are in [`super::lease`].
//!
//! RBAC, in the namespace of the lease only: `get` to see who holds it, `create` for the first
//! start, `update` to take, renew and release it by PUT at a resource version. No patch: a patch
//! without a resource version would let two processes win.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use creo_process::client::{WriteGate, WriteRefused};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::error::is_not_found;
use super::lease::{Decision, Election};

/// How the lease is set up.
#[derive(Debug, Clone)]
pub struct LeaseSettings {
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub name: String,
    /// This process, unlike any other.
    pub identity: String,
    /// How long a lease holds after its last renewal.
    pub duration: Duration,
}

/// Why the process leads no more.
#[derive(Debug, Error)]
pub enum LostLease {
    /// The lease could not be renewed in time.
    #[error("the lease {0} could not be renewed in time and another process may take over")]
    NotRenewed(String),
    /// Another process has it.
    #[error("the lease {0} was taken by another process")]
    Taken(String),
}

/// The permission to write, as the gate of the writing client.
///
/// Asked before each mutating call, so that a process that was stopped or cut off for longer
/// than its lease sends nothing when it wakes.
#[derive(Debug, Clone)]
pub struct Leadership {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    base: Instant,
    /// Milliseconds after `base`; 0 while nothing is held.
    valid_until_ms: AtomicU64,
    epoch: AtomicI64,
}

impl Default for Leadership {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                base: Instant::now(),
                valid_until_ms: AtomicU64::new(0),
                epoch: AtomicI64::new(0),
            }),
        }
    }
}

impl Leadership {
    /// The epoch that this process may write in now; it rises with each change of the holder.
    #[must_use]
    pub fn epoch(&self) -> Option<i64> {
        let elapsed = self.shared.base.elapsed();
        let valid = Duration::from_millis(self.shared.valid_until_ms.load(Ordering::Acquire));
        (elapsed < valid).then(|| self.shared.epoch.load(Ordering::Acquire))
    }

    fn set(&self, election: &Election) {
        let valid_ms = election
            .valid_until()
            .map(|until| {
                until
                    .saturating_duration_since(self.shared.base)
                    .as_millis()
            })
            .and_then(|ms| u64::try_from(ms).ok())
            .unwrap_or(0);
        if let Some(epoch) = election.epoch(Instant::now()) {
            self.shared.epoch.store(epoch.into(), Ordering::Release);
        }
        self.shared
            .valid_until_ms
            .store(valid_ms, Ordering::Release);
    }
}

impl WriteGate for Leadership {
    fn permit(&self) -> Result<(), WriteRefused> {
        match self.epoch() {
            Some(_) => Ok(()),
            None => Err(WriteRefused {
                reason: "this process does not hold the lease",
            }),
        }
    }
}

/// One candidate and its connection to the API server.
pub struct Candidate {
    api: Api<Lease>,
    election: Election,
    leadership: Leadership,
    name: String,
}

impl Candidate {
    /// A candidate; `client` must not ask the gate that this candidate opens, and its calls must
    /// be limited to less than a third of the duration.
    #[must_use]
    pub fn new(client: kube::Client, settings: LeaseSettings, leadership: Leadership) -> Self {
        Self {
            api: Api::namespaced(client, &settings.namespace),
            name: settings.name.clone(),
            election: Election::new(
                settings.namespace,
                settings.name,
                settings.identity,
                settings.duration,
            ),
            leadership,
        }
    }

    /// Waits until this process holds the lease; false when `stop` came first.
    pub async fn acquire(&mut self, stop: &CancellationToken) -> bool {
        let mut complained = false;
        loop {
            let pause = match self.try_acquire().await {
                Ok(true) => {
                    tracing::info!(
                        epoch = self.leadership.epoch(),
                        lease = self.name,
                        "leading"
                    );
                    return true;
                }
                Ok(false) => self.election.interval(),
                Err(error) => {
                    if !complained {
                        tracing::warn!(%error, lease = self.name, "the lease cannot be read or taken; trying on");
                        complained = true;
                    }
                    self.election.interval()
                }
            };
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Renews until `stop` is cancelled, and returns with the lease still held; or returns why it
    /// was lost. Writes are refused by then already.
    pub async fn hold(&mut self, stop: &CancellationToken) -> Result<(), LostLease> {
        let retry = self.election.interval() / 3;
        let mut pause = self.election.interval();
        loop {
            let valid_until = self.election.valid_until().unwrap_or_else(Instant::now);
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep_until(valid_until) => {
                    return Err(self.give_up(LostLease::NotRenewed(self.name.clone())));
                }
                () = tokio::time::sleep(pause) => {}
            }
            let renewed = tokio::time::timeout_at(valid_until, self.renew()).await;
            pause = match renewed {
                Err(_elapsed) => {
                    return Err(self.give_up(LostLease::NotRenewed(self.name.clone())));
                }
                Ok(Ok(true)) => self.election.interval(),
                Ok(Ok(false)) => {
                    return Err(self.give_up(LostLease::Taken(self.name.clone())));
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.name, "the lease was not renewed; trying on");
                    retry
                }
            };
        }
    }

    /// Gives the lease up, so that the next process need not wait; at most `limit`.
    pub async fn release(&mut self, limit: Duration) {
        let Some(lease) = self.election.release(Timestamp::now()) else {
            return;
        };
        self.election.lost();
        self.leadership.set(&self.election);
        let params = PostParams::default();
        let put = self.api.replace(&self.name, &params, &lease);
        match tokio::time::timeout(limit, put).await {
            Ok(Ok(_)) => tracing::info!(lease = self.name, "released the lease"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "the lease was not released and expires by itself");
            }
            Err(_elapsed) => {
                tracing::warn!("the lease was not released in time and expires by itself");
            }
        }
    }

    async fn try_acquire(&mut self) -> Result<bool, kube::Error> {
        let found = self.api.get_opt(&self.name).await?;
        let sent = Instant::now();
        let stored = match self.election.decide(sent, Timestamp::now(), found) {
            Decision::Wait(_) => return Ok(false),
            Decision::Create(lease) => self.api.create(&PostParams::default(), &lease).await,
            Decision::Replace(lease) => {
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await
            }
        };
        match stored {
            Ok(lease) => {
                self.election.won(sent, lease);
                self.leadership.set(&self.election);
                Ok(self.leadership.epoch().is_some())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// True when renewed, false when the lease is somebody else's.
    async fn renew(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.election.renewal(Timestamp::now()) else {
            return Ok(false);
        };
        let sent = Instant::now();
        match self.put(sent, &lease).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) if is_not_found(&error) => {}
            result => return result.map(|()| true),
        }
        // Somebody wrote it: another process, a person who annotated it, or ourselves by a
        // request whose answer was lost.
        let Some(found) = self.api.get_opt(&self.name).await? else {
            return Ok(false);
        };
        if !self.election.is_ours(&found) {
            return Ok(false);
        }
        let sent = Instant::now();
        match self.election.decide(sent, Timestamp::now(), Some(found)) {
            Decision::Replace(lease) => self.put(sent, &lease).await.map(|()| true),
            Decision::Create(_) | Decision::Wait(_) => Ok(false),
        }
    }

    async fn put(&mut self, sent: Instant, lease: &Lease) -> Result<(), kube::Error> {
        let stored = self
            .api
            .replace(&self.name, &PostParams::default(), lease)
            .await?;
        self.election.won(sent, stored);
        self.leadership.set(&self.election);
        Ok(())
    }

    fn give_up(&mut self, why: LostLease) -> LostLease {
        self.election.lost();
        self.leadership.set(&self.election);
        why
    }
}
