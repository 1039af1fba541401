//! What the stand-in library answers: a JSON file that people and programs may
//! change while the library is loaded.
//!
//! The file lies beside the library under the name [`FILE_NAME`]. It is always
//! replaced as a whole, so that no reader ever sees half of it.

mod fault;
mod profile;
mod store;

pub use fault::{Fault, FaultError};
pub use profile::{DEFAULT_PROFILE, Profile, UnknownProfile};
pub use store::StoreError;

use std::collections::VecDeque;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Name of the state file, in the directory of the library.
pub const FILE_NAME: &str = "nvml-stand-in.json";

/// Most GPUs that a state may hold.
pub const MAX_GPUS: usize = 128;

/// Most events that are kept. Older ones are dropped, as the driver does when
/// nobody fetches them.
pub const MAX_EVENTS: usize = 4096;

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
}

impl Default for Driver {
    fn default() -> Self {
        Self {
            version: "570.133.20".to_owned(),
            nvml_version: "12.570.133.20".to_owned(),
            cuda_version: 12_080,
            loaded: true,
            loads: 1,
        }
    }
}

/// One card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gpu {
    /// `GPU-` and a UUID.
    pub uuid: String,
    /// Serial number of the board.
    pub serial: String,
    /// N of `/dev/nvidiaN`.
    pub minor: u32,
    /// PCI domain.
    pub pci_domain: u32,
    /// PCI bus.
    pub pci_bus: u32,
    /// PCI device on the bus.
    pub pci_device: u32,
    /// What kind of card it is.
    pub profile: Profile,
    /// Whether the card is in the machine.
    pub present: bool,
    /// Whether the card has fallen off the bus: every question about it is answered
    /// by `NVML_ERROR_GPU_IS_LOST`.
    pub lost: bool,
    /// How long every question about this card takes, in milliseconds.
    pub hang_ms: u64,
    /// Uncorrected ECC errors since the driver was loaded.
    pub ecc_uncorrected: u64,
    /// Memory in use, in bytes.
    pub memory_used_bytes: u64,
    /// Temperature of the die, in degrees Celsius.
    pub temperature_celsius: u32,
    /// Power drawn now, in milliwatts.
    pub power_milliwatts: u32,
    /// Share of the last second in which a kernel ran, in percent.
    pub utilization_percent: u32,
    /// Share of the last second in which memory was read or written, in percent.
    pub memory_utilization_percent: u32,
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
    /// The XID, or 0.
    pub data: u64,
}

/// The kinds of events that the library reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// An XID, named by the event's data.
    Xid,
    /// An uncorrected ECC error.
    DoubleBitEcc,
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
        while self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(Event {
            sequence: self.next_event,
            uuid: uuid.to_owned(),
            kind,
            data,
        });
        self.next_event += 1;
    }
}

impl Gpu {
    /// A healthy, idle card. UUID and serial number follow from seed and index.
    #[must_use]
    pub fn new(profile: Profile, seed: &str, index: u32) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.as_bytes())
            // No text contains this byte, so that no two seeds run together.
            .chain_update([0xff])
            .chain_update(index.to_be_bytes())
            .finalize();
        let hex = digest.iter().fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let serial = u64::from_str_radix(&hex[32..42], 16).unwrap_or(0);
        Self {
            uuid: format!(
                "GPU-{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..32]
            ),
            serial: format!("{serial:013}"),
            minor: index,
            pci_domain: 0,
            pci_bus: index + 1,
            pci_device: 0,
            present: true,
            lost: false,
            hang_ms: 0,
            ecc_uncorrected: 0,
            memory_used_bytes: 0,
            temperature_celsius: 34,
            power_milliwatts: profile.idle_power_milliwatts,
            utilization_percent: 0,
            memory_utilization_percent: 0,
            profile,
        }
    }

    /// The PCI address as NVML writes it, `00000000:01:00.0`.
    #[must_use]
    pub fn pci_address(&self) -> String {
        format!(
            "{:08X}:{:02X}:{:02X}.0",
            self.pci_domain, self.pci_bus, self.pci_device
        )
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
