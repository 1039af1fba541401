//! A conversation with the driver's library. Every call here may block for as long as the
//! driver likes, so that they are made on threads of their own.

use std::mem::ManuallyDrop;
use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::{EccCounter, MemoryError, TemperatureSensor};
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use crate::inventory::{Gpu, Inventory, Unreadable, Versions};

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

/// What a GPU says of itself at the moment; what it does not know is absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reading {
    /// Temperature of the die, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power drawn, in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// Share of the last moments in which a kernel ran, in percent.
    pub utilization_percent: Option<u32>,
    /// Memory in use, in bytes.
    pub memory_used_bytes: Option<u64>,
    /// Uncorrected ECC errors since the driver was loaded.
    pub uncorrected_ecc_errors: Option<u64>,
}

/// Something that the driver reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The GPU's UUID.
    pub uuid: String,
    /// The XID.
    pub xid: u64,
}

/// The loaded and initialised library.
#[derive(Debug)]
pub struct Session {
    nvml: ManuallyDrop<Nvml>,
}

impl Session {
    /// Loads and initialises the library.
    pub fn open(library: &Path) -> Result<Self, OpenError> {
        let nvml = Nvml::builder()
            .lib_path(library.as_os_str())
            .init()
            .map_err(|error| OpenError(why_not_open(library, &error)))?;
        Ok(Self {
            nvml: ManuallyDrop::new(nvml),
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
        for index in 0..count.min(MAX_GPUS) {
            match self.describe(index) {
                Ok(gpu) => inventory.gpus.push(gpu),
                Err(error) => inventory.unreadable.push(Unreadable {
                    index,
                    why: error.to_string(),
                }),
            }
        }
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

    fn describe(&self, index: u32) -> Result<Gpu, NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let capability = device.cuda_compute_capability()?;
        Ok(Gpu {
            index,
            uuid: device.uuid()?,
            model: device.name()?,
            memory_bytes: memory(&device)?.total,
            compute_capability: format!("{}.{}", capability.major, capability.minor),
            pci_address: device.pci_info().map(|pci| pci.bus_id).unwrap_or_default(),
            minor: device.minor_number()?,
            ..Gpu::default()
        })
    }

    /// What this GPU says of itself now.
    pub fn read(&self, uuid: &str) -> Result<Reading, ReadError> {
        let device = self.nvml.device_by_uuid(uuid).map_err(read_error)?;
        // Every card answers this one: it tells whether the card is there at all.
        let memory_used_bytes = memory(&device).map_err(read_error)?.used;
        let ecc = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
        Ok(Reading {
            temperature_celsius: if_known(device.temperature(TemperatureSensor::Gpu))?,
            power_milliwatts: if_known(device.power_usage())?,
            utilization_percent: if_known(device.utilization_rates())?.map(|rates| rates.gpu),
            memory_used_bytes: Some(memory_used_bytes),
            uncorrected_ecc_errors: if_known(ecc)?,
        })
    }

    /// Listens to these GPUs. The error says what cannot be heard and why.
    pub fn listen(&self, uuids: &[String]) -> Result<Listener<'_>, String> {
        Listener::new(&self.nvml, uuids)
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

/// A GPU's memory, total and used, in bytes.
struct Memory {
    total: u64,
    used: u64,
}

/// Asks in the newer way, and in the older one where the library is too old for it.
fn memory(device: &nvml_wrapper::Device<'_>) -> Result<Memory, NvmlError> {
    match device.memory_info() {
        Ok(memory) => Ok(Memory {
            total: memory.total,
            used: memory.used,
        }),
        Err(NvmlError::FailedToLoadSymbol(_)) => {
            let ask = nvml_sym(device.nvml().lib().nvmlDeviceGetMemoryInfo.as_ref())?;
            let mut memory = sys::nvmlMemory_t {
                total: 0,
                free: 0,
                used: 0,
            };
            // SAFETY: the handle belongs to this library, and `memory` lives through the call.
            nvml_try(unsafe { ask(device.handle(), &raw mut memory) })?;
            Ok(Memory {
                total: memory.total,
                used: memory.used,
            })
        }
        Err(error) => Err(error),
    }
}

/// Absent where the GPU or the library does not know; an error where the GPU is lost.
fn if_known<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, ReadError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::GpuLost) => Err(ReadError::Lost),
        Err(_) => Ok(None),
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

/// A set of events of some GPUs.
///
/// Made of the library's own calls: the wrapper's set panics on drop where an old library
/// cannot free it, and its events do not tell one GPU from another once that GPU is lost.
pub struct Listener<'session> {
    nvml: &'session Nvml,
    set: sys::nvmlEventSet_t,
    uuids: Vec<(sys::nvmlDevice_t, String)>,
}

/// What waiting gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// An XID.
    Xid(Happened),
    /// Something else, or nothing in time.
    Nothing,
    /// One of the GPUs is lost: this set is of no use any more.
    Lost,
}

