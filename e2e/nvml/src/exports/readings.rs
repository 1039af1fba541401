//! How cards are: heat, power, clocks, load and the PCI Express link.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_uint, c_ulonglong};
use std::time::{SystemTime, UNIX_EPOCH};

use nvml_wrapper_sys::bindings as sys;
use sys::nvmlDevice_t;

use super::abi::{Call, InOut, Out};
use crate::library::{Answer, Device, INVALID_ARGUMENT, NOT_SUPPORTED};
use crate::state::Gpu;

/// Clock of an idle card, in MHz.
const IDLE_CLOCK_MHZ: u32 = 210;
/// How often encoder and decoder are looked at, in microseconds.
const SAMPLING_PERIOD_US: c_uint = 167_000;
/// Lowest power limit that can be set, as a share of the default.
const LOWEST_LIMIT_PERCENT: u32 = 28;

export! {
    fn nvmlDeviceGetTemperature(call, device: nvmlDevice_t, sensor: sys::nvmlTemperatureSensors_t, celsius: Out<c_uint>) {
        let gpu = call.card(device)?;
        if sensor != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(INVALID_ARGUMENT);
        }
        celsius.put(gpu.temperature_celsius)
    }

    fn nvmlDeviceGetTemperatureV(call, device: nvmlDevice_t, temperature: InOut<sys::nvmlTemperature_v1_t>) {
        let gpu = call.card(device)?;
        temperature.check_version(1)?;
        let mut asked = temperature.get()?;
        if asked.sensorType != sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU {
            return Err(INVALID_ARGUMENT);
        }
        asked.temperature = i32::try_from(gpu.temperature_celsius).unwrap_or(i32::MAX);
        temperature.put(asked)
    }

    fn nvmlDeviceGetTemperatureThreshold(call, device: nvmlDevice_t, threshold: sys::nvmlTemperatureThresholds_t, celsius: Out<c_uint>) {
        let gpu = call.card(device)?;
        celsius.put(limit_celsius(&gpu, threshold)?)
    }

    fn nvmlDeviceGetPowerUsage(call, device: nvmlDevice_t, milliwatts: Out<c_uint>) {
        milliwatts.put(call.card(device)?.power_milliwatts)
    }

    fn nvmlDeviceGetPowerManagementMode(call, device: nvmlDevice_t, mode: Out<sys::nvmlEnableState_t>) {
        call.card(device)?;
        mode.put(sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED)
    }

    fn nvmlDeviceGetPowerManagementLimit(call, device: nvmlDevice_t, milliwatts: Out<c_uint>) {
        milliwatts.put(call.card(device)?.power_limit_milliwatts)
    }

    fn nvmlDeviceGetPowerManagementDefaultLimit(call, device: nvmlDevice_t, milliwatts: Out<c_uint>) {
        milliwatts.put(call.card(device)?.profile.power_limit_milliwatts)
    }

    fn nvmlDeviceGetPowerManagementLimitConstraints(call, device: nvmlDevice_t, lowest: Out<c_uint>, highest: Out<c_uint>) {
        let gpu = call.card(device)?;
        lowest.put(lowest_limit_milliwatts(&gpu))?;
        highest.put(gpu.profile.power_limit_milliwatts)
    }

    fn nvmlDeviceGetEnforcedPowerLimit(call, device: nvmlDevice_t, milliwatts: Out<c_uint>) {
        milliwatts.put(call.card(device)?.power_limit_milliwatts)
    }

    fn nvmlDeviceGetTotalEnergyConsumption(call, device: nvmlDevice_t, millijoules: Out<c_ulonglong>) {
        millijoules.put(call.card(device)?.energy_millijoules)
    }

    fn nvmlDeviceGetPerformanceState(call, device: nvmlDevice_t, state: Out<sys::nvmlPstates_t>) {
        state.put(performance_state(&*call.card(device)?))
    }

    // An older name for the same.
    fn nvmlDeviceGetPowerState(call, device: nvmlDevice_t, state: Out<sys::nvmlPstates_t>) {
        state.put(performance_state(&*call.card(device)?))
    }

    fn nvmlDeviceGetUtilizationRates(call, device: nvmlDevice_t, rates: Out<sys::nvmlUtilization_t>) {
        let gpu = unpartitioned(call, device)?;
        rates.put(sys::nvmlUtilization_t {
            gpu: gpu.utilization_percent,
            memory: gpu.memory_utilization_percent,
        })
    }

    fn nvmlDeviceGetEncoderUtilization(call, device: nvmlDevice_t, percent: Out<c_uint>, period_us: Out<c_uint>) {
        let gpu = unpartitioned(call, device)?;
        percent.put(gpu.encoder_percent)?;
        period_us.put(SAMPLING_PERIOD_US)
    }

    fn nvmlDeviceGetDecoderUtilization(call, device: nvmlDevice_t, percent: Out<c_uint>, period_us: Out<c_uint>) {
        let gpu = unpartitioned(call, device)?;
        percent.put(gpu.decoder_percent)?;
        period_us.put(SAMPLING_PERIOD_US)
    }

    fn nvmlDeviceGetClockInfo(call, device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: Out<c_uint>) {
        let gpu = call.card(device)?;
        mhz.put(clock_mhz(&gpu, clock)?)
    }

    fn nvmlDeviceGetMaxClockInfo(call, device: nvmlDevice_t, clock: sys::nvmlClockType_t, mhz: Out<c_uint>) {
        let gpu = call.card(device)?;
        mhz.put(max_clock_mhz(&gpu, clock)?)
    }

    fn nvmlDeviceGetCurrentClocksEventReasons(call, device: nvmlDevice_t, reasons: Out<c_ulonglong>) {
        reasons.put(event_reasons(&*call.card(device)?))
    }

    fn nvmlDeviceGetCurrentClocksThrottleReasons(call, device: nvmlDevice_t, reasons: Out<c_ulonglong>) {
        reasons.put(event_reasons(&*call.card(device)?))
    }

    fn nvmlDeviceGetSupportedClocksEventReasons(call, device: nvmlDevice_t, reasons: Out<c_ulonglong>) {
        call.card(device)?;
        reasons.put(EVERY_REASON)
    }

    fn nvmlDeviceGetSupportedClocksThrottleReasons(call, device: nvmlDevice_t, reasons: Out<c_ulonglong>) {
        call.card(device)?;
        reasons.put(EVERY_REASON)
    }

    fn nvmlDeviceGetViolationStatus(call, device: nvmlDevice_t, policy: sys::nvmlPerfPolicyType_t, violation: Out<sys::nvmlViolationTime_t>) {
        let gpu = call.card(device)?;
        violation.put(sys::nvmlViolationTime_t {
            referenceTime: now_us(),
            violationTime: violation_ns(&gpu, policy)?,
        })
    }

    fn nvmlDeviceGetMaxPcieLinkGeneration(call, device: nvmlDevice_t, generation: Out<c_uint>) {
        generation.put(call.card(device)?.profile.pcie_generation)
    }

    fn nvmlDeviceGetGpuMaxPcieLinkGeneration(call, device: nvmlDevice_t, generation: Out<c_uint>) {
        generation.put(call.card(device)?.profile.pcie_generation)
    }

    fn nvmlDeviceGetCurrPcieLinkGeneration(call, device: nvmlDevice_t, generation: Out<c_uint>) {
        let gpu = call.card(device)?;
        // An idle link goes down to the first generation to save power.
        let full = gpu.is_busy() || gpu.profile.has_stacked_memory();
        let usual = if full { gpu.profile.pcie_generation } else { 1 };
        generation.put(gpu.pcie.generation.unwrap_or(usual))
    }

    fn nvmlDeviceGetMaxPcieLinkWidth(call, device: nvmlDevice_t, width: Out<c_uint>) {
        width.put(call.card(device)?.profile.pcie_width)
    }

    fn nvmlDeviceGetCurrPcieLinkWidth(call, device: nvmlDevice_t, width: Out<c_uint>) {
        let gpu = call.card(device)?;
        width.put(gpu.pcie.width.unwrap_or(gpu.profile.pcie_width))
    }

    fn nvmlDeviceGetPcieThroughput(call, device: nvmlDevice_t, direction: sys::nvmlPcieUtilCounter_t, kib_per_second: Out<c_uint>) {
        let gpu = call.card(device)?;
        kib_per_second.put(match direction {
            sys::nvmlPcieUtilCounter_enum_NVML_PCIE_UTIL_TX_BYTES => gpu.pcie.sent_kib_per_second,
            sys::nvmlPcieUtilCounter_enum_NVML_PCIE_UTIL_RX_BYTES => gpu.pcie.received_kib_per_second,
            _ => return Err(INVALID_ARGUMENT),
        })
    }

    fn nvmlDeviceGetPcieReplayCounter(call, device: nvmlDevice_t, count: Out<c_uint>) {
        count.put(call.card(device)?.pcie.replays)
    }
}

