//! CreoNode: one offer of GPU capacity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{condition, rules};

/// The types of a CreoNode's conditions.
pub mod conditions {
    /// The hub's administrator accepted the node (`spec.accepted`).
    pub const ACCEPTED: &str = "Accepted";
    /// The hub hears from the node.
    pub const REACHABLE: &str = "Reachable";
    /// The node has GPUs, and each is in order.
    pub const HEALTHY: &str = "Healthy";
    /// All of the above, and not cordoned: new replicas may be placed here.
    pub const READY: &str = "Ready";
}

/// The most GPUs that one node can claim.
pub const MAX_GPUS: usize = 128;

/// What is offered, by whom, and on which terms.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creo.cloud",
    version = "v1alpha1",
    kind = "CreoNode",
    plural = "creonodes",
    shortname = "cn",
    category = "creo",
    status = "CreoNodeStatus",
    derive = "PartialEq",
    doc = "One offer of GPU capacity: a Kubernetes node of the hub whose GPUs customers can use.",
    cel,
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether new replicas may be placed here"
    ),
    printcolumn(
        name = "GPUs",
        type_ = "integer",
        json_path = ".status.capacity.gpus",
        description = "Healthy GPUs"
    ),
    printcolumn(
        name = "Free",
        type_ = "integer",
        json_path = ".status.capacity.gpusFree",
        description = "Healthy GPUs that no pod has"
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".status.capacity.gpuModel",
        description = "The GPUs' model"
    ),
    printcolumn(
        name = "Memory",
        type_ = "string",
        json_path = ".status.capacity.gpuMemory",
        description = "Memory of each GPU"
    ),
    printcolumn(
        name = "Price",
        type_ = "integer",
        json_path = ".spec.offer.priceMicroPerGpuHour",
        description = "Micro-credits per GPU and hour"
    ),
    printcolumn(
        name = "Region",
        type_ = "string",
        json_path = ".spec.offer.region",
        description = "Where the node is",
        priority = 1
    ),
    printcolumn(
        name = "Owner",
        type_ = "string",
        json_path = ".spec.owner",
        description = "The account that is paid",
        priority = 1
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        description = "Why the node is ready or not",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since the node was offered"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct CreoNodeSpec {
    /// Where the capacity comes from. It never changes: another machine is
    /// another CreoNode.
    #[x_kube(validation = rules::immutable("spec.source cannot be changed: delete this CreoNode and create one for the other node"))]
    pub source: Source,
    /// The account that is paid for what runs here: lower-case letters, digits
    /// and '-'.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub owner: String,
    /// Whether the hub's administrator lets customers' replicas run here.
    /// Default: false.
    #[serde(default)]
    pub accepted: bool,
    /// The terms on which the capacity is offered.
    pub offer: Offer,
}

/// Where the capacity comes from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The name of a Kubernetes node of the hub.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub kubernetes_node: String,
}

/// The terms on which capacity is offered.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// What one GPU costs for one hour, in micro-credits (1 credit is 1,000,000
    /// micro-credits); 0 is free of charge. A new price holds for new replicas
    /// only: running ones keep the price that they were placed at.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub price_micro_per_gpu_hour: i64,
    /// Where the machine is, as a word that customers can ask for, such as
    /// eu-west: lower-case letters, digits and '-'.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub region: String,
    /// Whether new replicas are kept away; running ones stay. Default: false.
    #[serde(default)]
    pub cordon: bool,
}

/// What is known of the node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct CreoNodeStatus {
    /// What the node says of itself. Written by the device plugin alone, and
    /// nothing is paid on the strength of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Claims")]
    pub claims: Option<Claims>,
    /// The metadata.generation that the operator last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub observed_generation: Option<i64>,
    /// Whether the node is Accepted, Reachable, Healthy, and in sum Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
    /// What the node has, and what of it no pod uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Capacity")]
    pub capacity: Option<Capacity>,
    /// How well the node serves, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ServiceClass")]
    pub service_class: Option<ServiceClass>,
}

/// What the node says of itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Claims {
    /// The version of the NVIDIA driver; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 80))]
    pub driver_version: Option<String>,
    /// The CUDA version that the driver supports, such as 12.8; absent without
    /// a driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = 32))]
    pub cuda_version: Option<String>,
    /// The resource under which the kubelet counts the GPUs, such as
    /// creo.cloud/gpu.
    #[schemars(length(min = 1, max = 253))]
    pub resource: String,
    /// The GPUs one by one.
    #[serde(default)]
    #[schemars(length(max = MAX_GPUS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".to_owned()]))]
    pub gpus: Vec<ClaimedGpu>,
    /// Why there are no GPUs, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = condition::MAX_MESSAGE_CHARS))]
    pub message: Option<String>,
}

/// One GPU, as its driver describes it.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedGpu {
    /// The GPU's number on its node, from 0; it may change when the node
    /// restarts.
    #[schemars(range(min = 0, max = 4095))]
    pub index: i32,
    /// The GPU's identity, which stays with the card.
    #[schemars(length(min = 1, max = 96))]
    pub uuid: String,
    /// The model, such as NVIDIA GeForce RTX 4090.
    #[schemars(length(min = 1, max = 128))]
    pub model: String,
    /// The GPU's memory in bytes.
    #[schemars(range(min = 0, max = 1_i64 << 50))]
    pub memory_bytes: i64,
    /// CUDA compute capability, such as 8.9.
    #[schemars(length(min = 1, max = 16))]
    pub compute_capability: String,
    /// Whether the GPU is in order.
    pub healthy: bool,
    /// What is wrong with a GPU that is not healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 1024))]
    pub reason: Option<String>,
}

/// What the node has, and what of it no pod uses, whoever owns the pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Healthy GPUs.
    #[schemars(range(min = 0, max = 4096))]
    pub gpus: i32,
    /// Healthy GPUs that no pod has and no placement waits for.
    #[schemars(range(min = 0, max = 4096))]
    pub gpus_free: i32,
    /// The GPUs' model; where they are not alike, the one with the least
    /// memory, which is the one that a replica is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 128))]
    pub gpu_model: Option<String>,
    /// Memory of each GPU for people to read, such as 24 GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 32))]
    pub gpu_memory: Option<String>,
    /// Memory of each GPU in bytes.
    #[schemars(range(min = 0, max = 1_i64 << 50))]
    pub gpu_memory_bytes: i64,
    /// CPU that no pod asked for, in thousandths of a CPU.
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub cpu_milli_free: i64,
    /// Memory that no pod asked for, in bytes.
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub memory_bytes_free: i64,
    /// Ephemeral storage that no pod asked for, in bytes.
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub ephemeral_storage_bytes_free: i64,
    /// How many more pods the kubelet takes.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub pods_free: i32,
}

/// How well a node serves; it changes rarely.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceClass {
    /// As it should.
    Good,
    /// Worse than it should: some of its GPUs are not healthy.
    Degraded,
}
