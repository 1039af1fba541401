//! The plan and the status of a deployment as tables.

use std::sync::Arc;

use creo_api::Placement;
use creo_api::agent_deployment::conditions;
use creo_market::replicas::{Replica, Roll, State};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use serde_json::json;

use super::fixture;
use super::plan::{ordinals, plan};
use super::status::{Findings, Obstacle, notes, status};
use super::validate::{Valid, validate};

fn now() -> Timestamp {
    "2026-11-22T01:00:00Z".parse().unwrap()
}

fn valid(change: serde_json::Value) -> Valid {
    validate(
        &fixture::deployment(change),
        &fixture::engines(),
        &fixture::settings(),
    )
    .unwrap()
}

/// A Placement of the fixture's deployment with this ordinal, node and phase.
fn placement(ordinal: u32, node: &str, phase: &str, revision: &str) -> Arc<Placement> {
    let name = creo_api::names::placement("chat", "c5a1", ordinal);
    let mut placement = crate::placement::fixture::placement();
    placement.metadata.name = Some(name);
    placement.metadata.creation_timestamp =
        serde_json::from_value(json!("2026-11-22T00:00:00Z")).unwrap();
    placement.spec.terms.node = node.to_owned();
    placement.spec.terms.gpu.count = 1;
    placement.spec.workload.revision = revision.to_owned();
    placement.status = serde_json::from_value(json!({
        "phase": phase, "observedGeneration": 1, "revision": revision, "reason": "Word", "message": "words",
        "nextAttemptAfter": (phase == "Withdrawn").then_some("2026-11-22T01:01:00Z"),
    }))
    .unwrap();
    Arc::new(placement)
}

fn ready(ordinal: u32, revision: &str) -> Arc<Placement> {
    placement(ordinal, "gpu-1", "Ready", revision)
}

