//! What is to be done about a node's canary now, as a pure function of what was seen.
//!
//! One side effect at a time, and each is safe to do again: what was found is recorded with the
//! time at which the canary ended, and the canary is deleted when that is on record.

use std::sync::Arc;
use std::time::Duration;

use creo_api::CreoNode;
use creo_api::canary::Found;
use creo_api::condition::clip;
use creo_api::creo_node::{Isolation, Verdict};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::base::conditions::whole_seconds;
use crate::base::slim::node::Answers;
use crate::base::slim::{Node, Pod};
use crate::settings::Canaries;
use crate::{annotations, digest};

/// How long a canary may take. Its image is on the node already where the device plugin is.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How soon the next canary is sent where the last one found the hole: somebody may be closing it.
const AGAIN_WHERE_EXPOSED: Duration = Duration::from_mins(1);

/// How soon the next canary is sent where the last one did not run.
const AGAIN_WHERE_UNKNOWN: Duration = Duration::from_mins(5);

/// Longest texts that are taken over from a node.
const MAX_BOOT_ID: usize = 64;
const MAX_RUNTIME: usize = 256;

/// Everything that is decided on.
#[derive(Debug, Clone)]
pub struct Observed {
    /// The CreoNode of the node; the oldest, where there are several.
    pub creo_node: Option<Arc<CreoNode>>,
    /// The node.
    pub node: Option<Arc<Node>>,
    /// Its canary.
    pub canary: Option<Arc<Pod>>,
}

/// What a canary's answer is true of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sought {
    /// The start of the machine.
    pub boot_id: String,
    /// The container runtime and its version.
    pub container_runtime: String,
    /// The canary's image.
    pub image: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Send a canary.
    Create {
        /// What it is to say something of.
        sought: Sought,
    },
    /// Write down what it found.
    Record {
        /// What it found.
        isolation: Isolation,
    },
    /// Delete it.
    Delete {
        /// The canary as it was seen.
        pod: Arc<Pod>,
    },
}

/// What is to be done, and when to look again although nothing changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The one side effect.
    pub step: Step,
    /// When to look again.
    pub again_after: Option<Duration>,
}

impl From<Step> for Plan {
    fn from(step: Step) -> Self {
        Self {
            step,
            again_after: None,
        }
    }
}

/// Decides.
#[must_use]
pub fn plan(seen: &Observed, canaries: &Canaries, now: Timestamp) -> Plan {
    let (Some(creo_node), Some(node)) = (&seen.creo_node, &seen.node) else {
        // Nobody asks any more.
        return seen.canary.as_ref().map_or(Step::Nothing.into(), delete);
    };
    let sought = sought(node, canaries);
    let recorded = creo_node
        .status
        .as_ref()
        .and_then(|status| status.isolation.as_ref());
    if let Some(canary) = &seen.canary {
        return of_canary(canary, &sought, recorded, now);
    }
    if node.answers() != Answers::Ready {
        // Its next word is a change.
        return Step::Nothing.into();
    }
    match due_after(recorded, &sought, canaries, now) {
        None => Plan {
            step: Step::Create { sought },
            again_after: Some(PATIENCE),
        },
        wait => Plan {
            step: Step::Nothing,
            again_after: wait,
        },
    }
}

fn sought(node: &Node, canaries: &Canaries) -> Sought {
    let info = &node.status.node_info;
    Sought {
        boot_id: info.boot_id.chars().take(MAX_BOOT_ID).collect(),
        container_runtime: info
            .container_runtime_version
            .chars()
            .take(MAX_RUNTIME)
            .collect(),
        image: canaries.image.clone(),
    }
}

fn delete(pod: &Arc<Pod>) -> Plan {
    if pod.is_deleting() {
        return Step::Nothing.into();
    }
    Step::Delete {
        pod: Arc::clone(pod),
    }
    .into()
}

/// How long it is until the next canary; none when it is to be sent now.
fn due_after(
    recorded: Option<&Isolation>,
    sought: &Sought,
    canaries: &Canaries,
    now: Timestamp,
) -> Option<Duration> {
    let last = recorded.filter(|last| of(last) == *sought)?;
    let every = match last.verdict {
        Verdict::Isolated => canaries.interval,
        Verdict::Exposed => canaries.interval.min(AGAIN_WHERE_EXPOSED),
        Verdict::Unknown => canaries.interval.min(AGAIN_WHERE_UNKNOWN),
    };
    Some(every.saturating_sub(since(&last.checked_at, now))).filter(|wait| !wait.is_zero())
}

