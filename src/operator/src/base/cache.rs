//! A local copy of one kind, kept by a watch, that also holds what this process just wrote.
//!
//! A controller that looks again before its own write came back through the watch would decide
//! on a world without it, and create or place twice. So every write that the API server
//! confirmed goes into the cache at once ([`Cache::wrote`]), and stays until the watch is as
//! far. Resource versions are compared as numbers for this, which Kubernetes guarantees.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use creo_process::probes::Check;
use futures::{StreamExt as _, pin_mut};
use kube::api::{Api, Resource};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff as WatchBackoff;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::{Key, Publisher};

/// How long an own write may wait for its watch event before a new list outweighs it.
const OWN_WRITE_TRUSTED: Duration = Duration::from_mins(1);

/// How long a watch that failed waits before it starts again.
const WATCH_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(500),
    ceiling: Duration::from_secs(10),
};

/// What happened to one object.
#[derive(Debug, Clone)]
pub struct Change<K> {
    /// The object before; none when it is new here.
    pub before: Option<Arc<K>>,
    /// The object now; none when it is gone.
    pub after: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// The object now, or as it was last.
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<K>> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

type Subscriber<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;
type IndexOf<K> = fn(&K) -> Vec<Key>;

/// The local copy of one kind.
pub struct Cache<K> {
    inner: RwLock<Inner<K>>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    index_of: IndexOf<K>,
    ready: tokio::sync::watch::Sender<bool>,
}

struct Inner<K> {
    objects: HashMap<Key, Entry<K>>,
    by_index: HashMap<Key, BTreeSet<Key>>,
    /// The objects of a list that is under way.
    refill: Option<HashMap<Key, Arc<K>>>,
    /// The highest resource version that the watch has told.
    seen: u64,
}

struct Entry<K> {
    object: Arc<K>,
    /// When this process wrote it, while the watch has not told it yet.
    own_write: Option<Instant>,
}

fn version<K: Resource>(object: &K) -> u64 {
    object
        .meta()
        .resource_version
        .as_deref()
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

impl<K: Resource + Clone + 'static> Cache<K> {
    /// An empty cache; `index_of` names everything that [`Cache::indexed`] finds an object by.
    #[must_use]
    pub fn new(index_of: IndexOf<K>) -> Arc<Self> {
        Arc::new(Self {
            inner: RwLock::new(Inner {
                objects: HashMap::new(),
                by_index: HashMap::new(),
                refill: None,
                seen: 0,
            }),
            subscribers: RwLock::new(Vec::new()),
            index_of,
            ready: tokio::sync::watch::Sender::new(false),
        })
    }

    /// Calls `subscriber` after each change. It must only take notes (such as filling a queue):
    /// it runs on the task of the watch.
    pub fn subscribe(&self, subscriber: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(subscriber));
    }

