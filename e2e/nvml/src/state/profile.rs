use nvml_wrapper_sys::bindings as sys;
use serde::{Deserialize, Serialize};

use super::MigFamily;

/// The profile that is used where none is named.
pub const DEFAULT_PROFILE: &str = "rtx-4090";

const MIB: u64 = 1 << 20;

/// What kind of card it is: the answers that never change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Name of the profile, such as `rtx-4090`.
    pub name: String,
    /// The product's name as NVML gives it.
    pub model: String,
    /// NVML's number of the brand.
    pub brand: u32,
    /// NVML's number of the architecture.
    pub architecture: u32,
    /// Memory of the card, in bytes.
    pub memory_bytes: u64,
    /// What the driver keeps of that memory for itself, in bytes.
    pub reserved_memory_bytes: u64,
    /// Major part of the CUDA compute capability.
    pub compute_capability_major: i32,
    /// Minor part of the CUDA compute capability.
    pub compute_capability_minor: i32,
    /// PCI device and vendor in one word.
    pub pci_device_id: u32,
    /// PCI subsystem device and vendor in one word.
    pub pci_subsystem_id: u32,
    /// PCI Express generation that card and slot can do.
    pub pcie_generation: u32,
    /// PCI Express lanes.
    pub pcie_width: u32,
    /// Highest clock of the multiprocessors, in MHz.
    pub max_sm_clock_mhz: u32,
    /// Highest clock of the memory, in MHz.
    pub max_memory_clock_mhz: u32,
    /// Power limit, in milliwatts.
    pub power_limit_milliwatts: u32,
    /// Power drawn when idle, in milliwatts.
    pub idle_power_milliwatts: u32,
    /// Whether error correction is on.
    pub ecc_enabled: bool,
    /// In which ways the card can be partitioned, where it can be.
    #[serde(default)]
    pub mig: Option<MigFamily>,
    /// How many NVLinks it has.
    #[serde(default)]
    pub nvlinks: u32,
    /// NVML's number of their version.
    #[serde(default)]
    pub nvlink_version: u32,
}

impl Profile {
    /// Whether faulty rows of its memory are replaced by spare ones; older cards retire
    /// pages, and cards for players do neither.
    #[must_use]
    pub fn remaps_rows(&self) -> bool {
        self.ecc_enabled && self.architecture >= sys::NVML_DEVICE_ARCH_AMPERE
    }

    /// Whether the card's memory is stacked on it (HBM), as that of all cards that can be
    /// partitioned is. Such cards keep the clock of their memory, their performance state
    /// and their PCIe link when they are idle.
    #[must_use]
    pub fn has_stacked_memory(&self) -> bool {
        self.mig.is_some()
    }

    /// Whether its MIG mode changes without a reset, and its profiles are told without it.
    #[must_use]
    pub fn mig_needs_no_reset(&self) -> bool {
        self.mig.is_some() && self.architecture >= sys::NVML_DEVICE_ARCH_HOPPER
    }

    /// What programs can have of its memory, in bytes.
    #[must_use]
    pub fn usable_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.reserved_memory_bytes)
    }
}

/// No built-in profile has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no GPU profile is called `{name}`; there are {}", Profile::names().join(", "))]
pub struct UnknownProfile {
    /// The name that was asked for.
    pub name: String,
}

impl Profile {
    /// The built-in profile of this name.
    pub fn named(name: &str) -> Result<Self, UnknownProfile> {
        built_in()
            .into_iter()
            .find(|profile| profile.name == name)
            .ok_or_else(|| UnknownProfile {
                name: name.to_owned(),
            })
    }

    /// Names of the built-in profiles.
    #[must_use]
    pub fn names() -> Vec<String> {
        built_in().into_iter().map(|profile| profile.name).collect()
    }
}

/// The built-in profiles: what the cards' own drivers answer, but for the memory of
/// the RTX 4090, which is the nominal 24 GiB (boards answer 24564 MiB).
fn built_in() -> [Profile; 8] {
    [
        rtx_4090(),
        t4(),
        l40s(),
        a30(),
        a100_40gb(),
        a100_80gb(),
        h100_80gb(),
        h200_141gb(),
    ]
}

fn rtx_4090() -> Profile {
    Profile {
        name: DEFAULT_PROFILE.to_owned(),
        model: "NVIDIA GeForce RTX 4090".to_owned(),
        brand: sys::nvmlBrandType_enum_NVML_BRAND_GEFORCE,
        architecture: sys::NVML_DEVICE_ARCH_ADA,
        memory_bytes: 24_576 * MIB,
        reserved_memory_bytes: 346 * MIB,
        compute_capability_major: 8,
        compute_capability_minor: 9,
        pci_device_id: 0x2684_10de,
        pci_subsystem_id: 0x165b_10de,
        pcie_generation: 4,
        pcie_width: 16,
        max_sm_clock_mhz: 3105,
        max_memory_clock_mhz: 10_501,
        power_limit_milliwatts: 450_000,
        idle_power_milliwatts: 21_000,
        ecc_enabled: false,
        mig: None,
        nvlinks: 0,
        nvlink_version: 0,
    }
}

