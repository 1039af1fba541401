//! The controller of CreoNodes: hub nodes with GPUs are offered by themselves, and every
//! CreoNode says how its node is.
//!
//! It creates a CreoNode once and never changes its specification, which is people's. It never
//! deletes one: a node that is gone may come back, and a person decides.
//!
//! RBAC, and where it is used:
//!
//! - `nodes` list, watch: capacity and conditions; get: before a node is said to be gone.
//! - `creonodes` list, watch; create: the offer of a hub node; get: when its name is taken.
//! - `creonodes/status` patch: conditions, capacity and service class by server-side apply; the
//!   claims in it are the device plugin's own.
//! - `pods`, `placements` list, watch: what is used on the node.

pub mod build;
pub mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use creo_api::{CreoNode, CreoNodeStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::{Client, Resource as _, ResourceExt as _};
use tokio::time::Instant;

use crate::base::error::is_not_found;
use crate::base::slim::Node;
use crate::base::write::{self, Created, apply_status};
use crate::base::{Key, Outcome, ReconcileError, Reconciler, Report};
use crate::fleet::{Fleet, Reservations, Usage, primary};
use crate::settings::Settings;

use build::creo_node::{creo_node, has_gpus};
use status::{Sight, notes, status};

/// Who writes a CreoNode's status beside the claims.
pub const MANAGER: &str = "creo-operator-node";

/// How often a CreoNode's status is written at most: many pods may start at once.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The controller of CreoNodes; its objects are Kubernetes nodes, by name.
pub struct CreoNodes {
    client: Client,
    settings: Arc<Settings>,
    fleet: Fleet,
    reservations: Arc<Reservations>,
    /// When each status was written last; bounded by the number of CreoNodes.
    written: Mutex<HashMap<String, Instant>>,
}

/// Everything about one Kubernetes node.
struct Observed {
    node: Option<Node>,
    creo_nodes: Vec<Arc<CreoNode>>,
    used: Usage,
}

impl Reconciler for CreoNodes {
    const NAME: &'static str = "node";

    async fn reconcile(&self, key: &Key) -> Result<Report, ReconcileError> {
        let observed = self.observe(key).await?;
        if observed.creo_nodes.is_empty() {
            return self.offer(observed.node.as_ref()).await;
        }
        let now = Timestamp::now();
        let oldest = primary(&observed.creo_nodes).map(|oldest| oldest.name_any());
        let mut report = Report::new(Outcome::Settled);
        for creo_node in &observed.creo_nodes {
            let sight = Sight {
                node: observed.node.as_ref(),
                used: &observed.used,
                older_twin: oldest
                    .as_deref()
                    .filter(|oldest| *oldest != creo_node.name_any()),
                sends_canaries: self.fleet.sends_canaries,
            };
            self.apply(creo_node, status(creo_node, &sight, now), &mut report)
                .await?;
        }
        Ok(report)
    }

    fn reference(&self, key: &Key) -> Option<ObjectReference> {
        let of_one_source = self.fleet.creo_nodes.indexed(key);
        Some(primary(&of_one_source)?.object_ref(&()))
    }
}

impl CreoNodes {
    /// The controller.
    #[must_use]
    pub fn new(
        client: Client,
        settings: Arc<Settings>,
        fleet: Fleet,
        reservations: Arc<Reservations>,
    ) -> Self {
        Self {
            client,
            settings,
            fleet,
            reservations,
            written: Mutex::default(),
        }
    }

    async fn observe(&self, key: &Key) -> Result<Observed, ReconcileError> {
        let creo_nodes = self.fleet.creo_nodes.indexed(key);
        let node = match self.fleet.nodes.get(key) {
            Some(node) => Some(Node::clone(&node)),
            // Only the API server's own "not found" makes a node gone.
            None => Api::<Node>::all(self.client.clone())
                .get_opt(&key.name)
                .await
                .map_err(|error| ReconcileError::of("asking whether the node exists", error))?,
        };
        let reserved = self
            .reservations
            .decide(|others| (others.to_vec(), Vec::new()));
        let used = self
            .fleet
            .usage(&reserved, None)
            .remove(&key.name)
            .unwrap_or_default();
        Ok(Observed {
            node,
            creo_nodes,
            used,
        })
    }

    /// Offers a hub node that has GPUs and is not offered yet.
    async fn offer(&self, node: Option<&Node>) -> Result<Report, ReconcileError> {
        let Some(node) = node else {
            return Ok(Report::new(Outcome::Gone));
        };
        if !has_gpus(node) {
            return Ok(Report::new(Outcome::Settled));
        }
        let offered = creo_node(node, &self.settings.hub_offer);
        let created = write::create(&self.client, &offered, "offering the node").await?;
        match created {
            Created::New(created) => {
                self.fleet.creo_nodes.wrote(created);
                Ok(Report::new(Outcome::Changed))
            }
            Created::Existing(existing) => {
                let existing: CreoNode = existing;
                let source = existing.spec.source.kubernetes_node.clone();
                self.fleet.creo_nodes.wrote(existing);
                if source == node.name_any() {
                    return Ok(Report::new(Outcome::Settled));
                }
                Err(ReconcileError::Invalid(format!(
                    "node {} has GPUs and cannot be offered: CreoNode {} offers node {source}; create a CreoNode of another name for it",
                    node.name_any(),
                    offered.name_any()
                )))
            }
        }
    }

    /// Writes the status where it differs, at most once a second for each CreoNode.
    async fn apply(
        &self,
        creo_node: &CreoNode,
        mut wanted: CreoNodeStatus,
        report: &mut Report,
    ) -> Result<(), ReconcileError> {
        let before = creo_node.status.clone().unwrap_or_default();
        wanted.claims.clone_from(&before.claims);
        wanted.isolation.clone_from(&before.isolation);
        if wanted == before {
            return Ok(());
        }
        let name = creo_node.name_any();
        if let Some(wait) = self.wait_for_turn(&name) {
            report.again_after = Some(report.again_after.map_or(wait, |other| other.min(wait)));
            return Ok(());
        }
        report.notes.extend(notes(&before, &wanted));
        wanted.claims = None;
        wanted.isolation = None;
        let api = Api::<CreoNode>::all(self.client.clone());
        let doing = "writing the CreoNode's status";
        match apply_status(&api, creo_node, &wanted, MANAGER, doing).await {
            Ok(written) => {
                self.fleet.creo_nodes.wrote(written);
                report.outcome = Outcome::Changed;
                Ok(())
            }
            Err(ReconcileError::Kube { source, .. }) if is_not_found(&source) => {
                self.fleet.creo_nodes.forget(&Key::cluster(name));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// How long this CreoNode has to wait for its next write; none when its turn is now, which
    /// is then taken.
    fn wait_for_turn(&self, name: &str) -> Option<Duration> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        written.retain(|_, at| now.duration_since(*at) < WRITE_INTERVAL);
        if let Some(at) = written.get(name) {
            return Some(WRITE_INTERVAL.saturating_sub(now.duration_since(*at)));
        }
        written.insert(name.to_owned(), now);
        None
    }
}
