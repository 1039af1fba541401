//! Runs one controller: a queue, a bounded number of workers, a back-off for each object.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::queue::Queue;
use super::{Class, Key, Publisher, ReconcileError, Report};

/// How long an object waits after a failure that may pass.
pub const TRANSIENT: Backoff = Backoff {
    first: Duration::from_millis(500),
    ceiling: Duration::from_mins(1),
};

/// How long an object waits after somebody else wrote in between: the watch tells it within
/// milliseconds.
const CONFLICT: Backoff = Backoff {
    first: Duration::from_millis(50),
    ceiling: Duration::from_secs(5),
};

/// What a controller does for one object.
pub trait Reconciler: Send + Sync + 'static {
    /// The name of the controller in logs and metrics.
    const NAME: &'static str;

    /// Brings one object closer to what it should be.
    fn reconcile(&self, key: &Key) -> impl Future<Output = Result<Report, ReconcileError>> + Send;

    /// The object as events refer to it; none when it is gone.
    fn reference(&self, key: &Key) -> Option<ObjectReference>;
}

/// The failures in a row of the objects that failed last.
#[derive(Debug, Default)]
struct Failures {
    by_key: Mutex<HashMap<Key, (u32, &'static str)>>,
    seed: std::collections::hash_map::RandomState,
}

impl Failures {
    fn clear(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Counts a failure; how many in a row, and whether it is of another kind than the last.
    fn count(&self, key: &Key, label: &'static str) -> (u32, bool) {
        let mut failures = self.lock();
        let entry = failures.entry(key.clone()).or_insert((0, ""));
        let is_new = entry.1 != label;
        *entry = (entry.0.saturating_add(1), label);
        (entry.0, is_new)
    }

    fn delay(&self, backoff: &Backoff, key: &Key, failures: u32) -> Duration {
        backoff.delay(failures, self.seed.hash_one((key, failures)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (u32, &'static str)>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One controller that runs.
pub struct Runner<R> {
    reconciler: Arc<R>,
    queue: Arc<Queue>,
    publisher: Publisher,
    concurrency: usize,
    failures: Arc<Failures>,
}

impl<R: Reconciler> Runner<R> {
    /// A runner for `reconciler`, fed by `queue`, at most `concurrency` objects at once.
    #[must_use]
    pub fn new(reconciler: R, queue: Arc<Queue>, publisher: Publisher, concurrency: usize) -> Self {
        Self {
            reconciler: Arc::new(reconciler),
            queue,
            publisher,
            concurrency: concurrency.max(1),
            failures: Arc::default(),
        }
    }

    /// Works until `stop` is cancelled, then until what is under way has ended.
    pub async fn run(self, stop: CancellationToken) {
        let permits = Arc::new(Semaphore::new(self.concurrency));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let next = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, self.queue.next().await)
            };
            let (permit, key) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = next => next,
            };
            self.publisher.queue(R::NAME, self.queue.depths());
            let work = Work {
                reconciler: Arc::clone(&self.reconciler),
                queue: Arc::clone(&self.queue),
                publisher: self.publisher.clone(),
                failures: Arc::clone(&self.failures),
            };
            tasks.spawn(async move {
                work.once(key).await;
                drop(permit);
            });
        }
        while tasks.join_next().await.is_some() {}
    }
}

struct Work<R> {
    reconciler: Arc<R>,
    queue: Arc<Queue>,
    publisher: Publisher,
    failures: Arc<Failures>,
}

impl<R: Reconciler> Work<R> {
    async fn once(&self, key: Key) {
        let began = Instant::now();
        let result = {
            let reconciler = Arc::clone(&self.reconciler);
            let key = key.clone();
            // A task of its own, so that a defect in one object's reconcile ends that task only.
            tokio::spawn(async move { reconciler.reconcile(&key).await }).await
        };
        let took = began.elapsed();
        let regarding = self.reconciler.reference(&key);
        let again_after = match result {
            Ok(Ok(report)) => {
                self.failures.clear(&key);
                self.publisher
                    .reconciled(R::NAME, &key, regarding.as_ref(), &report, took);
                report.again_after
            }
            Ok(Err(error)) => self.after(&key, regarding.as_ref(), &error, took),
            Err(_panicked) => {
                self.publisher.panicked(R::NAME, &key, took);
                let (failures, _) = self.failures.count(&key, "panicked");
                Some(self.failures.delay(&TRANSIENT, &key, failures))
            }
        };
        if let Some(delay) = again_after {
            self.queue.add_at(key.clone(), Instant::now() + delay);
        }
        self.queue.done(&key);
        self.publisher.queue(R::NAME, self.queue.depths());
    }

    fn after(
        &self,
        key: &Key,
        regarding: Option<&ObjectReference>,
        error: &ReconcileError,
        took: Duration,
    ) -> Option<Duration> {
        let (failures, is_new) = self.failures.count(key, error.label());
        let (tell_owner, again_after) = match error.class() {
            Class::Invalid => (is_new, None),
            Class::Transient => (is_new, Some(self.failures.delay(&TRANSIENT, key, failures))),
            Class::Conflict => (false, Some(self.failures.delay(&CONFLICT, key, failures))),
            Class::Deposed => (false, None),
        };
        self.publisher
            .failed(R::NAME, key, regarding, error, tell_owner, took);
        again_after
    }
}
