//! The driver, followed for as long as the process lives.
//!
//! A library call may block for ever, so that none is made on the runtime: one thread opens
//! the library, one listens to events, and each GPU has one that reads it. [`Watcher`] hands
//! out questions, gives each a time to be answered, and folds what comes back into one
//! [`Snapshot`]. A GPU that hangs is silent; the others go on.

mod known;
pub mod library;
pub mod session;
mod sysfs;
mod threads;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::{Finding, Health, Severity};
use crate::inventory::{Gpu, Inventory, Unreadable, Versions};
use crate::metrics::Metrics;
use known::Known;
use library::{Footprint, Source};
use session::{MAX_GPUS, OpenError, ReadError, Reading, Session};
use threads::{Message, Threads};

/// Longest time between two openings of a library that is not in order.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_mins(10);

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
pub type Readings = BTreeMap<String, Reading>;

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

/// Opens the library and reads everything once, with a limit of time.
pub async fn inventory(source: &Source, limit: Duration) -> Result<Inventory, OpenError> {
    let opening = open(source.clone());
    match timeout(limit, opening).await {
        Ok(Ok(Ok((_session, inventory)))) => Ok(inventory),
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(_thread_ended)) => Err(thread_ended()),
        Err(_elapsed) => Err(no_answer(limit)),
    }
}

type Opened = Result<(Arc<Session>, Inventory), OpenError>;

fn open(source: Source) -> oneshot::Receiver<Opened> {
    let (answer, opened) = oneshot::channel();
    // That the thread cannot start is told by the answer that never comes.
    let _ = threads::start("nvml-open", move || {
        let result = source.find().map_err(OpenError).and_then(|path| {
            let session = Session::open(&path, &source.sysfs)?;
            let inventory = session.inventory()?;
            Ok((Arc::new(session), inventory))
        });
        // Nobody waits any more when the process is about to end.
        let _ = answer.send(result);
    });
    opened
}

fn thread_ended() -> OpenError {
    OpenError("the thread that asks the NVIDIA driver could not run; look at the limits of this process and restart it".to_owned())
}

fn no_answer(limit: Duration) -> OpenError {
    OpenError(format!(
        "the NVIDIA driver has not answered for {} s; look at the kernel's log, and reboot the machine if it lasts",
        limit.as_secs()
    ))
}

/// Follows the driver.
#[derive(Debug)]
pub struct Watcher {
    source: Source,
    pace: Pace,
    metrics: Metrics,
    snapshots: watch::Sender<Snapshot>,
    readings: watch::Sender<Readings>,
    ignored_xids: watch::Receiver<BTreeSet<u64>>,
    /// What was read since the readings were told last; nothing of a card that did not answer.
    fresh: BTreeMap<String, Option<Reading>>,
    began: Instant,
    known: BTreeMap<String, Known>,
    driver: Result<Versions, String>,
    unreadable: Vec<Unreadable>,
    deaf: Option<String>,
    look_again: Duration,
}

impl Watcher {
    /// Follows the driver of this source, and tells every change to `snapshots`.
    #[must_use]
    pub fn new(
        source: Source,
        pace: Pace,
        metrics: Metrics,
        snapshots: watch::Sender<Snapshot>,
    ) -> Self {
        let first = Snapshot::default();
        Self {
            source,
            pace,
            metrics,
            snapshots,
            readings: watch::Sender::default(),
            ignored_xids: watch::Sender::default().subscribe(),
            fresh: BTreeMap::new(),
            began: Instant::now(),
            known: BTreeMap::new(),
            driver: first.driver,
            unreadable: first.unreadable,
            deaf: None,
            look_again: pace.look_again,
        }
    }

    /// Tells what the cards say of themselves to `readings` as well.
    #[must_use]
    pub fn telling(self, readings: watch::Sender<Readings>) -> Self {
        Self { readings, ..self }
    }