fn t4() -> Profile {
    Profile {
        name: "t4".to_owned(),
        model: "Tesla T4".to_owned(),
        brand: sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA,
        architecture: sys::NVML_DEVICE_ARCH_TURING,
        memory_bytes: 15_360 * MIB,
        reserved_memory_bytes: 447 * MIB,
        compute_capability_major: 7,
        compute_capability_minor: 5,
        pci_device_id: 0x1eb8_10de,
        pci_subsystem_id: 0x12a2_10de,
        pcie_generation: 3,
        pcie_width: 16,
        max_sm_clock_mhz: 1590,
        max_memory_clock_mhz: 5001,
        power_limit_milliwatts: 70_000,
        idle_power_milliwatts: 9_800,
        ecc_enabled: true,
        mig: None,
        nvlinks: 0,
        nvlink_version: 0,
    }
}

fn l40s() -> Profile {
    Profile {
        name: "l40s".to_owned(),
        model: "NVIDIA L40S".to_owned(),
        brand: sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA,
        architecture: sys::NVML_DEVICE_ARCH_ADA,
        memory_bytes: 46_068 * MIB,
        reserved_memory_bytes: 594 * MIB,
        compute_capability_major: 8,
        compute_capability_minor: 9,
        pci_device_id: 0x26b9_10de,
        pci_subsystem_id: 0x1851_10de,
        pcie_generation: 4,
        pcie_width: 16,
        max_sm_clock_mhz: 2520,
        max_memory_clock_mhz: 9001,
        power_limit_milliwatts: 350_000,
        idle_power_milliwatts: 33_000,
        ecc_enabled: true,
        mig: None,
        nvlinks: 0,
        nvlink_version: 0,
    }
}

fn a100_80gb() -> Profile {
    Profile {
        name: "a100-80gb".to_owned(),
        model: "NVIDIA A100-SXM4-80GB".to_owned(),
        brand: sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA,
        architecture: sys::NVML_DEVICE_ARCH_AMPERE,
        memory_bytes: 81_920 * MIB,
        reserved_memory_bytes: 869 * MIB,
        compute_capability_major: 8,
        compute_capability_minor: 0,
        pci_device_id: 0x20b2_10de,
        pci_subsystem_id: 0x1463_10de,
        pcie_generation: 4,
        pcie_width: 16,
        max_sm_clock_mhz: 1410,
        max_memory_clock_mhz: 1593,
        power_limit_milliwatts: 400_000,
        idle_power_milliwatts: 61_000,
        ecc_enabled: true,
        mig: Some(MigFamily::A100_80),
        nvlinks: 12,
        nvlink_version: sys::nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_3_0,
    }
}

fn h100_80gb() -> Profile {
    Profile {
        name: "h100-80gb".to_owned(),
        model: "NVIDIA H100 80GB HBM3".to_owned(),
        brand: sys::nvmlBrandType_enum_NVML_BRAND_NVIDIA,
        architecture: sys::NVML_DEVICE_ARCH_HOPPER,
        memory_bytes: 81_559 * MIB,
        reserved_memory_bytes: 548 * MIB,
        compute_capability_major: 9,
        compute_capability_minor: 0,
        pci_device_id: 0x2330_10de,
        pci_subsystem_id: 0x16c1_10de,
        pcie_generation: 5,
        pcie_width: 16,
        max_sm_clock_mhz: 1980,
        max_memory_clock_mhz: 2619,
        power_limit_milliwatts: 700_000,
        idle_power_milliwatts: 69_000,
        ecc_enabled: true,
        mig: Some(MigFamily::H100),
        nvlinks: 18,
        nvlink_version: sys::nvmlNvlinkVersion_enum_NVML_NVLINK_VERSION_4_0,
    }
}

fn a30() -> Profile {
    Profile {
        name: "a30".to_owned(),
        model: "NVIDIA A30".to_owned(),
        memory_bytes: 24_576 * MIB,
        reserved_memory_bytes: 355 * MIB,
        pci_device_id: 0x20b7_10de,
        pci_subsystem_id: 0x1532_10de,
        max_sm_clock_mhz: 1440,
        max_memory_clock_mhz: 1215,
        power_limit_milliwatts: 165_000,
        idle_power_milliwatts: 28_000,
        mig: Some(MigFamily::A30),
        nvlinks: 4,
        ..a100_80gb()
    }
}

fn a100_40gb() -> Profile {
    Profile {
        name: "a100-40gb".to_owned(),
        model: "NVIDIA A100-SXM4-40GB".to_owned(),
        memory_bytes: 40_960 * MIB,
        reserved_memory_bytes: 455 * MIB,
        pci_device_id: 0x20b0_10de,
        pci_subsystem_id: 0x134f_10de,
        max_memory_clock_mhz: 1215,
        idle_power_milliwatts: 52_000,
        mig: Some(MigFamily::A100_40),
        ..a100_80gb()
    }
}

fn h200_141gb() -> Profile {
    Profile {
        name: "h200-141gb".to_owned(),
        model: "NVIDIA H200".to_owned(),
        memory_bytes: 143_771 * MIB,
        reserved_memory_bytes: 614 * MIB,
        pci_device_id: 0x2335_10de,
        pci_subsystem_id: 0x18be_10de,
        max_memory_clock_mhz: 3201,
        idle_power_milliwatts: 76_000,
        mig: Some(MigFamily::H200),
        ..h100_80gb()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_profile_is_refused_with_the_names_that_exist() {
        let refused = Profile::named("rtx-9999").unwrap_err().to_string();
        assert_eq!(
            refused,
            "no GPU profile is called `rtx-9999`; there are rtx-4090, t4, l40s, a30, a100-40gb, a100-80gb, h100-80gb, h200-141gb"
        );
    }

    #[test]
    fn every_profile_is_found_by_its_own_name() {
        for name in Profile::names() {
            assert_eq!(Profile::named(&name).unwrap().name, name);
        }
    }
}
