//! The samples of `config/samples`, which the demo, the tests and the bench use
//! as a customer would.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use creo_api::{AgentDeployment, agent_deployment::conditions};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use crate::{
    error::{Context as _, Error, Result},
    paths,
};

/// The folder of the samples.
#[must_use]
pub fn dir() -> PathBuf {
    paths::checkout().join("config/samples")
}

/// The sample of the quickstart: a small chat model.
///
/// # Errors
///
/// The sample cannot be read.
pub fn quickstart() -> Result<AgentDeployment> {
    let path = dir().join("quickstart.yaml");
    let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
    let malformed =
        |error: &dyn std::fmt::Display| Error::malformed(path.display().to_string(), error);
    let documents: Vec<serde_json::Value> =
        serde_saphyr::from_multiple(&text).map_err(|error| malformed(&error))?;
    let found = documents
        .into_iter()
        .find(|document| document["kind"] == "AgentDeployment")
        .ok_or_else(|| malformed(&"there is no AgentDeployment in it"))?;
    serde_json::from_value(found).map_err(|error| malformed(&error))
}

/// The sample of the quickstart under another name and in no namespace yet.
///
/// # Errors
///
/// The sample cannot be read.
pub fn tiny_chat(name: &str) -> Result<AgentDeployment> {
    let mut deployment = quickstart()?;
    deployment.metadata.name = Some(name.to_owned());
    deployment.metadata.namespace = None;
    Ok(deployment)
}

/// The address of a Service within its cluster.
///
/// # Errors
///
/// It has none.
pub fn service_address(service: &Service) -> Result<SocketAddr> {
    let spec = service.spec.as_ref();
    let ip = spec
        .and_then(|spec| spec.cluster_ip.as_deref())
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    let port = spec
        .and_then(|spec| spec.ports.as_ref()?.first())
        .and_then(|port| u16::try_from(port.port).ok());
    match (ip, port) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err(Error::malformed("the Service", "it has no address")),
    }
}

/// A condition of a deployment.
#[must_use]
pub fn condition<'a>(deployment: &'a AgentDeployment, kind: &str) -> Option<&'a Condition> {
    deployment
        .status
        .as_ref()?
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
}

/// Whether the deployment is ready as it is now wanted.
#[must_use]
pub fn is_ready(deployment: Option<&AgentDeployment>) -> bool {
    deployment.is_some_and(|deployment| {
        condition(deployment, conditions::READY).is_some_and(|ready| {
            ready.status == "True" && ready.observed_generation == deployment.metadata.generation
        })
    })
}
