//! Faults of watches, and the one task that stands between each watch of the
//! controller and the API server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Bytes, Frame};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::forward::BoxError;

/// The largest event that is passed on. etcd takes 1.5 MiB an object.
const EVENT_BYTES_MAX: usize = 8 << 20;
/// Events read ahead of a slow controller.
const EVENTS_AHEAD_MAX: usize = 16;
/// Objects whose last state is kept for repetition.
const OBJECTS_MAX: usize = 4096;

/// Held watches are let go one after the other, with this much time between
/// them: the kinds' news are as independent as those of a real API server.
const SKEW: Duration = Duration::from_millis(400);
/// A controller watches about this many kinds.
const SKEWS: u32 = 6;

/// A fault that has been set off, in the order of that happening.
#[derive(Clone, Copy, Debug)]
pub(super) enum WatchFault {
    Cut,
    Expire,
    Hold { until: Instant },
    Repeat { until: Instant },
}

/// All watch faults so far. Watches look at those that came after they opened,
/// except that holding and repeating go on until their time is over.
#[derive(Debug)]
pub(super) struct WatchFaults {
    faults: watch::Sender<Vec<WatchFault>>,
    opened: AtomicU32,
}

impl WatchFaults {
    pub(super) fn new() -> Self {
        Self {
            faults: watch::Sender::new(Vec::new()),
            opened: AtomicU32::new(0),
        }
    }

    pub(super) fn cut(&self) {
        self.push(WatchFault::Cut);
    }

    pub(super) fn expire(&self) {
        self.push(WatchFault::Expire);
    }

    pub(super) fn hold(&self, span: Duration) {
        self.push(WatchFault::Hold {
            until: Instant::now() + span,
        });
    }

    pub(super) fn repeat(&self, span: Duration) {
        self.push(WatchFault::Repeat {
            until: Instant::now() + span,
        });
    }

    /// Whether a watch may still be held or repeat its events.
    pub(super) fn is_active(&self) -> bool {
        let now = Instant::now();
        self.faults.borrow().iter().any(|fault| match fault {
            WatchFault::Cut | WatchFault::Expire => false,
            WatchFault::Hold { until } => *until + SKEW * SKEWS > now,
            WatchFault::Repeat { until } => *until > now,
        })
    }

    fn push(&self, fault: WatchFault) {
        self.faults.send_modify(|faults| faults.push(fault));
    }

    /// Starts passing on `upstream`, and returns the body for the controller.
    pub(super) fn relay(
        &self,
        upstream: kube::client::Body,
        stop: CancellationToken,
    ) -> (
        mpsc::Receiver<Result<Frame<Bytes>, BoxError>>,
        impl Future<Output = ()> + use<>,
    ) {
        let (sender, receiver) = mpsc::channel(EVENTS_AHEAD_MAX);
        let faults = self.faults.subscribe();
        let seen = faults.borrow().len();
        let relay = Relay {
            faults,
            seen,
            skew: SKEW * (self.opened.fetch_add(1, Ordering::Relaxed) % SKEWS),
            sender,
            partial: Vec::new(),
            states: HashMap::new(),
        };
        (receiver, relay.run(upstream, stop))
    }
}

struct Relay {
    faults: watch::Receiver<Vec<WatchFault>>,
    /// How many of the faults this watch has obeyed.
    seen: usize,
    /// How much longer this watch is held than the first.
    skew: Duration,
    sender: mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
    /// The beginning of an event whose end has not arrived.
    partial: Vec<u8>,
    /// The last event of each object, by uid.
    states: HashMap<String, Bytes>,
}

/// Why a relay ends.
enum End {
    /// As when the API server's own time limit is reached.
    Orderly,
    /// The connection to the controller breaks.
    Broken(BoxError),
}

