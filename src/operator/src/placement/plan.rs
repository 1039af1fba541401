//! What is to be done for a Placement now, as a pure function of what was seen.
//!
//! One side effect at a time, and each is safe to do again: a process that dies after any write
//! goes on from what the API server has.

use std::sync::Arc;
use std::time::Duration;

use creo_api::placement::{Phase, Placement, PlacementStatus};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use crate::base::backoff::Backoff;
use crate::base::conditions::reason;
use crate::base::slim::Pod;
use crate::{annotations, digest};

use super::build;

/// How long the next attempt waits after one that failed.
pub const ATTEMPTS: Backoff = Backoff {
    first: Duration::from_secs(2),
    ceiling: Duration::from_mins(5),
};

/// How long a node is left alone after the scheduler refused a replica there. The withdrawn
/// Placement carries the time, and so the memory of the refusal survives a restart.
pub const NODE_BACK_OFF: Duration = Duration::from_mins(2);

/// A replica that was ready for this long has shown that it works: a failure after that is a
/// first failure.
const PROVEN: Duration = Duration::from_mins(1);

/// What is known of the Kubernetes node that the pod is to be on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeSight {
    /// It is there and its kubelet reports.
    Seen,
    /// It is there and nothing is heard of its kubelet.
    Unseen,
    /// The API server positively does not have it.
    Gone,
}

/// Everything that is decided on.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The Placement.
    pub placement: Arc<Placement>,
    /// The pods that it controls, in the order of their attempts.
    pub pods: Vec<Arc<Pod>>,
    /// Its node.
    pub node: NodeSight,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Make the pod of this attempt.
    Create {
        /// The attempt, from 1.
        attempt: i64,
    },
    /// Delete this pod.
    Delete {
        /// The pod as it was seen.
        pod: Arc<Pod>,
    },
}

/// How the Placement is, once the step is done.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// How far it is.
    pub phase: Phase,
    /// Why, in a word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
    /// The pod's name.
    pub pod_name: Option<String>,
    /// The revision that the pod was made from.
    pub revision: Option<String>,
    /// Pods made so far.
    pub attempt: i64,
    /// Attempts that failed in a row.
    pub failures: i64,
    /// The time before which no attempt is made.
    pub next_attempt_after: Option<Timestamp>,
    /// Whether the pod is bound to its node.
    pub scheduled: bool,
}

/// What is to be done, and how things are then.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The one side effect.
    pub step: Step,
    /// What the status says.
    pub view: View,
    /// When to look again although nothing changes.
    pub again_after: Option<Duration>,
}

/// Decides.
#[must_use]
pub fn plan(seen: &Observed, unschedulable_timeout: Duration, now: Timestamp) -> Plan {
    Planner {
        seen,
        before: seen.placement.status.clone().unwrap_or_default(),
        unschedulable_timeout,
        now,
    }
    .plan()
}

struct Planner<'a> {
    seen: &'a Observed,
    before: PlacementStatus,
    unschedulable_timeout: Duration,
    now: Timestamp,
}

fn attempt_of(pod: &Pod) -> i64 {
    pod.annotations()
        .get(annotations::ATTEMPT)
        .and_then(|attempt| attempt.parse().ok())
        .unwrap_or(0)
}

/// Sorts pods by their attempts.
pub fn sort_by_attempt(pods: &mut [Arc<Pod>]) {
    pods.sort_by_key(|pod| (attempt_of(pod), pod.name_any()));
}

