//! The capacity of the hub as the placement rules see it, counted from what exists, every time:
//! nothing is added up over time, so nothing can drift.

pub mod reservations;
pub mod usage;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use creo_api::creo_node::Verdict;
use creo_api::{CreoNode, Placement};
use creo_market::placement::{self as market, Effect, GpuPool};
use kube::ResourceExt as _;

use crate::base::slim::node::Answers;
use crate::base::slim::{Node, Pod};
use crate::base::{Cache, Key};

pub use reservations::{Reservation, Reservations};
pub use usage::Usage;

/// The local copies that capacity is counted from.
#[derive(Clone)]
pub struct Fleet {
    /// All CreoNodes, by the Kubernetes node that they offer.
    pub creo_nodes: Arc<Cache<CreoNode>>,
    /// All Kubernetes nodes.
    pub nodes: Arc<Cache<Node>>,
    /// All pods.
    pub pods: Arc<Cache<Pod>>,
    /// All Placements.
    pub placements: Arc<Cache<Placement>>,
    /// Whether canaries are sent, so that a node counts only when one has looked at it.
    pub sends_canaries: bool,
}

/// The Kubernetes node that a CreoNode offers, for the CreoNodes' index.
#[must_use]
pub fn source_of(creo_node: &CreoNode) -> Key {
    Key::cluster(creo_node.spec.source.kubernetes_node.clone())
}

/// Of several CreoNodes that offer the same Kubernetes node only the oldest counts: the GPUs are
/// there once.
#[must_use]
pub fn primary(of_one_source: &[Arc<CreoNode>]) -> Option<&Arc<CreoNode>> {
    of_one_source.iter().min_by_key(|creo_node| {
        let created = creo_node.metadata.creation_timestamp.as_ref();
        (created.map(|time| time.0), creo_node.name_any())
    })
}

impl Fleet {
    /// What is used on each Kubernetes node. `without` leaves one Placement and its pods out, to
    /// ask what would be free if it were gone.
    #[must_use]
    pub fn usage(&self, reserved: &[Reservation], without: Option<&Key>) -> HashMap<String, Usage> {
        usage::by_node(&self.pods.all(), &self.placements.all(), reserved, without)
    }

    /// Every CreoNode that counts, as the placement rules see it.
    #[must_use]
    pub fn market_nodes(
        &self,
        reserved: &[Reservation],
        without: Option<&Key>,
    ) -> Vec<market::Node> {
        let usage = self.usage(reserved, without);
        let mut by_source: BTreeMap<String, Vec<Arc<CreoNode>>> = BTreeMap::new();
        for creo_node in self.creo_nodes.all() {
            let source = creo_node.spec.source.kubernetes_node.clone();
            by_source.entry(source).or_default().push(creo_node);
        }
        by_source
            .iter()
            .filter_map(|(source, creo_nodes)| {
                let node = self.nodes.get(&Key::cluster(source.clone()));
                let used = usage.get(source).cloned().unwrap_or_default();
                let mut seen = market_node(primary(creo_nodes)?, node.as_deref(), &used);
                seen.exposed = self.sends_canaries && is_exposed(primary(creo_nodes)?);
                Some(seen)
            })
            .collect()
    }
}

/// One CreoNode as the placement rules see it.
#[must_use]
pub fn market_node(creo_node: &CreoNode, node: Option<&Node>, used: &Usage) -> market::Node {
    let answers = node.map_or(Answers::Unseen, Node::answers);
    market::Node {
        name: creo_node.name_any(),
        accepted: creo_node.spec.accepted,
        reachable: answers != Answers::Unseen,
        healthy: !matches!(answers, Answers::NotReady(_)),
        exposed: false,
        cordoned: creo_node.spec.offer.cordon,
        gpus: gpu_pools(creo_node, node, used),
        free: node.map(|node| free(node, used)).unwrap_or_default(),
        taints: node.map(taints).unwrap_or_default(),
        region: creo_node.spec.offer.region.clone(),
        price_micro_per_gpu_hour: creo_node.spec.offer.price_micro_per_gpu_hour,
        backed_off_until_ms: None,
        replicas_here: 0,
    }
}

/// Whether containers can use GPUs of the node that they did not ask for, or no canary has said
/// anything about it yet. One that could not run is no reason to keep a node idle.
#[must_use]
pub fn is_exposed(creo_node: &CreoNode) -> bool {
    let isolation = creo_node
        .status
        .as_ref()
        .and_then(|status| status.isolation.as_ref());
    isolation.is_none_or(|isolation| isolation.verdict == Verdict::Exposed)
}

/// The GPUs that the node claims, as far as the kubelet hands them out and nobody has them: one
/// pool for each resource.
#[must_use]
pub fn gpu_pools(creo_node: &CreoNode, node: Option<&Node>, used: &Usage) -> Vec<GpuPool> {
    let claims = creo_node
        .status
        .as_ref()
        .and_then(|status| status.claims.as_ref());
    claims.map_or_else(Vec::new, |claims| {
        claims.pools(
            |resource| node.map_or(0, |node| node.status.allocatable.of(resource)),
            |resource| used.of(resource),
        )
    })
}

/// What is left on a node beside GPUs.
#[must_use]
pub fn free(node: &Node, used: &Usage) -> market::Amounts {
    let allocatable = &node.status.allocatable;
    market::Amounts {
        cpu_milli: allocatable.cpu_milli,
        memory_bytes: allocatable.memory_bytes,
        ephemeral_storage_bytes: allocatable.ephemeral_storage_bytes,
        pods: allocatable.pods,
    }
    .minus(used.amounts)
}

fn taints(node: &Node) -> Vec<market::Taint> {
    node.spec
        .taints
        .iter()
        .filter_map(|taint| {
            let effect = match taint.effect.as_str() {
                "NoSchedule" => Effect::NoSchedule,
                "PreferNoSchedule" => Effect::PreferNoSchedule,
                "NoExecute" => Effect::NoExecute,
                // There is no other effect today; one of tomorrow is the scheduler's to judge.
                _ => return None,
            };
            Some(market::Taint {
                key: taint.key.clone(),
                value: taint.value.clone(),
                effect,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
