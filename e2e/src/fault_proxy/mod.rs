//! A proxy between one controller and the API server that breaks things on
//! purpose, at the one request where it was told to.
//!
//! [`FaultProxy::start`] takes the kubeconfig that the controller would use and
//! writes another one for it. Everything that the controller does then passes
//! here: each request is read as the API server reads it ([`ApiRequest`]), is
//! compared with the rules ([`Rule`]), and each write is noted with what it
//! changed in the store ([`Write`]). The controller is expected to speak JSON
//! over HTTP/1.1, as every kube-rs client does.

mod forward;
mod identity;
mod journal;
mod request;
mod rule;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::journal::{Effect, Outcome, Seen, UsedRight, Version, Write};
pub use self::request::{ApiRequest, Verb};
pub use self::rule::{Action, Match, Moment, Refusal, Rule};

/// Connections at a time; a controller has one for each watch and each worker.
const CONNECTIONS_MAX: usize = 256;
/// A connection that is not set up by then is given up.
const SETUP_LIMIT: Duration = Duration::from_secs(10);
/// Tasks get this long to end when the proxy stops.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What can go wrong with the proxy itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kubeconfig does not lead to an API server.
    #[error("the kubeconfig {path} cannot be used: {reason}")]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file for the controller could not be written.
    #[error("{path} cannot be written")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No port could be opened.
    #[error("no port on 127.0.0.1 can be opened")]
    Listen(#[source] io::Error),
    /// A certificate could not be made.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// TLS refused its configuration.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The kubeconfig could not be encoded.
    #[error("the controller's kubeconfig cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// A rule could never fire.
    #[error("the rule \"{rule}\" can never fire: {defect}")]
    Rule {
        /// The rule.
        rule: Box<Rule>,
        /// What is wrong with it.
        defect: &'static str,
    },
    /// The proxy did not come to an end.
    #[error("the fault proxy still had open connections {STOP_LIMIT:?} after it was stopped")]
    Stop,
}

/// Kills the controller by SIGKILL, or says why it could not.
pub type KillSwitch = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// All that one connection has to know.
struct Shared {
    /// With the controller's credentials.
    upstream: kube::Client,
    /// Reads what a write is about to change; the controller may not be allowed
    /// to read all that it writes.
    reader: kube::Client,
    rules: Mutex<rule::Rules>,
    journal: Mutex<journal::Journal>,
    old_lists: Mutex<forward::OldLists>,
    /// Until when lists are answered from `old_lists`.
    past_until: Mutex<Option<Instant>>,
    kill: Mutex<Option<KillSwitch>>,
    watches: watch::WatchFaults,
    /// Told each time that a fault is set off.
    fired: Notify,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Locks what is never held across an await. A panic elsewhere leaves counters
/// that are as good as they were.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running proxy. Dropping it ends it.
pub struct FaultProxy {
    shared: Arc<Shared>,
    kubeconfig: PathBuf,
    address: SocketAddr,
}

impl fmt::Debug for FaultProxy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FaultProxy")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// What a proxy has seen, once it has ended.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Every mutating request, by arrival.
    pub writes: Vec<Write>,
    /// Mutating requests beyond the journal's bound.
    pub writes_not_kept: u64,
    /// Rules that never fired. A test with one of these has tested nothing.
    pub unfired: Vec<Rule>,
}

