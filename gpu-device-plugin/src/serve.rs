//! The plugin as a process: everything started, wired and stopped.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::prometheus::IntGauge;
use creo_process::client::{self, CALL_TIMEOUT, ClientMetrics, ClientOptions, ConnectError};
use creo_process::probes::{Check, Probes, ProbesError, Readiness};
use creo_process::prometheus::{self, Registry};
use creo_process::shutdown::drain;
use kube::Client;
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::arguments::ServeArguments;
use crate::claims::Claiming;
use crate::config::{Config, ConfigMetrics, Following};
use crate::driver::{Pace, Readings, Records, Snapshot, Watcher};
use crate::kubelet::offer::Offers;
use crate::kubelet::registrar::Registrar;
use crate::kubelet::standing::Standing;
use crate::metrics::Metrics;
use crate::offer::conflict::{self, Conflicts, Lookout};
use crate::offer::{Offering, Sources};
use crate::pod_resources::{self, PodsByDevice};
use crate::processes::host::Host;
use crate::processes::tracker::Patience;
use crate::processes::{self, Uses};
use crate::resource::Resource;
use crate::unit::Offered;

/// The kubelet's directory for device plugins, in its own directory.
const DEVICE_PLUGINS: &str = "device-plugins";
/// What tells one boot of the machine from another.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";
/// Time between two looks at whose processes run on the GPUs.
const PROCESSES: Duration = Duration::from_secs(1);
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
    let readiness = Readiness::new();
    let tasks = TaskTracker::new();
    let process = Process {
        metrics: Metrics::register(&registry)?,
        config_metrics: ConfigMetrics::register(&registry)?,
        client_metrics: ClientMetrics::register(&registry)?,
        pod_resources_up: pod_resources::register_up(&registry)?,
        readiness: readiness.clone(),
        tasks: tasks.clone(),
        stop: stop.clone(),
        arguments,
    };
    let configured = process
        .readiness
        .check("config", "it has not been read yet");
    let address = process.arguments.metrics_address;
    let probes = Probes::bind(address, registry, readiness).await?;
    tasks.spawn(
        stop.clone()
            .run_until_cancelled_owned(process.start(configured)),
    );
    let served = probes.serve(stop.clone()).await;
    stop.cancel();
    drain(&tasks, END).await;
    served.map_err(ServeError::Ended)
}

/// What is said to the hub, and heard there.
struct Said {
    resource: Resource,
    snapshots: watch::Receiver<Snapshot>,
    offered: watch::Receiver<Offered>,
    uses: watch::Receiver<Uses>,
    refused: watch::Receiver<Option<String>>,
    out_of_service: watch::Sender<BTreeSet<String>>,
}

/// The configuration in effect, and why a new one is not, where it is not.
struct Configured {
    config: watch::Receiver<Arc<Config>>,
    refused: watch::Receiver<Option<String>>,
}

