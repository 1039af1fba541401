//! Partitions of a card: which there can be, and which there are.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::gpu::{as_uuid, digest};
use super::{Gpu, Partition};

/// How a card is partitioned.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mig {
    /// Whether the card can be partitioned now.
    pub enabled: bool,
    /// The same after the next reset.
    pub pending: bool,
    /// The GPU instances, by the place of their memory.
    pub instances: Vec<GpuInstance>,
}

/// A GPU instance: a part of the card with memory of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GpuInstance {
    /// Its number on the card.
    pub id: u32,
    /// Name of its profile, such as `3g.40gb`.
    pub profile: String,
    /// First slice of memory.
    pub start: u32,
    /// The compute instances in it.
    pub compute_instances: Vec<ComputeInstance>,
}

/// A compute instance: a share of a GPU instance's multiprocessors, and what NVML calls a
/// MIG device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComputeInstance {
    /// Its number in the GPU instance.
    pub id: u32,
    /// How many slices of multiprocessors it has.
    pub slices: u32,
    /// The first of them.
    pub start: u32,
    /// `MIG-` and a UUID.
    pub uuid: String,
}

/// Cards that can be partitioned in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigFamily {
    /// A30 with 24 GB.
    A30,
    /// A100 with 40 GB.
    #[serde(rename = "a100-40gb")]
    A100_40,
    /// A100 with 80 GB.
    #[serde(rename = "a100-80gb")]
    A100_80,
    /// H100 with 80 GB.
    #[serde(rename = "h100-80gb")]
    H100,
    /// H200 with 141 GB.
    #[serde(rename = "h200-141gb")]
    H200,
}

/// A kind of GPU instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigProfile {
    /// Its name, such as `1g.10gb`.
    pub name: &'static str,
    /// N of NVML's `NVML_GPU_INSTANCE_PROFILE_*`.
    pub number: u32,
    /// What NVML and nvidia-smi call its profile ID.
    pub id: u32,
    /// Slices of multiprocessors.
    pub slices: u32,
    /// Slices of memory.
    pub memory_slices: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Engines that copy.
    pub copy_engines: u32,
    /// Video decoders.
    pub decoders: u32,
    /// JPEG decoders.
    pub jpegs: u32,
    /// Optical flow accelerators.
    pub optical_flow: u32,
    /// How many of these a card can have.
    pub instances: u32,
}

