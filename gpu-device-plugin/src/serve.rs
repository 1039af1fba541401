//! The plugin as a process: everything started, wired and stopped.

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
use crate::driver::{Pace, Snapshot, Watcher};
use crate::kubelet::life::Life;
use crate::kubelet::service::Offer;
use crate::metrics::Metrics;
use crate::offer::Offering;

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
    let metrics = Metrics::register(&registry)?;
    let client_metrics = ClientMetrics::register(&registry)?;
    let readiness = Readiness::new();
    let probes = Probes::bind(arguments.metrics_address, registry, readiness.clone()).await?;
    let checks = Checks {
        driver: readiness.check("driver", "the NVIDIA driver has not answered yet"),
        events: readiness.check("events", "the NVIDIA driver has not answered yet"),
    };
    let (snapshot_sender, snapshots) = watch::channel(Snapshot::default());
    let (offer_sender, offers) = watch::channel(Offer::new());
    let tasks = TaskTracker::new();

    let watcher = watcher(&arguments, &metrics, snapshot_sender);
    tasks.spawn(watcher.run(stop.clone()));
    tasks.spawn(checks.follow(snapshots.clone(), stop.clone()));
    let offering = Offering {
        resource: arguments.resource.clone(),
        cdi_directory: arguments.cdi_dir.clone(),
        driver_root: arguments.driver.driver_root.clone(),
        driver_root_mount: arguments.driver.root_mount(),
        snapshots: snapshots.clone(),
        offers: offer_sender,
        written: readiness.check(
            "cdi",
            "there is no GPU to write a CDI specification for yet",
        ),
    };
    tasks.spawn(offering.run(stop.clone()));
    let life = Life {
        directory: arguments.kubelet_dir.join(DEVICE_PLUGINS),
        resource: arguments.resource.clone(),
        offers,
        metrics: metrics.clone(),
        registered: readiness.check(
            "kubelet",
            "there is no GPU to register with the kubelet yet",
        ),
    };
    tasks.spawn(life.run(stop.clone()));
    if let Some(node_name) = arguments.node_name.clone() {
        match connect(client_metrics).await {
            Ok(client) => {
                let claiming = Claiming {
                    client,
                    node_name,
                    resource: arguments.resource.clone(),
                    snapshots,
                    metrics,
                };
                tasks.spawn(claiming.run(stop.clone()));
            }
            // Containers get their GPUs all the same.
            Err(error) => {
                tracing::error!("nothing is told to the hub: {error}");
                let _fails_for_good = readiness.check("claims", error.to_string());
            }
        }
    }
    tracing::info!(resource = %arguments.resource, "the GPU device plugin serves");
    let served = probes.serve(stop.clone()).await;
    stop.cancel();
    drain(&tasks, END).await;
    served.map_err(ServeError::Ended)
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
