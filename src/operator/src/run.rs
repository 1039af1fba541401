//! `creo operator` from its start to its end.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use creo_api::labels;
use creo_process::CancellationToken;
use creo_process::client::{self, CALL_TIMEOUT, ClientMetrics, ClientOptions, ConnectError};
use creo_process::probes::{Probes, ProbesError, Readiness};
use creo_process::prometheus::{self, Registry};
use creo_process::shutdown::drain;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio_util::task::TaskTracker;

use crate::arguments::OperatorArgs;
use crate::base::cache::{Watch, keep};
use crate::base::leader::{Candidate, Leadership, LeaseSettings, LostLease};
use crate::base::{Cache, Publisher, Runner};
use crate::deployment::Deployments;
use crate::deployment::remains::Remains;
use crate::engine::{self, EngineError};
use crate::fleet::Reservations;
use crate::isolation::Isolations;
use crate::kinds;
use crate::node::CreoNodes;
use crate::placement::Placements;
use crate::settings::{Canaries, Settings};
use crate::wiring::{Caches, Queues, connect};

/// How long what is under way may take to end after the signal to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How long giving the lease up may take.
const RELEASE: Duration = Duration::from_secs(5);

/// Why the operator stopped, or did not start.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// The engine profiles cannot be used.
    #[error(transparent)]
    Engines(#[from] EngineError),
    /// There is no cluster to talk to.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The probes cannot be served.
    #[error(transparent)]
    Probes(#[from] ProbesError),
    /// A metric was registered twice.
    #[error("the metrics cannot be set up: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Another operator may write now.
    #[error(transparent)]
    LostLease(#[from] LostLease),
}

impl OperatorError {
    /// Whether the arguments or the files they name are at fault, so that starting again changes
    /// nothing.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Engines(_))
    }
}

/// Runs until `stop` is cancelled, or until the lease is lost.
pub async fn run(args: OperatorArgs, stop: CancellationToken) -> Result<(), OperatorError> {
    let engines = Arc::new(engine::load(&args.engines_dir)?);
    let registry = Registry::new();
    let readiness = Readiness::new();
    let probes = Probes::bind(args.metrics_address, registry.clone(), readiness.clone()).await?;
    if let Ok(address) = probes.address() {
        tracing::info!(%address, engines = engines.len(), version = env!("CARGO_PKG_VERSION"), "started");
    }
    let serving = CancellationToken::new();
    let served = tokio::spawn(probes.serve(serving.clone()));

    let leadership = Leadership::default();
    let (client, candidate) = clients(&args, &registry, leadership).await?;
    let identity = identity();
    let (publisher, events) = Publisher::new(&registry, client.clone(), identity)?;
    let sending = tokio::spawn(events.run());
    let settings = Arc::new(args.settings());
    let operator = Operator {
        engines,
        concurrency: usize::from(args.concurrency),
        caches: Caches::new(settings.canaries.is_some()),
        settings,
        queues: Queues::default(),
        client,
        publisher,
    };
    let ended = operator.work(candidate, &readiness, &stop).await;
    sending.abort();
    serving.cancel();
    served.abort();
    ended
}

/// The client that works, and the candidate with a client of its own: the lease is what opens
/// the gate of the first, and must be renewed faster than it expires.
async fn clients(
    args: &OperatorArgs,
    registry: &Registry,
    leadership: Leadership,
) -> Result<(Client, Candidate), OperatorError> {
    let config = client::infer().await?;
    let options = ClientOptions {
        user_agent: concat!("creo-operator/", env!("CARGO_PKG_VERSION")).to_owned(),
        call_timeout: CALL_TIMEOUT,
        metrics: ClientMetrics::register(registry)?,
        gate: Some(Arc::new(leadership.clone())),
    };
    let lease_options = ClientOptions {
        call_timeout: args.lease_duration / 3,
        gate: None,
        ..options.clone()
    };
    let client = client::connect(config.clone(), options)?;
    let lease_client = client::connect(config, lease_options)?;
    let settings = LeaseSettings {
        namespace: args
            .lease_namespace
            .clone()
            .unwrap_or_else(|| lease_client.default_namespace().to_owned()),
        name: args.lease_name.clone(),
        identity: identity(),
        duration: args.lease_duration,
    };
    Ok((client, Candidate::new(lease_client, settings, leadership)))
}

/// A name that no other process has: the pod's, and a part that another start does not repeat.
fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "creo-operator",
        host => host,
    };
    let unique = RandomState::new().hash_one(std::process::id());
    format!("{host}_{unique:016x}")
}

struct Operator {
    settings: Arc<Settings>,
    engines: Arc<engine::Engines>,
    concurrency: usize,
    caches: Caches,
    queues: Queues,
    client: Client,
    publisher: Publisher,
}

impl Operator {
    async fn work(
        &self,
        mut candidate: Candidate,
        readiness: &Readiness,
        stop: &CancellationToken,
    ) -> Result<(), OperatorError> {
        connect(&self.caches, &self.queues);
        let kinds = readiness.check("kinds", "the API server has not answered yet");
        let watches = TaskTracker::new();
        let ready = async {
            kinds::wait_until_served(&self.client, &kinds).await;
            self.watch_everything(readiness, &watches, stop).await;
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = ready => {}
        }
        tracing::info!("ready; waiting for the lease");
        if !candidate.acquire(stop).await {
            return Ok(());
        }
        self.lead(&mut candidate, stop).await
    }

