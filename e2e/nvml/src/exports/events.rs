//! What happens to cards.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_uint, c_ulonglong};
use std::time::Duration;

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlEventSet_t};

use super::abi::Out;
use crate::library::{Answer, LIBRARY, supported_events};

export! {
    fn nvmlEventSetCreate(_call, set: Out<nvmlEventSet_t>) { set.put(LIBRARY.create_event_set()?) }

    fn nvmlEventSetFree(_call, set: nvmlEventSet_t) { LIBRARY.free_event_set(set) }

    fn nvmlDeviceGetSupportedEventTypes(call, device: nvmlDevice_t, types: Out<c_ulonglong>) {
        types.put(supported_events(&*call.card(device)?))
    }

    fn nvmlDeviceRegisterEvents(call, device: nvmlDevice_t, types: c_ulonglong, set: nvmlEventSet_t) {
        LIBRARY.register(&call.card(device)?, types, set)
    }

    fn nvmlEventSetWait_v2(_call, set: nvmlEventSet_t, data: Out<sys::nvmlEventData_t>, timeout_ms: c_uint) {
        data.put(wait(set, timeout_ms)?)
    }

    // The older form says nothing of instances.
    fn nvmlEventSetWait(_call, set: nvmlEventSet_t, data: Out<OldEventData>, timeout_ms: c_uint) {
        let event = wait(set, timeout_ms)?;
        data.put(OldEventData {
            device: event.device,
            event_type: event.eventType,
            event_data: event.eventData,
        })
    }
}

/// What events were before cards could be partitioned.
#[repr(C)]
pub struct OldEventData {
    device: nvmlDevice_t,
    event_type: c_ulonglong,
    event_data: c_ulonglong,
}

fn wait(set: nvmlEventSet_t, timeout_ms: c_uint) -> Answer<sys::nvmlEventData_t> {
    let event = LIBRARY.wait(set, Duration::from_millis(u64::from(timeout_ms)))?;
    Ok(sys::nvmlEventData_t {
        device: event.device,
        eventType: event.kind,
        eventData: event.data,
        gpuInstanceId: event.gpu_instance.unwrap_or(c_uint::MAX),
        computeInstanceId: event.compute_instance.unwrap_or(c_uint::MAX),
    })
}
