//! What this node says of itself to the hub: `status.claims` of its own CreoNode.
//!
//! Written by server-side apply under a field manager of its own, and only where it differs
//! from what is there; so a plugin that starts again writes nothing, and what somebody else
//! changed is put right. Only the node's own object is watched.

use std::time::Duration;

use creo_api::CreoNode;
use creo_api::creo_node::{ClaimedGpu, Claims, MAX_GPUS};
use creo_process::client::WATCH_SECONDS;
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt as _, watcher::Event};
use kube::{Api, Client, Resource as _};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::driver::{Device, Snapshot};
use crate::metrics::Metrics;
use crate::resource::Resource;

/// The plugin's name in the bookkeeping of server-side apply.
pub const FIELD_MANAGER: &str = "creo-gpu-device-plugin";

/// Shortest time between two writes: GPUs that flap must not keep the API server busy.
const WRITE_AGAIN: Duration = Duration::from_millis(250);
/// First and longest pause after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// Longest texts that the schema allows, in characters.
const MAX_MODEL: usize = 128;
const MAX_REASON: usize = 1024;
const MAX_MESSAGE: usize = 4096;
/// Largest memory that the schema allows, in bytes.
const MAX_MEMORY_BYTES: i64 = 1 << 50;

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
    claims: Option<Claims>,
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
    Yes(Option<Claims>),
}

impl Claiming {
    /// Tells the hub every change until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let claiming = async {
            // Nothing is claimed before the driver has answered: a plugin that starts again
            // must not say for a moment that all GPUs are gone.
            if self.snapshots.changed().await.is_ok() {
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
        let mut wanted = claims(&self.snapshots.borrow_and_update(), &self.resource);
        let mut present = Present::default();
        let mut failures = 0;
        let mut next_write = Instant::now();
        loop {
            let differs =
                matches!(&present, Present::Yes(there) if there.as_ref() != Some(&wanted));
            tokio::select! {
                event = events.try_next() => match event {
                    Ok(Some(event)) => self.observe(event, &mut present),
                    Ok(None) => return,
                    Err(error) => tracing::warn!("this node's CreoNode cannot be watched: {error}"),
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => wanted = claims(&self.snapshots.borrow_and_update(), &self.resource),
                    Err(_ended) => return,
                },
                () = sleep_until(next_write), if differs => {
                    let result = self.write(&nodes, &wanted).await;
                    self.metrics.claims_write(result.is_ok());
                    match result {
                        Ok(written) => {
                            present = Present::Yes(written);
                            failures = 0;
                            next_write = Instant::now() + WRITE_AGAIN;
                        }
                        Err(error) => {
                            tracing::warn!("this node's claims cannot be written: {error}");
                            failures += 1;
                            next_write = Instant::now() + pause(failures);
                        }
                    }
                }
            }
        }
    }

