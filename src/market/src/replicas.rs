//! What to create, withdraw and change so that a deployment's replicas become
//! what is wanted, one careful step at a time.
//!
//! The rules:
//!
//! - A replica that runs is never moved for a better place. It gives way only
//!   to a changed wish, or where there are too many.
//! - There are never more replicas at once than are wanted (surge 0): a GPU
//!   that is needed for the new one is often the one that the old one has. A
//!   replica that is on its way out keeps its seat until it is gone.
//! - A changed wish rolls through the replicas one at a time, those that do not
//!   serve first, and stops as long as one that was changed already is not
//!   ready: a broken revision costs one replica, not all of them.
//! - A lost replica has no seat: another is placed elsewhere at once. It is
//!   withdrawn only when enough others are ready; until then it may come back.
//! - Where there are too many, the worst go first: failed, starting, ready;
//!   among those, of an old revision, then the newest.

use std::{cmp::Reverse, collections::BTreeSet};

use serde::{Deserialize, Serialize};

/// What is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// How many replicas; 0 where the deployment is suspended or being deleted.
    pub replicas: usize,
    /// The revision of the workload that each must run.
    pub revision: String,
}

/// A replica as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The Placement's name.
    pub name: String,
    /// How it does.
    pub state: State,
    /// Whether it is being withdrawn already.
    pub leaving: bool,
    /// The revision that its Placement asks for.
    pub revision: String,
    /// Whether its terms are still what is wished, see
    /// [`Wish::agrees_with`](crate::placement::Wish::agrees_with).
    pub terms_agree: bool,
    /// When its Placement was created, in milliseconds.
    pub created_ms: i64,
}

/// How a replica does, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum State {
    /// Its last attempt failed; another follows.
    Failed,
    /// It is on its way.
    Starting,
    /// It answers.
    Ready,
    /// Its node is not seen.
    Lost,
    /// It has ended or was withdrawn, and will not run again.
    Over,
}

/// What to do next. After it was done, and after anything changed, a new plan
/// is made from what is then there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// How many replicas to place.
    pub create: usize,
    /// Placements to delete, by name.
    pub withdraw: Vec<Withdrawal>,
    /// The one replica to change now.
    pub roll: Option<Roll>,
    /// The replica whose readiness the next change waits for, by name.
    pub waits_for: Option<String>,
}

/// A Placement to delete.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The Placement's name.
    pub name: String,
    /// Why.
    pub cause: Cause,
}

/// Why a Placement is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Cause {
    /// It will not run again.
    Over,
    /// Fewer replicas are wanted.
    TooMany,
    /// Its node is not seen, and enough others are ready.
    LostAndReplaced,
}

/// How a replica is brought to what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Roll {
    /// The terms stay: give the Placement the wanted workload.
    Update {
        /// The Placement's name.
        name: String,
    },
    /// The terms no longer agree: delete the Placement, so that a later plan
    /// places another. Before that, make sure that one would find a place with
    /// this one's room given back
    /// ([`Node::give_back`](crate::placement::Node::give_back)); a wish that
    /// fits nowhere must not end what still serves.
    Replace {
        /// The Placement's name.
        name: String,
    },
}

impl Replica {
    /// Whether it takes up one of the wanted number: it runs or will run.
    fn is_seated(&self) -> bool {
        matches!(self.state, State::Failed | State::Starting | State::Ready)
    }

    fn is_current(&self, wanted: &Wanted) -> bool {
        self.terms_agree && self.revision == wanted.revision
    }
}

/// What to do next for `replicas` to become what is `wanted`. Their order does
/// not matter.
#[must_use]
pub fn plan(wanted: &Wanted, replicas: &[Replica]) -> Plan {
    let staying = || replicas.iter().filter(|replica| !replica.leaving);
    let mut seated: Vec<&Replica> = staying().filter(|replica| replica.is_seated()).collect();
    seated.sort_by_key(|replica| {
        (
            replica.state,
            replica.is_current(wanted),
            Reverse(replica.created_ms),
            &replica.name,
        )
    });
    let leaving = replicas
        .iter()
        .filter(|replica| replica.leaving && replica.is_seated())
        .count();

    let surplus = seated.len().saturating_sub(wanted.replicas);
    let (too_many, kept) = seated.split_at(surplus);
    let ready = kept
        .iter()
        .filter(|replica| replica.state == State::Ready)
        .count();
    let lost_too = ready >= wanted.replicas;

    let mut withdraw: Vec<Withdrawal> = staying()
        .filter_map(|replica| match replica.state {
            State::Over => Some((replica, Cause::Over)),
            State::Lost if lost_too => Some((replica, Cause::LostAndReplaced)),
            _ => None,
        })
        .chain(too_many.iter().map(|replica| (*replica, Cause::TooMany)))
        .map(|(replica, cause)| Withdrawal {
            name: replica.name.clone(),
            cause,
        })
        .collect();
    withdraw.sort();

    let (roll, waits_for) = if surplus == 0 && leaving == 0 {
        next_roll(wanted, kept)
    } else {
        (None, None)
    };
    Plan {
        create: wanted.replicas.saturating_sub(kept.len() + leaving),
        withdraw,
        roll,
        waits_for,
    }
}

