//! What the stand-in library answers: a JSON file that people and programs may
//! change while the library is loaded.
//!
//! The file lies beside the library under the name [`FILE_NAME`]. It is always
//! replaced as a whole, so that no reader ever sees half of it.

mod code;
mod fault;
mod gpu;
mod mig;
mod profile;
mod store;
mod topology;

pub use code::{Code, UnknownCode};
pub use fault::{FAULTS, Fault, FaultError, LinkChoice};
pub use gpu::{
    Ecc, ErrorCounts, Gpu, Partition, Pcie, Process, ProcessKind, RemappedRows, RetiredPage,
};
pub(crate) use mig::COMPUTE_PROFILES;
pub use mig::{ComputeInstance, GpuInstance, LayoutError, Mig, MigFamily, MigProfile};
pub use profile::{DEFAULT_PROFILE, Profile, UnknownProfile};
pub use store::StoreError;
pub use topology::{Layout, Link, MachineError, Nearness, Place, Remote};

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Name of the state file, in the directory of the library.
pub const FILE_NAME: &str = "nvml-stand-in.json";

/// Most GPUs that a state may hold.
pub const MAX_GPUS: usize = 128;

/// Most events that are kept. Older ones are dropped, as the driver does when
/// nobody fetches them: it queues a bounded number for each listener. How many is not
/// documented; this is more than anybody should leave there.
pub const MAX_EVENTS: usize = 4096;

/// Most processes that a card may have.
pub const MAX_PROCESSES: usize = 1024;

/// Everything that the library knows: the driver, its GPUs and what happened to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct State {
    /// Text that the UUIDs and serial numbers follow from, usually the node's name.
    pub seed: String,
    /// The driver as a whole.
    pub driver: Driver,
    /// The GPUs in NVML's order, that of their PCI addresses. Removed ones stay in
    /// the list, so that an index here always means the same card.
    pub gpus: Vec<Gpu>,
    /// What happened, oldest first, at most [`MAX_EVENTS`].
    #[serde(default)]
    pub events: VecDeque<Event>,
    /// Number of the event that happens next; it only ever rises.
    #[serde(default)]
    pub next_event: u64,
}

/// The driver's versions and whether it is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Driver {
    /// Version of the kernel driver, such as `570.133.20`.
    pub version: String,
    /// Version of NVML, which is the CUDA major version and the driver's.
    pub nvml_version: String,
    /// CUDA version as NVML counts it: 1000 times the major plus 10 times the minor.
    pub cuda_version: i32,
    /// Whether the kernel driver is loaded; without it, initialisation is refused.
    pub loaded: bool,
    /// How often the driver was loaded. A session from before a reload is dead.
    pub loads: u64,
    /// What initialisation is refused with although the driver is loaded.
    #[serde(default)]
    pub init_error: Option<Code>,
    /// What single functions do instead of answering, by their name.
    #[serde(default)]
    pub functions: BTreeMap<String, Misbehaviour>,
}

/// What a function does instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Misbehaviour {
    /// How long it takes, in milliseconds.
    #[serde(default)]
    pub hang_ms: u64,
    /// What it returns after that; absent where it then answers.
    #[serde(default)]
    pub code: Option<Code>,
}

impl Default for Driver {
    fn default() -> Self {
        Self {
            version: "570.133.20".to_owned(),
            nvml_version: "12.570.133.20".to_owned(),
            cuda_version: 12_080,
            loaded: true,
            loads: 1,
            init_error: None,
            functions: BTreeMap::new(),
        }
    }
}

/// Something that happened to a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Event {
    /// Number of the event.
    pub sequence: u64,
    /// UUID of the card.
    pub uuid: String,
    /// What it was.
    pub kind: EventKind,
    /// The XID, or what else NVML's documentation says of this kind.
    pub data: u64,
    /// The GPU instance that it happened in, where it happened in one.
    #[serde(default)]
    pub gpu_instance: Option<u32>,
    /// The compute instance that it happened in, where it happened in one.
    #[serde(default)]
    pub compute_instance: Option<u32>,
}

