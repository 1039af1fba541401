//! CreoNode: one offer of GPU capacity.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
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
    /// A container that asks for no GPU reaches none, as a canary of the
    /// operator's found; absent where no canaries are sent.
    pub const ISOLATED: &str = "Isolated";
    /// All of the above, and not cordoned: new replicas may be placed here.
    pub const READY: &str = "Ready";
}

/// The annotation of a CreoNode that takes GPUs out of service: their UUIDs or
/// numbers, or UUIDs of partitions, with commas between them. They are given to
/// nobody new until they are not named any more; what runs on them goes on. The
/// operator leaves it as it is.
pub const OUT_OF_SERVICE: &str = "creo.cloud/out-of-service";

/// The most GPUs that one node can claim.
pub const MAX_GPUS: usize = 128;
/// The most units of one resource, and of all together.
const MAX_UNITS: usize = MAX_GPUS * 256;
/// The most shares of one GPU.
pub const MAX_SHARES: i32 = 256;
/// The longest name of a model, in characters.
pub const MAX_MODEL_CHARS: usize = 128;
/// The most resources of one node that are told one by one.
pub const MAX_POOLS: usize = 32;
/// The most partitions that one GPU can claim; hardware has seven.
pub const MAX_PARTITIONS: usize = 8;
/// The most ways to other GPUs that one GPU can claim. With all bounds reached, the
/// object still fits into what etcd stores.
pub const MAX_LINKS: usize = 16;
/// The most findings that are told of one GPU.
pub const MAX_FINDINGS: usize = 4;
/// The largest memory that a GPU can claim, in bytes.
pub const MAX_MEMORY_BYTES: i64 = 1 << 50;
/// The longest identity of a GPU or partition, in characters.
pub const MAX_UUID_CHARS: usize = 96;
/// The longest name of a resource, in characters.
pub const MAX_RESOURCE_CHARS: usize = 253;
/// The longest [`ClaimedGpu::reason`], in characters.
pub const MAX_REASON_CHARS: usize = 1024;
/// The longest message of a finding, in characters.
pub const MAX_FINDING_CHARS: usize = 512;
/// The longest [`ClaimedPartition::reason`], in characters.
pub const MAX_PARTITION_REASON_CHARS: usize = 256;

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
    doc = "One offer of GPU capacity: a Kubernetes node of the hub whose GPUs customers can use. The annotation creo.cloud/out-of-service takes single GPUs out of service, by UUID or number, with commas between them.",
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
        description = "Healthy GPUs, or their partitions or shares"
    ),
    printcolumn(
        name = "Free",
        type_ = "integer",
        json_path = ".status.capacity.gpusFree",
        description = "Those of them that no pod has"
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
    /// What the last canary found: a pod of the operator's that asks for no GPU
    /// and tries to open every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Isolation")]
    pub isolation: Option<Isolation>,
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
    /// The resource under which the kubelet counts GPUs where nothing else is
    /// said of a GPU, such as creo.cloud/gpu. The names of the other resources
    /// are made from it.
    #[schemars(length(min = 1, max = MAX_RESOURCE_CHARS))]
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
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedGpu {
    /// The GPU's number on its node, from 0; it may change when the node
    /// restarts.
    #[schemars(range(min = 0, max = 4095))]
    pub index: i32,
    /// The GPU's identity, which stays with the card.
    #[schemars(length(min = 1, max = MAX_UUID_CHARS))]
    pub uuid: String,
    /// The model, such as NVIDIA GeForce RTX 4090.
    #[schemars(length(min = 1, max = MAX_MODEL_CHARS))]
    pub model: String,
    /// The GPU's memory in bytes.
    #[schemars(range(min = 0, max = MAX_MEMORY_BYTES))]
    pub memory_bytes: i64,
    /// CUDA compute capability, such as 8.9.
    #[schemars(length(min = 1, max = 16))]
    pub compute_capability: String,
    /// Whether the GPU is in order, so that it may be given to new containers.
    pub healthy: bool,
    /// What is wrong with a GPU that is not healthy: the worst finding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = MAX_REASON_CHARS))]
    pub reason: Option<String>,
    /// Everything that was found about the GPU, the worst first; notes, which
    /// leave it healthy, as well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_FINDINGS))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub findings: Vec<ClaimedFinding>,
    /// How the GPU is given to containers; absent where it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "OfferedAs")]
    pub offered_as: Option<OfferedAs>,
    /// The resource under which the kubelet counts the GPU or its shares;
    /// absent where its partitions are counted and where it is not offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = MAX_RESOURCE_CHARS))]
    pub resource: Option<String>,
    /// How many containers can have the GPU at the same time, where it is
    /// offered as shares.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = MAX_SHARES))]
    pub shares: Option<i32>,
    /// Why the GPU is not offered to anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NotOffered")]
    pub not_offered: Option<NotOffered>,
    /// Whether the GPU can be partitioned (Multi-Instance GPU), and is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "MigMode")]
    pub mig_mode: Option<MigMode>,
    /// The partitions of the GPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_PARTITIONS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["uuid".to_owned()]))]
    pub partitions: Vec<ClaimedPartition>,
    /// The NUMA node that the GPU is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 0, max = 65535))]
    pub numa_node: Option<i32>,
    /// The GPU's PCI Express link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "ClaimedPcieLink")]
    pub pcie: Option<ClaimedPcieLink>,
    /// Whether error correction of its memory is on; absent where it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "bool")]
    pub ecc_enabled: Option<bool>,
    /// The power limit that is enforced, in milliwatts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = 1_000_000_000))]
    pub power_limit_milliwatts: Option<i64>,
    /// The ways to other GPUs that are shorter than the one over the machine's
    /// processors, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_LINKS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["peer".to_owned()]))]
    pub links: Vec<ClaimedLink>,
    /// Whose programs run on the GPU, as far as it could be told; written when
    /// it has lasted for a while.
    #[serde(rename = "use", default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "GpuUse")]
    pub in_use: Option<GpuUse>,
}

/// One thing that was found about a GPU.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedFinding {
    /// What was found, as one word in CamelCase for programs.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// What follows from it.
    pub severity: Severity,
    /// What happened and what to do, as a sentence for people.
    #[schemars(length(max = MAX_FINDING_CHARS))]
    pub message: String,
}