impl Relay {
    async fn run(mut self, mut upstream: kube::client::Body, stop: CancellationToken) {
        let end = loop {
            let held = self.deadline(|fault| match fault {
                WatchFault::Hold { until } => Some(until + self.skew),
                _ => None,
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => break End::Broken("the fault proxy stops".into()),
                () = self.sender.closed() => break End::Orderly,
                changed = self.faults.changed() => match changed {
                    Ok(()) => if let Some(end) = self.obey().await { break end },
                    Err(_) => break End::Broken("the fault proxy is gone".into()),
                },
                () = sleep_until(held), if held.is_some() => {}
                frame = upstream.frame(), if held.is_none() => match frame {
                    None => break End::Orderly,
                    Some(Err(error)) => break End::Broken(error.into()),
                    Some(Ok(frame)) => {
                        let data = frame.into_data().unwrap_or_default();
                        if let Err(end) = self.pass(&data).await { break end }
                    }
                },
            }
        };
        if let End::Broken(error) = end {
            // The controller may be gone already, and then nobody needs to know.
            let _ = self.sender.send(Err(error)).await;
        }
    }

    /// The latest end of the faults that are not over.
    fn deadline(&self, until: impl Fn(WatchFault) -> Option<Instant>) -> Option<Instant> {
        let now = Instant::now();
        let faults = self.faults.borrow();
        faults
            .iter()
            .filter_map(|fault| until(*fault))
            .filter(|until| *until > now)
            .max()
    }

    /// Obeys the faults that were set off since this was last called.
    async fn obey(&mut self) -> Option<End> {
        let fresh: Vec<WatchFault> = {
            let faults = self.faults.borrow_and_update();
            faults.get(self.seen..).unwrap_or_default().to_vec()
        };
        self.seen += fresh.len();
        for fault in fresh {
            match fault {
                WatchFault::Cut => return Some(End::Orderly),
                WatchFault::Expire => {
                    // Nobody to tell is as good as told.
                    let _ = self.send(Bytes::from_static(GONE)).await;
                    return Some(End::Orderly);
                }
                WatchFault::Hold { .. } | WatchFault::Repeat { .. } => {}
            }
        }
        None
    }

    /// Passes on the events that are complete with `data`.
    async fn pass(&mut self, data: &[u8]) -> Result<(), End> {
        self.partial.extend_from_slice(data);
        if self.partial.len() > EVENT_BYTES_MAX {
            return Err(End::Broken(
                format!("an event has more than {EVENT_BYTES_MAX} bytes").into(),
            ));
        }
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(());
        };
        let rest = self.partial.split_off(end + 1);
        let complete = Bytes::from(std::mem::replace(&mut self.partial, rest));
        let mut start = 0;
        for (at, _) in complete
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
        {
            self.deliver(complete.slice(start..=at)).await?;
            start = at + 1;
        }
        Ok(())
    }

    async fn deliver(&mut self, event: Bytes) -> Result<(), End> {
        let repeating = self.deadline(|fault| match fault {
            WatchFault::Repeat { until } => Some(until),
            _ => None,
        });
        let older = self.remember(&event);
        self.send(event.clone()).await?;
        if repeating.is_some() {
            if let Some(older) = older {
                self.send(older).await?;
            }
            // The newest state comes last: a real API server never leaves a
            // client behind for good.
            self.send(event).await?;
        }
        Ok(())
    }

    /// Keeps the event as the last of its object and returns the one before.
    fn remember(&mut self, event: &Bytes) -> Option<Bytes> {
        let uid = serde_json::from_slice::<EventHead>(event)
            .ok()?
            .object
            .metadata
            .uid?;
        if self.states.len() >= OBJECTS_MAX && !self.states.contains_key(&uid) {
            self.states.clear();
        }
        self.states.insert(uid, event.clone())
    }

    async fn send(&self, event: Bytes) -> Result<(), End> {
        self.sender
            .send(Ok(Frame::data(event)))
            .await
            .map_err(|_| End::Orderly)
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(deadline).await;
    }
}

/// The event by which the API server says that a resourceVersion is too old.
const GONE: &[u8] = br#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version (fault proxy)","reason":"Expired","code":410}}
"#;

#[derive(Deserialize)]
struct EventHead {
    object: ObjectHead,
}

#[derive(Deserialize)]
struct ObjectHead {
    #[serde(default)]
    metadata: UidOnly,
}

#[derive(Default, Deserialize)]
struct UidOnly {
    uid: Option<String>,
}
