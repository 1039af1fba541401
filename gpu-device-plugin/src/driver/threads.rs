//! The threads of one session: they call the library and tell what it answers.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::session::{Happened, Heard, Listener, ReadError, Reader, Reading, Session};

/// Messages that may wait to be read. A thread whose message finds no room waits, so that
/// nothing is lost and nothing piles up.
const MAX_WAITING: usize = 256;
/// How long one call waits for an event. The thread cannot end before.
const LISTEN_MS: u32 = 500;
/// Time between two attempts to hear a GPU that was lost.
const LISTEN_AGAIN: Duration = Duration::from_secs(5);
/// Most events that are taken out of a set before it is given up.
const MAX_LEFT_OVER: usize = 4096;

/// What a thread tells.
#[derive(Debug)]
pub(super) enum Message {
    /// The driver reported something.
    Heard(Happened),
    /// Why events cannot be heard; nothing when they can again.
    Deaf(Option<String>),
    /// A GPU was read.
    Read {
        uuid: String,
        result: Result<Box<Reading>, ReadError>,
    },
}

/// The threads of one session, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads {
    // Dropped for its effect.
    _stop: Stop,
    readers: BTreeMap<String, Asked>,
    ended: mpsc::Receiver<Infallible>,
}

/// Tells the threads to end when it is dropped.
#[derive(Debug)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Asked {
    questions: SyncSender<()>,
    asked: Option<Instant>,
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
        .spawn(run)
        .map(drop)
}

impl Threads {
    /// Starts one thread that listens and one for each GPU.
    pub(super) fn start(
        session: Arc<Session>,
        uuids: &[String],
    ) -> (Self, mpsc::Receiver<Message>) {
        let (out, messages) = mpsc::channel(MAX_WAITING);
        let (sign, ended) = mpsc::channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let mut readers = BTreeMap::new();
        for uuid in uuids {
            let (questions, asked) = sync_channel(1);
            let held = Held {
                session: Arc::clone(&session),
                _sign: sign.clone(),
            };
            let (name, out) = (uuid.clone(), out.clone());
            // A thread that does not start never answers: its GPU is silent.
            let _ = start("nvml-read", move || read(&held, &name, &asked, &out));
            let reader = Asked {
                questions,
                asked: None,
            };
            readers.insert(uuid.clone(), reader);
        }
        let held = Held {
            session,
            _sign: sign,
        };
        let (names, stopped, heard) = (uuids.to_vec(), Arc::clone(&stop), out.clone());
        let started = start("nvml-events", move || {
            listen(&held, &names, &stopped, &heard);
        });
        if let Err(error) = started {
            let why = format!(
                "no thread can listen to the driver: {error}; look at the limits of this process and restart it"
            );
            // The channel is new, so there is room.
            let _ = out.try_send(Message::Deaf(Some(why)));
        }
        let threads = Self {
            _stop: Stop(stop),
            readers,
            ended,
        };
        (threads, messages)
    }

    /// Asks every GPU that has answered, and gives those that do not answer in time.
    pub(super) fn ask(&mut self, limit: Duration) -> Vec<String> {
        let mut silent = Vec::new();
        for (uuid, reader) in &mut self.readers {
            match reader.asked {
                None => {
                    // A thread that ended leaves the question unanswered.
                    let _ = reader.questions.try_send(());
                    reader.asked = Some(Instant::now());
                }
                Some(asked) if asked.elapsed() > limit => silent.push(uuid.clone()),
                Some(_) => {}
            }
        }
        silent
    }

    /// Whether no answer is awaited.
    pub(super) fn all_answered(&self) -> bool {
        self.readers.values().all(|reader| reader.asked.is_none())
    }

    /// This GPU has answered.
    pub(super) fn answered(&mut self, uuid: &str) {
        if let Some(reader) = self.readers.get_mut(uuid) {
            reader.asked = None;
        }
    }

    /// Tells the threads to end; the channel closes when the last one has.
    pub(super) fn end(self) -> mpsc::Receiver<Infallible> {
        self.ended
    }
}

fn read(held: &Held, uuid: &str, asked: &Receiver<()>, out: &mpsc::Sender<Message>) {
    let mut reader = Reader::new(uuid);
    while asked.recv().is_ok() {
        let message = Message::Read {
            uuid: uuid.to_owned(),
            result: reader.read(&held.session).map(Box::new),
        };
        if out.blocking_send(message).is_err() {
            return;
        }
    }
}

fn listen(held: &Held, uuids: &[String], stop: &AtomicBool, out: &mpsc::Sender<Message>) {
    // Said at the first success as well: whoever waits for it knows that nothing is missed.
    let mut deaf = true;
    while !stop.load(Ordering::Relaxed) {
        let why = match held.session.listen(uuids) {
            Ok(listener) => {
                if std::mem::take(&mut deaf) && out.blocking_send(Message::Deaf(None)).is_err() {
                    return;
                }
                listen_with(listener, held, uuids, stop, out)
            }
            Err(why) => Some(why),
        };
        if let Some(why) = why {
            deaf = true;
            if out.blocking_send(Message::Deaf(Some(why))).is_err() {
                return;
            }
            pause(LISTEN_AGAIN, stop);
        }
    }
}

/// Listens until the set is of no use any more; gives the reason where there is one.
fn listen_with<'held>(
    mut listener: Listener<'held>,
    held: &'held Held,
    uuids: &[String],
    stop: &AtomicBool,
    out: &mpsc::Sender<Message>,
) -> Option<String> {
    let mut since = std::time::Instant::now();
    while !stop.load(Ordering::Relaxed) {
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
            Heard::Nothing if listener.hears() == uuids.len() => continue,
            // A GPU that was lost may be back.
            Heard::Nothing if since.elapsed() < LISTEN_AGAIN => continue,
            Heard::Nothing => {}
            // At once, because the set tells nothing of the others any more; but not
            // faster than the driver notices that a GPU is lost.
            Heard::Lost => pause(Duration::from_millis(100), stop),
        }
        since = std::time::Instant::now();
        // The new set is there before the old one goes, so that no event falls between.
        let next = match held.session.listen(uuids) {
            Ok(next) => next,
            Err(why) => return Some(why),
        };
        for _ in 0..MAX_LEFT_OVER {
            let Ok(Heard::Xid(event)) = listener.wait(0) else {
                break;
            };
            if out.blocking_send(Message::Heard(event)).is_err() {
                return None;
            }
        }
        listener = next;
    }
    None
}

/// Waits, but not after the end was asked for.
fn pause(time: Duration, stop: &AtomicBool) {
    let began = std::time::Instant::now();
    while began.elapsed() < time && !stop.load(Ordering::Relaxed) {
        thread::sleep(time.min(Duration::from_millis(100)));
    }
}
