//! The life of the plugin's socket: served, dialled, registered, and all of it again whenever
//! the kubelet starts anew.
//!
//! The kubelet wipes every socket of its directory when it starts, and dials a plugin inside
//! the call that registers it. So the plugin serves, dials itself, and only then registers;
//! and it looks at both sockets several times a second, because a notice of the file system
//! does not survive a directory that is wiped as a whole.

use std::fmt;
use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use super::api::device_plugin_client::DevicePluginClient;
use super::api::device_plugin_server::DevicePluginServer;
use super::api::registration_client::RegistrationClient;
use super::api::{Empty, RegisterRequest};
use super::offer::Offer;
use super::service::{Listeners, Plugin, options};
use super::standing::Standing;
use super::{KUBELET_SOCKET, VERSION};
use crate::metrics::Metrics;
use crate::resource::Resource;
use crate::socket::connect;

/// Time between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(250);
/// Longest time that a call to the kubelet or to oneself may take.
const CALL: Duration = Duration::from_secs(10);
/// How long a registered plugin waits for the kubelet to ask for the list.
const LISTEN: Duration = Duration::from_secs(10);
/// How long a server may take to end.
const END: Duration = Duration::from_secs(2);
/// How long a registration lasts at least that was a good one.
const LASTING: Duration = Duration::from_secs(10);
/// Most sockets of other plugins that are named.
const BESIDE_MOST: usize = 8;
/// First and longest pause after a failed attempt; the pause doubles from one to the other.
const PAUSE_MS: (u64, u64) = (200, 5_000);

/// Serves the plugin and keeps it registered.
#[derive(Debug)]
pub struct Life {
    /// The kubelet's directory for device plugins.
    pub directory: PathBuf,
    /// The resource that is offered.
    pub resource: Resource,
    /// What is offered.
    pub offers: watch::Receiver<Offer>,
    /// Counts registrations.
    pub metrics: Metrics,
    /// Told whether the resource is registered.
    pub standing: Standing,
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
    #[error("the kubelet has not answered for {} s; look at its log", CALL.as_secs())]
    KubeletHangs,
    #[error("the plugin's socket was removed or replaced")]
    SocketGone,
    #[error("the kubelet started anew")]
    KubeletNew,
    #[error("the kubelet does not listen to the plugin{0}")]
    NotListening(Beside),
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
    /// Lives until the token is cancelled, and takes its socket away then.
    pub async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        while !stop.is_cancelled() {
            let kubelet = identity(&self.directory.join(KUBELET_SOCKET));
            let Some(trouble) = stop
                .run_until_cancelled(self.live(kubelet, &mut failures))
                .await
            else {
                break;
            };
            self.standing
                .not_registered(&self.resource, &trouble.to_string());
            if !matches!(trouble, Trouble::NoKubelet(_)) {
                failures += 1;
            }
            let pause = self.pause(pause(failures), kubelet);
            stop.run_until_cancelled(pause).await;
        }
    }

    /// Registers, and stays until something is wrong.
    async fn live(&self, kubelet: Option<Identity>, failures: &mut u32) -> Trouble {
        let serving = match self.register(kubelet).await {
            Ok(serving) => serving,
            Err(trouble) => {
                if *failures == 0 {
                    tracing::warn!(resource = %self.resource, "not registered: {trouble}");
                }
                return trouble;
            }
        };
        let began = Instant::now();
        let trouble = self.stay(&serving, kubelet).await;
        tracing::warn!(resource = %self.resource, "{trouble}: registering again");
        serving.end().await;
        // A registration that lasts no longer is one of two plugins that take each other's
        // place: they must not keep the kubelet busy.
        if began.elapsed() > LASTING {
            *failures = 0;
        }
        trouble
    }

    /// Waits, and no longer when the kubelet starts anew: what failed with the old one says
    /// nothing about the new one.
    async fn pause(&self, longest: Duration, kubelet: Option<Identity>) {
        let _ = timeout(longest, self.kubelet_other_than(kubelet)).await;
    }

    /// Waits until the kubelet has a socket that is another one than this.
    async fn kubelet_other_than(&self, known: Option<Identity>) {
        let socket = self.directory.join(KUBELET_SOCKET);
        loop {
            match identity(&socket) {
                Some(now) if known != Some(now) => return,
                _ => sleep(LOOK).await,
            }
        }
    }

    /// Serves, dials itself, registers.
    async fn register(&self, kubelet: Option<Identity>) -> Result<Serving, Trouble> {
        if kubelet.is_none() {
            return Err(Trouble::NoKubelet(self.directory.clone()));
        }
        let serving = self.serve()?;
        let outcome = async {
            dial_oneself(&serving.path).await?;
            tokio::select! {
                called = timeout(CALL, self.call_kubelet()) => called.unwrap_or(Err(Trouble::KubeletHangs)),
                // The one that was asked will never answer.
                () = self.kubelet_other_than(kubelet) => Err(Trouble::KubeletNew),
            }
        }
        .await;
        self.metrics.registration(outcome.is_ok());
        match outcome {
            Ok(()) => {
                self.standing.registered(&self.resource);
                tracing::info!(resource = %self.resource, "registered with the kubelet");
                Ok(serving)
            }
            Err(trouble) => {
                serving.end().await;
                Err(trouble)
            }
        }
    }

    fn serve(&self) -> Result<Serving, Trouble> {
        let path = self.directory.join(self.resource.socket_name());
        let listener = bind(&path).map_err(|source| Trouble::Bind {
            path: path.clone(),
            source,
        })?;
        let identity = identity(&path);
        let stop = CancellationToken::new();
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

    async fn call_kubelet(&self) -> Result<(), Trouble> {
        let socket = self.directory.join(KUBELET_SOCKET);
        let silent = |error: tonic::transport::Error| Trouble::KubeletSilent(deepest(&error));
        let mut kubelet = RegistrationClient::new(connect(&socket, CALL).await.map_err(silent)?);
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
    async fn stay(&self, serving: &Serving, kubelet: Option<Identity>) -> Trouble {
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
            if identity(&kubelet_path).is_some_and(|now| Some(now) != kubelet) {
                return Trouble::KubeletNew;
            }
            if serving.listeners.count() > 0 || identity(&kubelet_path).is_none() {
                heard = Instant::now();
            }
            if heard.elapsed() > LISTEN {
                return Trouble::NotListening(Beside::look(&self.directory, &serving.path));
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

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        // Not that of a plugin that has taken this one's place.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The sockets of other plugins, any of which may have registered the same resource: the
/// kubelet then hears the one that did so last.
#[derive(Debug)]
struct Beside(Vec<String>);

impl Beside {
    fn look(directory: &Path, own: &Path) -> Self {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| entry.path() != own && entry.file_name() != KUBELET_SOCKET)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_socket()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names.truncate(BESIDE_MOST);
        Self(names)
    }
}

impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("; look at its log");
        }
        write!(
            f,
            "; if one of {} registers the same resource, remove it or choose another --resource",
            self.0.join(", ")
        )
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
    let channel = connect(path, CALL)
        .await
        .map_err(|error| failed(deepest(&error)))?;
    DevicePluginClient::new(channel)
        .get_device_plugin_options(Empty {})
        .await
        .map(drop)
        .map_err(|status| failed(status.message().to_owned()))
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
