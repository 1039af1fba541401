//! From what the driver says to what the kubelet is offered: a unit is offered when the CDI
//! specification that names it is on the disk, and not before.

pub mod conflict;
pub mod names;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use creo_process::probes::Check;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cdi::{self, CdiError, Injection, Place, Prepared};
use crate::config::{Cdi, CdiSource, Config, DeviceNodes};
use crate::driver::Snapshot;
use crate::inventory::{Gpu, Link};
use crate::kubelet::offer::{Giving, Offer, Offers};
use crate::resource::Resource;
use crate::unit::{Offered, Withheld};
use conflict::Conflicts;
use plan::{Facts, plan};

/// Time between two looks at whether the specification is still what it was.
const LOOK: Duration = Duration::from_secs(10);

/// How long new GPUs are waited for to be in the specification, so that nobody is told of them
/// as withheld for the moment that it takes.
const HOLD: Duration = Duration::from_secs(1);

/// Writes the CDI specification and offers what it names.
#[derive(Debug)]
pub struct Offering {
    /// What an offer follows from.
    pub sources: Sources,
    /// Directory for the CDI specification.
    pub cdi_directory: PathBuf,
    /// Where the driver is.
    pub place: Place,
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
    pub conflicts: watch::Receiver<Conflicts>,
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

/// What there has to be a CDI specification for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    gpus: Vec<Gpu>,
    kind: Resource,
    cdi: Cdi,
}

type Preparing = JoinHandle<Result<Prepared, CdiError>>;

impl Offering {
    /// Offers until the token is cancelled. A disk that hangs does not keep the kubelet from
    /// hearing that a GPU is ill.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut prepared = Prepared::default();
        let mut last = Wanted::default();
        let mut preparing: Option<Preparing> = None;
        let mut look = Instant::now();
        let mut hold = Instant::now();
        loop {
            let snapshot = self.sources.snapshots.borrow_and_update().clone();
            let config = self.sources.config.borrow_and_update().clone();
            let wanted = wanted(&snapshot, &config);
            let now = Instant::now();
            if preparing.is_none() && (wanted != last || look <= now) {
                preparing = self.prepare(&wanted);
                look = now + LOOK;
                if wanted != last {
                    hold = now + HOLD;
                }
                last = wanted;
            }
            if preparing.is_none() || hold <= now {
                self.offer(&snapshot, &config, &prepared);
            }
            tokio::select! {
                () = self.sources.changed() => {}
                () = sleep_until(hold), if preparing.is_some() && hold > now => {}
                done = finished(&mut preparing) => self.take(done, &mut prepared),
                () = sleep_until(look), if preparing.is_none() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Begins to write the specification. One without devices is not a valid one, and removing
    /// the old one would keep running containers from starting again.
    fn prepare(&self, wanted: &Wanted) -> Option<Preparing> {
        if wanted.gpus.is_empty() {
            return None;
        }
        let injection = self.injection(wanted);
        let gpus = wanted.gpus.clone();
        Some(spawn_blocking(move || {
            let gpus: Vec<_> = gpus.iter().collect();
            injection.prepare(&gpus)
        }))
    }

    fn take(&self, done: Result<Prepared, String>, prepared: &mut Prepared) {
        match done {
            Ok(now) => {
                if now.is_new {
                    let directory = self.cdi_directory.display();
                    tracing::info!(%directory, "wrote the CDI specification");
                }
                *prepared = now;
                self.written.holds();
            }
            Err(why) => {
                tracing::error!("{why}");
                self.written.fails(why);
            }
        }
    }

    fn injection(&self, wanted: &Wanted) -> Injection {
        let own = &self.cdi_directory;
        let source = match (wanted.cdi.enabled, wanted.cdi.source) {
            (false, _) => cdi::Source::Off,
            (true, CdiSource::Generated) => cdi::Source::Own(own.clone()),
            (true, CdiSource::Existing) => {
                let directories = vec![PathBuf::from(cdi::STATIC_DIRECTORY), own.clone()];
                cdi::Source::Existing(directories)
            }
        };
        Injection {
            place: self.place.clone(),
            kind: wanted.kind.clone(),
            source,
        }
    }

    /// Offers the units that the specification names, with their health of now: a disk that is
    /// full must not hide that a GPU is ill.
    fn offer(&mut self, snapshot: &Snapshot, config: &Config, prepared: &Prepared) {
        let mut offered = plan(Facts {
            devices: &snapshot.devices,
            config,
            out_of_service: &self.sources.out_of_service.borrow_and_update(),
            conflicts: &self.sources.conflicts.borrow_and_update(),
        });
        withhold_left_out(&mut offered, &config.cdi, prepared);
        let links: BTreeMap<String, Vec<Link>> = snapshot
            .devices
            .iter()
            .map(|device| (device.gpu.uuid.clone(), device.gpu.links.clone()))
            .collect();
        let giving = Arc::new(giving(config, prepared));
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

fn wanted(snapshot: &Snapshot, config: &Config) -> Wanted {
    let devices = snapshot.devices.iter();
    Wanted {
        gpus: devices.map(|device| device.gpu.clone()).collect(),
        kind: match config.cdi.source {
            CdiSource::Generated => config.resource.clone(),
            CdiSource::Existing => config.cdi.kind.clone(),
        },
        cdi: config.cdi.clone(),
    }
}

/// Waits for the end of what is being prepared, if anything is.
async fn finished(preparing: &mut Option<Preparing>) -> Result<Prepared, String> {
    let Some(running) = preparing else {
        return std::future::pending().await;
    };
    let prepared = running.await;
    *preparing = None;
    match prepared {
        Ok(prepared) => prepared.map_err(|error| error.to_string()),
        Err(ended) => Err(ended.to_string()),
    }
}

fn giving(config: &Config, prepared: &Prepared) -> Giving {
    let has_cdi = config.cdi.enabled;
    let nodes = if has_cdi && config.device_nodes == DeviceNodes::WithoutCdi {
        BTreeMap::new()
    } else {
        prepared.nodes.clone()
    };
    Giving {
        cdi_names: has_cdi.then(|| prepared.names.clone()),
        nodes,
        allocation: config.sharing.allocation,
    }
}

/// Takes back what no container could get: one that it was given to would not start.
fn withhold_left_out(offered: &mut Offered, cdi: &Cdi, prepared: &Prepared) {
    let is_ready = |uuid: &str| {
        if cdi.enabled {
            prepared.names.contains_key(uuid)
        } else {
            prepared.nodes.contains_key(uuid)
        }
    };
    for units in offered.units.values_mut() {
        for unit in units.extract_if(.., |unit| !is_ready(unit.uuid())) {
            let mut left_out = prepared.left_out.iter();
            let why = left_out
                .find(|left_out| left_out.uuid == unit.uuid())
                .map_or(
                    "the CDI specification does not name it yet; /readyz and the log say why",
                    |left_out| &left_out.why,
                );
            offered.withheld.push(Withheld {
                message: why.to_owned(),
                gpu: unit.gpu,
                part: unit.part,
                reason: "NotSpecified",
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