/// What every part of the process needs.
struct Process {
    arguments: ServeArguments,
    metrics: Metrics,
    config_metrics: ConfigMetrics,
    client_metrics: ClientMetrics,
    pod_resources_up: IntGauge,
    readiness: Readiness,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Process {
    /// Starts every part, once there is a configuration.
    async fn start(self, configured: Check) {
        let Configured { config, refused } = self.configure(&configured).await;
        let (readings_sender, readings) = watch::channel(Readings::new());
        let snapshots = self.follow_driver(&config, readings_sender);
        let (out_of_service, taken_out) = watch::channel(BTreeSet::new());
        let conflicts = self.look_out(&config).await;
        let (offered, offers) = self.offer(snapshots.clone(), &config, taken_out, conflicts);
        self.metrics.show_offered(offered.clone());
        self.register(offers);
        let ask = Arc::new(Notify::new());
        let pods = self.follow_pods(Arc::clone(&ask));
        self.metrics.show_pods(pods.clone());
        let uses = self.follow_processes(readings, pods, ask);
        self.metrics.show_uses(uses.clone());
        // Only now that every other part has a check of its own.
        configured.holds();
        let resource = config.borrow().resource.clone();
        tracing::info!(%resource, "the GPU device plugin serves");
        if let Some(node_name) = self.arguments.node_name.clone() {
            let said = Said {
                resource,
                snapshots,
                offered,
                uses,
                refused,
                out_of_service,
            };
            self.claim(node_name, said).await;
        }
    }

    /// Waits for a configuration that can be used, and follows it from then on. Without one
    /// nothing is offered: not all that a wrong file would have excluded.
    async fn configure(&self, configured: &Check) -> Configured {
        let node_name = self.arguments.node_name.as_deref();
        let source = self.arguments.config.source(node_name);
        let first = source.first(&self.config_metrics, |why| {
            tracing::error!("nothing is offered until the configuration is right: {why}");
            configured.fails(why);
        });
        let config = first.await;
        tracing::info!("this configuration is in effect:\n{config}");
        let (config_sender, config) = watch::channel(Arc::new(config));
        let (refused_sender, refused) = watch::channel(None);
        if source.file.is_some() {
            let following = Following {
                source,
                config: config_sender,
                refused: refused_sender,
                metrics: self.config_metrics.clone(),
            };
            self.tasks.spawn(following.run(self.stop.clone()));
        }
        Configured { config, refused }
    }

    fn follow_driver(
        &self,
        config: &watch::Receiver<Arc<Config>>,
        readings: watch::Sender<Readings>,
    ) -> watch::Receiver<Snapshot> {
        let not_yet = "the NVIDIA driver has not answered yet";
        let checks = Checks {
            driver: self.readiness.check("driver", not_yet),
            events: self.readiness.check("events", not_yet),
        };
        let (sender, snapshots) = watch::channel(Snapshot::default());
        let source = self.arguments.driver.source();
        let mut watcher = Watcher::new(source, Pace::default(), self.metrics.clone(), sender)
            .ruled_by(config.clone())
            .telling(readings);
        match std::fs::read_to_string(BOOT) {
            Ok(boot) => {
                watcher = watcher.recording(Records::new(&self.arguments.state_dir, &boot));
            }
            // Without it, what is written down would outlive a reboot.
            Err(error) => tracing::warn!(
                "what waits for a reset is not written down: {BOOT} cannot be read: {error}"
            ),
        }
        self.tasks.spawn(watcher.run(self.stop.clone()));
        let following = checks.follow(snapshots.clone(), self.stop.clone());
        self.tasks.spawn(following);
        snapshots
    }

    fn offer(
        &self,
        snapshots: watch::Receiver<Snapshot>,
        config: &watch::Receiver<Arc<Config>>,
        out_of_service: watch::Receiver<BTreeSet<String>>,
        conflicts: watch::Receiver<Conflicts>,
    ) -> (watch::Receiver<Offered>, watch::Receiver<Offers>) {
        let (offers_sender, offers) = watch::channel(Offers::new());
        let (offered_sender, offered) = watch::channel(Offered::default());
        let offering = Offering {
            sources: Sources {
                snapshots,
                config: config.clone(),
                out_of_service,
                conflicts,
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

    /// Looks for other plugins with the same cards: at first before anything is offered, so
    /// that no pod gets a card in between.
    async fn look_out(&self, config: &watch::Receiver<Arc<Config>>) -> watch::Receiver<Conflicts> {
        let own = config.borrow().resource.clone();
        let socket = self.arguments.pod_resources_socket();
        let kubelet = pod_resources::Client::new(&socket, pod_resources::CALL);
        let mut lookout = Lookout::new(own, kubelet, conflict::Pace::default());
        let (sender, conflicts) = watch::channel(lookout.first().await);
        self.tasks.spawn(lookout.run(sender, self.stop.clone()));
        conflicts
    }

    fn register(&self, offers: watch::Receiver<Offers>) {
        let not_yet = "there is no GPU to register with the kubelet yet";
        let registrar = Registrar {
            directory: self.arguments.kubelet_dir.join(DEVICE_PLUGINS),
            offers,
            metrics: self.metrics.clone(),
            standing: Standing::new(self.readiness.check("kubelet", not_yet)),
        };
        self.tasks.spawn(registrar.run(self.stop.clone()));
    }

    /// Follows which pod has which device, as far as the kubelet tells. What needs to know says
    /// so where it does not: no GPU is worse for it.
    fn follow_pods(&self, allocated: Arc<Notify>) -> watch::Receiver<Option<PodsByDevice>> {
        let (pods, followed) = watch::channel(None);
        let socket = self.arguments.pod_resources_socket();
        let watcher = pod_resources::Watcher {
            client: pod_resources::Client::new(&socket, pod_resources::CALL),
            pace: pod_resources::Pace::default(),
            allocated,
            pods,
            up: self.pod_resources_up.clone(),
        };
        self.tasks.spawn(watcher.run(self.stop.clone()));
        followed
    }

    /// Follows whose processes run on the GPUs.
    fn follow_processes(
        &self,
        readings: watch::Receiver<Readings>,
        pods: watch::Receiver<Option<PodsByDevice>>,
        ask: Arc<Notify>,
    ) -> watch::Receiver<Uses> {
        let (uses, followed) = watch::channel(Uses::new());
        let watcher = processes::watcher::Watcher {
            host: Host {
                procfs: PathBuf::from("/proc"),
                pod_logs: self.arguments.pod_logs_dir.clone(),
            },
            every: PROCESSES,
            patience: Patience::default(),
            readings,
            pods,
            ask,
            uses,
        };
        self.tasks.spawn(watcher.run(self.stop.clone()));
        followed
    }

    async fn claim(&self, node_name: String, said: Said) {
        match connect(self.client_metrics.clone()).await {
            Ok(client) => {
                let claiming = Claiming {
                    client,
                    node_name,
                    resource: said.resource,
                    snapshots: said.snapshots,
                    offered: said.offered,
                    uses: said.uses,
                    refused: said.refused,
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
