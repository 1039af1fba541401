//! Which of the free units a container gets: a pure rule that never fails.
//!
//! Cards and partitions are chosen for how near they are to one another: by the number of
//! NVLink connections among them, then by board and PCI Express switch, then by NUMA node. Of
//! equally near ones those are taken that leave the nearest to whoever comes next. Shares are
//! chosen for their cards: no card twice in one container while there is another, and then as
//! the configuration says.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::Allocation;
use crate::inventory::{Link, LinkKind};
use crate::unit::{Part, Unit};

/// Sets up to which all are compared. Half of 16 cards are 12,870 sets.
const ALL_SETS: u64 = 20_000;
/// Steps of the search where there are more sets than that: it takes a millisecond or a few.
const SEARCH_STEPS: usize = 4_000_000;
/// Most exchanges by which what was found is bettered.
const EXCHANGES: usize = 64;

/// How near the parts of one card are, in the points of a way over PCI Express.
const SAME_CARD: i64 = 4;
/// Bits of a nearness that count NUMA nodes, and those that count switches: each holds the sum
/// over all pairs of 1,024 units.
const NUMA_BITS: u32 = 20;
const PCIE_BITS: u32 = 22;
/// Most NVLink connections of a pair that count: the sum over all pairs of 128 cards fits.
const NVLINK_MOST: u32 = 255;

/// How near the units of a resource are to one another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closeness {
    /// Number of each unit's card, in the order of the units.
    cards: Vec<usize>,
    /// How near each card is to each other, a row a card.
    near: Vec<Vec<i64>>,
}

impl Closeness {
    /// The nearness of these units, by the links of their cards.
    #[must_use]
    pub fn new(units: &[Unit], links: &BTreeMap<String, Vec<Link>>) -> Self {
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut numa = Vec::new();
        let mut cards = Vec::with_capacity(units.len());
        for unit in units {
            let next = numbers.len();
            let number = *numbers.entry(&unit.gpu).or_insert(next);
            if number == next {
                numa.push(unit.numa_node);
            }
            cards.push(number);
        }
        let mut near = vec![vec![0; numa.len()]; numa.len()];
        for (gpu, one) in &numbers {
            for link in links.get(*gpu).into_iter().flatten() {
                if let Some(other) = numbers
                    .get(link.peer.as_str())
                    .filter(|other| *other != one)
                {
                    let way = way(link.kind);
                    // Either card may be the one that says it.
                    near[*one][*other] = way.max(near[*one][*other]);
                    near[*other][*one] = near[*one][*other];
                }
            }
        }
        for (one, row) in near.iter_mut().enumerate() {
            for (other, near) in row.iter_mut().enumerate() {
                if one == other {
                    *near = SAME_CARD << NUMA_BITS;
                }
                if numa[one].is_some() && numa[one] == numa[other] {
                    *near += 1;
                }
            }
        }
        Self { cards, near }
    }

    fn between(&self, one: usize, other: usize) -> i64 {
        self.near[self.cards[one]][self.cards[other]]
    }
}

fn way(kind: LinkKind) -> i64 {
    match kind {
        LinkKind::PcieSwitches => 1 << NUMA_BITS,
        LinkKind::PcieSwitch => 2 << NUMA_BITS,
        LinkKind::Board => 3 << NUMA_BITS,
        LinkKind::NvLink(links) => i64::from(links.min(NVLINK_MOST)) << (NUMA_BITS + PCIE_BITS),
    }
}

/// What can be chosen from.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The units of the resource.
    pub units: &'a [Unit],
    /// The place of each unit in them, by its id.
    pub places: &'a BTreeMap<String, usize>,
    /// How near they are to one another.
    pub closeness: &'a Closeness,
    /// How shares are given.
    pub allocation: Allocation,
}

