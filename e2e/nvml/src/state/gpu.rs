use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Link, Mig, Misbehaviour, Place, Profile};

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
    /// Where in the machine it sits.
    #[serde(default)]
    pub place: Place,
    /// Its NVLinks, by their number.
    #[serde(default)]
    pub links: Vec<Link>,
    /// How it is partitioned.
    #[serde(default)]
    pub mig: Mig,
    /// Whether the card is in the machine.
    pub present: bool,
    /// Whether the card has fallen off the bus: every question about it is answered
    /// by `NVML_ERROR_GPU_IS_LOST`.
    pub lost: bool,
    /// How long every question about this card takes, in milliseconds.
    pub hang_ms: u64,
    /// What single functions do instead of answering for this card, by their name.
    #[serde(default)]
    pub functions: BTreeMap<String, Misbehaviour>,
    /// Its errors of memory.
    #[serde(default)]
    pub ecc: Ecc,
    /// Rows of memory that were replaced by spare ones.
    #[serde(default)]
    pub remapped_rows: RemappedRows,
    /// Pages of memory that are not used any more, on cards that cannot remap rows.
    #[serde(default)]
    pub retired_pages: Vec<RetiredPage>,
    /// What holds the clocks down: NVML's `nvmlClocksEventReason` bits. That an idle card
    /// is idle need not be said here.
    #[serde(default)]
    pub clocks_event_reasons: u64,
    /// For how long the power limit has held the clocks down, in nanoseconds.
    #[serde(default)]
    pub power_violation_ns: u64,
    /// For how long heat has held the clocks down, in nanoseconds.
    #[serde(default)]
    pub thermal_violation_ns: u64,
    /// The PCI Express link.
    #[serde(default)]
    pub pcie: Pcie,
    /// What runs on the card.
    #[serde(default)]
    pub processes: Vec<Process>,
    /// Memory in use beside that of `processes`, in bytes.
    pub memory_used_bytes: u64,
    /// Temperature of the die, in degrees Celsius.
    pub temperature_celsius: u32,
    /// Power drawn now, in milliwatts.
    pub power_milliwatts: u32,
    /// Power limit now, in milliwatts; the profile has the default.
    pub power_limit_milliwatts: u32,
    /// Energy used since the driver was loaded, in millijoules.
    #[serde(default)]
    pub energy_millijoules: u64,
    /// Share of the last second in which a kernel ran, in percent.
    pub utilization_percent: u32,
    /// Share of the last second in which memory was read or written, in percent.
    pub memory_utilization_percent: u32,
    /// Share of the last moments in which the video encoder worked, in percent.
    #[serde(default)]
    pub encoder_percent: u32,
    /// Share of the last moments in which the video decoder worked, in percent.
    #[serde(default)]
    pub decoder_percent: u32,
    /// How often the card was reset.
    #[serde(default)]
    pub resets: u64,
}

/// Errors of memory since the driver was loaded, and over the card's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ecc {
    /// Since the driver was loaded or the card was reset.
    pub volatile: ErrorCounts,
    /// Over the card's life.
    pub aggregate: ErrorCounts,
}

/// Errors of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ErrorCounts {
    /// Those that were put right.
    pub corrected: u64,
    /// Those that were not.
    pub uncorrected: u64,
}

/// Rows of memory that were replaced by spare ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemappedRows {
    /// Because of corrected errors.
    pub correctable: u32,
    /// Because of uncorrected errors.
    pub uncorrectable: u32,
    /// Whether a row waits for the next reset to be replaced.
    pub pending: bool,
    /// Whether a row could not be replaced.
    pub failed: bool,
}

/// A page of memory that is not used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetiredPage {
    /// Where it is.
    pub address: u64,
    /// Whether one uncorrected error was the reason, and not several corrected ones.
    pub double_bit: bool,
    /// Whether it waits for the next reset to be retired.
    pub pending: bool,
}

/// The PCI Express link of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Pcie {
    /// The generation now, where it is not what the load would make it.
    pub generation: Option<u32>,
    /// The lanes now, where they are not all.
    pub width: Option<u32>,
    /// Packets that were sent again.
    pub replays: u32,
    /// Data that the card sends, in KiB in a second.
    pub sent_kib_per_second: u32,
    /// Data that the card receives, in KiB in a second.
    pub received_kib_per_second: u32,
}

/// A process that uses a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Process {
    /// Its process id, as the host counts.
    pub pid: u32,
    /// In which of NVML's lists it is.
    pub kind: ProcessKind,
    /// Memory of the card that it uses, in bytes; absent where the driver does not know.
    pub memory_bytes: Option<u64>,
    /// In which partition it runs.
    #[serde(default)]
    pub partition: Option<Partition>,
}

