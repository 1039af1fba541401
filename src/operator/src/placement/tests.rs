//! The plan of a Placement as a table: what was seen, what is done, what is said.

use std::sync::Arc;
use std::time::Duration;

use creo_api::Placement;
use creo_api::placement::PlacementStatus;
use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::json;

use super::fixture;
use super::plan::{
    ATTEMPTS, NODE_BACK_OFF, NodeSight, Observed, Plan, Step, plan, sort_by_attempt,
};
use super::status::{notes, status};
use crate::base::slim::Pod;
use crate::digest;

const TIMEOUT: Duration = Duration::from_secs(30);

fn now() -> Timestamp {
    "2026-11-22T01:00:00Z".parse().unwrap()
}

fn placement(status: serde_json::Value) -> Placement {
    let mut placement = fixture::placement();
    placement.status = serde_json::from_value(status).unwrap();
    placement
}

/// The pod of an attempt; `change` replaces parts of its status.
#[allow(
    clippy::needless_pass_by_value,
    reason = "a table reads better without ampersands"
)]
fn pod(attempt: i64, node: Option<&str>, status: serde_json::Value) -> Arc<Pod> {
    let workload = fixture::placement().spec.workload;
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "name": format!("p-{attempt}"), "namespace": "team", "uid": format!("u{attempt}"),
                "creationTimestamp": "2026-11-22T00:59:50Z",
                "annotations": {
                    "creo.cloud/attempt": attempt.to_string(),
                    "creo.cloud/revision": "r1",
                    "creo.cloud/workload-digest": digest::of(&workload),
                },
            },
            "spec": {"nodeName": node},
            "status": status,
        }))
        .unwrap(),
    )
}

fn deleting(pod: &Arc<Pod>) -> Arc<Pod> {
    let mut pod = Pod::clone(pod);
    pod.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-11-22T00:59:59Z")).unwrap();
    Arc::new(pod)
}

fn planned(placement: Placement, pods: &[Arc<Pod>], node: NodeSight) -> Plan {
    let mut pods = pods.to_vec();
    sort_by_attempt(&mut pods);
    plan(
        &Observed {
            placement: Arc::new(placement),
            pods,
            node,
        },
        TIMEOUT,
        now(),
    )
}

/// The plan in a line: step, phase, reason.
fn line(plan: &Plan) -> String {
    let step = match &plan.step {
        Step::Nothing => "nothing".to_owned(),
        Step::Create { attempt } => format!("create {attempt}"),
        Step::Delete { pod } => format!("delete {}", pod.metadata.name.as_deref().unwrap()),
    };
    format!("{step}: {} {}", plan.view.phase.as_str(), plan.view.reason)
}

fn running(ready: &str) -> serde_json::Value {
    json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]})
}

fn unschedulable(since: &str) -> serde_json::Value {
    json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "Insufficient creo.cloud/gpu", "lastTransitionTime": since,
    }]})
}

fn was(phase: &str, attempt: i64) -> serde_json::Value {
    json!({"phase": phase, "attempt": attempt, "revision": "r1", "reason": "Before", "message": "before"})
}

#[test]
fn a_pod_is_made_kept_and_read() {
    let on = Some("machine-1");
    let none = serde_json::Value::Null;
    let pending = json!({"phase": "Pending"});
    let waiting = json!({"phase": "Pending", "containerStatuses": [
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
    ]});
    let serving = |attempt| pod(attempt, on, running("True"));
    let cases = [
        ("nothing yet", none, vec![], "create 1: Pending Scheduling"),
        (
            "not bound yet",
            was("Pending", 1),
            vec![pod(1, None, pending.clone())],
            "nothing: Pending Scheduling",
        ),
        (
            "being made",
            was("Pending", 1),
            vec![pod(1, on, pending)],
            "nothing: Starting Creating",
        ),
        (
            "no image",
            was("Pending", 1),
            vec![pod(1, on, waiting)],
            "nothing: Starting ImagePullBackOff",
        ),
        (
            "loading",
            was("Starting", 1),
            vec![pod(1, on, running("False"))],
            "nothing: Starting Loading",
        ),
        (
            "ready",
            was("Starting", 1),
            vec![serving(1)],
            "nothing: Ready Answers",
        ),
        (
            "being deleted",
            was("Ready", 1),
            vec![deleting(&serving(1))],
            "nothing: Pending Stopping",
        ),
        ("gone", was("Pending", 1), vec![], "nothing: Failed PodGone"),
        (
            "an older one is left",
            was("Ready", 2),
            vec![serving(2), serving(1)],
            "delete p-1: Ready Answers",
        ),
    ];
    for (what, status, pods, expected) in cases {
        assert_eq!(
            line(&planned(placement(status), &pods, NodeSight::Seen)),
            expected,
            "{what}"
        );
    }
}

