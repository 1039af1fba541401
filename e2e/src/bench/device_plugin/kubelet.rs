//! A kubelet, as far as the bench needs one.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use creo_gpu_device_plugin::kubelet::api::{
    Empty, RegisterRequest,
    device_plugin_client::DevicePluginClient,
    registration_server::{Registration, RegistrationServer},
};
use creo_gpu_device_plugin::socket::connect;
use tokio::{net::UnixListener, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server},
};

use crate::error::{Context as _, Error, Result};

const PATIENCE: Duration = Duration::from_mins(1);

/// What was heard of the plugin.
#[derive(Debug, Clone, Default)]
struct Seen {
    registered: Option<(Instant, String)>,
    healthy: BTreeMap<String, bool>,
}

/// Takes one plugin; ends when it is dropped.
pub(super) struct Kubelet {
    directory: PathBuf,
    seen: watch::Receiver<Seen>,
    stop: CancellationToken,
}

struct Service {
    directory: PathBuf,
    seen: watch::Sender<Seen>,
    stop: CancellationToken,
}

impl Kubelet {
    /// Wipes the folder, as a kubelet does, and takes registrations.
    pub(super) fn start(directory: &Path) -> Result<Self> {
        let wiping = || format!("wiping {}", directory.display());
        for entry in fs::read_dir(directory).doing(wiping)? {
            fs::remove_file(entry.doing(wiping)?.path()).doing(wiping)?;
        }
        let listener = UnixListener::bind(directory.join("kubelet.sock"))
            .doing(|| "making kubelet.sock".to_owned())?;
        let (sender, seen) = watch::channel(Seen::default());
        let stop = CancellationToken::new();
        let service = Service {
            directory: directory.to_owned(),
            seen: sender,
            stop: stop.clone(),
        };
        let served = Server::builder()
            .add_service(RegistrationServer::new(service))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(served);
        Ok(Self {
            directory: directory.to_owned(),
            seen,
            stop,
        })
    }

    /// Waits for a registration; gives when it came.
    pub(super) async fn until_registered(&mut self) -> Result<Instant> {
        let seen = self
            .until("a registration", |seen| seen.registered.is_some())
            .await?;
        seen.registered
            .map(|(moment, _)| moment)
            .ok_or_else(|| Error::malformed("the bench", "no registration"))
    }

    /// Waits until exactly so many devices are healthy.
    pub(super) async fn until_healthy(&mut self, count: usize) -> Result<()> {
        let what = format!("{count} healthy devices");
        let is_so = |seen: &Seen| {
            !seen.healthy.is_empty()
                && seen.healthy.values().filter(|healthy| **healthy).count() == count
        };
        self.until(&what, is_so).await.map(drop)
    }

    /// The ids of the devices.
    pub(super) fn devices(&self) -> Vec<String> {
        self.seen.borrow().healthy.keys().cloned().collect()
    }

    /// A client of the plugin that registered.
    pub(super) async fn plugin(&mut self) -> Result<DevicePluginClient<Channel>> {
        let seen = self
            .until("a registration", |seen| seen.registered.is_some())
            .await?;
        let (_, endpoint) = seen.registered.unwrap_or((Instant::now(), String::new()));
        connect(&self.directory.join(endpoint), PATIENCE)
            .await
            .map(DevicePluginClient::new)
            .map_err(|error| Error::malformed("the plugin's socket", error))
    }

    async fn until(&mut self, what: &str, holds: impl FnMut(&Seen) -> bool) -> Result<Seen> {
        match tokio::time::timeout(PATIENCE, self.seen.wait_for(holds)).await {
            Ok(Ok(seen)) => Ok(seen.clone()),
            Ok(Err(ended)) => Err(Error::malformed(what, ended)),
            Err(_elapsed) => Err(Error::Timeout {
                what: what.to_owned(),
                within: PATIENCE,
                last: "it did not come".to_owned(),
            }),
        }
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> std::result::Result<Response<Empty>, Status> {
        let registered = Instant::now();
        let endpoint = request.into_inner().endpoint;
        // As the real one, which dials inside this call.
        let channel = connect(&self.directory.join(&endpoint), PATIENCE)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        self.seen
            .send_modify(|seen| seen.registered = Some((registered, endpoint)));
        tokio::spawn(listen(channel, self.seen.clone(), self.stop.clone()));
        Ok(Response::new(Empty {}))
    }
}

/// Takes the plugin's lists until the end.
async fn listen(channel: Channel, seen: watch::Sender<Seen>, stop: CancellationToken) {
    let mut plugin = DevicePluginClient::new(channel);
    // Whoever waits for a list is told by the time that runs out.
    let Ok(lists) = plugin.list_and_watch(Empty {}).await else {
        return;
    };
    let mut lists = lists.into_inner();
    while let Some(Ok(Some(list))) = stop.run_until_cancelled(lists.message()).await {
        let healthy = list
            .devices
            .into_iter()
            .map(|device| (device.id, device.health == "Healthy"))
            .collect();
        seen.send_modify(|seen| seen.healthy = healthy);
    }
}