impl Choice<'_> {
    /// Chooses `size` units out of `available`, the required ones among them.
    ///
    /// The same question has the same answer, whatever its order. The answer holds every
    /// required id, even where that is more than `size` or where one is not available, and no
    /// id twice. It holds fewer than `size` only where there are not so many. Ids that the
    /// plugin does not know are taken last.
    #[must_use]
    pub fn choose(&self, available: &[String], required: &[String], size: usize) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut chosen: Vec<String> = required
            .iter()
            .filter(|id| seen.insert(id.as_str()))
            .cloned()
            .collect();
        let missing = size.saturating_sub(chosen.len());
        let place = |id: &str| self.places.get(id).copied();
        let mut fixed: Vec<usize> = chosen.iter().filter_map(|id| place(id)).collect();
        fixed.sort_unstable();
        let (known, mut unknown): (Vec<&str>, Vec<&str>) = available
            .iter()
            .map(String::as_str)
            .filter(|id| seen.insert(id))
            .partition(|id| place(id).is_some());
        let mut free: Vec<usize> = known.into_iter().filter_map(place).collect();
        free.sort_unstable();
        unknown.sort_unstable();
        let mut taken = self.take(&fixed, &free, missing.min(free.len()));
        taken.sort_unstable();
        chosen.extend(taken.into_iter().map(|place| self.units[place].id.clone()));
        let missing = size.saturating_sub(chosen.len());
        chosen.extend(unknown.into_iter().take(missing).map(str::to_owned));
        chosen
    }

    fn take(&self, fixed: &[usize], free: &[usize], count: usize) -> Vec<usize> {
        let is_share = |place: &usize| matches!(self.units[*place].part, Part::Share { .. });
        if count == 0 || count == free.len() {
            free[..count].to_vec()
        } else if free.iter().all(is_share) {
            self.shares(fixed, free, count)
        } else {
            Search::new(self.closeness, fixed, free, count).best()
        }
    }

    /// One share after the other, each of the card that is best by now.
    fn shares(&self, fixed: &[usize], free: &[usize], count: usize) -> Vec<usize> {
        let card = |place: usize| self.closeness.cards[place];
        let mut left: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        // The lowest number is taken first.
        for place in free.iter().rev() {
            left.entry(card(*place)).or_default().push(*place);
        }
        let mut held: Vec<usize> = fixed.to_vec();
        while held.len() < fixed.len() + count {
            let best = left
                .iter()
                .filter(|(_, shares)| !shares.is_empty())
                .min_by_key(|(number, shares)| {
                    let twice = held
                        .iter()
                        .filter(|place| card(**place) == **number)
                        .count();
                    let full = i64::try_from(shares.len()).unwrap_or(i64::MAX);
                    let full = match self.allocation {
                        Allocation::Pack => full,
                        Allocation::Spread => -full,
                    };
                    let near: i64 = held
                        .iter()
                        .map(|place| self.closeness.near[card(*place)][**number])
                        .sum();
                    (twice, full, Reverse(near), **number)
                });
            let Some(number) = best.map(|(number, _)| *number) else {
                break;
            };
            held.extend(left.get_mut(&number).and_then(Vec::pop));
        }
        held.split_off(fixed.len())
    }
}

/// The search for the set of units that are nearest to one another.
struct Search<'a> {
    closeness: &'a Closeness,
    free: &'a [usize],
    count: usize,
    /// How near each free unit is to the fixed ones.
    to_fixed: Vec<i64>,
    /// How near each free unit is to all the others.
    to_free: Vec<i64>,
}

/// What a set is worth; the greater one is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    /// How near what the container has is to one another.
    inside: i64,
    /// How little is torn apart between what is taken and what is left, below zero.
    torn: i64,
}

impl<'a> Search<'a> {
    fn new(closeness: &'a Closeness, fixed: &[usize], free: &'a [usize], count: usize) -> Self {
        let nearness = |one: usize, to: &[usize]| -> i64 {
            let others = to.iter().filter(|other| **other != one);
            others.map(|other| closeness.between(one, *other)).sum()
        };
        Self {
            closeness,
            free,
            count,
            to_fixed: free.iter().map(|one| nearness(*one, fixed)).collect(),
            to_free: free.iter().map(|one| nearness(*one, free)).collect(),
        }
    }

