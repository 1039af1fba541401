//! The C functions, under the names and with the layouts of NVML.
//!
//! Each one checks in NVML's order: initialised, arguments, card. None lets a panic
//! cross into the caller.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlDevice_t, nvmlEventSet_t, nvmlReturn_t};

use crate::library::{
    Answer, Device, GPU_IS_LOST, INSUFFICIENT_SIZE, INVALID_ARGUMENT, LIBRARY, NOT_FOUND,
    NOT_SUPPORTED, UNKNOWN, VERSION_MISMATCH, supported_events,
};
use crate::state::Gpu;

/// Longest text that is read from a caller.
const MAX_INPUT_BYTES: usize = 256;
/// Clock of an idle card, in MHz.
const IDLE_CLOCK_MHZ: u32 = 210;

fn answer(call: impl FnOnce() -> Answer<()>) -> nvmlReturn_t {
    // What a panic leaves behind is guarded by the library's own lock.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => sys::nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    }
}

/// Writes an answer where the caller wants it.
///
/// # Safety
///
/// `place` is null or may be written to.
unsafe fn put<T>(place: *mut T, value: T) -> Answer<()> {
    if place.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { place.write(value) };
    Ok(())
}

/// Writes a text and its end into the caller's buffer.
///
/// # Safety
///
/// `buffer` is null or has `length` bytes.
unsafe fn put_text(buffer: *mut c_char, length: c_uint, text: &str) -> Answer<()> {
    if buffer.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // A count of bytes that is not addressable is larger than any text.
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if text.len() >= length {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the buffer has room for the text and the byte after it.
    unsafe {
        buffer
            .cast::<u8>()
            .copy_from_nonoverlapping(text.as_ptr(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// Reads a text of the caller's.
///
/// # Safety
///
/// `text` is null or a C string.
unsafe fn text<'a>(text: *const c_char) -> Answer<&'a str> {
    if text.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller vouches for its end.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str()
        .ok()
        .filter(|text| !text.is_empty() && text.len() <= MAX_INPUT_BYTES)
        .ok_or(INVALID_ARGUMENT)
}

fn array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    // The last byte stays the end of the text.
    for (place, byte) in array.iter_mut().take(N - 1).zip(text.bytes()) {
        *place = byte.cast_signed();
    }
    array
}

/// Functions that ask a card for numbers: `name(out: type = question)`.
macro_rules! numbers {
    ($($name:ident($($out:ident: $type:ty),+) = |$gpu:ident| $value:expr;)+) => {$(
        /// # Safety
        ///
        /// Each pointer is null or may be written to.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(device: nvmlDevice_t, $($out: *mut $type),+) -> nvmlReturn_t {
            answer(|| {
                let $gpu = LIBRARY.device(device)?;
                if $($out.is_null())||+ {
                    return Err(INVALID_ARGUMENT);
                }
                let ($($out,)+): ($(( *mut $type, $type),)+) = {
                    let values: Answer<($($type,)+)> = $value;
                    pair!(values?, $($out),+)
                };
                // SAFETY: none is null, and the caller vouches for the rest.
                unsafe { $($out.0.write($out.1);)+ }
                Ok(())
            })
        }
    )+};
}

/// Puts each pointer beside its value.
macro_rules! pair {
    ($values:expr, $first:ident) => {{
        let (one,) = $values;
        (($first, one),)
    }};
    ($values:expr, $first:ident, $second:ident) => {{
        let (one, two) = $values;
        (($first, one), ($second, two))
    }};
}

/// Functions that ask a card for a text.
macro_rules! texts {
    ($($name:ident = |$gpu:ident| $value:expr;)+) => {$(
        /// # Safety
        ///
        /// `buffer` is null or has `length` bytes.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(
            device: nvmlDevice_t,
            buffer: *mut c_char,
            length: c_uint,
        ) -> nvmlReturn_t {
            answer(|| {
                let $gpu = LIBRARY.device(device)?;
                // SAFETY: as for this function.
                unsafe { put_text(buffer, length, $value) }
            })
        }
    )+};
}

// The library itself.

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    answer(|| LIBRARY.initialise())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(flags: c_uint) -> nvmlReturn_t {
    answer(|| {
        if flags & !(sys::NVML_INIT_FLAG_NO_GPUS | sys::NVML_INIT_FLAG_NO_ATTACH) != 0 {
            return Err(INVALID_ARGUMENT);
        }
        LIBRARY.initialise()
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    answer(|| LIBRARY.shut_down())
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: nvmlReturn_t) -> *const c_char {
    let text = match result {
        sys::nvmlReturn_enum_NVML_SUCCESS => c"The operation was successful",
        sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED => c"Uninitialized",
        INVALID_ARGUMENT => c"Invalid Argument",
        NOT_SUPPORTED => c"Not Supported",
        sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION => c"Insufficient Permissions",
        sys::nvmlReturn_enum_NVML_ERROR_ALREADY_INITIALIZED => c"Already Initialized",
        NOT_FOUND => c"Not Found",
        INSUFFICIENT_SIZE => c"Insufficient Size",
        sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_POWER => c"Insufficient External Power",
        sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED => c"Driver Not Loaded",
        sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT => c"Timeout",
        sys::nvmlReturn_enum_NVML_ERROR_IRQ_ISSUE => c"Interrupt Request Issue",
        sys::nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND => c"NVML Shared Library Not Found",
        sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND => c"Function Not Found",
        GPU_IS_LOST => c"GPU is lost",
        sys::nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED => c"GPU requires reset",
        sys::nvmlReturn_enum_NVML_ERROR_OPERATING_SYSTEM => {
            c"GPU access blocked by the operating system"
        }
        sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES => c"Insufficient Resources",
        VERSION_MISMATCH => c"Argument version mismatch",
        _ => c"Unknown Error",
    };
    text.as_ptr()
}

/// # Safety
///
/// `version` is null or has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetDriverVersion(
    version: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    answer(|| {
        let state = LIBRARY.in_session()?;
        // SAFETY: as for this function.
        unsafe { put_text(version, length, &state.driver.version) }
    })
}

/// # Safety
///
/// `version` is null or has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetNVMLVersion(
    version: *mut c_char,
    length: c_uint,
) -> nvmlReturn_t {
    answer(|| {
        let state = LIBRARY.state()?;
        // SAFETY: as for this function.
        unsafe { put_text(version, length, &state.driver.nvml_version) }
    })
}

/// # Safety
///
/// `version` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> nvmlReturn_t {
    answer(|| {
        let state = LIBRARY.state()?;
        // SAFETY: as for this function.
        unsafe { put(version, state.driver.cuda_version) }
    })
}

/// # Safety
///
/// `version` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> nvmlReturn_t {
    // SAFETY: the same function under its newer name.
    unsafe { nvmlSystemGetCudaDriverVersion(version) }
}

