//! Placement: one replica of an AgentDeployment on one CreoNode, on agreed
//! terms. The operator alone writes it, and what turns it into a pod reads
//! nothing else.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{condition, image::Image, rules};

/// The types of a Placement's conditions.
pub mod conditions {
    /// The pod is bound to its node.
    pub const SCHEDULED: &str = "Scheduled";
    /// The replica answers requests.
    pub const READY: &str = "Ready";
}

/// The most stretches of readiness that a status lists one by one.
pub const MAX_READY_STRETCHES: usize = 64;

/// Where a workload finds its model: the model's image is mounted here,
/// read-only.
pub const MODEL_MOUNT_PATH: &str = "/models";

/// What was agreed, and what runs.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "creo.cloud",
    version = "v1alpha1",
    kind = "Placement",
    plural = "placements",
    shortname = "plc",
    category = "creo",
    namespaced,
    status = "PlacementStatus",
    derive = "PartialEq",
    doc = "One replica of an AgentDeployment on one CreoNode, on agreed terms. Written by the operator alone.",
    cel,
    validation = Rule::new("size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message("metadata.name must be at most 63 lower-case letters, digits and '-', because it is the value of a label"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "How far the replica is"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.terms.node", description = "The CreoNode that it runs on"),
    printcolumn(name = "GPUs", type_ = "integer", json_path = ".spec.terms.gpu.count", description = "GPUs that it has"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.terms.gpu.model", description = "The GPUs' model"),
    printcolumn(name = "Price", type_ = "integer", json_path = ".spec.terms.priceMicroPerGpuHour", description = "Micro-credits per GPU and hour"),
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.workload.deployment", description = "The AgentDeployment that it belongs to", priority = 1),
    printcolumn(name = "Attempt", type_ = "integer", json_path = ".status.attempt", description = "Pods made so far", priority = 1),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", description = "Why it is in this phase", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was agreed")
)]
#[serde(rename_all = "camelCase")]
pub struct PlacementSpec {
    /// What was agreed. It never changes: new terms are a new Placement.
    #[x_kube(validation = rules::immutable("spec.terms cannot be changed: new terms are a new Placement, so delete this one and the operator makes another"))]
    pub terms: Terms,
    /// What runs, fully resolved. It may change: the pod is then replaced by
    /// one with the new workload, on the same terms.
    pub workload: Workload,
}

/// What was agreed between the customer and the node's owner.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// The name of the CreoNode.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::object_name())]
    pub node: String,
    /// The account that is paid.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub owner: String,
    /// The GPUs that the replica has for itself.
    pub gpu: AgreedGpu,
    /// What one of these GPUs costs for one hour, in micro-credits.
    #[schemars(range(min = 0, max = 1_000_000_000_000_i64))]
    pub price_micro_per_gpu_hour: i64,
    /// Since when these terms hold.
    #[schemars(schema_with = "crate::condition::time")]
    pub since: Time,
}

/// The GPUs of a replica.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgreedGpu {
    /// The resource that the kubelet hands out, such as creo.cloud/gpu.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')").message("must be an extended resource like creo.cloud/gpu"))]
    pub resource: String,
    /// The model, such as NVIDIA GeForce RTX 4090.
    #[schemars(length(min = 1, max = 128))]
    pub model: String,
    /// How many GPUs.
    #[schemars(range(min = 1, max = 16))]
    pub count: i32,
    /// Memory of each, in bytes.
    #[schemars(range(min = 0, max = 1_i64 << 50))]
    pub memory_bytes: i64,
    /// Whether others use the GPU at the same time. Default: false.
    #[serde(default, skip_serializing_if = "crate::agent_deployment::is_false")]
    pub shared: bool,
}

