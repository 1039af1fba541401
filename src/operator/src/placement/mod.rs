//! The controller of Placements: one pod for each.
//!
//! It reads the Placement, the pods that the Placement controls and the Kubernetes node that they
//! are on, and nothing else of Creo, so that the same code can run where there is no other kind.
//!
//! RBAC, and where it is used:
//!
//! - `placements` list, watch: what is to run. `placements/status` patch: how it is
//!   ([`apply_status`]).
//! - `pods` list, watch: how the pods are; create: the pod of an attempt; get: whose a pod is
//!   when its name is taken ([`write::create`]); delete: a pod that ended, was replaced or is not
//!   wanted any more, with uid and resource version ([`write::delete`]).
//! - `nodes` list, watch: whether a node answers; get: before a node is said to be gone
//!   ([`Sights::look`]).

pub mod build;
pub mod plan;
pub mod status;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use creo_api::Placement;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::{Client, Resource as _, ResourceExt as _};

use crate::base::slim::metadata::controller;
use crate::base::slim::node::Answers;
use crate::base::slim::{Node, Pod};
use crate::base::write::{self, Created, apply_status};
use crate::base::{Cache, Key, Outcome, ReconcileError, Reconciler, Report};
use crate::settings::Settings;

use plan::{NodeSight, Observed, Step, plan};

/// Who writes a Placement's status.
pub const MANAGER: &str = "creo-operator-placement";

/// The Placement that a pod belongs to, for the pods' index.
#[must_use]
pub fn owner_of_pod(pod: &Pod) -> Option<Key> {
    let (name, _) = controller(&pod.metadata, "Placement")?;
    Some(Key::namespaced(pod.namespace().unwrap_or_default(), name))
}

/// The controller of Placements.
pub struct Placements {
    /// Writes.
    pub client: Client,
    /// What the controllers go by.
    pub settings: Arc<Settings>,
    /// All Placements.
    pub placements: Arc<Cache<Placement>>,
    /// All pods, by the Placement that controls them.
    pub pods: Arc<Cache<Pod>>,
    /// All Kubernetes nodes.
    pub nodes: Arc<Cache<Node>>,
}

impl Reconciler for Placements {
    const NAME: &'static str = "placement";

    async fn reconcile(&self, key: &Key) -> Result<Report, ReconcileError> {
        let Some(observed) = self.observe(key).await? else {
            return Ok(Report::new(Outcome::Gone));
        };
        let now = Timestamp::now();
        let plan = plan(&observed, self.settings.unschedulable_timeout, now);
        let acted = self.apply(&observed.placement, &plan.step).await?;
        let wrote = self
            .status(key, &observed.placement, &plan.view, now)
            .await?;
        Ok(Report {
            outcome: if acted || wrote {
                Outcome::Changed
            } else {
                Outcome::Settled
            },
            again_after: plan.again_after,
            notes: status::notes(&observed.placement, &plan.view),
        })
    }

    fn reference(&self, key: &Key) -> Option<ObjectReference> {
        Some(self.placements.get(key)?.object_ref(&()))
    }
}

impl Placements {
    async fn observe(&self, key: &Key) -> Result<Option<Observed>, ReconcileError> {
        let Some(placement) = self.placements.get(key) else {
            return Ok(None);
        };
        let uid = placement.uid();
        let mut pods: Vec<Arc<Pod>> = self
            .pods
            .indexed(key)
            .into_iter()
            .filter(|pod| {
                controller(&pod.metadata, "Placement").map(|(_, uid)| uid) == uid.as_deref()
            })
            .collect();
        plan::sort_by_attempt(&mut pods);
        let node = self.look(&placement.spec.workload.kubernetes_node).await?;
        Ok(Some(Observed {
            placement,
            pods,
            node,
        }))
    }

    /// How the node is. One that the cache does not have is asked for, because only the API
    /// server's own "not found" may end what runs on it.
    async fn look(&self, node: &str) -> Result<NodeSight, ReconcileError> {
        let sight = |node: &Node| match node.answers() {
            Answers::Ready | Answers::NotReady(_) => NodeSight::Seen,
            Answers::Unseen => NodeSight::Unseen,
        };
        if let Some(node) = self.nodes.get(&Key::cluster(node)) {
            return Ok(sight(&node));
        }
        let live = Api::<Node>::all(self.client.clone())
            .get_opt(node)
            .await
            .map_err(|error| ReconcileError::of("asking whether the node exists", error))?;
        Ok(live.as_ref().map_or(NodeSight::Gone, sight))
    }

    /// Does the step; true when something was written.
    async fn apply(&self, placement: &Placement, step: &Step) -> Result<bool, ReconcileError> {
        match step {
            Step::Nothing => Ok(false),
            Step::Create { attempt } => {
                let pod = build::pod::pod(placement, *attempt);
                let created =
                    write::create::<_, Pod>(&self.client, &pod, "creating the pod").await?;
                self.adopt(placement, created)?;
                Ok(true)
            }
            Step::Delete { pod } => {
                if !write::delete(&self.client, pod.as_ref(), "deleting the pod").await? {
                    self.pods.forget(&Key::of(pod.as_ref()));
                }
                Ok(true)
            }
        }
    }

    /// Takes a created pod in, or one that has its name and is ours.
    fn adopt(&self, placement: &Placement, created: Created<Pod>) -> Result<(), ReconcileError> {
        let pod = match created {
            Created::New(pod) => pod,
            Created::Existing(pod) => {
                let owner = controller(&pod.metadata, "Placement").map(|(_, uid)| uid);
                if owner != placement.uid().as_deref() {
                    return Err(ReconcileError::NotOurs {
                        kind: "Pod",
                        name: pod.name_any(),
                        found: owner.map_or_else(
                            || "no Placement controls it".to_owned(),
                            |uid| format!("the Placement with uid {uid} controls it"),
                        ),
                    });
                }
                pod
            }
        };
        self.pods.wrote(pod);
        Ok(())
    }

    /// Writes the status where it differs; true when it was written.
    async fn status(
        &self,
        key: &Key,
        placement: &Placement,
        view: &plan::View,
        now: Timestamp,
    ) -> Result<bool, ReconcileError> {
        let status = status::status(placement, view, now);
        if placement.status.as_ref() == Some(&status) {
            return Ok(false);
        }
        let api = Api::<Placement>::namespaced(self.client.clone(), &key.namespace);
        let doing = "writing the placement's status";
        match apply_status(&api, placement, &status, MANAGER, doing).await {
            Ok(written) => {
                self.placements.wrote(written);
                Ok(true)
            }
            Err(ReconcileError::Kube { source, .. })
                if crate::base::error::is_not_found(&source) =>
            {
                // Deleted in between: the watch tells, and the pod goes with its owner.
                self.placements.forget(key);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
