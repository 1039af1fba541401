//! AgentDeployment: what a customer wants to run.

use k8s_openapi::apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Condition};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    condition,
    image::Image,
    placement::{EnvVar, Phase},
    quantity, rules,
};

/// The types of an AgentDeployment's conditions.
pub mod conditions {
    /// Every replica has a node.
    pub const PLACED: &str = "Placed";
    /// At least one replica has the model loaded and answers.
    pub const MODEL_READY: &str = "ModelReady";
    /// A change is on its way to the replicas.
    pub const PROGRESSING: &str = "Progressing";
    /// Every replica runs what the specification says, and answers.
    pub const READY: &str = "Ready";
}

/// The most replicas that a status lists one by one.
pub const MAX_LISTED_PLACEMENTS: usize = 100;

/// What a customer wants to run.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creo.cloud",
    version = "v1alpha1",
    kind = "AgentDeployment",
    plural = "agentdeployments",
    shortname = "agd",
    category = "creo",
    namespaced,
    status = "AgentDeploymentStatus",
    derive = "PartialEq",
    doc = "A model behind an inference engine, in as many replicas as wanted, on the GPUs of the marketplace.",
    cel,
    validation = Rule::new("size(self.metadata.name) <= 50 && self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')").message("metadata.name must be at most 50 lower-case letters, digits and '-', and begin with a letter, because a Service and the placements are named after it"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether every replica answers"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas", description = "Replicas wanted"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.readyReplicas", description = "Replicas that answer"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model.name", description = "The name that requests use"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is ready or not"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.engine.profile", description = "The engine profile", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", description = "Where it answers inside of the cluster", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created")
)]
#[serde(rename_all = "camelCase")]
pub struct AgentDeploymentSpec {
    /// What is served.
    pub model: Model,
    /// The inference server that serves it.
    pub engine: Engine,
    /// The GPUs of each replica. Default: one GPU of any kind.
    #[serde(default)]
    pub gpu: GpuWish,
    /// What each replica asks for beside its GPUs. Default: 500m CPU, 1Gi
    /// memory, 1Gi ephemeral storage.
    #[serde(default)]
    pub resources: Resources,
    /// How many replicas run; 0 keeps everything but runs nothing. Default: 1.
    #[serde(default = "one_replica")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Which nodes may be used, and at what price. Default: any.
    #[serde(default)]
    pub placement: PlacementWish,
    /// Whether to stop every replica until this is false again. Default: false.
    #[serde(default)]
    pub suspend: bool,
}

fn one_replica() -> i32 {
    1
}

/// What is served.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Model {
    /// The name that requests use in their "model" field, such as tiny or
    /// team/chat-8b.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?$')").message("must be letters, digits, '.', '_', '-', ':' and '/', and begin and end with a letter or digit"))]
    pub name: String,
    /// The OCI image that holds the model's files; it is mounted read-only at
    /// /models.
    pub image: Image,
    /// The model's file or folder in the image, such as model.gguf; "." is the
    /// whole image.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.startsWith('/')").message("must be relative to the image's root: write model.gguf, not /model.gguf"))]
    #[x_kube(validation = Rule::new("!self.matches('(^|/)[.][.](/|$)')").message("must stay inside of the image: remove '..'"))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._/ +=@-]+$')").message("must be letters, digits, spaces and ./_+=@-, as in folder/model.gguf"))]
    pub path: String,
}

/// The inference server of a deployment.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Engine {
    /// Which engine: the name of a profile that Creo was installed with, such
    /// as llama-cpp or vllm.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub profile: String,
    /// Arguments that are added behind those of the profile; $(NAME) stands for
    /// an environment variable's value. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 1024)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub args: Vec<String>,
    /// Environment variables that are added to those of the profile; names that
    /// begin with CREO_ or NVIDIA_ are Creo's own. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    #[x_kube(validation = Rule::new("self.all(variable, !variable.name.startsWith('CREO_') && !variable.name.startsWith('NVIDIA_'))").message("names that begin with CREO_ or NVIDIA_ are set by Creo: choose other names"))]
    pub env: Vec<EnvVar>,
}