#[test]
fn a_node_that_is_not_seen_ends_nothing_and_one_that_is_gone_ends_everything() {
    use NodeSight::{Gone, Seen, Unseen};
    let on = Some("machine-1");
    let serving = || pod(1, on, running("True"));
    assert_eq!(
        line(&planned(placement(was("Ready", 1)), &[serving()], Unseen)),
        "nothing: Lost NodeUnseen"
    );
    assert_eq!(
        line(&planned(placement(was("Lost", 1)), &[serving()], Seen)),
        "nothing: Ready Answers"
    );
    let mut changed = placement(was("Lost", 1));
    changed.spec.workload.revision = "r2".to_owned();
    assert_eq!(
        line(&planned(changed, &[serving()], Unseen)),
        "nothing: Lost NodeUnseen"
    );
    assert_eq!(
        line(&planned(placement(was("Lost", 1)), &[serving()], Gone)),
        "nothing: Ended NodeGone"
    );
    assert_eq!(
        line(&planned(placement(was("Ended", 1)), &[serving()], Gone)),
        "delete p-1: Ended Before"
    );
    assert_eq!(
        line(&planned(placement(was("Ready", 1)), &[], Gone)),
        "nothing: Ended NodeGone"
    );
}

#[test]
fn a_pod_that_the_scheduler_refuses_for_long_enough_withdraws_the_placement_for_good() {
    let refused = |since| {
        planned(
            placement(was("Pending", 1)),
            &[pod(1, None, unschedulable(since))],
            NodeSight::Seen,
        )
    };
    let early = refused("2026-11-22T00:59:45Z");
    assert_eq!(line(&early), "nothing: Pending Unschedulable");
    assert_eq!(early.again_after, Some(Duration::from_secs(15)));
    let late = refused("2026-11-22T00:59:30Z");
    assert_eq!(line(&late), "nothing: Withdrawn Unschedulable");
    assert_eq!(late.view.next_attempt_after, Some(now() + NODE_BACK_OFF));
    assert!(
        late.view.message.contains("Insufficient creo.cloud/gpu"),
        "{}",
        late.view.message
    );
    let after = planned(
        placement(was("Withdrawn", 1)),
        &[pod(1, None, unschedulable("2026-11-22T00:59:30Z"))],
        NodeSight::Seen,
    );
    assert_eq!(line(&after), "delete p-1: Withdrawn Before");
    assert_eq!(
        line(&planned(
            placement(was("Withdrawn", 1)),
            &[],
            NodeSight::Seen
        )),
        "nothing: Withdrawn Before"
    );
    let bound_late = pod(1, Some("machine-1"), running("True"));
    assert_eq!(
        line(&planned(
            placement(was("Withdrawn", 1)),
            &[bound_late],
            NodeSight::Seen
        )),
        "delete p-1: Withdrawn Before"
    );
}

#[test]
fn a_scheduler_that_says_nothing_refuses_nothing() {
    let plan = planned(
        placement(was("Pending", 1)),
        &[pod(1, None, json!({"phase": "Pending"}))],
        NodeSight::Seen,
    );
    assert_eq!(
        (line(&plan).as_str(), plan.again_after),
        ("nothing: Pending Scheduling", None)
    );
}