/// The lists of processes that NVML keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProcessKind {
    /// With a compute context.
    Compute,
    /// With a graphics context.
    Graphics,
    /// A client of CUDA's multi-process service.
    Mps,
}

/// A compute instance in a GPU instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Partition {
    /// Number of the GPU instance.
    pub gpu_instance: u32,
    /// Number of the compute instance in it.
    pub compute_instance: u32,
}

impl Gpu {
    /// A healthy, idle card. UUID and serial number follow from seed and index.
    #[must_use]
    pub fn new(profile: Profile, seed: &str, index: u32) -> Self {
        let hex = digest(&[seed.as_bytes(), &index.to_be_bytes()]);
        let serial = u64::from_str_radix(&hex[32..42], 16).unwrap_or(0);
        Self {
            uuid: format!("GPU-{}", as_uuid(&hex)),
            serial: format!("{serial:013}"),
            minor: index,
            pci_domain: 0,
            pci_bus: index + 1,
            pci_device: 0,
            place: Place::default(),
            links: Vec::new(),
            mig: Mig::default(),
            present: true,
            lost: false,
            hang_ms: 0,
            functions: BTreeMap::new(),
            ecc: Ecc::default(),
            remapped_rows: RemappedRows::default(),
            retired_pages: Vec::new(),
            clocks_event_reasons: 0,
            power_violation_ns: 0,
            thermal_violation_ns: 0,
            pcie: Pcie::default(),
            processes: Vec::new(),
            memory_used_bytes: 0,
            temperature_celsius: 34,
            power_milliwatts: profile.idle_power_milliwatts,
            power_limit_milliwatts: profile.power_limit_milliwatts,
            energy_millijoules: 0,
            utilization_percent: 0,
            memory_utilization_percent: 0,
            encoder_percent: 0,
            decoder_percent: 0,
            resets: 0,
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

    /// Memory in use on the whole card, or by the processes of a partition, in bytes.
    #[must_use]
    pub fn used_bytes(&self, partition: Option<Partition>) -> u64 {
        let own = if partition.is_none() {
            self.memory_used_bytes
        } else {
            0
        };
        self.processes
            .iter()
            .filter(|process| partition.is_none() || process.partition == partition)
            .filter_map(|process| process.memory_bytes)
            .fold(own, u64::saturating_add)
    }

    /// What is wrong with the card, each in a word or two.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let down = self.links.iter().filter(|link| !link.up).count();
        let named = [
            (!self.present, "removed"),
            (self.lost, "lost"),
            (self.hang_ms > 0, "hangs"),
            (self.ecc.volatile.uncorrected > 0, "uncorrected errors"),
            (self.remapped_rows.pending, "remap pending"),
            (self.remapped_rows.failed, "remap failed"),
            (
                self.retired_pages.iter().any(|page| page.pending),
                "pages pending",
            ),
            (self.clocks_event_reasons != 0, "throttled"),
        ];
        let own = named
            .iter()
            .filter(|(is_so, _)| *is_so)
            .map(|(_, name)| (*name).to_owned());
        own.chain((down > 0).then(|| format!("{down} NVLinks down")))
            .chain(self.functions.keys().cloned())
            .collect()
    }

    /// Whether anything runs on the card.
    pub(crate) fn is_busy(&self) -> bool {
        self.utilization_percent > 0
    }

    /// What a reset of the card does: counters and pending changes, not what is broken.
    pub(crate) fn reset(&mut self) {
        self.ecc.volatile = ErrorCounts::default();
        self.remapped_rows.pending = false;
        for page in &mut self.retired_pages {
            page.pending = false;
        }
        self.clocks_event_reasons = 0;
        self.processes.clear();
        self.memory_used_bytes = 0;
        self.utilization_percent = 0;
        self.memory_utilization_percent = 0;
        self.power_milliwatts = self.profile.idle_power_milliwatts;
        self.pcie.replays = 0;
        for link in &mut self.links {
            link.replays = 0;
            link.recoveries = 0;
            link.crc_errors = 0;
        }
        // Instances live in the card and go with a reset; the mode that waited comes.
        self.mig.enabled = self.mig.pending;
        self.mig.instances.clear();
        self.resets += 1;
    }
}

/// Hexadecimal digits that follow from these parts, as many as of a SHA-256.
pub(super) fn digest(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for (number, part) in parts.iter().enumerate() {
        if number > 0 {
            // No text contains this byte, so that no two run together.
            digest.update([0xff]);
        }
        digest.update(part);
    }
    digest
        .finalize()
        .iter()
        .fold(String::new(), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

/// The first 32 of these digits in the groups of a UUID.
pub(super) fn as_uuid(hex: &str) -> String {
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..32]
    )
}
