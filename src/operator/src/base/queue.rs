//! The work queue of one controller.
//!
//! An object is worked on by one worker at a time, waits at most once, and comes back when it
//! changed meanwhile. The size is bounded by the number of objects. [`State`] is the rules
//! without a clock; [`Queue`] adds waiting.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Key;

/// What is ready, delayed and under way.
#[derive(Debug, Default)]
pub struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    delayed: BTreeSet<(Instant, Key)>,
    due: HashMap<Key, Instant>,
    /// The value says whether the object changed while it was worked on.
    running: HashMap<Key, bool>,
}

impl State {
    /// The object is to be worked on now.
    pub fn add(&mut self, key: Key) {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&(at, key.clone()));
        }
        if let Some(again) = self.running.get_mut(&key) {
            *again = true;
        } else if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// The object is to be worked on at `at`, or earlier when something else says so.
    pub fn add_at(&mut self, key: Key, at: Instant) {
        if self.queued.contains(&key) {
            return;
        }
        match self.due.get(&key) {
            Some(due) if *due <= at => return,
            Some(due) => {
                self.delayed.remove(&(*due, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    /// The next object to work on; it counts as under way until [`State::done`].
    pub fn pop(&mut self, now: Instant) -> Option<Key> {
        while let Some((at, key)) = self.delayed.first().cloned() {
            if at > now {
                break;
            }
            self.add(key);
        }
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone(), false);
        Some(key)
    }

    /// The work on the object ended; it is queued again when it changed meanwhile.
    pub fn done(&mut self, key: &Key) {
        if self.running.remove(key) == Some(true) {
            self.add(key.clone());
        }
    }

    /// When the next delayed object is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// How many objects are ready, delayed, and under way.
    #[must_use]
    pub fn depths(&self) -> (usize, usize, usize) {
        (self.ready.len(), self.delayed.len(), self.running.len())
    }
}

/// A queue that can be waited on.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    /// The object is to be worked on now.
    pub fn add(&self, key: Key) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// The object is to be worked on at `at`, or earlier when something else says so.
    pub fn add_at(&self, key: Key, at: Instant) {
        self.lock().add_at(key, at);
        self.changed.notify_one();
    }

    /// Waits for the next object. One caller at a time.
    pub async fn next(&self) -> Key {
        loop {
            let due = {
                let mut state = self.lock();
                if let Some(key) = state.pop(Instant::now()) {
                    return key;
                }
                state.next_due()
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// The work on the object ended.
    pub fn done(&self, key: &Key) {
        self.lock().done(key);
        self.changed.notify_one();
    }

    /// How many objects are ready, delayed, and under way.
    #[must_use]
    pub fn depths(&self) -> (usize, usize, usize) {
        self.lock().depths()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn key(name: u8) -> Key {
        Key::namespaced("ns", format!("object-{name}"))
    }

    #[test]
    fn an_object_added_twice_is_worked_on_once() {
        let now = Instant::now();
        let mut state = State::default();
        state.add(key(1));
        state.add(key(1));
        assert_eq!(state.pop(now), Some(key(1)));
        assert_eq!(state.pop(now), None);
    }

    #[test]
    fn an_object_that_changed_during_its_work_comes_back_and_never_runs_twice_at_once() {
        let now = Instant::now();
        let mut state = State::default();
        state.add(key(1));
        state.pop(now);
        state.add(key(1));
        assert_eq!(state.pop(now), None);
        state.done(&key(1));
        assert_eq!(state.pop(now), Some(key(1)));
        state.done(&key(1));
        assert_eq!(state.pop(now), None);
    }

    #[test]
    fn the_earlier_of_two_delays_counts_and_a_change_beats_both() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(9));
        let mut state = State::default();
        state.add_at(key(1), late);
        state.add_at(key(1), soon);
        state.add_at(key(1), late);
        assert_eq!(state.pop(now), None);
        assert_eq!(state.pop(soon), Some(key(1)));
        state.done(&key(1));
        assert_eq!(state.pop(late), None);
        state.add_at(key(1), late);
        state.add(key(1));
        assert_eq!(state.pop(now), Some(key(1)));
        state.done(&key(1));
        assert_eq!(state.pop(late), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8),
        AddAt(u8, u64),
        Pop,
        Done(u8),
        Later(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..4_u8).prop_map(Step::Add),
            (0..4_u8, 0..50_u64).prop_map(|(k, d)| Step::AddAt(k, d)),
            Just(Step::Pop),
            (0..4_u8).prop_map(Step::Done),
            (0..30_u64).prop_map(Step::Later),
        ]
    }

    proptest! {
        #[test]
        fn no_wish_is_lost_and_nothing_runs_twice_at_once(steps in proptest::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut state = State::default();
            let mut running = HashSet::new();
            let mut wanted = HashSet::new();
            for step in steps {
                match step {
                    Step::Add(k) => { state.add(key(k)); wanted.insert(key(k)); }
                    Step::AddAt(k, d) => {
                        state.add_at(key(k), now + Duration::from_millis(d));
                        wanted.insert(key(k));
                    }
                    Step::Later(d) => now += Duration::from_millis(d),
                    Step::Pop => if let Some(k) = state.pop(now) {
                        prop_assert!(running.insert(k.clone()));
                        wanted.remove(&k);
                    },
                    Step::Done(k) => if running.remove(&key(k)) { state.done(&key(k)); },
                }
            }
            for k in running { state.done(&k); }
            now += Duration::from_hours(1);
            while let Some(k) = state.pop(now) { wanted.remove(&k); state.done(&k); }
            prop_assert!(wanted.is_empty(), "{wanted:?}");
            prop_assert_eq!(state.depths(), (0, 0, 0));
        }
    }
}
