//! The library as a careless C program calls it: wrong order, null pointers, buffers
//! that are too small, handles that are none.
#![cfg(test)]

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};

use nvidia_ml::install::install_built;
use nvidia_ml::state::State;
use nvml_wrapper_sys::bindings as sys;
use nvml_wrapper_sys::bindings::NvmlLib;
use tempfile::TempDir;

const OK: u32 = sys::nvmlReturn_enum_NVML_SUCCESS;
const UNINITIALIZED: u32 = sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
const INVALID_ARGUMENT: u32 = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const INSUFFICIENT_SIZE: u32 = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const NOT_FOUND: u32 = sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const VERSION_MISMATCH: u32 = sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
const TIMEOUT: u32 = sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;

fn library() -> (TempDir, NvmlLib) {
    let directory = tempfile::tempdir().unwrap();
    let state = State::from_profile("t4", 2, "node").unwrap();
    let path = install_built(directory.path(), &state).unwrap();
    // SAFETY: loading runs no code of the library but the runtime's own.
    let library = unsafe { NvmlLib::new(path) }.unwrap();
    (directory, library)
}

#[test]
fn nothing_but_versions_is_answered_before_initialisation_and_after_the_last_shutdown() {
    let (_directory, nvml) = library();
    let mut count = 0;
    let mut device = null_mut();
    let mut set = null_mut();
    let mut text: [c_char; 80] = [0; 80];
    // SAFETY: every pointer is to a local variable or null.
    unsafe {
        assert_eq!(nvml.nvmlShutdown(), UNINITIALIZED);
        assert_eq!(nvml.nvmlDeviceGetCount_v2(&raw mut count), UNINITIALIZED);
        assert_eq!(
            nvml.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device),
            UNINITIALIZED
        );
        assert_eq!(
            nvml.nvmlDeviceGetHandleByUUID(null(), &raw mut device),
            UNINITIALIZED
        );
        assert_eq!(nvml.nvmlEventSetCreate(&raw mut set), UNINITIALIZED);
        assert_eq!(
            nvml.nvmlSystemGetDriverVersion(text.as_mut_ptr(), 80),
            UNINITIALIZED
        );
        assert_eq!(nvml.nvmlSystemGetNVMLVersion(text.as_mut_ptr(), 80), OK);
        assert_eq!(nvml.nvmlInit_v2(), OK);
        assert_eq!(nvml.nvmlInit_v2(), OK);
        assert_eq!(nvml.nvmlShutdown(), OK);
        assert_eq!(nvml.nvmlDeviceGetCount_v2(&raw mut count), OK);
        assert_eq!(nvml.nvmlShutdown(), OK);
        assert_eq!(nvml.nvmlDeviceGetCount_v2(&raw mut count), UNINITIALIZED);
        assert_eq!(nvml.nvmlInitWithFlags(64), INVALID_ARGUMENT);
        assert_eq!(nvml.nvmlInitWithFlags(sys::NVML_INIT_FLAG_NO_GPUS), OK);
    }
}

#[test]
fn null_pointers_and_foreign_handles_are_invalid_arguments() {
    let (_directory, nvml) = library();
    let mut device = null_mut();
    let mut number = 0;
    let foreign: sys::nvmlDevice_t = std::ptr::without_provenance_mut(0x7fff_dead_beef);
    // SAFETY: every pointer is to a local variable, null, or a handle that is never
    // looked behind.
    unsafe {
        assert_eq!(nvml.nvmlInit_v2(), OK);
        assert_eq!(nvml.nvmlDeviceGetCount_v2(null_mut()), INVALID_ARGUMENT);
        assert_eq!(
            nvml.nvmlDeviceGetHandleByIndex_v2(0, null_mut()),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetHandleByIndex_v2(2, &raw mut device),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetHandleByUUID(null(), &raw mut device),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetHandleByUUID(c"GPU-x".as_ptr(), &raw mut device),
            NOT_FOUND
        );
        assert_eq!(nvml.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device), OK);
        assert_eq!(
            nvml.nvmlDeviceGetName(device, null_mut(), 96),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetPciInfo_v3(device, null_mut()),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetMemoryInfo_v2(device, null_mut()),
            INVALID_ARGUMENT
        );
        assert_eq!(
            nvml.nvmlDeviceGetCudaComputeCapability(device, null_mut(), null_mut()),
            INVALID_ARGUMENT
        );
        for handle in [foreign, null_mut()] {
            assert_eq!(
                nvml.nvmlDeviceGetMinorNumber(handle, &raw mut number),
                INVALID_ARGUMENT
            );
        }
        assert_eq!(nvml.nvmlEventSetCreate(null_mut()), INVALID_ARGUMENT);
        assert_eq!(nvml.nvmlEventSetFree(null_mut()), INVALID_ARGUMENT);
    }
}