    /// Works for as long as the lease is held. On the signal to stop, the lease is renewed until
    /// what is under way has ended, and then given up.
    async fn lead(
        &self,
        candidate: &mut Candidate,
        stop: &CancellationToken,
    ) -> Result<(), OperatorError> {
        self.publisher.leading(true);
        let controllers = TaskTracker::new();
        let quit = CancellationToken::new();
        self.start(&controllers, &quit);
        let held = candidate.hold(stop).await;
        quit.cancel();
        if let Err(lost) = held {
            self.publisher.leading(false);
            return Err(lost.into());
        }
        let drained = CancellationToken::new();
        let end = async {
            drain(&controllers, DRAIN).await;
            drained.cancel();
        };
        let ((), held) = tokio::join!(end, candidate.hold(&drained));
        self.publisher.leading(false);
        held?;
        candidate.release(RELEASE).await;
        Ok(())
    }

    fn start(&self, controllers: &TaskTracker, quit: &CancellationToken) {
        let fleet = &self.caches.fleet;
        let reservations = Arc::<Reservations>::default();
        let nodes = CreoNodes::new(
            self.client.clone(),
            Arc::clone(&self.settings),
            fleet.clone(),
            Arc::clone(&reservations),
        );
        let deployments = Deployments {
            client: self.client.clone(),
            settings: Arc::clone(&self.settings),
            engines: Arc::clone(&self.engines),
            deployments: Arc::clone(&self.caches.deployments),
            placements: Arc::clone(&fleet.placements),
            services: Arc::clone(&self.caches.services),
            fleet: fleet.clone(),
            reservations,
            waiting: Arc::clone(&self.queues.waiting),
            remains: Remains::default(),
        };
        let placements = Placements {
            client: self.client.clone(),
            settings: Arc::clone(&self.settings),
            placements: Arc::clone(&fleet.placements),
            pods: Arc::clone(&fleet.pods),
            nodes: Arc::clone(&fleet.nodes),
        };
        if let Some(canaries) = self.settings.canaries.clone() {
            self.start_canaries(canaries, controllers, quit);
        }
        let (queues, publisher) = (&self.queues, &self.publisher);
        let concurrency = self.concurrency;
        let run = Runner::new(
            nodes,
            Arc::clone(&queues.nodes),
            publisher.clone(),
            concurrency,
        );
        controllers.spawn(run.run(quit.clone()));
        let run = Runner::new(
            deployments,
            Arc::clone(&queues.deployments),
            publisher.clone(),
            concurrency,
        );
        controllers.spawn(run.run(quit.clone()));
        let run = Runner::new(
            placements,
            Arc::clone(&queues.placements),
            publisher.clone(),
            concurrency,
        );
        controllers.spawn(run.run(quit.clone()));
    }

    fn start_canaries(
        &self,
        canaries: Canaries,
        controllers: &TaskTracker,
        quit: &CancellationToken,
    ) {
        let isolations = Isolations {
            client: self.client.clone(),
            canaries,
            fleet: self.caches.fleet.clone(),
        };
        let run = Runner::new(
            isolations,
            Arc::clone(&self.queues.isolations),
            self.publisher.clone(),
            self.concurrency,
        );
        controllers.spawn(run.run(quit.clone()));
    }

    /// Starts every watch and waits until each has its first list.
    async fn watch_everything(
        &self,
        readiness: &Readiness,
        watches: &TaskTracker,
        stop: &CancellationToken,
    ) {
        let (caches, fleet) = (&self.caches, &self.caches.fleet);
        let start = Watcher {
            operator: self,
            readiness,
            watches,
            stop,
        };
        let any = watcher::Config::default();
        let ours = any
            .clone()
            .labels(&format!("{}={}", labels::MANAGED_BY, labels::CREO));
        start.watch("agentdeployments", &caches.deployments, any.clone());
        start.watch("creonodes", &fleet.creo_nodes, any.clone());
        start.watch("placements", &fleet.placements, any.clone());
        start.watch("nodes", &fleet.nodes, any.clone());
        start.watch("pods", &fleet.pods, any);
        start.watch("services", &caches.services, ours);
        caches.deployments.wait_until_ready().await;
        caches.services.wait_until_ready().await;
        fleet.creo_nodes.wait_until_ready().await;
        fleet.placements.wait_until_ready().await;
        fleet.nodes.wait_until_ready().await;
        fleet.pods.wait_until_ready().await;
    }
}

struct Watcher<'a> {
    operator: &'a Operator,
    readiness: &'a Readiness,
    watches: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Watcher<'_> {
    fn watch<K>(&self, name: &'static str, cache: &Arc<Cache<K>>, config: watcher::Config)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let watch = Watch {
            api: Api::<DeserializeGuard<K>>::all(self.operator.client.clone()),
            config,
            check: self.readiness.check(name, "the first list is under way"),
        };
        let keep = keep(Arc::clone(cache), watch, self.operator.publisher.clone());
        let stop = self.stop.clone();
        self.watches.spawn(async move {
            tokio::select! {
                () = keep => {}
                () = stop.cancelled() => {}
            }
        });
    }
}
