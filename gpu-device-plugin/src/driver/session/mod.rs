//! A conversation with the driver's library. Every call here may block for as long as the
//! driver likes, so that they are made on threads of their own.

mod card;
mod links;
mod listener;
mod mig;
mod reading;

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::sysfs::numa_node;
use crate::inventory::{Gpu, Link, Versions};
pub use card::Memory;
use card::{Card, Handle, ask, if_known};
use links::Linked;
pub use listener::{Happened, Heard, Listener};
use mig::Partitions;
pub use reading::{
    Clocks, EccErrors, NVLINK_ERRORS, PartitionReading, Reader, Reading, RecoveryAsked,
    RemappedRows, SlowReading,
};

/// Most GPUs that are looked at.
pub const MAX_GPUS: u32 = 128;

/// Why no conversation with the driver began. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct OpenError {
    /// What is wrong and what to do.
    pub why: String,
    /// Whether the driver is not loaded: every card is initialised anew when it is.
    pub unloaded: bool,
}

impl OpenError {
    pub(super) fn other(why: String) -> Self {
        Self {
            why,
            unloaded: false,
        }
    }
}

/// How each card reaches the others, by its UUID.
pub type Links = BTreeMap<String, Vec<Link>>;

/// Why a GPU could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadError {
    /// The GPU has fallen off the bus or was taken out.
    Lost,
    /// The driver answered with an error that is not about this GPU alone.
    Driver(String),
    /// The driver answered with another error.
    Gpu(String),
}

/// The loaded and initialised library.
#[derive(Debug)]
pub struct Session {
    nvml: ManuallyDrop<Nvml>,
    sysfs: PathBuf,
    /// The cards that were described, with the library's names of them. To ask for a card by
    /// its UUID would ask every card, also one that hangs.
    described: Mutex<Vec<Linked>>,
}

impl Session {
    /// Loads and initialises the library; `sysfs` is where `/sys` is.
    pub fn open(library: &Path, sysfs: &Path) -> Result<Self, OpenError> {
        let nvml = Nvml::builder()
            .lib_path(library.as_os_str())
            .init()
            .map_err(|error| OpenError {
                why: why_not_open(library, &error),
                unloaded: matches!(error, NvmlError::DriverNotLoaded),
            })?;
        Ok(Self {
            nvml: ManuallyDrop::new(nvml),
            sysfs: sysfs.to_owned(),
            described: Mutex::default(),
        })
    }

    /// How many GPUs the driver counts, at most [`MAX_GPUS`].
    pub fn count(&self) -> Result<u32, OpenError> {
        let count = self.nvml.device_count().map_err(|error| {
            OpenError::other(format!(
                "the NVIDIA driver does not count its GPUs: {error}; look at nvidia-smi and the kernel's log"
            ))
        })?;
        Ok(count.min(MAX_GPUS))
    }

    /// The driver's versions.
    #[must_use]
    pub fn versions(&self) -> Versions {
        let cuda = self
            .nvml
            .sys_cuda_driver_version()
            .map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
        Versions {
            driver: self.nvml.sys_driver_version().unwrap_or_default(),
            cuda: cuda.unwrap_or_default(),
        }
    }

    /// Everything about the GPU of this number that does not change all the time, but for its
    /// links. The error is what the driver answered.
    pub fn describe(&self, index: u32) -> Result<Gpu, String> {
        let (gpu, linked) = self.ask(index).map_err(|error| error.to_string())?;
        let mut described = self.described_cards();
        described.retain(|other| other.uuid != linked.uuid);
        described.push(linked);
        // The cards are described all at once, and told in the same order every time.
        described.sort_by_key(|card| card.index);
        Ok(gpu)
    }

