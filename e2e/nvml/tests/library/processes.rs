//! What runs on cards and partitions.

use std::ptr::null_mut;

use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper_sys::bindings as sys;

use crate::codes::*;
use crate::machine::{card, machine};

#[test]
fn how_many_there_are_is_asked_with_room_for_none() {
    let machine = machine("l40s", 1);
    let nvml = machine.begin();
    let device = card(&nvml, 0);
    let mut count = 0;
    let mut room = [sys::nvmlProcessInfo_v2_t {
        pid: 0,
        usedGpuMemory: 0,
        gpuInstanceId: 0,
        computeInstanceId: 0,
    }; 4];
    // SAFETY: the pointers are to local variables with the room that is said.
    unsafe {
        let ask = |count, room| nvml.nvmlDeviceGetComputeRunningProcesses_v3(device, count, room);
        assert_eq!((ask(&raw mut count, null_mut()), count), (OK, 0));
        for pid in 41..44 {
            machine.inject(0, &format!("process {pid} compute 256"));
        }
        let code = ask(&raw mut count, null_mut());
        assert_eq!((code, count), (INSUFFICIENT_SIZE, 3));
        count = 2;
        let code = ask(&raw mut count, room.as_mut_ptr());
        assert_eq!((code, count, room[0].pid), (INSUFFICIENT_SIZE, 3, 0));
        count = 4;
        assert_eq!(ask(&raw mut count, null_mut()), INVALID_ARGUMENT);
        count = 4;
        let code = ask(&raw mut count, room.as_mut_ptr());
        assert_eq!((code, count), (OK, 3));
        assert_eq!(ask(null_mut(), room.as_mut_ptr()), INVALID_ARGUMENT);
    }
    assert_eq!([room[0].pid, room[2].pid], [41, 43]);
    assert_eq!(room[0].usedGpuMemory, 256 << 20);
    assert_eq!(
        (room[0].gpuInstanceId, room[0].computeInstanceId),
        (u32::MAX, u32::MAX)
    );
}

#[test]
fn each_kind_has_a_list_of_its_own_and_its_memory_counts() {
    let machine = machine("l40s", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    machine.inject(0, "process 7 compute 100");
    machine.inject(0, "process 8 graphics 50");
    machine.inject(0, "process 9 mps 25");
    let compute = device.running_compute_processes().unwrap();
    assert_eq!(compute.len(), 1);
    assert_eq!(compute[0].pid, 7);
    assert_eq!(compute[0].used_gpu_memory, UsedGpuMemory::Used(100 << 20));
    let graphics = device.running_graphics_processes().unwrap();
    assert_eq!(graphics[0].pid, 8);
    assert_eq!(device.memory_info().unwrap().used, 175 << 20);
    machine.inject(0, "process 7 gone");
    assert_eq!(device.running_compute_processes_count().unwrap(), 0);
    assert_eq!(device.memory_info().unwrap().used, 75 << 20);
}

#[test]
fn the_older_forms_tell_the_same_without_what_they_do_not_know() {
    let machine = machine("a100-80gb", 1);
    machine.inject(0, "mig 3g.40gb");
    machine.inject(0, "process 7 compute 100 in 1/0");
    let nvml = machine.begin();
    let device = card(&nvml, 0);
    // SAFETY: all-zero structures are valid ones; the pointers are to local variables.
    unsafe {
        let mut count = 1;
        let mut first: sys::nvmlProcessInfo_v1_t = std::mem::zeroed();
        let code =
            nvml.nvmlDeviceGetComputeRunningProcesses(device, &raw mut count, &raw mut first);
        assert_eq!((code, count), (OK, 1));
        assert_eq!((first.pid, first.usedGpuMemory), (7, 100 << 20));
        let mut second: sys::nvmlProcessInfo_v2_t = std::mem::zeroed();
        let code =
            nvml.nvmlDeviceGetComputeRunningProcesses_v2(device, &raw mut count, &raw mut second);
        assert_eq!((code, second.pid), (OK, 7));
        assert_eq!((second.gpuInstanceId, second.computeInstanceId), (1, 0));
    }
}

#[test]
fn a_partition_tells_its_own_processes_and_the_card_all() {
    let machine = machine("h100-80gb", 1);
    machine.inject(0, "mig 3g.40gb,3g.40gb");
    machine.inject(0, "process 7 compute 100 in 1/0");
    machine.inject(0, "process 8 compute 300 in 2/0");
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.running_compute_processes_count().unwrap(), 2);
    let second = device.mig_device_by_index(1).unwrap();
    let own = second.running_compute_processes().unwrap();
    assert_eq!((own.len(), own[0].pid), (1, 8));
    assert_eq!(own[0].gpu_instance_id, Some(2));
    assert_eq!(own[0].compute_instance_id, Some(0));
    // The wrapper asks in the newer way.
    let memory = second.memory_info().unwrap();
    assert_eq!((memory.used, memory.reserved), (300 << 20, 0));
}
