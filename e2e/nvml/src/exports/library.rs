//! The library itself.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_char, c_int, c_uint};

use nvml_wrapper_sys::bindings as sys;

use super::abi::{Buffer, Call, Out};
use crate::library::{Answer, INVALID_ARGUMENT, LIBRARY, NOT_FOUND, UNKNOWN};
use crate::state::Code;

export! {
    #[always]
    fn nvmlInit_v2(call) { LIBRARY.initialise(call.function) }

    #[always]
    fn nvmlInit(call) { LIBRARY.initialise(call.function) }

    #[always]
    fn nvmlInitWithFlags(call, flags: c_uint) {
        if flags & !(sys::NVML_INIT_FLAG_NO_GPUS | sys::NVML_INIT_FLAG_NO_ATTACH) != 0 {
            return Err(INVALID_ARGUMENT);
        }
        LIBRARY.initialise(call.function)
    }

    fn nvmlShutdown(_call) { LIBRARY.shut_down() }

    fn nvmlSystemGetDriverVersion(_call, version: Buffer, length: c_uint) {
        version.put(length, &LIBRARY.in_session()?.driver.version)
    }

    #[always]
    fn nvmlSystemGetNVMLVersion(call, version: Buffer, length: c_uint) {
        LIBRARY.meet(call.function)?;
        version.put(length, &LIBRARY.state()?.driver.nvml_version)
    }

    #[always]
    fn nvmlSystemGetCudaDriverVersion(call, version: Out<c_int>) {
        LIBRARY.meet(call.function)?;
        version.put(LIBRARY.state()?.driver.cuda_version)
    }

    #[always]
    fn nvmlSystemGetCudaDriverVersion_v2(call, version: Out<c_int>) {
        LIBRARY.meet(call.function)?;
        version.put(LIBRARY.state()?.driver.cuda_version)
    }

    fn nvmlSystemGetProcessName(_call, pid: c_uint, name: Buffer, length: c_uint) {
        LIBRARY.in_session()?;
        name.put(length, &process_name(pid)?)
    }

    fn nvmlDeviceGetCount_v2(call, count: Out<c_uint>) { put_count(call, &count) }

    fn nvmlDeviceGetCount(call, count: Out<c_uint>) { put_count(call, &count) }
}

/// # Safety
///
/// None is needed: it takes no pointers.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: sys::nvmlReturn_t) -> *const c_char {
    Code::text(result).as_ptr()
}

fn put_count(_call: &Call, count: &Out<c_uint>) -> Answer<()> {
    count.put(c_uint::try_from(LIBRARY.count()?).map_err(|_| UNKNOWN)?)
}

/// The command of a process of this machine.
fn process_name(pid: c_uint) -> Answer<String> {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| NOT_FOUND)?;
    let name = command.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}
