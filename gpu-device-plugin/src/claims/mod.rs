//! What this node says of itself to the hub: `status.claims` of its own CreoNode.
//!
//! Written by server-side apply under a field manager of its own, and only where it differs
//! from what is there; so a plugin that starts again writes nothing, and what somebody else
//! changed is put right. Only the node's own object is watched.

mod describe;
mod out_of_service;
mod pace;

pub use describe::claims;
use describe::with_first;
pub use out_of_service::ANNOTATION;

use std::collections::BTreeSet;
use std::time::Duration;

use creo_api::CreoNode;
use creo_api::creo_node::Claims;
use creo_process::client::WATCH_SECONDS;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, watcher::Event};
use kube::{Api, Client, Resource as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::driver::Snapshot;
use crate::metrics::Metrics;
use crate::processes::Uses;
use crate::resource::Resource;
use crate::unit::Offered;
use pace::Pace;

/// The plugin's name in the bookkeeping of server-side apply.
pub const FIELD_MANAGER: &str = "creo-gpu-device-plugin";

/// How long the first claims wait for a decision on what is offered. Without GPUs there is none.
const DECIDING: Duration = Duration::from_millis(500);

/// The part of a CreoNode that the plugin reads. Whatever else an object holds, and whatever
/// newer versions add to it, cannot keep the plugin from reading this.
#[derive(Clone, Debug, Deserialize, kube::Resource)]
#[resource(inherit = "CreoNode")]
struct OwnNode {
    metadata: ObjectMeta,
    status: Option<OwnStatus>,
}

#[derive(Clone, Debug, Deserialize)]
struct OwnStatus {
    claims: Option<Value>,
}

/// What is applied: the claims and nothing else, since what is left out of an apply is
/// nobody's business of ours.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Applied<'a> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    status: AppliedStatus<'a>,
}

#[derive(Debug, Serialize)]
struct AppliedStatus<'a> {
    claims: &'a Claims,
}

/// Tells the hub what is there.
pub struct Claiming {
    /// The hub.
    pub client: Client,
    /// Name of this node and of its CreoNode.
    pub node_name: String,
    /// The resource that is offered.
    pub resource: Resource,
    /// What the driver says.
    pub snapshots: watch::Receiver<Snapshot>,
    /// What of it is offered to the kubelet.
    pub offered: watch::Receiver<Offered>,
    /// Whose processes run on it.
    pub uses: watch::Receiver<Uses>,
    /// Why a new configuration is not in effect, where it is not.
    pub refused: watch::Receiver<Option<String>>,
    /// What a person took out of service at the node's object, for whoever offers.
    pub out_of_service: watch::Sender<BTreeSet<String>>,
    /// Counts writes.
    pub metrics: Metrics,
}

/// What is known of the node's own object.
#[derive(Debug, Default)]
enum Present {
    /// It was not looked at yet, or it is not there.
    #[default]
    No,
    /// It is there with these claims.
    Yes(Option<Value>),
}

impl Present {
    /// What is claimed there; nothing where the object is not there.
    fn claims(&self) -> Option<&Value> {
        match self {
            Self::No => None,
            Self::Yes(claims) => claims.as_ref(),
        }
    }
}