/// Numbers of [`MigProfile`] in its order, to have the tables in lines.
type Row = (&'static str, [u32; 2], [u32; 2], u64, [u32; 6]);

const fn profile(row: Row) -> MigProfile {
    let (
        name,
        [number, id],
        [slices, memory_slices],
        memory_mib,
        [
            multiprocessors,
            copy_engines,
            decoders,
            jpegs,
            optical_flow,
            instances,
        ],
    ) = row;
    MigProfile {
        name,
        number,
        id,
        slices,
        memory_slices,
        memory_mib,
        multiprocessors,
        copy_engines,
        decoders,
        jpegs,
        optical_flow,
        instances,
    }
}

// Names, IDs, slices and engines as `nvidia-smi mig -lgip` lists them.

const A30: &[MigProfile] = &[
    profile(("1g.6gb", [0, 14], [1, 1], 5_952, [14, 1, 0, 0, 0, 4])),
    profile(("1g.6gb+me", [7, 21], [1, 1], 5_952, [14, 1, 1, 1, 1, 1])),
    profile(("2g.12gb", [1, 5], [2, 2], 12_032, [28, 2, 2, 0, 0, 2])),
    profile(("4g.24gb", [3, 0], [4, 4], 24_125, [56, 4, 4, 1, 1, 1])),
];

const A100_40: &[MigProfile] = &[
    profile(("1g.5gb", [0, 19], [1, 1], 4_864, [14, 1, 0, 0, 0, 7])),
    profile(("1g.5gb+me", [7, 20], [1, 1], 4_864, [14, 1, 1, 1, 1, 1])),
    profile(("1g.10gb", [9, 15], [1, 2], 9_856, [14, 1, 1, 0, 0, 4])),
    profile(("2g.10gb", [1, 14], [2, 2], 9_856, [28, 2, 1, 0, 0, 3])),
    profile(("3g.20gb", [2, 9], [3, 4], 19_968, [42, 3, 2, 0, 0, 2])),
    profile(("4g.20gb", [3, 5], [4, 4], 19_968, [56, 4, 2, 0, 0, 1])),
    profile(("7g.40gb", [4, 0], [7, 8], 40_192, [98, 7, 5, 1, 1, 1])),
];

const A100_80: &[MigProfile] = &[
    profile(("1g.10gb", [0, 19], [1, 1], 9_728, [14, 1, 0, 0, 0, 7])),
    profile(("1g.10gb+me", [7, 20], [1, 1], 9_728, [14, 1, 1, 1, 1, 1])),
    profile(("1g.20gb", [9, 15], [1, 2], 19_968, [14, 1, 1, 0, 0, 4])),
    profile(("2g.20gb", [1, 14], [2, 2], 19_968, [28, 2, 1, 0, 0, 3])),
    profile(("3g.40gb", [2, 9], [3, 4], 40_192, [42, 3, 2, 0, 0, 2])),
    profile(("4g.40gb", [3, 5], [4, 4], 40_192, [56, 4, 2, 0, 0, 1])),
    profile(("7g.80gb", [4, 0], [7, 8], 80_640, [98, 7, 5, 1, 1, 1])),
];

const H100: &[MigProfile] = &[
    profile(("1g.10gb", [0, 19], [1, 1], 9_984, [16, 1, 1, 1, 0, 7])),
    profile(("1g.10gb+me", [7, 20], [1, 1], 9_984, [16, 1, 1, 1, 1, 1])),
    profile(("1g.20gb", [9, 15], [1, 2], 20_096, [26, 1, 1, 1, 0, 4])),
    profile(("2g.20gb", [1, 14], [2, 2], 20_096, [32, 2, 2, 2, 0, 3])),
    profile(("3g.40gb", [2, 9], [3, 4], 40_448, [60, 3, 3, 3, 0, 2])),
    profile(("4g.40gb", [3, 5], [4, 4], 40_448, [64, 4, 4, 4, 0, 1])),
    profile(("7g.80gb", [4, 0], [7, 8], 81_152, [132, 8, 7, 7, 1, 1])),
];

const H200: &[MigProfile] = &[
    profile(("1g.18gb", [0, 19], [1, 1], 16_384, [16, 1, 1, 1, 0, 7])),
    profile(("1g.18gb+me", [7, 20], [1, 1], 16_384, [16, 1, 1, 1, 1, 1])),
    profile(("1g.35gb", [9, 15], [1, 2], 33_280, [26, 1, 1, 1, 0, 4])),
    profile(("2g.35gb", [1, 14], [2, 2], 33_280, [32, 2, 2, 2, 0, 3])),
    profile(("3g.71gb", [2, 9], [3, 4], 71_424, [60, 3, 3, 3, 0, 2])),
    profile(("4g.71gb", [3, 5], [4, 4], 71_424, [64, 4, 4, 4, 0, 1])),
    profile(("7g.141gb", [4, 0], [7, 8], 143_104, [132, 8, 7, 7, 1, 1])),
];

impl MigFamily {
    /// The kinds of GPU instances that these cards can have.
    #[must_use]
    pub fn profiles(self) -> &'static [MigProfile] {
        match self {
            Self::A30 => A30,
            Self::A100_40 => A100_40,
            Self::A100_80 => A100_80,
            Self::H100 => H100,
            Self::H200 => H200,
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(self, name: &str) -> Option<&'static MigProfile> {
        self.profiles().iter().find(|profile| profile.name == name)
    }

    /// Slices of memory that a card has.
    #[must_use]
    pub fn memory_slices(self) -> u32 {
        if self == Self::A30 { 4 } else { 8 }
    }

    /// Slices of multiprocessors that a card has, which is also the most partitions.
    #[must_use]
    pub fn slices(self) -> u32 {
        if self == Self::A30 { 4 } else { 7 }
    }

    /// First slices of memory at which an instance of this kind can lie.
    #[must_use]
    pub fn starts(self, profile: &MigProfile) -> Vec<u32> {
        // The eighth slice of memory has no multiprocessors of its own.
        let usable = match profile.memory_slices {
            1 => self.slices(),
            size => self.memory_slices() / size * size,
        };
        let step = usize::try_from(profile.memory_slices).unwrap_or(usize::MAX);
        let mut starts: Vec<u32> = (0..usable).step_by(step).collect();
        match profile.slices {
            // These need the half, or the quarters, that have all their multiprocessors.
            4 => starts.truncate(1),
            2 => starts.retain(|start| start + 2 <= self.slices()),
            _ => {}
        }
        starts
    }

    /// Number of the GPU instance that lies here. The driver counts as a heap does: the whole
    /// card is 0, its halves are 1 and 2, its quarters 3 to 6, and so on.
    fn instance_id(self, profile: &MigProfile, start: u32) -> u32 {
        let parts = self.memory_slices() / profile.memory_slices;
        parts - 1 + start / profile.memory_slices
    }
}

/// NVML's numbers of the kinds of compute instances, and their slices.
pub(crate) const COMPUTE_PROFILES: [(u32, u32); 5] = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 7)];

