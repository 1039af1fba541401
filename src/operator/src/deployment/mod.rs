//! The controller of AgentDeployments: Placements, one for each replica, and one Service.
//!
//! RBAC, and where it is used:
//!
//! - `agentdeployments` list, watch: what customers want; get: whether one is still there before
//!   anything is created for it, or cleared up after it ([`remains`]). `agentdeployments/status`
//!   patch: what became of it.
//! - `placements` list, watch; create: a replica ([`apply`]); get: whose a Placement is when its
//!   name is taken; patch: the workload of a replica, when the deployment changed; delete: a
//!   replica that is too many, is over, or has terms that no longer agree.
//! - `services` list, watch; get: whose a Service is before it is touched; create and patch:
//!   server-side apply of the one Service.
//! - `creonodes`, `nodes`, `pods` list, watch: what is free where ([`crate::fleet`]).

pub mod apply;
pub mod build;
pub mod leaving;
pub mod place;
pub mod plan;
pub mod remains;
pub mod status;
pub mod validate;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use creo_api::{AgentDeployment, Placement};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::Api;
use kube::{Client, Resource as _, ResourceExt as _};

use crate::base::slim::Service;
use crate::base::slim::metadata::controller;
use crate::base::write::apply_status;
use crate::base::{Cache, Key, Outcome, ReconcileError, Reconciler, Report};
use crate::engine::Engines;
use crate::fleet::{Fleet, Reservations};
use crate::settings::Settings;

use apply::Applied;
use plan::plan;
use remains::{Cleared, Remains};
use status::Findings;
use validate::{Invalid, Valid, validate};

/// Who writes an AgentDeployment's status, its Service and its Placements.
pub const MANAGER: &str = "creo-operator-deployment";

/// How soon it is looked again whether a Service that is somebody else's is gone: the watch is
/// on Creo's own Services only.
const NAME_TAKEN_RETRY: Duration = Duration::from_secs(30);

/// The AgentDeployment that a Placement belongs to, for the Placements' index.
#[must_use]
pub fn owner_of_placement(placement: &Placement) -> Option<Key> {
    let (name, _) = controller(&placement.metadata, "AgentDeployment")?;
    Some(Key::namespaced(
        placement.namespace().unwrap_or_default(),
        name,
    ))
}

/// The AgentDeployment that a Service belongs to, for the Services' index.
#[must_use]
pub fn owner_of_service(service: &Service) -> Option<Key> {
    let (name, _) = controller(&service.metadata, "AgentDeployment")?;
    Some(Key::namespaced(
        service.namespace().unwrap_or_default(),
        name,
    ))
}

/// The deployments that wait for capacity; bounded by the number of deployments.
#[derive(Debug, Default)]
pub struct WaitingForCapacity {
    keys: Mutex<HashSet<Key>>,
}