#[test]
fn each_way_to_fail_is_noted_once_with_its_reason_and_waits() {
    let ended = |status| {
        let plan = planned(
            placement(was("Starting", 1)),
            &[pod(1, Some("machine-1"), status)],
            NodeSight::Seen,
        );
        assert_eq!((plan.view.failures, plan.step.clone()), (1, Step::Nothing));
        assert!(plan.view.next_attempt_after.unwrap() > now());
        assert!(plan.again_after.unwrap() <= ATTEMPTS.first);
        (plan.view.reason, plan.view.message)
    };
    let (reason, message) = ended(
        json!({"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy device"}),
    );
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert!(message.contains("no healthy device"), "{message}");
    let (reason, _) = ended(json!({"phase": "Failed", "reason": "OutOfcreo.cloud/gpu"}));
    assert_eq!(
        reason, "Refused",
        "a word that the API would refuse is replaced"
    );
    let (reason, message) = ended(json!({"phase": "Failed", "containerStatuses": [
        {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}},
    ]}));
    assert_eq!(reason, "OOMKilled");
    assert!(message.contains("137"), "{message}");
    assert_eq!(ended(json!({"phase": "Succeeded"})).0, "Ended");
}

#[test]
fn the_next_attempt_waits_for_its_time_and_then_takes_one_step_at_a_time() {
    let failed = pod(1, Some("machine-1"), json!({"phase": "Failed"}));
    let until = |time: &str| {
        let mut status = was("Failed", 1);
        status["failures"] = json!(3);
        status["nextAttemptAfter"] = json!(time);
        placement(status)
    };
    let early = planned(
        until("2026-11-22T01:00:07Z"),
        &[Arc::clone(&failed)],
        NodeSight::Seen,
    );
    assert_eq!(
        (line(&early).as_str(), early.again_after),
        ("nothing: Failed Before", Some(Duration::from_secs(7)))
    );
    assert_eq!(early.view.failures, 3, "counted once");
    assert_eq!(
        line(&planned(
            until("2026-11-22T00:59:59Z"),
            &[failed],
            NodeSight::Seen
        )),
        "delete p-1: Failed Before"
    );
    let due = planned(until("2026-11-22T00:59:59Z"), &[], NodeSight::Seen);
    assert_eq!(line(&due), "create 2: Pending Scheduling");
    assert_eq!((due.view.failures, due.view.next_attempt_after), (3, None));
    let gone_early = planned(until("2026-11-22T01:00:07Z"), &[], NodeSight::Seen);
    assert_eq!(line(&gone_early), "nothing: Failed Before");
}

#[test]
fn failures_in_a_row_wait_longer_up_to_the_ceiling_and_a_replica_that_worked_starts_anew() {
    let wait = |failures: i64, stretches: serde_json::Value| {
        let mut status = was("Ready", 1);
        status["failures"] = json!(failures);
        status["readyStretches"] = stretches;
        let pod = pod(1, Some("machine-1"), json!({"phase": "Failed"}));
        planned(placement(status), &[pod], NodeSight::Seen).view
    };
    assert_eq!(wait(4, json!([])).failures, 5);
    let longest = now() + ATTEMPTS.ceiling;
    assert!(wait(1_000_000, json!([])).next_attempt_after.unwrap() <= longest);
    let flapping = json!([{"from": "2026-11-22T00:59:50Z", "until": "2026-11-22T00:59:59Z"}]);
    assert_eq!(wait(4, flapping).failures, 5);
    let proven = json!([{"from": "2026-11-22T00:50:00Z", "until": "2026-11-22T00:59:59Z"}]);
    assert_eq!(wait(4, proven).failures, 1);
}