fn of(isolation: &Isolation) -> Sought {
    Sought {
        boot_id: isolation.boot_id.clone(),
        container_runtime: isolation.container_runtime.clone(),
        image: isolation.image.clone(),
    }
}

/// The time since a moment; none where it is in the future, as other clocks may have it.
fn since(moment: &Time, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(moment.0)).unwrap_or_default()
}

/// There is a canary: wait for its answer, write it down, and clear it away.
fn of_canary(
    canary: &Arc<Pod>,
    sought: &Sought,
    recorded: Option<&Isolation>,
    now: Timestamp,
) -> Plan {
    let annotations = canary.annotations();
    if canary.is_deleting()
        || annotations.get(annotations::CANARY_SOUGHT) != Some(&digest::of(sought))
    {
        return delete(canary);
    }
    let began = canary.metadata.creation_timestamp.clone();
    let age = began
        .as_ref()
        .map_or(Duration::ZERO, |time| since(time, now));
    if !canary.has_ended() && age < PATIENCE {
        return Plan {
            step: Step::Nothing,
            again_after: Some(PATIENCE.saturating_sub(age)),
        };
    }
    let (mut verdict, mut message) = said(canary);
    let before = recorded.map(|before| before.verdict);
    if verdict == Verdict::Unknown && before == Some(Verdict::Exposed) {
        verdict = Verdict::Exposed;
        message = format!("it was so when it was last looked at; since then: {message}");
    }
    // Not the time of now: the same answer is the same record whenever it is looked at.
    let given_up = || Some(Time(began.as_ref()?.0 + PATIENCE));
    let checked_at = ended_at(canary)
        .or_else(given_up)
        .unwrap_or_else(|| whole_seconds(now));
    if recorded.is_some_and(|last| last.checked_at == checked_at && of(last) == *sought) {
        return delete(canary);
    }
    let isolation = Isolation {
        verdict,
        message: clip(&message),
        checked_at,
        boot_id: sought.boot_id.clone(),
        container_runtime: sought.container_runtime.clone(),
        image: sought.image.clone(),
    };
    Step::Record { isolation }.into()
}

fn ended_at(canary: &Pod) -> Option<Time> {
    let statuses = canary.status.container_statuses.iter();
    let mut ended =
        statuses.filter_map(|status| status.state.terminated.as_ref()?.finished_at.clone());
    ended.next()
}

/// What a canary says that has ended or was given up.
fn said(canary: &Pod) -> (Verdict, String) {
    let statuses = &canary.status.container_statuses;
    let ended = statuses
        .iter()
        .find_map(|status| status.state.terminated.as_ref());
    let words = ended.and_then(|ended| ended.message.as_deref());
    if let Some(found) = words.and_then(|words| serde_json::from_str::<Found>(words).ok()) {
        return of_what_was_found(&found);
    }
    let mut why: Vec<String> = Vec::new();
    if let Some(ended) = ended {
        let reason = ended.reason.as_deref().unwrap_or("it ended");
        why.push(format!("{reason}, exit code {}", ended.exit_code));
        why.extend(ended.message.clone());
    }
    let waiting = statuses
        .iter()
        .filter_map(|status| status.state.waiting.as_ref());
    let refused = canary
        .condition("PodScheduled")
        .filter(|condition| condition.status == "False");
    let told = waiting.map(|waiting| (&waiting.reason, &waiting.message));
    let told = told.chain(refused.map(|refused| (&refused.reason, &refused.message)));
    let told = told.chain([(&canary.status.reason, &canary.status.message)]);
    for (reason, message) in told {
        let parts: Vec<&str> = [reason, message]
            .into_iter()
            .filter_map(|text| text.as_deref())
            .collect();
        if !parts.is_empty() {
            why.push(parts.join(": "));
        }
    }
    if why.is_empty() {
        why.push(format!("it did not end within {} s", PATIENCE.as_secs()));
    }
    (Verdict::Unknown, why.join("; "))
}

