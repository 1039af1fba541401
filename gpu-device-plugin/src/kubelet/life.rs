//! The life of the plugin's socket: served, dialled, registered, and all of it again whenever
//! the kubelet starts anew.
//!
//! The kubelet wipes every socket of its directory when it starts, and dials a plugin inside
//! the call that registers it. So the plugin serves, dials itself, and only then registers;
//! and it looks at both sockets several times a second, because a notice of the file system
//! does not survive a directory that is wiped as a whole.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use creo_process::probes::Check;
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Server};
use tower::service_fn;

use super::api::device_plugin_client::DevicePluginClient;
use super::api::device_plugin_server::DevicePluginServer;
use super::api::registration_client::RegistrationClient;
use super::api::{Empty, RegisterRequest};
use super::service::{Listeners, Offer, Plugin, options};
use super::{KUBELET_SOCKET, VERSION};
use crate::metrics::Metrics;
use crate::resource::Resource;

/// Time between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(250);
/// Longest time that a call to the kubelet or to oneself may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a registered plugin waits for the kubelet to ask for the list.
const LISTEN: Duration = Duration::from_secs(10);
/// How long a server may take to end.
const END: Duration = Duration::from_secs(2);
/// First and longest pause after a failed attempt; the pause doubles from one to the other.
const PAUSE_MS: (u64, u64) = (200, 5_000);

/// Serves the plugin and keeps it registered.
#[derive(Debug)]
pub struct Life {
    /// The kubelet's directory for device plugins.
    pub directory: PathBuf,
    /// The resource that is offered.
    pub resource: Resource,
    /// What is offered. Nothing is registered while it is empty.
    pub offers: watch::Receiver<Offer>,
    /// Counts registrations.
    pub metrics: Metrics,
    /// Holds while the plugin is registered.
    pub registered: Check,
}

/// Why the plugin is not (or no longer) registered.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{KUBELET_SOCKET} is not in {}; start the kubelet, or name its directory with --kubelet-dir", .0.display())]
    NoKubelet(PathBuf),
    #[error("the plugin's socket {} cannot be made: {source}", path.display())]
    Bind { path: PathBuf, source: io::Error },
    #[error("the plugin does not answer on its own socket: {0}")]
    SelfDial(String),
    #[error("the kubelet refused the plugin: {0}")]
    Refused(String),
    #[error("the kubelet does not answer: {0}")]
    KubeletSilent(String),
    #[error("the plugin's socket was removed")]
    SocketGone,
    #[error("the kubelet started anew")]
    KubeletNew,
    #[error("the kubelet stopped listening to the plugin")]
    NotListening,
    #[error("the plugin's server ended")]
    ServerEnded,
}

/// Tells a socket from another of the same name. Inode numbers are used again, times are not.
type Identity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<Identity> {
    let file = fs::symlink_metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.ctime(), file.ctime_nsec()))
}

