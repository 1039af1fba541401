//! The one place that tells the world what the controllers did: logs, Kubernetes events and
//! metrics. Controllers return a [`Report`]; nothing else of them writes a log line about an
//! outcome, an event or a metric.
//!
//! RBAC: `create` and `patch` on events.k8s.io `events`, in every namespace, because objects of
//! every namespace are reported on; events of cluster-scoped objects go to `default`.

use std::time::Duration;

use creo_process::prometheus::{
    self, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::{Key, ReconcileError};

/// Events that wait to be sent; more are dropped and counted, because an event is a courtesy
/// and must not hold a controller up.
const EVENTS_WAITING: usize = 1024;

/// The longest note of an event, in bytes; the API server refuses more than 1 kB.
const NOTE_BYTES: usize = 1000;

/// What a reconcile did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The object is not there any more.
    Gone,
    /// Everything was as it should be; nothing was written.
    Settled,
    /// Something was written.
    Changed,
    /// It waits for something that is not there yet.
    Waiting,
}

impl Outcome {
    /// The outcome as a metric label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Settled => "settled",
            Self::Changed => "changed",
            Self::Waiting => "waiting",
        }
    }
}

/// Something worth telling the owner of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// Whether something is wrong.
    pub warning: bool,
    /// Why, in one CamelCase word.
    pub reason: &'static str,
    /// What was done, in one CamelCase word.
    pub action: &'static str,
    /// The whole story, for a person.
    pub message: String,
}

/// What a reconcile returns.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What it did.
    pub outcome: Outcome,
    /// When to look again although nothing changes.
    pub again_after: Option<Duration>,
    /// What to tell the owner.
    pub notes: Vec<Note>,
}

impl Report {
    /// A report without notes.
    #[must_use]
    pub fn new(outcome: Outcome) -> Self {
        Self {
            outcome,
            again_after: None,
            notes: Vec::new(),
        }
    }
}

#[derive(Clone)]
struct Metrics {
    reconciles: IntCounterVec,
    duration: HistogramVec,
    queue: IntGaugeVec,
    cached: IntGaugeVec,
    watch_failures: IntCounterVec,
    unreadable: IntCounterVec,
    events_dropped: IntCounter,
    leading: IntGauge,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets = vec![0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0];
        let metrics = Self {
            reconciles: IntCounterVec::new(
                Opts::new(
                    "creo_reconciles_total",
                    "Reconciles by controller and outcome.",
                ),
                &["controller", "outcome"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new("creo_reconcile_duration_seconds", "Time of one reconcile.")
                    .buckets(buckets),
                &["controller"],
            )?,
            queue: IntGaugeVec::new(
                Opts::new(
                    "creo_queue_objects",
                    "Objects that are ready to be reconciled, wait for a time, or are under way.",
                ),
                &["controller", "state"],
            )?,
            cached: IntGaugeVec::new(
                Opts::new("creo_cache_objects", "Objects in the local copy of a kind."),
                &["kind"],
            )?,
            watch_failures: IntCounterVec::new(
                Opts::new(
                    "creo_watch_failures_total",
                    "Watches that failed and started again.",
                ),
                &["kind"],
            )?,
            unreadable: IntCounterVec::new(
                Opts::new(
                    "creo_unreadable_objects_total",
                    "Objects of the API server that could not be read.",
                ),
                &["kind"],
            )?,
            events_dropped: IntCounter::new(
                "creo_events_dropped_total",
                "Kubernetes events that were not sent.",
            )?,
            leading: IntGauge::new(
                "creo_leading",
                "1 while this process holds the lease and writes.",
            )?,
        };
        registry.register(Box::new(metrics.reconciles.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.queue.clone()))?;
        registry.register(Box::new(metrics.cached.clone()))?;
        registry.register(Box::new(metrics.watch_failures.clone()))?;
        registry.register(Box::new(metrics.unreadable.clone()))?;
        registry.register(Box::new(metrics.events_dropped.clone()))?;
        registry.register(Box::new(metrics.leading.clone()))?;
        Ok(metrics)
    }
}

/// Where everything is published; cloning shares it.
#[derive(Clone)]
pub struct Publisher {
    metrics: Metrics,
    events: mpsc::Sender<(Event, ObjectReference)>,
}

/// Sends the events of a [`Publisher`].
pub struct Sender {
    events: mpsc::Receiver<(Event, ObjectReference)>,
    recorder: Recorder,
    dropped: IntCounter,
}

impl Sender {
    /// Sends until every [`Publisher`] is gone.
    pub async fn run(mut self) {
        while let Some((event, regarding)) = self.events.recv().await {
            if let Err(error) = self.recorder.publish(&event, &regarding).await {
                self.dropped.inc();
                tracing::debug!(%error, reason = event.reason, "an event was not sent");
            }
        }
    }
}