impl Claiming {
    /// Tells the hub every change until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let claiming = async {
            // Nothing is claimed before the driver has answered: a plugin that starts again
            // must not say for a moment that all GPUs are gone.
            if self.snapshots.changed().await.is_ok() {
                // That it is not decided how they are offered is worth a write only if it lasts.
                let _ = timeout(DECIDING, self.offered.changed()).await;
                self.claim().await;
            }
        };
        tokio::select! {
            () = claiming => {}
            () = stop.cancelled() => {}
        }
    }

    async fn claim(&mut self) {
        let nodes: Api<OwnNode> = Api::all(self.client.clone());
        let own = watcher::Config::default()
            .fields(&format!("metadata.name={}", self.node_name))
            .timeout(WATCH_SECONDS);
        let mut events = watcher(nodes.clone(), own).default_backoff().boxed();
        let mut wanted = self.wanted();
        let mut present = Present::default();
        let mut pace = Pace::new(Instant::now());
        loop {
            remember(&mut wanted, present.claims());
            let differs =
                matches!(&present, Present::Yes(there) if *there != Some(as_json(&wanted)));
            let next_write = pace.next(can_wait(present.claims(), &wanted));
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut present),
                    Ok(None) => return,
                    Err(error) => tracing::warn!("this node's CreoNode cannot be watched: {error}"),
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => wanted = self.wanted(),
                    Err(_ended) => return,
                },
                changed = self.offered.changed() => match changed {
                    Ok(()) => wanted = self.wanted(),
                    Err(_ended) => return,
                },
                changed = self.uses.changed() => match changed {
                    Ok(()) => wanted = self.wanted(),
                    Err(_ended) => return,
                },
                // Without a file nobody tells.
                Ok(()) = self.refused.changed() => wanted = self.wanted(),
                () = sleep_until(next_write), if differs => {
                    let result = self.write(&nodes, &wanted).await;
                    self.metrics.claims_write(result.is_ok());
                    pace.wrote(Instant::now(), result.is_ok());
                    match result {
                        Ok(written) => present = Present::Yes(written),
                        Err(error) => {
                            tracing::warn!("this node's claims cannot be written: {error}");
                        }
                    }
                }
            }
        }
    }

    fn wanted(&mut self) -> Claims {
        let snapshot = self.snapshots.borrow_and_update();
        let offered = self.offered.borrow_and_update();
        let uses = self.uses.borrow_and_update();
        let mut claims = claims(&snapshot, &offered, &uses, &self.resource);
        claims.message = with_first(self.refused.borrow_and_update().as_deref(), claims.message);
        claims
    }

    fn observe(&self, event: Event<OwnNode>, present: &mut Present) {
        match event {
            Event::Apply(node) | Event::InitApply(node) => {
                self.take_out_of_service(out_of_service::read(&node.metadata));
                *present = Present::Yes(node.status.and_then(|status| status.claims));
            }
            Event::Delete(_) => {
                self.take_out_of_service(BTreeSet::new());
                *present = Present::No;
            }
            // After a new beginning, the list that follows says whether it is there.
            Event::Init => *present = Present::No,
            Event::InitDone => {
                if matches!(present, Present::No) {
                    tracing::info!(
                        node = self.node_name,
                        "the hub has no CreoNode of this node yet: waiting for the operator to make it"
                    );
                }
            }
        }
    }

    fn take_out_of_service(&self, named: BTreeSet<String>) {
        self.out_of_service.send_if_modified(|current| {
            let changed = *current != named;
            if changed {
                tracing::info!(?named, "taken out of service at the CreoNode");
                *current = named;
            }
            changed
        });
    }

    async fn write(
        &self,
        nodes: &Api<OwnNode>,
        claims: &Claims,
    ) -> Result<Option<Value>, kube::Error> {
        let applied = Applied {
            api_version: CreoNode::api_version(&()).into_owned(),
            kind: CreoNode::kind(&()).into_owned(),
            metadata: ObjectMeta {
                name: Some(self.node_name.clone()),
                ..ObjectMeta::default()
            },
            status: AppliedStatus { claims },
        };
        // By force: the claims are the plugin's alone, and a leftover of somebody else's
        // must not keep the truth out.
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let written = nodes
            .patch_status(&self.node_name, &how, &Patch::Apply(&applied))
            .await?;
        tracing::info!(
            gpus = claims.gpus.len(),
            healthy = claims.gpus.iter().filter(|gpu| gpu.healthy).count(),
            "told the hub"
        );
        Ok(written.status.and_then(|status| status.claims))
    }
}

/// The claims as they are compared with what is there: as the API server would give them back.
/// What is there is never read as anything but JSON, so that nothing in it can disturb.
fn as_json(claims: &Claims) -> Value {
    serde_json::to_value(claims).unwrap_or_default()
}

/// Whether nothing differs that anybody has to act on: figures that move by themselves.
fn can_wait(there: Option<&Value>, wanted: &Claims) -> bool {
    let Some(there) = there.and_then(read) else {
        return false;
    };
    standing(there) == standing(wanted.clone())
}

fn read(there: &Value) -> Option<Claims> {
    serde_json::from_value(there.clone()).ok()
}

/// The claims without the figures that move by themselves.
fn standing(mut claims: Claims) -> Claims {
    for gpu in &mut claims.gpus {
        gpu.pcie = None;
        gpu.power_limit_milliwatts = None;
        gpu.in_use = None;
    }
    claims
}

/// Keeps what was seen of a link before: a card that rests slows its link down, so that a plugin
/// that has just started may not have seen what the one before it did.
fn remember(wanted: &mut Claims, there: Option<&Value>) {
    let Some(there) = there.and_then(read) else {
        return;
    };
    for gpu in &mut wanted.gpus {
        let before = there.gpus.iter().find(|before| before.uuid == gpu.uuid);
        if let Some(now) = &mut gpu.pcie
            && let Some(before) = before.and_then(|before| before.pcie)
            && (before.generation_max, before.width_max) == (now.generation_max, now.width_max)
        {
            now.generation = now.generation.max(before.generation);
            now.width = now.width.max(before.width);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use creo_api::creo_node::{ClaimedGpu, ClaimedPcieLink};

    fn claims(generation: i32, healthy: bool) -> Claims {
        let gpu = ClaimedGpu {
            uuid: "GPU-1".to_owned(),
            healthy,
            pcie: Some(ClaimedPcieLink {
                generation,
                generation_max: 4,
                width: 16,
                width_max: 16,
            }),
            ..ClaimedGpu::default()
        };
        Claims {
            gpus: vec![gpu],
            ..Claims::default()
        }
    }

    #[test]
    fn figures_that_move_by_themselves_can_wait_and_health_cannot() {
        let there = as_json(&claims(1, true));
        assert!(can_wait(Some(&there), &claims(4, true)));
        assert!(!can_wait(Some(&there), &claims(1, false)));
        assert!(!can_wait(None, &claims(1, true)));
        let foreign = serde_json::json!({"gpus": "none"});
        assert!(!can_wait(Some(&foreign), &claims(1, true)));
    }

    #[test]
    fn a_link_at_rest_does_not_hide_what_was_seen_of_it() {
        let there = as_json(&claims(4, true));
        let mut wanted = claims(1, true);
        remember(&mut wanted, Some(&there));
        assert_eq!(as_json(&wanted), there);
        // In another slot it is another link.
        let mut moved = claims(1, true);
        moved.gpus[0].pcie.as_mut().unwrap().generation_max = 3;
        remember(&mut moved, Some(&there));
        assert_eq!(moved.gpus[0].pcie.unwrap().generation, 1);
    }
}