impl<'session> Listener<'session> {
    fn new(nvml: &'session Nvml, uuids: &[String]) -> Result<Self, String> {
        let cannot = |error: NvmlError| format!("the driver reports no events: {error}");
        let create = nvml_sym(nvml.lib().nvmlEventSetCreate.as_ref()).map_err(cannot)?;
        let mut set = std::ptr::null_mut();
        // SAFETY: `set` lives through the call.
        nvml_try(unsafe { create(&raw mut set) }).map_err(cannot)?;
        // From here on the set is freed when this function fails.
        let mut listener = Self {
            nvml,
            set,
            uuids: Vec::new(),
        };
        let register = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref()).map_err(cannot)?;
        for uuid in uuids {
            let device = match nvml.device_by_uuid(uuid.as_str()) {
                Ok(device) => device,
                // Its reading says so; the others are listened to.
                Err(NvmlError::GpuLost | NvmlError::NotFound) => continue,
                Err(error) => return Err(cannot(error)),
            };
            // SAFETY: the handle is only given back to the library that made it.
            let handle = unsafe { device.handle() };
            let types = u64::from(sys::nvmlEventTypeXidCriticalError);
            // SAFETY: handle and set belong to this library.
            match nvml_try(unsafe { register(handle, types, set) }) {
                Ok(()) => listener.uuids.push((handle, uuid.clone())),
                Err(NvmlError::GpuLost) => {}
                Err(error) => {
                    return Err(format!("the driver reports no events of {uuid}: {error}"));
                }
            }
        }
        Ok(listener)
    }

    /// How many GPUs are heard.
    #[must_use]
    pub fn hears(&self) -> usize {
        self.uuids.len()
    }

    /// Waits for the next event, at most so many milliseconds.
    pub fn wait(&self, limit_ms: u32) -> Result<Heard, String> {
        let cannot = |error: NvmlError| format!("the driver stopped reporting events: {error}");
        let wait = nvml_sym(self.nvml.lib().nvmlEventSetWait_v2.as_ref()).map_err(cannot)?;
        // SAFETY: an all-zero event is a valid one.
        let mut event: sys::nvmlEventData_t = unsafe { std::mem::zeroed() };
        // SAFETY: the set belongs to this library, and `event` lives through the call.
        match nvml_try(unsafe { wait(self.set, &raw mut event, limit_ms) }) {
            Ok(()) => Ok(self.understand(&event)),
            Err(NvmlError::Timeout) => Ok(Heard::Nothing),
            Err(NvmlError::GpuLost) => Ok(Heard::Lost),
            Err(error) => Err(cannot(error)),
        }
    }

    fn understand(&self, event: &sys::nvmlEventData_t) -> Heard {
        let known = self
            .uuids
            .iter()
            .find(|(handle, _)| *handle == event.device);
        match known {
            Some((_, uuid))
                if event.eventType & u64::from(sys::nvmlEventTypeXidCriticalError) != 0 =>
            {
                Heard::Xid(Happened {
                    uuid: uuid.clone(),
                    xid: event.eventData,
                })
            }
            _ => Heard::Nothing,
        }
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        if let Ok(free) = self.nvml.lib().nvmlEventSetFree.as_ref() {
            // SAFETY: the set belongs to this library and is not used again. That it cannot
            // be freed changes nothing for us.
            unsafe { free(self.set) };
        }
    }
}