/// The next replica to change, or the one that the change waits for.
fn next_roll(wanted: &Wanted, kept: &[&Replica]) -> (Option<Roll>, Option<String>) {
    let (current, stale): (Vec<&Replica>, Vec<&Replica>) =
        kept.iter().partition(|replica| replica.is_current(wanted));
    let Some(next) = stale
        .into_iter()
        .min_by_key(|replica| (replica.state, replica.created_ms, &replica.name))
    else {
        return (None, None);
    };
    let unready = current
        .into_iter()
        .filter(|replica| replica.state != State::Ready)
        .min_by_key(|replica| (replica.created_ms, &replica.name));
    if let Some(unready) = unready {
        return (None, Some(unready.name.clone()));
    }
    let name = next.name.clone();
    (
        Some(if next.terms_agree {
            Roll::Update { name }
        } else {
            Roll::Replace { name }
        }),
        None,
    )
}

/// The `count` smallest numbers that no replica has, for the names of new ones.
#[must_use]
pub fn free_ordinals(taken: &BTreeSet<u32>, count: usize) -> Vec<u32> {
    (0..=u32::MAX)
        .filter(|ordinal| !taken.contains(ordinal))
        .take(count)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name:state[:revision][:flags]`, the newer the later in the list.
    fn replicas(described: &[&str]) -> Vec<Replica> {
        let one = |(index, text): (usize, &&str)| {
            let mut parts = text.split(':');
            let name = parts.next().unwrap_or_default().to_owned();
            let state = match parts.next() {
                Some("failed") => State::Failed,
                Some("starting") => State::Starting,
                Some("ready") => State::Ready,
                Some("lost") => State::Lost,
                Some("over") => State::Over,
                other => panic!("{other:?} is not a state"),
            };
            let rest: Vec<&str> = parts.collect();
            Replica {
                name,
                state,
                leaving: rest.contains(&"leaving"),
                revision: rest
                    .iter()
                    .find(|part| part.starts_with('v'))
                    .unwrap_or(&"v1")
                    .to_string(),
                terms_agree: !rest.contains(&"disagrees"),
                created_ms: i64::try_from(index).unwrap(),
            }
        };
        described.iter().enumerate().map(one).collect()
    }

    fn wanted(replicas: usize, revision: &str) -> Wanted {
        Wanted {
            replicas,
            revision: revision.to_owned(),
        }
    }

    /// The plan in a line.
    fn planned(wanted: &Wanted, described: &[&str]) -> String {
        let Plan {
            create,
            withdraw,
            roll,
            waits_for,
        } = plan(wanted, &replicas(described));
        let mut words = Vec::new();
        words.extend((create > 0).then(|| format!("create {create}")));
        words.extend(
            withdraw
                .iter()
                .map(|it| format!("withdraw {} {:?}", it.name, it.cause)),
        );
        words.extend(roll.map(|roll| match roll {
            Roll::Update { name } => format!("update {name}"),
            Roll::Replace { name } => format!("replace {name}"),
        }));
        words.extend(waits_for.map(|name| format!("wait for {name}")));
        words.join(", ")
    }

    #[test]
    fn what_is_as_wanted_is_left_alone() {
        assert_eq!(planned(&wanted(2, "v1"), &["a:ready", "b:ready"]), "");
        assert_eq!(planned(&wanted(2, "v1"), &["a:ready", "b:starting"]), "");
        assert_eq!(planned(&wanted(0, "v1"), &[]), "");
    }

    #[test]
    fn all_missing_replicas_are_created_at_once() {
        assert_eq!(planned(&wanted(3, "v1"), &[]), "create 3");
        assert_eq!(planned(&wanted(3, "v1"), &["a:failed"]), "create 2");
    }

    #[test]
    fn a_change_rolls_through_the_replicas_one_at_a_time() {
        let to = wanted(3, "v2");
        assert_eq!(planned(&to, &["a:ready", "b:ready", "c:ready"]), "update a");
        assert_eq!(
            planned(&to, &["a:starting:v2", "b:ready", "c:ready"]),
            "wait for a"
        );
        assert_eq!(
            planned(&to, &["a:failed:v2", "b:ready", "c:ready"]),
            "wait for a"
        );
        assert_eq!(
            planned(&to, &["a:ready:v2", "b:ready", "c:ready"]),
            "update b"
        );
        assert_eq!(
            planned(&to, &["a:ready:v2", "b:ready:v2", "c:ready:v2"]),
            ""
        );
    }

    #[test]
    fn what_does_not_serve_is_changed_first_so_that_a_broken_revision_is_mended_first() {
        assert_eq!(
            planned(&wanted(3, "v3"), &["a:ready", "b:starting", "c:failed:v2"]),
            "update c"
        );
    }

    #[test]
    fn terms_that_no_longer_agree_are_replaced_with_no_replica_more_than_wanted() {
        let to = wanted(2, "v1");
        assert_eq!(planned(&to, &["a:ready:disagrees", "b:ready"]), "replace a");
        assert_eq!(planned(&to, &["a:ready:disagrees:leaving", "b:ready"]), "");
        assert_eq!(planned(&to, &["b:ready"]), "create 1");
    }

    #[test]
    fn a_replica_that_cannot_be_placed_does_not_stop_the_roll() {
        assert_eq!(
            planned(&wanted(3, "v2"), &["a:ready"]),
            "create 2, update a"
        );
    }

    #[test]
    fn a_lost_replica_is_replaced_and_withdrawn_only_when_enough_others_are_ready() {
        let to = wanted(2, "v1");
        assert_eq!(planned(&to, &["a:lost", "b:ready"]), "create 1");
        assert_eq!(planned(&to, &["a:lost", "b:ready", "c:starting"]), "");
        assert_eq!(
            planned(&to, &["a:lost", "b:ready", "c:ready"]),
            "withdraw a LostAndReplaced"
        );
        assert_eq!(planned(&to, &["a:lost:leaving", "b:ready", "c:ready"]), "");
        assert_eq!(planned(&to, &["a:lost:leaving", "b:ready"]), "create 1");
    }

    #[test]
    fn a_lost_replica_that_comes_back_in_time_stays_and_its_substitute_goes() {
        assert_eq!(
            planned(&wanted(2, "v1"), &["a:ready", "b:ready", "c:starting"]),
            "withdraw c TooMany"
        );
    }

    #[test]
    fn the_worst_go_first_when_there_are_too_many() {
        let described = [
            "a:ready:v2",
            "b:ready:v2",
            "c:ready:v1",
            "d:starting:v2",
            "e:failed:v2",
        ];
        assert_eq!(planned(&wanted(4, "v2"), &described), "withdraw e TooMany");
        assert_eq!(
            planned(&wanted(1, "v2"), &described),
            "withdraw b TooMany, withdraw c TooMany, withdraw d TooMany, withdraw e TooMany"
        );
    }

    #[test]
    fn none_wanted_withdraws_everything_that_is_not_leaving_already() {
        assert_eq!(
            planned(
                &wanted(0, "v1"),
                &["a:ready", "b:lost", "c:over", "d:starting:leaving"]
            ),
            "withdraw a TooMany, withdraw b LostAndReplaced, withdraw c Over"
        );
    }

    #[test]
    fn what_is_over_is_withdrawn_and_replaced() {
        assert_eq!(
            planned(&wanted(1, "v1"), &["a:over"]),
            "create 1, withdraw a Over"
        );
        assert_eq!(planned(&wanted(1, "v1"), &["a:over:leaving"]), "create 1");
    }

    #[test]
    fn names_are_given_the_smallest_numbers_that_are_free() {
        assert_eq!(free_ordinals(&BTreeSet::from([0, 2, 3]), 3), [1, 4, 5]);
        assert_eq!(free_ordinals(&BTreeSet::new(), 0), Vec::<u32>::new());
    }
}
