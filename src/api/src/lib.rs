//! The kinds of `creo.cloud/v1alpha1` as types, and nothing else.
//!
//! One file per kind; what several kinds share (images, quantities,
//! conditions, labels, names) has a file of its own. Every field has a
//! description, every list, string and number is bounded, and what the schema
//! cannot say is a CEL rule whose message tells what to write instead: the API
//! server is the first to read a specification, and should be the one to
//! explain what is wrong with it.

#![allow(
    clippy::duplicated_attributes,
    reason = "each printer column of a kind has a type_ and a json_path of its own"
)]

pub mod agent_deployment;
pub mod canary;
pub mod condition;
pub mod creo_node;
pub mod image;
pub mod labels;
pub mod manifest;
pub mod names;
pub mod placement;
pub mod quantity;
mod rules;
mod wish;

pub use agent_deployment::{AgentDeployment, AgentDeploymentSpec, AgentDeploymentStatus};
pub use creo_node::{CreoNode, CreoNodeSpec, CreoNodeStatus};
pub use placement::{Placement, PlacementSpec, PlacementStatus};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The API group of every kind.
pub const GROUP: &str = "creo.cloud";
/// The one served version of every kind.
pub const VERSION: &str = "v1alpha1";

/// The definitions of all kinds, in the order of their names. `crds/` is
/// written from this, and so is what `creo crds` prints.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![AgentDeployment::crd(), CreoNode::crd(), Placement::crd()]
}
