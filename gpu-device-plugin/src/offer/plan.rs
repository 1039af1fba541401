//! What is offered of the machine's GPUs, and what is not and why: a pure rule.
//!
//! A card is in exactly one mode: partitioned, shared or whole. Units of one resource are
//! alike: of the same product, compute capability and memory, and of the same size.

use std::collections::{BTreeMap, BTreeSet};

use super::conflict::Conflicts;
use super::names::{Kind, classes};
use crate::config::{Config, MigStrategy, Unlike};
use crate::driver::Device;
use crate::health::Finding;
use crate::inventory::{Gpu, Mig, MigDevice};
use crate::resource::{MIG_PREFIX, Resource};
use crate::unit::{Offered, Part, Unit, Withheld};

/// What the classes of shares end with.
const SHARED: &str = ".shared";

/// What an offer follows from.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The GPUs that the driver knows.
    pub devices: &'a [Device],
    /// What a person decided about them.
    pub config: &'a Config,
    /// UUIDs or numbers of the cards, and UUIDs of the partitions, that a person took out of
    /// service at the node's object.
    pub out_of_service: &'a BTreeSet<String>,
    /// What other plugins offer.
    pub conflicts: &'a Conflicts,
}

/// Decides what is offered. Every card, or every partition of it, is offered or withheld, and
/// the order of the facts does not matter.
#[must_use]
pub fn plan(facts: Facts<'_>) -> Offered {
    let mut plan = Plan {
        facts,
        families: BTreeMap::new(),
        withheld: Vec::new(),
    };
    let mut devices: Vec<&Device> = facts.devices.iter().collect();
    devices.sort_by_key(|device| (device.gpu.index, &device.gpu.uuid));
    for device in devices {
        plan.place(device);
    }
    plan.keep_partitions_apart();
    plan.name()
}

/// Parts that would have one resource if they were alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Whole,
    Shared,
    /// Partitions under the name of whole cards.
    Partitions,
    /// Partitions of one size, by its name.
    Profile(String),
}

/// A part of a card that can be offered.
struct Candidate<'a> {
    device: &'a Device,
    part: Part,
    /// The size of the partition; nothing for a card.
    profile: &'a str,
    memory_bytes: u64,
    shares: u32,
}

struct Plan<'a> {
    facts: Facts<'a>,
    families: BTreeMap<Family, Vec<Candidate<'a>>>,
    withheld: Vec<Withheld>,
}

impl<'a> Plan<'a> {
    /// Puts a card, or each of its partitions, into the family of its mode.
    fn place(&mut self, device: &'a Device) {
        if let Some((reason, message)) = self.objection(&device.gpu) {
            self.withhold(device, Part::Whole, reason, message);
            return;
        }
        match &device.gpu.mig {
            Mig::On(partitions) => self.place_partitions(device, partitions),
            Mig::Off | Mig::Unsupported => self.place_card(device),
        }
    }

    /// Why nothing of this card is offered.
    fn objection(&self, gpu: &Gpu) -> Option<(&'static str, String)> {
        let config = self.facts.config;
        if config.exclude.iter().any(|selector| selector.fits(gpu)) {
            let message = "the configuration excludes it; take it out of `exclude` to offer it";
            return Some(("Excluded", message.to_owned()));
        }
        let parts = gpu.mig.devices().iter().map(|partition| &partition.uuid);
        let other = std::iter::once(&gpu.uuid)
            .chain(parts)
            .find_map(|uuid| self.facts.conflicts.of(uuid));
        if let Some(other) = other {
            return Some((
                "DeviceConflict",
                format!(
                    "another plugin offers it as {other}; remove that plugin from this node and end the pods that use its GPUs, or exclude the card here"
                ),
            ));
        }
        match (&gpu.mig, config.mig) {
            (Mig::On(_), MigStrategy::None) => Some((
                "Partitioned",
                "it is partitioned (MIG) and partitions are not offered; set `mig.strategy` to `mixed` or `single`, or switch MIG off (nvidia-smi -mig 0)".to_owned(),
            )),
            (Mig::On(partitions), _) if partitions.is_empty() => Some((
                "NoPartitions",
                "MIG is on and there is no partition; create some (nvidia-smi mig -cgi ... -C), or switch MIG off (nvidia-smi -mig 0)".to_owned(),
            )),
            _ => None,
        }
    }

