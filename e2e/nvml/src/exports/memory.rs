//! Memory of cards and partitions, and its errors.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_uint, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;
use sys::nvmlDevice_t;

use super::abi::{Array, InOut, Out};
use crate::library::{Answer, Device, INVALID_ARGUMENT, NOT_SUPPORTED};
use crate::state::ErrorCounts;

const MIB: u64 = 1 << 20;
/// Spare rows of each bank, and how many banks there are.
const BANKS: u32 = 640;

export! {
    fn nvmlDeviceGetMemoryInfo(call, device: nvmlDevice_t, memory: Out<sys::nvmlMemory_t>) {
        let found = memory_of(&call.device(device)?)?;
        // This older form counts what the driver keeps as used.
        let used = found.used + found.reserved;
        memory.put(sys::nvmlMemory_t {
            total: found.total,
            free: found.total.saturating_sub(used),
            used,
        })
    }

    fn nvmlDeviceGetMemoryInfo_v2(call, device: nvmlDevice_t, memory: InOut<sys::nvmlMemory_v2_t>) {
        let gpu = call.device(device)?;
        let version = memory.check_version(2)?;
        let found = memory_of(&gpu)?;
        memory.put(sys::nvmlMemory_v2_t {
            version,
            total: found.total,
            reserved: found.reserved,
            free: found.total.saturating_sub(found.reserved + found.used),
            used: found.used,
        })
    }

    fn nvmlDeviceGetBAR1MemoryInfo(call, device: nvmlDevice_t, memory: Out<sys::nvmlBAR1Memory_t>) {
        let gpu = call.card(device)?;
        let total = gpu.profile.memory_bytes.next_power_of_two();
        memory.put(sys::nvmlBAR1Memory_t {
            bar1Total: total,
            bar1Free: total - MIB,
            bar1Used: MIB,
        })
    }

    fn nvmlDeviceGetEccMode(call, device: nvmlDevice_t, current: Out<sys::nvmlEnableState_t>, pending: Out<sys::nvmlEnableState_t>) {
        let mode = c_uint::from(call.card(device)?.profile.ecc_enabled);
        current.put(mode)?;
        pending.put(mode)
    }

    fn nvmlDeviceGetTotalEccErrors(call, device: nvmlDevice_t, kind: sys::nvmlMemoryErrorType_t, counter: sys::nvmlEccCounterType_t, errors: Out<c_ulonglong>) {
        let gpu = call.card(device)?;
        errors.put(counted(&gpu, kind, counter)?)
    }

    fn nvmlDeviceGetMemoryErrorCounter(call, device: nvmlDevice_t, kind: sys::nvmlMemoryErrorType_t, counter: sys::nvmlEccCounterType_t, location: sys::nvmlMemoryLocation_t, errors: Out<c_ulonglong>) {
        let gpu = call.device(device)?;
        if location >= sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_COUNT {
            return Err(INVALID_ARGUMENT);
        }
        let all = counted(&gpu, kind, counter)?;
        // The stand-in's errors are all in the card's memory, and in no partition's own.
        let here = location == sys::nvmlMemoryLocation_enum_NVML_MEMORY_LOCATION_DRAM
            && gpu.partition().is_none();
        errors.put(if here { all } else { 0 })
    }

    fn nvmlDeviceGetRemappedRows(call, device: nvmlDevice_t, correctable: Out<c_uint>, uncorrectable: Out<c_uint>, pending: Out<c_uint>, failed: Out<c_uint>) {
        let gpu = call.card(device)?;
        // Partitions hide the rows of the card.
        if !gpu.profile.remaps_rows() || gpu.mig.enabled && !gpu.mig.instances.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let rows = gpu.remapped_rows;
        correctable.put(rows.correctable)?;
        uncorrectable.put(rows.uncorrectable)?;
        pending.put(c_uint::from(rows.pending))?;
        failed.put(c_uint::from(rows.failed))
    }

    fn nvmlDeviceGetRowRemapperHistogram(call, device: nvmlDevice_t, values: Out<sys::nvmlRowRemapperHistogramValues_t>) {
        let gpu = call.card(device)?;
        if !gpu.profile.remaps_rows() {
            return Err(NOT_SUPPORTED);
        }
        let rows = gpu.remapped_rows;
        // A bank each, until there are no more.
        let touched = rows.correctable.saturating_add(rows.uncorrectable).min(BANKS);
        values.put(sys::nvmlRowRemapperHistogramValues_t {
            max: BANKS - touched,
            high: touched.saturating_sub(u32::from(rows.failed)),
            partial: 0,
            low: 0,
            none: u32::from(rows.failed).min(touched),
        })
    }

    fn nvmlDeviceGetRetiredPages(call, device: nvmlDevice_t, cause: sys::nvmlPageRetirementCause_t, count: InOut<c_uint>, addresses: Array<c_ulonglong>) {
        let gpu = call.card(device)?;
        addresses.fill(&count, &retired(&gpu, cause)?)
    }

    fn nvmlDeviceGetRetiredPages_v2(call, device: nvmlDevice_t, cause: sys::nvmlPageRetirementCause_t, count: InOut<c_uint>, addresses: Array<c_ulonglong>, timestamps: Array<c_ulonglong>) {
        let gpu = call.card(device)?;
        let pages = retired(&gpu, cause)?;
        let room = count.get()?;
        addresses.fill(&count, &pages)?;
        // When is not known.
        count.put(room)?;
        timestamps.fill(&count, &vec![0; pages.len()])
    }

    fn nvmlDeviceGetRetiredPagesPendingStatus(call, device: nvmlDevice_t, pending: Out<sys::nvmlEnableState_t>) {
        let gpu = call.card(device)?;
        retires_pages(&gpu)?;
        pending.put(c_uint::from(gpu.retired_pages.iter().any(|page| page.pending)))
    }
}