#[test]
fn another_workload_replaces_the_pod_and_does_not_wait_for_a_back_off() {
    let changed = |status| {
        let mut placement = placement(status);
        placement.spec.workload.revision = "r2".to_owned();
        placement
    };
    let serving = pod(1, Some("machine-1"), running("True"));
    assert_eq!(
        line(&planned(
            changed(was("Ready", 1)),
            &[Arc::clone(&serving)],
            NodeSight::Seen
        )),
        "delete p-1: Pending Replacing"
    );
    assert_eq!(
        line(&planned(
            changed(was("Pending", 1)),
            &[deleting(&serving)],
            NodeSight::Seen
        )),
        "nothing: Pending Stopping"
    );
    let ended = pod(1, Some("machine-1"), json!({"phase": "Succeeded"}));
    for (pod, expected) in [
        (deleting(&ended), "nothing: Pending Stopping"),
        (ended, "delete p-1: Pending Replacing"),
    ] {
        let plan = planned(changed(was("Ready", 1)), &[pod], NodeSight::Seen);
        assert_eq!(line(&plan), expected, "it ended because it is replaced");
        assert_eq!(plan.view.failures, 0);
    }
    let next = planned(changed(was("Pending", 1)), &[], NodeSight::Seen);
    assert_eq!(
        (line(&next).as_str(), next.view.revision.as_deref()),
        ("create 2: Pending Scheduling", Some("r2"))
    );
    let mut failed = was("Failed", 1);
    failed["failures"] = json!(9);
    failed["nextAttemptAfter"] = json!("2026-11-22T02:00:00Z");
    let mended = planned(changed(failed), &[], NodeSight::Seen);
    assert_eq!(
        (line(&mended).as_str(), mended.view.failures),
        ("create 2: Pending Scheduling", 0)
    );
}

#[test]
fn a_deleted_placement_ends_its_pods_itself_whatever_the_node_does() {
    let mut deleted = placement(was("Ready", 1));
    deleted.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-11-22T00:59:59Z")).unwrap();
    let serving = pod(1, Some("machine-1"), running("True"));
    for node in [NodeSight::Seen, NodeSight::Unseen, NodeSight::Gone] {
        assert_eq!(
            line(&planned(deleted.clone(), &[Arc::clone(&serving)], node)),
            "delete p-1: Pending Stopping"
        );
        assert_eq!(
            line(&planned(deleted.clone(), &[deleting(&serving)], node)),
            "nothing: Pending Stopping"
        );
        assert_eq!(
            line(&planned(deleted.clone(), &[], node)),
            "nothing: Ended Deleted"
        );
    }
}

#[test]
fn readiness_is_kept_as_stretches_and_a_lost_replica_is_not_ready() {
    let mut placement = placement(was("Starting", 1));
    let serving = pod(1, Some("machine-1"), running("True"));
    let mut step = |node, at: &str| {
        let plan = planned(placement.clone(), &[Arc::clone(&serving)], node);
        let status = status(&placement, &plan.view, at.parse().unwrap());
        placement.status = Some(status.clone());
        (status, notes(&placement, &plan.view))
    };
    step(NodeSight::Seen, "2026-11-22T01:00:00.5Z");
    step(NodeSight::Unseen, "2026-11-22T01:01:00Z");
    let (status, _) = step(NodeSight::Seen, "2026-11-22T01:02:00Z");
    let text = serde_json::to_value(&status.ready_stretches).unwrap();
    assert_eq!(
        text,
        json!([
            {"from": "2026-11-22T01:00:00Z", "until": "2026-11-22T01:01:00Z"},
            {"from": "2026-11-22T01:02:00Z"},
        ])
    );
    let (again, said) = step(NodeSight::Seen, "2026-11-22T01:09:00Z");
    assert_eq!(again, status, "the same again writes nothing");
    assert!(said.is_empty(), "and says nothing");
}

#[test]
fn a_status_reads_back_as_it_was_written() {
    let plan = planned(
        placement(was("Starting", 1)),
        &[pod(1, Some("machine-1"), json!({"phase": "Failed"}))],
        NodeSight::Seen,
    );
    let written = status(&fixture::placement(), &plan.view, now());
    let read: PlacementStatus =
        serde_json::from_value(serde_json::to_value(&written).unwrap()).unwrap();
    assert_eq!(read, written);
}