    fn place_partitions(&mut self, device: &'a Device, partitions: &'a [MigDevice]) {
        let config = self.facts.config;
        for partition in partitions {
            let part = Part::Mig(partition.uuid.clone());
            let excluded = config
                .exclude
                .iter()
                .any(|selector| selector.fits_partition(&device.gpu, partition));
            if excluded {
                let message = "the configuration excludes it; take it out of `exclude` to offer it";
                self.withhold(device, part, "Excluded", message.to_owned());
                continue;
            }
            let family = match config.mig {
                MigStrategy::Mixed => Family::Profile(profile_class(&partition.profile)),
                MigStrategy::Single | MigStrategy::None => Family::Partitions,
            };
            self.families.entry(family).or_default().push(Candidate {
                device,
                part,
                profile: &partition.profile,
                memory_bytes: partition.memory_bytes,
                shares: 1,
            });
        }
    }

    fn place_card(&mut self, device: &'a Device) {
        let sharing = &self.facts.config.sharing.cards;
        let of = sharing
            .iter()
            .find(|cards| cards.select.fits(&device.gpu))
            .map_or(1, |cards| cards.replicas);
        let candidate = |part| Candidate {
            device,
            part,
            profile: "",
            memory_bytes: device.gpu.memory_bytes,
            shares: of,
        };
        if of > 1 {
            let shares = (0..of).map(|number| candidate(Part::Share { number, of }));
            self.families
                .entry(Family::Shared)
                .or_default()
                .extend(shares);
        } else {
            let whole = self.families.entry(Family::Whole).or_default();
            whole.push(candidate(Part::Whole));
        }
    }

    /// Where partitions have the name of whole cards, no whole card has it.
    fn keep_partitions_apart(&mut self) {
        if !self.families.contains_key(&Family::Partitions) {
            return;
        }
        for candidate in self.families.remove(&Family::Whole).unwrap_or_default() {
            self.withhold(
                candidate.device,
                candidate.part,
                "NotPartitioned",
                "it is a whole card among partitioned ones, whose partitions have the name of whole cards (`mig.strategy: single`); partition it like the others, or set `mig.strategy` to `mixed`".to_owned(),
            );
        }
    }

    /// Names each family, or withholds it where its parts may not have one name.
    fn name(mut self) -> Offered {
        let mut units: BTreeMap<Resource, Vec<Unit>> = BTreeMap::new();
        for (family, candidates) in std::mem::take(&mut self.families) {
            let kinds = kinds(&candidates);
            let distinct: BTreeSet<Kind> = kinds.iter().cloned().collect();
            let refusal = self.refusal(&family, &distinct);
            if let Some((reason, message)) = refusal {
                for candidate in candidates {
                    self.withhold(candidate.device, candidate.part, reason, message.clone());
                }
                continue;
            }
            let names = self.names(&family, &distinct);
            for (candidate, kind) in candidates.into_iter().zip(kinds) {
                let resource = names[&kind].clone();
                let unit = self.unit(candidate);
                units.entry(resource).or_default().push(unit);
            }
        }
        let place: BTreeMap<&str, u32> = self
            .facts
            .devices
            .iter()
            .map(|device| (device.gpu.uuid.as_str(), device.gpu.index))
            .collect();
        self.withheld.sort_by_cached_key(|withheld| {
            let index = place.get(withheld.gpu.as_str()).copied();
            (index, withheld.gpu.clone(), withheld.part.clone())
        });
        Offered {
            units,
            withheld: self.withheld,
        }
    }

    /// Why parts of such kinds may not be offered.
    fn refusal(&self, family: &Family, kinds: &BTreeSet<Kind>) -> Option<(&'static str, String)> {
        if kinds.len() <= 1 {
            return None;
        }
        if *family == Family::Partitions {
            return Some((
                "UnlikePartitions",
                format!(
                    "the node's partitions are unlike ({}) and would have one name (`mig.strategy: single`); make them alike, or set `mig.strategy` to `mixed`",
                    described(kinds)
                ),
            ));
        }
        (self.facts.config.unlike == Unlike::Refuse).then(|| {
            (
                "UnlikeCards",
                format!(
                    "the node's cards are unlike ({}) and the configuration refuses that; exclude all but one kind, or set `unlike` to `byModel`",
                    described(kinds)
                ),
            )
        })
    }