impl FaultProxy {
    /// Starts a proxy to the API server of `kubeconfig`, whose credentials the
    /// controller is lent, and writes the controller's own kubeconfig and
    /// certificates into `directory`, which has to exist. `reader` is a
    /// kubeconfig that may read every object that the controller writes.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used, or no port or file can be had.
    pub async fn start(kubeconfig: &Path, reader: &Path, directory: &Path) -> Result<Self, Error> {
        let (upstream, namespace) = identity::upstream(kubeconfig).await?;
        let (reader, _) = identity::upstream(reader).await?;
        let identity = identity::Identity::generate()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(Error::Listen)?;
        let address = listener.local_addr().map_err(Error::Listen)?;
        let kubeconfig = identity.write_kubeconfig(directory, address, &namespace)?;
        let shared = Arc::new(Shared {
            upstream,
            reader,
            rules: Mutex::default(),
            journal: Mutex::new(journal::Journal::new()),
            old_lists: Mutex::default(),
            past_until: Mutex::default(),
            kill: Mutex::default(),
            watches: watch::WatchFaults::new(),
            fired: Notify::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let acceptor = TlsAcceptor::from(identity.server());
        shared
            .tasks
            .spawn(accept(Arc::clone(&shared), listener, acceptor));
        Ok(Self {
            shared,
            kubeconfig,
            address,
        })
    }

    /// The kubeconfig for the controller.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Says how the controller is killed. It is asked for when a rule of
    /// [`Action::KillController`] is due; without it such a rule does not fire.
    pub fn set_kill_switch(&self, switch: KillSwitch) {
        *locked(&self.shared.kill) = Some(switch);
    }

    /// Adds a fault. Requests are counted from now on.
    ///
    /// # Errors
    /// When the rule could never fire.
    pub fn add_rule(&self, rule: Rule) -> Result<RuleId, Error> {
        match rule.defect() {
            Some(defect) => Err(Error::Rule {
                rule: Box::new(rule),
                defect,
            }),
            None => Ok(RuleId(locked(&self.shared.rules).add(rule))),
        }
    }

    /// Whether a fault has happened as often as its rule says.
    #[must_use]
    pub fn is_spent(&self, rule: RuleId) -> bool {
        locked(&self.shared.rules).is_spent(rule.0)
    }

    /// Waits until a fault has happened as often as its rule says; `false` when
    /// it has not within `limit`.
    pub async fn spent(&self, rule: RuleId, limit: Duration) -> bool {
        let spent = async {
            loop {
                let next = self.shared.fired.notified();
                tokio::pin!(next);
                // Enabled before looking, so that no firing falls in between.
                next.as_mut().enable();
                if self.is_spent(rule) {
                    return;
                }
                next.await;
            }
        };
        tokio::time::timeout(limit, spent).await.is_ok()
    }

    /// Whether a fault that lasts is still at work: the controller cannot know
    /// all that there is to know yet.
    #[must_use]
    pub fn is_disturbing(&self) -> bool {
        self.shared.watches.is_active()
    }

    /// Every mutating request so far.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        locked(&self.shared.journal).writes()
    }

    /// The rights that the controller has made use of, with how often.
    #[must_use]
    pub fn rights(&self) -> BTreeMap<UsedRight, u64> {
        locked(&self.shared.journal).rights()
    }

    /// Ends every connection and says what was seen.
    ///
    /// # Errors
    /// When a connection does not end in time.
    pub async fn stop(self) -> Result<Report, Error> {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        tokio::time::timeout(STOP_LIMIT, self.shared.tasks.wait())
            .await
            .map_err(|_| Error::Stop)?;
        let journal = locked(&self.shared.journal);
        Ok(Report {
            writes: journal.writes(),
            writes_not_kept: journal.writes_not_kept(),
            unfired: locked(&self.shared.rules).unfired(),
        })
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// A rule that was added to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId(usize);

async fn accept(shared: Arc<Shared>, listener: TcpListener, acceptor: TlsAcceptor) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, _)) => Some((stream, permit)),
                Err(error) => {
                    // Out of descriptors, most likely: some will come back.
                    tracing::warn!(%error, "the fault proxy cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    None
                }
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            next = next => if let Some((stream, permit)) = next {
                let connection = connection(Arc::clone(&shared), stream, acceptor.clone(), permit);
                shared.tasks.spawn(connection);
            },
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    acceptor: TlsAcceptor,
    _permit: OwnedSemaphorePermit,
) {
    let stop = shared.stop.clone();
    let serve = async {
        let Ok(Ok(stream)) = tokio::time::timeout(SETUP_LIMIT, acceptor.accept(stream)).await
        else {
            return;
        };
        let service = service_fn(move |request| forward::serve(Arc::clone(&shared), request));
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service);
        // It ends with an error whenever a fault closes it, which is no news.
        let _ = connection.await;
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = serve => {}
    }
}