impl MigProfile {
    /// Whether a compute instance of so many slices fits into an instance of this kind.
    #[must_use]
    pub fn takes(&self, slices: u32) -> bool {
        slices == self.slices
            || slices < self.slices && COMPUTE_PROFILES.iter().any(|(_, known)| *known == slices)
    }

    /// Multiprocessors of a compute instance with so many slices.
    #[must_use]
    pub fn multiprocessors_of(&self, slices: u32) -> u32 {
        if slices == self.slices {
            self.multiprocessors
        } else {
            // All cards have their multiprocessors in even numbers in each slice.
            self.multiprocessors / self.slices / 2 * 2 * slices
        }
    }

    /// Name of a compute instance with so many slices, `1c.3g.40gb`, or the instance's own
    /// where it has all of them.
    #[must_use]
    pub fn compute_name(&self, slices: u32) -> String {
        if slices == self.slices {
            self.name.to_owned()
        } else {
            format!("{slices}c.{}", self.name)
        }
    }
}

/// A layout of partitions that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The card cannot be partitioned.
    #[error("a {0} cannot be partitioned; use an A30, A100, H100 or H200")]
    NotCapable(String),
    /// No kind of instance has this name.
    #[error("`{name}` is no partition of this card; there are {}", known.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// The names that exist.
        known: Vec<&'static str>,
    },
    /// A GPU instance cannot be split like this.
    #[error(
        "`{0}` does not fit together; compute instances have 1, 2, 3, 4 or 7 slices and together at most those of their GPU instance"
    )]
    Compute(String),
    /// They do not fit on the card.
    #[error("{0} do not fit on the card together")]
    NoRoom(String),
}

/// A GPU instance that is wanted: its kind and the slices of its compute instances.
struct Wanted {
    profile: &'static MigProfile,
    compute: Vec<u32>,
}

impl Mig {
    /// The layout of these words: `1g.10gb`, or `3g.40gb/1c/2c` for a GPU instance that is
    /// split. Each word is one GPU instance. The order does not matter: the places are
    /// looked for until all fit.
    pub fn layout(gpu: &Gpu, words: &[String]) -> Result<Self, LayoutError> {
        let family = gpu
            .profile
            .mig
            .ok_or_else(|| LayoutError::NotCapable(gpu.profile.model.clone()))?;
        let mut wanted = words
            .iter()
            .map(|word| Wanted::parse(family, word))
            .collect::<Result<Vec<_>, _>>()?;
        // Large ones first, which leaves the fewest ways to try; NVML's own order of
        // instances is that of their places.
        wanted
            .sort_by_key(|one| std::cmp::Reverse((one.profile.memory_slices, one.profile.slices)));
        let no_room = || LayoutError::NoRoom(words.join(", "));
        let slices: u32 = wanted.iter().map(|one| one.profile.slices).sum();
        let too_many = |profile: &MigProfile| {
            let count = wanted.iter().filter(|one| one.profile == profile).count();
            u32::try_from(count).is_ok_and(|count| count > profile.instances)
        };
        if slices > family.slices() || family.profiles().iter().any(too_many) {
            return Err(no_room());
        }
        let starts = places(family, &wanted).ok_or_else(no_room)?;
        let mut instances: Vec<_> = wanted
            .iter()
            .zip(starts)
            .map(|(one, start)| one.at(family, start, gpu))
            .collect();
        instances.sort_by_key(|instance| instance.start);
        Ok(Self {
            enabled: true,
            pending: true,
            instances,
        })
    }