/// What follows from a finding about a GPU.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum Severity {
    /// It is told, and nothing else.
    Note,
    /// The GPU is given to nobody new; what runs on it goes on.
    Drain,
    /// The GPU is given to nobody new, and what runs on it is not worth
    /// keeping.
    Out,
}

/// How a GPU is given to containers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferedAs {
    /// All of it to one container.
    Whole,
    /// In partitions that the hardware keeps apart.
    Partitions,
    /// To several containers at the same time, which nothing keeps apart.
    Shares,
}

/// Why a GPU is not offered.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NotOffered {
    /// Why, as one word in CamelCase for programs.
    #[schemars(length(min = 1, max = 64))]
    pub reason: String,
    /// Why, and what to do to have it offered.
    #[schemars(length(max = MAX_FINDING_CHARS))]
    pub message: String,
}

/// Whether a GPU is partitioned.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigMode {
    /// It can be and is not.
    Off,
    /// It is.
    On,
}

/// One partition of a GPU.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedPartition {
    /// The partition's identity.
    #[schemars(length(min = 1, max = MAX_UUID_CHARS))]
    pub uuid: String,
    /// NVIDIA's name of its size, such as 1g.10gb.
    #[schemars(length(min = 1, max = 64))]
    pub profile: String,
    /// The number of its GPU instance on the card.
    #[schemars(range(min = 0, max = 4095))]
    pub gpu_instance: i32,
    /// The number of its compute instance in the GPU instance.
    #[schemars(range(min = 0, max = 4095))]
    pub compute_instance: i32,
    /// Its memory in bytes.
    #[schemars(range(min = 0, max = MAX_MEMORY_BYTES))]
    pub memory_bytes: i64,
    /// Whether it may be given to new containers.
    pub healthy: bool,
    /// What is wrong with a partition that is not healthy, where the GPU as a
    /// whole is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = MAX_PARTITION_REASON_CHARS))]
    pub reason: Option<String>,
    /// The resource under which the kubelet counts it; absent where it is not
    /// offered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(min = 1, max = MAX_RESOURCE_CHARS))]
    pub resource: Option<String>,
    /// Why the partition is not offered, where others of the GPU are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "NotOffered")]
    pub not_offered: Option<NotOffered>,
}

