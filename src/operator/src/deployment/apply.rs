//! Carries a plan out: first what takes away, then what adds, then what changes. At no moment
//! there are more replicas than wanted, as the plan counts those that are on their way out.

use std::sync::Arc;

use creo_api::AgentDeployment;
use creo_api::placement::{Placement, Workload};
use creo_market::replicas::Roll;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use kube::{Resource as _, ResourceExt as _};
use serde_json::{Map, Value, json};

use super::place::{place, would_find_a_place};
use super::plan::Plan;
use super::status::Obstacle;
use super::validate::Valid;
use super::{Deployments, MANAGER, build};
use crate::base::error::is_not_found;
use crate::base::slim;
use crate::base::slim::metadata::controller;
use crate::base::write::{self, Created};
use crate::base::{Key, ReconcileError};

/// What was done.
#[derive(Debug, Default)]
pub struct Applied {
    /// Whether anything was written.
    pub wrote: bool,
    /// What stood in the way of placing.
    pub obstacle: Option<Obstacle>,
}

impl Deployments {
    /// The Service: made where it is missing, mended where somebody changed it; true when written.
    /// One of a deployment with the uid `gone_owner`, which is no more, is taken over.
    pub(super) async fn apply_service(
        &self,
        deployment: &AgentDeployment,
        gone_owner: Option<&str>,
    ) -> Result<bool, ReconcileError> {
        let key = Key::of(deployment);
        if let Some(there) = self.services.get(&key) {
            let is_ours = ours(deployment, gone_owner, &there)?;
            if is_ours && build::service::is_as_built(&there, deployment) {
                return Ok(false);
            }
        }
        let api = Api::<slim::Service>::namespaced(self.client.clone(), &key.namespace);
        let doing = "applying the Service";
        let live = api
            .get_opt(&key.name)
            .await
            .map_err(|error| ReconcileError::of(doing, error))?;
        match &live {
            Some(live) => {
                ours(deployment, gone_owner, live)?;
            }
            None => self.must_be_there(deployment).await?,
        }
        let mut built = build::service::service(deployment);
        // Exactly the object that was looked at, or a new one.
        built.metadata.uid = live.as_ref().and_then(slim::Service::uid);
        built.metadata.resource_version = live.as_ref().and_then(slim::Service::resource_version);
        let body = applied(&built, doing)?;
        let written = api
            .patch(
                &key.name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(&body),
            )
            .await
            .map_err(|error| ReconcileError::of(doing, error))?;
        self.services.wrote(written);
        Ok(true)
    }

    /// Carries the plan out.
    pub(super) async fn apply(
        &self,
        deployment: &AgentDeployment,
        valid: &Valid,
        placements: &[Arc<Placement>],
        plan: &Plan,
    ) -> Result<Applied, ReconcileError> {
        let mut done = Applied::default();
        let find = |name: &str| placements.iter().find(|one| one.name_any() == name);
        for placement in plan.rule.withdraw.iter().filter_map(|one| find(&one.name)) {
            self.withdraw(placement).await?;
            done.wrote = true;
        }
        let decision = place(
            &self.fleet,
            &self.reservations,
            deployment,
            valid,
            placements,
            plan,
        );
        let created = !decision.create.is_empty();
        done.wrote |= created;
        self.create_all(deployment, decision.create).await?;
        if let Some(refusal) = decision.refusal {
            done.obstacle = Some(Obstacle::NoNode(refusal.to_string()));
        }
        if !created {
            self.roll(deployment, valid, placements, plan, &mut done)
                .await?;
        }
        Ok(done)
    }

