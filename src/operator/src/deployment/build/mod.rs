//! What an AgentDeployment is made into: one pure function for each child.

pub mod placement;
pub mod service;

use creo_api::AgentDeployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource as _;

/// The owner of every child. Not blocking: it would need a further permission and gain nothing.
fn owner(deployment: &AgentDeployment) -> Option<Vec<OwnerReference>> {
    deployment.controller_owner_ref(&()).map(|mut owner| {
        owner.block_owner_deletion = None;
        vec![owner]
    })
}
