//! The Service of an AgentDeployment: one address for all replicas that answer.

use creo_api::{AgentDeployment, labels};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use crate::base::slim;
use crate::placement::build::pod::HTTP_PORT;

/// The port that clients use, whatever the engine listens on: an endpoint outlives a change of
/// the engine.
pub const PORT: i32 = 8000;

/// The Service.
#[must_use]
pub fn service(deployment: &AgentDeployment) -> Service {
    let name = deployment.name_any();
    Service {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: deployment.namespace(),
            labels: Some(labels::deployment(&name)),
            owner_references: super::owner(deployment),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            selector: Some(labels::selector(&name)),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT.to_owned()),
                port: PORT,
                // By name, so that each pod is reached on the port of its own revision.
                target_port: Some(IntOrString::String(HTTP_PORT.to_owned())),
                protocol: Some("TCP".to_owned()),
                ..ServicePort::default()
            }]),
            type_: Some("ClusterIP".to_owned()),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Whether what is there is what [`service`] builds, as far as it says anything.
#[must_use]
pub fn is_as_built(there: &slim::Service, deployment: &AgentDeployment) -> bool {
    let built = service(deployment);
    let spec = built.spec.unwrap_or_default();
    let has_labels = built
        .metadata
        .labels
        .unwrap_or_default()
        .iter()
        .all(|(key, value)| there.labels().get(key) == Some(value));
    let ports: Vec<_> = spec.ports.unwrap_or_default();
    has_labels
        && Some(&there.spec.selector) == spec.selector.as_ref()
        && Some(&there.spec.r#type) == spec.type_.as_ref()
        && there.spec.ports.len() == ports.len()
        && there.spec.ports.iter().zip(&ports).all(|(there, built)| {
            there.name == built.name
                && there.port == built.port
                && there.target_port == built.target_port
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::fixture;
    use creo_api::labels;

    #[test]
    fn a_deployment_has_this_service() {
        insta::assert_yaml_snapshot!(service(&fixture::deployment(serde_json::json!({}))));
    }

    #[test]
    fn the_service_selects_the_pods_that_are_built() {
        let placement = crate::placement::fixture::placement();
        let pod = crate::placement::build::pod::pod(&placement, 1);
        let deployment = fixture::deployment(serde_json::json!({}));
        assert_eq!(placement.spec.workload.deployment, deployment.name_any());
        let selector = service(&deployment).spec.unwrap().selector.unwrap();
        assert_eq!(selector, labels::selector("chat"));
        assert!(
            selector
                .iter()
                .all(|(key, value)| pod.labels().get(key) == Some(value))
        );
        let port = &pod.spec.unwrap().containers[0].ports.clone().unwrap()[0];
        assert_eq!(port.name.as_deref(), Some(HTTP_PORT));
    }

    #[test]
    fn a_service_that_somebody_changed_is_seen() {
        let deployment = fixture::deployment(serde_json::json!({}));
        let there = |change: fn(&mut slim::Service)| {
            let json = serde_json::to_value(service(&deployment)).unwrap();
            let mut there: slim::Service = serde_json::from_value(json).unwrap();
            change(&mut there);
            is_as_built(&there, &deployment)
        };
        assert!(there(|_| {}));
        assert!(!there(|service| service.spec.selector.clear()));
        assert!(!there(|service| service.spec.ports[0].port = 81));
        assert!(!there(|service| service.spec.ports.clear()));
        assert!(!there(|service| service.spec.r#type = "NodePort".to_owned()));
        assert!(!there(|service| service.metadata.labels = None));
    }
}
