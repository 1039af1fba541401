//! The pod of a Placement.
//!
//! It meets Pod Security "restricted", asks for the agreed GPUs, is tied to its node by a
//! required affinity (so that the scheduler still counts and refuses), and puts up with its node
//! being unseen for any length of time: a fault of the control plane must not end it.

use std::collections::BTreeMap;

use creo_api::image::Image;
use creo_api::labels;
use creo_api::placement::{MODEL_MOUNT_PATH, Placement, Workload};
use creo_market::placement::{Effect, Operator, standing_tolerations};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction,
    ImageVolumeSource, Lifecycle, LifecycleHandler, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSecurityContext, PodSpec, Probe,
    ResourceRequirements, SeccompProfile, SecurityContext, SleepAction, Toleration, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};

use crate::{annotations, digest};

/// The name of the port in the pod, which the Service names as its target.
pub const HTTP_PORT: &str = "http";

/// The user and group of everything in the pod.
const USER: i64 = 65_532;

/// How long an engine may take to end the requests that it is answering.
const TERMINATION_GRACE_SECONDS: i64 = 30;

/// How long one answer to a probe may take: an engine under full load answers late, not never.
const PROBE_TIMEOUT_SECONDS: i32 = 5;

/// How often a starting engine is asked, so that loading ends at most this late.
const STARTUP_PERIOD_SECONDS: i32 = 1;

/// How long a pod that is to end still answers, so that those who route to it hear of it first.
const STILL_ANSWERS_SECONDS: i64 = 2;

/// A started engine that answers no probe for two minutes has failed.
const LIVENESS_PERIOD_SECONDS: i32 = 10;
const LIVENESS_FAILURES: i32 = 12;

/// The name of the pod of an attempt. It follows from the Placement's name and uid, so that
/// creating it twice makes one pod and a namesake that comes later gets other pods.
#[must_use]
pub fn name(placement: &Placement, attempt: i64) -> String {
    let uid = digest::of(&placement.uid().unwrap_or_default());
    format!("{}-{}-{attempt}", placement.name_any(), &uid[..6])
}