impl Planner<'_> {
    fn plan(&self) -> Plan {
        let current = self.seen.pods.last();
        if let Some(phase @ (Phase::Withdrawn | Phase::Ended)) = self.before.phase {
            return self.clear_away(phase);
        }
        if self.seen.placement.metadata.deletion_timestamp.is_some() {
            return self.clear_away(Phase::Ended);
        }
        if self.seen.node == NodeSight::Gone {
            return self.ended();
        }
        let Some(current) = current else {
            return self.start();
        };
        if let Some(older) = self
            .seen
            .pods
            .iter()
            .rev()
            .skip(1)
            .find(|pod| !pod.is_deleting())
        {
            let mut plan = Self::settled(self.of_pod(current));
            plan.step = Step::Delete {
                pod: Arc::clone(older),
            };
            return plan;
        }
        self.keep(current)
    }

    /// There is a pod: keep it, replace it, or give up on it.
    fn keep(&self, pod: &Arc<Pod>) -> Plan {
        // One that we replace ends because we asked it to, and has not failed.
        let is_replaced = pod.annotations().get(annotations::WORKLOAD) != Some(&self.wanted());
        if pod.has_ended() && !is_replaced {
            return self.failed(pod);
        }
        let bound = pod.spec.node_name.is_some();
        if bound && !pod.has_ended() && self.seen.node == NodeSight::Unseen {
            let message = format!(
                "nothing is heard of node {}; the pod may still serve there, and is asked again when the node answers",
                self.seen.placement.spec.workload.kubernetes_node
            );
            return Self::settled(self.view(
                Phase::Lost,
                "NodeUnseen",
                message,
                Some(pod.as_ref()),
            ));
        }
        if pod.is_deleting() {
            let message = format!("pod {} is ending", pod.name_any());
            return Self::settled(self.view(
                Phase::Pending,
                "Stopping",
                message,
                Some(pod.as_ref()),
            ));
        }
        if is_replaced {
            let message = format!(
                "pod {} has another workload than spec.workload and is replaced",
                pod.name_any()
            );
            return Plan {
                step: Step::Delete {
                    pod: Arc::clone(pod),
                },
                ..Self::settled(self.view(Phase::Pending, "Replacing", message, Some(pod.as_ref())))
            };
        }
        if !bound && let Some(plan) = self.refused_by_the_scheduler(pod) {
            return plan;
        }
        Self::settled(self.of_pod(pod))
    }

    /// There is no pod: make one, when its time has come.
    fn start(&self) -> Plan {
        if let Some(wait) = self.wait_for_next_attempt() {
            let view = self.as_before(Phase::Failed, None);
            return Plan {
                again_after: Some(wait),
                ..Self::settled(view)
            };
        }
        if self.has_vanished() {
            let why = "somebody deleted its pod";
            return self.note_failure(self.before.attempt, "PodGone", why, None);
        }
        let attempt = self.before.attempt.saturating_add(1);
        let name = build::pod::name(&self.seen.placement, attempt);
        let message = format!("pod {name} waits for the scheduler");
        let mut view = self.view(Phase::Pending, "Scheduling", message, None);
        view.attempt = attempt;
        view.pod_name = Some(name);
        view.revision = Some(self.revision().to_owned());
        if self.is_another_revision() {
            view.failures = 0;
        }
        Plan {
            step: Step::Create { attempt },
            ..Self::settled(view)
        }
    }

    /// Whether the pod of the last attempt went without having failed or been replaced by us.
    fn has_vanished(&self) -> bool {
        self.before.attempt > 0
            && self.before.phase != Some(Phase::Failed)
            && !self.is_another_revision()
    }

    fn revision(&self) -> &str {
        &self.seen.placement.spec.workload.revision
    }

    /// Whether the last pod was made from another revision than the one that is wanted now.
    fn is_another_revision(&self) -> bool {
        self.before.revision.as_deref() != Some(self.revision())
    }

    /// The pod has ended: note it once, and make room for the next attempt when its time is.
    fn failed(&self, pod: &Arc<Pod>) -> Plan {
        let attempt = attempt_of(pod);
        let noted = self.before.phase == Some(Phase::Failed) && self.before.attempt == attempt;
        if !noted {
            let (word, why) = why_it_ended(pod);
            return self.note_failure(attempt, &word, &why, Some(pod));
        }
        let plan = Self::settled(self.as_before(Phase::Failed, Some(pod)));
        match self.wait_for_next_attempt() {
            Some(wait) => Plan {
                again_after: Some(wait),
                ..plan
            },
            None if pod.is_deleting() => plan,
            None => Plan {
                step: Step::Delete {
                    pod: Arc::clone(pod),
                },
                ..plan
            },
        }
    }

    /// An attempt failed: the next one waits, longer with each failure in a row.
    fn note_failure(&self, attempt: i64, word: &str, why: &str, pod: Option<&Pod>) -> Plan {
        let failures = if self.has_proven_itself() {
            1
        } else {
            self.before.failures.saturating_add(1)
        };
        let in_a_row = u32::try_from(failures).unwrap_or(u32::MAX);
        let delay = ATTEMPTS.delay(in_a_row, self.seed(attempt));
        let message = format!("attempt {attempt} failed: {why}");
        let mut view = self.view(Phase::Failed, word, message, pod);
        view.failures = failures;
        view.next_attempt_after = Some(self.now + delay);
        Plan {
            again_after: Some(delay),
            ..Self::settled(view)
        }
    }

    /// Withdrawn when the scheduler has refused the pod for long enough. A pod that the scheduler
    /// has not spoken about waits: a scheduler that is down refuses nothing.
    fn refused_by_the_scheduler(&self, pod: &Arc<Pod>) -> Option<Plan> {
        let refusal = pod
            .condition("PodScheduled")
            .filter(|condition| condition.status == "False")?;
        let why = refusal.message.as_deref().unwrap_or("no reason given");
        let since = refusal
            .last_transition_time
            .as_ref()
            .or(pod.metadata.creation_timestamp.as_ref())?;
        let waited = Duration::try_from(self.now.duration_since(since.0)).unwrap_or_default();
        let node = &self.seen.placement.spec.workload.kubernetes_node;
        if waited >= self.unschedulable_timeout {
            let message = format!(
                "the scheduler could not bind the pod to node {node} for {} s: {why}",
                self.unschedulable_timeout.as_secs()
            );
            let mut view = self.view(
                Phase::Withdrawn,
                "Unschedulable",
                message,
                Some(pod.as_ref()),
            );
            view.next_attempt_after = Some(self.now + NODE_BACK_OFF);
            return Some(Self::settled(view));
        }
        let message = format!("the scheduler cannot bind the pod to node {node} yet: {why}");
        Some(Plan {
            again_after: Some(self.unschedulable_timeout.saturating_sub(waited)),
            ..Self::settled(self.view(Phase::Pending, "Unschedulable", message, Some(pod.as_ref())))
        })
    }

    /// The Node object is gone: what ran there runs no more.
    fn ended(&self) -> Plan {
        let message = format!(
            "node {} does not exist any more",
            self.seen.placement.spec.workload.kubernetes_node
        );
        Self::settled(self.view(Phase::Ended, "NodeGone", message, self.last_pod()))
    }

    /// Nothing is to run any more: the pods go one after the other.
    fn clear_away(&self, phase: Phase) -> Plan {
        let mut view = self.as_before(phase, self.last_pod());
        let is_final = matches!(self.before.phase, Some(Phase::Withdrawn | Phase::Ended));
        if is_final {
            view.phase = phase;
        } else if self.seen.pods.is_empty() {
            "Deleted".clone_into(&mut view.reason);
            "the placement was deleted and its pod is gone".clone_into(&mut view.message);
        } else {
            view.phase = Phase::Pending;
            "Stopping".clone_into(&mut view.reason);
            "the placement was deleted; its pod is ending".clone_into(&mut view.message);
        }
        let next = self.seen.pods.iter().find(|pod| !pod.is_deleting());
        Plan {
            step: next.map_or(Step::Nothing, |pod| Step::Delete {
                pod: Arc::clone(pod),
            }),
            ..Self::settled(view)
        }
    }

    /// How a pod that is left alone is.
    fn of_pod(&self, pod: &Pod) -> View {
        if pod.is_ready() {
            let node = pod.spec.node_name.as_deref().unwrap_or_default();
            return self.view(
                Phase::Ready,
                "Answers",
                format!("answers on node {node}"),
                Some(pod),
            );
        }
        if pod.spec.node_name.is_none() {
            let message = format!("pod {} waits for the scheduler", pod.name_any());
            return self.view(Phase::Pending, "Scheduling", message, Some(pod));
        }
        let waiting = pod
            .status
            .container_statuses
            .iter()
            .find_map(|container| container.state.waiting.as_ref());
        let (word, message) = match waiting {
            Some(waiting) => (
                reason(waiting.reason.as_deref(), "Waiting"),
                waiting
                    .message
                    .clone()
                    .unwrap_or_else(|| "the container is being made".to_owned()),
            ),
            None if pod.status.phase == "Running" => (
                "Loading".to_owned(),
                "the engine runs and does not answer its health check yet".to_owned(),
            ),
            None => (
                "Creating".to_owned(),
                "the kubelet makes the pod".to_owned(),
            ),
        };
        self.view(Phase::Starting, &word, message, Some(pod))
    }

    fn last_pod(&self) -> Option<&Pod> {
        self.seen.pods.last().map(AsRef::as_ref)
    }

    fn view(&self, phase: Phase, word: &str, message: String, pod: Option<&Pod>) -> View {
        let waits = matches!(phase, Phase::Failed | Phase::Withdrawn)
            .then_some(self.before.next_attempt_after.as_ref());
        View {
            phase,
            reason: word.to_owned(),
            message,
            pod_name: pod.map(Pod::name_any),
            revision: pod.and_then(|pod| pod.annotations().get(annotations::REVISION).cloned()),
            attempt: pod.map_or(0, attempt_of).max(self.before.attempt),
            failures: self.before.failures,
            next_attempt_after: waits.flatten().map(|time| time.0),
            scheduled: pod.is_some_and(|pod| pod.spec.node_name.is_some()),
        }
    }

    /// The phase with the reason and message that were noted before.
    fn as_before(&self, phase: Phase, pod: Option<&Pod>) -> View {
        let word = self.before.reason.as_deref().unwrap_or(phase.as_str());
        let mut view = self.view(
            phase,
            word,
            self.before.message.clone().unwrap_or_default(),
            pod,
        );
        if pod.is_none() {
            view.pod_name.clone_from(&self.before.pod_name);
            view.revision.clone_from(&self.before.revision);
        }
        view
    }

    fn settled(view: View) -> Plan {
        Plan {
            step: Step::Nothing,
            view,
            again_after: None,
        }
    }

    fn wanted(&self) -> String {
        digest::of(&self.seen.placement.spec.workload)
    }

    fn wait_for_next_attempt(&self) -> Option<Duration> {
        if self.is_another_revision() {
            return None;
        }
        let until = self.before.next_attempt_after.as_ref()?.0;
        Duration::try_from(until.duration_since(self.now))
            .ok()
            .filter(|wait| !wait.is_zero())
    }

    fn has_proven_itself(&self) -> bool {
        self.before.ready_stretches.last().is_some_and(|stretch| {
            let until = stretch.until.as_ref().map_or(self.now, |until| until.0);
            let length = Duration::try_from(until.duration_since(stretch.from.0));
            length.is_ok_and(|length| length >= PROVEN)
        })
    }

    /// Spreads the attempts of placements that failed together, and is the same when asked twice.
    fn seed(&self, attempt: i64) -> u64 {
        let text = digest::of(&(self.seen.placement.uid(), attempt));
        u64::from_str_radix(&text, 16).unwrap_or_default()
    }
}

/// Why a pod ended: in a word, and in a sentence.
fn why_it_ended(pod: &Pod) -> (String, String) {
    let ended = pod
        .status
        .container_statuses
        .iter()
        .find_map(|container| container.state.terminated.as_ref());
    if let Some(word) = pod.status.reason.as_deref() {
        let message = pod.status.message.as_deref().unwrap_or("no message");
        return (reason(Some(word), "Refused"), format!("{word}: {message}"));
    }
    match ended {
        Some(ended) => {
            let word = ended.reason.as_deref().unwrap_or("Ended");
            let words = ended
                .message
                .as_deref()
                .map(|last| format!(": {last}"))
                .unwrap_or_default();
            (
                reason(Some(word), "Ended"),
                format!(
                    "the engine ended with exit code {} ({word}){words}",
                    ended.exit_code
                ),
            )
        }
        None => (
            "Ended".to_owned(),
            "the pod ended without a reason".to_owned(),
        ),
    }
}
