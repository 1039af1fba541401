//! A Kubernetes node, slim.

use k8s_openapi::api::core::v1;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::Amounts;
use super::metadata::kept;

/// A Kubernetes node.
#[derive(kube::Resource, Deserialize, Clone, Debug, Default, PartialEq)]
#[resource(inherit = "v1::Node")]
#[serde(default)]
pub struct Node {
    /// What is kept of the metadata.
    #[serde(deserialize_with = "kept")]
    pub metadata: ObjectMeta,
    /// What an administrator says.
    pub spec: NodeSpec,
    /// What the kubelet and the node controller say.
    pub status: NodeStatus,
}

/// What an administrator says.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: bool,
    /// What keeps pods away.
    pub taints: Vec<Taint>,
}

/// What keeps pods away.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub struct Taint {
    /// The key.
    pub key: String,
    /// The value, empty for none.
    pub value: String,
    /// NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: String,
}

/// What the kubelet and the node controller say.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub struct NodeStatus {
    /// What the machine has.
    pub capacity: Amounts,
    /// What pods may have of it.
    pub allocatable: Amounts,
    /// Only [`Condition::r#type`] Ready matters here.
    pub conditions: Vec<Condition>,
    /// What runs on the machine.
    #[serde(rename = "nodeInfo")]
    pub node_info: NodeInfo,
}

/// What runs on the machine.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeInfo {
    /// Another one after each start of the machine.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// The container runtime and its version, such as containerd://2.4.2.
    pub container_runtime_version: String,
}

/// One condition, without the heartbeat that changes all the time.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
pub struct Condition {
    /// Which one.
    pub r#type: String,
    /// True, False or Unknown.
    pub status: String,
    /// Why, as a sentence.
    pub message: String,
}

/// Whether a node is heard of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answers {
    /// The kubelet reports, and is ready.
    Ready,
    /// The kubelet reports that it is not ready, with its words.
    NotReady(String),
    /// Nothing is heard of the kubelet, or was ever.
    Unseen,
}

impl Node {
    /// Whether the node is heard of.
    #[must_use]
    pub fn answers(&self) -> Answers {
        let ready = self
            .status
            .conditions
            .iter()
            .find(|condition| condition.r#type == "Ready");
        match ready.map(|condition| (condition.status.as_str(), &condition.message)) {
            Some(("True", _)) => Answers::Ready,
            Some(("False", message)) => Answers::NotReady(message.clone()),
            _ => Answers::Unseen,
        }
    }

    /// Whether anything but the version differs.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        self.spec != other.spec
            || self.status != other.status
            || self.metadata.uid != other.metadata.uid
            || self.metadata.labels != other.metadata.labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(json: serde_json::Value) -> Node {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_node_reads_what_is_decided_on_and_drops_the_rest() {
        let node = node(serde_json::json!({
            "metadata": {
                "name": "gpu-1", "uid": "u", "resourceVersion": "7",
                "labels": {"kubernetes.io/os": "linux", "creo.cloud/x": "y"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {"podCIDR": "10.0.0.0/24", "taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
            "status": {
                "allocatable": {"cpu": "1900m", "memory": "4Gi", "pods": "110", "creo.cloud/gpu": "2", "hugepages-2Mi": "0"},
                "conditions": [
                    {"type": "MemoryPressure", "status": "False"},
                    {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-22T00:00:00Z"},
                ],
                "images": [{"names": ["a"], "sizeBytes": 1}],
            },
        }));
        assert_eq!(node.status.allocatable.cpu_milli, 1900);
        assert_eq!(node.status.allocatable.memory_bytes, 4 << 30);
        assert_eq!(node.status.allocatable.pods, 110);
        assert_eq!(node.status.allocatable.of("creo.cloud/gpu"), 2);
        assert_eq!(node.status.allocatable.of("nvidia.com/gpu"), 0);
        assert_eq!(node.spec.taints[0].effect, "NoSchedule");
        assert_eq!(node.answers(), Answers::Ready);
        assert_eq!(node.metadata.labels.as_ref().unwrap().len(), 1);
        assert!(node.metadata.managed_fields.is_none());
    }

    #[test]
    fn a_node_that_says_no_and_one_that_says_nothing_are_told_apart() {
        let ready = |status: &str| {
            node(serde_json::json!({
                "metadata": {"name": "n"},
                "status": {"conditions": [{"type": "Ready", "status": status, "message": "why"}]},
            }))
            .answers()
        };
        assert_eq!(ready("False"), Answers::NotReady("why".into()));
        assert_eq!(ready("Unknown"), Answers::Unseen);
        assert_eq!(
            node(serde_json::json!({"metadata": {"name": "n"}})).answers(),
            Answers::Unseen
        );
    }
}
