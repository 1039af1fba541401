//! Which cards and partitions there are, and what they are.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_int, c_uint};

use nvml_wrapper_sys::bindings as sys;
use sys::nvmlDevice_t;

use super::abi::{Buffer, Call, Out, Text, array};
use crate::library::{
    Answer, Device, Handle, INVALID_ARGUMENT, LIBRARY, NOT_FOUND, NOT_SUPPORTED, UNKNOWN,
};
use crate::state::{Gpu, Partition};

export! {
    fn nvmlDeviceGetHandleByIndex_v2(call, index: c_uint, device: Out<nvmlDevice_t>) {
        device.put(by_index(call, index)?)
    }

    fn nvmlDeviceGetHandleByIndex(call, index: c_uint, device: Out<nvmlDevice_t>) {
        device.put(by_index(call, index)?)
    }

    fn nvmlDeviceGetHandleByUUID(call, uuid: Text, device: Out<nvmlDevice_t>) {
        let wanted = uuid.get()?;
        device.put(LIBRARY.find(call.function, NOT_FOUND, |_, gpu| by_uuid(gpu, wanted))?)
    }

    fn nvmlDeviceGetHandleBySerial(call, serial: Text, device: Out<nvmlDevice_t>) {
        let wanted = serial.get()?;
        device.put(LIBRARY.find(call.function, NOT_FOUND, |_, gpu| {
            (has_serial(gpu) && gpu.serial == wanted).then_some(Handle::Card)
        })?)
    }

    fn nvmlDeviceGetHandleByPciBusId_v2(call, address: Text, device: Out<nvmlDevice_t>) {
        device.put(by_address(call, address.get()?)?)
    }

    fn nvmlDeviceGetHandleByPciBusId(call, address: Text, device: Out<nvmlDevice_t>) {
        device.put(by_address(call, address.get()?)?)
    }

    fn nvmlDeviceGetName(call, device: nvmlDevice_t, name: Buffer, length: c_uint) {
        name.put(length, &model(&call.device(device)?)?)
    }

    fn nvmlDeviceGetUUID(call, device: nvmlDevice_t, uuid: Buffer, length: c_uint) {
        let device = call.device(device)?;
        match device.partition() {
            None => uuid.put(length, &device.uuid),
            Some(_) => uuid.put(length, &device.compute_instance()?.1.uuid),
        }
    }

    fn nvmlDeviceGetSerial(call, device: nvmlDevice_t, serial: Buffer, length: c_uint) {
        let gpu = call.card(device)?;
        if !has_serial(&gpu) {
            return Err(NOT_SUPPORTED);
        }
        serial.put(length, &gpu.serial)
    }

    fn nvmlDeviceGetIndex(call, device: nvmlDevice_t, index: Out<c_uint>) {
        let device = call.device(device)?;
        let found = match device.partition() {
            None => Some(device.index),
            Some(wanted) => device.mig.partitions().position(|(instance, compute)| {
                (instance.id, compute.id) == (wanted.gpu_instance, wanted.compute_instance)
            }),
        };
        let found = found.and_then(|found| c_uint::try_from(found).ok());
        index.put(found.ok_or(UNKNOWN)?)
    }

    fn nvmlDeviceGetMinorNumber(call, device: nvmlDevice_t, minor: Out<c_uint>) {
        minor.put(call.card(device)?.minor)
    }

    fn nvmlDeviceGetBrand(call, device: nvmlDevice_t, brand: Out<sys::nvmlBrandType_t>) {
        brand.put(call.card(device)?.profile.brand)
    }

    fn nvmlDeviceGetArchitecture(call, device: nvmlDevice_t, architecture: Out<sys::nvmlDeviceArchitecture_t>) {
        architecture.put(call.card(device)?.profile.architecture)
    }

    fn nvmlDeviceGetCudaComputeCapability(call, device: nvmlDevice_t, major: Out<c_int>, minor: Out<c_int>) {
        let gpu = call.device(device)?;
        major.put(gpu.profile.compute_capability_major)?;
        minor.put(gpu.profile.compute_capability_minor)
    }

    // One board, one GPU: a number that follows from its address.
    fn nvmlDeviceGetBoardId(call, device: nvmlDevice_t, board: Out<c_uint>) {
        let gpu = call.card(device)?;
        board.put(gpu.place.board.unwrap_or(gpu.pci_bus << 8))
    }

    fn nvmlDeviceGetMultiGpuBoard(call, device: nvmlDevice_t, shared: Out<c_uint>) {
        let gpu = call.card(device)?;
        shared.put(c_uint::from(gpu.place.board.is_some()))
    }

    fn nvmlDeviceGetPciInfo_v3(call, device: nvmlDevice_t, pci: Out<sys::nvmlPciInfo_t>) {
        let gpu = call.card(device)?;
        pci.put(pci_info(&gpu.pci_address(), &gpu))
    }

    // The second version already has the fields of the third.
    fn nvmlDeviceGetPciInfo_v2(call, device: nvmlDevice_t, pci: Out<sys::nvmlPciInfo_t>) {
        let gpu = call.card(device)?;
        pci.put(pci_info(&gpu.pci_address(), &gpu))
    }

    fn nvmlDeviceGetPersistenceMode(call, device: nvmlDevice_t, mode: Out<sys::nvmlEnableState_t>) {
        call.card(device)?;
        mode.put(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)
    }

    fn nvmlDeviceGetComputeMode(call, device: nvmlDevice_t, mode: Out<sys::nvmlComputeMode_t>) {
        call.device(device)?;
        mode.put(sys::nvmlComputeMode_enum_NVML_COMPUTEMODE_DEFAULT)
    }

    fn nvmlDeviceGetVirtualizationMode(call, device: nvmlDevice_t, mode: Out<sys::nvmlGpuVirtualizationMode_t>) {
        call.card(device)?;
        mode.put(sys::nvmlGpuVirtualizationMode_NVML_GPU_VIRTUALIZATION_MODE_NONE)
    }

    fn nvmlDeviceGetDisplayMode(call, device: nvmlDevice_t, mode: Out<sys::nvmlEnableState_t>) {
        call.card(device)?;
        mode.put(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED)
    }

    fn nvmlDeviceGetDisplayActive(call, device: nvmlDevice_t, active: Out<sys::nvmlEnableState_t>) {
        call.card(device)?;
        active.put(sys::nvmlEnableState_enum_NVML_FEATURE_DISABLED)
    }
}

