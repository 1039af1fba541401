//! Partitions of a card.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings as sys;
use sys::{nvmlComputeInstance_t, nvmlDevice_t, nvmlGpuInstance_t};

use super::abi::{Array, Call, InOut, Out, array};
use crate::library::{Answer, Device, Handle, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED};
use crate::state::{
    COMPUTE_PROFILES, ComputeInstance, GpuInstance, MigFamily, MigProfile, Partition,
};

export! {
    fn nvmlDeviceGetMigMode(call, device: nvmlDevice_t, current: Out<c_uint>, pending: Out<c_uint>) {
        let gpu = call.card(device)?;
        family(&gpu)?;
        current.put(c_uint::from(gpu.mig.enabled))?;
        pending.put(c_uint::from(gpu.mig.pending))
    }

    fn nvmlDeviceGetMaxMigDeviceCount(call, device: nvmlDevice_t, count: Out<c_uint>) {
        let gpu = call.card(device)?;
        count.put(match gpu.profile.mig {
            Some(family) if gpu.mig.enabled => family.slices(),
            _ => 0,
        })
    }

    fn nvmlDeviceGetMigDeviceHandleByIndex(call, device: nvmlDevice_t, index: c_uint, partition: Out<nvmlDevice_t>) {
        let gpu = call.card(device)?;
        // Without the mode there can be none, at any index.
        enabled(&gpu)?;
        if index >= family(&gpu)?.slices() {
            return Err(INVALID_ARGUMENT);
        }
        let wanted = usize::try_from(index).map_err(|_| INVALID_ARGUMENT)?;
        let (instance, compute) = gpu.mig.partitions().nth(wanted).ok_or(NOT_FOUND)?;
        partition.put(gpu.handle_of(Handle::Partition(numbers(instance, compute))))
    }

    fn nvmlDeviceGetDeviceHandleFromMigDeviceHandle(call, partition: nvmlDevice_t, device: Out<nvmlDevice_t>) {
        let found = partition_of(call, partition)?.0;
        device.put(found.handle_of(Handle::Card))
    }

    fn nvmlDeviceIsMigDeviceHandle(call, device: nvmlDevice_t, is_partition: Out<c_uint>) {
        is_partition.put(c_uint::from(call.device(device)?.partition().is_some()))
    }

    fn nvmlDeviceGetGpuInstanceId(call, partition: nvmlDevice_t, id: Out<c_uint>) {
        id.put(partition_of(call, partition)?.1.gpu_instance)
    }

    fn nvmlDeviceGetComputeInstanceId(call, partition: nvmlDevice_t, id: Out<c_uint>) {
        id.put(partition_of(call, partition)?.1.compute_instance)
    }

    fn nvmlDeviceGetAttributes_v2(call, partition: nvmlDevice_t, attributes: Out<sys::nvmlDeviceAttributes_t>) {
        put_attributes(call, partition, &attributes)
    }

    fn nvmlDeviceGetAttributes(call, partition: nvmlDevice_t, attributes: Out<sys::nvmlDeviceAttributes_t>) {
        put_attributes(call, partition, &attributes)
    }

    fn nvmlDeviceGetGpuInstanceProfileInfo(call, device: nvmlDevice_t, profile: c_uint, info: Out<sys::nvmlGpuInstanceProfileInfo_t>) {
        let gpu = call.card(device)?;
        let found = profile_by_number(&gpu, profile)?;
        info.put(sys::nvmlGpuInstanceProfileInfo_t {
            id: found.id,
            isP2pSupported: 0,
            sliceCount: found.slices,
            instanceCount: found.instances,
            multiprocessorCount: found.multiprocessors,
            copyEngineCount: found.copy_engines,
            decoderCount: found.decoders,
            encoderCount: 0,
            jpegCount: found.jpegs,
            ofaCount: found.optical_flow,
            memorySizeMB: found.memory_mib,
        })
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoV(call, device: nvmlDevice_t, profile: c_uint, info: InOut<sys::nvmlGpuInstanceProfileInfo_v2_t>) {
        let gpu = call.card(device)?;
        put_profile(&info, || queryable(&gpu).and_then(|()| profile_by_number(&gpu, profile)))
    }

    fn nvmlDeviceGetGpuInstanceProfileInfoByIdV(call, device: nvmlDevice_t, id: c_uint, info: InOut<sys::nvmlGpuInstanceProfileInfo_v2_t>) {
        let gpu = call.card(device)?;
        put_profile(&info, || queryable(&gpu).and_then(|()| profile_by_id(&gpu, id)))
    }

    fn nvmlDeviceGetGpuInstancePossiblePlacements_v2(call, device: nvmlDevice_t, id: c_uint, places: Array<sys::nvmlGpuInstancePlacement_t>, count: Out<c_uint>) {
        let gpu = call.card(device)?;
        places.fill_all(&count, &all_places(&gpu, id)?)
    }

    fn nvmlDeviceGetGpuInstanceRemainingCapacity(call, device: nvmlDevice_t, id: c_uint, count: Out<c_uint>) {
        let gpu = call.card(device)?;
        enabled(&gpu)?;
        count.put(remaining(&gpu, id)?)
    }

    fn nvmlDeviceGetGpuInstances(call, device: nvmlDevice_t, id: c_uint, instances: Array<nvmlGpuInstance_t>, count: Out<c_uint>) {
        let gpu = call.card(device)?;
        enabled(&gpu)?;
        let profile = profile_by_id(&gpu, id).map_err(|_| INVALID_ARGUMENT)?;
        let found: Vec<nvmlGpuInstance_t> = gpu
            .mig
            .instances
            .iter()
            .filter(|instance| instance.profile == profile.name)
            .map(|instance| gpu.handle_of(Handle::GpuInstance(instance.id)))
            .collect();
        instances.fill_all(&count, &found)
    }

    fn nvmlDeviceGetGpuInstanceById(call, device: nvmlDevice_t, id: c_uint, instance: Out<nvmlGpuInstance_t>) {
        let gpu = call.card(device)?;
        enabled(&gpu)?;
        let found = gpu.mig.instance(id).ok_or(NOT_FOUND)?;
        instance.put(gpu.handle_of(Handle::GpuInstance(found.id)))
    }

    fn nvmlGpuInstanceGetInfo(call, instance: nvmlGpuInstance_t, info: Out<sys::nvmlGpuInstanceInfo_t>) {
        let gpu = call.any(instance)?;
        let found = gpu.gpu_instance()?;
        let profile = gpu.profile_of(found)?;
        info.put(sys::nvmlGpuInstanceInfo_t {
            device: gpu.handle_of(Handle::Card),
            id: found.id,
            profileId: profile.id,
            placement: sys::nvmlGpuInstancePlacement_t {
                start: found.start,
                size: profile.memory_slices,
            },
        })
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfo(call, instance: nvmlGpuInstance_t, profile: c_uint, engines: c_uint, info: Out<sys::nvmlComputeInstanceProfileInfo_t>) {
        let gpu = call.any(instance)?;
        let (found, slices) = compute_profile(&gpu, profile, engines)?;
        info.put(sys::nvmlComputeInstanceProfileInfo_t {
            id: profile,
            sliceCount: slices,
            instanceCount: found.slices / slices,
            multiprocessorCount: found.multiprocessors_of(slices),
            sharedCopyEngineCount: found.copy_engines,
            sharedDecoderCount: found.decoders,
            sharedEncoderCount: 0,
            sharedJpegCount: found.jpegs,
            sharedOfaCount: found.optical_flow,
        })
    }

    fn nvmlGpuInstanceGetComputeInstanceProfileInfoV(call, instance: nvmlGpuInstance_t, profile: c_uint, engines: c_uint, info: InOut<sys::nvmlComputeInstanceProfileInfo_v2_t>) {
        let gpu = call.any(instance)?;
        let version = info.check_version(2)?;
        let (found, slices) = compute_profile(&gpu, profile, engines)?;
        info.put(sys::nvmlComputeInstanceProfileInfo_v2_t {
            version,
            id: profile,
            sliceCount: slices,
            instanceCount: found.slices / slices,
            multiprocessorCount: found.multiprocessors_of(slices),
            sharedCopyEngineCount: found.copy_engines,
            sharedDecoderCount: found.decoders,
            sharedEncoderCount: 0,
            sharedJpegCount: found.jpegs,
            sharedOfaCount: found.optical_flow,
            name: array(&format!("MIG {}", found.compute_name(slices))),
        })
    }

    fn nvmlGpuInstanceGetComputeInstances(call, instance: nvmlGpuInstance_t, profile: c_uint, computes: Array<nvmlComputeInstance_t>, count: Out<c_uint>) {
        let gpu = call.any(instance)?;
        let (_, slices) = compute_profile(&gpu, profile, 0).map_err(|_| INVALID_ARGUMENT)?;
        let found = gpu.gpu_instance()?;
        let handles: Vec<nvmlComputeInstance_t> = found
            .compute_instances
            .iter()
            .filter(|compute| compute.slices == slices)
            .map(|compute| gpu.handle_of(Handle::ComputeInstance(numbers(found, compute))))
            .collect();
        computes.fill_all(&count, &handles)
    }

    fn nvmlGpuInstanceGetComputeInstanceById(call, instance: nvmlGpuInstance_t, id: c_uint, compute: Out<nvmlComputeInstance_t>) {
        let gpu = call.any(instance)?;
        let found = gpu.gpu_instance()?;
        let one = found.compute(id).ok_or(NOT_FOUND)?;
        compute.put(gpu.handle_of(Handle::ComputeInstance(numbers(found, one))))
    }

    fn nvmlComputeInstanceGetInfo_v2(call, compute: nvmlComputeInstance_t, info: Out<sys::nvmlComputeInstanceInfo_t>) {
        let gpu = call.any(compute)?;
        // A partition's handle is a device, not a compute instance.
        if gpu.partition().is_some() {
            return Err(INVALID_ARGUMENT);
        }
        let (instance, found) = gpu.compute_instance()?;
        info.put(sys::nvmlComputeInstanceInfo_t {
            device: gpu.handle_of(Handle::Card),
            gpuInstance: gpu.handle_of(Handle::GpuInstance(instance.id)),
            id: found.id,
            profileId: compute_number(found.slices)?,
            placement: sys::nvmlComputeInstancePlacement_t {
                start: found.start,
                size: found.slices,
            },
        })
    }
}

fn family(gpu: &Device) -> Answer<MigFamily> {
    gpu.profile.mig.ok_or(NOT_SUPPORTED)
}

fn enabled(gpu: &Device) -> Answer<()> {
    if gpu.mig.enabled {
        Ok(())
    } else {
        Err(NOT_SUPPORTED)
    }
}

/// Whether the versioned questions about profiles are answered: older cards want the mode.
fn queryable(gpu: &Device) -> Answer<()> {
    if gpu.profile.mig_needs_no_reset() {
        return Ok(());
    }
    enabled(gpu)
}

fn numbers(instance: &GpuInstance, compute: &ComputeInstance) -> Partition {
    Partition {
        gpu_instance: instance.id,
        compute_instance: compute.id,
    }
}

/// The card and the numbers of a partition's handle; a card's own is invalid.
fn partition_of(call: &Call, handle: nvmlDevice_t) -> Answer<(Device, Partition)> {
    let device = call.device(handle)?;
    let partition = device.partition().ok_or(INVALID_ARGUMENT)?;
    Ok((device, partition))
}

fn profile_by_number(gpu: &Device, number: c_uint) -> Answer<&'static MigProfile> {
    let profiles = family(gpu)?.profiles();
    if number >= sys::NVML_GPU_INSTANCE_PROFILE_COUNT {
        return Err(INVALID_ARGUMENT);
    }
    let found = profiles.iter().find(|profile| profile.number == number);
    found.ok_or(NOT_SUPPORTED)
}

fn profile_by_id(gpu: &Device, id: c_uint) -> Answer<&'static MigProfile> {
    let profiles = family(gpu)?.profiles();
    profiles
        .iter()
        .find(|profile| profile.id == id)
        .ok_or(NOT_SUPPORTED)
}