/// Every reason that NVML knows.
const EVERY_REASON: c_ulonglong = 0x1ff;

/// A card whose load can be asked for: NVML does not know it of one that is partitioned.
fn unpartitioned(call: &Call, device: nvmlDevice_t) -> Answer<Device> {
    let device = call.device(device)?;
    if device.mig.enabled {
        return Err(NOT_SUPPORTED);
    }
    Ok(device)
}

/// The lowest power limit that can be set.
pub(super) fn lowest_limit_milliwatts(gpu: &Gpu) -> c_uint {
    gpu.profile.power_limit_milliwatts / 100 * LOWEST_LIMIT_PERCENT
}

fn performance_state(gpu: &Gpu) -> sys::nvmlPstates_t {
    if gpu.is_busy() || gpu.profile.has_stacked_memory() {
        sys::nvmlPStates_enum_NVML_PSTATE_0
    } else {
        sys::nvmlPStates_enum_NVML_PSTATE_8
    }
}

fn limit_celsius(gpu: &Gpu, threshold: sys::nvmlTemperatureThresholds_t) -> Answer<c_uint> {
    use sys::{
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_COUNT as COUNT,
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_GPU_MAX as HIGHEST,
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_MEM_MAX as MEMORY,
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN as SHUTDOWN,
        nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN as SLOWDOWN,
    };
    match threshold {
        SHUTDOWN => Ok(92),
        SLOWDOWN => Ok(89),
        HIGHEST => Ok(87),
        // Only stacked memory has a sensor of its own.
        MEMORY if gpu.profile.has_stacked_memory() => Ok(95),
        COUNT.. => Err(INVALID_ARGUMENT),
        _ => Err(NOT_SUPPORTED),
    }
}

