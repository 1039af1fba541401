//! A Service, slim.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::metadata::kept;

/// A Service.
#[derive(kube::Resource, Deserialize, Clone, Debug, Default, PartialEq)]
#[resource(inherit = "v1::Service")]
#[serde(default)]
pub struct Service {
    /// What is kept of the metadata.
    #[serde(deserialize_with = "kept")]
    pub metadata: ObjectMeta,
    /// What it selects and offers.
    pub spec: ServiceSpec,
}

/// What a Service selects and offers.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Which pods.
    pub selector: BTreeMap<String, String>,
    /// On which ports.
    pub ports: Vec<ServicePort>,
    /// ClusterIP, or what somebody made of it.
    pub r#type: String,
}

/// One port of a Service.
#[derive(Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name.
    pub name: Option<String>,
    /// Its number.
    pub port: i32,
    /// The pods' port.
    pub target_port: Option<IntOrString>,
}
