//! Which pod has which device, as the kubelet tells in its pod-resources API (v1).
//!
//! A device plugin is never told which pod it allocates for, and to guess it is wrong sooner
//! or later. The kubelet answers on a socket of its own. Where that socket is not mounted
//! nothing else suffers: devices are given as ever, and what needs the answer says that it
//! does not know.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntGauge, Registry};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};

use api::pod_resources_lister_client::PodResourcesListerClient;
use api::{AllocatableResourcesRequest, ListPodResourcesRequest, ListPodResourcesResponse};

use crate::socket::connect_lazily;

/// The API's messages and services, generated from `proto/podresources.proto`.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "generated code"
)]
pub mod api {
    tonic::include_proto!("v1");
}

/// How long the kubelet is usually given to answer.
pub const CALL: Duration = Duration::from_secs(5);
/// Largest answer that is read, in bytes: some ten thousand containers.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A container that has a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Holder {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// The resource that it asked for, such as `creo.cloud/gpu`; not always one of ours.
    pub resource: String,
}

/// The containers that have devices, by the kubelet's id of the device. A device has more than
/// one holder where two plugins use one id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodsByDevice(BTreeMap<String, BTreeSet<Holder>>);

impl PodsByDevice {
    /// The containers that have the device of this id.
    pub fn holders(&self, device_id: &str) -> impl Iterator<Item = &Holder> {
        self.0.get(device_id).into_iter().flatten()
    }

    /// Every device that a container has, with that container, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Holder)> {
        self.0
            .iter()
            .flat_map(|(id, holders)| holders.iter().map(|holder| (id.as_str(), holder)))
    }
}

impl<'a> FromIterator<(&'a str, Holder)> for PodsByDevice {
    fn from_iter<T: IntoIterator<Item = (&'a str, Holder)>>(pairs: T) -> Self {
        let mut devices = BTreeMap::<String, BTreeSet<Holder>>::new();
        for (id, holder) in pairs {
            devices.entry(id.to_owned()).or_default().insert(holder);
        }
        Self(devices)
    }
}

impl From<ListPodResourcesResponse> for PodsByDevice {
    fn from(answer: ListPodResourcesResponse) -> Self {
        let mut devices = BTreeMap::<String, BTreeSet<Holder>>::new();
        for pod in answer.pod_resources {
            for container in pod.containers {
                for given in container.devices {
                    let holder = Holder {
                        namespace: pod.namespace.clone(),
                        pod: pod.name.clone(),
                        container: container.name.clone(),
                        resource: given.resource_name,
                    };
                    for id in given.device_ids {
                        devices.entry(id).or_default().insert(holder.clone());
                    }
                }
            }
        }
        Self(devices)
    }
}

/// Why the kubelet did not tell.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodResourcesError {
    /// There is no socket.
    #[error("the kubelet's pod-resources socket {} is not there; mount its directory, or name it with --pod-resources-socket", .0.display())]
    Absent(PathBuf),
    /// This kubelet does not know the question.
    #[error("the kubelet's pod-resources API at {} does not know {call}: it is older than Kubernetes 1.23, or has it switched off", socket.display())]
    Unimplemented {
        /// Where it was asked.
        socket: PathBuf,
        /// What it was asked.
        call: &'static str,
    },
    /// It does not answer, or not with what was asked for.
    #[error("the kubelet's pod-resources API at {} does not answer: {why}", socket.display())]
    Silent {
        /// Where it was asked.
        socket: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// Asks the kubelet. It connects when it is first asked, and anew whenever the kubelet has
/// gone away; cloning shares the connection.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    kubelet: PodResourcesListerClient<Channel>,
}

impl Client {
    /// A client of the kubelet behind this socket, whether it is there yet or not, that waits
    /// so long for each answer ([`CALL`]). It needs a tokio runtime around it.
    #[must_use]
    pub fn new(socket: &Path, call: Duration) -> Self {
        let channel = connect_lazily(socket, call);
        Self {
            socket: socket.to_owned(),
            kubelet: PodResourcesListerClient::new(channel)
                .max_decoding_message_size(ANSWER_BYTES_MAX),
        }
    }

    /// The devices that containers have now, of every plugin.
    pub async fn list(&self) -> Result<PodsByDevice, PodResourcesError> {
        match self.kubelet.clone().list(ListPodResourcesRequest {}).await {
            Ok(answer) => Ok(answer.into_inner().into()),
            Err(status) => Err(self.error("List", &status)),
        }
    }