impl Publisher {
    /// Registers the metrics; the [`Sender`] is to be spawned.
    pub fn new(
        registry: &Registry,
        client: Client,
        instance: String,
    ) -> Result<(Self, Sender), prometheus::Error> {
        let metrics = Metrics::register(registry)?;
        let (events, waiting) = mpsc::channel(EVENTS_WAITING);
        let reporter = Reporter {
            controller: "creo-operator".to_owned(),
            instance: Some(instance),
        };
        let sender = Sender {
            events: waiting,
            recorder: Recorder::new(client, reporter),
            dropped: metrics.events_dropped.clone(),
        };
        Ok((Self { metrics, events }, sender))
    }

    /// A reconcile ended well.
    pub fn reconciled(
        &self,
        controller: &'static str,
        key: &Key,
        regarding: Option<&ObjectReference>,
        report: &Report,
        took: Duration,
    ) {
        self.count(controller, report.outcome.label(), took);
        match report.outcome {
            Outcome::Settled | Outcome::Gone => {
                tracing::debug!(controller, object = %key, outcome = report.outcome.label(), "reconciled");
            }
            Outcome::Changed | Outcome::Waiting => {
                tracing::info!(
                    controller,
                    object = %key,
                    outcome = report.outcome.label(),
                    took_ms = millis(took),
                    "reconciled"
                );
            }
        }
        for note in &report.notes {
            self.note(controller, key, regarding, note);
        }
    }

    /// A reconcile failed. The owner is told when the kind of failure is new, not at each retry.
    pub fn failed(
        &self,
        controller: &'static str,
        key: &Key,
        regarding: Option<&ObjectReference>,
        error: &ReconcileError,
        tell_owner: bool,
        took: Duration,
    ) {
        self.count(controller, error.label(), took);
        tracing::warn!(controller, object = %key, outcome = error.label(), %error, "reconcile failed");
        if tell_owner {
            let note = Note {
                warning: true,
                reason: "ReconcileFailed",
                action: "Reconcile",
                message: error.to_string(),
            };
            self.note(controller, key, regarding, &note);
        }
    }

    /// A reconcile panicked, which is a defect; the other objects go on.
    pub fn panicked(&self, controller: &'static str, key: &Key, took: Duration) {
        self.count(controller, "panicked", took);
        tracing::error!(controller, object = %key, "a reconcile panicked; this is a defect, please report it");
    }

    /// How full a queue is.
    pub fn queue(&self, controller: &'static str, depths: (usize, usize, usize)) {
        let (ready, delayed, running) = depths;
        for (state, count) in [("ready", ready), ("delayed", delayed), ("running", running)] {
            self.metrics
                .queue
                .with_label_values(&[controller, state])
                .set(gauge(count));
        }
    }

    /// How many objects of a kind are cached.
    pub fn cached(&self, kind: &str, count: usize) {
        self.metrics
            .cached
            .with_label_values(&[kind])
            .set(gauge(count));
    }

    /// A watch failed and starts again.
    pub fn watch_failed(&self, kind: &str, error: &kube::runtime::watcher::Error) {
        self.metrics.watch_failures.with_label_values(&[kind]).inc();
        tracing::warn!(kind, %error, "a watch failed and starts again");
    }

    /// An object could not be read.
    pub fn unreadable(&self, kind: &str, namespace: &str, name: &str, error: &str) {
        self.metrics.unreadable.with_label_values(&[kind]).inc();
        tracing::warn!(
            kind,
            namespace,
            name,
            error,
            "an object cannot be read and its last readable form is used; correct or delete it"
        );
    }

    /// Whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.metrics.leading.set(i64::from(leads));
    }

    fn count(&self, controller: &'static str, outcome: &'static str, took: Duration) {
        self.metrics
            .reconciles
            .with_label_values(&[controller, outcome])
            .inc();
        self.metrics
            .duration
            .with_label_values(&[controller])
            .observe(took.as_secs_f64());
    }

    fn note(
        &self,
        controller: &'static str,
        key: &Key,
        regarding: Option<&ObjectReference>,
        note: &Note,
    ) {
        if note.warning {
            tracing::warn!(controller, object = %key, reason = note.reason, "{}", note.message);
        } else {
            tracing::info!(controller, object = %key, reason = note.reason, "{}", note.message);
        }
        let Some(regarding) = regarding else { return };
        let event = Event {
            type_: if note.warning {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: note.reason.to_owned(),
            note: Some(shortened(&note.message, NOTE_BYTES)),
            action: note.action.to_owned(),
            secondary: None,
        };
        if self.events.try_send((event, regarding.clone())).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The text in at most `limit` bytes, cut at a character and marked when it was cut.
#[must_use]
pub fn shortened(text: &str, limit: usize) -> String {
    const MARK: &str = "...";
    if text.len() <= limit {
        return text.to_owned();
    }
    let mut end = limit.saturating_sub(MARK.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_at_a_character_and_says_so() {
        assert_eq!(shortened("short", 10), "short");
        assert_eq!(shortened("exactly ten", 10), "exactly...");
        let cut = shortened(&"ä".repeat(50), 20);
        assert!(cut.len() <= 20 && cut.ends_with("..."), "{cut}");
    }
}