/// Memory of a card or partition, in bytes.
struct Memory {
    total: u64,
    reserved: u64,
    used: u64,
}

fn memory_of(device: &Device) -> Answer<Memory> {
    let partition = device.partition();
    let used = device.used_bytes(partition);
    if partition.is_none() {
        return Ok(Memory {
            total: device.profile.memory_bytes,
            reserved: device.profile.reserved_memory_bytes,
            used,
        });
    }
    let (instance, _) = device.compute_instance()?;
    let total = device.profile_of(instance)?.memory_mib * MIB;
    Ok(Memory {
        total,
        reserved: 0,
        used: used.min(total),
    })
}

fn counted(
    gpu: &Device,
    kind: sys::nvmlMemoryErrorType_t,
    counter: sys::nvmlEccCounterType_t,
) -> Answer<u64> {
    if kind >= sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_COUNT {
        return Err(INVALID_ARGUMENT);
    }
    let counts: ErrorCounts = match counter {
        sys::nvmlEccCounterType_enum_NVML_VOLATILE_ECC => gpu.ecc.volatile,
        sys::nvmlEccCounterType_enum_NVML_AGGREGATE_ECC => gpu.ecc.aggregate,
        _ => return Err(INVALID_ARGUMENT),
    };
    if !gpu.profile.ecc_enabled {
        return Err(NOT_SUPPORTED);
    }
    let uncorrected = kind == sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED;
    Ok(if uncorrected {
        counts.uncorrected
    } else {
        counts.corrected
    })
}

/// Cards that remap rows retire no pages.
fn retires_pages(gpu: &Device) -> Answer<()> {
    if gpu.profile.ecc_enabled && !gpu.profile.remaps_rows() {
        Ok(())
    } else {
        Err(NOT_SUPPORTED)
    }
}

fn retired(gpu: &Device, cause: sys::nvmlPageRetirementCause_t) -> Answer<Vec<u64>> {
    use sys::{
        nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_COUNT as COUNT,
        nvmlPageRetirementCause_enum_NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR as DOUBLE,
    };
    if cause >= COUNT {
        return Err(INVALID_ARGUMENT);
    }
    retires_pages(gpu)?;
    let pages = gpu.retired_pages.iter();
    Ok(pages
        .filter(|page| page.double_bit == (cause == DOUBLE))
        .map(|page| page.address)
        .collect())
}
