//! The controller that sends canaries: whether a node's container runtime keeps containers from
//! GPUs that they did not ask for.
//!
//! A runtime that honours `NVIDIA_VISIBLE_DEVICES` by default gives every GPU to whoever sets the
//! variable. No device plugin can close that hole and none sees it, so a pod that asks for no GPU
//! sets the variable and tries to open every GPU: once for each start of the machine, version of
//! its container runtime and image of the canary; again from time to time; and soon again where
//! it found the hole, so that a runtime that was put right is not shut out for long.
//!
//! Nothing is placed on a node before its first canary has spoken. A canary that cannot run for
//! [`plan::PATIENCE`] is given up and the node is used all the same, since a full node or an image
//! that cannot be pulled is no hole; but a hole that was found stays one until a canary says
//! otherwise.
//!
//! RBAC, and where it is used:
//!
//! - `pods` list, watch, create, delete, and get where the name is taken: one canary a node at a
//!   time, in the operator's own namespace.
//! - `creonodes` list, watch; `creonodes/status` patch: `status.isolation`, by server-side apply
//!   with a manager of its own. The conditions that follow from it are the node controller's.
//! - `nodes` list, watch: the start of the machine and the version of its runtime.

pub mod build;
pub mod plan;

use std::sync::Arc;

use creo_api::creo_node::Isolation;
use creo_api::{CreoNode, CreoNodeStatus};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::{Client, Resource as _, ResourceExt as _};

use crate::base::error::is_not_found;
use crate::base::slim::Pod;
use crate::base::write::{self, Created, apply_status};
use crate::base::{Key, Outcome, ReconcileError, Reconciler, Report};
use crate::fleet::{Fleet, primary};
use crate::settings::Canaries;

use build::pod::{name, node_of, pod};
use plan::{Observed, Step, plan};

/// Who writes what canaries found.
pub const MANAGER: &str = "creo-operator-isolation";

/// The controller of canaries; its objects are Kubernetes nodes, by name.
pub struct Isolations {
    /// Writes.
    pub client: Client,
    /// How canaries are sent.
    pub canaries: Canaries,
    /// All CreoNodes, nodes and pods.
    pub fleet: Fleet,
}

/// The Kubernetes node that a pod is a canary of, for the controller's queue.
#[must_use]
pub fn node_of_canary(pod: &Pod) -> Option<Key> {
    node_of(&pod.metadata).map(Key::cluster)
}

impl Reconciler for Isolations {
    const NAME: &'static str = "isolation";

    async fn reconcile(&self, key: &Key) -> Result<Report, ReconcileError> {
        let observed = self.observe(key);
        let plan = plan(&observed, &self.canaries, Timestamp::now());
        let acted = self.apply(key, &observed, plan.step).await?;
        let mut report = Report::new(if acted {
            Outcome::Changed
        } else {
            Outcome::Settled
        });
        report.again_after = plan.again_after;
        Ok(report)
    }

    fn reference(&self, key: &Key) -> Option<ObjectReference> {
        let of_one_source = self.fleet.creo_nodes.indexed(key);
        Some(primary(&of_one_source)?.object_ref(&()))
    }
}

impl Isolations {
    fn observe(&self, key: &Key) -> Observed {
        let of_one_source = self.fleet.creo_nodes.indexed(key);
        let canary = Key::namespaced(self.canaries.namespace.clone(), name(&key.name));
        Observed {
            creo_node: primary(&of_one_source).map(Arc::clone),
            node: self.fleet.nodes.get(key),
            canary: self.fleet.pods.get(&canary),
        }
    }

    /// Does the step; true when something was written.
    async fn apply(
        &self,
        key: &Key,
        observed: &Observed,
        step: Step,
    ) -> Result<bool, ReconcileError> {
        match (step, &observed.creo_node) {
            (Step::Delete { pod }, _) => {
                let doing = "deleting the canary";
                if !write::delete(&self.client, pod.as_ref(), doing).await? {
                    self.fleet.pods.forget(&Key::of(pod.as_ref()));
                }
                Ok(true)
            }
            (Step::Create { sought }, Some(creo_node)) => {
                let canary = pod(creo_node, &key.name, &sought, &self.canaries);
                let created = write::create(&self.client, &canary, "sending a canary").await?;
                self.adopt(key, created)?;
                Ok(true)
            }
            (Step::Record { isolation }, Some(creo_node)) => {
                self.record(creo_node, isolation).await
            }
            (Step::Nothing, _) | (Step::Create { .. } | Step::Record { .. }, None) => Ok(false),
        }
    }

    /// Takes a created canary in, or one that has its name and is of this node.
    fn adopt(&self, key: &Key, created: Created<Pod>) -> Result<(), ReconcileError> {
        let pod = match created {
            Created::New(pod) => pod,
            Created::Existing(pod) => {
                if node_of_canary(&pod).as_ref() != Some(key) {
                    return Err(ReconcileError::NotOurs {
                        kind: "Pod",
                        name: pod.name_any(),
                        found: "it is no canary of this node".to_owned(),
                    });
                }
                pod
            }
        };
        self.fleet.pods.wrote(pod);
        Ok(())
    }

    async fn record(
        &self,
        creo_node: &CreoNode,
        isolation: Isolation,
    ) -> Result<bool, ReconcileError> {
        let status = CreoNodeStatus {
            isolation: Some(isolation),
            ..CreoNodeStatus::default()
        };
        let api = Api::<CreoNode>::all(self.client.clone());
        let doing = "writing what the canary found";
        match apply_status(&api, creo_node, &status, MANAGER, doing).await {
            Ok(written) => {
                self.fleet.creo_nodes.wrote(written);
                Ok(true)
            }
            Err(ReconcileError::Kube { source, .. }) if is_not_found(&source) => {
                let gone = Key::cluster(creo_node.name_any());
                self.fleet.creo_nodes.forget(&gone);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
