//! Figures that NVML has under numbers instead of functions.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_int, c_uint};
use std::time::Instant;

use nvml_wrapper_sys::bindings as sys;
use sys::{field_id as ids, nvmlDevice_t};

use super::abi::Array;
use super::readings::{lowest_limit_milliwatts, now_us, violation_ns};
use super::topology::one_link;
use crate::library::{Answer, INVALID_ARGUMENT, NOT_SUPPORTED};
use crate::state::{Gpu, Link};

/// Speed of an NVLink in each direction, in MB in a second.
const LINK_SPEED_MBPS: u32 = 26_562;
/// Scope of all NVLinks together.
const ALL_LINKS: c_uint = c_uint::MAX;

export! {
    fn nvmlDeviceGetFieldValues(call, device: nvmlDevice_t, count: c_int, values: Array<sys::nvmlFieldValue_t>) {
        let gpu = call.card(device)?;
        let room = c_uint::try_from(count).ok().filter(|count| *count > 0);
        values.change_each(room.ok_or(INVALID_ARGUMENT)?, |asked| fill(&gpu, asked))
    }
}

/// A figure in the type that NVML gives it in.
enum Figure {
    Unsigned(u32),
    Long(u64),
}

fn fill(gpu: &Gpu, mut asked: sys::nvmlFieldValue_t) -> sys::nvmlFieldValue_t {
    let began = Instant::now();
    match figure(gpu, asked.fieldId, asked.scopeId) {
        Ok(found) => {
            asked.nvmlReturn = sys::nvmlReturn_enum_NVML_SUCCESS;
            (asked.valueType, asked.value) = match found {
                Figure::Unsigned(value) => (
                    sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT,
                    // The wider field, so that the rest of the value is zero.
                    sys::nvmlValue_t {
                        ullVal: u64::from(value),
                    },
                ),
                Figure::Long(value) => (
                    sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG,
                    sys::nvmlValue_t { ullVal: value },
                ),
            };
        }
        Err(code) => asked.nvmlReturn = code,
    }
    asked.timestamp = i64::try_from(now_us()).unwrap_or(0);
    asked.latencyUsec = i64::try_from(began.elapsed().as_micros()).unwrap_or(0);
    asked
}

fn figure(gpu: &Gpu, field: c_uint, scope: c_uint) -> Answer<Figure> {
    match field {
        0 => Err(INVALID_ARGUMENT),
        ids::NVML_FI_DEV_ECC_CURRENT..=ids::NVML_FI_DEV_RETIRED_PENDING
        | ids::NVML_FI_DEV_REMAPPED_COR..=ids::NVML_FI_DEV_REMAPPED_FAILURE => {
            memory_figure(gpu, field)
        }
        ids::NVML_FI_DEV_PERF_POLICY_POWER..=ids::NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS => {
            policy_figure(gpu, field)
        }
        ids::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
        | ids::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL
        | ids::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL
        | ids::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL
        | ids::NVML_FI_DEV_NVLINK_LINK_COUNT
        | ids::NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON
        | ids::NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY..=ids::NVML_FI_DEV_NVLINK_GET_VERSION => {
            link_figure(gpu, field, scope)
        }
        _ => board_figure(gpu, field),
    }
}

fn memory_figure(gpu: &Gpu, field: c_uint) -> Answer<Figure> {
    use Figure::{Long, Unsigned};
    let (volatile, aggregate, rows) = (gpu.ecc.volatile, gpu.ecc.aggregate, gpu.remapped_rows);
    if matches!(
        field,
        ids::NVML_FI_DEV_ECC_CURRENT | ids::NVML_FI_DEV_ECC_PENDING
    ) {
        return Ok(Unsigned(u32::from(gpu.profile.ecc_enabled)));
    }
    let is_row = field >= ids::NVML_FI_DEV_REMAPPED_COR;
    let is_page =
        (ids::NVML_FI_DEV_RETIRED_SBE..=ids::NVML_FI_DEV_RETIRED_PENDING).contains(&field);
    let remaps = gpu.profile.remaps_rows();
    if !gpu.profile.ecc_enabled || is_row && !remaps || is_page && remaps {
        return Err(NOT_SUPPORTED);
    }
    let pages = |double_bit| {
        let pages = gpu.retired_pages.iter();
        let count = pages.filter(|page| page.double_bit == double_bit).count();
        Long(u64::try_from(count).unwrap_or(u64::MAX))
    };
    Ok(match field {
        ids::NVML_FI_DEV_ECC_SBE_VOL_TOTAL | ids::NVML_FI_DEV_ECC_SBE_VOL_DEV => {
            Long(volatile.corrected)
        }
        ids::NVML_FI_DEV_ECC_DBE_VOL_TOTAL | ids::NVML_FI_DEV_ECC_DBE_VOL_DEV => {
            Long(volatile.uncorrected)
        }
        ids::NVML_FI_DEV_ECC_SBE_AGG_TOTAL | ids::NVML_FI_DEV_ECC_SBE_AGG_DEV => {
            Long(aggregate.corrected)
        }
        ids::NVML_FI_DEV_ECC_DBE_AGG_TOTAL | ids::NVML_FI_DEV_ECC_DBE_AGG_DEV => {
            Long(aggregate.uncorrected)
        }
        ids::NVML_FI_DEV_RETIRED_SBE => pages(false),
        ids::NVML_FI_DEV_RETIRED_DBE => pages(true),
        ids::NVML_FI_DEV_RETIRED_PENDING => {
            Unsigned(u32::from(gpu.retired_pages.iter().any(|page| page.pending)))
        }
        ids::NVML_FI_DEV_REMAPPED_COR => Unsigned(rows.correctable),
        ids::NVML_FI_DEV_REMAPPED_UNC => Unsigned(rows.uncorrectable),
        ids::NVML_FI_DEV_REMAPPED_PENDING => Unsigned(u32::from(rows.pending)),
        ids::NVML_FI_DEV_REMAPPED_FAILURE => Unsigned(u32::from(rows.failed)),
        // The stand-in's errors are all in the card's memory.
        _ => Long(0),
    })
}

