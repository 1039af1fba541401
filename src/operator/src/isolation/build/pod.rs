//! A canary: a pod that asks for no GPU, asks the container runtime for all of them by the
//! variable that NVIDIA's runtime looks at, and tries to open each.
//!
//! It meets Pod Security "restricted", as customers' pods do: what it reaches they reach.

use std::collections::BTreeMap;

use creo_api::{CreoNode, labels};
use k8s_openapi::api::core::v1::{
    Capabilities, Container, EnvVar, LocalObjectReference, Pod, PodSecurityContext, PodSpec,
    ResourceRequirements, SeccompProfile, SecurityContext, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::Resource as _;
use kube::api::ObjectMeta;

use crate::isolation::plan::{PATIENCE, Sought};
use crate::placement::build::pod::on_node;
use crate::settings::Canaries;
use crate::{annotations, digest};

/// The user and group of everything in the pod.
const USER: i64 = 65_532;

/// The name of a node's canary: there is one at a time.
#[must_use]
pub fn name(kubernetes_node: &str) -> String {
    format!("creo-canary-{}", digest::of(&kubernetes_node))
}

/// The Kubernetes node that this is a canary of.
#[must_use]
pub fn node_of(metadata: &ObjectMeta) -> Option<&str> {
    let annotations = metadata.annotations.as_ref()?;
    annotations.get(annotations::CANARY_OF).map(String::as_str)
}

/// The canary of a node, for what is sought there.
#[must_use]
pub fn pod(
    creo_node: &CreoNode,
    kubernetes_node: &str,
    sought: &Sought,
    canaries: &Canaries,
) -> Pod {
    Pod {
        metadata: metadata(creo_node, kubernetes_node, sought, canaries),
        spec: Some(PodSpec {
            active_deadline_seconds: i64::try_from(PATIENCE.as_secs()).ok(),
            affinity: Some(on_node(kubernetes_node)),
            automount_service_account_token: Some(false),
            containers: vec![container(canaries)],
            enable_service_links: Some(false),
            image_pull_secrets: Some(
                canaries
                    .pull_secrets
                    .iter()
                    .map(|name| LocalObjectReference { name: name.clone() })
                    .collect::<Vec<_>>(),
            )
            .filter(|secrets| !secrets.is_empty()),
            restart_policy: Some("Never".to_owned()),
            security_context: Some(PodSecurityContext {
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    ..SeccompProfile::default()
                }),
                ..PodSecurityContext::default()
            }),
            termination_grace_period_seconds: Some(1),
            // Every node with GPUs is looked at, whatever keeps pods away from it.
            tolerations: Some(vec![Toleration {
                operator: Some("Exists".to_owned()),
                ..Toleration::default()
            }]),
            ..PodSpec::default()
        }),
        ..Pod::default()
    }
}

fn metadata(
    creo_node: &CreoNode,
    kubernetes_node: &str,
    sought: &Sought,
    canaries: &Canaries,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name(kubernetes_node)),
        namespace: Some(canaries.namespace.clone()),
        labels: Some(BTreeMap::from([
            (labels::MANAGED_BY.to_owned(), labels::CREO.to_owned()),
            (labels::NAME.to_owned(), "creo-canary".to_owned()),
        ])),
        annotations: Some(BTreeMap::from([
            (
                annotations::CANARY_OF.to_owned(),
                kubernetes_node.to_owned(),
            ),
            (annotations::CANARY_SOUGHT.to_owned(), digest::of(sought)),
        ])),
        owner_references: creo_node.controller_owner_ref(&()).map(|mut owner| {
            // Not blocking: it would need a further permission and gain nothing.
            owner.block_owner_deletion = None;
            vec![owner]
        }),
        ..ObjectMeta::default()
    }
}

fn container(canaries: &Canaries) -> Container {
    let all = |name: &str| EnvVar {
        name: name.to_owned(),
        value: Some("all".to_owned()),
        ..EnvVar::default()
    };
    let amounts = |cpu: Option<&str>, memory: &str| {
        let memory = ("memory".to_owned(), Quantity(memory.to_owned()));
        let cpu = cpu.map(|cpu| ("cpu".to_owned(), Quantity(cpu.to_owned())));
        Some(cpu.into_iter().chain([memory]).collect())
    };
    Container {
        name: "canary".to_owned(),
        image: Some(canaries.image.clone()),
        image_pull_policy: Some(canaries.pull_policy.clone()),
        args: Some(vec!["canary".to_owned()]),
        env: Some(vec![
            all("NVIDIA_VISIBLE_DEVICES"),
            all("NVIDIA_DRIVER_CAPABILITIES"),
        ]),
        resources: Some(ResourceRequirements {
            requests: amounts(Some("1m"), "16Mi"),
            limits: amounts(None, "32Mi"),
            ..ResourceRequirements::default()
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
        ..Container::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::plan::fixture;

    #[test]
    fn a_canary_asks_for_no_gpu_and_is_restricted() {
        let observed = fixture::observed();
        let canary = pod(
            observed.creo_node.as_ref().unwrap(),
            "machine-1",
            &fixture::sought(),
            &fixture::canaries(),
        );
        insta::assert_yaml_snapshot!(canary);
    }
}