// From the machine to its cards.

/// # Safety
///
/// `count` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    answer(|| {
        let found = LIBRARY.count()?;
        // SAFETY: as for this function.
        unsafe { put(count, c_uint::try_from(found).map_err(|_| UNKNOWN)?) }
    })
}

/// # Safety
///
/// `device` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer(|| {
        let wanted = usize::try_from(index).map_err(|_| INVALID_ARGUMENT)?;
        let found = LIBRARY.find(INVALID_ARGUMENT, |position, _| position == wanted)?;
        // SAFETY: as for this function.
        unsafe { put(device, found) }
    })
}

/// # Safety
///
/// `uuid` is null or a C string; `device` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer(|| {
        LIBRARY.in_session()?;
        // SAFETY: as for this function.
        let wanted = unsafe { text(uuid) }?;
        let found = LIBRARY.find(NOT_FOUND, |_, gpu| gpu.uuid == wanted)?;
        // SAFETY: as for this function.
        unsafe { put(device, found) }
    })
}

/// # Safety
///
/// `serial` is null or a C string; `device` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleBySerial(
    serial: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer(|| {
        LIBRARY.in_session()?;
        // SAFETY: as for this function.
        let wanted = unsafe { text(serial) }?;
        let found = LIBRARY.find(NOT_FOUND, |_, gpu| gpu.serial == wanted)?;
        // SAFETY: as for this function.
        unsafe { put(device, found) }
    })
}