/// A cluster of one Placement: what the plan says is done, and things happen to the pod.
#[derive(Debug, Clone, Copy)]
enum Happening {
    Binds,
    Answers,
    Fails,
    IsDeleted,
    Goes,
    NodeUnseen,
    NodeSeen,
    Later(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        Just(Happening::Binds),
        Just(Happening::Answers),
        Just(Happening::Fails),
        Just(Happening::IsDeleted),
        Just(Happening::Goes),
        Just(Happening::NodeUnseen),
        Just(Happening::NodeSeen),
        (0..20_u64).prop_map(Happening::Later),
    ]
}

struct World {
    placement: Placement,
    pods: Vec<Arc<Pod>>,
    node: NodeSight,
    now: Timestamp,
    created: i64,
}

impl World {
    fn change(&mut self, change: impl Fn(&mut Pod)) {
        if let Some(last) = self.pods.last_mut() {
            change(Arc::make_mut(last));
        }
    }

    fn happens(&mut self, happening: Happening) {
        let set = |pod: &mut Pod, status| pod.status = serde_json::from_value(status).unwrap();
        match happening {
            Happening::Binds => {
                self.change(|pod| pod.spec.node_name = Some("machine-1".to_owned()));
            }
            Happening::Answers => self.change(|pod| set(pod, running("True"))),
            Happening::Fails => self.change(|pod| set(pod, json!({"phase": "Failed"}))),
            Happening::IsDeleted => {
                if let Some(last) = self.pods.last_mut() {
                    *last = deleting(last);
                }
            }
            Happening::Goes => self.pods.retain(|pod| !pod.is_deleting()),
            Happening::NodeUnseen => self.node = NodeSight::Unseen,
            Happening::NodeSeen => self.node = NodeSight::Seen,
            Happening::Later(seconds) => self.now += Duration::from_secs(seconds),
        }
    }

    /// Reconciles once; dies before the status is written if `dies`.
    fn reconcile(&mut self, dies: bool) -> bool {
        let seen = Observed {
            placement: Arc::new(self.placement.clone()),
            pods: self.pods.clone(),
            node: self.node,
        };
        let plan = plan(&seen, TIMEOUT, self.now);
        match &plan.step {
            Step::Nothing => {}
            Step::Create { attempt } => {
                self.created += 1;
                self.pods
                    .push(pod(*attempt, None, json!({"phase": "Pending"})));
            }
            Step::Delete { pod } if pod.has_ended() => self.pods.retain(|one| one != pod),
            Step::Delete { pod } => {
                let at = self.pods.iter().position(|one| one == pod).unwrap();
                self.pods[at] = deleting(pod);
            }
        }
        let written = status(&self.placement, &plan.view, self.now);
        let wrote = plan.step != Step::Nothing || self.placement.status.as_ref() != Some(&written);
        if !dies {
            self.placement.status = Some(written);
        }
        wrote
    }
}

proptest! {
    #[test]
    fn whatever_happens_there_is_at_most_one_living_pod_and_it_comes_to_rest(
        happenings in proptest::collection::vec((happening(), any::<bool>()), 0..60),
    ) {
        let mut world = World {
            placement: fixture::placement(), pods: Vec::new(), node: NodeSight::Seen, now: now(), created: 0,
        };
        for (happening, dies) in &happenings {
            world.happens(*happening);
            world.reconcile(*dies);
            let living = world.pods.iter().filter(|pod| !pod.has_ended()).count();
            prop_assert!(living <= 1);
        }
        let seconds: u64 = happenings.iter().map(|(one, _)| if let Happening::Later(s) = one { *s } else { 0 }).sum();
        prop_assert!(world.created <= 1 + i64::try_from(seconds).unwrap() + i64::try_from(happenings.len()).unwrap());
        // Nothing more happens: a few looks, and nothing is written any more.
        world.happens(Happening::Goes);
        let quiet = (0..8).map(|_| { let wrote = world.reconcile(false); world.happens(Happening::Goes); wrote }).last();
        prop_assert_eq!(quiet, Some(false));
    }
}
