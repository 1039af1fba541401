//! What is published of the uses of GPUs: what was seen, without its flicker.
//!
//! An owner who plays a game, or a job that starts and stops a program, is one stretch and not
//! fifty. So the owner's use begins at once, since the machine is to yield, and ends when it
//! was not seen for a while. An intruder is an alarm: it must be seen for a while, because a
//! pod that was admitted a moment ago is in the driver's list before it is in the kubelet's,
//! and it ends after a while as well. What cannot be told is published when that lasts.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Use, Uses};

/// How long things must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How long an owner or an intruder must not be seen to be gone.
    pub quiet: Duration,
    /// How long an intruder must be seen, or nothing be known, to be published.
    pub sure: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            quiet: Duration::from_mins(1),
            sure: Duration::from_secs(10),
        }
    }
}

/// Follows the uses of GPUs and partitions.
#[derive(Debug, Default)]
pub struct Tracker {
    patience: Patience,
    known: BTreeMap<String, Known>,
}

/// What is known of one GPU. Times count from when the plugin started.
#[derive(Debug)]
struct Known {
    published: Use,
    /// When what is published was seen last.
    seen: Duration,
    /// What is seen and not yet published, and since when.
    doubted: Option<(&'static str, Duration)>,
}

impl Tracker {
    /// Follows with this patience.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self {
            patience,
            known: BTreeMap::new(),
        }
    }

    /// Takes in what was seen at this time since the start, and gives what is published. A GPU
    /// that is not among the seen is forgotten.
    pub fn update(&mut self, seen: Uses, now: Duration) -> Uses {
        self.known.retain(|uuid, _| seen.contains_key(uuid));
        for (uuid, seen) in seen {
            let known = self.known.entry(uuid).or_insert_with(|| Known {
                published: Use::Unknown,
                seen: now,
                doubted: None,
            });
            known.update(seen, now, self.patience);
        }
        let published = self.known.iter();
        published
            .map(|(uuid, known)| (uuid.clone(), known.published.clone()))
            .collect()
    }
}

