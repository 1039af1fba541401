//! The rules of leadership as values: what to do with the lease that was found, and until when
//! this process may write. No clock, no socket: the loop is in [`super::leader`].
//!
//! Two processes never write at once, because
//!
//! - a lease is only ever replaced at the resource version that was seen, so one of two wins;
//! - the holder may write until two thirds of the lease's duration after it *sent* the request
//!   that renewed it, by its own monotonic clock;
//! - everyone else waits for the whole duration after they *saw* the last renewal, which is
//!   later, by their own monotonic clock. The times inside the lease are for people only.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use tokio::time::Instant;

/// What to do with the lease that was found.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Nobody ever held it: create it.
    Create(Box<Lease>),
    /// Replace it at the resource version that was found.
    Replace(Box<Lease>),
    /// Somebody holds it: look again after this time.
    Wait(Duration),
}

/// One candidate for the lease.
#[derive(Debug, Clone)]
pub struct Election {
    namespace: String,
    name: String,
    identity: String,
    duration: Duration,
    watched: Option<Watched>,
    held: Option<Held>,
}

/// A lease of somebody else, and since when it has not changed here.
#[derive(Debug, Clone)]
struct Watched {
    resource_version: Option<String>,
    since: Instant,
}

/// Our lease.
#[derive(Debug, Clone)]
struct Held {
    lease: Lease,
    valid_until: Instant,
    epoch: i32,
}

impl Election {
    /// A candidate that holds nothing yet. `identity` must be unlike that of every other process.
    #[must_use]
    pub fn new(namespace: String, name: String, identity: String, duration: Duration) -> Self {
        Self {
            namespace,
            name,
            identity,
            duration,
            watched: None,
            held: None,
        }
    }

