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
use crate::inventory::{Gpu, Inventory, Unreadable, Versions};
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
#[error("{0}")]
pub struct OpenError(pub String);

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
    /// The library's names of the cards that were described, by UUID. To ask for a card by its
    /// UUID would ask every card, also one that hangs.
    handles: Mutex<BTreeMap<String, Handle>>,
}

impl Session {
    /// Loads and initialises the library; `sysfs` is where `/sys` is.
    pub fn open(library: &Path, sysfs: &Path) -> Result<Self, OpenError> {
        let nvml = Nvml::builder()
            .lib_path(library.as_os_str())
            .init()
            .map_err(|error| OpenError(why_not_open(library, &error)))?;
        Ok(Self {
            nvml: ManuallyDrop::new(nvml),
            sysfs: sysfs.to_owned(),
            handles: Mutex::default(),
        })
    }

    /// Everything that the driver counts.
    pub fn inventory(&self) -> Result<Inventory, OpenError> {
        let count = self.nvml.device_count().map_err(|error| {
            OpenError(format!(
                "the NVIDIA driver does not count its GPUs: {error}; look at nvidia-smi and the kernel's log"
            ))
        })?;
        let mut inventory = Inventory {
            versions: self.versions(),
            gpus: Vec::new(),
            unreadable: Vec::new(),
        };
        let mut linked = Vec::new();
        for index in 0..count.min(MAX_GPUS) {
            match self.describe(index) {
                Ok((gpu, links)) => {
                    inventory.gpus.push(gpu);
                    linked.push(links);
                }
                Err(error) => inventory.unreadable.push(Unreadable {
                    index,
                    why: error.to_string(),
                }),
            }
        }
        links::connect(&mut inventory.gpus, &linked, &self.nvml);
        Ok(inventory)
    }

    fn versions(&self) -> Versions {
        let cuda = self
            .nvml
            .sys_cuda_driver_version()
            .map(|version| format!("{}.{}", version / 1000, version % 1000 / 10));
        Versions {
            driver: self.nvml.sys_driver_version().unwrap_or_default(),
            cuda: cuda.unwrap_or_default(),
        }
    }

    fn describe(&self, index: u32) -> Result<(Gpu, Linked), NvmlError> {
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
            uuid: uuid.clone(),
            pci_address,
            handle: card.handle,
            ends: links::ends(&card)?,
        };
        self.handles().insert(uuid, card.handle);
        Ok((gpu, linked))
    }

    /// As the kernel says; as the driver says where the kernel does not know the card.
    fn numa_node(&self, card: &Card<'_>, pci_address: &str) -> Option<u32> {
        numa_node(&self.sysfs, pci_address)
            .unwrap_or_else(|_unknown| card.memory_affinity().ok().flatten())
    }

    fn handles(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The card of this UUID, as it was described.
    fn card(&self, uuid: &str) -> Result<Card<'_>, NvmlError> {
        let handle = self.handles().get(uuid).copied();
        Ok(Card {
            nvml: &self.nvml,
            handle: handle.ok_or(NvmlError::NotFound)?,
        })
    }

    /// Listens to these GPUs. The error says what cannot be heard and why.
    pub fn listen(&self, uuids: &[String]) -> Result<Listener<'_>, String> {
        let handles = self.handles();
        let cards: Vec<(String, Handle)> = uuids
            .iter()
            .filter_map(|uuid| Some((uuid.clone(), *handles.get(uuid)?)))
            .collect();
        drop(handles);
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
