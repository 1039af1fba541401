//! Partitions of a card, asked for as NVIDIA's own plugin asks.

use std::ffi::{CStr, CString, c_char};
use std::ptr::null_mut;

use nvml_wrapper_sys::bindings as sys;
use nvml_wrapper_sys::bindings::NvmlLib;

use crate::codes::*;
use crate::machine::{Machine, card, machine};

/// Asks a function that gives one number of a handle.
macro_rules! number {
    ($nvml:expr, $function:ident($($argument:expr),+)) => {{
        let mut value = 0;
        // SAFETY: the last pointer is to a local variable; a handle points nowhere.
        let code = unsafe { $nvml.$function($($argument,)+ &raw mut value) };
        if code == OK { Ok(value) } else { Err(code) }
    }};
}

fn partitioned(profile: &str, layout: &str) -> Machine {
    let machine = machine(profile, 2);
    machine.inject(1, &format!("mig {layout}"));
    machine
}

fn partition(
    nvml: &NvmlLib,
    device: sys::nvmlDevice_t,
    index: u32,
) -> Result<sys::nvmlDevice_t, u32> {
    let mut found = null_mut();
    // SAFETY: the pointer is to a local variable.
    match unsafe { nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, index, &raw mut found) } {
        OK => Ok(found),
        code => Err(code),
    }
}

fn text(ask: impl Fn(*mut c_char, u32) -> u32) -> String {
    let mut buffer: [c_char; 96] = [0; 96];
    assert_eq!(ask(buffer.as_mut_ptr(), 96), OK);
    // SAFETY: the buffer was filled with a text and its end.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }
        .to_str()
        .unwrap()
        .to_owned()
}

#[test]
fn a_card_without_the_mode_has_no_partitions_and_one_that_cannot_says_so() {
    let capable = machine("h100-80gb", 1);
    let nvml = capable.begin();
    let device = card(&nvml, 0);
    assert_eq!(number!(nvml, nvmlDeviceGetMaxMigDeviceCount(device)), Ok(0));
    assert_eq!(partition(&nvml, device, 0), Err(NOT_SUPPORTED));
    let (mut current, mut pending) = (9, 9);
    // SAFETY: the pointers are to local variables.
    let code = unsafe { nvml.nvmlDeviceGetMigMode(device, &raw mut current, &raw mut pending) };
    assert_eq!((code, current, pending), (OK, 0, 0));
    let other = machine("t4", 1);
    let nvml = other.begin();
    let device = card(&nvml, 0);
    // SAFETY: the pointers are to local variables.
    let code = unsafe { nvml.nvmlDeviceGetMigMode(device, &raw mut current, &raw mut pending) };
    assert_eq!(code, NOT_SUPPORTED);
    assert_eq!(number!(nvml, nvmlDeviceGetMaxMigDeviceCount(device)), Ok(0));
    assert_eq!(number!(nvml, nvmlDeviceIsMigDeviceHandle(device)), Ok(0));
}

#[test]
fn every_partition_is_found_by_its_index_and_knows_its_card() {
    let machine = partitioned("h100-80gb", "3g.40gb,1g.10gb,1g.10gb");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let most = number!(nvml, nvmlDeviceGetMaxMigDeviceCount(device)).unwrap();
    assert_eq!(most, 7);
    let found: Vec<_> = (0..most)
        .filter_map(|index| partition(&nvml, device, index).ok())
        .collect();
    assert_eq!(found.len(), 3);
    assert_eq!(partition(&nvml, device, 3), Err(NOT_FOUND));
    assert_eq!(partition(&nvml, device, most), Err(INVALID_ARGUMENT));
    for (index, handle) in (0..).zip(&found) {
        assert_eq!(number!(nvml, nvmlDeviceIsMigDeviceHandle(*handle)), Ok(1));
        assert_eq!(number!(nvml, nvmlDeviceGetIndex(*handle)), Ok(index));
        let mut parent = null_mut();
        // SAFETY: the pointer is to a local variable.
        let code =
            unsafe { nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(*handle, &raw mut parent) };
        assert_eq!((code, parent), (OK, device));
    }
    let ids: Vec<_> = found
        .iter()
        .map(|handle| number!(nvml, nvmlDeviceGetGpuInstanceId(*handle)).unwrap())
        .collect();
    assert_eq!(ids, [1, 11, 12]);
    assert_eq!(
        number!(nvml, nvmlDeviceGetComputeInstanceId(found[2])),
        Ok(0)
    );
    assert_eq!(
        number!(nvml, nvmlDeviceGetGpuInstanceId(device)),
        Err(INVALID_ARGUMENT)
    );
}