    /// Takes these XIDs for harmless, whatever this plugin knows of them.
    #[must_use]
    pub fn ignoring(self, ignored_xids: watch::Receiver<BTreeSet<u64>>) -> Self {
        Self {
            ignored_xids,
            ..self
        }
    }

    /// Follows until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let following = async {
            loop {
                let footprint = self.source.footprint();
                match self.open().await {
                    Ok((session, inventory)) => self.follow(session, inventory).await,
                    Err(error) => self.be_without(error, footprint).await,
                }
            }
        };
        // The threads end by themselves; one that hangs must not keep the process.
        tokio::select! {
            () = following => {}
            () = stop.cancelled() => {}
        }
    }

    /// Opens the library, however long it takes; says so when it takes too long.
    async fn open(&mut self) -> Result<(Arc<Session>, Inventory), OpenError> {
        let mut opened = open(self.source.clone());
        loop {
            match timeout(self.pace.answer, &mut opened).await {
                Ok(result) => return result.unwrap_or_else(|_| Err(thread_ended())),
                // Not asked again: a thread that hangs would be joined by another each time.
                Err(_elapsed) => {
                    self.driver = Err(no_answer(self.pace.answer).0);
                    self.all_found(&Finding::Silent);
                    self.publish();
                }
            }
        }
    }

    /// There is no driver: says so, and waits until it is time to look again.
    async fn be_without(&mut self, error: OpenError, footprint: Footprint) {
        self.all_found(&Finding::Unreadable(error.0.clone()));
        self.readings.send_if_modified(forget_all);
        self.driver = Err(error.0);
        self.unreadable.clear();
        self.deaf = None;
        self.publish();
        let until = Instant::now() + self.pace.retry;
        while Instant::now() < until && self.source.footprint() == footprint {
            tokio::time::sleep(self.pace.poll.min(self.pace.retry)).await;
        }
    }

    /// Follows the GPUs of an open library until it must be opened anew.
    async fn follow(&mut self, session: Arc<Session>, inventory: Inventory) {
        // Device nodes may have been made by opening the library.
        let footprint = self.source.footprint();
        let uuids: Vec<String> = inventory.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        self.take_in(inventory);
        let (mut threads, mut messages) = Threads::start(session, &uuids);
        let opened = Instant::now();
        // Nothing is published before every GPU was read and is listened to: from then on
        // no fault is missed.
        let (mut settled, mut listening) = (false, false);
        let mut tick = interval(self.pace.poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut dead = BTreeSet::new();
        self.ask(&mut threads);
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => {
                        listening |= matches!(message, Message::Deaf(_));
                        self.hear(message, &mut threads, &mut dead);
                        settled |= listening && threads.all_answered();
                    }
                    // Every thread ended, so that nothing more is learnt from this session.
                    None => break,
                },
                _ = tick.tick() => {
                    self.tell_readings();
                    let silent = self.ask(&mut threads);
                    // A session is closed when all its threads end, so not while one hangs.
                    if !silent && self.must_open_anew(opened, &dead, &uuids, &footprint) {
                        break;
                    }
                    settled |= opened.elapsed() > self.pace.answer;
                }
            }
            if settled {
                self.publish();
            }
        }
        self.close(threads, messages).await;
    }

    /// Folds an inventory into what is known.
    fn take_in(&mut self, inventory: Inventory) {
        let now = self.now();
        let present: BTreeSet<String> = inventory.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        for gpu in inventory.gpus {
            let quiet = self.pace.quiet;
            self.known
                .entry(gpu.uuid.clone())
                .and_modify(|known| known.described(gpu.clone()))
                .or_insert_with(|| Known::new(gpu, quiet));
        }
        let absent = why_absent(&inventory.unreadable);
        for (uuid, known) in &mut self.known {
            if !present.contains(uuid) {
                known.tracker.found(absent.clone(), now);
            }
        }
        let most = usize::try_from(MAX_GPUS).unwrap_or(usize::MAX);
        if self.known.len() > most {
            self.known.retain(|uuid, _| present.contains(uuid));
        }
        self.driver = Ok(inventory.versions);
        self.unreadable = inventory.unreadable;
        self.deaf = None;
    }

    fn hear(&mut self, message: Message, threads: &mut Threads, dead: &mut BTreeSet<String>) {
        let now = self.now();
        match message {
            Message::Heard(event) => {
                self.metrics.xid(&event.uuid, event.xid);
                if !self.ignored_xids.borrow().contains(&event.xid)
                    && let Some(known) = self.known.get_mut(&event.uuid)
                {
                    known.heard(&event, now);
                }
            }
            Message::Deaf(why) => self.deaf = why,
            Message::Read { uuid, result } => {
                threads.answered(&uuid);
                let Some(known) = self.known.get_mut(&uuid) else {
                    return;
                };
                dead.remove(&uuid);
                match result {
                    Ok(reading) => {
                        known.read(&reading, now);
                        self.metrics.reading(&known.gpu, &reading);
                        self.fresh.insert(uuid, Some(*reading));
                        return;
                    }
                    Err(ReadError::Lost) => known.tracker.found(Finding::Lost, now),
                    Err(ReadError::Gpu(why)) => known.tracker.found(Finding::Unreadable(why), now),
                    Err(ReadError::Driver(why)) => {
                        known.tracker.found(Finding::Unreadable(why), now);
                        dead.insert(uuid.clone());
                    }
                }
                self.fresh.insert(uuid, None);
            }
        }
    }

    /// Asks every GPU that is not being asked. True when one does not answer in time.
    fn ask(&mut self, threads: &mut Threads) -> bool {
        let now = self.now();
        let mut silent = false;
        for uuid in threads.ask(self.pace.answer) {
            silent = true;
            if let Some(known) = self.known.get_mut(&uuid) {
                known.tracker.found(Finding::Silent, now);
            }
            self.fresh.insert(uuid, None);
        }
        silent
    }

    fn must_open_anew(
        &mut self,
        opened: Instant,
        dead: &BTreeSet<String>,
        uuids: &[String],
        footprint: &Footprint,
    ) -> bool {
        if self.source.footprint() != *footprint {
            tracing::info!("the driver's files or device nodes changed: looking at the GPUs anew");
            return true;
        }
        // No GPU answers any more: the driver was reloaded under this session.
        if !uuids.is_empty() && dead.len() == uuids.len() {
            return true;
        }
        if self.in_order() {
            self.look_again = self.pace.look_again;
            return false;
        }
        let due = opened.elapsed() >= self.look_again;
        if due {
            self.look_again = (self.look_again * 2).min(LOOK_AGAIN_AT_MOST);
        }
        due
    }

    /// Whether opening the library again could change nothing for the better.
    fn in_order(&self) -> bool {
        let helpless = |known: &Known| {
            known.tracker.health().findings().iter().any(|finding| {
                matches!(
                    finding,
                    Finding::Lost | Finding::Missing | Finding::Unreadable(_)
                )
            })
        };
        self.deaf.is_none()
            && self.unreadable.is_empty()
            && !self.known.is_empty()
            && !self.known.values().any(helpless)
    }

    /// Ends the threads and with them the session; says so when that takes too long.
    async fn close(&mut self, threads: Threads, messages: mpsc::Receiver<Message>) {
        drop(messages);
        let mut ended = threads.end();
        while timeout(self.pace.answer, ended.recv()).await.is_err() {
            self.all_found(&Finding::Silent);
            self.publish();
        }
    }

    fn all_found(&mut self, finding: &Finding) {
        let now = self.now();
        for known in self.known.values_mut() {
            known.tracker.found(finding.clone(), now);
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells what was read since the last time; what did not answer is not known any more.
    fn tell_readings(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        if fresh.is_empty() {
            return;
        }
        self.readings.send_modify(|readings| {
            for (uuid, reading) in fresh {
                match reading {
                    Some(reading) => readings.insert(uuid, reading),
                    None => readings.remove(&uuid),
                };
            }
        });
    }

    fn publish(&self) {
        let mut devices: Vec<Device> = self.known.values().map(Known::device).collect();
        devices.sort_by(|one, other| {
            (one.gpu.index, &one.gpu.uuid).cmp(&(other.gpu.index, &other.gpu.uuid))
        });
        let snapshot = Snapshot {
            driver: self.driver.clone(),
            devices,
            unreadable: self.unreadable.clone(),
            deaf: self.deaf.clone(),
        };
        self.snapshots.send_if_modified(|current| {
            if *current == snapshot {
                return false;
            }
            report(current, &snapshot);
            self.metrics.snapshot(&snapshot);
            *current = snapshot;
            true
        });
    }
}

fn forget_all(readings: &mut Readings) -> bool {
    let changed = !readings.is_empty();
    readings.clear();
    changed
}

/// Why a GPU that was there is not described any more. A card that is lost is still counted,
/// but cannot say which one it is.
fn why_absent(unreadable: &[Unreadable]) -> Finding {
    let lost = NvmlError::GpuLost.to_string();
    match unreadable.first() {
        None => Finding::Missing,
        Some(_) if unreadable.iter().any(|gpu| gpu.why == lost) => Finding::Lost,
        Some(gpu) => Finding::Unreadable(gpu.why.clone()),
    }
}

/// Logs what changed: the one place where it is logged.
fn report(before: &Snapshot, after: &Snapshot) {
    if before.driver != after.driver {
        match &after.driver {
            Ok(versions) => tracing::info!(
                driver = versions.driver,
                cuda = versions.cuda,
                gpus = after.devices.len(),
                "the NVIDIA driver answers"
            ),
            Err(why) => tracing::warn!("{why}"),
        }
    }
    if before.deaf != after.deaf
        && let Some(why) = &after.deaf
    {
        tracing::error!("{why}");
    }
    if before.unreadable != after.unreadable {
        for gpu in &after.unreadable {
            tracing::error!(gpu = gpu.index, "the GPU cannot be read: {}", gpu.why);
        }
    }
    for device in &after.devices {
        let old = before
            .devices
            .iter()
            .find(|old| old.gpu.uuid == device.gpu.uuid);
        report_device(old, device);
    }
}

fn report_device(old: Option<&Device>, device: &Device) {
    let (gpu, uuid) = (device.gpu.index, &device.gpu.uuid);
    report_health(gpu, uuid, old.map(|old| &old.health), &device.health);
    let fine = Health::healthy();
    for partition in device.gpu.mig.devices() {
        let own = |device: &Device| device.partitions.get(&partition.uuid).cloned();
        let before = old.map(|old| own(old).unwrap_or_default());
        let now = device.partitions.get(&partition.uuid).unwrap_or(&fine);
        report_health(gpu, &partition.uuid, before.as_ref(), now);
    }
    if let Some(old) = old
        && old.gpu.mig != device.gpu.mig
    {
        tracing::info!(
            gpu,
            uuid,
            partitions = device.gpu.mig.devices().len(),
            "the GPU is partitioned in another way"
        );
    }
}

fn report_health(gpu: u32, uuid: &str, before: Option<&Health>, now: &Health) {
    let known = before.map_or(&[][..], Health::findings);
    for finding in now.findings() {
        if known.contains(finding) {
            continue;
        }
        match finding.severity() {
            Severity::Note => tracing::warn!(gpu, uuid, "{finding}"),
            Severity::Drain | Severity::Out => tracing::error!(gpu, uuid, "{finding}"),
        }
    }
    if now.is_healthy() && before.is_some_and(|before| !before.is_healthy()) {
        tracing::info!(gpu, uuid, "healthy again");
    }
}