/// # Safety
///
/// `address` is null or a C string; `device` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    address: *const c_char,
    device: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    answer(|| {
        LIBRARY.in_session()?;
        // SAFETY: as for this function.
        let wanted = pci_address(unsafe { text(address) }?).ok_or(INVALID_ARGUMENT)?;
        let found = LIBRARY.find(NOT_FOUND, |_, gpu| {
            (gpu.pci_domain, gpu.pci_bus, gpu.pci_device) == wanted
        })?;
        // SAFETY: as for this function.
        unsafe { put(device, found) }
    })
}

/// Domain, bus and device of `[domain:]bus:device[.function]`, all hexadecimal.
fn pci_address(text: &str) -> Option<(u32, u32, u32)> {
    let hex = |part: &str| u32::from_str_radix(part, 16).ok();
    let (address, function) = text.split_once('.').unwrap_or((text, "0"));
    if hex(function)? != 0 {
        return None;
    }
    match address.split(':').collect::<Vec<_>>().as_slice() {
        [domain, bus, device] => Some((hex(domain)?, hex(bus)?, hex(device)?)),
        [bus, device] => Some((0, hex(bus)?, hex(device)?)),
        _ => None,
    }
}

// What a card is.

texts! {
    nvmlDeviceGetName = |gpu| &gpu.profile.model;
    nvmlDeviceGetUUID = |gpu| &gpu.uuid;
    nvmlDeviceGetSerial = |gpu| &gpu.serial;
}

numbers! {
    nvmlDeviceGetIndex(index: c_uint) = |gpu| Ok((c_uint::try_from(gpu.index).map_err(|_| UNKNOWN)?,));
    nvmlDeviceGetMinorNumber(minor: c_uint) = |gpu| Ok((gpu.minor,));
    nvmlDeviceGetBrand(brand: sys::nvmlBrandType_t) = |gpu| Ok((gpu.profile.brand,));
    nvmlDeviceGetArchitecture(architecture: sys::nvmlDeviceArchitecture_t) = |gpu| Ok((gpu.profile.architecture,));
    nvmlDeviceGetCudaComputeCapability(major: c_int, minor: c_int) = |gpu|
        Ok((gpu.profile.compute_capability_major, gpu.profile.compute_capability_minor));
    nvmlDeviceGetMaxPcieLinkGeneration(generation: c_uint) = |gpu| Ok((gpu.profile.pcie_generation,));
    nvmlDeviceGetCurrPcieLinkGeneration(generation: c_uint) = |gpu|
        Ok((if is_busy(&gpu) { gpu.profile.pcie_generation } else { 1 },));
    nvmlDeviceGetMaxPcieLinkWidth(width: c_uint) = |gpu| Ok((gpu.profile.pcie_width,));
    nvmlDeviceGetCurrPcieLinkWidth(width: c_uint) = |gpu| Ok((gpu.profile.pcie_width,));
    nvmlDeviceGetPersistenceMode(mode: sys::nvmlEnableState_t) = |_gpu|
        Ok((sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED,));
    nvmlDeviceGetComputeMode(mode: sys::nvmlComputeMode_t) = |_gpu|
        Ok((sys::nvmlComputeMode_enum_NVML_COMPUTEMODE_DEFAULT,));
    nvmlDeviceGetMigMode(current: c_uint, pending: c_uint) = |gpu|
        if gpu.profile.mig_capable {
            Ok((sys::NVML_DEVICE_MIG_DISABLE, sys::NVML_DEVICE_MIG_DISABLE))
        } else {
            Err(NOT_SUPPORTED)
        };
    nvmlDeviceGetMaxMigDeviceCount(count: c_uint) = |_gpu| Ok((0,));
    nvmlDeviceIsMigDeviceHandle(is_mig: c_uint) = |_gpu| Ok((0,));
    nvmlDeviceGetEccMode(current: sys::nvmlEnableState_t, pending: sys::nvmlEnableState_t) = |gpu| {
        let mode = if gpu.profile.ecc_enabled {
            sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED
        } else {
            sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED
        };
        Ok((mode, mode))
    };
    nvmlDeviceGetSupportedEventTypes(types: c_ulonglong) = |gpu| Ok((supported_events(&gpu),));
}