    fn between(&self, one: usize, other: usize) -> i64 {
        self.closeness.between(self.free[one], self.free[other])
    }

    fn best(&self) -> Vec<usize> {
        let best = if sets(self.free.len(), self.count) <= ALL_SETS {
            self.best_of_all()
        } else {
            self.best_found()
        };
        best.into_iter().map(|one| self.free[one]).collect()
    }

    /// What the set is worth, from sums over it: of the nearness to the fixed ones, of the
    /// nearness to all free ones, and of that among its own.
    fn worth(to_fixed: i64, to_free: i64, own: i64) -> Worth {
        Worth {
            inside: to_fixed + own,
            torn: 2 * own - to_free,
        }
    }

    /// Compares every set. Of equals the first in the order of the driver's numbers is taken.
    fn best_of_all(&self) -> Vec<usize> {
        let mut best: Option<(Worth, Vec<usize>)> = None;
        let mut set = Vec::with_capacity(self.count);
        self.compare(&mut set, 0, (0, 0, 0), &mut best);
        best.map(|(_, set)| set).unwrap_or_default()
    }

    fn compare(
        &self,
        set: &mut Vec<usize>,
        from: usize,
        (to_fixed, to_free, own): (i64, i64, i64),
        best: &mut Option<(Worth, Vec<usize>)>,
    ) {
        if set.len() == self.count {
            let worth = Self::worth(to_fixed, to_free, own);
            if best.as_ref().is_none_or(|(most, _)| worth > *most) {
                *best = Some((worth, set.clone()));
            }
            return;
        }
        let last = self.free.len() - (self.count - set.len());
        for one in from..=last {
            let nearer: i64 = set.iter().map(|other| self.between(one, *other)).sum();
            let sums = (
                to_fixed + self.to_fixed[one],
                to_free + self.to_free[one],
                own + nearer,
            );
            set.push(one);
            self.compare(set, one + 1, sums, best);
            set.pop();
        }
    }

    /// Grows a set from many single units and betters the best one by exchanges. That finds
    /// the islands of real machines, in a bounded number of steps.
    fn best_found(&self) -> Vec<usize> {
        let free = self.free.len();
        let seeds = (SEARCH_STEPS / (2 * free * self.count)).clamp(1, free);
        let grown = (0..seeds).map(|seed| self.grown_from(seed * free / seeds));
        let best = grown.reduce(|best, set| {
            if set.worth() > best.worth() {
                set
            } else {
                best
            }
        });
        best.map(Grown::bettered).unwrap_or_default()
    }

    fn grown_from(&self, seed: usize) -> Grown<'_> {
        let mut set = Grown {
            search: self,
            is_in: vec![false; self.free.len()],
            to_set: vec![0; self.free.len()],
            sums: (0, 0, 0),
        };
        set.add(seed);
        for _ in 1..self.count {
            let outside = (0..self.free.len()).filter(|one| !set.is_in[*one]);
            let next = outside.max_by_key(|one| (set.worth_with(*one), Reverse(*one)));
            let Some(next) = next else { break };
            set.add(next);
        }
        set
    }
}

/// A set that grows.
struct Grown<'a> {
    search: &'a Search<'a>,
    is_in: Vec<bool>,
    /// How near each free unit is to the set.
    to_set: Vec<i64>,
    sums: (i64, i64, i64),
}