/// A running server and its socket.
struct Serving {
    path: PathBuf,
    identity: Option<Identity>,
    listeners: Listeners,
    stop: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Life {
    /// Lives until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let living = async {
            // An error means that the offering ended, and so does the process.
            if self
                .offers
                .wait_for(|offer| !offer.is_empty())
                .await
                .is_ok()
            {
                self.live(&stop).await;
            }
        };
        tokio::select! {
            () = living => {}
            () = stop.cancelled() => {}
        }
        let _ = fs::remove_file(self.directory.join(self.resource.socket_name()));
    }

    async fn live(&self, stop: &CancellationToken) {
        let mut failures = 0;
        loop {
            let trouble = match self.register(stop).await {
                Ok((serving, kubelet)) => {
                    failures = 0;
                    let trouble = self.stay(&serving, kubelet).await;
                    tracing::warn!("{trouble}: registering again");
                    serving.end().await;
                    trouble
                }
                Err(trouble) => {
                    if failures == 0 {
                        tracing::warn!("not registered: {trouble}");
                    }
                    failures += 1;
                    trouble
                }
            };
            self.registered.fails(trouble.to_string());
            match trouble {
                // Told by the next look; no back-off, since nothing was asked of anyone.
                Trouble::NoKubelet(_) => sleep(LOOK).await,
                _ => sleep(pause(failures)).await,
            }
        }
    }

    /// Serves, dials itself, registers.
    async fn register(&self, stop: &CancellationToken) -> Result<(Serving, Identity), Trouble> {
        let kubelet = self.directory.join(KUBELET_SOCKET);
        let Some(identity) = identity(&kubelet) else {
            return Err(Trouble::NoKubelet(self.directory.clone()));
        };
        let serving = self.serve(stop)?;
        let outcome = async {
            dial_oneself(&serving.path).await?;
            self.call_kubelet(&kubelet).await
        }
        .await;
        match outcome {
            Ok(()) => {
                self.metrics.registration(true);
                self.registered.holds();
                tracing::info!(resource = %self.resource, "registered with the kubelet");
                Ok((serving, identity))
            }
            Err(trouble) => {
                self.metrics.registration(false);
                serving.end().await;
                Err(trouble)
            }
        }
    }

    fn serve(&self, stop: &CancellationToken) -> Result<Serving, Trouble> {
        let path = self.directory.join(self.resource.socket_name());
        let listener = bind(&path).map_err(|source| Trouble::Bind {
            path: path.clone(),
            source,
        })?;
        let identity = identity(&path);
        let stop = stop.child_token();
        let listeners = Listeners::default();
        let plugin = Plugin::new(
            self.resource.clone(),
            self.offers.clone(),
            self.metrics.clone(),
            listeners.clone(),
            stop.clone(),
        );
        let serving = Server::builder()
            .add_service(DevicePluginServer::new(plugin))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        Ok(Serving {
            path,
            identity,
            listeners,
            stop,
            server: tokio::spawn(serving),
        })
    }

    async fn call_kubelet(&self, socket: &Path) -> Result<(), Trouble> {
        let silent = |error: tonic::transport::Error| Trouble::KubeletSilent(deepest(&error));
        let mut kubelet = RegistrationClient::new(connect(socket).await.map_err(silent)?);
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: self.resource.socket_name(),
            resource_name: self.resource.to_string(),
            options: Some(options()),
        };
        match kubelet.register(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(Trouble::Refused(status.message().to_owned())),
        }
    }

    /// Watches the sockets until something is wrong.
    async fn stay(&self, serving: &Serving, kubelet: Identity) -> Trouble {
        let kubelet_path = self.directory.join(KUBELET_SOCKET);
        let mut heard = Instant::now();
        loop {
            sleep(LOOK).await;
            if serving.server.is_finished() {
                return Trouble::ServerEnded;
            }
            if identity(&serving.path) != serving.identity {
                return Trouble::SocketGone;
            }
            // A kubelet that is away will come back with another socket.
            if identity(&kubelet_path).is_some_and(|now| now != kubelet) {
                return Trouble::KubeletNew;
            }
            if serving.listeners.count() > 0 || identity(&kubelet_path).is_none() {
                heard = Instant::now();
            }
            if heard.elapsed() > LISTEN {
                return Trouble::NotListening;
            }
        }
    }
}

impl Serving {
    async fn end(mut self) {
        self.stop.cancel();
        if timeout(END, &mut self.server).await.is_err() {
            self.server.abort();
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        // Left by a process that was killed.
        Ok(file) if file.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::other(
                "something that is no socket is in its place",
            ));
        }
        Err(_) => {}
    }
    UnixListener::bind(path)
}

async fn dial_oneself(path: &Path) -> Result<(), Trouble> {
    let failed = |error: String| Trouble::SelfDial(error);
    let channel = connect(path)
        .await
        .map_err(|error| failed(deepest(&error)))?;
    DevicePluginClient::new(channel)
        .get_device_plugin_options(Empty {})
        .await
        .map(drop)
        .map_err(|status| failed(status.message().to_owned()))
}

async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    // The address is never used: the connector knows the socket.
    Endpoint::from_static("http://localhost")
        .connect_timeout(CALL)
        .timeout(CALL)
        .connect_with_connector(service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

/// The cause that an error hides behind "transport error".
fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// How long to wait after so many failures: doubling, bounded, and different on each node,
/// since kubelets are restarted many at a time.
fn pause(failures: u32) -> Duration {
    let (first_ms, longest_ms) = PAUSE_MS;
    let most_ms = first_ms
        .saturating_mul(1 << failures.min(16))
        .min(longest_ms);
    // The standard library's hasher is seeded at random: enough to spread nodes.
    let random = RandomState::new().hash_one(failures);
    Duration::from_millis(most_ms / 2 + random % (most_ms / 2 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        for failures in 0..40 {
            let pause = pause(failures).as_millis();
            assert!(
                (100..=5_000).contains(&pause),
                "{pause} ms after {failures}"
            );
        }
        assert!(pause(30).as_millis() >= 2_500);
        let different: std::collections::BTreeSet<_> = (0..50).map(|_| pause(30)).collect();
        assert!(different.len() > 10);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("creo.cloud-gpu.sock");
        fs::write(&path, "precious").unwrap();
        assert!(bind(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
