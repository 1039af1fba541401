//! The plugin as a process: everything started, wired and stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use creo_process::client::{self, CALL_TIMEOUT, ClientMetrics, ClientOptions, ConnectError};
use creo_process::probes::{Check, Probes, ProbesError, Readiness};
use creo_process::prometheus::{self, Registry};
use creo_process::shutdown::drain;
use kube::Client;
use thiserror::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arguments::ServeArguments;
use crate::claims::Claiming;
use crate::config::Config;
use crate::driver::{Pace, Snapshot, Watcher};
use crate::kubelet::offer::Offers;
use crate::kubelet::registrar::Registrar;
use crate::kubelet::standing::Standing;
use crate::metrics::Metrics;
use crate::offer::{Offering, Sources};
use crate::unit::Offered;

/// The kubelet's directory for device plugins, in its own directory.
const DEVICE_PLUGINS: &str = "device-plugins";
/// How long the end may take.
const END: Duration = Duration::from_secs(5);

/// Why the plugin could not start. What is missing later is said by `/readyz` instead.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The metrics cannot be registered.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The address of metrics and probes cannot be used.
    #[error(transparent)]
    Probes(#[from] ProbesError),
    /// Metrics and probes were served and are not any more.
    #[error("metrics and probes are not served any more: {0}")]
    Ended(std::io::Error),
}

/// Offers this node's GPUs until the token is cancelled.
pub async fn serve(arguments: ServeArguments, stop: CancellationToken) -> Result<(), ServeError> {
    let registry = Registry::new();
    let client_metrics = ClientMetrics::register(&registry)?;
    let readiness = Readiness::new();
    let metrics = Metrics::register(&registry)?;
    let probes = Probes::bind(arguments.metrics_address, registry, readiness.clone()).await?;
    let process = Process {
        arguments,
        metrics,
        readiness,
        tasks: TaskTracker::new(),
        stop: stop.clone(),
    };
    let snapshots = process.follow_driver();
    let (out_of_service, taken_out) = watch::channel(BTreeSet::new());
    let (offered, offers) = process.offer(snapshots.clone(), taken_out);
    process.register(offers);
    if let Some(node_name) = process.arguments.node_name.clone() {
        let said = Said {
            snapshots,
            offered,
            out_of_service,
        };
        process.claim(node_name, client_metrics, said).await;
    }
    tracing::info!(resource = %process.arguments.resource, "the GPU device plugin serves");
    let served = probes.serve(stop.clone()).await;
    stop.cancel();
    drain(&process.tasks, END).await;
    served.map_err(ServeError::Ended)
}

/// What is said to the hub, and heard there.
struct Said {
    snapshots: watch::Receiver<Snapshot>,
    offered: watch::Receiver<Offered>,
    out_of_service: watch::Sender<BTreeSet<String>>,
}

/// What every part of the process needs.
struct Process {
    arguments: ServeArguments,
    metrics: Metrics,
    readiness: Readiness,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Process {
    fn follow_driver(&self) -> watch::Receiver<Snapshot> {
        let not_yet = "the NVIDIA driver has not answered yet";
        let checks = Checks {
            driver: self.readiness.check("driver", not_yet),
            events: self.readiness.check("events", not_yet),
        };
        let (sender, snapshots) = watch::channel(Snapshot::default());
        let watcher = watcher(&self.arguments, &self.metrics, sender);
        self.tasks.spawn(watcher.run(self.stop.clone()));
        self.tasks
            .spawn(checks.follow(snapshots.clone(), self.stop.clone()));
        snapshots
    }

    fn offer(
        &self,
        snapshots: watch::Receiver<Snapshot>,
        out_of_service: watch::Receiver<BTreeSet<String>>,
    ) -> (watch::Receiver<Offered>, watch::Receiver<Offers>) {
        let (offers_sender, offers) = watch::channel(Offers::new());
        let (offered_sender, offered) = watch::channel(Offered::default());
        let config = Config {
            resource: self.arguments.resource.clone(),
            ..Config::default()
        };
        let offering = Offering {
            sources: Sources {
                snapshots,
                config: watch::channel(Arc::new(config)).1,
                out_of_service,
                conflicts: watch::channel(BTreeMap::new()).1,
            },
            cdi_directory: self.arguments.cdi_dir.clone(),
            place: self.arguments.driver.place(),
            offered: offered_sender,
            offers: offers_sender,
            written: self.readiness.check(
                "cdi",
                "there is no GPU to write a CDI specification for yet",
            ),
        };
        self.tasks.spawn(offering.run(self.stop.clone()));
        (offered, offers)
    }

    fn register(&self, offers: watch::Receiver<Offers>) {
        let registrar = Registrar {
            directory: self.arguments.kubelet_dir.join(DEVICE_PLUGINS),
            offers,
            metrics: self.metrics.clone(),
            standing: Standing::new(self.readiness.check(
                "kubelet",
                "there is no GPU to register with the kubelet yet",
            )),
        };
        self.tasks.spawn(registrar.run(self.stop.clone()));
    }

    async fn claim(&self, node_name: String, client_metrics: ClientMetrics, said: Said) {
        match connect(client_metrics).await {
            Ok(client) => {
                let claiming = Claiming {
                    client,
                    node_name,
                    resource: self.arguments.resource.clone(),
                    snapshots: said.snapshots,
                    offered: said.offered,
                    out_of_service: said.out_of_service,
                    metrics: self.metrics.clone(),
                };
                self.tasks.spawn(claiming.run(self.stop.clone()));
            }
            // Containers get their GPUs all the same.
            Err(error) => {
                tracing::error!("nothing is told to the hub: {error}");
                let _fails_for_good = self.readiness.check("claims", error.to_string());
            }
        }
    }
}

fn watcher(
    arguments: &ServeArguments,
    metrics: &Metrics,
    snapshots: watch::Sender<Snapshot>,
) -> Watcher {
    let pace = Pace {
        quiet: arguments.healthy_after,
        ..Pace::default()
    };
    Watcher::new(arguments.driver.source(), pace, metrics.clone(), snapshots)
}

async fn connect(metrics: ClientMetrics) -> Result<Client, ConnectError> {
    let options = ClientOptions {
        user_agent: format!("creo-gpu-device-plugin/{}", env!("CARGO_PKG_VERSION")),
        call_timeout: CALL_TIMEOUT,
        metrics,
        gate: None,
    };
    client::connect(client::infer().await?, options)
}

/// What must hold of the driver for the plugin to be ready.
struct Checks {
    driver: Check,
    events: Check,
}

impl Checks {
    async fn follow(self, mut snapshots: watch::Receiver<Snapshot>, stop: CancellationToken) {
        loop {
            tokio::select! {
                changed = snapshots.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            self.update(&snapshots.borrow_and_update());
        }
    }

    fn update(&self, snapshot: &Snapshot) {
        match &snapshot.driver {
            Err(why) => self.driver.fails(why.clone()),
            Ok(_) if snapshot.devices.is_empty() => self
                .driver
                .fails("the NVIDIA driver counts no GPU that can be used; look at nvidia-smi and the kernel's log"),
            Ok(_) => self.driver.holds(),
        }
        match (&snapshot.driver, &snapshot.deaf) {
            (Err(_), _) => self.events.fails("there is no driver to hear"),
            (Ok(_), Some(why)) => self.events.fails(why.clone()),
            (Ok(_), None) => self.events.holds(),
        }
    }
}
