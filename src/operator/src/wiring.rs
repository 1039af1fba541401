//! Which change of which object makes which controller look again.

use std::sync::Arc;
use std::time::Duration;

use creo_api::{AgentDeployment, CreoNode, Placement};
use kube::ResourceExt as _;
use tokio::time::Instant;

use crate::base::cache::Change;
use crate::base::queue::Queue;
use crate::base::slim::{Amounts, Node, Pod, Service};
use crate::base::{Cache, Key};
use crate::deployment::leaving::{deployment_of_pod, found_by};
use crate::deployment::{WaitingForCapacity, owner_of_placement, owner_of_service};
use crate::fleet::usage::{holds_its_place, node_of_live_pod};
use crate::fleet::{Fleet, is_exposed, source_of};
use crate::isolation::node_of_canary;
use crate::placement::owner_of_pod;

/// How long deployments that wait for capacity wait after a change of it: several changes that
/// come together are looked at once.
const SETTLE: Duration = Duration::from_millis(200);

/// The local copies of everything that is watched.
#[derive(Clone)]
pub struct Caches {
    /// All AgentDeployments.
    pub deployments: Arc<Cache<AgentDeployment>>,
    /// The Services that Creo made.
    pub services: Arc<Cache<Service>>,
    /// What capacity is counted from.
    pub fleet: Fleet,
}

impl Caches {
    /// Empty caches with their indexes.
    #[must_use]
    pub fn new(sends_canaries: bool) -> Self {
        Self {
            deployments: Cache::new(|_| Vec::new()),
            services: Cache::new(|service| owner_of_service(service).into_iter().collect()),
            fleet: Fleet {
                creo_nodes: Cache::new(|creo_node| vec![source_of(creo_node)]),
                nodes: Cache::new(|_| Vec::new()),
                pods: Cache::new(|pod| {
                    owner_of_pod(pod)
                        .into_iter()
                        .chain(deployment_of_pod(pod))
                        .collect()
                }),
                placements: Cache::new(|placement| {
                    owner_of_placement(placement).into_iter().collect()
                }),
                sends_canaries,
            },
        }
    }
}

/// The work queues of the controllers.
#[derive(Clone, Default)]
pub struct Queues {
    /// By Kubernetes node.
    pub nodes: Arc<Queue>,
    /// By AgentDeployment.
    pub deployments: Arc<Queue>,
    /// By Kubernetes node; nobody takes from it where no canaries are sent.
    pub isolations: Arc<Queue>,
    /// By Placement.
    pub placements: Arc<Queue>,
    /// Who waits for capacity.
    pub waiting: Arc<WaitingForCapacity>,
}

impl Queues {
    /// There may be more capacity than before.
    fn capacity_changed(&self) {
        let at = Instant::now() + SETTLE;
        for key in self.waiting.keys() {
            self.deployments.add_at(key, at);
        }
    }
}

/// Connects the caches with the queues; before the caches are filled.
pub fn connect(caches: &Caches, queues: &Queues) {
    let to = queues.clone();
    caches.deployments.subscribe(move |change| {
        if let Some(deployment) = change.latest() {
            to.deployments.add(Key::of(deployment.as_ref()));
        }
    });
    let to = queues.clone();
    caches.services.subscribe(move |change| {
        for service in both(change) {
            if let Some(key) = owner_of_service(service) {
                to.deployments.add(key);
            }
        }
    });
    let to = queues.clone();
    caches
        .fleet
        .placements
        .subscribe(move |change| placement_changed(&to, change));
    let to = queues.clone();
    caches
        .fleet
        .pods
        .subscribe(move |change| pod_changed(&to, change));
    let to = queues.clone();
    caches
        .fleet
        .creo_nodes
        .subscribe(move |change| creo_node_changed(&to, change));
    let to = queues.clone();
    let placements = Arc::clone(&caches.fleet.placements);
    caches
        .fleet
        .nodes
        .subscribe(move |change| node_changed(&to, &placements, change));
}

fn both<K>(change: &Change<K>) -> impl Iterator<Item = &K> {
    change.before.iter().chain(&change.after).map(AsRef::as_ref)
}

fn placement_changed(queues: &Queues, change: &Change<Placement>) {
    for placement in both(change) {
        queues.placements.add(Key::of(placement));
        if let Some(key) = owner_of_placement(placement) {
            queues.deployments.add(key);
        }
    }
    let holds =
        |placement: Option<&Arc<Placement>>| placement.is_some_and(|one| holds_its_place(one));
    let (before, after) = (holds(change.before.as_ref()), holds(change.after.as_ref()));
    if before != after {
        if let Some(placement) = change.latest() {
            queues.nodes.add(Key::cluster(
                placement.spec.workload.kubernetes_node.clone(),
            ));
        }
        if before {
            queues.capacity_changed();
        }
    }
}

/// What a pod uses, and where.
fn used(pod: Option<&Arc<Pod>>) -> Option<(&str, &Amounts)> {
    let pod = pod?;
    Some((node_of_live_pod(pod)?, &pod.spec.requests))
}

fn pod_changed(queues: &Queues, change: &Change<Pod>) {
    for pod in both(change) {
        if let Some(key) = owner_of_pod(pod) {
            queues.placements.add(key);
        }
        if let Some(key) = node_of_canary(pod) {
            queues.isolations.add(key);
        }
    }
    let (before, after) = (used(change.before.as_ref()), used(change.after.as_ref()));
    let lives = |pod: &Option<Arc<Pod>>| pod.as_ref().is_some_and(|pod| !pod.has_ended());
    if lives(&change.before) && !lives(&change.after) {
        // The last pod of a Placement that is gone already makes room for the next replica.
        if let Some(key) = change.before.as_deref().and_then(found_by) {
            queues.deployments.add(key);
        }
    }
    if before != after {
        for (node, _) in before.iter().chain(&after) {
            queues.nodes.add(Key::cluster(*node));
        }
        if before.is_some() {
            queues.capacity_changed();
        }
    }
}

fn creo_node_changed(queues: &Queues, change: &Change<CreoNode>) {
    for creo_node in both(change) {
        queues.nodes.add(source_of(creo_node));
        queues.isolations.add(source_of(creo_node));
    }
    let offered = |creo_node: &Option<Arc<CreoNode>>| {
        creo_node.as_ref().map(|one| {
            let status = one.status.as_ref();
            let claims = status.and_then(|status| status.claims.clone());
            (one.spec.clone(), claims, is_exposed(one))
        })
    };
    if offered(&change.before) != offered(&change.after) {
        queues.capacity_changed();
    }
}

fn node_changed(queues: &Queues, placements: &Cache<Placement>, change: &Change<Node>) {
    let differs = match (&change.before, &change.after) {
        (Some(before), Some(after)) => before.differs(after),
        _ => true,
    };
    let Some(node) = change.latest().filter(|_| differs) else {
        return;
    };
    queues.nodes.add(Key::of(node.as_ref()));
    queues.isolations.add(Key::of(node.as_ref()));
    queues.capacity_changed();
    let answers = |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.answers());
    if answers(&change.before) != answers(&change.after) {
        let name = node.name_any();
        for placement in placements.all() {
            if placement.spec.workload.kubernetes_node == name {
                queues.placements.add(Key::of(placement.as_ref()));
            }
        }
    }
}