/// Whether two partitions of a kind reach each other, which those of one GPU do not.
const NO_CAPABILITIES: c_uint = 0;

/// Fills the second or third version of the structure, as the caller says.
fn put_profile(
    info: &InOut<sys::nvmlGpuInstanceProfileInfo_v2_t>,
    find: impl Fn() -> Answer<&'static MigProfile>,
) -> Answer<()> {
    let third = info.cast::<sys::nvmlGpuInstanceProfileInfo_v3_t>();
    if let Ok(version) = third.check_version(3) {
        let found = find()?;
        return third.put(sys::nvmlGpuInstanceProfileInfo_v3_t {
            version,
            id: found.id,
            sliceCount: found.slices,
            instanceCount: found.instances,
            multiprocessorCount: found.multiprocessors,
            copyEngineCount: found.copy_engines,
            decoderCount: found.decoders,
            encoderCount: 0,
            jpegCount: found.jpegs,
            ofaCount: found.optical_flow,
            memorySizeMB: found.memory_mib,
            name: array(&format!("MIG {}", found.name)),
            capabilities: NO_CAPABILITIES,
        });
    }
    let version = info.check_version(2)?;
    let found = find()?;
    info.put(sys::nvmlGpuInstanceProfileInfo_v2_t {
        version,
        id: found.id,
        isP2pSupported: 0,
        sliceCount: found.slices,
        instanceCount: found.instances,
        multiprocessorCount: found.multiprocessors,
        copyEngineCount: found.copy_engines,
        decoderCount: found.decoders,
        encoderCount: 0,
        jpegCount: found.jpegs,
        ofaCount: found.optical_flow,
        memorySizeMB: found.memory_mib,
        name: array(&format!("MIG {}", found.name)),
    })
}

