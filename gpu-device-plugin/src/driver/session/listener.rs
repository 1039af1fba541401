//! What the driver reports by itself.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::card::Handle;

/// The number that stands for no instance in an event.
const NO_INSTANCE: u32 = u32::MAX;

/// Something that the driver reported by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// The GPU's UUID.
    pub uuid: String,
    /// The XID.
    pub xid: u64,
    /// Number of the GPU instance and of the compute instance that it is about, where the
    /// driver names them.
    pub instance: (Option<u32>, Option<u32>),
}

/// A set of events of some GPUs.
///
/// Made of the library's own calls: the wrapper's set panics on drop where an old library
/// cannot free it, and its events do not tell one GPU from another once that GPU is lost.
pub struct Listener<'session> {
    nvml: &'session Nvml,
    set: sys::nvmlEventSet_t,
    uuids: Vec<(sys::nvmlDevice_t, String)>,
    asked: usize,
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
    pub(super) fn new(nvml: &'session Nvml, cards: &[(String, Handle)]) -> Result<Self, String> {
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
            asked: cards.len(),
        };
        let register = nvml_sym(nvml.lib().nvmlDeviceRegisterEvents.as_ref()).map_err(cannot)?;
        for (uuid, handle) in cards {
            let types = u64::from(sys::nvmlEventTypeXidCriticalError);
            // SAFETY: handle and set belong to this library.
            match nvml_try(unsafe { register(handle.0, types, set) }) {
                Ok(()) => listener.uuids.push((handle.0, uuid.clone())),
                // Its reading says so; the others are listened to.
                Err(NvmlError::GpuLost) => {}
                Err(error) => {
                    return Err(format!("the driver reports no events of {uuid}: {error}"));
                }
            }
        }
        Ok(listener)
    }

    /// How many GPUs there were to hear.
    #[must_use]
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Whether all of them are heard: one that is lost is not.
    #[must_use]
    pub fn hears_all(&self) -> bool {
        self.uuids.len() == self.asked
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
                    instance: (
                        Some(event.gpuInstanceId).filter(|number| *number != NO_INSTANCE),
                        Some(event.computeInstanceId).filter(|number| *number != NO_INSTANCE),
                    ),
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