    /// The partitions in NVML's order.
    pub fn partitions(&self) -> impl Iterator<Item = (&GpuInstance, &ComputeInstance)> {
        self.instances.iter().flat_map(|instance| {
            let compute = instance.compute_instances.iter();
            compute.map(move |compute| (instance, compute))
        })
    }

    /// The GPU instance of this number.
    #[must_use]
    pub fn instance(&self, id: u32) -> Option<&GpuInstance> {
        self.instances.iter().find(|instance| instance.id == id)
    }

    /// A partition by its numbers.
    #[must_use]
    pub fn partition(&self, partition: Partition) -> Option<(&GpuInstance, &ComputeInstance)> {
        let instance = self.instance(partition.gpu_instance)?;
        let compute = instance.compute(partition.compute_instance)?;
        Some((instance, compute))
    }
}

impl GpuInstance {
    /// The compute instance of this number.
    #[must_use]
    pub fn compute(&self, id: u32) -> Option<&ComputeInstance> {
        self.compute_instances.iter().find(|one| one.id == id)
    }
}

impl Wanted {
    fn parse(family: MigFamily, word: &str) -> Result<Self, LayoutError> {
        let mut parts = word.split('/');
        let name = parts.next().unwrap_or_default();
        let profile = family.named(name).ok_or_else(|| LayoutError::Unknown {
            name: name.to_owned(),
            known: family
                .profiles()
                .iter()
                .map(|profile| profile.name)
                .collect(),
        })?;
        let wrong = || LayoutError::Compute(word.to_owned());
        let mut compute = parts
            .map(|part| {
                let slices = part.strip_suffix('c').and_then(|count| count.parse().ok());
                slices.filter(|slices| profile.takes(*slices))
            })
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(wrong)?;
        if compute.is_empty() {
            compute.push(profile.slices);
        }
        if compute.iter().sum::<u32>() > profile.slices {
            return Err(wrong());
        }
        Ok(Self { profile, compute })
    }

    fn at(&self, family: MigFamily, start: u32, gpu: &Gpu) -> GpuInstance {
        let id = family.instance_id(self.profile, start);
        let mut next = 0;
        let compute_instances = (0_u32..)
            .zip(&self.compute)
            .map(|(number, slices)| {
                let place = next;
                next += slices;
                ComputeInstance {
                    id: number,
                    slices: *slices,
                    start: place,
                    uuid: uuid(gpu, id, number),
                }
            })
            .collect();
        GpuInstance {
            id,
            profile: self.profile.name.to_owned(),
            start,
            compute_instances,
        }
    }
}

/// UUID of a partition, which follows from its card and its numbers.
fn uuid(gpu: &Gpu, instance: u32, compute: u32) -> String {
    let hex = digest(&[
        gpu.uuid.as_bytes(),
        &instance.to_be_bytes(),
        &compute.to_be_bytes(),
    ]);
    format!("MIG-{}", as_uuid(&hex))
}

