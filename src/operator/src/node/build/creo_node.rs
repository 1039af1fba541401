//! The CreoNode of a hub node, as it is when it is first seen. From then on it is people's.

use std::collections::BTreeMap;

use creo_api::creo_node::{CreoNode, CreoNodeSpec, Offer, Source};
use creo_api::labels;
use kube::ResourceExt as _;
use kube::api::ObjectMeta;

use crate::base::slim::Node;
use crate::settings::HubOffer;

/// The prefixes of the resources that mark a node as one with GPUs for Creo: creo.cloud/gpu, with
/// more behind it where a node has unlike ones or shares them, and creo.cloud/mig-PROFILE.
const GPU_RESOURCES: [&str; 2] = ["creo.cloud/gpu", "creo.cloud/mig-"];

/// Whether a node has GPUs that Creo's device plugin hands out.
#[must_use]
pub fn has_gpus(node: &Node) -> bool {
    node.status
        .capacity
        .extended
        .iter()
        .any(|(resource, count)| {
            *count > 0
                && GPU_RESOURCES
                    .iter()
                    .any(|prefix| resource.starts_with(prefix))
        })
}

/// The CreoNode, named like the node.
#[must_use]
pub fn creo_node(node: &Node, offer: &HubOffer) -> CreoNode {
    let name = node.name_any();
    CreoNode {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(
                labels::MANAGED_BY.to_owned(),
                labels::CREO.to_owned(),
            )])),
            ..ObjectMeta::default()
        },
        spec: CreoNodeSpec {
            source: Source {
                kubernetes_node: name,
            },
            owner: offer.owner.clone(),
            accepted: offer.accepted,
            offer: Offer {
                price_micro_per_gpu_hour: offer.price_micro_per_gpu_hour,
                region: offer.region.clone(),
                cordon: false,
            },
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::fixture;

    fn node(capacity: &serde_json::Value) -> Node {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "machine-1"}, "status": {"capacity": capacity},
        }))
        .unwrap()
    }

    #[test]
    fn a_hub_node_becomes_this_creo_node() {
        let node = node(&serde_json::json!({"creo.cloud/gpu": "1"}));
        insta::assert_yaml_snapshot!(creo_node(&node, &fixture::settings().hub_offer));
    }

    #[test]
    fn only_a_node_with_our_gpus_becomes_a_creo_node() {
        for (capacity, expected) in [
            (serde_json::json!({"creo.cloud/gpu": "1"}), true),
            (serde_json::json!({"creo.cloud/gpu-h100": "8"}), true),
            (serde_json::json!({"creo.cloud/gpu": "0"}), false),
            (serde_json::json!({"nvidia.com/gpu": "8"}), false),
            (serde_json::json!({"cpu": "8"}), false),
        ] {
            assert_eq!(has_gpus(&node(&capacity)), expected, "{capacity}");
        }
    }
}
