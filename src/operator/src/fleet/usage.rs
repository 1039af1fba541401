//! What is used on each Kubernetes node.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use creo_api::Placement;
use creo_api::placement::Phase;
use creo_market::placement::Amounts;
use kube::ResourceExt as _;

use super::Reservation;
use crate::base::Key;
use crate::base::slim::Pod;
use crate::placement::owner_of_pod;

/// What is used on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU, memory, storage and pods.
    pub amounts: Amounts,
    /// Units of each extended resource.
    pub extended: BTreeMap<String, i64>,
}

impl Usage {
    /// How much of an extended resource is used.
    #[must_use]
    pub fn of(&self, resource: &str) -> i64 {
        self.extended.get(resource).copied().unwrap_or(0)
    }

    fn add(&mut self, amounts: Amounts, extended: impl Iterator<Item = (String, i64)>) {
        self.amounts = self.amounts.plus(amounts);
        for (resource, count) in extended {
            let used = self.extended.entry(resource).or_default();
            *used = used.saturating_add(count);
        }
    }
}

/// Whether a Placement still needs its place: it has not come to its end.
#[must_use]
pub fn holds_its_place(placement: &Placement) -> bool {
    let phase = placement.status.as_ref().and_then(|status| status.phase);
    !matches!(phase, Some(Phase::Withdrawn | Phase::Ended))
}

/// Whether a pod uses something of a node.
#[must_use]
pub fn node_of_live_pod(pod: &Pod) -> Option<&str> {
    pod.spec.node_name.as_deref().filter(|_| !pod.has_ended())
}

/// What is used on each node: by its pods, whoever owns them; by the Placements that have no
/// pod there (yet, or between two attempts); and by those that are being made.
#[must_use]
pub fn by_node(
    pods: &[Arc<Pod>],
    placements: &[Arc<Placement>],
    reserved: &[Reservation],
    without: Option<&Key>,
) -> HashMap<String, Usage> {
    let mut usage: HashMap<String, Usage> = HashMap::new();
    let mut have_a_pod: HashSet<Key> = HashSet::new();
    for pod in pods {
        let owner = owner_of_pod(pod);
        let Some(node) =
            node_of_live_pod(pod).filter(|_| owner.is_none() || owner.as_ref() != without)
        else {
            continue;
        };
        have_a_pod.extend(owner);
        let asked = &pod.spec.requests;
        usage.entry(node.to_owned()).or_default().add(
            Amounts {
                cpu_milli: asked.cpu_milli,
                memory_bytes: asked.memory_bytes,
                ephemeral_storage_bytes: asked.ephemeral_storage_bytes,
                pods: 1,
            },
            asked
                .extended
                .iter()
                .map(|(name, count)| (name.clone(), *count)),
        );
    }
    let mut known: HashSet<Key> = HashSet::new();
    for placement in placements {
        let key = Key::of(placement.as_ref());
        let counts =
            holds_its_place(placement) && !have_a_pod.contains(&key) && without != Some(&key);
        known.insert(key);
        if counts {
            let asked = Reservation::of(placement);
            usage
                .entry(asked.kubernetes_node.clone())
                .or_default()
                .add(asked.amounts, asked.gpus());
        }
    }
    for asked in reserved
        .iter()
        .filter(|asked| !known.contains(&asked.placement))
    {
        usage
            .entry(asked.kubernetes_node.clone())
            .or_default()
            .add(asked.amounts, asked.gpus());
    }
    usage
}

impl Reservation {
    /// What a Placement needs of its node.
    #[must_use]
    pub fn of(placement: &Placement) -> Self {
        let resources = &placement.spec.workload.resources;
        let gpu = &placement.spec.terms.gpu;
        Self {
            placement: Key::namespaced(
                placement.namespace().unwrap_or_default(),
                placement.name_any(),
            ),
            kubernetes_node: placement.spec.workload.kubernetes_node.clone(),
            amounts: Amounts {
                cpu_milli: resources.cpu_milli,
                memory_bytes: resources.memory_bytes,
                ephemeral_storage_bytes: resources.ephemeral_storage_bytes,
                pods: 1,
            },
            gpu_resource: gpu.resource.clone(),
            gpu_count: i64::from(gpu.count),
        }
    }

    fn gpus(&self) -> impl Iterator<Item = (String, i64)> + use<> {
        std::iter::once((self.gpu_resource.clone(), self.gpu_count))
    }
}
