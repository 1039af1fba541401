//! The driver, followed for as long as the process lives.
//!
//! A library call may block for ever, so that none is made on the runtime: one thread opens
//! the library, one listens to events, and each GPU has one that describes and reads it.
//! [`Watcher`] hands out questions, gives each a time to be answered, and folds what comes back
//! into one [`Snapshot`]. A GPU that hangs is silent; the others go on.
//!
//! # What is heard, and what is not
//!
//! The library looks for cards when it is initialised and never again, and initialising it a
//! second time only counts up: a session must be closed before a new one can see another
//! state. So between two sessions nobody listens, for as long as the driver needs to count and
//! describe its cards. The old set of events is emptied before it is closed. An XID of the time
//! between is not heard and never counted; what it was about is mostly seen all the same,
//! because the driver counts uncorrected errors, knows what waits for a reset, says what must
//! be done with a card (newer drivers), and does not answer for one that is lost. Left over is
//! an error of the GPU's own processors on an old driver in such a moment. A session is
//! therefore closed only when the device nodes or the library changed, when no GPU answers any
//! more, or when something is wrong that only a new session can put right, and then ever more
//! rarely.

mod known;
pub mod library;
mod records;
mod report;
pub mod session;
mod sysfs;
mod threads;
mod watcher;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::health::Health;
use crate::inventory::{Gpu, Inventory, Unreadable, Versions};
use library::Source;
pub use records::{LoadError, Records};
use session::{OpenError, Reading, Session};
use threads::{Message, Threads};
pub use watcher::Watcher;

/// What is known of the driver and its GPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The driver's versions, or why there is no driver and what to do.
    pub driver: Result<Versions, String>,
    /// The GPUs that were seen since the process started, by the driver's number.
    pub devices: Vec<Device>,
    /// GPUs that the driver counts and that never could be read.
    pub unreadable: Vec<Unreadable>,
    /// Why the driver's events cannot be heard, where they cannot.
    pub deaf: Option<String>,
}

/// A GPU and its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The GPU.
    pub gpu: Gpu,
    /// Whether it may be given to new containers.
    pub health: Health,
    /// What is wrong with single partitions of it, by their UUID; those without an entry have
    /// the card's own health.
    pub partitions: BTreeMap<String, Health>,
}

impl Device {
    /// The health of this partition: the card's own where the card is ill.
    #[must_use]
    pub fn partition_health(&self, uuid: &str) -> &Health {
        match self.partitions.get(uuid) {
            Some(own) if self.health.is_healthy() => own,
            _ => &self.health,
        }
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            driver: Err("the NVIDIA driver has not answered yet".to_owned()),
            devices: Vec::new(),
            unreadable: Vec::new(),
            deaf: None,
        }
    }
}

/// What the cards that answer say of themselves, by their UUID.
pub type Readings = BTreeMap<String, Arc<Reading>>;

/// How often things are done, and how long they may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two questions to a GPU.
    pub poll: Duration,
    /// How long an answer may take before the GPU counts as silent.
    pub answer: Duration,
    /// Time between two attempts to find a driver.
    pub retry: Duration,
    /// Time after which a library that is not in order is opened anew. It doubles up to ten
    /// minutes while that does not help.
    pub look_again: Duration,
    /// How long a GPU must be without a fault before it is healthy again.
    pub quiet: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(1),
            answer: Duration::from_secs(5),
            retry: Duration::from_secs(5),
            look_again: Duration::from_secs(30),
            quiet: Duration::from_mins(1),
        }
    }
}

/// Opens the library and reads everything once, with a limit of time for each: a GPU that does
/// not answer does not hide the others.
pub async fn inventory(source: &Source, limit: Duration) -> Result<Inventory, OpenError> {
    let opened = match timeout(limit, open(source.clone())).await {
        Ok(opened) => opened.unwrap_or_else(|_ended| Err(thread_ended()))?,
        Err(_elapsed) => return Err(no_answer(limit)),
    };
    let session = Arc::clone(&opened.session);
    let (_threads, mut messages) = Threads::start(opened.session, opened.count);
    let mut inventory = Inventory {
        versions: opened.versions,
        gpus: Vec::new(),
        unreadable: Vec::new(),
    };
    let mut awaited: Vec<u32> = (0..opened.count).collect();
    let until = Instant::now() + limit;
    while !awaited.is_empty() {
        let Ok(Some(message)) = timeout_at(until, messages.recv()).await else {
            break;
        };
        if let Message::Described { index, result } = message {
            awaited.retain(|other| *other != index);
            match result {
                Ok(gpu) => inventory.gpus.push(*gpu),
                Err(why) => inventory.unreadable.push(Unreadable { index, why }),
            }
        }
    }
    let silent = awaited.into_iter().map(|index| Unreadable {
        index,
        why: silence(limit),
    });
    inventory.unreadable.extend(silent);
    inventory.unreadable.sort_by_key(|gpu| gpu.index);
    inventory.gpus.sort_by_key(|gpu| gpu.index);
    if let Ok(Ok(mut links)) = timeout(limit, connect(session)).await {
        for gpu in &mut inventory.gpus {
            gpu.links = links.remove(&gpu.uuid).unwrap_or_default();
        }
    }
    Ok(inventory)
}

fn connect(session: Arc<Session>) -> oneshot::Receiver<session::Links> {
    let (answer, connected) = oneshot::channel();
    // That the thread cannot start is told by the answer that never comes.
    let _ = threads::start("nvml-links", move || {
        // Nobody waits any more where it took too long.
        let _ = answer.send(session.links());
    });
    connected
}

/// An open library.
struct Opened {
    session: Arc<Session>,
    versions: Versions,
    /// How many GPUs the driver counts.
    count: u32,
}

fn open(source: Source) -> oneshot::Receiver<Result<Opened, OpenError>> {
    let (answer, opened) = oneshot::channel();
    // As above.
    let _ = threads::start("nvml-open", move || {
        let result = source.find().map_err(OpenError::other).and_then(|path| {
            let session = Session::open(&path, &source.sysfs)?;
            Ok(Opened {
                versions: session.versions(),
                count: session.count()?,
                session: Arc::new(session),
            })
        });
        let _ = answer.send(result);
    });
    opened
}

fn thread_ended() -> OpenError {
    OpenError::other("the thread that asks the NVIDIA driver could not run; look at the limits of this process and restart it".to_owned())
}

fn no_answer(limit: Duration) -> OpenError {
    OpenError::other(format!(
        "the NVIDIA driver has not answered for {}; look at the kernel's log, and reboot the machine if it lasts",
        spelled(limit)
    ))
}

/// Why a GPU is not described whose thread waits for the driver.
fn silence(limit: Duration) -> String {
    format!("no answer for {}", spelled(limit))
}

fn spelled(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{} s", time.as_secs())
    }
}