/// The pod of an attempt.
#[must_use]
pub fn pod(placement: &Placement, attempt: i64) -> Pod {
    let workload = &placement.spec.workload;
    Pod {
        metadata: metadata(placement, attempt),
        spec: Some(PodSpec {
            affinity: Some(on_node(&workload.kubernetes_node)),
            automount_service_account_token: Some(false),
            containers: vec![container(placement)],
            enable_service_links: Some(false),
            // A container that started again in place would keep its GPU, also one that fell ill;
            // another pod is given one that is in order.
            restart_policy: Some("Never".to_owned()),
            security_context: Some(PodSecurityContext {
                fs_group: Some(USER),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            termination_grace_period_seconds: Some(TERMINATION_GRACE_SECONDS),
            tolerations: Some(tolerations()),
            volumes: Some(volumes(&workload.model)),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn metadata(placement: &Placement, attempt: i64) -> ObjectMeta {
    let workload = &placement.spec.workload;
    ObjectMeta {
        name: Some(name(placement, attempt)),
        namespace: placement.namespace(),
        labels: Some(labels::placement(
            &workload.deployment,
            &placement.name_any(),
        )),
        annotations: Some(BTreeMap::from([
            (annotations::ATTEMPT.to_owned(), attempt.to_string()),
            (annotations::REVISION.to_owned(), workload.revision.clone()),
            (annotations::WORKLOAD.to_owned(), digest::of(workload)),
        ])),
        owner_references: placement.controller_owner_ref(&()).map(|mut owner| {
            // Not blocking: it would need a further permission and gain nothing.
            owner.block_owner_deletion = None;
            vec![owner]
        }),
        ..ObjectMeta::default()
    }
}

/// Tied to a node by its name, so that the scheduler still counts and refuses.
pub(crate) fn on_node(kubernetes_node: &str) -> Affinity {
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                node_selector_terms: vec![NodeSelectorTerm {
                    match_fields: Some(vec![NodeSelectorRequirement {
                        key: "metadata.name".to_owned(),
                        operator: "In".to_owned(),
                        values: Some(vec![kubernetes_node.to_owned()]),
                    }]),
                    ..NodeSelectorTerm::default()
                }],
            }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// What the placement rules count on is what the pod says.
fn tolerations() -> Vec<Toleration> {
    standing_tolerations()
        .into_iter()
        .map(|toleration| Toleration {
            key: Some(toleration.key).filter(|key| !key.is_empty()),
            operator: Some(match toleration.operator {
                Operator::Exists => "Exists".to_owned(),
                Operator::Equal => "Equal".to_owned(),
            }),
            value: Some(toleration.value).filter(|value| !value.is_empty()),
            effect: toleration.effect.map(|effect| {
                match effect {
                    Effect::NoSchedule => "NoSchedule",
                    Effect::PreferNoSchedule => "PreferNoSchedule",
                    Effect::NoExecute => "NoExecute",
                }
                .to_owned()
            }),
            ..Toleration::default()
        })
        .collect()
}

fn volumes(model: &Image) -> Vec<Volume> {
    vec![
        Volume {
            name: "model".to_owned(),
            image: Some(ImageVolumeSource {
                reference: Some(model.reference.clone()),
                pull_policy: Some(model.pull_policy.as_str().to_owned()),
            }),
            ..Volume::default()
        },
        Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        },
        // Several GPUs of one engine talk through shared memory, of which a container has 64 MB
        // by default; this counts towards the container's memory limit.
        Volume {
            name: "shm".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        },
    ]
}

fn container(placement: &Placement) -> Container {
    let workload = &placement.spec.workload;
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    Container {
        name: "engine".to_owned(),
        image: Some(workload.image.reference.clone()),
        image_pull_policy: Some(workload.image.pull_policy.as_str().to_owned()),
        command: some(&workload.command),
        args: some(&workload.args),
        env: Some(env(workload)),
        ports: Some(vec![ContainerPort {
            name: Some(HTTP_PORT.to_owned()),
            container_port: workload.port,
            ..ContainerPort::default()
        }]),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: STILL_ANSWERS_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: Some(resources(placement)),
        startup_probe: Some(Probe {
            period_seconds: Some(STARTUP_PERIOD_SECONDS),
            failure_threshold: Some(
                workload.health.startup_timeout_seconds / STARTUP_PERIOD_SECONDS,
            ),
            ..probe(workload)
        }),
        readiness_probe: Some(Probe {
            period_seconds: Some(workload.health.period_seconds),
            failure_threshold: Some(3),
            ..probe(workload)
        }),
        liveness_probe: Some(Probe {
            period_seconds: Some(LIVENESS_PERIOD_SECONDS),
            failure_threshold: Some(LIVENESS_FAILURES),
            ..probe(workload)
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![
            VolumeMount {
                name: "model".to_owned(),
                mount_path: MODEL_MOUNT_PATH.to_owned(),
                read_only: Some(true),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: "tmp".to_owned(),
                mount_path: "/tmp".to_owned(),
                ..VolumeMount::default()
            },
            VolumeMount {
                name: "shm".to_owned(),
                mount_path: "/dev/shm".to_owned(),
                ..VolumeMount::default()
            },
        ]),
        ..Container::default()
    }
}

fn env(workload: &Workload) -> Vec<EnvVar> {
    let variable = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        ..EnvVar::default()
    };
    // Images of engines often say "all", which the NVIDIA runtime reads as every GPU of the
    // node. The GPUs of this pod come from the device plugin and from nowhere else.
    std::iter::once(variable("NVIDIA_VISIBLE_DEVICES", "void"))
        .chain(
            workload
                .env
                .iter()
                .filter(|one| one.name != "NVIDIA_VISIBLE_DEVICES")
                .map(|one| variable(&one.name, &one.value)),
        )
        .collect()
}

fn resources(placement: &Placement) -> ResourceRequirements {
    let (asked, gpu) = (placement.spec.workload.resources, &placement.spec.terms.gpu);
    let quantity = |text: String| Quantity(text);
    let memory = quantity(asked.memory_bytes.to_string());
    let storage = quantity(asked.ephemeral_storage_bytes.to_string());
    let gpus = quantity(gpu.count.to_string());
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_owned(), quantity(format!("{}m", asked.cpu_milli))),
            ("memory".to_owned(), memory.clone()),
            ("ephemeral-storage".to_owned(), storage.clone()),
            (gpu.resource.clone(), gpus.clone()),
        ])),
        limits: Some(BTreeMap::from([
            ("memory".to_owned(), memory),
            ("ephemeral-storage".to_owned(), storage),
            (gpu.resource.clone(), gpus),
        ])),
        ..ResourceRequirements::default()
    }
}

fn probe(workload: &Workload) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(workload.health.path.clone()),
            port: IntOrString::String(HTTP_PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(PROBE_TIMEOUT_SECONDS),
        ..Probe::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::fixture;

    #[test]
    fn a_placement_becomes_this_pod() {
        insta::assert_yaml_snapshot!(pod(&fixture::placement(), 3));
    }

    #[test]
    fn the_name_of_a_pod_tells_placements_of_one_name_and_attempts_apart() {
        let first = fixture::placement();
        let mut namesake = fixture::placement();
        namesake.metadata.uid = Some("another".to_owned());
        assert_eq!(name(&first, 1), name(&first, 1));
        assert_ne!(name(&first, 1), name(&first, 2));
        assert_ne!(name(&first, 1), name(&namesake, 1));
    }

    #[test]
    fn a_workload_cannot_widen_what_gpus_it_sees() {
        let mut placement = fixture::placement();
        placement.spec.workload.env = vec![creo_api::placement::EnvVar {
            name: "NVIDIA_VISIBLE_DEVICES".to_owned(),
            value: "all".to_owned(),
        }];
        let env = env(&placement.spec.workload);
        assert_eq!(env.len(), 1);
        assert_eq!(env[0].value.as_deref(), Some("void"));
    }
}