    /// How often the holder renews and the others look.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.duration / 5
    }

    /// The epoch that this process may write in at `now`; none when it may not write.
    #[must_use]
    pub fn epoch(&self, now: Instant) -> Option<i32> {
        self.held
            .as_ref()
            .filter(|held| now < held.valid_until)
            .map(|held| held.epoch)
    }

    /// Until when this process may write, if it holds the lease.
    #[must_use]
    pub fn valid_until(&self) -> Option<Instant> {
        self.held.as_ref().map(|held| held.valid_until)
    }

    /// What to do with the lease that was found at `now`; `wall` is written into it for people.
    pub fn decide(&mut self, now: Instant, wall: Timestamp, found: Option<Lease>) -> Decision {
        let Some(found) = found else {
            return Decision::Create(Box::new(self.fresh(wall)));
        };
        let spec = found.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        if holder.is_empty() || holder == self.identity || self.has_expired(now, &found, &spec) {
            return Decision::Replace(Box::new(self.claimed(found, &spec, wall)));
        }
        Decision::Wait(self.interval())
    }

    /// The lease as it is to be replaced to renew it; none when it is not held.
    #[must_use]
    pub fn renewal(&self, wall: Timestamp) -> Option<Lease> {
        let held = self.held.as_ref()?;
        let spec = held.lease.spec.clone().unwrap_or_default();
        Some(self.claimed(held.lease.clone(), &spec, wall))
    }

    /// The lease as it is to be replaced to give it up; none when it is not held.
    #[must_use]
    pub fn release(&self, wall: Timestamp) -> Option<Lease> {
        let mut lease = self.held.as_ref()?.lease.clone();
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(wall));
        Some(lease)
    }

    /// The API server stored our lease; `sent` is when the request was sent.
    pub fn won(&mut self, sent: Instant, lease: Lease) {
        let epoch = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.lease_transitions)
            .unwrap_or_default();
        self.watched = None;
        self.held = Some(Held {
            lease,
            valid_until: sent + self.duration * 2 / 3,
            epoch,
        });
    }

    /// The lease is not ours any more.
    pub fn lost(&mut self) {
        self.held = None;
    }

    /// Whether the lease was found to be ours.
    #[must_use]
    pub fn is_ours(&self, lease: &Lease) -> bool {
        lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            == Some(self.identity.as_str())
    }

    fn has_expired(&mut self, now: Instant, found: &Lease, spec: &LeaseSpec) -> bool {
        let resource_version = found.metadata.resource_version.clone();
        match &self.watched {
            Some(watched) if watched.resource_version == resource_version => {
                let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or_default());
                let theirs = Duration::from_secs(seconds.unwrap_or_default());
                now.duration_since(watched.since) >= theirs.max(self.duration)
            }
            _ => {
                self.watched = Some(Watched {
                    resource_version,
                    since: now,
                });
                false
            }
        }
    }

    fn fresh(&self, wall: Timestamp) -> Lease {
        Lease {
            metadata: ObjectMeta {
                namespace: Some(self.namespace.clone()),
                name: Some(self.name.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: Some(self.seconds()),
                acquire_time: Some(MicroTime(wall)),
                renew_time: Some(MicroTime(wall)),
                lease_transitions: Some(1),
                ..LeaseSpec::default()
            }),
        }
    }

    fn claimed(&self, mut lease: Lease, before: &LeaseSpec, wall: Timestamp) -> Lease {
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let spec = lease.spec.get_or_insert_default();
        if !ours {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(MicroTime(wall));
            spec.lease_transitions = Some(
                before
                    .lease_transitions
                    .unwrap_or_default()
                    .saturating_add(1),
            );
        }
        spec.lease_duration_seconds = Some(self.seconds());
        spec.renew_time = Some(MicroTime(wall));
        lease
    }

    /// The duration in whole seconds, rounded up, so that nobody takes over too early.
    fn seconds(&self) -> i32 {
        i32::try_from(self.duration.as_millis().div_ceil(1000)).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DURATION: Duration = Duration::from_secs(15);

    fn candidate(identity: &str) -> Election {
        Election::new("creo".into(), "operator".into(), identity.into(), DURATION)
    }

    /// An API server with one lease and no sense of time.
    #[derive(Default)]
    struct Store {
        lease: Option<Lease>,
        version: u64,
    }

    impl Store {
        fn put(&mut self, mut lease: Lease) -> Option<Lease> {
            let current = self
                .lease
                .as_ref()
                .and_then(|l| l.metadata.resource_version.clone());
            if current != lease.metadata.resource_version {
                return None;
            }
            self.version += 1;
            lease.metadata.resource_version = Some(self.version.to_string());
            self.lease = Some(lease.clone());
            Some(lease)
        }
    }

    fn take(election: &mut Election, store: &mut Store, now: Instant) -> bool {
        match election.decide(now, Timestamp::UNIX_EPOCH, store.lease.clone()) {
            Decision::Create(lease) | Decision::Replace(lease) => match store.put(*lease) {
                Some(lease) => {
                    election.won(now, lease);
                    true
                }
                None => false,
            },
            Decision::Wait(_) => false,
        }
    }

    #[test]
    fn the_first_takes_it_and_the_second_waits_for_the_whole_duration_after_it_looked() {
        let (mut store, start) = (Store::default(), Instant::now());
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        assert!(take(&mut a, &mut store, start));
        assert_eq!(a.epoch(start), Some(1));
        let looked = start + Duration::from_secs(9);
        assert!(!take(&mut b, &mut store, looked));
        assert!(!take(
            &mut b,
            &mut store,
            looked + DURATION - Duration::from_millis(1)
        ));
        assert!(take(&mut b, &mut store, looked + DURATION));
        assert_eq!(b.epoch(looked + DURATION), Some(2));
        assert_eq!(a.epoch(looked + DURATION), None);
    }

    #[test]
    fn a_renewal_starts_the_wait_of_the_others_anew() {
        let (mut store, start) = (Store::default(), Instant::now());
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        assert!(take(&mut a, &mut store, start));
        assert!(!take(&mut b, &mut store, start));
        let renewed = start + Duration::from_secs(14);
        let lease = store
            .put(a.renewal(Timestamp::UNIX_EPOCH).unwrap())
            .unwrap();
        a.won(renewed, lease);
        assert!(!take(&mut b, &mut store, start + DURATION));
        assert_eq!(a.epoch(renewed), Some(1), "a renewal is no new epoch");
    }

    #[test]
    fn a_released_lease_is_taken_at_once() {
        let (mut store, start) = (Store::default(), Instant::now());
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        assert!(take(&mut a, &mut store, start));
        store
            .put(a.release(Timestamp::UNIX_EPOCH).unwrap())
            .unwrap();
        a.lost();
        assert!(take(&mut b, &mut store, start));
        assert_eq!((a.epoch(start), b.epoch(start)), (None, Some(2)));
    }

    #[test]
    fn two_that_see_the_same_expired_lease_cannot_both_have_it() {
        let (mut store, start) = (Store::default(), Instant::now());
        let (mut a, mut b, mut c) = (candidate("a"), candidate("b"), candidate("c"));
        assert!(take(&mut a, &mut store, start));
        assert!(!take(&mut b, &mut store, start) && !take(&mut c, &mut store, start));
        let later = start + DURATION;
        let found = store.lease.clone();
        let Decision::Replace(of_b) = b.decide(later, Timestamp::UNIX_EPOCH, found.clone()) else {
            panic!("b takes it");
        };
        let Decision::Replace(of_c) = c.decide(later, Timestamp::UNIX_EPOCH, found) else {
            panic!("c takes it");
        };
        assert!(store.put(*of_b).is_some());
        assert!(store.put(*of_c).is_none());
    }

    #[test]
    fn a_process_that_was_stopped_beyond_its_lease_may_not_write_when_it_wakes() {
        let (mut store, start) = (Store::default(), Instant::now());
        let mut a = candidate("a");
        take(&mut a, &mut store, start);
        assert_eq!(a.epoch(start + Duration::from_millis(9_999)), Some(1));
        assert_eq!(a.epoch(start + Duration::from_secs(10)), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Later(u64),
        Look(usize),
        /// The renewal reaches the server this long after it was sent, or never.
        Renew(usize, u64, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..9_000_u64).prop_map(Step::Later),
            (0..3_usize).prop_map(Step::Look),
            (0..3_usize, 0..12_000_u64, any::<bool>())
                .prop_map(|(who, d, lost)| Step::Renew(who, d, lost)),
        ]
    }

    proptest! {
        #[test]
        fn at_no_time_may_two_write(steps in proptest::collection::vec(step(), 1..120)) {
            let mut store = Store::default();
            let mut now = Instant::now();
            let mut all = [candidate("a"), candidate("b"), candidate("c")];
            for step in steps {
                match step {
                    Step::Later(ms) => now += Duration::from_millis(ms),
                    Step::Look(who) => {
                        if all[who].epoch(now).is_none() { take(&mut all[who], &mut store, now); }
                    }
                    Step::Renew(who, delay_ms, answer_lost) => {
                        if all[who].epoch(now).is_some()
                            && let Some(lease) = all[who].renewal(Timestamp::UNIX_EPOCH)
                        {
                            let sent = now;
                            now += Duration::from_millis(delay_ms);
                            match store.put(lease) {
                                Some(lease) if !answer_lost => all[who].won(sent, lease),
                                Some(_) => {}
                                None => all[who].lost(),
                            }
                        }
                    }
                }
                let writers = all.iter().filter(|one| one.epoch(now).is_some()).count();
                prop_assert!(writers <= 1);
            }
        }
    }
}
