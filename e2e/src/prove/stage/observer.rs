//! Sees every state that the objects of a stage go through, and holds each
//! against the invariants.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use creo_api::{AgentDeployment, CreoNode, Placement};
use futures::stream::{BoxStream, StreamExt as _, select_all};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event};
use serde_json::Value;

use super::super::plan::Failure;
use super::invariants::{Expectation, violation};

/// The kinds that are observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in super::super) enum Kind {
    /// What the customer wants.
    AgentDeployment,
    /// The replicas.
    Placement,
    /// What runs.
    Pod,
    /// Where it answers.
    Service,
    /// The offers, of the whole cluster.
    CreoNode,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::AgentDeployment,
        Self::Placement,
        Self::Pod,
        Self::Service,
        Self::CreoNode,
    ];

    fn resource(self) -> ApiResource {
        match self {
            Self::AgentDeployment => ApiResource::erase::<AgentDeployment>(&()),
            Self::Placement => ApiResource::erase::<Placement>(&()),
            Self::Pod => ApiResource::erase::<Pod>(&()),
            Self::Service => ApiResource::erase::<Service>(&()),
            Self::CreoNode => ApiResource::erase::<CreoNode>(&()),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// The objects by kind and uid.
pub(in super::super) type Objects = BTreeMap<(Kind, String), Value>;

/// A watcher of all kinds, with what it has seen.
pub(in super::super) struct Observer {
    seen: Arc<Mutex<Seen>>,
    task: tokio::task::JoinHandle<()>,
}

/// What was seen, and what is to be expected.
#[derive(Default)]
struct Seen {
    objects: Objects,
    /// Uids of a list that is on its way, by kind.
    listing: BTreeMap<Kind, BTreeSet<String>>,
    /// Every uid that was ever seen, by kind.
    ever: BTreeMap<Kind, BTreeSet<String>>,
    expectation: Expectation,
    violation: Option<String>,
}

impl Observer {
    /// Watches `namespace`, and the CreoNodes.
    pub(super) fn start(client: &kube::Client, namespace: &str) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let streams = Kind::ALL.map(|kind| watch(client.clone(), namespace, kind));
        let task = tokio::spawn(observe(select_all(streams), Arc::clone(&seen)));
        Self { seen, task }
    }

    fn locked(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what is to be expected from now on.
    pub(in super::super) fn expect(&self, change: impl FnOnce(&mut Expectation)) {
        change(&mut self.locked().expectation);
    }

    /// The objects that are there.
    pub(in super::super) fn objects(&self) -> Objects {
        self.locked().objects.clone()
    }

    /// How many objects of each kind there have been, CreoNodes apart.
    pub(in super::super) fn ever(&self) -> BTreeMap<Kind, usize> {
        let seen = self.locked();
        seen.ever
            .iter()
            .filter(|(kind, _)| **kind != Kind::CreoNode)
            .map(|(kind, uids)| (*kind, uids.len()))
            .collect()
    }

    /// Fails when an invariant was ever broken.
    pub(super) fn check(&self) -> Result<(), Failure> {
        match &self.locked().violation {
            Some(what) => Err(Failure::new(format!("invariant broken: {what}"))),
            None => Ok(()),
        }
    }

    /// Ends the watches.
    pub(super) async fn stop(&self) {
        self.task.abort();
        while !self.task.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Events = BoxStream<'static, (Kind, watcher::Result<Event<DynamicObject>>)>;

fn watch(client: kube::Client, namespace: &str, kind: Kind) -> Events {
    let resource = kind.resource();
    let api: Api<DynamicObject> = match kind {
        Kind::CreoNode => Api::all_with(client, &resource),
        _ => Api::namespaced_with(client, namespace, &resource),
    };
    watcher::watcher(api, watcher::Config::default())
        .map(move |event| (kind, event))
        .boxed()
}

async fn observe(
    mut events: impl futures::Stream<Item = (Kind, watcher::Result<Event<DynamicObject>>)> + Unpin,
    seen: Arc<Mutex<Seen>>,
) {
    while let Some((kind, event)) = events.next().await {
        match event {
            Ok(event) => seen
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(kind, event),
            // The API server may be away on purpose; the watcher tries again.
            Err(error) => {
                tracing::debug!(%kind, %error, "the observer's watch broke");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Seen {
    fn take(&mut self, kind: Kind, event: Event<DynamicObject>) {
        match event {
            Event::Init => {
                self.listing.insert(kind, BTreeSet::new());
            }
            Event::InitApply(object) => {
                if let Some(uid) = &object.metadata.uid {
                    self.listing.entry(kind).or_default().insert(uid.clone());
                }
                self.put(kind, object);
            }
            Event::InitDone => {
                let listed = self.listing.remove(&kind).unwrap_or_default();
                self.objects
                    .retain(|(of, uid), _| *of != kind || listed.contains(uid));
            }
            Event::Apply(object) => self.put(kind, object),
            Event::Delete(object) => {
                if let Some(uid) = object.metadata.uid {
                    self.objects.remove(&(kind, uid));
                }
            }
        }
        // While a list is on its way, the objects are of two different times.
        if self.listing.is_empty() && self.violation.is_none() {
            self.violation = violation(&self.objects, &self.expectation);
        }
    }

    fn put(&mut self, kind: Kind, object: DynamicObject) {
        let Some(uid) = object.metadata.uid.clone() else {
            return;
        };
        let Ok(value) = serde_json::to_value(object) else {
            return;
        };
        self.ever.entry(kind).or_default().insert(uid.clone());
        self.objects.insert((kind, uid), value);
    }
}
