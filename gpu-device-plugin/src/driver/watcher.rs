//! The one who asks: follows the driver and tells what changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::known::Known;
use super::library::{Footprint, Source};
use super::session::{Happened, MAX_GPUS, OpenError, ReadError, Reading};
use super::threads::{Message, Threads};
use super::{
    Device, Opened, Pace, Readings, Records, Snapshot, no_answer, open, report, silence,
    thread_ended,
};
use crate::config::Config;
use crate::health::{Finding, Kept, Tracker};
use crate::inventory::{Gpu, Unreadable, Versions};
use crate::metrics::{Metrics, NvmlCall, NvmlFailure};

/// Longest time between two openings of a library that is not in order.
const LOOK_AGAIN_AT_MOST: Duration = Duration::from_mins(10);
/// Time after which the counters beside XIDs that wait for a reset are written anew, so that a
/// reset while this process is down is recognised by them.
const RECORD_AGAIN: Duration = Duration::from_mins(5);

/// Follows the driver.
#[derive(Debug)]
pub struct Watcher {
    source: Source,
    pace: Pace,
    metrics: Metrics,
    snapshots: watch::Sender<Snapshot>,
    readings: watch::Sender<Readings>,
    config: Option<watch::Receiver<Arc<Config>>>,
    records: Option<Records>,
    recorder: Option<Recorder>,
    /// What was read since the readings were told last; nothing of a card that did not answer.
    fresh: BTreeMap<String, Option<Arc<Reading>>>,
    began: Instant,
    known: BTreeMap<String, Known>,
    driver: Result<Versions, String>,
    unreadable: BTreeMap<u32, String>,
    deaf: Option<String>,
    look_again: Duration,
    /// The driver was away: every card was initialised anew since it was asked last.
    away: bool,
}

/// Writes down what must be known after a restart.
#[derive(Debug)]
struct Recorder {
    /// What was kept of GPUs that were not seen yet.
    kept: BTreeMap<String, Kept>,
    written: BTreeMap<String, Kept>,
    at: Instant,
    to_write: watch::Sender<BTreeMap<String, Kept>>,
}