    /// The object, if it is known.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read()
            .objects
            .get(key)
            .map(|entry| Arc::clone(&entry.object))
    }

    /// Every object, in no order.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read()
            .objects
            .values()
            .map(|entry| Arc::clone(&entry.object))
            .collect()
    }

    /// The keys of all objects, in no order.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.read().objects.keys().cloned().collect()
    }

    /// The objects that are found by `index`, in the order of their keys.
    #[must_use]
    pub fn indexed(&self, index: &Key) -> Vec<Arc<K>> {
        let inner = self.read();
        let Some(keys) = inner.by_index.get(index) else {
            return Vec::new();
        };
        keys.iter()
            .filter_map(|key| inner.objects.get(key))
            .map(|entry| Arc::clone(&entry.object))
            .collect()
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there is no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the first list is complete.
    pub async fn wait_until_ready(&self) {
        let mut ready = self.ready.subscribe();
        // The sender lives in self, so the wait cannot fail.
        let _ = ready.wait_for(|ready| *ready).await;
    }

    /// Takes in an object as the API server answered to this process' own write.
    pub fn wrote(&self, object: K) -> Arc<K> {
        let object = Arc::new(object);
        let change = {
            let mut inner = self.write();
            if version(object.as_ref()) <= inner.seen {
                return object;
            }
            self.insert(&mut inner, Arc::clone(&object), Some(Instant::now()))
        };
        self.tell(change);
        object
    }

    /// Forgets an object that the API server positively does not have (any more).
    pub fn forget(&self, key: &Key) {
        let change = {
            let mut inner = self.write();
            self.take(&mut inner, key)
        };
        self.tell(change);
    }

    /// Takes in one event of the watch.
    fn observe(&self, event: Event<K>) {
        let changes = {
            let mut inner = self.write();
            match event {
                Event::Init => {
                    inner.refill = Some(HashMap::new());
                    Vec::new()
                }
                Event::InitApply(object) => {
                    inner.seen = inner.seen.max(version(&object));
                    if let Some(refill) = inner.refill.as_mut() {
                        refill.insert(Key::of(&object), Arc::new(object));
                    }
                    Vec::new()
                }
                Event::InitDone => self.replace(&mut inner),
                Event::Apply(object) => {
                    inner.seen = inner.seen.max(version(&object));
                    vec![self.insert(&mut inner, Arc::new(object), None)]
                }
                Event::Delete(object) => {
                    inner.seen = inner.seen.max(version(&object));
                    let key = Key::of(&object);
                    let newer = inner
                        .objects
                        .get(&key)
                        .is_some_and(|held| version(held.object.as_ref()) > version(&object));
                    if newer {
                        Vec::new()
                    } else {
                        vec![self.take(&mut inner, &key)]
                    }
                }
            }
        };
        for change in changes {
            self.tell(change);
        }
    }

    /// Swaps in the list that is complete; own writes that it cannot know yet stay.
    fn replace(&self, inner: &mut Inner<K>) -> Vec<Option<Change<K>>> {
        let refill = inner.refill.take().unwrap_or_default();
        let seen = inner.seen;
        let gone: Vec<Key> = inner
            .objects
            .iter()
            .filter(|(key, entry)| {
                let own = entry.own_write.is_some_and(|at| {
                    version(entry.object.as_ref()) > seen && at.elapsed() < OWN_WRITE_TRUSTED
                });
                !own && !refill.contains_key(*key)
            })
            .map(|(key, _)| key.clone())
            .collect();
        let mut changes: Vec<_> = gone.iter().map(|key| self.take(inner, key)).collect();
        changes.extend(
            refill
                .into_values()
                .map(|object| self.insert(inner, object, None)),
        );
        changes
    }

    fn insert(
        &self,
        inner: &mut Inner<K>,
        object: Arc<K>,
        own_write: Option<Instant>,
    ) -> Option<Change<K>> {
        let key = Key::of(object.as_ref());
        if let Some(held) = inner.objects.get_mut(&key) {
            let (old, new) = (version(held.object.as_ref()), version(object.as_ref()));
            if old == new && held.object.meta().uid == object.meta().uid {
                held.own_write = None;
                return None;
            }
            if old > new {
                return None;
            }
        }
        let before = self.unlink(inner, &key);
        for index in (self.index_of)(&object) {
            inner.by_index.entry(index).or_default().insert(key.clone());
        }
        inner.objects.insert(
            key,
            Entry {
                object: Arc::clone(&object),
                own_write,
            },
        );
        Some(Change {
            before,
            after: Some(object),
        })
    }

    fn take(&self, inner: &mut Inner<K>, key: &Key) -> Option<Change<K>> {
        self.unlink(inner, key).map(|before| Change {
            before: Some(before),
            after: None,
        })
    }

    fn unlink(&self, inner: &mut Inner<K>, key: &Key) -> Option<Arc<K>> {
        let entry = inner.objects.remove(key)?;
        for index in (self.index_of)(&entry.object) {
            if let Some(keys) = inner.by_index.get_mut(&index) {
                keys.remove(key);
                if keys.is_empty() {
                    inner.by_index.remove(&index);
                }
            }
        }
        Some(entry.object)
    }

    fn tell(&self, change: Option<Change<K>>) {
        let Some(change) = change else { return };
        for subscriber in self
            .subscribers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            subscriber(&change);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the watch of a cache is set up.
pub struct Watch<K> {
    /// What is watched, whole cluster or one namespace.
    pub api: Api<DeserializeGuard<K>>,
    /// The selectors of the watch.
    pub config: watcher::Config,
    /// The readiness check of this cache.
    pub check: Check,
}

/// Keeps the cache for as long as the future is polled; never ends by itself.
pub async fn keep<K>(cache: Arc<Cache<K>>, watch: Watch<K>, publisher: Publisher)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let kind = K::kind(&()).into_owned();
    let config = watch.config.timeout(creo_process::client::WATCH_SECONDS);
    let stream = watcher(watch.api, config).backoff(Restarts::default());
    pin_mut!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(event) => {
                let done = matches!(event, Event::InitDone);
                if let Some(event) = readable(event, &kind, &publisher) {
                    cache.observe(event);
                }
                if done {
                    watch.check.holds();
                    cache.ready.send_replace(true);
                }
                publisher.cached(&kind, cache.len());
            }
            Err(error) => {
                publisher.watch_failed(&kind, &error);
                if !*cache.ready.borrow() {
                    watch.check.fails(format!(
                        "{kind} objects cannot be listed: {error}; check the API server and the operator's ClusterRole"
                    ));
                }
            }
        }
    }
}

/// The event of an object that can be read. An object that cannot be read is reported and its
/// last readable form stays: a GPU must not look free because one object is broken.
fn readable<K: Resource>(
    event: Event<DeserializeGuard<K>>,
    kind: &str,
    publisher: &Publisher,
) -> Option<Event<K>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or_default();
            let namespace = invalid.metadata.namespace.as_deref().unwrap_or_default();
            publisher.unreadable(kind, namespace, name, &invalid.error);
            None
        }
    };
    match event {
        Event::Init => Some(Event::Init),
        Event::InitDone => Some(Event::InitDone),
        Event::InitApply(guard) => open(guard).map(Event::InitApply),
        Event::Apply(guard) => open(guard).map(Event::Apply),
        Event::Delete(guard) => open(guard).map(Event::Delete),
    }
}

