use std::sync::Arc;

use serde_json::json;

use super::usage::by_node;
use super::*;
use crate::placement::fixture;

fn pod(name: &str, node: Option<&str>, phase: &str, owner: Option<&str>, gpus: &str) -> Arc<Pod> {
    let owners = owner.map(|name| {
        json!([{"apiVersion": "creo.cloud/v1alpha1", "kind": "Placement", "name": name, "uid": "u", "controller": true}])
    });
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "team", "ownerReferences": owners},
            "spec": {"nodeName": node, "containers": [
                {"resources": {"requests": {"cpu": "1", "creo.cloud/gpu": gpus}}},
            ]},
            "status": {"phase": phase},
        }))
        .unwrap(),
    )
}

fn gpus_used(pods: &[Arc<Pod>], placements: &[Arc<Placement>], reserved: &[Reservation]) -> i64 {
    by_node(pods, placements, reserved, None)
        .get("machine-1")
        .map_or(0, |usage| usage.of("creo.cloud/gpu"))
}

/// One that needs two GPUs of machine-1.
fn placement() -> Arc<Placement> {
    Arc::new(fixture::placement())
}

#[test]
fn a_placement_counts_once_with_and_without_its_pod() {
    let ours = Some("chat-1f2e-0");
    let unbound = pod("p", None, "Pending", ours, "2");
    let bound = pod("p", Some("machine-1"), "Running", ours, "2");
    let failed = pod("p", Some("machine-1"), "Failed", ours, "2");
    let foreign = pod("q", Some("machine-1"), "Running", None, "1");
    for (what, pods, expected) in [
        ("no pod yet", vec![], 2),
        ("a pod that is not bound", vec![unbound], 2),
        ("a pod that is bound", vec![Arc::clone(&bound)], 2),
        (
            "a pod that has ended, before the next attempt",
            vec![failed],
            2,
        ),
        ("somebody else's pod as well", vec![bound, foreign], 3),
    ] {
        assert_eq!(gpus_used(&pods, &[placement()], &[]), expected, "{what}");
    }
}

#[test]
fn the_pod_of_a_deleted_placement_counts_until_it_is_gone() {
    let left = pod("p", Some("machine-1"), "Running", Some("gone"), "2");
    assert_eq!(gpus_used(&[left], &[], &[]), 2);
}

#[test]
fn a_placement_that_has_come_to_its_end_needs_no_place() {
    let mut ended = fixture::placement();
    ended.status = serde_json::from_value(json!({"phase": "Withdrawn"})).unwrap();
    assert_eq!(gpus_used(&[], &[Arc::new(ended)], &[]), 0);
}

#[test]
fn a_reservation_counts_until_its_placement_is_known() {
    let reserved = [Reservation::of(&placement())];
    assert_eq!(gpus_used(&[], &[], &reserved), 2);
    assert_eq!(gpus_used(&[], &[placement()], &reserved), 2);
}

#[test]
fn leaving_a_placement_out_leaves_out_its_pod_too_and_nothing_else() {
    let ours = pod("p", Some("machine-1"), "Running", Some("chat-1f2e-0"), "2");
    let foreign = pod("q", Some("machine-1"), "Running", None, "1");
    let key = Key::namespaced("team", "chat-1f2e-0");
    let usage = by_node(&[ours, foreign], &[placement()], &[], Some(&key));
    assert_eq!(usage["machine-1"].of("creo.cloud/gpu"), 1);
}

#[test]
fn of_two_offers_of_one_node_only_the_older_counts() {
    let offer = |name: &str, created: &str| {
        Arc::new(
            serde_json::from_value::<CreoNode>(json!({
                "metadata": {"name": name, "creationTimestamp": created},
                "spec": {"source": {"kubernetesNode": "machine-1"}, "owner": "acme",
                    "offer": {"priceMicroPerGpuHour": 1, "region": "eu"}},
            }))
            .unwrap(),
        )
    };
    let offers = [
        offer("a-later", "2026-11-22T00:00:02Z"),
        offer("b-first", "2026-11-22T00:00:01Z"),
    ];
    assert_eq!(primary(&offers).unwrap().name_any(), "b-first");
}

#[test]
fn decisions_see_each_others_reservations() {
    let reservations = Reservations::default();
    let one = Reservation::of(&placement());
    reservations.decide(|others| {
        assert!(others.is_empty());
        ((), vec![one.clone()])
    });
    reservations.decide(|others| {
        assert_eq!(others, std::slice::from_ref(&one));
        ((), Vec::new())
    });
    reservations.release(&one.placement);
    reservations.decide(|others| {
        assert!(others.is_empty());
        ((), Vec::new())
    });
}