/// # Safety
///
/// `pci` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: nvmlDevice_t,
    pci: *mut sys::nvmlPciInfo_t,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        let address = gpu.pci_address();
        let info = sys::nvmlPciInfo_t {
            // The older form has a domain of four digits.
            busIdLegacy: array(&address[4..]),
            domain: gpu.pci_domain,
            bus: gpu.pci_bus,
            device: gpu.pci_device,
            pciDeviceId: gpu.profile.pci_device_id,
            pciSubSystemId: gpu.profile.pci_subsystem_id,
            busId: array(&address),
        };
        // SAFETY: as for this function.
        unsafe { put(pci, info) }
    })
}

// How a card is.

/// Whether anything runs on the card.
fn is_busy(gpu: &Gpu) -> bool {
    gpu.utilization_percent > 0
}

numbers! {
    nvmlDeviceGetPowerUsage(milliwatts: c_uint) = |gpu| Ok((gpu.power_milliwatts,));
    nvmlDeviceGetPowerManagementLimit(milliwatts: c_uint) = |gpu| Ok((gpu.profile.power_limit_milliwatts,));
    nvmlDeviceGetPowerManagementDefaultLimit(milliwatts: c_uint) = |gpu| Ok((gpu.profile.power_limit_milliwatts,));
    nvmlDeviceGetEnforcedPowerLimit(milliwatts: c_uint) = |gpu| Ok((gpu.profile.power_limit_milliwatts,));
    nvmlDeviceGetUtilizationRates(rates: sys::nvmlUtilization_t) = |gpu| Ok((sys::nvmlUtilization_t {
        gpu: gpu.utilization_percent,
        memory: gpu.memory_utilization_percent,
    },));
    nvmlDeviceGetPerformanceState(state: sys::nvmlPstates_t) = |gpu| Ok((if is_busy(&gpu) {
        sys::nvmlPStates_enum_NVML_PSTATE_0
    } else {
        sys::nvmlPStates_enum_NVML_PSTATE_8
    },));
    nvmlDeviceGetMemoryInfo(memory: sys::nvmlMemory_t) = |gpu| {
        // This older form counts what the driver keeps as used.
        let used = gpu.memory_used_bytes + gpu.profile.reserved_memory_bytes;
        Ok((sys::nvmlMemory_t {
            total: gpu.profile.memory_bytes,
            free: gpu.profile.memory_bytes.saturating_sub(used),
            used,
        },))
    };
}

/// # Safety
///
/// `memory` is null or may be read and written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: nvmlDevice_t,
    memory: *mut sys::nvmlMemory_v2_t,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        if memory.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let size = u32::try_from(size_of::<sys::nvmlMemory_v2_t>()).map_err(|_| UNKNOWN)?;
        // SAFETY: not null, and the caller vouches for the rest.
        let version = unsafe { (*memory).version };
        if version != size | (2 << 24) {
            return Err(VERSION_MISMATCH);
        }
        let reserved = gpu.profile.reserved_memory_bytes;
        let info = sys::nvmlMemory_v2_t {
            version,
            total: gpu.profile.memory_bytes,
            reserved,
            free: gpu
                .profile
                .memory_bytes
                .saturating_sub(reserved + gpu.memory_used_bytes),
            used: gpu.memory_used_bytes,
        };
        // SAFETY: as above.
        unsafe { put(memory, info) }
    })
}

