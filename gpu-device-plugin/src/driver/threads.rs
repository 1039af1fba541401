//! The threads of one session: they call the library and tell what it answers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::session::{Happened, Heard, Links, Listener, ReadError, Reader, Reading, Session};
use crate::inventory::Gpu;

/// Messages that may wait to be read. A thread whose message finds no room waits, so that
/// nothing is lost and nothing piles up.
const MAX_WAITING: usize = 256;
/// How long one call waits for an event. The thread cannot end before.
const LISTEN_MS: u32 = 500;
/// Time between two attempts to hear a GPU that was lost, or anything at all.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Most events that are taken out of a set before it is given up.
const MAX_LEFT_OVER: usize = 4096;
/// Most threads that may hang in waiting for events before no other one is tried.
const MAX_LISTENERS: usize = 3;
/// Memory that a thread may use for its calls. The driver's library keeps its buffers of some
/// kilobytes on the stack; this leaves it forty times as much as was seen.
const STACK_BYTES: usize = 512 << 10;

/// What a thread tells.
#[derive(Debug)]
pub(super) enum Message {
    /// A GPU was described, or why it was not.
    Described {
        index: u32,
        result: Result<Box<Gpu>, String>,
    },
    /// How the GPUs that are described reach one another.
    Connected(Links),
    /// The driver reported something.
    Heard(Happened),
    /// Why events cannot be heard; nothing when they can again.
    Deaf(Option<String>),
    /// A GPU was read.
    Read {
        index: u32,
        uuid: String,
        result: Result<Box<Reading>, ReadError>,
    },
}

/// A GPU that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silent {
    /// The driver's number of it.
    pub(super) index: u32,
    /// Its UUID, where it was described.
    pub(super) uuid: Option<String>,
    /// Whether that is said for the first time.
    pub(super) newly: bool,
}

/// The threads of one session, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads {
    session: Arc<Session>,
    readers: Vec<Asked>,
    listeners: Vec<Arc<Beat>>,
    hangs: bool,
    out: mpsc::Sender<Message>,
    sign: mpsc::Sender<Infallible>,
    ended: mpsc::Receiver<Infallible>,
}

/// A GPU's thread.
#[derive(Debug)]
struct Asked {
    index: u32,
    uuid: Option<String>,
    questions: SyncSender<()>,
    /// Since when an answer is awaited; it begins by describing the GPU.
    since: Option<Instant>,
    /// Whether it was said that the answer takes too long.
    told: bool,
}

/// A sign that a listener lives, and whether it still should.
#[derive(Debug)]
struct Beat {
    began: Instant,
    /// Milliseconds from then to the last sign; [`Beat::END`] when it shall end.
    last_ms: AtomicU64,
}

impl Beat {
    const END: u64 = u64::MAX;

    fn new() -> Self {
        Self {
            began: Instant::now(),
            last_ms: AtomicU64::new(0),
        }
    }

    /// Gives a sign. False when it is time to end.
    fn go_on(&self) -> bool {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(0);
        let before = self.last_ms.load(Ordering::Relaxed);
        // Fails where the end came in between.
        before != Self::END
            && (self.last_ms)
                .compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    fn end(&self) {
        self.last_ms.store(Self::END, Ordering::Relaxed);
    }

    /// Time since the last sign.
    fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.began.elapsed().saturating_sub(last)
    }
}

/// What every thread holds: the session, and a sign that it does.
struct Held {
    // In this order: whoever sees the sign gone finds the session gone as well.
    session: Arc<Session>,
    _sign: mpsc::Sender<Infallible>,
}

/// Starts a thread that nobody waits for.
pub(super) fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(run)
        .map(drop)
}

fn no_thread(error: &io::Error) -> String {
    format!(
        "no thread can ask the driver: {error}; look at the limits of this process and restart it"
    )
}

