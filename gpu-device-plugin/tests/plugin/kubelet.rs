//! A kubelet, as far as a device plugin can tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use creo_gpu_device_plugin::kubelet::api::device_plugin_client::DevicePluginClient;
use creo_gpu_device_plugin::kubelet::api::registration_server::{Registration, RegistrationServer};
use creo_gpu_device_plugin::kubelet::api::{Empty, RegisterRequest};
use creo_gpu_device_plugin::socket::connect;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Server};
use tonic::{Request, Response, Status};

use crate::machine::PATIENCE;

/// Health of each device, by id.
pub type List = BTreeMap<String, String>;

/// What the kubelet has seen.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    pub registrations: Vec<RegisterRequest>,
    /// Every list of the newest registration.
    pub lists: Vec<List>,
    /// The newest list of each resource whose plugin has not gone.
    pub resources: BTreeMap<String, List>,
}

pub struct Kubelet {
    directory: PathBuf,
    pub seen: watch::Receiver<Seen>,
    stop: CancellationToken,
}

/// How a kubelet takes registrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It dials the plugin at once.
    Good,
    /// It refuses every plugin.
    Refuses,
    /// It never answers.
    Hangs,
    /// It answers at once, and dials the plugin after this time.
    DialsAfter(Duration),
}

#[derive(Clone)]
struct Service {
    manner: Manner,
    directory: PathBuf,
    seen: watch::Sender<Seen>,
    stop: CancellationToken,
}

impl Kubelet {
    /// Starts as a kubelet does: everything in its directory is wiped first.
    pub fn start(directory: &Path) -> Self {
        Self::start_as(directory, Manner::Good)
    }

    /// Starts, and takes registrations in this manner.
    pub fn start_as(directory: &Path, manner: Manner) -> Self {
        wipe(directory);
        let (sender, seen) = watch::channel(Seen::default());
        let listener = UnixListener::bind(directory.join("kubelet.sock")).unwrap();
        let stop = CancellationToken::new();
        let service = Service {
            manner,
            directory: directory.to_owned(),
            seen: sender,
            stop: stop.clone(),
        };
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(async move {
            Server::builder()
                .add_service(RegistrationServer::new(service))
                .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended)
                .await
                .unwrap();
        });
        Self {
            directory: directory.to_owned(),
            seen,
            stop,
        }
    }

    /// Waits until what was seen is so.
    pub async fn until(&mut self, holds: impl FnMut(&Seen) -> bool) -> Seen {
        let waited = timeout(PATIENCE, self.seen.wait_for(holds)).await;
        if let Ok(found) = waited {
            return found.unwrap().clone();
        }
        drop(waited);
        panic!("it never held; at last: {:#?}", *self.seen.borrow())
    }

    /// Waits for a list in which so many devices are healthy.
    pub async fn until_healthy(&mut self, count: usize) -> List {
        let seen = self
            .until(|seen| {
                seen.lists
                    .last()
                    .is_some_and(|list| healthy(list).len() == count)
            })
            .await;
        seen.lists.last().unwrap().clone()
    }

    /// Waits until the resources, and how many healthy devices each has, are these.
    pub async fn until_resources(&mut self, wanted: &[(&str, usize)]) -> BTreeMap<String, List> {
        let wanted: BTreeMap<&str, usize> = wanted.iter().copied().collect();
        let seen = self
            .until(|seen| {
                let resources = seen.resources.iter();
                resources
                    .map(|(resource, list)| (resource.as_str(), healthy(list).len()))
                    .collect::<BTreeMap<_, _>>()
                    == wanted
            })
            .await;
        seen.resources
    }

    /// A client of the plugin that registered last.
    pub async fn plugin(&mut self) -> DevicePluginClient<Channel> {
        let seen = self.until(|seen| !seen.registrations.is_empty()).await;
        self.plugin_of(&seen.registrations.last().unwrap().resource_name)
            .await
    }

    /// A client of the plugin that registered this resource.
    pub async fn plugin_of(&mut self, resource: &str) -> DevicePluginClient<Channel> {
        let of = |seen: &Seen| {
            let registrations = seen.registrations.iter().rev();
            registrations
                .filter(|registered| registered.resource_name == resource)
                .map(|registered| registered.endpoint.clone())
                .next()
        };
        let seen = self.until(|seen| of(seen).is_some()).await;
        let endpoint = self.directory.join(of(&seen).unwrap());
        DevicePluginClient::new(connect(&endpoint, PATIENCE).await.unwrap())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The ids of the healthy devices.
pub fn healthy(list: &List) -> Vec<String> {
    list.iter()
        .filter(|(_, health)| *health == "Healthy")
        .map(|(id, _)| id.clone())
        .collect()
}

pub fn wipe(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        assert!(!request.endpoint.contains('/'));
        match self.manner {
            Manner::Good => {}
            Manner::Refuses => return Err(Status::unknown("requested API version is not known")),
            Manner::Hangs => std::future::pending::<()>().await,
            Manner::DialsAfter(time) => {
                let (service, request) = (self.clone(), request);
                tokio::spawn(async move {
                    sleep(time).await;
                    service.dial(request).await.unwrap();
                });
                return Ok(Response::new(Empty {}));
            }
        }
        // The real one dials inside this call, too.
        self.dial(request).await?;
        Ok(Response::new(Empty {}))
    }
}

impl Service {
    async fn dial(&self, request: RegisterRequest) -> Result<(), Status> {
        let channel = connect(&self.directory.join(&request.endpoint), PATIENCE)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let resource = request.resource_name.clone();
        self.seen.send_modify(|seen| {
            seen.registrations.push(request);
            seen.lists.clear();
        });
        let (seen, stop) = (self.seen.clone(), self.stop.clone());
        tokio::spawn(async move {
            let mut plugin = DevicePluginClient::new(channel);
            let mut lists = plugin.list_and_watch(Empty {}).await.unwrap().into_inner();
            while let Some(Ok(Some(list))) = stop.run_until_cancelled(lists.message()).await {
                let list: List = list
                    .devices
                    .into_iter()
                    .map(|device| (device.id, device.health))
                    .collect();
                seen.send_modify(|seen| {
                    seen.resources.insert(resource.clone(), list.clone());
                    seen.lists.push(list);
                });
            }
            seen.send_modify(|seen| {
                seen.resources.remove(&resource);
            });
        });
        Ok(())
    }
}
