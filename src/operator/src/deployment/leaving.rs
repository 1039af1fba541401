//! Replicas whose Placement is gone while their pod still ends: they hold their GPUs, and their
//! seat, until the pod is gone.

use std::sync::Arc;

use creo_api::{AgentDeployment, labels, names};
use creo_market::replicas::{Replica, State};
use kube::ResourceExt as _;

use crate::base::Key;
use crate::base::slim::Pod;
use crate::base::slim::node::Answers;
use crate::fleet::Fleet;
use crate::placement::owner_of_pod;

/// The AgentDeployment that a pod says it belongs to.
#[must_use]
pub fn found_by(pod: &Pod) -> Option<Key> {
    let deployment = pod.labels().get(labels::DEPLOYMENT)?;
    Some(Key::namespaced(
        pod.namespace().unwrap_or_default(),
        deployment,
    ))
}

/// The same as an index of pods, apart from the Placements' names: no name has a '/' in it.
#[must_use]
pub fn deployment_of_pod(pod: &Pod) -> Option<Key> {
    found_by(pod).map(|key| indexed_by(&key))
}

fn indexed_by(deployment: &Key) -> Key {
    Key::namespaced(
        deployment.namespace.clone(),
        format!("deployment/{}", deployment.name),
    )
}

/// The replicas of this very deployment that are on their way out with nothing but a pod left.
/// One on a node that is not seen is not waited for: it may take forever.
#[must_use]
pub fn leaving(deployment: &AgentDeployment, fleet: &Fleet) -> Vec<Replica> {
    let (name, uid) = (deployment.name_any(), deployment.uid().unwrap_or_default());
    let is_ours = |pod: &Arc<Pod>| {
        owner_of_pod(pod).is_some_and(|owner| {
            names::ordinal(&name, &uid, &owner.name).is_some()
                && fleet.placements.get(&owner).is_none()
        })
    };
    fleet
        .pods
        .indexed(&indexed_by(&Key::of(deployment)))
        .into_iter()
        .filter(|pod| !pod.has_ended() && is_ours(pod) && is_seen(pod, fleet))
        .map(|pod| Replica {
            name: pod.name_any(),
            state: State::Starting,
            leaving: true,
            revision: String::new(),
            terms_agree: false,
            created_ms: 0,
        })
        .collect()
}

fn is_seen(pod: &Pod, fleet: &Fleet) -> bool {
    let Some(node) = pod.spec.node_name.as_deref() else {
        return true;
    };
    let node = fleet.nodes.get(&Key::cluster(node));
    node.is_some_and(|node| node.answers() != Answers::Unseen)
}