/// The kinds of events that the library reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// An XID, named by the event's data.
    Xid,
    /// A corrected ECC error.
    SingleBitEcc,
    /// An uncorrected ECC error.
    DoubleBitEcc,
    /// Another performance state, named by the event's data.
    PState,
    /// Other clocks.
    Clock,
    /// Another partition of the card.
    MigConfig,
}

impl EventKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Xid,
        Self::SingleBitEcc,
        Self::DoubleBitEcc,
        Self::PState,
        Self::Clock,
        Self::MigConfig,
    ];

    /// Its name, as faults are written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xid => "xid",
            Self::SingleBitEcc => "single-bit-ecc",
            Self::DoubleBitEcc => "double-bit-ecc",
            Self::PState => "pstate",
            Self::Clock => "clock",
            Self::MigConfig => "mig-config",
        }
    }
}

impl State {
    /// A machine with `count` cards of the built-in profile `name`.
    ///
    /// The same arguments always give the same state, UUIDs included.
    pub fn from_profile(name: &str, count: usize, seed: &str) -> Result<Self, UnknownProfile> {
        let profile = Profile::named(name)?;
        Ok(Self::new(&profile, count, seed))
    }

    /// A machine with `count` cards of this profile, at most [`MAX_GPUS`].
    #[must_use]
    pub fn new(profile: &Profile, count: usize, seed: &str) -> Self {
        let mut state = Self {
            seed: seed.to_owned(),
            driver: Driver::default(),
            gpus: Vec::new(),
            events: VecDeque::new(),
            next_event: 0,
        };
        for _ in 0..count.min(MAX_GPUS) {
            state.plug_in(profile.clone());
        }
        state
    }

    /// Puts one more card into the machine, behind those that are there.
    pub(crate) fn plug_in(&mut self, profile: Profile) {
        // Counts up to MAX_GPUS, so it always fits.
        let index = u32::try_from(self.gpus.len()).unwrap_or(u32::MAX);
        self.gpus.push(Gpu::new(profile, &self.seed, index));
    }

    /// Writes down that something happened to a card, and drops the oldest events.
    pub(crate) fn record(&mut self, uuid: &str, kind: EventKind, data: u64) {
        self.record_in(uuid, kind, data, None, None);
    }

    /// As [`State::record`], in a partition of the card.
    pub(crate) fn record_in(
        &mut self,
        uuid: &str,
        kind: EventKind,
        data: u64,
        gpu_instance: Option<u32>,
        compute_instance: Option<u32>,
    ) {
        while self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            sequence: self.next_event,
            uuid: uuid.to_owned(),
            kind,
            data,
            gpu_instance,
            compute_instance,
        });
        self.next_event += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_cards_and_another_seed_gives_others() {
        let first = State::from_profile(DEFAULT_PROFILE, 4, "node-a").unwrap();
        let again = State::from_profile(DEFAULT_PROFILE, 4, "node-a").unwrap();
        let other = State::from_profile(DEFAULT_PROFILE, 4, "node-b").unwrap();
        assert_eq!(first, again);
        let mut uuids: Vec<_> = first
            .gpus
            .iter()
            .chain(&other.gpus)
            .map(|gpu| &gpu.uuid)
            .collect();
        uuids.sort();
        uuids.dedup();
        assert_eq!(uuids.len(), 8);
        assert_eq!(first.gpus[1].pci_address(), "00000000:02:00.0");
        assert_eq!(first.gpus[0].uuid.len(), "GPU-".len() + 36);
    }

    #[test]
    fn old_events_are_dropped_and_numbers_still_rise() {
        let mut state = State::from_profile("t4", 1, "node").unwrap();
        for code in 0..5_000 {
            state.record("GPU-x", EventKind::Xid, code);
        }
        assert_eq!(state.events.len(), MAX_EVENTS);
        assert_eq!(state.events.back().map(|event| event.sequence), Some(4_999));
    }
}