/// A PCI Express link. A GPU that rests slows its link down, so what is told is
/// the best that was seen.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedPcieLink {
    /// The highest generation that was seen.
    #[schemars(range(min = 0, max = 255))]
    pub generation: i32,
    /// The generation that GPU and slot can do.
    #[schemars(range(min = 0, max = 255))]
    pub generation_max: i32,
    /// The most lanes that were seen.
    #[schemars(range(min = 0, max = 255))]
    pub width: i32,
    /// The lanes that GPU and slot can do.
    #[schemars(range(min = 0, max = 255))]
    pub width_max: i32,
}

/// A way from one GPU to another.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedLink {
    /// The identity of the other GPU.
    #[schemars(length(min = 1, max = MAX_UUID_CHARS))]
    pub peer: String,
    /// What the way goes over.
    pub over: LinkOver,
    /// How many NVLink connections it has, where it goes over NVLink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i32", range(min = 1, max = 255))]
    pub lanes: Option<i32>,
}

/// What a way between two GPUs goes over.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkOver {
    /// NVLink, directly or over NVSwitches.
    NvLink,
    /// Both are on one board.
    Board,
    /// One PCI Express switch.
    PcieSwitch,
    /// Several PCI Express switches, without the host bridge.
    PcieSwitches,
}

/// Whose programs run on a GPU.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuUse {
    /// Nobody's.
    Idle,
    /// Those of a pod that was given the GPU.
    InUse,
    /// The machine's owner's, outside Kubernetes.
    OwnerBusy,
    /// Those of a pod that was not given the GPU.
    Intruder,
    /// It cannot be told.
    Unknown,
}

/// What the node has, and what of it no pod uses, whoever owns the pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Healthy GPUs that are handed out; of those that are divided, the
    /// partitions or shares.
    #[schemars(range(min = 0, max = MAX_UNITS))]
    pub gpus: i32,
    /// Those of them that no pod has and no placement waits for.
    #[schemars(range(min = 0, max = MAX_UNITS))]
    pub gpus_free: i32,
    /// The GPUs' model; where they are not alike, the one with the least
    /// memory, which is the one that a replica is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = MAX_MODEL_CHARS))]
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
    /// The same for each resource of the kubelet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_POOLS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["resource".to_owned()]))]
    pub pools: Vec<Pool>,
}

/// What the kubelet hands out under one resource.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The resource, such as creo.cloud/gpu.
    #[schemars(length(min = 1, max = MAX_RESOURCE_CHARS))]
    pub resource: String,
    /// What of a GPU a unit of it is.
    pub offered_as: OfferedAs,
    /// The model; absent where none is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = MAX_MODEL_CHARS))]
    pub model: Option<String>,
    /// Memory of each unit in bytes.
    #[schemars(range(min = 0, max = MAX_MEMORY_BYTES))]
    pub memory_bytes: i64,
    /// Healthy units.
    #[schemars(range(min = 0, max = MAX_UNITS))]
    pub count: i32,
    /// Healthy units that no pod has and no placement waits for.
    #[schemars(range(min = 0, max = MAX_UNITS))]
    pub free: i32,
}

/// What a canary found on a node, and of which node that is true.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Isolation {
    /// Whether containers are kept from GPUs that they did not ask for.
    pub verdict: Verdict,
    /// What was found, or why nothing could be.
    #[schemars(length(max = condition::MAX_MESSAGE_CHARS))]
    pub message: String,
    /// When the canary ended, or was given up.
    #[schemars(schema_with = "condition::time")]
    pub checked_at: Time,
    /// The start of the machine that it was found in.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// The container runtime and its version.
    #[schemars(length(max = 256))]
    pub container_runtime: String,
    /// The canary's image.
    #[schemars(length(max = 512))]
    pub image: String,
}

/// Whether containers are kept from GPUs that they did not ask for.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are.
    Isolated,
    /// They are not: nothing is placed on the node.
    Exposed,
    /// The canary did not run.
    Unknown,
}

/// How well a node serves; it changes rarely.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceClass {
    /// As it should.
    Good,
    /// Worse than it should: some of its GPUs are not healthy.
    Degraded,
}
