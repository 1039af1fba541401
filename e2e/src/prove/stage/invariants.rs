//! What must hold at every moment, whatever fails.

use std::collections::BTreeMap;

use serde_json::Value;

use super::observer::{Kind, Objects};

/// What is to be expected of the objects, as the customer has it at present.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Expectation {
    /// The most replicas of each deployment that may have a seat: where the
    /// number was just lowered, still the earlier one.
    pub(in super::super) seats: BTreeMap<String, usize>,
    /// Whether a replica that was lost may come back beside the one that has
    /// taken its part: a node was cut off.
    pub(in super::super) lost_may_return: bool,
    /// Whether pods may fail: something was done to nodes or GPUs.
    pub(in super::super) pods_may_fail: bool,
}

/// The first rule that the objects break, in words.
pub(super) fn violation(objects: &Objects, expectation: &Expectation) -> Option<String> {
    two_pods_of_a_placement(objects)
        .or_else(|| two_pods_on_a_gpu(objects))
        .or_else(|| too_many_seats(objects, expectation))
        .or_else(|| refused_pod(objects, expectation))
}

fn of_kind(objects: &Objects, kind: Kind) -> impl Iterator<Item = &Value> {
    objects
        .iter()
        .filter(move |((of, _), _)| *of == kind)
        .map(|(_, object)| object)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// A pod that has not come to an end, and so may hold its GPUs.
fn is_live(pod: &Value) -> bool {
    !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn two_pods_of_a_placement(objects: &Objects) -> Option<String> {
    let mut pods: BTreeMap<&str, &str> = BTreeMap::new();
    for pod in of_kind(objects, Kind::Pod).filter(|pod| is_live(pod)) {
        let placement = text(pod, "/metadata/labels/creo.cloud~1placement");
        if placement.is_empty() {
            continue;
        }
        if let Some(other) = pods.insert(placement, name(pod)) {
            return Some(format!(
                "the pods {other} and {} of the placement {placement} live at the same time",
                name(pod)
            ));
        }
    }
    None
}

/// The kubelet names the devices that a container was given.
fn two_pods_on_a_gpu(objects: &Objects) -> Option<String> {
    let mut holders: BTreeMap<(&str, &str), &str> = BTreeMap::new();
    for pod in of_kind(objects, Kind::Pod).filter(|pod| is_live(pod)) {
        let node = text(pod, "/spec/nodeName");
        for device in devices(pod) {
            if let Some(other) = holders.insert((node, device), name(pod)) {
                return Some(format!(
                    "the pods {other} and {} have the GPU {device} on {node}",
                    name(pod)
                ));
            }
        }
    }
    None
}

fn devices(pod: &Value) -> impl Iterator<Item = &str> {
    array(&pod["status"]["containerStatuses"])
        .flat_map(|container| array(&container["allocatedResourcesStatus"]))
        .flat_map(|resource| array(&resource["resources"]))
        .filter_map(|device| device["resourceID"].as_str())
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A replica has a seat from its making until it is gone, unless it is lost or
/// over.
fn too_many_seats(objects: &Objects, expectation: &Expectation) -> Option<String> {
    let mut seats: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for placement in of_kind(objects, Kind::Placement) {
        if !matches!(
            text(placement, "/status/phase"),
            "Lost" | "Withdrawn" | "Ended"
        ) {
            let deployment = text(placement, "/metadata/labels/creo.cloud~1deployment");
            seats.entry(deployment).or_default().push(name(placement));
        }
    }
    seats.into_iter().find_map(|(deployment, placements)| {
        let wanted = expectation.seats.get(deployment).copied().unwrap_or(0);
        let most = if expectation.lost_may_return {
            2 * wanted
        } else {
            wanted
        };
        (placements.len() > most).then(|| {
            format!(
                "{deployment} has the placements {} where {most} are wanted",
                placements.join(", ")
            )
        })
    })
}

/// The kubelet refuses a pod for which it has no GPU: one was promised twice.
fn refused_pod(objects: &Objects, expectation: &Expectation) -> Option<String> {
    let failed = of_kind(objects, Kind::Pod).find(|pod| text(pod, "/status/phase") == "Failed")?;
    (!expectation.pods_may_fail).then(|| {
        format!(
            "the pod {} failed: {} {}",
            name(failed),
            text(failed, "/status/reason"),
            text(failed, "/status/message")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects(list: Vec<(Kind, Value)>) -> Objects {
        list.into_iter()
            .enumerate()
            .map(|(number, (kind, object))| ((kind, number.to_string()), object))
            .collect()
    }

    fn pod(name: &str, placement: &str, phase: &str, gpu: &str) -> (Kind, Value) {
        let pod = json!({
            "metadata": {"name": name, "labels": {"creo.cloud/placement": placement}},
            "spec": {"nodeName": "gpu-1"},
            "status": {"phase": phase, "containerStatuses": [{"allocatedResourcesStatus": [
                {"name": "creo.cloud/gpu", "resources": [{"resourceID": gpu, "health": "Healthy"}]}
            ]}]},
        });
        (Kind::Pod, pod)
    }

    fn placement(name: &str, phase: &str) -> (Kind, Value) {
        let placement = json!({
            "metadata": {"name": name, "labels": {"creo.cloud/deployment": "chat"}},
            "status": {"phase": phase},
        });
        (Kind::Placement, placement)
    }

    fn found(list: Vec<(Kind, Value)>, seats: usize) -> String {
        let seats = BTreeMap::from([("chat".to_owned(), seats)]);
        let expectation = Expectation {
            seats,
            ..Expectation::default()
        };
        violation(&objects(list), &expectation).unwrap_or_else(|| "none".to_owned())
    }

    #[test]
    fn one_pod_for_each_placement_on_a_gpu_of_its_own_is_well() {
        let list = vec![
            pod("p-1", "a", "Running", "0"),
            pod("q-1", "b", "Pending", "1"),
            pod("old", "b", "Succeeded", "0"),
            placement("a", "Ready"),
            placement("b", "Starting"),
            placement("c", "Lost"),
        ];
        assert_eq!(found(list, 2), "none");
    }

    #[test]
    fn each_broken_invariant_is_found_and_named() {
        let two_pods = vec![
            pod("p-1", "a", "Running", "0"),
            pod("p-2", "a", "Pending", "1"),
        ];
        assert!(found(two_pods, 1).contains("p-1 and p-2 of the placement a"));
        let one_gpu = vec![
            pod("p-1", "a", "Running", "0"),
            pod("q-1", "b", "Running", "0"),
        ];
        assert!(found(one_gpu, 2).contains("have the GPU 0 on gpu-1"));
        let seats = vec![placement("a", "Ready"), placement("b", "Pending")];
        assert!(found(seats, 1).contains("a, b where 1 are wanted"));
        let refused = vec![pod("p-1", "a", "Failed", "0")];
        assert!(found(refused, 1).contains("the pod p-1 failed"));
    }
}