fn policy_figure(gpu: &Gpu, field: c_uint) -> Answer<Figure> {
    let policy = match field {
        ids::NVML_FI_DEV_PERF_POLICY_TOTAL_APP_CLOCKS => {
            sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_APP_CLOCKS
        }
        ids::NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS => {
            sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_BASE_CLOCKS
        }
        // The others have NVML's numbers of policies in their order.
        _ => field - ids::NVML_FI_DEV_PERF_POLICY_POWER,
    };
    violation_ns(gpu, policy).map(Figure::Long)
}

fn link_figure(gpu: &Gpu, field: c_uint, scope: c_uint) -> Answer<Figure> {
    use Figure::{Long, Unsigned};
    if field == ids::NVML_FI_DEV_NVLINK_LINK_COUNT {
        return Ok(Unsigned(gpu.profile.nvlinks));
    }
    if gpu.profile.nvlinks == 0 {
        return Err(NOT_SUPPORTED);
    }
    let total = |of: fn(&Link) -> u64| Long(gpu.links.iter().map(of).fold(0, u64::saturating_add));
    let scoped = |of: fn(&Link) -> u64| {
        if scope == ALL_LINKS {
            Ok(total(of))
        } else {
            one_link(gpu, scope).map(|link| Long(of(link)))
        }
    };
    match field {
        ids::NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
        | ids::NVML_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL => Ok(total(|link| link.crc_errors)),
        ids::NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL => Ok(total(|link| link.replays)),
        ids::NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL => Ok(total(|link| link.recoveries)),
        ids::NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON => Ok(Unsigned(LINK_SPEED_MBPS)),
        ids::NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY => scoped(|link| link.replays),
        ids::NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY => scoped(|link| link.recoveries),
        ids::NVML_FI_DEV_NVLINK_ERROR_DL_CRC => scoped(|link| link.crc_errors),
        ids::NVML_FI_DEV_NVLINK_GET_SPEED => {
            one_link(gpu, scope).map(|link| Unsigned(if link.up { LINK_SPEED_MBPS } else { 0 }))
        }
        ids::NVML_FI_DEV_NVLINK_GET_STATE => {
            one_link(gpu, scope).map(|link| Unsigned(u32::from(link.up)))
        }
        ids::NVML_FI_DEV_NVLINK_GET_VERSION => {
            one_link(gpu, scope).map(|_| Unsigned(gpu.profile.nvlink_version))
        }
        _ => Err(NOT_SUPPORTED),
    }
}

fn board_figure(gpu: &Gpu, field: c_uint) -> Answer<Figure> {
    use Figure::{Long, Unsigned};
    Ok(match field {
        ids::NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION | ids::NVML_FI_DEV_ENERGY => {
            Long(gpu.energy_millijoules)
        }
        ids::NVML_FI_DEV_PCIE_REPLAY_COUNTER => Unsigned(gpu.pcie.replays),
        ids::NVML_FI_DEV_POWER_AVERAGE | ids::NVML_FI_DEV_POWER_INSTANT => {
            Unsigned(gpu.power_milliwatts)
        }
        ids::NVML_FI_DEV_POWER_MIN_LIMIT => Unsigned(lowest_limit_milliwatts(gpu)),
        ids::NVML_FI_DEV_POWER_MAX_LIMIT | ids::NVML_FI_DEV_POWER_DEFAULT_LIMIT => {
            Unsigned(gpu.profile.power_limit_milliwatts)
        }
        ids::NVML_FI_DEV_POWER_CURRENT_LIMIT | ids::NVML_FI_DEV_POWER_REQUESTED_LIMIT => {
            Unsigned(gpu.power_limit_milliwatts)
        }
        // Only stacked memory has a sensor of its own.
        ids::NVML_FI_DEV_MEMORY_TEMP if gpu.profile.has_stacked_memory() => {
            Unsigned(gpu.temperature_celsius)
        }
        ids::NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
        | ids::NVML_FI_DEV_IS_MIG_MODE_INDEPENDENT_MIG_QUERY_CAPABLE => {
            Unsigned(u32::from(gpu.profile.mig_needs_no_reset()))
        }
        _ => return Err(NOT_SUPPORTED),
    })
}