impl Known {
    fn update(&mut self, seen: Use, now: Duration, patience: Patience) {
        let word = seen.word();
        if word == self.published.word() {
            self.doubted = None;
            self.seen = now;
            self.published = seen;
            return;
        }
        let since = match self.doubted {
            Some((doubted, since)) if doubted == word => since,
            _ => now,
        };
        self.doubted = Some((word, since));
        let is_sure = now.saturating_sub(since) >= patience.sure;
        let is_quiet = now.saturating_sub(self.seen) >= patience.quiet;
        let is_published = match (&self.published, &seen) {
            (_, Use::Intruder { .. }) => is_sure,
            (Use::Intruder { .. }, _) => is_quiet,
            (_, Use::OwnerBusy { .. }) => true,
            // An owner's use that cannot be told any more did not end.
            (Use::OwnerBusy { .. }, Use::Unknown) => is_quiet && is_sure,
            (Use::OwnerBusy { .. }, _) => is_quiet,
            (_, Use::Unknown) => is_sure,
            (_, Use::Idle | Use::Ours) => true,
        };
        if is_published {
            self.published = seen;
            self.seen = now;
            self.doubted = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processes::PodName;
    use proptest::prelude::*;

    const PATIENCE: Patience = Patience {
        quiet: Duration::from_mins(1),
        sure: Duration::from_secs(10),
    };

    fn owner() -> Use {
        Use::OwnerBusy { pids: [7].into() }
    }

    fn intruder() -> Use {
        let pod = PodName {
            namespace: "a".to_owned(),
            name: "b".to_owned(),
        };
        Use::Intruder {
            pods: [pod].into(),
            pids: [7].into(),
        }
    }

    /// The words that are published when this is seen at these seconds.
    fn published(seen: &[(u64, Use)]) -> Vec<&'static str> {
        let mut tracker = Tracker::new(PATIENCE);
        seen.iter()
            .map(|(second, seen)| {
                let seen = [("GPU-1".to_owned(), seen.clone())].into();
                tracker.update(seen, Duration::from_secs(*second))["GPU-1"].word()
            })
            .collect()
    }

    #[test]
    fn a_use_is_published_as_soon_as_it_is_sure() {
        for (seen, expected) in [
            (
                vec![(0, Use::Idle), (1, Use::Ours), (2, Use::Idle)],
                vec!["Idle", "InUse", "Idle"],
            ),
            // The owner comes at once and goes after a quiet time.
            (
                vec![
                    (0, Use::Idle),
                    (1, owner()),
                    (2, Use::Idle),
                    (40, owner()),
                    (41, Use::Ours),
                    (99, Use::Ours),
                    (100, Use::Ours),
                ],
                vec![
                    "Idle",
                    "OwnerBusy",
                    "OwnerBusy",
                    "OwnerBusy",
                    "OwnerBusy",
                    "OwnerBusy",
                    "InUse",
                ],
            ),
            // A pod that is new is no intruder; one that stays is.
            (
                vec![
                    (0, Use::Ours),
                    (1, intruder()),
                    (5, Use::Ours),
                    (6, intruder()),
                    (15, intruder()),
                    (16, intruder()),
                ],
                vec!["InUse", "InUse", "InUse", "InUse", "InUse", "Intruder"],
            ),
            // An alarm ends after a quiet time, and not for an owner.
            (
                vec![
                    (0, intruder()),
                    (10, intruder()),
                    (11, owner()),
                    (69, owner()),
                    (70, owner()),
                ],
                vec!["Unknown", "Intruder", "Intruder", "Intruder", "OwnerBusy"],
            ),
            // What is not known for a moment is what it was.
            (
                vec![
                    (0, Use::Ours),
                    (1, Use::Unknown),
                    (10, Use::Unknown),
                    (11, Use::Unknown),
                    (12, Use::Ours),
                ],
                vec!["InUse", "InUse", "InUse", "Unknown", "InUse"],
            ),
            (
                vec![
                    (0, owner()),
                    (1, Use::Unknown),
                    (59, Use::Unknown),
                    (60, Use::Unknown),
                ],
                vec!["OwnerBusy", "OwnerBusy", "OwnerBusy", "Unknown"],
            ),
        ] {
            assert_eq!(published(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn a_gpu_that_is_gone_is_forgotten_and_each_has_its_own_use() {
        let mut tracker = Tracker::new(PATIENCE);
        let both =
            |one: Use, other: Use| Uses::from([("1".to_owned(), one), ("2".to_owned(), other)]);
        let published = tracker.update(both(owner(), Use::Idle), Duration::ZERO);
        assert_eq!(published, both(owner(), Use::Idle));
        let one = Uses::from([("2".to_owned(), Use::Ours)]);
        assert_eq!(tracker.update(one.clone(), Duration::from_secs(1)), one);
        let back = tracker.update(both(Use::Idle, Use::Ours), Duration::from_secs(2));
        assert_eq!(back, both(Use::Idle, Use::Ours));
    }

    fn uses() -> impl Strategy<Value = Use> {
        prop_oneof![
            Just(Use::Idle),
            Just(Use::Ours),
            Just(owner()),
            Just(intruder()),
            Just(Use::Unknown),
        ]
    }

    proptest! {
        #[test]
        fn what_lasts_is_published_and_an_owner_at_once(
            before in prop::collection::vec(uses(), 0..30),
            lasting in uses(),
        ) {
            let mut seen: Vec<(u64, Use)> = (0..).zip(before).collect();
            let from = seen.len() as u64;
            seen.extend((from..from + 75).map(|second| (second, lasting.clone())));
            let words = published(&seen);
            prop_assert_eq!(words.last(), Some(&lasting.word()));
            for (word, (_, seen)) in words.iter().zip(&seen) {
                if seen.word() == "OwnerBusy" {
                    prop_assert!(["OwnerBusy", "Intruder"].contains(word));
                }
            }
        }
    }
}