/// A pod with one container, fully resolved: nothing else is read to make it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Which version of the deployment's wishes this is. A pod of another
    /// revision is replaced.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = rules::label())]
    pub revision: String,
    /// The AgentDeployment that this is a replica of; the pod's labels are made
    /// from it.
    #[schemars(length(min = 1, max = crate::names::MAX_DEPLOYMENT_CHARS))]
    #[x_kube(validation = rules::label())]
    pub deployment: String,
    /// The Kubernetes node that the pod must be bound to. It never changes.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::object_name())]
    #[x_kube(validation = rules::immutable("spec.workload.kubernetesNode cannot be changed: another node is another Placement"))]
    pub kubernetes_node: String,
    /// The engine's image.
    pub image: Image,
    /// The program to run; where it is empty, the image's own. Default: empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,
    /// The program's arguments; $(NAME) stands for an environment variable's
    /// value. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub args: Vec<String>,
    /// Environment variables. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".to_owned()]))]
    pub env: Vec<EnvVar>,
    /// The port on which the engine serves HTTP.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// How the engine is asked whether it can answer.
    pub health: Health,
    /// What the container asks for beside its GPUs.
    pub resources: WorkloadResources,
    /// The image that holds the model, mounted read-only at /models.
    pub model: Image,
}

/// One environment variable.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EnvVar {
    /// The variable's name: letters, digits and '_', not beginning with a digit.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message("an environment variable's name must be letters, digits and '_', and not begin with a digit"))]
    pub name: String,
    /// The variable's value. Default: empty.
    #[serde(default)]
    #[schemars(length(max = 8192))]
    pub value: String,
}

/// How a replica is asked whether it can answer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// The HTTP path that answers 200 when the model is loaded, such as
    /// /health.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._~/-]*$')").message("must begin with '/', as in /health"))]
    pub path: String,
    /// How often it is asked, in seconds.
    #[schemars(range(min = 1, max = 300))]
    pub period_seconds: i32,
    /// How long loading the model may take before the attempt has failed, in
    /// seconds.
    #[schemars(range(min = 1, max = 86400))]
    pub startup_timeout_seconds: i32,
}

/// What a container asks for beside its GPUs.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadResources {
    /// CPU that is requested, in thousandths of a CPU.
    #[schemars(range(min = 1, max = 1_024_000))]
    pub cpu_milli: i64,
    /// Memory that is requested, and is the limit as well, in bytes.
    #[schemars(range(min = 1, max = 1_i64 << 50))]
    pub memory_bytes: i64,
    /// Ephemeral storage that is requested, and is the limit as well, in bytes.
    #[schemars(range(min = 1, max = 1_i64 << 50))]
    pub ephemeral_storage_bytes: i64,
}

/// How far a replica is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PlacementStatus {
    /// The metadata.generation that was last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "i64", range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub observed_generation: Option<i64>,
    /// How far the replica is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Phase")]
    pub phase: Option<Phase>,
    /// Why it is in this phase, as one word in CamelCase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 128))]
    pub reason: Option<String>,
    /// Why it is in this phase, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = condition::MAX_MESSAGE_CHARS))]
    pub message: Option<String>,
    /// The pod of the current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 253))]
    pub pod_name: Option<String>,
    /// The revision that the pod was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", length(max = 63))]
    pub revision: Option<String>,
    /// How many pods were made so far, the current one included; 0 before the
    /// first. A pod's name is made from it.
    #[serde(default)]
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub attempt: i64,
    /// How many attempts failed since the replica was last ready; the wait
    /// before the next attempt grows with it.
    #[serde(default)]
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub failures: i64,
    /// The time before which no next attempt is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::condition::time")]
    pub next_attempt_after: Option<Time>,
    /// Whether the replica is Scheduled and Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "condition::schema")]
    pub conditions: Vec<Condition>,
    /// When the replica was ready, by the hub's clock, oldest first: at most
    /// the last 64 stretches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_READY_STRETCHES))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ready_stretches: Vec<Stretch>,
    /// The sum of the stretches before those in readyStretches, in
    /// milliseconds.
    #[serde(default)]
    #[schemars(range(min = 0, max = crate::rules::MAX_INTEGER))]
    pub earlier_ready_ms: i64,
}

