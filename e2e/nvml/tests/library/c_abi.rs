//! The library as a careless C program calls it: wrong order, null pointers, buffers
//! that are too small, handles that are none.
use std::ffi::{CStr, CString, c_char};
use std::ptr::{null, null_mut};

use nix::libc;

use nvml_wrapper_sys::bindings as sys;
use nvml_wrapper_sys::bindings::NvmlLib;

use crate::machine::{Machine, machine};

use crate::codes::*;

fn library() -> (Machine, NvmlLib) {
    let machine = machine("t4", 2);
    let library = machine.load();
    (machine, library)
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

/// A function of six arguments.
type AnyFunction = unsafe extern "C" fn(usize, usize, usize, usize, usize, usize) -> u32;

/// Calls a function with nothing but zeros for its arguments, however many it has.
fn with_zeros(nvml: &Machine, function: &str) -> u32 {
    let path = CString::new(nvml.library().to_str().unwrap()).unwrap();
    let name = CString::new(function).unwrap();
    // SAFETY: the texts have their end, and the library stays loaded.
    let address = unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!library.is_null());
        libc::dlsym(library, name.as_ptr())
    };
    assert!(!address.is_null(), "the library has no {function}");
    // SAFETY: every function takes at most six numbers and pointers, and leaves those that it
    // does not take alone; zeros are null pointers and handles of nothing.
    unsafe { std::mem::transmute::<*mut libc::c_void, AnyFunction>(address)(0, 0, 0, 0, 0, 0) }
}

#[test]
fn no_function_minds_null_pointers_before_or_in_a_session() {
    const WITHOUT_POINTERS: [&str; 5] = [
        "nvmlInit",
        "nvmlInit_v2",
        "nvmlInitWithFlags",
        "nvmlShutdown",
        "nvmlErrorString",
    ];
    let machine = machine("h100-80gb", 1);
    let functions: Vec<&str> = nvidia_ml::functions()
        .filter(|function| !WITHOUT_POINTERS.contains(function))
        .collect();
    assert!(functions.len() > 100);
    for function in &functions {
        let always = function.starts_with("nvmlSystemGetCuda") || function.ends_with("NVMLVersion");
        let wanted = if always {
            INVALID_ARGUMENT
        } else {
            UNINITIALIZED
        };
        assert_eq!(with_zeros(&machine, function), wanted, "{function}");
    }
    let _session = machine.begin();
    for function in &functions {
        let code = with_zeros(&machine, function);
        assert_eq!(code, INVALID_ARGUMENT, "{function}");
    }
}