fn max_clock_mhz(gpu: &Gpu, clock: sys::nvmlClockType_t) -> Answer<u32> {
    match clock {
        sys::nvmlClockType_enum_NVML_CLOCK_GRAPHICS
        | sys::nvmlClockType_enum_NVML_CLOCK_SM
        | sys::nvmlClockType_enum_NVML_CLOCK_VIDEO => Ok(gpu.profile.max_sm_clock_mhz),
        sys::nvmlClockType_enum_NVML_CLOCK_MEM => Ok(gpu.profile.max_memory_clock_mhz),
        _ => Err(INVALID_ARGUMENT),
    }
}

fn clock_mhz(gpu: &Gpu, clock: sys::nvmlClockType_t) -> Answer<u32> {
    let highest = max_clock_mhz(gpu, clock)?;
    let is_memory = clock == sys::nvmlClockType_enum_NVML_CLOCK_MEM;
    if is_memory && gpu.profile.has_stacked_memory() {
        return Ok(highest);
    }
    if !gpu.is_busy() {
        return Ok(IDLE_CLOCK_MHZ);
    }
    // What holds the clocks down halves them.
    let slow = gpu.clocks_event_reasons != 0 && !is_memory;
    Ok(if slow { highest / 2 } else { highest })
}

fn event_reasons(gpu: &Gpu) -> c_ulonglong {
    if gpu.is_busy() {
        gpu.clocks_event_reasons
    } else {
        gpu.clocks_event_reasons | u64::from(sys::nvmlClocksEventReasonGpuIdle)
    }
}

/// For how long a policy has held the clocks down.
pub(super) fn violation_ns(gpu: &Gpu, policy: sys::nvmlPerfPolicyType_t) -> Answer<u64> {
    match policy {
        sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_POWER => Ok(gpu.power_violation_ns),
        sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_THERMAL => Ok(gpu.thermal_violation_ns),
        sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_SYNC_BOOST
        | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_BOARD_LIMIT
        | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_LOW_UTILIZATION
        | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_RELIABILITY
        | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_APP_CLOCKS
        | sys::nvmlPerfPolicyType_enum_NVML_PERF_POLICY_TOTAL_BASE_CLOCKS => Ok(0),
        _ => Err(INVALID_ARGUMENT),
    }
}

/// The time of day, in microseconds, as NVML stamps its answers.
pub(super) fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_micros()).ok())
        .unwrap_or(0)
}