impl WaitingForCapacity {
    /// The deployments that wait.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.lock().iter().cloned().collect()
    }

    fn set(&self, key: &Key, waits: bool) {
        if waits {
            self.lock().insert(key.clone());
        } else {
            self.lock().remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The controller of AgentDeployments.
pub struct Deployments {
    /// Writes.
    pub client: Client,
    /// What the controllers go by.
    pub settings: Arc<Settings>,
    /// The engine profiles.
    pub engines: Arc<Engines>,
    /// All AgentDeployments.
    pub deployments: Arc<Cache<AgentDeployment>>,
    /// All Placements, by the AgentDeployment that controls them.
    pub placements: Arc<Cache<Placement>>,
    /// The Services that Creo made.
    pub services: Arc<Cache<Service>>,
    /// What is free where.
    pub fleet: Fleet,
    /// What is decided and not yet there.
    pub reservations: Arc<Reservations>,
    /// Who waits for capacity.
    pub waiting: Arc<WaitingForCapacity>,
    /// What deployments left behind.
    pub remains: Remains,
}

/// What one reconcile came to, before the status.
struct Worked {
    valid: Result<Valid, Invalid>,
    applied: Applied,
    again_after: Option<Duration>,
}

impl Reconciler for Deployments {
    const NAME: &'static str = "deployment";

    async fn reconcile(&self, key: &Key) -> Result<Report, ReconcileError> {
        let deployment = self.deployments.get(key);
        let cleared = self.clear_remains(key, deployment.as_deref()).await?;
        let Some(deployment) = deployment.filter(|one| one.metadata.deletion_timestamp.is_none())
        else {
            // What it had goes with it: the API server deletes what it owns.
            self.waiting.set(key, false);
            return Ok(Report {
                again_after: cleared.again_after,
                ..Report::new(Outcome::Gone)
            });
        };
        let now = Timestamp::now();
        let worked = self.work(key, &deployment, &cleared, now).await?;
        self.waiting.set(key, worked.applied.obstacle.is_some());
        let findings = Findings {
            valid: worked.valid.as_ref(),
            placements: &self.own_placements(key, &deployment),
            obstacle: worked.applied.obstacle.clone(),
        };
        let status = status::status(&deployment, &findings, now);
        let before = deployment.status.clone().unwrap_or_default();
        let notes = status::notes(&before.conditions, &status.conditions);
        let differs = deployment.status.as_ref() != Some(&status);
        if differs {
            let api = Api::<AgentDeployment>::namespaced(self.client.clone(), &key.namespace);
            let doing = "writing the deployment's status";
            let written = apply_status(&api, &deployment, &status, MANAGER, doing).await?;
            self.deployments.wrote(written);
        }
        Ok(Report {
            outcome: match (
                worked.applied.wrote || cleared.wrote || differs,
                &findings.obstacle,
            ) {
                (true, _) => Outcome::Changed,
                (false, Some(_)) => Outcome::Waiting,
                (false, None) => Outcome::Settled,
            },
            again_after: earlier(worked.again_after, cleared.again_after),
            notes,
        })
    }

    fn reference(&self, key: &Key) -> Option<ObjectReference> {
        Some(self.deployments.get(key)?.object_ref(&()))
    }
}

fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

impl Deployments {
    /// Observe, validate, plan, build and apply.
    async fn work(
        &self,
        key: &Key,
        deployment: &AgentDeployment,
        cleared: &Cleared,
        now: Timestamp,
    ) -> Result<Worked, ReconcileError> {
        let placements = self.own_placements(key, deployment);
        let valid = match validate(deployment, &self.engines, &self.settings) {
            Ok(valid) => valid,
            Err(invalid) => {
                return Ok(Worked {
                    valid: Err(invalid),
                    applied: Applied::default(),
                    again_after: None,
                });
            }
        };
        let gone_owner = cleared.gone_owner.as_deref();
        let service = match self.apply_service(deployment, gone_owner).await {
            Err(error @ ReconcileError::NotOurs { .. }) => {
                let message = error.to_string();
                return Ok(Worked {
                    valid: Err(Invalid {
                        reason: "NameTaken",
                        message,
                    }),
                    applied: Applied::default(),
                    again_after: Some(NAME_TAKEN_RETRY),
                });
            }
            other => other?,
        };
        let region_of = |node: &str| {
            let node = self.fleet.creo_nodes.get(&Key::cluster(node))?;
            Some(node.spec.offer.region.clone())
        };
        let leaving = leaving::leaving(deployment, &self.fleet);
        let plan = plan(&valid, &placements, leaving, region_of, now);
        let mut applied = self.apply(deployment, &valid, &placements, &plan).await?;
        applied.wrote |= service;
        Ok(Worked {
            valid: Ok(valid),
            applied,
            again_after: plan.again_after,
        })
    }

    /// The Placements that this very deployment controls, by name.
    fn own_placements(&self, key: &Key, deployment: &AgentDeployment) -> Vec<Arc<Placement>> {
        let uid = deployment.uid();
        self.placements
            .indexed(key)
            .into_iter()
            .filter(|one| {
                controller(&one.metadata, "AgentDeployment").map(|(_, uid)| uid) == uid.as_deref()
            })
            .collect()
    }
}