/// How far a replica is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// There is no pod yet, or it is not bound to its node yet.
    Pending,
    /// The pod is on its node and does not answer yet: images are pulled, the
    /// model is loaded.
    Starting,
    /// It answers.
    Ready,
    /// The attempt failed; the next one follows after a while.
    Failed,
    /// The node is not seen: whether the replica still runs is unknown, and
    /// another takes its part elsewhere.
    Lost,
    /// The pod could not be bound to its node; this is final.
    Withdrawn,
    /// The pod has ended and is gone; this is final.
    Ended,
}

impl Phase {
    /// The word that the API uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
            Self::Lost => "Lost",
            Self::Withdrawn => "Withdrawn",
            Self::Ended => "Ended",
        }
    }
}

/// A stretch of time.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stretch {
    /// When it began.
    #[schemars(schema_with = "crate::condition::time")]
    pub from: Time,
    /// When it ended; absent while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::condition::time")]
    pub until: Option<Time>,
}

impl PlacementStatus {
    /// Notes that at `now` the hub saw the replica as ready or not. Seeing the
    /// same again changes nothing. A stretch never ends before it began, even
    /// where the clock went back, and the oldest ones move into
    /// `earlier_ready_ms` so that the list stays bounded and the sum exact.
    pub fn saw_ready(&mut self, ready: bool, now: &Time) {
        let open = self
            .ready_stretches
            .last_mut()
            .filter(|stretch| stretch.until.is_none());
        match (open, ready) {
            (Some(stretch), false) => stretch.until = Some(Time(now.0.max(stretch.from.0))),
            (None, true) => self.ready_stretches.push(Stretch {
                from: now.clone(),
                until: None,
            }),
            (Some(_), true) | (None, false) => {}
        }
        while self.ready_stretches.len() > MAX_READY_STRETCHES {
            let oldest = self.ready_stretches.remove(0);
            let length_ms = oldest.until.map_or(0, |until| {
                until.0.as_millisecond() - oldest.from.0.as_millisecond()
            });
            self.earlier_ready_ms = self.earlier_ready_ms.saturating_add(length_ms.max(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).expect("a time"))
    }

    fn stretches(status: &PlacementStatus) -> Vec<(i64, Option<i64>)> {
        let seconds = |time: &Time| time.0.as_second();
        let one = |it: &Stretch| (seconds(&it.from), it.until.as_ref().map(seconds));
        status.ready_stretches.iter().map(one).collect()
    }

    #[test]
    fn readiness_is_kept_as_stretches_and_seeing_the_same_again_changes_nothing() {
        let mut status = PlacementStatus::default();
        for (second, ready) in [
            (1, false),
            (2, true),
            (3, true),
            (5, false),
            (6, false),
            (8, true),
        ] {
            status.saw_ready(ready, &at(second));
        }
        assert_eq!(stretches(&status), [(2, Some(5)), (8, None)]);
    }

    #[test]
    fn a_clock_that_went_back_ends_a_stretch_where_it_began() {
        let mut status = PlacementStatus::default();
        status.saw_ready(true, &at(10));
        status.saw_ready(false, &at(4));
        assert_eq!(stretches(&status), [(10, Some(10))]);
    }

    #[test]
    fn old_stretches_move_into_the_sum_so_that_the_list_stays_bounded() {
        let mut status = PlacementStatus::default();
        let most = i64::try_from(MAX_READY_STRETCHES).expect("a small number");
        for stretch in 0..most + 2 {
            status.saw_ready(true, &at(10 * stretch));
            status.saw_ready(false, &at(10 * stretch + 3));
        }
        assert_eq!(status.ready_stretches.len(), MAX_READY_STRETCHES);
        assert_eq!(stretches(&status)[0], (20, Some(23)));
        assert_eq!(status.earlier_ready_ms, 6_000);
    }
}
