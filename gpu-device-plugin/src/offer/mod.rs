//! From what the driver says to what the kubelet is offered: a unit is offered when the CDI
//! specification that names it is on the disk, and not before.

pub mod names;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use creo_process::probes::Check;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::cdi::{Spec, WriteError, common_nodes, write};
use crate::config::{Cdi, Config};
use crate::driver::Snapshot;
use crate::inventory::Link;
use crate::kubelet::offer::{Giving, Offer, Offers};
use crate::resource::Resource;
use crate::unit::{Offered, Withheld};
use plan::{Facts, plan};

/// Time between two looks at whether the specification is still what it was.
const LOOK: Duration = Duration::from_secs(10);

/// Writes the CDI specification and offers what it names.
#[derive(Debug)]
pub struct Offering {
    /// What an offer follows from.
    pub sources: Sources,
    /// Directory of the CDI specification.
    pub cdi_directory: PathBuf,
    /// The driver's root on the host.
    pub driver_root: PathBuf,
    /// The driver's root as this process sees it.
    pub driver_root_mount: PathBuf,
    /// What is offered, for whoever wants to know.
    pub offered: watch::Sender<Offered>,
    /// What the kubelet is offered.
    pub offers: watch::Sender<Offers>,
    /// Holds while the specification is on the disk.
    pub written: Check,
}

/// What an offer follows from; see [`Facts`].
#[derive(Debug)]
pub struct Sources {
    /// What the driver says.
    pub snapshots: watch::Receiver<Snapshot>,
    /// What a person decided.
    pub config: watch::Receiver<Arc<Config>>,
    /// What a person took out of service at the node's object.
    pub out_of_service: watch::Receiver<BTreeSet<String>>,
    /// What other plugins offer.
    pub conflicts: watch::Receiver<BTreeMap<String, String>>,
}

impl Sources {
    async fn changed(&mut self) {
        tokio::select! {
            () = news(&mut self.snapshots) => {}
            () = news(&mut self.config) => {}
            () = news(&mut self.out_of_service) => {}
            () = news(&mut self.conflicts) => {}
        }
    }
}

/// Waits for another value. A source that ended has none: the others go on.
async fn news<T>(source: &mut watch::Receiver<T>) {
    if source.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

impl Offering {
    /// Offers until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut named = BTreeSet::new();
        loop {
            let snapshot = self.sources.snapshots.borrow_and_update().clone();
            let config = self.sources.config.borrow_and_update().clone();
            // A specification without devices is not a valid one, and removing the old one
            // would keep running containers from starting again.
            if !snapshot.devices.is_empty() {
                match self.specify(&snapshot, &config.resource).await {
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
            self.offer(&snapshot, &config, &named);
            tokio::select! {
                () = self.sources.changed() => {}
                () = sleep(LOOK) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn specify(&self, snapshot: &Snapshot, kind: &Resource) -> Result<(), String> {
        let gpus: Vec<_> = snapshot.devices.iter().map(|device| &device.gpu).collect();
        let common = common_nodes(&self.driver_root_mount);
        let spec = Spec::new(kind, &gpus, &common, &self.driver_root);
        let (directory, resource) = (self.cdi_directory.clone(), kind.clone());
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

    /// Offers the units that the specification names, with their health of now: a disk that is
    /// full must not hide that a GPU is ill.
    fn offer(&mut self, snapshot: &Snapshot, config: &Config, named: &BTreeSet<String>) {
        let mut offered = plan(Facts {
            devices: &snapshot.devices,
            config,
            out_of_service: &self.sources.out_of_service.borrow_and_update(),
            conflicts: &self.sources.conflicts.borrow_and_update(),
        });
        withhold_unnamed(&mut offered, named);
        let links: BTreeMap<String, Vec<Link>> = snapshot
            .devices
            .iter()
            .map(|device| (device.gpu.uuid.clone(), device.gpu.links.clone()))
            .collect();
        let giving = Arc::new(giving(config));
        let offers = offered
            .units
            .iter()
            .map(|(resource, units)| {
                let offer = Offer::new(units.clone(), &links, Arc::clone(&giving));
                (resource.clone(), offer)
            })
            .collect();
        publish(&self.offered, offered);
        publish(&self.offers, offers);
    }
}

fn giving(config: &Config) -> Giving {
    Giving {
        cdi_kind: match &config.cdi {
            Cdi::Generated => Some(config.resource.clone()),
            Cdi::Existing(kind) => Some(kind.clone()),
            Cdi::Off => None,
        },
        nodes: BTreeMap::new(),
        allocation: config.sharing.allocation,
    }
}

/// Takes back what no specification names: a container that got it would not start.
fn withhold_unnamed(offered: &mut Offered, named: &BTreeSet<String>) {
    for units in offered.units.values_mut() {
        for unit in units.extract_if(.., |unit| !named.contains(unit.uuid())) {
            offered.withheld.push(Withheld {
                gpu: unit.gpu,
                part: unit.part,
                reason: "NotSpecified",
                message: "the CDI specification does not name it yet; /readyz and the log say why"
                    .to_owned(),
            });
        }
    }
    offered.units.retain(|_, units| !units.is_empty());
}

fn publish<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|current| {
        let changed = *current != value;
        if changed {
            *current = value;
        }
        changed
    });
}

fn uuids(snapshot: &Snapshot) -> BTreeSet<String> {
    let cards = snapshot.devices.iter().map(|device| &device.gpu);
    cards
        .flat_map(|gpu| {
            let partitions = gpu.mig.devices().iter();
            partitions
                .map(|partition| partition.uuid.clone())
                .chain([gpu.uuid.clone()])
        })
        .collect()
}
