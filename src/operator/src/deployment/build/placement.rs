//! The Placement of one replica.

use std::collections::BTreeMap;

use creo_api::placement::{AgreedGpu, PlacementSpec, Terms, Workload};
use creo_api::{AgentDeployment, Placement, labels, names};
use creo_market::placement::Candidate;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use crate::annotations;
use crate::base::conditions::whole_seconds;
use crate::deployment::validate::Valid;

/// Where a replica was placed.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The node that was chosen, and why.
    pub candidate: Candidate,
    /// The account that is paid.
    pub owner: String,
    /// The Kubernetes node.
    pub kubernetes_node: String,
}

/// What a replica on this Kubernetes node runs.
#[must_use]
pub fn workload(deployment: &AgentDeployment, valid: &Valid, kubernetes_node: &str) -> Workload {
    let template = valid.template.clone();
    Workload {
        revision: valid.wanted.revision.clone(),
        deployment: deployment.name_any(),
        kubernetes_node: kubernetes_node.to_owned(),
        image: template.image,
        command: template.command,
        args: template.args,
        env: template.env,
        port: template.port,
        health: template.health,
        resources: template.resources,
        model: template.model,
    }
}

/// The Placement of the replica with this number.
#[must_use]
pub fn placement(
    deployment: &AgentDeployment,
    valid: &Valid,
    ordinal: u32,
    place: &Place,
    now: Timestamp,
) -> Placement {
    let deployment_name = deployment.name_any();
    let uid = deployment.uid().unwrap_or_default();
    let name = names::placement(&deployment_name, &uid, ordinal);
    let candidate = &place.candidate;
    Placement {
        metadata: ObjectMeta {
            labels: Some(labels::placement(&deployment_name, &name)),
            name: Some(name),
            namespace: deployment.namespace(),
            annotations: Some(BTreeMap::from([(
                annotations::CHOSEN.to_owned(),
                candidate.reasons.join("; "),
            )])),
            owner_references: super::owner(deployment),
            ..ObjectMeta::default()
        },
        spec: PlacementSpec {
            terms: Terms {
                node: candidate.node.clone(),
                owner: place.owner.clone(),
                gpu: AgreedGpu {
                    resource: candidate.resource.clone(),
                    model: candidate.gpu_model.clone(),
                    count: i32::try_from(valid.wish.gpu_count).unwrap_or(i32::MAX),
                    memory_bytes: candidate.gpu_memory_bytes,
                    shared: candidate.gpu_shared,
                },
                price_micro_per_gpu_hour: candidate.price_micro_per_gpu_hour,
                since: whole_seconds(now),
            },
            workload: workload(deployment, valid, &place.kubernetes_node),
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::fixture;
    use crate::deployment::validate::validate;

    #[test]
    fn a_replica_becomes_this_placement() {
        let deployment = fixture::deployment(serde_json::json!({}));
        let valid = validate(&deployment, &fixture::engines(), &fixture::settings()).unwrap();
        let place = Place {
            candidate: Candidate {
                node: "gpu-1".to_owned(),
                resource: "creo.cloud/gpu".to_owned(),
                gpu_model: "NVIDIA L4".to_owned(),
                gpu_memory_bytes: 24 << 30,
                gpu_shared: false,
                price_micro_per_gpu_hour: 500,
                score: 1,
                reasons: vec!["cheap".to_owned(), "empty".to_owned()],
            },
            owner: "acme".to_owned(),
            kubernetes_node: "machine-1".to_owned(),
        };
        let now = Timestamp::new(1_800_000_000, 5).unwrap();
        insta::assert_yaml_snapshot!(placement(&deployment, &valid, 4, &place, now));
    }
}