fn all_places(gpu: &Device, id: c_uint) -> Answer<Vec<sys::nvmlGpuInstancePlacement_t>> {
    let profile = profile_by_id(gpu, id)?;
    let starts = family(gpu)?.starts(profile);
    let place = |start| sys::nvmlGpuInstancePlacement_t {
        start,
        size: profile.memory_slices,
    };
    Ok(starts.into_iter().map(place).collect())
}

/// How many instances of this kind still fit.
fn remaining(gpu: &Device, id: c_uint) -> Answer<c_uint> {
    let wanted = profile_by_id(gpu, id)?;
    let mut memory_taken = 0_u32;
    let mut slices_taken = 0;
    for instance in &gpu.mig.instances {
        let profile = gpu.profile_of(instance)?;
        memory_taken |= ((1 << profile.memory_slices) - 1) << instance.start;
        slices_taken += profile.slices;
    }
    let same = gpu
        .mig
        .instances
        .iter()
        .filter(|one| one.profile == wanted.name);
    let same = c_uint::try_from(same.count()).unwrap_or(c_uint::MAX);
    let is_free = |start: &u32| memory_taken & (((1 << wanted.memory_slices) - 1) << *start) == 0;
    let places = family(gpu)?
        .starts(wanted)
        .into_iter()
        .filter(is_free)
        .count();
    let places = c_uint::try_from(places).unwrap_or(c_uint::MAX);
    let slices_left = family(gpu)?.slices().saturating_sub(slices_taken);
    Ok(places
        .min(slices_left / wanted.slices)
        .min(wanted.instances.saturating_sub(same)))
}