impl Grown<'_> {
    fn worth(&self) -> Worth {
        let (to_fixed, to_free, own) = self.sums;
        Search::worth(to_fixed, to_free, own)
    }

    fn with(&self, one: usize) -> (i64, i64, i64) {
        let (to_fixed, to_free, own) = self.sums;
        (
            to_fixed + self.search.to_fixed[one],
            to_free + self.search.to_free[one],
            own + self.to_set[one],
        )
    }

    fn worth_with(&self, one: usize) -> Worth {
        let (to_fixed, to_free, own) = self.with(one);
        Search::worth(to_fixed, to_free, own)
    }

    fn worth_after_exchange(&self, out: usize, one: usize) -> Worth {
        let (to_fixed, to_free, own) = self.with(one);
        Search::worth(
            to_fixed - self.search.to_fixed[out],
            to_free - self.search.to_free[out],
            own - self.to_set[out] - self.search.between(out, one),
        )
    }

    fn add(&mut self, one: usize) {
        self.sums = self.with(one);
        self.is_in[one] = true;
        for other in (0..self.to_set.len()).filter(|other| *other != one) {
            self.to_set[other] += self.search.between(one, other);
        }
    }

    fn remove(&mut self, one: usize) {
        let (to_fixed, to_free, own) = self.sums;
        self.sums = (
            to_fixed - self.search.to_fixed[one],
            to_free - self.search.to_free[one],
            own - self.to_set[one],
        );
        self.is_in[one] = false;
        for other in (0..self.to_set.len()).filter(|other| *other != one) {
            self.to_set[other] -= self.search.between(one, other);
        }
    }

    fn members(&self, inside: bool) -> Vec<usize> {
        let all = 0..self.is_in.len();
        all.filter(|one| self.is_in[*one] == inside).collect()
    }

    fn bettered(mut self) -> Vec<usize> {
        for _ in 0..EXCHANGES {
            let (inside, outside) = (self.members(true), self.members(false));
            let exchanges = inside
                .iter()
                .flat_map(|out| outside.iter().map(move |one| (*out, *one)));
            let best = exchanges.max_by_key(|(out, one)| {
                let worth = self.worth_after_exchange(*out, *one);
                (worth, Reverse((*out, *one)))
            });
            match best {
                Some((out, one)) if self.worth_after_exchange(out, one) > self.worth() => {
                    self.remove(out);
                    self.add(one);
                }
                _ => break,
            }
        }
        self.members(true)
    }
}