fn by_index(call: &Call, index: c_uint) -> Answer<nvmlDevice_t> {
    let wanted = usize::try_from(index).map_err(|_| INVALID_ARGUMENT)?;
    LIBRARY.find(call.function, INVALID_ARGUMENT, |position, _| {
        (position == wanted).then_some(Handle::Card)
    })
}

fn by_uuid(gpu: &Gpu, wanted: &str) -> Option<Handle> {
    if gpu.uuid == wanted {
        return Some(Handle::Card);
    }
    gpu.mig
        .partitions()
        .find(|(_, compute)| compute.uuid == wanted)
        .map(|(instance, compute)| {
            Handle::Partition(Partition {
                gpu_instance: instance.id,
                compute_instance: compute.id,
            })
        })
}

fn by_address(call: &Call, text: &str) -> Answer<nvmlDevice_t> {
    let wanted = pci_address(text).ok_or(INVALID_ARGUMENT)?;
    LIBRARY.find(call.function, NOT_FOUND, |_, gpu| {
        ((gpu.pci_domain, gpu.pci_bus, gpu.pci_device) == wanted).then_some(Handle::Card)
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

/// The product's name; of a partition, with what kind of partition it is.
fn model(device: &Device) -> Answer<String> {
    let model = &device.profile.model;
    if device.partition().is_none() {
        return Ok(model.clone());
    }
    let (instance, compute) = device.compute_instance()?;
    let kind = device.profile_of(instance)?.compute_name(compute.slices);
    Ok(format!("{model} MIG {kind}"))
}

/// Cards for players have no serial number that the driver knows.
fn has_serial(gpu: &Gpu) -> bool {
    gpu.profile.brand != sys::nvmlBrandType_enum_NVML_BRAND_GEFORCE
}

pub(super) fn pci_info(address: &str, gpu: &Gpu) -> sys::nvmlPciInfo_t {
    sys::nvmlPciInfo_t {
        // The older form has a domain of four digits.
        busIdLegacy: array(address.get(4..).unwrap_or_default()),
        domain: gpu.pci_domain,
        bus: gpu.pci_bus,
        device: gpu.pci_device,
        pciDeviceId: gpu.profile.pci_device_id,
        pciSubSystemId: gpu.profile.pci_subsystem_id,
        busId: array(address),
    }
}