/// Each condition as TYPE=STATUS(REASON).
fn said(
    change: serde_json::Value,
    placements: &[Arc<Placement>],
    obstacle: Option<Obstacle>,
) -> String {
    let valid = valid(change.clone());
    let findings = Findings {
        valid: Ok(&valid),
        placements,
        obstacle,
    };
    status(&fixture::deployment(change), &findings, now())
        .conditions
        .iter()
        .map(|one| format!("{}={}({})", one.type_, one.status, one.reason))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_conditions_say_how_far_it_is() {
    let current = valid(json!({})).wanted.revision;
    let refusal = || Some(Obstacle::NoNode("0/2 nodes fit: 2 have 24 GiB".to_owned()));
    let cases = [
        (
            "all answer",
            said(json!({}), &[ready(0, &current), ready(1, &current)], None),
            "Placed=True(AllPlaced) ModelReady=True(Answers) Progressing=False(Complete) Ready=True(AllAnswer)",
        ),
        (
            "one loads",
            said(
                json!({}),
                &[
                    ready(0, &current),
                    placement(1, "gpu-2", "Starting", &current),
                ],
                None,
            ),
            "Placed=True(AllPlaced) ModelReady=True(Answers) Progressing=True(Rolling) Ready=False(Word)",
        ),
        (
            "no node fits",
            said(json!({}), &[], refusal()),
            "Placed=False(NoNodeFits) ModelReady=False(NoReplica) Progressing=False(Blocked) Ready=False(NoNodeFits)",
        ),
        (
            "no node fits the second",
            said(json!({}), &[ready(0, &current)], refusal()),
            "Placed=False(NoNodeFits) ModelReady=True(Answers) Progressing=False(Blocked) Ready=False(NoNodeFits)",
        ),
        (
            "an older revision answers",
            said(json!({}), &[ready(0, &current), ready(1, "old")], None),
            "Placed=True(AllPlaced) ModelReady=True(Answers) Progressing=True(Rolling) Ready=False(Rolling)",
        ),
        (
            "one is lost",
            said(
                json!({}),
                &[ready(0, &current), placement(1, "gpu-2", "Lost", &current)],
                None,
            ),
            "Placed=False(Placing) ModelReady=True(Answers) Progressing=True(Rolling) Ready=False(Placing)",
        ),
        (
            "suspended",
            said(json!({"suspend": true}), &[], None),
            "Placed=True(Suspended) ModelReady=False(Suspended) Progressing=False(Complete) Ready=False(Suspended)",
        ),
        (
            "none wanted",
            said(json!({"replicas": 0}), &[], None),
            "Placed=True(NoReplicas) ModelReady=False(NoReplicas) Progressing=False(Complete) Ready=False(NoReplicas)",
        ),
    ];
    for (what, said, expected) in cases {
        assert_eq!(said, expected, "{what}");
    }
}

#[test]
fn the_rules_own_words_are_what_placed_says() {
    let deployment = fixture::deployment(json!({}));
    let valid = valid(json!({}));
    let refusal = "0/2 nodes fit: 2 have 24 GiB of GPU memory, 80 GiB needed";
    let obstacle = Some(Obstacle::NoNode(refusal.to_owned()));
    let status = status(
        &deployment,
        &Findings {
            valid: Ok(&valid),
            placements: &[],
            obstacle,
        },
        now(),
    );
    let placed = status
        .conditions
        .iter()
        .find(|one| one.type_ == conditions::PLACED)
        .unwrap();
    assert_eq!(placed.message, refusal);
    let told = notes(&[], &status.conditions);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(notes(&status.conditions, &status.conditions).is_empty());
}

#[test]
fn a_deployment_that_cannot_be_acted_on_says_why_and_keeps_what_runs() {
    let deployment = fixture::deployment(json!({"engine": {"profile": "other"}}));
    let invalid = validate(&deployment, &fixture::engines(), &fixture::settings()).unwrap_err();
    let running = [ready(0, "old")];
    let findings = Findings {
        valid: Err(&invalid),
        placements: &running,
        obstacle: None,
    };
    let status = status(&deployment, &findings, now());
    let of = |r#type: &str| {
        status
            .conditions
            .iter()
            .find(|one| one.type_ == r#type)
            .unwrap()
    };
    assert_eq!(of(conditions::READY).reason, "UnknownEngine");
    assert!(of(conditions::READY).message.contains("tiny"));
    assert_eq!(of(conditions::MODEL_READY).status, "True");
    assert_eq!((status.replicas, status.ready_replicas), (1, 1));
}

#[test]
fn a_status_from_before_the_last_change_does_not_count_as_ready() {
    let valid = valid(json!({}));
    let mut updated = Placement::clone(&ready(0, "old"));
    updated
        .spec
        .workload
        .revision
        .clone_from(&valid.wanted.revision);
    updated.metadata.generation = Some(2);
    let plan = plan(
        &valid,
        &[Arc::new(updated), ready(1, "old")],
        Vec::new(),
        |_| None,
        now(),
    );
    assert_eq!(plan.rule.roll, None);
    assert!(plan.rule.waits_for.is_some());
}

#[test]
fn a_withdrawn_replica_is_remembered_as_a_back_off_and_then_cleared_away() {
    let valid = valid(json!({}));
    let withdrawn = placement(0, "gpu-1", "Withdrawn", &valid.wanted.revision);
    let early = plan(
        &valid,
        &[Arc::clone(&withdrawn)],
        Vec::new(),
        |_| None,
        now(),
    );
    let until: Timestamp = "2026-11-22T01:01:00Z".parse().unwrap();
    assert_eq!(
        early.backed_off,
        [("gpu-1".to_owned(), until.as_millisecond())]
    );
    assert_eq!((early.rule.create, early.rule.withdraw.len()), (2, 0));
    assert!(early.again_after.is_some());
    let late = plan(&valid, &[withdrawn], Vec::new(), |_| None, until);
    assert_eq!((late.backed_off.len(), late.rule.withdraw.len()), (0, 1));
}

#[test]
fn a_lost_replica_is_replaced_and_stays_until_nothing_is_wanted() {
    let revision = valid(json!({})).wanted.revision;
    let lost = placement(0, "gpu-1", "Lost", &revision);
    let others = [Arc::clone(&lost), ready(1, &revision), ready(2, &revision)];
    let wanted = plan(&valid(json!({})), &others, Vec::new(), |_| None, now());
    assert_eq!((wanted.rule.create, wanted.rule.withdraw.len()), (0, 0));
    let alone = plan(
        &valid(json!({})),
        &[Arc::clone(&lost)],
        Vec::new(),
        |_| None,
        now(),
    );
    assert_eq!((alone.rule.create, alone.rule.withdraw.len()), (2, 0));
    let none = plan(
        &valid(json!({"suspend": true})),
        &[lost],
        Vec::new(),
        |_| None,
        now(),
    );
    assert_eq!(none.rule.withdraw.len(), 1);
}

#[test]
fn a_replica_of_which_a_pod_is_left_keeps_its_seat_and_stops_the_roll() {
    let valid = valid(json!({"gpu": {"count": 2}}));
    let left = Replica {
        name: "pod".to_owned(),
        state: State::Starting,
        leaving: true,
        revision: String::new(),
        terms_agree: false,
        created_ms: 0,
    };
    let stale = [ready(1, "old")];
    let waiting = plan(&valid, &stale, vec![left], |_| None, now());
    assert_eq!((waiting.rule.create, waiting.rule.roll), (0, None));
    let going_on = plan(&valid, &stale, Vec::new(), |_| None, now());
    assert_eq!(going_on.rule.create, 1);
    assert!(matches!(going_on.rule.roll, Some(Roll::Replace { .. })));
}

#[test]
fn new_replicas_take_the_smallest_numbers_that_nobody_has() {
    let deployment = fixture::deployment(json!({}));
    let placements = [ready(0, "r"), placement(2, "gpu-2", "Lost", "r")];
    assert_eq!(ordinals(&deployment, &placements, 2), [1, 3]);
}

#[test]
fn a_second_status_of_an_unchanged_deployment_is_equal() {
    let mut deployment = fixture::deployment(json!({}));
    let valid = valid(json!({}));
    let placements = [ready(0, &valid.wanted.revision)];
    let findings = Findings {
        valid: Ok(&valid),
        placements: &placements,
        obstacle: None,
    };
    let first = status(&deployment, &findings, now());
    deployment.status =
        Some(serde_json::from_value(serde_json::to_value(&first).unwrap()).unwrap());
    let later = now() + std::time::Duration::from_secs(90);
    assert_eq!(
        deployment.status,
        Some(status(&deployment, &findings, later))
    );
    assert_eq!(deployment.name_any(), "chat");
}