    fn names(&self, family: &Family, kinds: &BTreeSet<Kind>) -> BTreeMap<Kind, Resource> {
        let base = &self.facts.config.resource;
        let (prefix, suffix) = match family {
            Family::Whole | Family::Partitions => (base.class().to_owned(), ""),
            Family::Shared => (base.class().to_owned(), SHARED),
            Family::Profile(profile) => (format!("{MIG_PREFIX}{profile}"), ""),
        };
        let named = if kinds.len() == 1 {
            let class = format!("{prefix}{suffix}");
            kinds
                .iter()
                .map(|kind| (kind.clone(), class.clone()))
                .collect()
        } else {
            classes(&prefix, kinds, suffix)
        };
        named
            .into_iter()
            .map(|(kind, class)| (kind, base.sibling(class)))
            .collect()
    }

    fn unit(&self, candidate: Candidate<'a>) -> Unit {
        let gpu = &candidate.device.gpu;
        let (id, health) = match &candidate.part {
            Part::Whole => (gpu.uuid.clone(), &candidate.device.health),
            Part::Share { number, .. } => (
                Offered::share_id(&gpu.uuid, *number),
                &candidate.device.health,
            ),
            Part::Mig(uuid) => (uuid.clone(), candidate.device.partition_health(uuid)),
        };
        let health = match self.taken_out_by(&candidate) {
            Some(by) => health.clone().with(Finding::OutOfService(by.to_owned())),
            None => health.clone(),
        };
        Unit {
            id,
            gpu: gpu.uuid.clone(),
            numa_node: gpu.numa_node,
            memory_bytes: candidate.memory_bytes / u64::from(candidate.shares),
            health,
            part: candidate.part,
        }
    }

