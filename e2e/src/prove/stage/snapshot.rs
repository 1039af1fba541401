//! The state of a stage with all masked that differs between two good runs:
//! times, uids, versions, addresses, and which of two equal nodes a replica
//! got.

use serde_json::{Map, Value, json};

use super::observer::{Kind, Objects};

/// Fields that are left out wherever they are.
const VOLATILE: [&str; 29] = [
    // Digests name the node, and either of two equal nodes is right.
    "creo.cloud/workload-digest",
    "clusterIP",
    "clusterIPs",
    "creationTimestamp",
    "containerID",
    "earlierReadyMs",
    "endpointSlice",
    "finishedAt",
    "generation",
    "hostIP",
    "hostIPs",
    "imageID",
    "internalTrafficPolicy",
    "ipFamilies",
    "lastTransitionTime",
    "managedFields",
    "nextAttemptAfter",
    "nodeName",
    "observedGeneration",
    "podIP",
    "podIPs",
    "readyStretches",
    "resourceVersion",
    "revision",
    "since",
    "startTime",
    "startedAt",
    "uid",
    // A GPU's identity tells equal nodes apart.
    "uuid",
];

/// How many lines of a difference are told.
const LINES_MAX: usize = 12;

/// A text that differs from run to run, and what stands for it.
type Alias = (String, String);

/// The state of the objects, as one text with a line for each value.
pub(super) fn snapshot(objects: &Objects, namespace: &str, nodes: &[String]) -> String {
    let aliases = aliases(objects, namespace, nodes);
    let mut states: Vec<String> = objects
        .iter()
        .map(|((kind, _), object)| masked(*kind, object, &aliases))
        .collect();
    // Names are masked, so that the objects' own order means nothing.
    states.sort();
    states.join("\n")
}

fn aliases(objects: &Objects, namespace: &str, nodes: &[String]) -> Vec<Alias> {
    let mut aliases = vec![(namespace.to_owned(), "NAMESPACE".to_owned())];
    aliases.extend(nodes.iter().map(|node| (node.clone(), "NODE".to_owned())));
    for ((kind, uid), object) in objects {
        aliases.push((uid.clone(), format!("UID-OF-{kind}")));
        if matches!(kind, Kind::Placement | Kind::Pod)
            && let Some(name) = object["metadata"]["name"].as_str()
        {
            aliases.push((name.to_owned(), format!("NAME-OF-{kind}")));
        }
    }
    // A name may be the beginning of another one.
    aliases.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
    aliases
}

fn masked(kind: Kind, object: &Value, aliases: &[Alias]) -> String {
    let mut object = object.clone();
    if kind == Kind::Pod {
        object["status"] = pod_status(&object["status"]);
    }
    let object = mask(&object, aliases);
    let text = serde_json::to_string_pretty(&object).unwrap_or_default();
    format!("{kind}\n{text}")
}

/// Of a pod's status, what the operator has to do with.
fn pod_status(status: &Value) -> Value {
    let containers = status["containerStatuses"].as_array().into_iter().flatten();
    let ready = containers
        .clone()
        .all(|container| container["ready"] == true);
    let restarts: i64 = containers
        .filter_map(|container| container["restartCount"].as_i64())
        .sum();
    json!({"phase": status["phase"], "ready": ready, "restarts": restarts})
}

fn mask(value: &Value, aliases: &[Alias]) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(key, _)| !VOLATILE.contains(&key.as_str()))
                .map(|(key, value)| (renamed(key, aliases), mask(value, aliases)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(items) => {
            let mut items: Vec<Value> = items.iter().map(|item| mask(item, aliases)).collect();
            // The listed replicas are in the order of names that are masked.
            if items.iter().all(|item| item["phase"].is_string()) {
                items.sort_by_key(Value::to_string);
            }
            Value::Array(items)
        }
        Value::String(text) => Value::String(renamed(text, aliases)),
        other => other.clone(),
    }
}

fn renamed(text: &str, aliases: &[Alias]) -> String {
    aliases
        .iter()
        .fold(text.to_owned(), |text, (literal, alias)| {
            text.replace(literal, alias)
        })
}

/// The lines in which two snapshots differ, `-` expected and `+` seen.
pub(in super::super) fn difference(expected: &str, seen: &str) -> Option<String> {
    if expected == seen {
        return None;
    }
    let (mut missing, mut new): (Vec<&str>, Vec<&str>) =
        (expected.lines().collect(), seen.lines().collect());
    missing.retain(|line| take(&mut new, line).is_none());
    let lines: Vec<String> = missing
        .iter()
        .map(|line| format!("- {}", line.trim()))
        .chain(new.iter().map(|line| format!("+ {}", line.trim())))
        .collect();
    let more = lines.len().saturating_sub(LINES_MAX);
    let mut told: Vec<String> = lines.into_iter().take(LINES_MAX).collect();
    if more > 0 {
        told.push(format!("and {more} lines more"));
    }
    if told.is_empty() {
        told.push("the same lines in another order".to_owned());
    }
    Some(told.join("\n"))
}

/// Takes the first line that is equal out of `lines`.
fn take<'a>(lines: &mut Vec<&'a str>, line: &str) -> Option<&'a str> {
    let at = lines.iter().position(|other| *other == line)?;
    Some(lines.remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(uid: &str, namespace: &str, node: &str, ready: &str) -> String {
        let placement = json!({
            "metadata": {"name": format!("chat-{uid}-0"), "uid": uid, "resourceVersion": uid},
            "spec": {"terms": {"node": node, "since": uid}},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": uid,
                "message": format!("chat-{uid}-0 answers on {node} in {namespace}")}]},
        });
        let pod = json!({
            "metadata": {"name": format!("chat-{uid}-0-1"), "uid": format!("pod-{uid}"),
                "ownerReferences": [{"kind": "Placement", "name": format!("chat-{uid}-0"), "uid": uid}]},
            "status": {"phase": "Running", "podIP": uid, "conditions": [{"lastProbeTime": uid}],
                "containerStatuses": [{"ready": true, "restartCount": 0, "containerID": uid}]},
        });
        let objects = Objects::from([
            ((Kind::Placement, uid.to_owned()), placement),
            ((Kind::Pod, format!("pod-{uid}")), pod),
        ]);
        snapshot(&objects, namespace, &["gpu-1".into(), "gpu-2".into()])
    }

    #[test]
    fn two_runs_that_came_to_the_same_have_the_same_snapshot() {
        assert_eq!(
            run("8c1f", "stage-1", "gpu-1", "True"),
            run("77aa", "stage-2", "gpu-2", "True")
        );
    }

    #[test]
    fn what_differs_is_told_line_by_line() {
        let (expected, seen) = (
            run("8c1f", "a-1", "gpu-1", "True"),
            run("77aa", "a-2", "gpu-2", "False"),
        );
        let difference = difference(&expected, &seen).expect("a difference");
        assert_eq!(
            difference,
            "- \"status\": \"True\",\n+ \"status\": \"False\","
        );
    }

    #[test]
    fn a_long_difference_is_cut() {
        let long: Vec<String> = (0..100).map(|line| line.to_string()).collect();
        let told = difference("", &long.join("\n")).expect("a difference");
        assert_eq!(told.lines().count(), LINES_MAX + 1);
        assert!(told.ends_with("and 88 lines more"), "{told}");
    }
}