impl Threads {
    /// Starts one thread for each GPU, which describes it.
    pub(super) fn start(session: Arc<Session>, count: u32) -> (Self, mpsc::Receiver<Message>) {
        let (out, messages) = mpsc::channel(MAX_WAITING);
        let (sign, ended) = mpsc::channel(1);
        let mut threads = Self {
            session,
            readers: Vec::new(),
            listeners: Vec::new(),
            hangs: false,
            out,
            sign,
            ended,
        };
        for index in 0..count {
            let (questions, asked) = sync_channel(1);
            let (held, out) = (threads.held(), threads.out.clone());
            let started = start("nvml-gpu", move || attend(&held, index, &asked, &out));
            if let Err(error) = started {
                // There is room for one message of each GPU.
                let _ = threads.out.try_send(Message::Described {
                    index,
                    result: Err(no_thread(&error)),
                });
            }
            threads.readers.push(Asked {
                index,
                uuid: None,
                questions,
                since: Some(Instant::now()),
                told: false,
            });
        }
        (threads, messages)
    }

    fn held(&self) -> Held {
        Held {
            session: Arc::clone(&self.session),
            _sign: self.sign.clone(),
        }
    }

    /// Starts the thread that listens to the GPUs that are described, now and later.
    pub(super) fn listen(&mut self) {
        let beat = Arc::new(Beat::new());
        let (held, out) = (self.held(), self.out.clone());
        let own = Arc::clone(&beat);
        match start("nvml-events", move || listen(&held, &own, &out)) {
            Ok(()) => self.listeners.push(beat),
            Err(error) => {
                // Whoever reads the messages is the one who calls, so that there may be no
                // room; then it is tried again.
                let _ = (self.out).try_send(Message::Deaf(Some(no_thread(&error))));
            }
        }
    }

    /// Whether waiting for events hangs, where that changed. A call that hangs is joined by
    /// another one with a set of its own, a few times.
    pub(super) fn hearing(&mut self, limit: Duration) -> Option<Result<(), String>> {
        let newest = self.listeners.last()?;
        let patience = Duration::from_millis(LISTEN_MS.into()) + limit;
        let silence = newest.silence();
        let hangs = silence > patience;
        if hangs && silence > patience + LISTEN_AGAIN && self.listeners.len() < MAX_LISTENERS {
            newest.end();
            self.listen();
        }
        if std::mem::replace(&mut self.hangs, hangs) == hangs {
            return None;
        }
        Some(if hangs {
            Err("waiting for the driver's events hangs, so that XIDs are not heard; look at the kernel's log, and reboot the machine if it lasts".to_owned())
        } else {
            Ok(())
        })
    }

    /// Whether a call hangs in waiting for events.
    pub(super) fn hangs(&self) -> bool {
        self.hangs
    }

    /// Asks every GPU that has answered, and gives those that do not answer in time.
    pub(super) fn ask(&mut self, limit: Duration) -> Vec<Silent> {
        let mut silent = Vec::new();
        for reader in &mut self.readers {
            match reader.since {
                None => reader.ask(),
                Some(since) if since.elapsed() > limit => silent.push(Silent {
                    index: reader.index,
                    uuid: reader.uuid.clone(),
                    newly: !std::mem::replace(&mut reader.told, true),
                }),
                Some(_) => {}
            }
        }
        silent
    }

    /// Whether no answer is awaited.
    pub(super) fn all_answered(&self) -> bool {
        self.readers.iter().all(|reader| reader.since.is_none())
    }

    /// Whether every GPU is described, or is known to be beyond description.
    pub(super) fn all_described(&self) -> bool {
        self.readers.iter().all(|reader| reader.uuid.is_some())
    }

    /// This GPU was described, and is read next.
    pub(super) fn described(&mut self, index: u32, uuid: &str) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.index == index) {
            reader.uuid = Some(uuid.to_owned());
            reader.ask();
        }
    }

    /// This GPU was not described, and its thread has ended.
    pub(super) fn refused(&mut self, index: u32) {
        self.readers.retain(|reader| reader.index != index);
    }

    /// This GPU has answered.
    pub(super) fn answered(&mut self, index: u32) {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.index == index) {
            reader.since = None;
        }
    }

    /// Tells the threads to end; the channel closes when the last one has and the session with
    /// it.
    pub(super) fn end(self) -> mpsc::Receiver<Infallible> {
        self.listeners.iter().for_each(|listener| listener.end());
        self.ended
    }
}

impl Asked {
    fn ask(&mut self) {
        // A thread that ended leaves the question unanswered.
        let _ = self.questions.try_send(());
        self.since = Some(Instant::now());
        self.told = false;
    }
}