    fn observe(&self, event: Event<OwnNode>, present: &mut Present) {
        match event {
            Event::Apply(node) | Event::InitApply(node) => {
                *present = Present::Yes(node.status.and_then(|status| status.claims));
            }
            // After a new beginning, the list that follows says whether it is there.
            Event::Delete(_) | Event::Init => *present = Present::No,
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

    async fn write(
        &self,
        nodes: &Api<OwnNode>,
        claims: &Claims,
    ) -> Result<Option<Claims>, kube::Error> {
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

fn pause(failures: u32) -> Duration {
    let (first, longest) = RETRY;
    first
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(longest)
}

/// What the node says of itself, given what its driver says.
#[must_use]
pub fn claims(snapshot: &Snapshot, resource: &Resource) -> Claims {
    let versions = snapshot.driver.as_ref().ok();
    let known = |text: &String| (!text.is_empty()).then(|| text.clone());
    Claims {
        driver_version: versions.and_then(|versions| known(&versions.driver)),
        cuda_version: versions.and_then(|versions| known(&versions.cuda)),
        resource: resource.to_string(),
        gpus: snapshot
            .devices
            .iter()
            .take(MAX_GPUS)
            .map(claimed)
            .collect(),
        message: message(snapshot),
    }
}

fn claimed(device: &Device) -> ClaimedGpu {
    let gpu = &device.gpu;
    ClaimedGpu {
        // The driver counts to 128 at most.
        index: i32::try_from(gpu.index).unwrap_or(i32::MAX),
        uuid: gpu.uuid.clone(),
        model: shortened(&gpu.model, MAX_MODEL),
        memory_bytes: i64::try_from(gpu.memory_bytes)
            .unwrap_or(MAX_MEMORY_BYTES)
            .min(MAX_MEMORY_BYTES),
        compute_capability: gpu.compute_capability.clone(),
        healthy: device.health.is_healthy(),
        reason: device
            .health
            .worst()
            .filter(|_| !device.health.is_healthy())
            .map(|finding| shortened(&finding.to_string(), MAX_REASON)),
    }
}

/// Why there are no GPUs, or fewer than there could be.
fn message(snapshot: &Snapshot) -> Option<String> {
    let mut parts = Vec::new();
    match &snapshot.driver {
        Err(why) => parts.push(why.clone()),
        Ok(_) if snapshot.devices.is_empty() && snapshot.unreadable.is_empty() => {
            parts.push(
                "the NVIDIA driver counts no GPUs; look at lspci and the kernel's log".to_owned(),
            );
        }
        Ok(_) => {}
    }
    parts.extend(snapshot.deaf.clone());
    for gpu in &snapshot.unreadable {
        parts.push(format!("GPU {} cannot be read: {}", gpu.index, gpu.why));
    }
    (!parts.is_empty()).then(|| shortened(&parts.join("; "), MAX_MESSAGE))
}

fn shortened(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::health::{Finding, Health};
    use crate::inventory::{Gpu, Unreadable, Versions};

    fn resource() -> Resource {
        "creo.cloud/gpu".parse().unwrap()
    }

    fn snapshot(devices: Vec<Device>) -> Snapshot {
        Snapshot {
            driver: Ok(Versions {
                driver: "570.133.20".to_owned(),
                cuda: "12.8".to_owned(),
            }),
            devices,
            ..Snapshot::default()
        }
    }

    fn device(health: Health) -> Device {
        Device {
            gpu: Gpu {
                index: 3,
                uuid: "GPU-3".to_owned(),
                model: "Tesla T4".to_owned(),
                memory_bytes: 16 << 30,
                compute_capability: "7.5".to_owned(),
                pci_address: String::new(),
                minor: 3,
                ..Gpu::default()
            },
            health,
            partitions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_healthy_gpu_is_claimed_without_a_reason_and_an_ill_one_with_one() {
        let claims = claims(
            &snapshot(vec![
                device(Health::healthy()),
                device(Health::of([Finding::Xid(79)])),
            ]),
            &resource(),
        );
        assert_eq!(claims.driver_version.as_deref(), Some("570.133.20"));
        assert_eq!(claims.cuda_version.as_deref(), Some("12.8"));
        assert_eq!(claims.resource, "creo.cloud/gpu");
        assert_eq!(claims.message, None);
        assert_eq!(
            claims.gpus[0],
            ClaimedGpu {
                index: 3,
                uuid: "GPU-3".to_owned(),
                model: "Tesla T4".to_owned(),
                memory_bytes: 17_179_869_184,
                compute_capability: "7.5".to_owned(),
                healthy: true,
                reason: None,
            }
        );
        assert!(!claims.gpus[1].healthy);
        assert!(
            claims.gpus[1]
                .reason
                .as_ref()
                .unwrap()
                .starts_with("XidError: XID 79")
        );
    }

    #[test]
    fn without_a_driver_the_claims_say_why_and_no_version() {
        let without = Snapshot {
            driver: Err("no NVIDIA driver: install it".to_owned()),
            ..Snapshot::default()
        };
        let claims = claims(&without, &resource());
        assert_eq!(claims.driver_version, None);
        assert_eq!(
            claims.message.as_deref(),
            Some("no NVIDIA driver: install it")
        );
        assert!(claims.gpus.is_empty());
    }

    #[test]
    fn a_gpu_that_cannot_be_read_is_named_in_the_message() {
        let mut some = snapshot(vec![device(Health::healthy())]);
        some.unreadable.push(Unreadable {
            index: 1,
            why: "GPU is lost".to_owned(),
        });
        let message = claims(&some, &resource()).message;
        assert_eq!(
            message.as_deref(),
            Some("GPU 1 cannot be read: GPU is lost")
        );
    }

    #[test]
    fn whatever_the_driver_says_fits_the_schema() {
        let mut huge = device(Health::of([Finding::Unreadable("x".repeat(9_000))]));
        huge.gpu.model = "ö".repeat(500);
        huge.gpu.memory_bytes = u64::MAX;
        let mut many = snapshot(vec![huge; 500]);
        many.deaf = Some("y".repeat(9_000));
        let claims = claims(&many, &resource());
        assert_eq!(claims.gpus.len(), 128);
        assert_eq!(claims.gpus[0].model.chars().count(), 128);
        assert_eq!(claims.gpus[0].memory_bytes, 1 << 50);
        assert_eq!(
            claims.gpus[0].reason.as_ref().unwrap().chars().count(),
            1_024
        );
        assert_eq!(claims.message.unwrap().chars().count(), 4_096);
    }

    #[test]
    fn pauses_after_failures_are_bounded() {
        assert_eq!(pause(1), Duration::from_secs(2));
        assert_eq!(pause(1_000), Duration::from_mins(1));
    }
}