#[test]
fn a_handle_does_not_outlive_its_session() {
    let (_directory, nvml) = library();
    let mut device = null_mut();
    let mut number = 0;
    // SAFETY: every pointer is to a local variable.
    unsafe {
        nvml.nvmlInit_v2();
        assert_eq!(nvml.nvmlDeviceGetHandleByIndex_v2(1, &raw mut device), OK);
        nvml.nvmlShutdown();
        nvml.nvmlInit_v2();
        assert_eq!(
            nvml.nvmlDeviceGetMinorNumber(device, &raw mut number),
            INVALID_ARGUMENT
        );
    }
}

#[test]
fn a_buffer_that_is_too_small_is_said_so_and_left_alone() {
    let (_directory, nvml) = library();
    let mut device = null_mut();
    let mut text: [c_char; 96] = [7; 96];
    // "Tesla T4" has eight bytes and needs a ninth.
    // SAFETY: every pointer is to a local variable of the size that is said.
    unsafe {
        nvml.nvmlInit_v2();
        nvml.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device);
        assert_eq!(
            nvml.nvmlDeviceGetName(device, text.as_mut_ptr(), 8),
            INSUFFICIENT_SIZE
        );
        assert_eq!(
            nvml.nvmlDeviceGetName(device, text.as_mut_ptr(), 0),
            INSUFFICIENT_SIZE
        );
        assert_eq!(text[0], 7);
        assert_eq!(nvml.nvmlDeviceGetName(device, text.as_mut_ptr(), 9), OK);
        assert_eq!(CStr::from_ptr(text.as_ptr()), c"Tesla T4");
        assert_eq!(text[9], 7);
    }
}

#[test]
fn both_forms_of_memory_agree_and_the_newer_one_checks_its_version() {
    let (_directory, nvml) = library();
    let mut device = null_mut();
    let mut old = sys::nvmlMemory_t {
        total: 0,
        free: 0,
        used: 0,
    };
    let mut new = sys::nvmlMemory_v2_t {
        version: 0,
        total: 0,
        reserved: 0,
        free: 0,
        used: 0,
    };
    // SAFETY: every pointer is to a local variable.
    unsafe {
        nvml.nvmlInit_v2();
        nvml.nvmlDeviceGetHandleByIndex_v2(0, &raw mut device);
        assert_eq!(nvml.nvmlDeviceGetMemoryInfo(device, &raw mut old), OK);
        assert_eq!(
            nvml.nvmlDeviceGetMemoryInfo_v2(device, &raw mut new),
            VERSION_MISMATCH
        );
        new.version = 33_554_472;
        assert_eq!(nvml.nvmlDeviceGetMemoryInfo_v2(device, &raw mut new), OK);
    }
    assert_eq!(old.total, old.free + old.used);
    assert_eq!(
        (old.total, old.free, old.used),
        (new.total, new.free, new.used + new.reserved)
    );
}

#[test]
fn every_return_code_has_a_text() {
    let (_directory, nvml) = library();
    // SAFETY: the library's texts live as long as the library.
    let text = |code| unsafe { CStr::from_ptr(nvml.nvmlErrorString(code)) }.to_owned();
    assert_eq!(text(OK).as_c_str(), c"The operation was successful");
    assert_eq!(text(15).as_c_str(), c"GPU is lost");
    assert_eq!(text(4711).as_c_str(), c"Unknown Error");
}

#[test]
fn a_freed_event_set_ends_the_wait_of_another_thread() {
    let (_directory, nvml) = library();
    let mut set = null_mut();
    // SAFETY: every pointer is to a local variable; the handle is never looked behind.
    unsafe {
        nvml.nvmlInit_v2();
        assert_eq!(nvml.nvmlEventSetCreate(&raw mut set), OK);
        let mut data: sys::nvmlEventData_t = std::mem::zeroed();
        assert_eq!(nvml.nvmlEventSetWait_v2(set, &raw mut data, 1), TIMEOUT);
        let number = set.addr();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let mut data: sys::nvmlEventData_t = std::mem::zeroed();
                let set = std::ptr::without_provenance_mut(number);
                nvml.nvmlEventSetWait_v2(set, &raw mut data, 60_000)
            });
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert_eq!(nvml.nvmlEventSetFree(set), OK);
            assert_eq!(waiting.join().unwrap(), INVALID_ARGUMENT);
        });
    }
}
