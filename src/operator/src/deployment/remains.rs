//! What a deployment left behind that is no more.
//!
//! The garbage collector of Kubernetes deletes it, mostly within a second. It can miss a
//! deployment that was deleted and made again under its name while the collector's own watch was
//! broken: then GPUs would be held for good, and the Service's name with them. So what is still
//! there after a while is cleared up here, on the API server's own word that its owner is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use creo_api::{AgentDeployment, Placement};
use kube::ResourceExt as _;
use kube::api::Api;
use tokio::time::Instant;

use super::Deployments;
use crate::base::slim::metadata::controller;
use crate::base::write;
use crate::base::{Key, ReconcileError};

/// How long the garbage collector is waited for.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Since when there is something left, by the name of the deployment; bounded by the number of
/// names under which there is.
#[derive(Debug, Default)]
pub struct Remains {
    since: Mutex<HashMap<Key, Instant>>,
}

impl Remains {
    /// How long there has been something left under this name, `now` included; `None` when there
    /// is nothing.
    fn age(&self, key: &Key, is_there: bool, now: Instant) -> Option<Duration> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_there {
            since.remove(key);
            return None;
        }
        let began = *since.entry(key.clone()).or_insert(now);
        Some(now.saturating_duration_since(began))
    }
}

/// What was done about what is left.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Whether anything was deleted.
    pub wrote: bool,
    /// The uid of the deployment that controls the Service of this name, if it is gone.
    pub gone_owner: Option<String>,
    /// When to look again.
    pub again_after: Option<Duration>,
}

/// Whether an owner of this uid is positively gone, when the API server has `live` under its name.
fn is_gone(owner: &str, live: Option<&str>) -> bool {
    live != Some(owner)
}

impl Deployments {
    /// Deletes Placements whose deployment is gone, once the garbage collector had its time.
    pub(super) async fn clear_remains(
        &self,
        key: &Key,
        deployment: Option<&AgentDeployment>,
    ) -> Result<Cleared, ReconcileError> {
        let uid = deployment.and_then(|deployment| deployment.metadata.uid.as_deref());
        let placements = self.placements_of_others(key, uid);
        let service_owner = self.services.get(key).and_then(|service| {
            let (_, owner) = controller(&service.metadata, "AgentDeployment")?;
            is_gone(owner, uid).then(|| owner.to_owned())
        });
        let is_there = !placements.is_empty() || service_owner.is_some();
        let Some(age) = self.remains.age(key, is_there, Instant::now()) else {
            return Ok(Cleared::default());
        };
        if let Some(left) = PATIENCE.checked_sub(age).filter(|left| !left.is_zero()) {
            return Ok(Cleared {
                again_after: Some(left),
                ..Cleared::default()
            });
        }
        let live = self.live_uid(key).await?;
        let mut cleared = Cleared {
            again_after: Some(PATIENCE),
            gone_owner: service_owner.filter(|owner| is_gone(owner, live.as_deref())),
            ..Cleared::default()
        };
        for (owner, placement) in placements {
            if is_gone(&owner, live.as_deref()) {
                let doing = "deleting a Placement whose deployment is gone";
                if !write::delete(&self.client, placement.as_ref(), doing).await? {
                    self.placements.forget(&Key::of(placement.as_ref()));
                }
                cleared.wrote = true;
            }
        }
        Ok(cleared)
    }

    /// Fails unless this very deployment is there and is to stay: what is created for one that is
    /// gone would be left behind. The local copies may say so later than those of the children.
    pub(super) async fn must_be_there(
        &self,
        deployment: &AgentDeployment,
    ) -> Result<(), ReconcileError> {
        let key = Key::of(deployment);
        if self.live_uid(&key).await? == deployment.uid() {
            return Ok(());
        }
        Err(ReconcileError::Outdated {
            name: key.to_string(),
        })
    }

    /// The uid of the deployment that the API server has under this name now. One that is being
    /// deleted is there for its children, and for nothing new.
    async fn live_uid(&self, key: &Key) -> Result<Option<String>, ReconcileError> {
        let api = Api::<AgentDeployment>::namespaced(self.client.clone(), &key.namespace);
        let doing = "asking whether the deployment exists";
        let live = api
            .get_metadata_opt(&key.name)
            .await
            .map_err(|error| ReconcileError::of(doing, error))?;
        Ok(live.and_then(|live| live.metadata.uid))
    }

    /// The Placements under this name that are another deployment's, with its uid.
    fn placements_of_others(&self, key: &Key, uid: Option<&str>) -> Vec<(String, Arc<Placement>)> {
        self.placements
            .indexed(key)
            .into_iter()
            .filter(|placement| placement.metadata.deletion_timestamp.is_none())
            .filter_map(|placement| {
                let (_, owner) = controller(&placement.metadata, "AgentDeployment")?;
                is_gone(owner, uid).then(|| (owner.to_owned(), Arc::clone(&placement)))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_grows_older_until_it_is_gone() {
        let (remains, key, began) = (
            Remains::default(),
            Key::namespaced("team", "chat"),
            Instant::now(),
        );
        let after = |seconds| began + Duration::from_secs(seconds);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(remains.age(&key, false, after(0)), None);
        assert_eq!(remains.age(&key, true, after(1)), seconds(0));
        assert_eq!(remains.age(&key, true, after(12)), seconds(11));
        assert_eq!(remains.age(&key, false, after(13)), None);
        assert_eq!(
            remains.age(&key, true, after(14)),
            seconds(0),
            "it is another one"
        );
        assert!(remains.since.lock().unwrap().len() == 1);
    }

    #[test]
    fn only_the_owner_itself_keeps_what_it_owns() {
        assert!(!is_gone("a", Some("a")));
        assert!(is_gone("a", Some("b")), "another one has its name");
        assert!(is_gone("a", None));
    }
}
