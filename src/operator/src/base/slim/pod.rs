//! A pod, slim.

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::Amounts;
use super::metadata::kept;

/// A pod.
#[derive(kube::Resource, Deserialize, Clone, Debug, Default, PartialEq)]
#[resource(inherit = "v1::Pod")]
#[serde(default)]
pub struct Pod {
    /// What is kept of the metadata.
    #[serde(deserialize_with = "kept")]
    pub metadata: ObjectMeta,
    /// Where it is, and what it asks for.
    pub spec: PodSpec,
    /// How it is.
    pub status: PodStatus,
}

/// Where a pod is, and what it asks for.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(from = "FullSpec")]
pub struct PodSpec {
    /// The node that it is bound to.
    pub node_name: Option<String>,
    /// What the scheduler and the kubelet count for it.
    pub requests: Amounts,
}

/// How a pod is.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed.
    pub phase: String,
    /// Why, in a word, such as Evicted or UnexpectedAdmissionError.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// PodScheduled, Ready and others.
    pub conditions: Vec<Condition>,
    /// The containers one by one.
    pub container_statuses: Vec<ContainerStatus>,
}

/// One condition of a pod.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// Which one.
    pub r#type: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, in a word.
    pub reason: Option<String>,
    /// Why, in a sentence.
    pub message: Option<String>,
    /// Since when.
    pub last_transition_time: Option<Time>,
}

/// One container of a pod.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct ContainerStatus {
    /// How it is now.
    pub state: ContainerState,
}

/// How a container is.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct ContainerState {
    /// It waits, and why.
    pub waiting: Option<Waiting>,
    /// It ended, and how.
    pub terminated: Option<Terminated>,
}

/// Why a container waits.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(default)]
pub struct Waiting {
    /// In a word, such as ImagePullBackOff.
    pub reason: Option<String>,
    /// In a sentence.
    pub message: Option<String>,
}

/// How a container ended.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// The exit code.
    pub exit_code: i32,
    /// In a word, such as OOMKilled or Error.
    pub reason: Option<String>,
    /// The container's last words, if it left some.
    pub message: Option<String>,
    /// When.
    pub finished_at: Option<Time>,
}

impl Pod {
    /// Whether it has ended for good and holds nothing of its node any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it is being deleted.
    #[must_use]
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, r#type: &str) -> Option<&Condition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.r#type == r#type)
    }

    /// Whether it answers.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.condition("Ready")
            .is_some_and(|condition| condition.status == "True")
    }
}

/// The parts of a pod's specification that requests follow from.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FullSpec {
    node_name: Option<String>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    overhead: Amounts,
    resources: Option<Resources>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    resources: Resources,
    restart_policy: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Resources {
    requests: Amounts,
}

impl From<FullSpec> for PodSpec {
    /// As the scheduler counts: the containers and sidecars together, or the largest moment of
    /// initialisation, plus the overhead; requests of the whole pod replace the sum where set.
    fn from(full: FullSpec) -> Self {
        let mut running = Amounts::default();
        for container in &full.containers {
            running.add(&container.resources.requests);
        }
        let mut sidecars = Amounts::default();
        let mut starting = Amounts::default();
        for container in &full.init_containers {
            if container.restart_policy.as_deref() == Some("Always") {
                sidecars.add(&container.resources.requests);
                starting.raise_to(&sidecars);
            } else {
                let mut moment = sidecars.clone();
                moment.add(&container.resources.requests);
                starting.raise_to(&moment);
            }
        }
        running.add(&sidecars);
        running.raise_to(&starting);
        if let Some(whole) = &full.resources {
            let whole = &whole.requests;
            if whole.cpu_milli > 0 {
                running.cpu_milli = whole.cpu_milli;
            }
            if whole.memory_bytes > 0 {
                running.memory_bytes = whole.memory_bytes;
            }
        }
        running.add(&full.overhead);
        Self {
            node_name: full.node_name.filter(|name| !name.is_empty()),
            requests: running,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn requests(spec: &serde_json::Value) -> Amounts {
        serde_json::from_value::<Pod>(json!({"metadata": {"name": "p"}, "spec": spec}))
            .unwrap()
            .spec
            .requests
    }

    fn asks(cpu: &str, gpus: &str) -> serde_json::Value {
        json!({"requests": {"cpu": cpu, "creo.cloud/gpu": gpus}})
    }

    #[test]
    fn requests_are_counted_as_the_scheduler_counts_them() {
        let cases = [
            (
                "containers add up",
                json!({"containers": [{"resources": asks("100m", "1")}, {"resources": asks("200m", "1")}]}),
                (300, 2),
            ),
            (
                "a large init container counts alone",
                json!({
                    "containers": [{"resources": asks("100m", "1")}],
                    "initContainers": [{"resources": asks("900m", "1")}],
                }),
                (900, 1),
            ),
            (
                "a sidecar runs beside the containers and beside later init containers",
                json!({
                    "containers": [{"resources": asks("100m", "0")}],
                    "initContainers": [
                        {"resources": asks("50m", "1"), "restartPolicy": "Always"},
                        {"resources": asks("300m", "0")},
                    ],
                }),
                (350, 1),
            ),
            (
                "the whole pod's requests replace the sum, and overhead comes on top",
                json!({
                    "containers": [{"resources": asks("100m", "1")}],
                    "resources": {"requests": {"cpu": "1"}},
                    "overhead": {"cpu": "10m"},
                }),
                (1010, 1),
            ),
            (
                "nothing asked for",
                json!({"containers": [{"name": "a"}]}),
                (0, 0),
            ),
        ];
        for (what, spec, (cpu_milli, gpus)) in cases {
            let requests = requests(&spec);
            assert_eq!(
                (requests.cpu_milli, requests.of("creo.cloud/gpu")),
                (cpu_milli, gpus),
                "{what}"
            );
        }
    }

    #[test]
    fn a_pod_of_five_kilobytes_is_kept_in_about_one() {
        let filler = "x".repeat(4000);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "chat-1f2e-0-1", "namespace": "team", "uid": "0f0c9b5e-6b7e-4b4f-9d53-1c2f6a1f5b11",
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": filler},
                "managedFields": [{"manager": filler}],
            },
            "spec": {"nodeName": "gpu-1", "containers": [{"name": "engine", "image": filler}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        // What the object holds on the heap is its few short strings; the rest is its own size.
        assert!(size_of::<Pod>() <= 1024, "{}", size_of::<Pod>());
        assert!(!format!("{pod:?}").contains("xxxx"));
        assert!(pod.is_ready());
    }
}
