//! From what the driver says to what the kubelet is offered: a GPU is offered when the CDI
//! specification that names it is on the disk, and not before.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use creo_process::probes::Check;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::cdi::{Spec, WriteError, common_nodes, write};
use crate::driver::Snapshot;
use crate::kubelet::service::Offer;
use crate::resource::Resource;

/// Time between two looks at whether the specification is still what it was.
const LOOK: Duration = Duration::from_secs(10);

/// Writes the CDI specification and offers what it names.
#[derive(Debug)]
pub struct Offering {
    /// The resource that is offered.
    pub resource: Resource,
    /// Directory of the CDI specification.
    pub cdi_directory: PathBuf,
    /// The driver's root on the host.
    pub driver_root: PathBuf,
    /// The driver's root as this process sees it.
    pub driver_root_mount: PathBuf,
    /// What the driver says.
    pub snapshots: watch::Receiver<Snapshot>,
    /// What the kubelet is offered.
    pub offers: watch::Sender<Offer>,
    /// Holds while the specification is on the disk.
    pub written: Check,
}

impl Offering {
    /// Offers until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut named = BTreeSet::new();
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            // A specification without devices is not a valid one, and removing the old one
            // would keep running containers from starting again.
            if !snapshot.devices.is_empty() {
                match self.specify(&snapshot).await {
                    Ok(()) => {
                        named = uuids(&snapshot);
                        self.written.holds();
                    }
                    Err(why) => {
                        tracing::error!("{why}");
                        self.written.fails(why);
                    }
                }
            }
            self.offer(snapshot, &named);
            tokio::select! {
                changed = self.snapshots.changed() => if changed.is_err() { return },
                () = sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn specify(&self, snapshot: &Snapshot) -> Result<(), String> {
        let gpus: Vec<_> = snapshot.devices.iter().map(|device| &device.gpu).collect();
        let common = common_nodes(&self.driver_root_mount);
        let spec = Spec::new(&self.resource, &gpus, &common, &self.driver_root);
        let (directory, resource) = (self.cdi_directory.clone(), self.resource.clone());
        // It waits for the disk.
        let writing = tokio::task::spawn_blocking(move || write(&directory, &resource, &spec));
        let written = writing.await.map_err(|error| error.to_string())?;
        if written.map_err(|error: WriteError| error.to_string())? {
            tracing::info!(
                gpus = snapshot.devices.len(),
                directory = %self.cdi_directory.display(),
                "wrote the CDI specification"
            );
        }
        Ok(())
    }

    /// Offers the GPUs that the specification names, with their health of now: a disk that is
    /// full must not hide that a GPU is ill.
    fn offer(&self, snapshot: Snapshot, named: &BTreeSet<String>) {
        let mut offer = snapshot.devices;
        offer.retain(|device| named.contains(&device.gpu.uuid));
        self.offers.send_if_modified(|current| {
            let changed = *current != offer;
            if changed {
                *current = offer;
            }
            changed
        });
    }
}

fn uuids(snapshot: &Snapshot) -> BTreeSet<String> {
    snapshot
        .devices
        .iter()
        .map(|device| device.gpu.uuid.clone())
        .collect()
}