#[test]
fn a_partition_has_a_name_a_uuid_and_memory_of_its_own() {
    let machine = partitioned("a100-40gb", "3g.20gb/1c/2c,1g.5gb+me");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let names: Vec<String> = (0..3)
        .map(|index| {
            let handle = partition(&nvml, device, index).unwrap();
            // SAFETY: the buffer has the length that is said.
            text(|buffer, length| unsafe { nvml.nvmlDeviceGetName(handle, buffer, length) })
        })
        .collect();
    assert_eq!(
        names,
        [
            "NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb",
            "NVIDIA A100-SXM4-40GB MIG 2c.3g.20gb",
            "NVIDIA A100-SXM4-40GB MIG 1g.5gb+me",
        ]
    );
    let handle = partition(&nvml, device, 1).unwrap();
    // SAFETY: the buffer has the length that is said.
    let uuid = text(|buffer, length| unsafe { nvml.nvmlDeviceGetUUID(handle, buffer, length) });
    assert_eq!(
        uuid,
        machine.now().gpus[1].mig.instances[0].compute_instances[1].uuid
    );
    let mut again = null_mut();
    let wanted = CString::new(uuid).unwrap();
    // SAFETY: the text has its end, the pointer is to a local variable.
    let code = unsafe { nvml.nvmlDeviceGetHandleByUUID(wanted.as_ptr(), &raw mut again) };
    assert_eq!((code, again), (OK, handle));
    // SAFETY: an all-zero structure is a valid one.
    let mut memory: sys::nvmlMemory_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local variable.
    assert_eq!(
        unsafe { nvml.nvmlDeviceGetMemoryInfo(handle, &raw mut memory) },
        OK
    );
    assert_eq!(memory.total, 19_968 << 20);
    // SAFETY: an all-zero structure is a valid one.
    let mut attributes: sys::nvmlDeviceAttributes_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a local variable.
    let code = unsafe { nvml.nvmlDeviceGetAttributes_v2(handle, &raw mut attributes) };
    assert_eq!(code, OK);
    assert_eq!(
        (
            attributes.gpuInstanceSliceCount,
            attributes.computeInstanceSliceCount,
            attributes.multiprocessorCount,
            attributes.memorySizeMB,
        ),
        (3, 2, 28, 19_968)
    );
    // SAFETY: the pointer is to a local variable.
    let code = unsafe { nvml.nvmlDeviceGetAttributes_v2(device, &raw mut attributes) };
    assert_eq!(code, NOT_SUPPORTED);
}

#[test]
fn the_kind_of_a_partition_follows_from_the_profile_that_its_instance_names() {
    let machine = partitioned("h100-80gb", "1g.20gb,2g.20gb");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let mut instance = null_mut();
    let handle = partition(&nvml, device, 1).unwrap();
    let id = number!(nvml, nvmlDeviceGetGpuInstanceId(handle)).unwrap();
    // SAFETY: the pointers are to local variables; handles point nowhere.
    unsafe {
        assert_eq!(
            nvml.nvmlDeviceGetGpuInstanceById(device, id, &raw mut instance),
            OK
        );
        let mut info: sys::nvmlGpuInstanceInfo_t = std::mem::zeroed();
        assert_eq!(nvml.nvmlGpuInstanceGetInfo(instance, &raw mut info), OK);
        assert_eq!((info.device, info.id), (device, id));
        let kinds: Vec<_> = (0..sys::NVML_GPU_INSTANCE_PROFILE_COUNT)
            .filter_map(|number| {
                let mut kind: sys::nvmlGpuInstanceProfileInfo_t = std::mem::zeroed();
                let code = nvml.nvmlDeviceGetGpuInstanceProfileInfo(device, number, &raw mut kind);
                assert!(code == OK || code == NOT_SUPPORTED);
                (code == OK && kind.id == info.profileId).then_some((number, kind.sliceCount))
            })
            .collect();
        // The larger instance lies first, so this is 1g.20gb.
        assert_eq!(kinds, [(9, 1)]);
        assert_eq!(info.placement.size, 2);
        let mut compute = null_mut();
        let code = nvml.nvmlGpuInstanceGetComputeInstanceById(instance, 0, &raw mut compute);
        assert_eq!(code, OK);
        let mut info: sys::nvmlComputeInstanceInfo_t = std::mem::zeroed();
        assert_eq!(
            nvml.nvmlComputeInstanceGetInfo_v2(compute, &raw mut info),
            OK
        );
        assert_eq!(
            (info.device, info.gpuInstance, info.id),
            (device, instance, 0)
        );
        assert_eq!((info.profileId, info.placement.size), (0, 1));
        let code = nvml.nvmlGpuInstanceGetComputeInstanceById(instance, 1, &raw mut compute);
        assert_eq!(code, NOT_FOUND);
        let code = nvml.nvmlDeviceGetGpuInstanceById(device, 0, &raw mut instance);
        assert_eq!(code, NOT_FOUND);
    }
}