/// The GPUs of each replica.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GpuWish {
    /// How many GPUs each replica has for itself, all on one node. Default: 1.
    #[serde(default = "one_gpu")]
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
    /// The memory that each GPU must have at least, such as 24G. A card that is
    /// sold as 80 GB has a little less than 80Gi: write 80G or 79Gi. Default:
    /// any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = rules::quantity("1Mi", "16Ti", "24G"))]
    pub memory: Option<Quantity>,
    /// The GPU models that will do, such as "H100" or "RTX 4090". One matches
    /// where its words stand in the GPU's full name, in this order and side by
    /// side, in upper or lower case. Default: any model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(model, model.matches('[A-Za-z0-9]'))").message("every item must be a model's name, such as H100"))]
    pub models: Vec<String>,
    /// Whether a share of a GPU will do: others, who may be strangers, use the
    /// same GPU at the same time, and nothing but their good manners keeps its
    /// memory and its time apart. Default: false.
    #[serde(default, skip_serializing_if = "is_false")]
    pub shared: bool,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
pub(crate) fn is_false(value: &bool) -> bool {
    !value
}

fn one_gpu() -> i32 {
    1
}

impl Default for GpuWish {
    fn default() -> Self {
        Self {
            count: one_gpu(),
            memory: None,
            models: Vec::new(),
            shared: false,
        }
    }
}

/// What each replica asks for beside its GPUs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// CPU that each replica can count on; it may use more where there is some.
    /// Default: 500m.
    #[serde(default = "default_cpu")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = rules::quantity("1m", "1024", "500m or 2"))]
    pub cpu: Quantity,
    /// Memory that each replica has, and cannot exceed. Default: 1Gi.
    #[serde(default = "default_memory")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = rules::quantity("1Mi", "64Ti", "8Gi"))]
    pub memory: Quantity,
    /// Space on the node's disk for logs and temporary files that each replica
    /// has, and cannot exceed. Default: 1Gi.
    #[serde(default = "default_ephemeral_storage")]
    #[schemars(schema_with = "quantity::schema")]
    #[x_kube(validation = rules::quantity("1Mi", "64Ti", "10Gi"))]
    pub ephemeral_storage: Quantity,
}

fn default_cpu() -> Quantity {
    Quantity("500m".to_owned())
}

fn default_memory() -> Quantity {
    Quantity("1Gi".to_owned())
}

fn default_ephemeral_storage() -> Quantity {
    Quantity("1Gi".to_owned())
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: default_cpu(),
            memory: default_memory(),
            ephemeral_storage: default_ephemeral_storage(),
        }
    }
}

/// Which nodes may be used.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementWish {
    /// The CreoNodes that may be used. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = rules::object_names())]
    pub nodes: Vec<String>,
    /// The regions that may be used, such as eu-west. Default: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new("self.all(region, region.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$'))").message("every item must be lower-case letters, digits and '-'"))]
    pub regions: Vec<String>,
    /// The most that one GPU may cost for one hour, in micro-credits; 0 allows
    /// only what is free of charge. Default: any price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = 1_000_000_000_000_i64))]
    pub max_price_micro_per_gpu_hour: Option<i64>,
}

/// What has become of a customer's wishes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentDeploymentStatus {
    /// The metadata.generation that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub observed_generation: Option<i64>,
    /// How many replicas have a node.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub replicas: i32,
    /// How many replicas answer.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub ready_replicas: i32,
    /// What selects the replicas' pods, as text, for those who scale by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 512))]
    pub selector: Option<String>,
    /// Where the model answers inside of the cluster: the base URL of an OpenAI
    /// client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 512))]
    pub endpoint: Option<String>,
    /// Whether the deployment is Placed, ModelReady, Progressing and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
    /// The replicas one by one, those that do not answer first; at most 100.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_LISTED_PLACEMENTS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub placements: Vec<PlacementSummary>,
}

/// One replica in a deployment's status.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSummary {
    /// The Placement's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The CreoNode that it is on.
    #[schemars(length(min = 1, max = 253))]
    pub node: String,
    /// How far it is.
    pub phase: Phase,
    /// Why it is in this phase, as one word in CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 128))]
    pub reason: Option<String>,
    /// Why it is in this phase, or why this node was chosen, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = condition::MAX_MESSAGE_CHARS))]
    pub message: Option<String>,
}