#[derive(Debug, Default)]
struct Restarts {
    failures: u32,
}

impl Iterator for Restarts {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let seed = std::hash::BuildHasher::hash_one(
            &std::collections::hash_map::RandomState::new(),
            self.failures,
        );
        Some(WATCH_BACKOFF.delay(self.failures, seed))
    }
}

impl WatchBackoff for Restarts {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::ResourceExt as _;
    use kube::api::ObjectMeta;
    use std::sync::Mutex;

    fn object(name: &str, uid: &str, resource_version: u64) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("ns".to_owned()),
                uid: Some(uid.to_owned()),
                resource_version: Some(resource_version.to_string()),
                labels: Some([("of".to_owned(), uid.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    fn cache() -> Arc<Cache<ConfigMap>> {
        Cache::new(|object| {
            object
                .labels()
                .get("of")
                .map(Key::cluster)
                .into_iter()
                .collect()
        })
    }

    fn held(cache: &Cache<ConfigMap>, name: &str) -> Option<u64> {
        cache
            .get(&Key::namespaced("ns", name))
            .map(|o| version(&*o))
    }

    #[test]
    fn an_own_write_is_seen_at_once_and_an_older_event_does_not_undo_it() {
        let cache = cache();
        cache.observe(Event::Apply(object("a", "1", 5)));
        cache.wrote(object("a", "1", 8));
        assert_eq!(held(&cache, "a"), Some(8));
        cache.observe(Event::Apply(object("a", "1", 7)));
        assert_eq!(held(&cache, "a"), Some(8));
        cache.observe(Event::Apply(object("a", "1", 9)));
        assert_eq!(held(&cache, "a"), Some(9));
    }

    #[test]
    fn the_answer_to_a_write_that_comes_after_the_deletion_does_not_bring_the_object_back() {
        let cache = cache();
        cache.observe(Event::Apply(object("a", "1", 5)));
        cache.observe(Event::Delete(object("a", "1", 9)));
        cache.wrote(object("a", "1", 8));
        assert_eq!(held(&cache, "a"), None);
    }

    #[test]
    fn the_deletion_of_the_object_before_does_not_remove_the_new_one_of_that_name() {
        let cache = cache();
        cache.observe(Event::Apply(object("a", "1", 5)));
        cache.wrote(object("a", "2", 10));
        cache.observe(Event::Delete(object("a", "1", 9)));
        assert_eq!(held(&cache, "a"), Some(10));
    }

    #[test]
    fn a_new_list_removes_what_it_lacks_but_not_an_own_write_that_is_newer() {
        let cache = cache();
        cache.observe(Event::Apply(object("old", "1", 5)));
        cache.wrote(object("own", "2", 20));
        cache.observe(Event::Init);
        cache.observe(Event::InitApply(object("listed", "3", 12)));
        assert_eq!(
            held(&cache, "old"),
            Some(5),
            "the old state holds until the list is complete"
        );
        cache.observe(Event::InitDone);
        assert_eq!(held(&cache, "old"), None);
        assert_eq!(held(&cache, "own"), Some(20));
        assert_eq!(held(&cache, "listed"), Some(12));
    }

    #[test]
    fn the_index_follows_the_objects() {
        let cache = cache();
        cache.observe(Event::Apply(object("a", "x", 1)));
        cache.observe(Event::Apply(object("b", "x", 2)));
        assert_eq!(cache.indexed(&Key::cluster("x")).len(), 2);
        cache.observe(Event::Apply(object("b", "y", 3)));
        assert_eq!(cache.indexed(&Key::cluster("x")).len(), 1);
        assert_eq!(cache.indexed(&Key::cluster("y")).len(), 1);
        cache.observe(Event::Delete(object("a", "x", 4)));
        assert!(cache.indexed(&Key::cluster("x")).is_empty());
    }

    #[test]
    fn subscribers_hear_each_change_once() {
        let cache = cache();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        cache.subscribe(move |change| {
            let versions = (
                change.before.as_ref().map(|o| version(&**o)),
                change.after.as_ref().map(|o| version(&**o)),
            );
            log.lock().unwrap().push(versions);
        });
        cache.wrote(object("a", "1", 3));
        cache.observe(Event::Apply(object("a", "1", 3)));
        cache.observe(Event::Apply(object("a", "1", 4)));
        cache.observe(Event::Delete(object("a", "1", 5)));
        assert_eq!(
            *heard.lock().unwrap(),
            [(None, Some(3)), (Some(3), Some(4)), (Some(4), None)]
        );
    }
}