/// How many sets of so many there are, as far as it matters.
fn sets(of: usize, count: usize) -> u64 {
    let mut sets = 1_u64;
    for step in 0..count.min(of - count) {
        // Exact: a product of so many neighbours can be divided by their number.
        sets = sets * (of - step) as u64 / (step + 1) as u64;
        if sets > ALL_SETS {
            break;
        }
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;
    use proptest::prelude::*;

    type Links = BTreeMap<String, Vec<Link>>;

    fn unit(id: &str, gpu: usize, part: Part, numa_node: Option<u32>) -> Unit {
        Unit {
            id: id.to_owned(),
            gpu: format!("GPU-{gpu}"),
            part,
            numa_node,
            memory_bytes: 1,
            health: Health::healthy(),
        }
    }

    fn cards(count: usize, a_node: usize) -> Vec<Unit> {
        (0..count)
            .map(|number| {
                let node = u32::try_from(number / a_node).ok();
                unit(&format!("g{number}"), number, Part::Whole, node)
            })
            .collect()
    }

    fn shares(cards: usize, of: u32) -> Vec<Unit> {
        (0..cards)
            .flat_map(|card| {
                (0..of).map(move |number| {
                    unit(
                        &format!("g{card}::{number}"),
                        card,
                        Part::Share { number, of },
                        None,
                    )
                })
            })
            .collect()
    }

    fn link(links: &mut Links, one: usize, other: usize, kind: LinkKind) {
        links.entry(format!("GPU-{one}")).or_default().push(Link {
            peer: format!("GPU-{other}"),
            kind,
        });
    }

    fn choose(
        units: &[Unit],
        links: &Links,
        available: &[String],
        required: &[String],
        size: usize,
    ) -> Vec<String> {
        choose_as(Allocation::Pack, units, links, available, required, size)
    }

    fn choose_as(
        allocation: Allocation,
        units: &[Unit],
        links: &Links,
        available: &[String],
        required: &[String],
        size: usize,
    ) -> Vec<String> {
        let places = units.iter().map(|unit| unit.id.clone()).zip(0..).collect();
        Choice {
            units,
            places: &places,
            closeness: &Closeness::new(units, links),
            allocation,
        }
        .choose(available, required, size)
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn all(units: &[Unit]) -> Vec<String> {
        units.iter().map(|unit| unit.id.clone()).collect()
    }

    /// Two NVLink connections in each pair of cards, and eight cards on two switches.
    fn pairs() -> (Vec<Unit>, Links) {
        let mut links = Links::new();
        for one in 0..8 {
            for other in (one + 1)..8 {
                if one / 2 == other / 2 {
                    link(&mut links, one, other, LinkKind::NvLink(2));
                } else if one / 4 == other / 4 {
                    link(&mut links, other, one, LinkKind::PcieSwitch);
                }
            }
        }
        (cards(8, 4), links)
    }

    #[test]
    fn cards_with_nvlink_go_together_then_those_of_a_switch_then_those_of_a_numa_node() {
        let (units, links) = pairs();
        for (available, required, size, expected) in [
            (&["g0", "g3", "g6", "g7"][..], &[][..], 2, &["g6", "g7"][..]),
            (&["g0", "g2", "g5", "g7"][..], &[][..], 2, &["g0", "g2"][..]),
            (
                &["g1", "g4", "g5", "g7"][..],
                &["g7"][..],
                2,
                &["g7", "g4"][..],
            ),
            (
                &["g0", "g1", "g2", "g3", "g4", "g5"][..],
                &[][..],
                4,
                &["g0", "g1", "g2", "g3"][..],
            ),
        ] {
            let chosen = choose(&units, &links, &ids(available), &ids(required), size);
            assert_eq!(chosen, ids(expected), "{available:?} {required:?}");
        }
        let no_links = Links::new();
        let chosen = choose(&cards(8, 4), &no_links, &ids(&["g0", "g4", "g7"]), &[], 2);
        assert_eq!(chosen, ["g4", "g7"]);
    }

    #[test]
    fn one_card_is_taken_where_it_tears_the_least_apart() {
        let (units, links) = pairs();
        let chosen = choose(
            &units,
            &links,
            &ids(&["g0", "g1", "g2", "g4", "g5"]),
            &[],
            1,
        );
        assert_eq!(chosen, ["g2"]);
    }

    #[test]
    fn many_cards_are_searched_and_an_island_is_found() {
        // 16 islands of eight, their cards far apart in the driver's order.
        let mut links = Links::new();
        for one in 0..128 {
            for other in (one + 1)..128 {
                if one % 16 == other % 16 {
                    link(&mut links, one, other, LinkKind::NvLink(18));
                }
            }
        }
        let units = cards(128, 64);
        let mut available = all(&units);
        // Only one island is whole.
        available.retain(|id| id[1..].parse::<usize>().unwrap() % 16 == 5 || id.len() > 2);
        let chosen = choose(&units, &links, &available, &[], 8);
        assert!(
            chosen
                .iter()
                .all(|id| id[1..].parse::<usize>().unwrap() % 16 == 5),
            "{chosen:?}"
        );
        let chosen = choose(&units, &links, &all(&units), &ids(&["g3"]), 64);
        let islands: BTreeSet<usize> = chosen
            .iter()
            .map(|id| id[1..].parse::<usize>().unwrap() % 16)
            .collect();
        assert!(islands.len() == 8 && islands.contains(&3), "{islands:?}");
    }

    #[test]
    fn shares_are_packed_or_spread_and_a_container_has_each_card_once() {
        let units = shares(3, 3);
        let free = ids(&["g0::0", "g0::1", "g0::2", "g1::1", "g2::0", "g2::2"]);
        let none = Links::new();
        for (allocation, size, expected) in [
            (Allocation::Pack, 1, &["g1::1"][..]),
            (Allocation::Spread, 1, &["g0::0"][..]),
            (Allocation::Pack, 2, &["g1::1", "g2::0"][..]),
            (Allocation::Spread, 2, &["g0::0", "g2::0"][..]),
            (
                Allocation::Pack,
                4,
                &["g0::0", "g1::1", "g2::0", "g2::2"][..],
            ),
            (
                Allocation::Spread,
                4,
                &["g0::0", "g0::1", "g1::1", "g2::0"][..],
            ),
        ] {
            let chosen = choose_as(allocation, &units, &none, &free, &[], size);
            assert_eq!(chosen, ids(expected), "{allocation:?} {size}");
        }
        // The card of a required share counts as had.
        let required = ids(&["g1::0"]);
        let chosen = choose_as(Allocation::Pack, &units, &none, &free, &required, 2);
        assert_eq!(chosen, ["g1::0", "g2::0"]);
    }

    #[test]
    fn partitions_of_one_card_go_together_and_fill_the_fullest_card_first() {
        let units: Vec<Unit> = (0..3)
            .flat_map(|card| {
                (0..7).map(move |number| {
                    let id = format!("m{card}-{number}");
                    unit(&id, card, Part::Mig(id.clone()), None)
                })
            })
            .collect();
        let mut available = all(&units);
        available.retain(|id| !["m1-0", "m1-1"].contains(&id.as_str()));
        let none = Links::new();
        assert_eq!(choose(&units, &none, &available, &[], 1), ["m1-2"]);
        assert_eq!(choose(&units, &none, &available, &[], 2), ["m1-2", "m1-3"]);
    }

    /// The points of a set, counted anew and in another way.
    fn points(links: &Links, units: &[Unit], set: &[&str]) -> (i64, i64, i64) {
        let mut points = (0, 0, 0);
        let gpu = |id: &str| units.iter().find(|unit| unit.id == id).unwrap();
        for (place, one) in set.iter().enumerate() {
            for other in &set[place + 1..] {
                let (one, other) = (gpu(one), gpu(other));
                let ways = |from: &Unit, to: &Unit| -> Vec<LinkKind> {
                    let links = links.get(&from.gpu).into_iter().flatten();
                    links
                        .filter(|link| link.peer == to.gpu)
                        .map(|link| link.kind)
                        .collect()
                };
                let way = ways(one, other).into_iter().chain(ways(other, one)).max();
                match way {
                    Some(LinkKind::NvLink(lanes)) => points.0 += i64::from(lanes),
                    Some(LinkKind::Board) => points.1 += 3,
                    Some(LinkKind::PcieSwitch) => points.1 += 2,
                    Some(LinkKind::PcieSwitches) => points.1 += 1,
                    None => {}
                }
                points.2 += i64::from(one.numa_node == other.numa_node);
            }
        }
        points
    }

    fn topology(count: usize) -> impl Strategy<Value = Links> {
        let kind = prop_oneof![
            Just(LinkKind::PcieSwitches),
            Just(LinkKind::PcieSwitch),
            Just(LinkKind::Board),
            (1..19_u32).prop_map(LinkKind::NvLink),
        ];
        prop::collection::vec((0..count, 0..count, kind), 0..40).prop_map(|ways| {
            let mut links = Links::new();
            for (one, other, kind) in ways {
                if one != other {
                    link(&mut links, one, other, kind);
                }
            }
            links
        })
    }

    fn questions() -> impl Strategy<Value = (Vec<String>, Vec<String>, usize)> {
        let ids = || prop::collection::vec((0..14_u32).prop_map(|id| format!("g{id}")), 0..20);
        (ids(), ids(), 0..20_usize)
    }

    proptest! {
        #[test]
        fn no_set_of_few_cards_is_nearer_than_the_one_chosen(
            links in topology(9), taken in 0..512_u32, size in 1..6_usize, must in 0..512_u32,
        ) {
            let units = cards(9, 3);
            let in_mask = |mask: u32| move |id: &String| mask >> id[1..].parse::<u32>().unwrap() & 1 == 1;
            let available: Vec<String> = all(&units).into_iter().filter(in_mask(taken)).collect();
            let required: Vec<String> =
                available.iter().filter(|id| in_mask(must)(id)).take(size - 1).cloned().collect();
            let chosen = choose(&units, &links, &available, &required, size);
            let of = |set: &[&str]| points(&links, &units, set);
            let best = (0..1_u32 << available.len())
                .filter(|mask| mask.count_ones() as usize == size.min(available.len()))
                .map(|mask| {
                    let set = available.iter().enumerate();
                    set.filter(|(bit, _)| mask >> bit & 1 == 1).map(|(_, id)| id.as_str()).collect::<Vec<_>>()
                })
                .filter(|set| required.iter().all(|id| set.contains(&id.as_str())))
                .map(|set| of(&set))
                .max();
            let chosen: Vec<&str> = chosen.iter().map(String::as_str).collect();
            prop_assert_eq!(Some(of(&chosen)), best);
        }

        #[test]
        fn the_search_among_many_finds_what_comparing_all_finds_on_islands(
            size in 2..9_usize, island in 2..9_usize, seed in any::<u64>(),
        ) {
            let mut links = Links::new();
            let place = |number: usize| (number as u64).wrapping_mul(seed | 1).rotate_left(17) % 64;
            let mut order: Vec<usize> = (0..16).collect();
            order.sort_by_key(|number| place(*number));
            for one in 0..16 {
                for other in (one + 1)..16 {
                    if order[one] / island == order[other] / island {
                        link(&mut links, one, other, LinkKind::NvLink(6));
                    }
                }
            }
            let units = cards(16, 8);
            let closeness = Closeness::new(&units, &links);
            let free: Vec<usize> = (0..16).collect();
            let search = Search::new(&closeness, &[], &free, size);
            let worth = |set: Vec<usize>| {
                let names: Vec<&str> = set.iter().map(|one| units[*one].id.as_str()).collect();
                points(&links, &units, &names).0
            };
            prop_assert_eq!(worth(search.best_found()), worth(search.best_of_all()));
        }

        #[test]
        fn the_answer_holds_what_is_required_is_large_enough_and_names_nothing_twice(
            (available, required, size) in questions(), links in topology(10), of in 1..3_u32,
        ) {
            // Of the ids in the question some are unknown.
            let units = if of == 1 { cards(10, 5) } else { shares(10, of) };
            let rename = |ids: Vec<String>| -> Vec<String> {
                ids.into_iter().map(|id| if of == 1 { id } else { format!("{id}::{}", id.len() % 2) }).collect()
            };
            let (mut available, required) = (rename(available), rename(required));
            let chosen = choose(&units, &links, &available, &required, size);
            let distinct: BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(distinct.len(), chosen.len());
            for id in &required {
                prop_assert!(distinct.contains(id));
            }
            for id in &chosen {
                prop_assert!(available.contains(id) || required.contains(id));
            }
            let both: BTreeSet<_> = available.iter().chain(&required).collect();
            let must: BTreeSet<_> = required.iter().collect();
            prop_assert_eq!(chosen.len(), size.min(both.len()).max(must.len()));
            available.reverse();
            prop_assert_eq!(choose(&units, &links, &available, &required, size), chosen);
        }

        #[test]
        fn a_container_has_as_many_cards_as_it_has_shares_where_there_are_as_many(
            free in prop::collection::btree_set((0..5_usize, 0..4_u32), 1..20), size in 1..8_usize,
        ) {
            let units = shares(5, 4);
            let available: Vec<String> = free.iter().map(|(card, number)| format!("g{card}::{number}")).collect();
            let card = |id: &String| id.split(':').next().unwrap().to_owned();
            for allocation in [Allocation::Pack, Allocation::Spread] {
                let chosen = choose_as(allocation, &units, &Links::new(), &available, &[], size);
                let had: BTreeSet<_> = chosen.iter().map(card).collect();
                let there: BTreeSet<_> = available.iter().map(card).collect();
                prop_assert_eq!(had.len(), there.len().min(size));
            }
        }
    }
}
