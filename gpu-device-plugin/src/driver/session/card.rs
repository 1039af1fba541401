//! Questions to one card, each answered or not: whatever an old library or an old card cannot
//! say is an error of its own.

use std::ffi::{CStr, c_char};

use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use crate::inventory::PcieLink;

/// The library's name of a card or a partition, for as long as the session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle(pub(super) sys::nvmlDevice_t);

// SAFETY: only ever given back to the library, which may be called from every thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// A card or a partition.
#[derive(Clone, Copy)]
pub(super) struct Card<'session> {
    pub(super) nvml: &'session Nvml,
    pub(super) handle: Handle,
}

/// Calls a function of the library for a card: `call!(card, function(arguments))`.
macro_rules! call {
    ($card:expr, $function:ident($($argument:expr),*)) => {
        nvml_wrapper::error::nvml_sym($card.nvml.lib().$function.as_ref()).and_then(|function| {
            // SAFETY: the handle belongs to this library, and every pointer that is passed is
            // to a place that lives through the call and is as large as the function expects.
            nvml_wrapper::error::nvml_try(unsafe { function($card.handle.0, $($argument),*) })
        })
    };
}

/// The same for a function that writes its answer to where its last argument points.
macro_rules! ask {
    ($card:expr, $function:ident($($argument:expr),*) -> $answer:ty) => {{
        let mut answer = <$answer>::default();
        $crate::driver::session::card::call!($card, $function($($argument,)* &raw mut answer))
            .map(|()| answer)
    }};
}

pub(super) use {ask, call};

/// A card's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// In use, by programs or by the driver.
    pub used: u64,
    /// Free for programs.
    pub free: u64,
}

/// Longest text that the library writes, in bytes.
const TEXT_BYTES: u32 = 128;

impl<'session> Card<'session> {
    /// The card of this number.
    pub(super) fn by_index(nvml: &'session Nvml, index: u32) -> Result<Self, NvmlError> {
        let get = nvml_sym(nvml.lib().nvmlDeviceGetHandleByIndex_v2.as_ref())?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` lives through the call.
        nvml_try(unsafe { get(index, &raw mut handle) })?;
        Ok(Self {
            nvml,
            handle: Handle(handle),
        })
    }

    /// The card or partition of this handle.
    pub(super) fn with(self, handle: sys::nvmlDevice_t) -> Self {
        Self {
            nvml: self.nvml,
            handle: Handle(handle),
        }
    }

    pub(super) fn uuid(&self) -> Result<String, NvmlError> {
        let mut text = [0; TEXT_BYTES as usize];
        call!(self, nvmlDeviceGetUUID(text.as_mut_ptr(), TEXT_BYTES))?;
        Ok(text_of(&text))
    }

    pub(super) fn name(&self) -> Result<String, NvmlError> {
        let mut text = [0; TEXT_BYTES as usize];
        call!(self, nvmlDeviceGetName(text.as_mut_ptr(), TEXT_BYTES))?;
        Ok(text_of(&text))
    }

    /// CUDA compute capability, such as `8.9`.
    pub(super) fn compute_capability(&self) -> Result<String, NvmlError> {
        let (mut major, mut minor) = (0, 0);
        call!(
            self,
            nvmlDeviceGetCudaComputeCapability(&raw mut major, &raw mut minor)
        )?;
        Ok(format!("{major}.{minor}"))
    }

    /// PCI address, such as `00000000:01:00.0`.
    pub(super) fn pci_address(&self) -> Result<String, NvmlError> {
        // SAFETY: all zeros are a valid value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        call!(self, nvmlDeviceGetPciInfo_v3(&raw mut pci))?;
        Ok(text_of(&pci.busId))
    }

    /// Asks in the newer way, and in the older one where the library is too old for it.
    pub(super) fn memory(&self) -> Result<Memory, NvmlError> {
        // SAFETY: all zeros are a valid value.
        let mut memory: sys::nvmlMemory_v2_t = unsafe { std::mem::zeroed() };
        memory.version = version::<sys::nvmlMemory_v2_t>(2);
        match call!(self, nvmlDeviceGetMemoryInfo_v2(&raw mut memory)) {
            Ok(()) => Ok(Memory {
                total: memory.total,
                used: memory.used,
                free: memory.free,
            }),
            Err(NvmlError::FailedToLoadSymbol(_)) => {
                let mut memory = sys::nvmlMemory_t {
                    total: 0,
                    free: 0,
                    used: 0,
                };
                call!(self, nvmlDeviceGetMemoryInfo(&raw mut memory))?;
                Ok(Memory {
                    total: memory.total,
                    used: memory.used,
                    free: memory.free,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// The PCI Express link of this moment; nothing where one of its figures is not known.
    pub(super) fn pcie(&self) -> Result<Option<PcieLink>, NvmlError> {
        let figures = [
            ask!(self, nvmlDeviceGetCurrPcieLinkGeneration() -> u32),
            ask!(self, nvmlDeviceGetMaxPcieLinkGeneration() -> u32),
            ask!(self, nvmlDeviceGetCurrPcieLinkWidth() -> u32),
            ask!(self, nvmlDeviceGetMaxPcieLinkWidth() -> u32),
        ];
        let mut known = [0; 4];
        for (place, figure) in known.iter_mut().zip(figures) {
            match if_known(figure)? {
                Some(figure) => *place = figure,
                None => return Ok(None),
            }
        }
        let [generation, generation_max, width, width_max] = known;
        Ok(Some(PcieLink {
            generation,
            generation_max,
            width,
            width_max,
        }))
    }

    /// Whether error correction is on.
    pub(super) fn ecc_enabled(&self) -> Result<bool, NvmlError> {
        let (mut now, mut pending) = (0, 0);
        call!(self, nvmlDeviceGetEccMode(&raw mut now, &raw mut pending))?;
        Ok(now == sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)
    }

    /// The power limit that is enforced, in milliwatts.
    pub(super) fn power_limit_milliwatts(&self) -> Result<u32, NvmlError> {
        ask!(self, nvmlDeviceGetEnforcedPowerLimit() -> u32)
    }

    /// The one NUMA node whose memory is near; nothing where it is several or none.
    pub(super) fn memory_affinity(&self) -> Result<Option<u32>, NvmlError> {
        let mut nodes: [std::ffi::c_ulong; 16] = [0; 16];
        call!(
            self,
            nvmlDeviceGetMemoryAffinity(16, nodes.as_mut_ptr(), sys::NVML_AFFINITY_SCOPE_NODE)
        )?;
        if nodes.iter().map(|word| word.count_ones()).sum::<u32>() != 1 {
            return Ok(None);
        }
        let bit = (0..)
            .zip(&nodes)
            .find(|(_, word)| **word != 0)
            .map(|(place, word)| place * std::ffi::c_ulong::BITS + word.trailing_zeros());
        Ok(bit)
    }
}

/// Absent where the card or the library does not know; an error where the card is lost.
pub(super) fn if_known<T>(answer: Result<T, NvmlError>) -> Result<Option<T>, NvmlError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(NvmlError::GpuLost) => Err(NvmlError::GpuLost),
        Err(_) => Ok(None),
    }
}

/// The version that the library expects in a versioned structure: its size and its number.
pub(super) fn version<T>(number: u32) -> u32 {
    // The largest structure has a few thousand bytes.
    u32::try_from(size_of::<T>()).unwrap_or(0) | number << 24
}

/// The text up to its end; what is no UTF-8 in it is replaced.
pub(super) fn text_of(text: &[c_char]) -> String {
    let bytes: Vec<u8> = text.iter().map(|byte| byte.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default()
}