fn of_what_was_found(found: &Found) -> (Verdict, String) {
    let reached: Vec<String> = found
        .reached()
        .map(|node| format!("{} ({})", node.path, node.result))
        .collect();
    if reached.is_empty() {
        let message = "a container that asked for no GPU, and for all of them by NVIDIA_VISIBLE_DEVICES, reached none";
        return (Verdict::Isolated, message.to_owned());
    }
    let more = if found.more > 0 {
        format!(" and {} more", found.more)
    } else {
        String::new()
    };
    let message = format!(
        "a container that asked for no GPU, and for all of them by NVIDIA_VISIBLE_DEVICES, reached {}{more}",
        reached.join(", ")
    );
    (Verdict::Exposed, message)
}

#[cfg(test)]
pub(crate) mod fixture {
    use super::*;
    use serde_json::json;

    pub fn canaries() -> Canaries {
        Canaries {
            image: "creo/creo-gpu-device-plugin:1".to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            pull_secrets: vec!["registry".to_owned()],
            namespace: "creo-system".to_owned(),
            interval: Duration::from_hours(1),
        }
    }

    pub fn sought() -> Sought {
        Sought {
            boot_id: "b1".to_owned(),
            container_runtime: "containerd://2.4.2".to_owned(),
            image: canaries().image,
        }
    }