    /// Changes one replica. Not beside a new one, which has to show first that what is wanted
    /// works.
    async fn roll(
        &self,
        deployment: &AgentDeployment,
        valid: &Valid,
        placements: &[Arc<Placement>],
        plan: &Plan,
        done: &mut Applied,
    ) -> Result<(), ReconcileError> {
        let find = |name: &str| placements.iter().find(|one| one.name_any() == name);
        match &plan.rule.roll {
            Some(Roll::Update { name }) => {
                if let Some(placement) = find(name) {
                    self.update(deployment, valid, placement).await?;
                    done.wrote = true;
                }
            }
            Some(Roll::Replace { name }) => {
                if let Some(placement) = find(name) {
                    let obstacle = self.replace(valid, placements, plan, placement).await?;
                    done.wrote |= obstacle.is_none();
                    done.obstacle = done.obstacle.take().or(obstacle);
                }
            }
            None => {}
        }
        Ok(())
    }

    async fn create_all(
        &self,
        deployment: &AgentDeployment,
        create: Vec<Placement>,
    ) -> Result<(), ReconcileError> {
        if create.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.must_be_there(deployment).await {
            for placement in create {
                self.reservations.release(&Key::of(&placement));
            }
            return Err(error);
        }
        let mut create = create.into_iter();
        while let Some(placement) = create.next() {
            if let Err(error) = self.create(deployment, &placement).await {
                // What was not tried any more needs no reservation.
                for rest in create {
                    self.reservations.release(&Key::of(&rest));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn create(
        &self,
        deployment: &AgentDeployment,
        placement: &Placement,
    ) -> Result<(), ReconcileError> {
        let key = Key::of(placement);
        let created = write::create(&self.client, placement, "creating a Placement").await;
        let placement: Placement = match created {
            Ok(Created::New(placement) | Created::Existing(placement)) => placement,
            Err(error) => {
                if is_positive(&error) {
                    self.reservations.release(&key);
                } else {
                    self.reservations.leave_in_doubt(&key);
                }
                return Err(error);
            }
        };
        let owner =
            controller(&placement.metadata, "AgentDeployment").map(|(_, uid)| uid.to_owned());
        let is_ours = owner.is_some() && owner == deployment.uid();
        self.placements.wrote(placement);
        self.reservations.release(&key);
        if is_ours {
            return Ok(());
        }
        Err(ReconcileError::NotOurs {
            kind: "Placement",
            name: key.to_string(),
            found: "another AgentDeployment, or nobody, controls it".to_owned(),
        })
    }

    async fn withdraw(&self, placement: &Placement) -> Result<(), ReconcileError> {
        if !write::delete(&self.client, placement, "deleting a Placement").await? {
            self.placements.forget(&Key::of(placement));
        }
        Ok(())
    }

    /// Deletes a Placement whose terms no longer agree, if another would find a place.
    async fn replace(
        &self,
        valid: &Valid,
        placements: &[Arc<Placement>],
        plan: &Plan,
        placement: &Placement,
    ) -> Result<Option<Obstacle>, ReconcileError> {
        let key = Key::of(placement);
        let found = would_find_a_place(
            &self.fleet,
            &self.reservations,
            valid,
            placements,
            plan,
            &key,
        );
        if let Err(refusal) = found {
            return Ok(Some(Obstacle::CannotMove {
                name: key.name,
                refusal: refusal.to_string(),
            }));
        }
        self.withdraw(placement).await?;
        Ok(None)
    }

    /// Gives a Placement the wanted workload; its terms stay.
    async fn update(
        &self,
        deployment: &AgentDeployment,
        valid: &Valid,
        placement: &Placement,
    ) -> Result<(), ReconcileError> {
        let doing = "updating a Placement's workload";
        let old = &placement.spec.workload;
        let new = build::placement::workload(deployment, valid, &old.kubernetes_node);
        let body = json!({
            "metadata": {
                "uid": placement.uid(),
                "resourceVersion": placement.resource_version(),
            },
            "spec": { "workload": replaced(old, &new) },
        });
        let key = Key::of(placement);
        let api = Api::<Placement>::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match api.patch(&key.name, &params, &Patch::Merge(&body)).await {
            Ok(written) => {
                self.placements.wrote(written);
                Ok(())
            }
            Err(error) if is_not_found(&error) => {
                self.placements.forget(&key);
                Ok(())
            }
            Err(error) => Err(ReconcileError::of(doing, error)),
        }
    }
}

/// A merge patch that leaves nothing of the old workload: what the new one lacks is null.
fn replaced(old: &Workload, new: &Workload) -> Value {
    let object = |workload: &Workload| match serde_json::to_value(workload) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let mut patch = object(new);
    for name in object(old).into_iter().map(|(name, _)| name) {
        patch.entry(name).or_insert(Value::Null);
    }
    Value::Object(patch)
}

/// An error that says for certain that nothing was written.
fn is_positive(error: &ReconcileError) -> bool {
    matches!(
        error,
        ReconcileError::Refused { .. }
            | ReconcileError::Deposed { .. }
            | ReconcileError::Conflict { .. }
            | ReconcileError::Invalid(_)
    )
}

/// Whether the Service is this deployment's already; false when it can become so.
fn ours(
    deployment: &AgentDeployment,
    gone_owner: Option<&str>,
    service: &slim::Service,
) -> Result<bool, ReconcileError> {
    let owner = controller(&service.metadata, "AgentDeployment").map(|(_, uid)| uid);
    if owner.is_some() && owner == deployment.uid().as_deref() {
        return Ok(true);
    }
    if owner.is_some() && owner == gone_owner {
        return Ok(false);
    }
    Err(ReconcileError::NotOurs {
        kind: "Service",
        name: Key::of(service).to_string(),
        found: owner.map_or_else(
            || "no AgentDeployment controls it".to_owned(),
            |uid| format!("the AgentDeployment with uid {uid} controls it"),
        ),
    })
}

/// An object as server-side apply takes it, which needs its apiVersion and kind.
fn applied(service: &Service, doing: &'static str) -> Result<Value, ReconcileError> {
    let mut value = serde_json::to_value(service)
        .map_err(|error| ReconcileError::Invalid(format!("{doing}: {error}")))?;
    value["apiVersion"] = Service::api_version(&()).into();
    value["kind"] = Service::kind(&()).into();
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::fixture::deployment;
    use crate::placement::fixture;

    #[test]
    fn a_service_is_taken_over_of_a_deployment_that_is_gone_and_of_nobody_else() {
        let of = |owner: Value| -> slim::Service {
            serde_json::from_value(json!({
                "metadata": {"name": "chat", "namespace": "team", "ownerReferences": owner},
            }))
            .unwrap()
        };
        let controlled_by = |kind: &str, uid: &str| {
            of(json!([{
                "apiVersion": "creo.cloud/v1alpha1", "kind": kind, "name": "chat", "uid": uid,
                "controller": true,
            }]))
        };
        let ours = |gone: Option<&str>, service: &slim::Service| {
            ours(&deployment(json!({})), gone, service).ok()
        };
        assert_eq!(
            ours(None, &controlled_by("AgentDeployment", "c5a1")),
            Some(true)
        );
        assert_eq!(ours(None, &controlled_by("AgentDeployment", "old")), None);
        assert_eq!(
            ours(Some("old"), &controlled_by("AgentDeployment", "old")),
            Some(false)
        );
        assert_eq!(
            ours(Some("old"), &controlled_by("AgentDeployment", "other")),
            None
        );
        assert_eq!(ours(Some("old"), &controlled_by("Gateway", "old")), None);
        assert_eq!(ours(Some("old"), &of(json!([]))), None);
    }

    #[test]
    fn an_update_of_the_workload_leaves_nothing_of_the_old_one() {
        let old = fixture::placement().spec.workload;
        let mut new = old.clone();
        new.args.clear();
        new.revision = "r2".to_owned();
        let patch = replaced(&old, &new);
        assert_eq!(patch["args"], Value::Null);
        assert_eq!(patch["revision"], "r2");
        let mut merged = serde_json::to_value(&old).unwrap();
        for (name, value) in patch.as_object().unwrap() {
            if value.is_null() {
                merged.as_object_mut().unwrap().remove(name);
            } else {
                merged[name] = value.clone();
            }
        }
        assert_eq!(serde_json::from_value::<Workload>(merged).unwrap(), new);
    }
}