    /// The ids of the healthy devices of every plugin on this node, given to a container or
    /// not, by resource.
    pub async fn allocatable(
        &self,
    ) -> Result<BTreeMap<String, BTreeSet<String>>, PodResourcesError> {
        let answer = self
            .kubelet
            .clone()
            .get_allocatable_resources(AllocatableResourcesRequest {})
            .await
            .map_err(|status| self.error("GetAllocatableResources", &status))?;
        let mut devices = BTreeMap::<String, BTreeSet<String>>::new();
        for offered in answer.into_inner().devices {
            // The kubelet lists a resource once for each NUMA node.
            devices
                .entry(offered.resource_name)
                .or_default()
                .extend(offered.device_ids);
        }
        Ok(devices)
    }

    fn error(&self, call: &'static str, status: &Status) -> PodResourcesError {
        let socket = self.socket.clone();
        if status.code() == Code::Unimplemented {
            return PodResourcesError::Unimplemented { socket, call };
        }
        let mut why = status.message().to_owned();
        let mut cause = std::error::Error::source(status);
        while let Some(deeper) = cause {
            if let Some(failed) = deeper.downcast_ref::<io::Error>()
                && failed.kind() == io::ErrorKind::NotFound
            {
                return PodResourcesError::Absent(socket);
            }
            // The deepest one says most; those above it say "transport error".
            why = deeper.to_string();
            cause = deeper.source();
        }
        PodResourcesError::Silent { socket, why }
    }
}

/// When the kubelet is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Between two questions while it answers.
    pub every: Duration,
    /// Between two questions while it does not.
    pub missing: Duration,
    /// From an allocation to the question that it causes: the kubelet writes it down after
    /// the plugin's answer.
    pub settle: Duration,
    /// How long the last answer is good while the kubelet does not answer. Without it no
    /// container starts, so what it said last stays true for a while.
    pub keep: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(3),
            missing: Duration::from_secs(10),
            settle: Duration::from_millis(200),
            keep: Duration::from_secs(30),
        }
    }
}

/// Follows which container has which device.
#[derive(Debug)]
pub struct Watcher {
    /// Whom it asks.
    pub client: Client,
    /// When it asks.
    pub pace: Pace,
    /// Whoever allocates a device says so here, and it is asked soon.
    pub allocated: Arc<Notify>,
    /// What the kubelet says; nothing while it does not say.
    pub pods: watch::Sender<Option<PodsByDevice>>,
    /// 1 while the kubelet answers.
    pub up: IntGauge,
}

/// The gauge of a [`Watcher`], registered.
pub fn register_up(registry: &Registry) -> Result<IntGauge, prometheus::Error> {
    let up = IntGauge::new(
        "creo_gpu_plugin_pod_resources_up",
        "Whether the kubelet tells which pod has which device.",
    )?;
    registry.register(Box::new(up.clone()))?;
    Ok(up)
}

impl Watcher {
    /// Follows until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(self) {
        let mut trouble: Option<PodResourcesError> = None;
        let mut answered: Option<Instant> = None;
        loop {
            let pause = match self.client.list().await {
                Ok(pods) => {
                    if trouble.take().is_some() {
                        tracing::info!("the kubelet tells which pod has which GPU");
                    }
                    answered = Some(Instant::now());
                    self.up.set(1);
                    self.publish(Some(pods));
                    self.pace.every
                }
                Err(error) => {
                    // Once for each kind of trouble, and not at every question.
                    if trouble.as_ref() != Some(&error) {
                        tracing::warn!(
                            "{error}; which pod has which GPU, and whether a stranger uses one, is not known meanwhile"
                        );
                        trouble = Some(error);
                    }
                    self.up.set(0);
                    if answered.is_none_or(|at| at.elapsed() >= self.pace.keep) {
                        self.publish(None);
                        self.pace.missing
                    } else {
                        self.pace.every
                    }
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = self.allocated.notified() => sleep(self.pace.settle).await,
            }
        }
    }

    fn publish(&self, pods: Option<PodsByDevice>) {
        self.pods.send_if_modified(|current| {
            let changed = *current != pods;
            if changed {
                *current = pods;
            }
            changed
        });
    }
}