/// # Safety
///
/// `celsius` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTemperature(
    device: nvmlDevice_t,
    sensor: sys::nvmlTemperatureSensors_t,
    celsius: *mut c_uint,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        if sensor != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: as for this function.
        unsafe { put(celsius, gpu.temperature_celsius) }
    })
}

fn max_clock_mhz(gpu: &Device, clock: sys::nvmlClockType_t) -> Answer<u32> {
    match clock {
        sys::nvmlClockType_enum_NVML_CLOCK_GRAPHICS
        | sys::nvmlClockType_enum_NVML_CLOCK_SM
        | sys::nvmlClockType_enum_NVML_CLOCK_VIDEO => Ok(gpu.profile.max_sm_clock_mhz),
        sys::nvmlClockType_enum_NVML_CLOCK_MEM => Ok(gpu.profile.max_memory_clock_mhz),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// # Safety
///
/// `mhz` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetMaxClockInfo(
    device: nvmlDevice_t,
    clock: sys::nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        let highest = max_clock_mhz(&gpu, clock)?;
        // SAFETY: as for this function.
        unsafe { put(mhz, highest) }
    })
}

/// # Safety
///
/// `mhz` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetClockInfo(
    device: nvmlDevice_t,
    clock: sys::nvmlClockType_t,
    mhz: *mut c_uint,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        let highest = max_clock_mhz(&gpu, clock)?;
        let now = if is_busy(&gpu) {
            highest
        } else {
            IDLE_CLOCK_MHZ
        };
        // SAFETY: as for this function.
        unsafe { put(mhz, now) }
    })
}

/// # Safety
///
/// `errors` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: sys::nvmlMemoryErrorType_t,
    counter: sys::nvmlEccCounterType_t,
    errors: *mut c_ulonglong,
) -> nvmlReturn_t {
    answer(|| {
        let gpu = LIBRARY.device(device)?;
        if kind >= sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_COUNT
            || counter >= sys::nvmlEccCounterType_enum_NVML_ECC_COUNTER_TYPE_COUNT
        {
            return Err(INVALID_ARGUMENT);
        }
        if !gpu.profile.ecc_enabled {
            return Err(NOT_SUPPORTED);
        }
        let uncorrected = kind == sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED;
        let found = if uncorrected { gpu.ecc_uncorrected } else { 0 };
        // SAFETY: as for this function.
        unsafe { put(errors, found) }
    })
}

// What happens to a card.

/// # Safety
///
/// `set` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    answer(|| {
        LIBRARY.in_session()?;
        if set.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: as for this function.
        unsafe { put(set, LIBRARY.create_event_set()?) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    answer(|| LIBRARY.free_event_set(set))
}

#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceRegisterEvents(
    device: nvmlDevice_t,
    types: c_ulonglong,
    set: nvmlEventSet_t,
) -> nvmlReturn_t {
    answer(|| LIBRARY.register(&LIBRARY.device(device)?, types, set))
}

/// # Safety
///
/// `data` is null or may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    data: *mut sys::nvmlEventData_t,
    timeout_ms: c_uint,
) -> nvmlReturn_t {
    answer(|| {
        LIBRARY.in_session()?;
        if data.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let event = LIBRARY.wait(set, Duration::from_millis(u64::from(timeout_ms)))?;
        let happened = sys::nvmlEventData_t {
            device: event.device,
            eventType: event.kind,
            eventData: event.data,
            // The card is not partitioned.
            gpuInstanceId: c_uint::MAX,
            computeInstanceId: c_uint::MAX,
        };
        // SAFETY: as for this function.
        unsafe { put(data, happened) }
    })
}