/// Places at which all of these lie beside each other, where there are any.
fn places(family: MigFamily, wanted: &[Wanted]) -> Option<Vec<u32>> {
    fn search(
        family: MigFamily,
        wanted: &[Wanted],
        taken: u32,
        found: &mut Vec<u32>,
    ) -> Option<()> {
        let Some((first, rest)) = wanted.split_first() else {
            return Some(());
        };
        for start in family.starts(first.profile) {
            let mask = ((1 << first.profile.memory_slices) - 1) << start;
            if taken & mask == 0 {
                found.push(start);
                if search(family, rest, taken | mask, found).is_some() {
                    return Some(());
                }
                found.pop();
            }
        }
        None
    }
    let mut found = Vec::new();
    search(family, wanted, 0, &mut found)?;
    Some(found)
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.gpu_instance, self.compute_instance)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Profile;
    use super::*;

    fn card(profile: &str) -> Gpu {
        Gpu::new(Profile::named(profile).unwrap(), "node", 0)
    }

    fn layout(profile: &str, words: &[&str]) -> Result<Mig, LayoutError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Mig::layout(&card(profile), &words)
    }

    /// Numbers and places of the GPU instances.
    fn shape(profile: &str, words: &[&str]) -> Vec<(u32, u32, String)> {
        let mig = layout(profile, words).unwrap();
        let of = |one: GpuInstance| (one.id, one.start, one.profile);
        mig.instances.into_iter().map(of).collect()
    }

    #[test]
    fn seven_of_the_smallest_fill_a_card() {
        let shape = shape("h100-80gb", &["1g.10gb"; 7]);
        let ids: Vec<_> = shape.iter().map(|(id, start, _)| (*id, *start)).collect();
        assert_eq!(
            ids,
            [(7, 0), (8, 1), (9, 2), (10, 3), (11, 4), (12, 5), (13, 6)]
        );
        assert!(layout("h100-80gb", &["1g.10gb"; 8]).is_err());
    }

    #[test]
    fn every_combination_that_nvidia_documents_for_the_a100_is_found() {
        // The table of the MIG user guide, by slices of multiprocessors.
        let table = [
            "7",
            "4 3",
            "4 2 1",
            "4 1 1 1",
            "3 3",
            "3 2 1",
            "3 1 1 1",
            "2 2 3",
            "2 1 1 3",
            "1 1 2 3",
            "1 1 1 1 3",
            "2 2 2 1",
            "2 1 1 2 1",
            "1 1 2 2 1",
            "2 1 1 1 1 1",
            "1 1 2 1 1 1",
            "1 1 1 1 2 1",
            "1 1 1 1 1 1 1",
        ];
        for line in table {
            let words: Vec<&str> = line
                .split(' ')
                .map(|slices| match slices {
                    "7" => "7g.40gb",
                    "4" => "4g.20gb",
                    "3" => "3g.20gb",
                    "2" => "2g.10gb",
                    _ => "1g.5gb",
                })
                .collect();
            let mig = layout("a100-40gb", &words).unwrap();
            let mut ids: Vec<u32> = mig.instances.iter().map(|one| one.id).collect();
            ids.dedup();
            assert_eq!(ids.len(), words.len(), "{line}");
        }
    }

    #[test]
    fn an_instance_can_be_split_and_names_say_so() {
        let mig = layout("a100-80gb", &["3g.40gb/1c/2c"]).unwrap();
        let names: Vec<_> = mig
            .partitions()
            .map(|(_, one)| (one.id, one.start, A100_80[4].compute_name(one.slices)))
            .collect();
        assert_eq!(
            names,
            [
                (0, 0, "1c.3g.40gb".to_owned()),
                (1, 1, "2c.3g.40gb".to_owned())
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_a_reason() {
        let why = |profile: &str, words: &[&str]| layout(profile, words).unwrap_err().to_string();
        assert!(why("t4", &["1g.5gb"]).contains("Tesla T4 cannot be partitioned"));
        assert!(why("h100-80gb", &["1g.5gb"]).contains("there are 1g.10gb, 1g.10gb+me"));
        assert!(why("h100-80gb", &["7g.80gb", "1g.10gb"]).contains("do not fit"));
        assert!(why("h100-80gb", &["1g.10gb+me"; 2]).contains("do not fit"));
        assert!(why("h100-80gb", &["3g.40gb/2c/2c"]).contains("fit together"));
        assert!(why("h100-80gb", &["3g.40gb/x"]).contains("fit together"));
    }

    #[test]
    fn uuids_follow_from_the_place_on_the_card() {
        let one = layout("h200-141gb", &["3g.71gb", "1g.18gb"]).unwrap();
        let two = layout("h200-141gb", &["1g.18gb", "3g.71gb"]).unwrap();
        assert_eq!(one, two);
        let mut uuids: Vec<_> = one.partitions().map(|(_, one)| &one.uuid).collect();
        uuids.dedup();
        assert_eq!(uuids.len(), 2);
        assert!(uuids[0].starts_with("MIG-") && uuids[0].len() == 40);
    }
}