    /// What a person took it out of service by.
    fn taken_out_by(&self, candidate: &Candidate<'_>) -> Option<&'static str> {
        let gpu = &candidate.device.gpu;
        let partition = match &candidate.part {
            Part::Mig(uuid) => gpu.mig.devices().iter().find(|device| device.uuid == *uuid),
            Part::Whole | Part::Share { .. } => None,
        };
        let by_config = self.facts.config.out_of_service.iter().any(|selector| {
            selector.fits(gpu)
                || partition.is_some_and(|partition| selector.fits_partition(gpu, partition))
        });
        let named = self.facts.out_of_service;
        let by_annotation = named.contains(&gpu.uuid)
            || named.contains(&gpu.index.to_string())
            || partition.is_some_and(|partition| named.contains(&partition.uuid));
        if by_config {
            Some("outOfService in the plugin's configuration")
        } else if by_annotation {
            Some("the annotation creo.cloud/out-of-service on the CreoNode")
        } else {
            None
        }
    }

    fn withhold(&mut self, device: &Device, part: Part, reason: &'static str, message: String) {
        self.withheld.push(Withheld {
            gpu: device.gpu.uuid.clone(),
            part,
            reason,
            message,
        });
    }
}

/// The kind of each part. Memories that differ by less than 3 % count as the same: the driver
/// keeps a little for itself, and not always the same.
fn kinds(candidates: &[Candidate<'_>]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = candidates
        .iter()
        .map(|part| Kind {
            model: part.device.gpu.model.clone(),
            profile: part.profile.to_owned(),
            compute_capability: part.device.gpu.compute_capability.clone(),
            memory_bytes: part.memory_bytes,
            shares: part.shares,
        })
        .collect();
    let mut sorted: Vec<&mut Kind> = kinds.iter_mut().collect();
    sorted.sort_by_cached_key(|kind| (but_for_memory(kind), kind.memory_bytes));
    let mut least: Option<Kind> = None;
    for kind in sorted {
        match &least {
            Some(least) if about_as_large(least, kind) => kind.memory_bytes = least.memory_bytes,
            _ => least = Some(kind.clone()),
        }
    }
    kinds
}

fn about_as_large(least: &Kind, kind: &Kind) -> bool {
    but_for_memory(least) == but_for_memory(kind)
        && kind.memory_bytes - least.memory_bytes <= least.memory_bytes / 100 * 3
}

fn but_for_memory(kind: &Kind) -> Kind {
    Kind {
        memory_bytes: 0,
        ..kind.clone()
    }
}

fn described(kinds: &BTreeSet<Kind>) -> String {
    let described: Vec<String> = kinds.iter().map(Kind::describe).collect();
    described.join(", ")
}

/// NVIDIA's name of a size, such as `1g.10gb+me`, as part of a class.
fn profile_class(profile: &str) -> String {
    let words: Vec<String> = profile
        .split(['+', '.'])
        .map(|word| {
            word.chars()
                .map(|letter| {
                    if letter.is_ascii_alphanumeric() {
                        letter
                    } else {
                        '-'
                    }
                })
                .collect::<String>()
        })
        .map(|word| word.trim_matches('-').chars().take(16).collect::<String>())
        .map(|word| word.trim_end_matches('-').to_owned())
        .filter(|word| !word.is_empty())
        .take(3)
        .collect();
    if words.is_empty() {
        "unknown".to_owned()
    } else {
        words.join(".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::select::{Pattern, Selector};
    use crate::config::{SharedCards, Sharing};
    use crate::health::Health;
    use proptest::prelude::*;

    const GIB: u64 = 1 << 30;

    fn card(index: u32, model: &str, gib: u64, mig: Mig) -> Device {
        Device {
            gpu: Gpu {
                index,
                uuid: format!("GPU-{index}"),
                model: model.to_owned(),
                memory_bytes: gib * GIB,
                compute_capability: "8.0".to_owned(),
                numa_node: Some(index / 4),
                mig,
                ..Gpu::default()
            },
            health: Health::healthy(),
            partitions: BTreeMap::new(),
        }
    }

    fn t4(index: u32) -> Device {
        card(index, "Tesla T4", 15, Mig::Unsupported)
    }

    fn a100(index: u32, profiles: &[&str]) -> Device {
        let partitions = profiles.iter().zip(0..).map(|(profile, number)| MigDevice {
            uuid: format!("MIG-{index}-{number}"),
            profile: (*profile).to_owned(),
            gpu_instance: number,
            compute_instance: 0,
            memory_bytes: 10 * GIB,
        });
        let mig = Mig::On(partitions.collect());
        card(index, "NVIDIA A100-SXM4-80GB", 80, mig)
    }

    fn planned(devices: &[Device], config: &Config) -> Offered {
        plan(Facts {
            devices,
            config,
            out_of_service: &BTreeSet::new(),
            conflicts: &Conflicts::default(),
        })
    }

    /// Each resource with its ids, and each part that is withheld with its reason.
    fn shown(offered: &Offered) -> Vec<String> {
        let units = offered.units.iter().map(|(resource, units)| {
            let ids: Vec<&str> = units.iter().map(|unit| unit.id.as_str()).collect();
            format!("{}: {}", resource.class(), ids.join(" "))
        });
        let withheld = offered.withheld.iter().map(|withheld| {
            let part = match &withheld.part {
                Part::Mig(uuid) => uuid,
                Part::Whole | Part::Share { .. } => &withheld.gpu,
            };
            format!("{part}: {}", withheld.reason)
        });
        units.chain(withheld).collect()
    }

    fn mig(mig: MigStrategy) -> Config {
        Config {
            mig,
            ..Config::default()
        }
    }

    fn by_model(model: &str) -> Selector {
        Selector {
            model: Some(Pattern::new(model)),
            ..Selector::default()
        }
    }

    fn by_uuid(uuid: &str) -> Selector {
        Selector {
            uuid: Some(uuid.to_owned()),
            ..Selector::default()
        }
    }

    fn shared(model: &str, replicas: u32) -> Config {
        Config {
            sharing: Sharing {
                cards: vec![SharedCards {
                    select: by_model(model),
                    replicas,
                }],
                ..Sharing::default()
            },
            ..Config::default()
        }
    }

    #[test]
    fn alike_cards_have_the_resource_itself_and_unlike_ones_one_by_model() {
        let none = Config::default();
        assert_eq!(
            shown(&planned(&[t4(1), t4(0)], &none)),
            ["gpu: GPU-0 GPU-1"]
        );
        let a_l4 = card(2, "NVIDIA L4", 22, Mig::Unsupported);
        assert_eq!(
            shown(&planned(&[t4(0), t4(1), a_l4.clone()], &none)),
            ["gpu-l4: GPU-2", "gpu-tesla-t4: GPU-0 GPU-1"]
        );
        let refuse = Config {
            unlike: Unlike::Refuse,
            ..Config::default()
        };
        let refused = planned(&[t4(0), a_l4], &refuse);
        assert_eq!(
            shown(&refused),
            ["GPU-0: UnlikeCards", "GPU-2: UnlikeCards"]
        );
        let message = &refused.withheld[0].message;
        assert!(
            message.contains("\"NVIDIA L4\" with 22 GiB, \"Tesla T4\" with 15 GiB"),
            "{message}"
        );
        assert_eq!(shown(&planned(&[], &none)), Vec::<String>::new());
    }

    #[test]
    fn cards_of_one_model_differ_by_their_memory_unless_it_is_about_the_same() {
        let mut little_less = t4(1);
        little_less.gpu.memory_bytes -= little_less.gpu.memory_bytes / 50;
        assert_eq!(
            shown(&planned(&[t4(0), little_less], &Config::default())),
            ["gpu: GPU-0 GPU-1"]
        );
        let large = card(1, "Tesla T4", 30, Mig::Unsupported);
        assert_eq!(
            shown(&planned(&[t4(0), large], &Config::default())),
            ["gpu-tesla-t4-15gib: GPU-0", "gpu-tesla-t4-30gib: GPU-1"]
        );
    }

    #[test]
    fn partitions_are_offered_as_the_strategy_says() {
        let seven = ["1g.10gb"; 2];
        let unlike = ["3g.40gb", "1g.10gb+me"];
        let whole = card(2, "NVIDIA A100-SXM4-80GB", 80, Mig::Off);
        for (strategy, devices, expected) in [
            (
                MigStrategy::None,
                vec![a100(0, &seven), whole.clone()],
                vec!["gpu: GPU-2", "GPU-0: Partitioned"],
            ),
            (
                MigStrategy::Single,
                vec![a100(0, &seven), a100(1, &seven)],
                vec!["gpu: MIG-0-0 MIG-0-1 MIG-1-0 MIG-1-1"],
            ),
            (
                MigStrategy::Single,
                vec![a100(0, &seven), whole.clone()],
                vec!["gpu: MIG-0-0 MIG-0-1", "GPU-2: NotPartitioned"],
            ),
            (
                MigStrategy::Single,
                vec![a100(0, &unlike)],
                vec!["MIG-0-0: UnlikePartitions", "MIG-0-1: UnlikePartitions"],
            ),
            (MigStrategy::Single, vec![whole.clone()], vec!["gpu: GPU-2"]),
            (
                MigStrategy::Mixed,
                vec![a100(0, &unlike), a100(1, &[]), whole],
                vec![
                    "gpu: GPU-2",
                    "mig-1g.10gb.me: MIG-0-1",
                    "mig-3g.40gb: MIG-0-0",
                    "GPU-1: NoPartitions",
                ],
            ),
        ] {
            let offered = planned(&devices, &mig(strategy));
            assert_eq!(shown(&offered), expected, "{strategy:?}");
        }
    }

    #[test]
    fn equal_partitions_of_unlike_cards_are_told_apart() {
        let mut other = a100(1, &["1g.10gb"]);
        other.gpu.model = "NVIDIA H100 80GB HBM3".to_owned();
        assert_eq!(
            shown(&planned(
                &[a100(0, &["1g.10gb"]), other],
                &mig(MigStrategy::Mixed)
            )),
            [
                "mig-1g.10gb-a100-sxm4-80gb: MIG-0-0",
                "mig-1g.10gb-h100-80gb-hbm3: MIG-1-0"
            ]
        );
    }

    #[test]
    fn shares_have_a_name_that_says_so_and_a_part_of_the_memory() {
        let offered = planned(&[t4(0), t4(1)], &shared("*T4", 2));
        assert_eq!(
            shown(&offered),
            ["gpu.shared: GPU-0::0 GPU-0::1 GPU-1::0 GPU-1::1"]
        );
        let units = offered.units.values().next().unwrap();
        assert_eq!(units[1].part, Part::Share { number: 1, of: 2 });
        assert_eq!(units[1].memory_bytes, 15 * GIB / 2);
        assert_eq!((units[1].uuid(), units[1].numa_node), ("GPU-0", Some(0)));
        // Others stay whole, and a partitioned card stays partitioned.
        let l4 = card(2, "NVIDIA L4", 22, Mig::Unsupported);
        let some = [t4(0), l4, a100(3, &["7g.80gb"])];
        let mut config = shared("*", 2);
        config.mig = MigStrategy::Mixed;
        config.sharing.cards[0].select = by_model("*T4");
        config.sharing.cards.push(SharedCards {
            select: by_model("*A100*"),
            replicas: 4,
        });
        assert_eq!(
            shown(&planned(&some, &config)),
            [
                "gpu: GPU-2",
                "gpu.shared: GPU-0::0 GPU-0::1",
                "mig-7g.80gb: MIG-3-0"
            ]
        );
    }

    #[test]
    fn what_is_excluded_or_offered_by_others_is_withheld() {
        let config = Config {
            exclude: vec![by_uuid("GPU-1"), by_uuid("MIG-2-1")],
            mig: MigStrategy::Mixed,
            ..Config::default()
        };
        let devices = [
            t4(0),
            t4(1),
            a100(2, &["1g.10gb"; 3]),
            a100(3, &["1g.10gb"]),
        ];
        let other = ("MIG-3-0".to_owned(), "nvidia.com/mig-1g.10gb".to_owned());
        let conflicts = [other].into_iter().collect();
        let offered = plan(Facts {
            devices: &devices,
            config: &config,
            out_of_service: &BTreeSet::new(),
            conflicts: &conflicts,
        });
        assert_eq!(
            shown(&offered),
            [
                "gpu: GPU-0",
                "mig-1g.10gb: MIG-2-0 MIG-2-2",
                "GPU-1: Excluded",
                "MIG-2-1: Excluded",
                "GPU-3: DeviceConflict"
            ]
        );
        assert!(
            offered.withheld[2]
                .message
                .contains("as nvidia.com/mig-1g.10gb")
        );
    }

    #[test]
    fn what_is_out_of_service_is_offered_as_unfit() {
        let config = Config {
            out_of_service: vec![by_uuid("GPU-0"), by_uuid("MIG-3-0")],
            mig: MigStrategy::Mixed,
            ..Config::default()
        };
        let mut ill = t4(0);
        ill.health = Health::of([Finding::Lost]);
        let devices = [ill, t4(1), t4(2), a100(3, &["1g.10gb"; 3])];
        let offered = plan(Facts {
            devices: &devices,
            config: &config,
            out_of_service: &["1".to_owned(), "MIG-3-2".to_owned()].into(),
            conflicts: &Conflicts::default(),
        });
        let out: Vec<(&str, bool)> = offered
            .units
            .values()
            .flatten()
            .map(|unit| (unit.id.as_str(), unit.health.is_healthy()))
            .collect();
        assert_eq!(
            out,
            [
                ("GPU-0", false),
                ("GPU-1", false),
                ("GPU-2", true),
                ("MIG-3-0", false),
                ("MIG-3-1", true),
                ("MIG-3-2", false)
            ]
        );
        let units = &offered.units[&Resource::default()];
        // What was wrong with it before is still told.
        assert_eq!(units[0].health.worst(), Some(&Finding::Lost));
        assert_eq!(units[0].health.findings().len(), 2);
        let told = units[1].health.worst().unwrap().to_string();
        assert!(
            told.contains("annotation creo.cloud/out-of-service"),
            "{told}"
        );
    }

    fn devices() -> impl Strategy<Value = Vec<Device>> {
        let model = prop_oneof![
            Just("NVIDIA A 100"),
            Just("NVIDIA A-100"),
            Just("Tesla T4"),
            Just("")
        ];
        let profile = prop_oneof![
            Just("1g.10gb"),
            Just("1g.10gb+me"),
            Just("1g.10gb.me"),
            Just("3g.40gb"),
            Just("+"),
            Just("1c.3g.40gb"),
            Just("ä/ö")
        ];
        let mig = prop_oneof![
            Just(None),
            prop::collection::vec(profile, 0..4).prop_map(Some)
        ];
        let one = (model, prop_oneof![Just(40_u64), Just(41), Just(80)], mig);
        prop::collection::vec(one, 0..8).prop_map(|cards| {
            cards
                .into_iter()
                .zip(0..)
                .map(|((model, gib, mig), index)| {
                    let mut device = match mig {
                        None => card(index, model, gib, Mig::Off),
                        Some(profiles) => a100(index, &profiles),
                    };
                    device.gpu.model = model.to_owned();
                    device.gpu.memory_bytes = gib * GIB;
                    device
                })
                .collect()
        })
    }

    fn selectors() -> impl Strategy<Value = Vec<Selector>> {
        let selector = (
            prop::option::of(0..8_u32),
            prop::option::of("T4|\\*|\\*100|GPU|\\*A\\*"),
        )
            .prop_map(|(index, model)| Selector {
                uuid: None,
                index,
                model: model.map(|model| Pattern::new(&model)),
            });
        prop::collection::vec(selector, 0..2)
    }

    fn configs() -> impl Strategy<Value = Config> {
        let mig = prop_oneof![
            Just(MigStrategy::None),
            Just(MigStrategy::Single),
            Just(MigStrategy::Mixed)
        ];
        let unlike = prop_oneof![Just(Unlike::ByModel), Just(Unlike::Refuse)];
        (
            mig,
            unlike,
            selectors(),
            selectors(),
            prop::collection::vec((selectors(), 2..5_u32), 0..3),
        )
            .prop_map(|(mig, unlike, exclude, out_of_service, sharing)| Config {
                mig,
                unlike,
                exclude,
                out_of_service,
                sharing: Sharing {
                    cards: sharing
                        .into_iter()
                        .filter_map(|(mut select, replicas)| {
                            select.pop().map(|select| SharedCards { select, replicas })
                        })
                        .collect(),
                    ..Sharing::default()
                },
                ..Config::default()
            })
    }

    /// How often each card, or each of its partitions, is among these.
    fn count(parts: impl Iterator<Item = (String, Part)>) -> BTreeMap<(String, Part), usize> {
        let mut counted = BTreeMap::new();
        for (gpu, part) in parts {
            let part = match part {
                // All shares together are the card, once.
                Part::Share { number: 0, .. } => Part::Whole,
                Part::Share { .. } => continue,
                other => other,
            };
            *counted.entry((gpu, part)).or_default() += 1;
        }
        counted
    }

    proptest! {
        #[test]
        fn every_part_of_every_card_is_offered_or_withheld_and_never_both(
            devices in devices(), config in configs(),
        ) {
            let offered = planned(&devices, &config);
            let units = offered.units.values().flatten();
            let units = units.map(|unit| (unit.gpu.clone(), unit.part.clone()));
            let withheld = offered.withheld.iter();
            let withheld = withheld.map(|part| (part.gpu.clone(), part.part.clone()));
            let counted = count(units.chain(withheld));
            prop_assert!(counted.values().all(|count| *count == 1), "{counted:?}");
            for device in &devices {
                let whole = counted.contains_key(&(device.gpu.uuid.clone(), Part::Whole));
                for partition in device.gpu.mig.devices() {
                    let part = Part::Mig(partition.uuid.clone());
                    let own = counted.contains_key(&(device.gpu.uuid.clone(), part));
                    prop_assert!(own != whole);
                }
                prop_assert!(whole || !device.gpu.mig.devices().is_empty());
            }
            for withheld in &offered.withheld {
                prop_assert!(!withheld.reason.is_empty() && !withheld.message.is_empty());
            }
        }

        #[test]
        fn ids_are_unique_and_resources_valid_and_of_one_kind(
            devices in devices(), config in configs(),
        ) {
            let offered = planned(&devices, &config);
            let ids: Vec<&str> =
                offered.units.values().flatten().map(|unit| unit.id.as_str()).collect();
            prop_assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
            for (resource, units) in &offered.units {
                prop_assert!(!units.is_empty());
                prop_assert!(is_qualified_name(resource.class()), "{resource}");
                prop_assert!(config.resource.is_family_of(&resource.to_string()));
                let kinds: BTreeSet<_> = units
                    .iter()
                    .map(|unit| {
                        let gpu = &devices.iter().find(|device| device.gpu.uuid == unit.gpu).unwrap().gpu;
                        let profile = gpu.mig.devices().iter().find(|part| part.uuid == unit.uuid());
                        let of = match unit.part { Part::Share { of, .. } => of, _ => 1 };
                        let memory = if gpu.memory_bytes > 60 * GIB { 80 } else { 40 };
                        let memory = if profile.is_some() { 0 } else { memory };
                        (gpu.model.clone(), memory, profile.map(|part| part.profile.clone()), of)
                    })
                    .collect();
                prop_assert_eq!(kinds.len(), 1, "{:?}", kinds);
            }
        }

        #[test]
        fn the_order_of_the_cards_is_no_matter(
            devices in devices(), config in configs(), seed in any::<u64>(),
        ) {
            let mut other = devices.clone();
            other.sort_by_key(|device| u64::from(device.gpu.index).wrapping_mul(seed | 1));
            prop_assert_eq!(planned(&devices, &config), planned(&other, &config));
        }
    }

    /// What Kubernetes asks of the part after the slash.
    fn is_qualified_name(text: &str) -> bool {
        let end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= 63
            && end(bytes.first())
            && end(bytes.last())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte))
    }
}