/// The GPU instance's kind, and the slices of this kind of compute instance in it.
fn compute_profile(
    gpu: &Device,
    number: c_uint,
    engines: c_uint,
) -> Answer<(&'static MigProfile, u32)> {
    let instance = gpu.gpu_instance()?;
    if number >= sys::NVML_COMPUTE_INSTANCE_PROFILE_COUNT
        || engines >= sys::NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_COUNT
    {
        return Err(INVALID_ARGUMENT);
    }
    let profile = gpu.profile_of(instance)?;
    COMPUTE_PROFILES
        .iter()
        .find(|(known, slices)| *known == number && profile.takes(*slices))
        .map(|(_, slices)| (profile, *slices))
        .ok_or(NOT_SUPPORTED)
}

fn compute_number(slices: u32) -> Answer<c_uint> {
    let found = COMPUTE_PROFILES.iter().find(|(_, known)| *known == slices);
    found.map(|(number, _)| *number).ok_or(NOT_SUPPORTED)
}

fn put_attributes(
    call: &Call,
    partition: nvmlDevice_t,
    attributes: &Out<sys::nvmlDeviceAttributes_t>,
) -> Answer<()> {
    let device = call.device(partition)?;
    // NVML answers this of partitions only.
    if device.partition().is_none() {
        return Err(NOT_SUPPORTED);
    }
    let (instance, compute) = device.compute_instance()?;
    let profile = device.profile_of(instance)?;
    attributes.put(sys::nvmlDeviceAttributes_t {
        multiprocessorCount: profile.multiprocessors_of(compute.slices),
        sharedCopyEngineCount: profile.copy_engines,
        sharedDecoderCount: profile.decoders,
        sharedEncoderCount: 0,
        sharedJpegCount: profile.jpegs,
        sharedOfaCount: profile.optical_flow,
        gpuInstanceSliceCount: profile.slices,
        computeInstanceSliceCount: compute.slices,
        memorySizeMB: profile.memory_mib,
    })
}