/// One session with the library.
struct Following {
    threads: Threads,
    opened: Instant,
    footprint: Footprint,
    /// The GPUs that were described.
    present: BTreeSet<String>,
    /// Those of them that the driver does not know any more.
    dead: BTreeSet<String>,
    /// Since when all are described that will be, as far as can be said.
    described: Option<Instant>,
    /// Whether it was said that events are heard, or why they are not.
    listened: bool,
    /// Nothing is published before every GPU was read and is listened to: from then on no
    /// fault is missed.
    settled: bool,
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
        Self {
            source,
            pace,
            metrics,
            snapshots,
            readings: watch::Sender::default(),
            config: None,
            records: None,
            recorder: None,
            fresh: BTreeMap::new(),
            began: Instant::now(),
            known: BTreeMap::new(),
            driver: Snapshot::default().driver,
            unreadable: BTreeMap::new(),
            deaf: None,
            look_again: pace.look_again,
            away: false,
        }
    }

    /// Tells what the cards say of themselves to `readings` as well, once in every poll.
    #[must_use]
    pub fn telling(self, readings: watch::Sender<Readings>) -> Self {
        Self { readings, ..self }
    }

    /// Follows these rules of health as they change, and no longer those of the pace.
    #[must_use]
    pub fn ruled_by(self, config: watch::Receiver<Arc<Config>>) -> Self {
        Self {
            config: Some(config),
            ..self
        }
    }

    /// Keeps what waits for a reset in these records, and begins with what they hold.
    #[must_use]
    pub fn recording(self, records: Records) -> Self {
        Self {
            records: Some(records),
            ..self
        }
    }

    /// Follows until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let following = async {
            if let Some(records) = self.records.take() {
                self.recorder = Some(Recorder::start(records).await);
            }
            loop {
                let footprint = self.source.footprint();
                match self.open().await {
                    Ok(opened) => self.follow(opened).await,
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
    async fn open(&mut self) -> Result<Opened, OpenError> {
        let mut opened = open(self.source.clone());
        loop {
            match timeout(self.pace.answer, &mut opened).await {
                Ok(result) => return result.unwrap_or_else(|_ended| Err(thread_ended())),
                // Not asked again: a thread that hangs would be joined by another each time.
                Err(_elapsed) => {
                    self.metrics
                        .nvml_failed(NvmlCall::Open, NvmlFailure::Timeout);
                    self.driver = Err(no_answer(self.pace.answer).why);
                    self.all_found(&Finding::Silent);
                    self.publish();
                }
            }
        }
    }

    /// There is no driver: says so, and waits until it is time to look again.
    async fn be_without(&mut self, error: OpenError, footprint: Footprint) {
        self.metrics.nvml_failed(NvmlCall::Open, NvmlFailure::Error);
        self.all_found(&Finding::Unreadable(error.why.clone()));
        self.away |= error.unloaded;
        self.driver = Err(error.why);
        self.unreadable.clear();
        self.deaf = None;
        self.publish();
        let until = Instant::now() + self.pace.retry;
        while Instant::now() < until && self.source.footprint() == footprint {
            tokio::time::sleep(self.pace.poll.min(self.pace.retry)).await;
        }
    }

    /// Follows the GPUs of an open library until it must be opened anew.
    async fn follow(&mut self, opened: Opened) {
        let (mut following, mut messages) = self.begin(opened);
        let mut tick = interval(self.pace.poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Threads that follow hold a sender, so that there is always a next one.
                Some(message) = messages.recv() => {
                    self.hear(message, &mut following);
                    self.settle(&mut following);
                }
                _ = tick.tick() => {
                    self.tell_readings();
                    let waits = self.ask(&mut following);
                    // A session is closed when all its threads end, so not while one hangs.
                    if !waits && self.must_open_anew(&following) {
                        break;
                    }
                    self.settle(&mut following);
                }
            }
            if following.settled {
                self.publish();
            }
        }
        self.close(following.threads, messages).await;
    }

    fn begin(&mut self, opened: Opened) -> (Following, mpsc::Receiver<Message>) {
        if let Ok(before) = &self.driver {
            self.away |= *before != opened.versions;
        }
        self.driver = Ok(opened.versions);
        self.unreadable.clear();
        self.deaf = None;
        let (threads, messages) = Threads::start(opened.session, opened.count);
        let following = Following {
            threads,
            opened: Instant::now(),
            // Device nodes may have been made by opening the library.
            footprint: self.source.footprint(),
            present: BTreeSet::new(),
            dead: BTreeSet::new(),
            described: None,
            listened: false,
            settled: false,
        };
        (following, messages)
    }

    /// Goes on to listen when every GPU is described, or has had its time; and to publish when
    /// every GPU was read, or has had its time.
    fn settle(&mut self, following: &mut Following) {
        if following.settled {
            return;
        }
        match following.described {
            None => {
                if following.threads.all_described()
                    || following.opened.elapsed() > self.pace.answer
                {
                    following.described = Some(Instant::now());
                    following.threads.listen();
                    self.miss(following);
                    self.away = false;
                }
            }
            Some(described) => {
                following.settled = (following.listened && following.threads.all_answered())
                    || described.elapsed() > self.pace.answer;
            }
        }
    }

    /// Says why the GPUs are not there that were and are not described.
    fn miss(&mut self, following: &Following) {
        let now = self.now();
        let absent = if following.threads.all_described() {
            why_absent(&self.unreadable)
        } else {
            Finding::Silent
        };
        for (uuid, known) in &mut self.known {
            if !following.present.contains(uuid) {
                known.tracker.found(absent.clone(), now);
            }
        }
        let most = usize::try_from(MAX_GPUS).unwrap_or(usize::MAX);
        if self.known.len() > most {
            self.known
                .retain(|uuid, _| following.present.contains(uuid));
        }
    }

    fn hear(&mut self, message: Message, following: &mut Following) {
        let now = self.now();
        match message {
            Message::Described { index, result } => {
                self.unreadable.remove(&index);
                match result {
                    Ok(gpu) => {
                        following.threads.described(index, &gpu.uuid);
                        following.present.insert(gpu.uuid.clone());
                        self.described(*gpu);
                    }
                    Err(why) => {
                        self.metrics
                            .nvml_failed(NvmlCall::Describe, NvmlFailure::Error);
                        following.threads.refused(index);
                        self.unreadable.insert(index, why);
                    }
                }
            }
            Message::Connected(links) => {
                for (uuid, links) in links {
                    if let Some(known) = self.known.get_mut(&uuid) {
                        known.gpu.links = links;
                    }
                }
            }
            Message::Heard(event) => self.reported(&event),
            Message::Deaf(why) => {
                if why.is_some() {
                    self.metrics
                        .nvml_failed(NvmlCall::Listen, NvmlFailure::Error);
                }
                following.listened = true;
                self.deaf = why;
            }
            Message::Read {
                index,
                uuid,
                result,
            } => {
                following.threads.answered(index);
                following.dead.remove(&uuid);
                if matches!(result, Err(ReadError::Driver(_))) {
                    following.dead.insert(uuid.clone());
                }
                self.read(uuid, result, now);
            }
        }
    }

    /// The driver reported an XID.
    fn reported(&mut self, event: &Happened) {
        let now = self.now();
        self.metrics.xid(&event.uuid, event.xid);
        let ignored = (self.config.as_ref())
            .is_some_and(|config| config.borrow().health.ignored_xids.contains(&event.xid));
        if !ignored && let Some(known) = self.known.get_mut(&event.uuid) {
            known.heard(event, now);
        }
    }

    /// A GPU was described, for the first time or again.
    fn described(&mut self, gpu: Gpu) {
        let (quiet, now, away) = (self.quiet(), self.now(), self.away);
        let recorder = self.recorder.as_mut();
        let uuid = gpu.uuid.clone();
        if let Some(known) = self.known.get_mut(&uuid) {
            known.described(gpu);
            if away {
                known.tracker.was_reset(now);
            }
            return;
        }
        let tracker = match recorder.and_then(|recorder| recorder.kept.remove(&uuid)) {
            Some(kept) => Tracker::restored(quiet, &kept, now),
            None => Tracker::new(quiet),
        };
        self.known.insert(uuid, Known { gpu, tracker });
    }

    fn read(&mut self, uuid: String, result: Result<Box<Reading>, ReadError>, now: Duration) {
        let Some(known) = self.known.get_mut(&uuid) else {
            return;
        };
        let finding = match result {
            Ok(reading) => {
                known.read(&reading, now);
                let reading = Arc::new(*reading);
                self.metrics.reading(&uuid, &reading);
                self.fresh.insert(uuid, Some(reading));
                return;
            }
            Err(ReadError::Lost) => Finding::Lost,
            Err(ReadError::Gpu(why) | ReadError::Driver(why)) => Finding::Unreadable(why),
        };
        self.metrics.nvml_failed(NvmlCall::Read, NvmlFailure::Error);
        self.metrics.unknown(&uuid);
        known.tracker.found(finding, now);
        self.fresh.insert(uuid, None);
    }

    /// Asks every GPU that is not being asked. True while a call hangs.
    fn ask(&mut self, following: &mut Following) -> bool {
        let (now, limit) = (self.now(), self.pace.answer);
        let quiet = self.quiet();
        for known in self.known.values_mut() {
            known.tracker.be_quiet_for(quiet);
        }
        let silent = following.threads.ask(limit);
        let mut waits = !silent.is_empty();
        for gpu in silent {
            let call = match gpu.uuid {
                None => {
                    self.unreadable.insert(gpu.index, silence(limit));
                    NvmlCall::Describe
                }
                Some(uuid) => {
                    if let Some(known) = self.known.get_mut(&uuid) {
                        known.tracker.found(Finding::Silent, now);
                    }
                    self.metrics.unknown(&uuid);
                    self.fresh.insert(uuid, None);
                    NvmlCall::Read
                }
            };
            if gpu.newly {
                self.metrics.nvml_failed(call, NvmlFailure::Timeout);
            }
        }
        match following.threads.hearing(limit) {
            Some(Err(why)) => {
                self.metrics
                    .nvml_failed(NvmlCall::Listen, NvmlFailure::Timeout);
                following.listened = true;
                self.deaf = Some(why);
            }
            Some(Ok(())) => self.deaf = None,
            None => {}
        }
        waits |= following.threads.hangs();
        waits
    }

    fn must_open_anew(&mut self, following: &Following) -> bool {
        if following.described.is_none() {
            return false;
        }
        if self.source.footprint() != following.footprint {
            tracing::info!("the driver's files or device nodes changed: looking at the GPUs anew");
            return true;
        }
        // No GPU answers any more: the driver was reloaded under this session.
        let dead = following.dead.len();
        if dead > 0 && dead == following.present.len() {
            return true;
        }
        if self.in_order() {
            self.look_again = self.pace.look_again;
            return false;
        }
        let due = following.opened.elapsed() >= self.look_again;
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

    /// Ends the threads and with them the session, and hears what they still have to tell;
    /// says so when that takes too long.
    async fn close(&mut self, threads: Threads, mut messages: mpsc::Receiver<Message>) {
        let mut ended = threads.end();
        loop {
            match timeout(self.pace.answer, messages.recv()).await {
                Ok(Some(Message::Heard(event))) => self.reported(&event),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_elapsed) => self.cannot_close(),
            }
        }
        while timeout(self.pace.answer, ended.recv()).await.is_err() {
            self.cannot_close();
        }
    }

    fn cannot_close(&mut self) {
        self.metrics
            .nvml_failed(NvmlCall::Open, NvmlFailure::Timeout);
        self.all_found(&Finding::Silent);
        self.publish();
    }

    fn all_found(&mut self, finding: &Finding) {
        let now = self.now();
        for (uuid, known) in &mut self.known {
            known.tracker.found(finding.clone(), now);
            self.metrics.unknown(uuid);
        }
        self.fresh.clear();
        self.readings.send_if_modified(|readings| {
            let changed = !readings.is_empty();
            readings.clear();
            changed
        });
    }

    /// How long a GPU must be without a fault before it is healthy again.
    fn quiet(&self) -> Duration {
        let told = (self.config.as_ref()).map(|config| config.borrow().health.healthy_after);
        told.unwrap_or(self.pace.quiet)
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

    fn publish(&mut self) {
        let mut devices: Vec<Device> = self.known.values().map(Known::device).collect();
        devices.sort_by(|one, other| {
            (one.gpu.index, &one.gpu.uuid).cmp(&(other.gpu.index, &other.gpu.uuid))
        });
        let unreadable = self.unreadable.iter().map(|(index, why)| Unreadable {
            index: *index,
            why: why.clone(),
        });
        let snapshot = Snapshot {
            driver: self.driver.clone(),
            devices,
            unreadable: unreadable.collect(),
            deaf: self.deaf.clone(),
        };
        self.snapshots.send_if_modified(|current| {
            if *current == snapshot {
                return false;
            }
            report::report(current, &snapshot);
            self.metrics.snapshot(&snapshot);
            *current = snapshot;
            true
        });
        if let Some(recorder) = &mut self.recorder {
            recorder.record(&self.known);
        }
    }
}

impl Recorder {
    /// Reads what is there, and starts to write.
    async fn start(records: Records) -> Self {
        let reading = records.clone();
        // It waits for the disk.
        let loaded = tokio::task::spawn_blocking(move || reading.load()).await;
        let kept = match loaded {
            Ok(Ok(kept)) => kept,
            Ok(Err(error)) => {
                tracing::warn!("{error}");
                BTreeMap::new()
            }
            Err(error) => {
                tracing::error!("the records were not read: {error}");
                BTreeMap::new()
            }
        };
        let (to_write, changes) = watch::channel(BTreeMap::new());
        tokio::spawn(write(records, changes));
        Self {
            written: kept.clone(),
            kept,
            at: Instant::now(),
            to_write,
        }
    }

    /// Writes down what changed, and from time to time the counters beside it.
    fn record(&mut self, known: &BTreeMap<String, Known>) {
        // What was kept of a GPU that was not seen yet is kept on.
        let mut kept = self.kept.clone();
        kept.extend(
            known
                .iter()
                .map(|(uuid, known)| (uuid.clone(), known.tracker.kept()))
                .filter(|(_, kept)| !kept.is_empty()),
        );
        let same = kept.len() == self.written.len()
            && kept
                .iter()
                .zip(&self.written)
                .all(|((uuid, kept), (other, written))| uuid == other && kept.says_as(written));
        let waits = kept.values().any(|kept| !kept.xids.is_empty());
        if same && !(waits && self.at.elapsed() >= RECORD_AGAIN) {
            return;
        }
        self.at = Instant::now();
        self.written.clone_from(&kept);
        self.to_write.send_replace(kept);
    }
}

/// Writes every change, until there can be none any more.
async fn write(records: Records, mut changes: watch::Receiver<BTreeMap<String, Kept>>) {
    while changes.changed().await.is_ok() {
        let kept = changes.borrow_and_update().clone();
        let records = records.clone();
        // It waits for the disk.
        let saved = tokio::task::spawn_blocking(move || records.save(&kept)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(
                "what waits for a reset of a GPU cannot be written down: {error}; look at the directory of --state-dir"
            );
        }
    }
}

/// Why a GPU that was there is not described any more. A card that is lost is still counted,
/// but cannot say which one it is.
fn why_absent(unreadable: &BTreeMap<u32, String>) -> Finding {
    let lost = NvmlError::GpuLost.to_string();
    match unreadable.values().next() {
        None => Finding::Missing,
        Some(_) if unreadable.values().any(|why| *why == lost) => Finding::Lost,
        Some(why) => Finding::Unreadable(why.clone()),
    }
}