/// Describes a GPU, and reads it whenever it is asked to.
fn attend(held: &Held, index: u32, asked: &Receiver<()>, out: &mpsc::Sender<Message>) {
    let result = held.session.describe(index);
    let uuid = result.as_ref().ok().map(|gpu| gpu.uuid.clone());
    let told = out.blocking_send(Message::Described {
        index,
        result: result.map(Box::new),
    });
    let (Ok(()), Some(uuid)) = (told, uuid) else {
        return;
    };
    let mut reader = Reader::new(&uuid);
    while asked.recv().is_ok() {
        let message = Message::Read {
            index,
            uuid: uuid.clone(),
            result: reader.read(&held.session).map(Box::new),
        };
        if out.blocking_send(message).is_err() {
            return;
        }
    }
}

fn listen(held: &Held, beat: &Beat, out: &mpsc::Sender<Message>) {
    // Said at the first success as well: whoever waits for it knows that nothing is missed.
    let mut deaf = true;
    while beat.go_on() {
        let why = match listener(held, out) {
            Ok(listener) => {
                if std::mem::take(&mut deaf) && out.blocking_send(Message::Deaf(None)).is_err() {
                    return;
                }
                listen_with(listener, held, beat, out)
            }
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            deaf = true;
            if out.blocking_send(Message::Deaf(Some(why))).is_err() {
                return;
            }
            pause(LISTEN_AGAIN, beat);
        }
    }
}

/// Makes a set of events of every GPU that is described, and tells how they are connected.
fn listener<'held>(
    held: &'held Held,
    out: &mpsc::Sender<Message>,
) -> Result<Listener<'held>, String> {
    let listener = held.session.listen()?;
    // Nobody reads it any more when the session is about to end.
    let _ = out.blocking_send(Message::Connected(held.session.links()));
    Ok(listener)
}

/// Listens until the set is of no use any more; gives the reason where there is one.
fn listen_with<'held>(
    mut listener: Listener<'held>,
    held: &'held Held,
    beat: &Beat,
    out: &mpsc::Sender<Message>,
) -> Option<String> {
    let mut since = Instant::now();
    while beat.go_on() {
        let heard = match listener.wait(LISTEN_MS) {
            Ok(heard) => heard,
            Err(why) => return Some(why),
        };
        match heard {
            Heard::Xid(event) => {
                if out.blocking_send(Message::Heard(event)).is_err() {
                    return None;
                }
                continue;
            }
            Heard::Nothing if held.session.described() == listener.asked() => {
                // A GPU that was lost may be back.
                if listener.hears_all() || since.elapsed() < LISTEN_AGAIN {
                    continue;
                }
            }
            // One more was described.
            Heard::Nothing => {}
            // At once, because the set tells nothing of the others any more; but not
            // faster than the driver notices that a GPU is lost.
            Heard::Lost => pause(Duration::from_millis(100), beat),
        }
        since = Instant::now();
        // The new set is there before the old one goes, so that no event falls between.
        let next = match self::listener(held, out) {
            Ok(next) => next,
            Err(why) => return Some(why),
        };
        empty(&listener, out);
        listener = next;
    }
    // What was reported up to now is not lost with the set.
    empty(&listener, out);
    None
}

/// Tells what a set still holds.
fn empty(listener: &Listener<'_>, out: &mpsc::Sender<Message>) {
    for _ in 0..MAX_LEFT_OVER {
        let Ok(Heard::Xid(event)) = listener.wait(0) else {
            return;
        };
        if out.blocking_send(Message::Heard(event)).is_err() {
            return;
        }
    }
}

/// Waits, but not after the end was asked for.
fn pause(time: Duration, beat: &Beat) {
    let began = Instant::now();
    while began.elapsed() < time && beat.go_on() {
        thread::sleep(time.min(Duration::from_millis(100)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_was_told_to_end_does_not_go_on() {
        let beat = Beat::new();
        assert!(beat.go_on());
        assert!(beat.silence() < Duration::from_secs(5));
        beat.end();
        assert!(!beat.go_on());
        assert!(!beat.go_on());
    }
}