#[test]
fn profiles_are_told_in_the_version_that_is_asked_for() {
    let newer = machine("h200-141gb", 1);
    let nvml = newer.begin();
    let device = card(&nvml, 0);
    // SAFETY: an all-zero structure is a valid one; the pointers are to local variables.
    unsafe {
        let mut second: sys::nvmlGpuInstanceProfileInfo_v2_t = std::mem::zeroed();
        let ask = |info| nvml.nvmlDeviceGetGpuInstanceProfileInfoV(device, 2, info);
        assert_eq!(ask(&raw mut second), VERSION_MISMATCH);
        second.version = u32::try_from(size_of_val(&second)).unwrap() | 2 << 24;
        assert_eq!(ask(&raw mut second), OK);
        assert_eq!(CStr::from_ptr(second.name.as_ptr()), c"MIG 3g.71gb");
        let mut third: sys::nvmlGpuInstanceProfileInfo_v3_t = std::mem::zeroed();
        third.version = u32::try_from(size_of_val(&third)).unwrap() | 3 << 24;
        assert_eq!(ask((&raw mut third).cast()), OK);
        assert_eq!((third.id, third.memorySizeMB), (9, 71_424));
        let code = nvml.nvmlDeviceGetGpuInstanceProfileInfoV(device, 17, &raw mut second);
        assert_eq!(code, INVALID_ARGUMENT);
        let older = machine("a100-80gb", 1);
        let nvml = older.begin();
        let device = card(&nvml, 0);
        let ask = |info| nvml.nvmlDeviceGetGpuInstanceProfileInfoV(device, 2, info);
        assert_eq!(ask(&raw mut second), NOT_SUPPORTED);
        older.inject(0, "mig on");
        assert_eq!(ask(&raw mut second), OK);
        let mut count = 0;
        let code = nvml.nvmlDeviceGetGpuInstancePossiblePlacements_v2(
            device,
            9,
            null_mut(),
            &raw mut count,
        );
        assert_eq!((code, count), (OK, 2));
    }
}

#[test]
fn how_many_more_fit_follows_from_what_is_there() {
    let machine = partitioned("a100-40gb", "4g.20gb,2g.10gb");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let left = |id| number!(nvml, nvmlDeviceGetGpuInstanceRemainingCapacity(device, id));
    assert_eq!(left(19), Ok(1));
    assert_eq!(left(14), Ok(0));
    assert_eq!(left(9), Ok(0));
    assert_eq!(left(99), Err(NOT_SUPPORTED));
}

#[test]
fn questions_about_a_card_are_invalid_for_its_partition() {
    let machine = partitioned("h100-80gb", "1g.10gb");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let handle = partition(&nvml, device, 0).unwrap();
    assert_eq!(
        number!(nvml, nvmlDeviceGetMinorNumber(handle)),
        Err(INVALID_ARGUMENT)
    );
    assert_eq!(
        number!(nvml, nvmlDeviceGetPowerUsage(handle)),
        Err(INVALID_ARGUMENT)
    );
    let mut rates = sys::nvmlUtilization_t { gpu: 0, memory: 0 };
    for asked in [device, handle] {
        // SAFETY: the pointer is to a local variable.
        let code = unsafe { nvml.nvmlDeviceGetUtilizationRates(asked, &raw mut rates) };
        assert_eq!(code, NOT_SUPPORTED);
    }
}

#[test]
fn the_handle_of_a_partition_that_is_gone_is_invalid() {
    let machine = partitioned("h100-80gb", "1g.10gb,2g.20gb");
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let small = partition(&nvml, device, 1).unwrap();
    machine.inject(1, "mig 7g.80gb");
    assert_eq!(
        number!(nvml, nvmlDeviceGetGpuInstanceId(small)),
        Err(INVALID_ARGUMENT)
    );
    assert_eq!(number!(nvml, nvmlDeviceGetMinorNumber(device)), Ok(1));
    machine.inject(1, "lost");
    assert_eq!(partition(&nvml, device, 0), Err(GPU_IS_LOST));
}