    /// A node that is ready and was never looked at.
    pub fn observed() -> Observed {
        let creo_node = serde_json::from_value(json!({
            "metadata": {"name": "gpu-1", "uid": "u-1"},
            "spec": {"source": {"kubernetesNode": "machine-1"}, "owner": "acme",
                "offer": {"priceMicroPerGpuHour": 1, "region": "eu"}},
        }));
        let node = serde_json::from_value(json!({
            "metadata": {"name": "machine-1"},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"bootID": "b1", "containerRuntimeVersion": "containerd://2.4.2"},
            },
        }));
        Observed {
            creo_node: Some(Arc::new(creo_node.unwrap())),
            node: Some(Arc::new(node.unwrap())),
            canary: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const OPENS: &str = r#"{"nodes":[{"path":"/dev/nvidia0","result":"opens"}],"more":2}"#;
    const REFUSED: &str = r#"{"nodes":[{"path":"/dev/nvidia0","result":"EPERM"}],"more":0}"#;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A canary that was sent at the beginning of time.
    fn canary(status: &Value) -> Arc<Pod> {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "creo-canary-1", "creationTimestamp": "1970-01-01T00:00:00Z",
                "annotations": {annotations::CANARY_SOUGHT: digest::of(&fixture::sought())}},
            "status": status,
        }));
        Arc::new(pod.unwrap())
    }

    fn ended(message: &str) -> Arc<Pod> {
        canary(
            &json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {
            "exitCode": 0, "reason": "Completed", "message": message,
            "finishedAt": "1970-01-01T00:00:03Z"}}}]}),
        )
    }

    fn recorded(observed: Observed, isolation: Isolation) -> Observed {
        let mut creo_node = CreoNode::clone(observed.creo_node.as_ref().unwrap());
        creo_node.status.get_or_insert_default().isolation = Some(isolation);
        Observed {
            creo_node: Some(Arc::new(creo_node)),
            ..observed
        }
    }

    fn of_verdict(verdict: Verdict) -> Isolation {
        let sought = fixture::sought();
        Isolation {
            verdict,
            message: "before".to_owned(),
            checked_at: Time(at(0)),
            boot_id: sought.boot_id,
            container_runtime: sought.container_runtime,
            image: sought.image,
        }
    }

    fn planned(observed: &Observed, second: i64) -> Plan {
        plan(observed, &fixture::canaries(), at(second))
    }

    /// What is recorded once a canary is so.
    fn answer(observed: Observed, canary: Arc<Pod>, second: i64) -> (Verdict, String) {
        let seen = Observed {
            canary: Some(canary),
            ..observed
        };
        match planned(&seen, second).step {
            Step::Record { isolation } => (isolation.verdict, isolation.message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_node_that_was_never_looked_at_gets_a_canary_and_one_that_was_not_before_its_time() {
        let new = fixture::observed();
        let sought = fixture::sought();
        assert_eq!(planned(&new, 0).step, Step::Create { sought });
        for (verdict, not_yet, due) in [
            (Verdict::Isolated, 3_599, 3_600),
            (Verdict::Exposed, 59, 60),
            (Verdict::Unknown, 299, 300),
        ] {
            let known = recorded(new.clone(), of_verdict(verdict));
            let waiting = planned(&known, not_yet);
            assert_eq!(waiting.step, Step::Nothing, "{verdict:?}");
            assert_eq!(waiting.again_after, Some(Duration::from_secs(1)));
            assert!(matches!(planned(&known, due).step, Step::Create { .. }));
        }
    }

    #[test]
    fn another_start_of_the_machine_is_looked_at_anew() {
        let mut isolation = of_verdict(Verdict::Isolated);
        isolation.boot_id = "b0".to_owned();
        let known = recorded(fixture::observed(), isolation);
        assert!(matches!(planned(&known, 0).step, Step::Create { .. }));
    }

    #[test]
    fn a_node_that_does_not_answer_is_sent_none() {
        let mut node = Node::clone(fixture::observed().node.as_ref().unwrap());
        node.status.conditions.clear();
        let silent = Observed {
            node: Some(Arc::new(node)),
            ..fixture::observed()
        };
        assert_eq!(planned(&silent, 0).step, Step::Nothing);
    }

    #[test]
    fn what_a_canary_reaches_makes_the_verdict() {
        let (verdict, message) = answer(fixture::observed(), ended(OPENS), 4);
        assert_eq!(verdict, Verdict::Exposed);
        assert!(
            message.ends_with("reached /dev/nvidia0 (opens) and 2 more"),
            "{message}"
        );
        let (verdict, _) = answer(fixture::observed(), ended(REFUSED), 4);
        assert_eq!(verdict, Verdict::Isolated);
        let (verdict, _) = answer(fixture::observed(), ended(r#"{"nodes":[],"more":0}"#), 4);
        assert_eq!(verdict, Verdict::Isolated);
    }

    #[test]
    fn a_canary_is_deleted_once_its_answer_is_on_record() {
        let seen = Observed {
            canary: Some(ended(REFUSED)),
            ..fixture::observed()
        };
        let Step::Record { isolation } = planned(&seen, 4).step else {
            panic!("nothing was recorded");
        };
        assert_eq!(isolation.checked_at, Time(at(3)));
        let after = recorded(seen, isolation);
        for second in [4, 400] {
            assert!(matches!(planned(&after, second).step, Step::Delete { .. }));
        }
    }

    #[test]
    fn a_canary_that_cannot_run_is_waited_for_and_then_given_up_with_the_cause() {
        let unscheduled = canary(&json!({"phase": "Pending", "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 1 Too many pods"}]}));
        let waiting = Observed {
            canary: Some(Arc::clone(&unscheduled)),
            ..fixture::observed()
        };
        let plan = planned(&waiting, 50);
        assert_eq!(plan.step, Step::Nothing);
        assert_eq!(plan.again_after, Some(Duration::from_secs(10)));
        let (verdict, message) = answer(fixture::observed(), unscheduled, 60);
        assert_eq!(verdict, Verdict::Unknown);
        assert!(message.contains("Too many pods"), "{message}");
        let no_image = canary(
            &json!({"phase": "Pending", "containerStatuses": [{"state": {
            "waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}),
        );
        let (verdict, message) = answer(fixture::observed(), no_image, 61);
        assert_eq!(verdict, Verdict::Unknown);
        assert_eq!(message, "ImagePullBackOff: not found");
        let (verdict, _) = answer(fixture::observed(), ended("rubbish"), 61);
        assert_eq!(verdict, Verdict::Unknown);
    }

    #[test]
    fn a_hole_that_was_found_stays_one_until_a_canary_says_otherwise() {
        let exposed = || recorded(fixture::observed(), of_verdict(Verdict::Exposed));
        let stuck = canary(&json!({"phase": "Pending"}));
        let (verdict, message) = answer(exposed(), stuck, 100);
        assert_eq!(verdict, Verdict::Exposed);
        assert!(message.contains("did not end within 60 s"), "{message}");
        let (verdict, _) = answer(exposed(), ended(REFUSED), 100);
        assert_eq!(verdict, Verdict::Isolated);
    }

    #[test]
    fn a_canary_of_another_time_or_of_a_node_that_nobody_offers_is_cleared_away() {
        let mut old = Pod::clone(&ended(REFUSED));
        old.metadata.annotations = None;
        let seen = Observed {
            canary: Some(Arc::new(old)),
            ..fixture::observed()
        };
        assert!(matches!(planned(&seen, 4).step, Step::Delete { .. }));
        let unwanted = Observed {
            creo_node: None,
            canary: Some(ended(REFUSED)),
            ..fixture::observed()
        };
        assert!(matches!(planned(&unwanted, 4).step, Step::Delete { .. }));
    }
}