    fn ask(&self, index: u32) -> Result<(Gpu, Linked), NvmlError> {
        let card = Card::by_index(&self.nvml, index)?;
        let uuid = card.uuid()?;
        let pci_address = if_known(card.pci_address())?.unwrap_or_default();
        let gpu = Gpu {
            index,
            uuid: uuid.clone(),
            model: card.name()?,
            memory_bytes: card.memory()?.total,
            compute_capability: card.compute_capability()?,
            pci_address: pci_address.clone(),
            minor: ask!(card, nvmlDeviceGetMinorNumber() -> u32)?,
            numa_node: self.numa_node(&card, &pci_address),
            pcie: card.pcie()?,
            ecc_enabled: if_known(card.ecc_enabled())?,
            power_limit_milliwatts: if_known(card.power_limit_milliwatts())?,
            mig: Partitions::default().look(&card)?,
            links: Vec::new(),
        };
        let linked = Linked {
            index,
            uuid,
            pci_address,
            handle: card.handle,
            ends: links::ends(&card)?,
        };
        Ok((gpu, linked))
    }

    /// How many GPUs were described.
    #[must_use]
    pub fn described(&self) -> usize {
        self.described_cards().len()
    }

    /// How the GPUs that were described reach one another.
    #[must_use]
    pub fn links(&self) -> Links {
        let mut cards = self.described_cards().clone();
        // They were described in any order, and the same machine must always say the same.
        cards.sort_by(|one, other| one.pci_address.cmp(&other.pci_address));
        links::between(&cards, &self.nvml)
    }

    /// As the kernel says; as the driver says where the kernel does not know the card.
    fn numa_node(&self, card: &Card<'_>, pci_address: &str) -> Option<u32> {
        numa_node(&self.sysfs, pci_address)
            .unwrap_or_else(|_unknown| card.memory_affinity().ok().flatten())
    }

    fn described_cards(&self) -> MutexGuard<'_, Vec<Linked>> {
        (self.described)
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The card of this UUID, as it was described.
    fn card(&self, uuid: &str) -> Result<Card<'_>, NvmlError> {
        let described = self.described_cards();
        let known = described.iter().find(|card| card.uuid == uuid);
        Ok(Card {
            nvml: &self.nvml,
            handle: known.ok_or(NvmlError::NotFound)?.handle,
        })
    }

    /// Listens to the GPUs that were described. The error says what cannot be heard and why.
    pub fn listen(&self) -> Result<Listener<'_>, String> {
        let cards: Vec<(String, Handle)> = (self.described_cards().iter())
            .map(|card| (card.uuid.clone(), card.handle))
            .collect();
        Listener::new(&self.nvml, &cards)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The wrapper panics where an old library has no nvmlShutdown; such a one stays loaded.
        if self.nvml.lib().nvmlShutdown.is_ok() {
            // SAFETY: dropped here and never used again.
            unsafe { ManuallyDrop::drop(&mut self.nvml) };
        }
    }
}

fn read_error(error: NvmlError) -> ReadError {
    match error {
        NvmlError::GpuLost | NvmlError::NotFound => ReadError::Lost,
        // What a session hears after its driver was reloaded or unloaded.
        NvmlError::Unknown | NvmlError::Uninitialized | NvmlError::DriverNotLoaded => {
            ReadError::Driver(error.to_string())
        }
        other => ReadError::Gpu(other.to_string()),
    }
}

fn why_not_open(library: &Path, error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(source) => format!(
            "no NVIDIA driver: {} cannot be loaded ({source}); install the driver, or name its library with --nvml-library",
            library.display()
        ),
        NvmlError::DriverNotLoaded => {
            "the NVIDIA driver is installed but not loaded; load it (modprobe nvidia) or look at the kernel's log".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was updated but not reloaded; reload its modules or reboot".to_owned()
        }
        NvmlError::NoPermission => {
            "the NVIDIA driver refuses this process; run it privileged, with the driver's device nodes".to_owned()
        }
        other => format!(
            "the NVIDIA driver could not be initialised: {other}; look at nvidia-smi and the kernel's log"
        ),
    }
}
