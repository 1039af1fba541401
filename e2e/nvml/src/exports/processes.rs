//! What runs on cards and partitions.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings as sys;
use sys::nvmlDevice_t;

use super::abi::{Array, Call, InOut};
use crate::library::Answer;
use crate::state::{Partition, Process, ProcessKind};

/// NVML's word for a memory that is not known, in the type of its field.
const NOT_KNOWN: u64 = u64::MAX;

export! {
    fn nvmlDeviceGetComputeRunningProcesses_v3(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_t>) {
        put(call, device, ProcessKind::Compute, &count, &infos, third)
    }

    fn nvmlDeviceGetComputeRunningProcesses_v2(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v2_t>) {
        put(call, device, ProcessKind::Compute, &count, &infos, second)
    }

    fn nvmlDeviceGetComputeRunningProcesses(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v1_t>) {
        put(call, device, ProcessKind::Compute, &count, &infos, first)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v3(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_t>) {
        put(call, device, ProcessKind::Graphics, &count, &infos, third)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses_v2(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v2_t>) {
        put(call, device, ProcessKind::Graphics, &count, &infos, second)
    }

    fn nvmlDeviceGetGraphicsRunningProcesses(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v1_t>) {
        put(call, device, ProcessKind::Graphics, &count, &infos, first)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v3(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_t>) {
        put(call, device, ProcessKind::Mps, &count, &infos, third)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses_v2(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v2_t>) {
        put(call, device, ProcessKind::Mps, &count, &infos, second)
    }

    fn nvmlDeviceGetMPSComputeRunningProcesses(call, device: nvmlDevice_t, count: InOut<c_uint>, infos: Array<sys::nvmlProcessInfo_v1_t>) {
        put(call, device, ProcessKind::Mps, &count, &infos, first)
    }
}

fn put<T: Copy>(
    call: &Call,
    device: nvmlDevice_t,
    kind: ProcessKind,
    count: &InOut<c_uint>,
    infos: &Array<T>,
    form: fn(&Process) -> T,
) -> Answer<()> {
    let device = call.device(device)?;
    let partition = device.partition();
    let here = |process: &&Process| {
        process.kind == kind && (partition.is_none() || process.partition == partition)
    };
    let found: Vec<T> = device.processes.iter().filter(here).map(form).collect();
    infos.fill(count, &found)
}

/// Numbers of the instances, or NVML's word for none.
fn instances(process: &Process) -> (c_uint, c_uint) {
    match process.partition {
        Some(Partition {
            gpu_instance,
            compute_instance,
        }) => (gpu_instance, compute_instance),
        None => (c_uint::MAX, c_uint::MAX),
    }
}

fn first(process: &Process) -> sys::nvmlProcessInfo_v1_t {
    sys::nvmlProcessInfo_v1_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes.unwrap_or(NOT_KNOWN),
    }
}

fn second(process: &Process) -> sys::nvmlProcessInfo_v2_t {
    let (gpuInstanceId, computeInstanceId) = instances(process);
    sys::nvmlProcessInfo_v2_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes.unwrap_or(NOT_KNOWN),
        gpuInstanceId,
        computeInstanceId,
    }
}

// The third version has the same fields; the bindings name them twice.
fn third(process: &Process) -> sys::nvmlProcessInfo_t {
    let (gpuInstanceId, computeInstanceId) = instances(process);
    sys::nvmlProcessInfo_t {
        pid: process.pid,
        usedGpuMemory: process.memory_bytes.unwrap_or(NOT_KNOWN),
        gpuInstanceId,
        computeInstanceId,
    }
}
