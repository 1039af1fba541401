//! Figures from which a card's health is judged.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, MemoryLocation, PcieUtilCounter, PerformanceState,
    RetirementCause, TemperatureThreshold,
};
use nvml_wrapper::enums::device::SampleValue;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::structs::device::FieldId;
use nvml_wrapper_sys::bindings as sys;

use crate::codes::*;
use crate::machine::{card, machine};

#[test]
fn rows_are_remapped_by_newer_cards_and_pages_retired_by_older_ones() {
    let newer = machine("h100-80gb", 1);
    newer.inject(0, "remap pending");
    newer.inject(0, "remap failed");
    let nvml = newer.begin();
    let mut rows = [9; 4];
    // SAFETY: each pointer is to a place of the array.
    let code = unsafe {
        let [one, two, three, four] = [0, 1, 2, 3].map(|index| rows.as_mut_ptr().add(index));
        nvml.nvmlDeviceGetRemappedRows(card(&nvml, 0), one, two, three, four)
    };
    assert_eq!((code, rows), (OK, [0, 1, 1, 1]));
    let mut values = sys::nvmlRowRemapperHistogramValues_t {
        max: 0,
        high: 0,
        partial: 0,
        low: 0,
        none: 0,
    };
    // SAFETY: the pointer is to a local variable.
    let code = unsafe { nvml.nvmlDeviceGetRowRemapperHistogram(card(&nvml, 0), &raw mut values) };
    assert_eq!((code, values.max, values.none), (OK, 639, 1));
    let older = machine("t4", 1);
    older.inject(0, "retire 2");
    let nvml = older.open();
    let device = nvml.device_by_index(0).unwrap();
    let cause = RetirementCause::DoubleBitEccError;
    let pages = device.retired_pages(cause).unwrap();
    assert_eq!(pages.len(), 2);
    let corrected = RetirementCause::MultipleSingleBitEccErrors;
    assert!(device.retired_pages(corrected).unwrap().is_empty());
    assert!(device.are_pages_pending_retired().unwrap());
    older.inject(0, "reset");
    assert!(!device.are_pages_pending_retired().unwrap());
    let nvml = newer.open();
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.retired_pages(cause),
        Err(NvmlError::NotSupported)
    ));
}

#[test]
fn errors_of_memory_are_counted_for_now_and_for_ever() {
    let machine = machine("a100-80gb", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    machine.inject(0, "ecc 2");
    machine.inject(0, "ecc-corrected 5");
    machine.inject(0, "reset");
    machine.inject(0, "ecc-corrected 1");
    let count = |kind, counter| device.total_ecc_errors(kind, counter).unwrap();
    assert_eq!(count(MemoryError::Uncorrected, EccCounter::Volatile), 0);
    assert_eq!(count(MemoryError::Uncorrected, EccCounter::Aggregate), 2);
    assert_eq!(count(MemoryError::Corrected, EccCounter::Volatile), 1);
    assert_eq!(count(MemoryError::Corrected, EccCounter::Aggregate), 6);
    let at = |location| {
        let counter = EccCounter::Aggregate;
        device.memory_error_counter(MemoryError::Uncorrected, counter, location)
    };
    assert_eq!(at(MemoryLocation::Device).unwrap(), 2);
    assert_eq!(at(MemoryLocation::L2Cache).unwrap(), 0);
}

#[test]
fn what_holds_the_clocks_down_is_said_under_both_names() {
    let machine = machine("h100-80gb", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(
        device.current_throttle_reasons().unwrap(),
        ThrottleReasons::GPU_IDLE
    );
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 210);
    machine.inject(0, "use 100 40");
    assert!(device.current_throttle_reasons().unwrap().is_empty());
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1980);
    machine.inject(0, "throttle power-brake,hw-slowdown");
    assert_eq!(
        device.current_throttle_reasons().unwrap(),
        ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN | ThrottleReasons::HW_SLOWDOWN
    );
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 990);
    let plain = machine.begin();
    let mut reasons = 0;
    // SAFETY: the pointer is to a local variable.
    let code =
        unsafe { plain.nvmlDeviceGetCurrentClocksEventReasons(card(&plain, 0), &raw mut reasons) };
    assert_eq!((code, reasons), (OK, 0x88));
}

#[test]
fn links_to_the_host_can_be_slower_than_they_could() {
    let machine = machine("l40s", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.current_pcie_link_gen().unwrap(), 1);
    machine.inject(0, "use 50");
    assert_eq!(device.current_pcie_link_gen().unwrap(), 4);
    machine.inject(0, "pcie 3 8");
    machine.inject(0, "pcie-replays 12");
    assert_eq!(device.current_pcie_link_gen().unwrap(), 3);
    assert_eq!(device.current_pcie_link_width().unwrap(), 8);
    assert_eq!(device.max_pcie_link_width().unwrap(), 16);
    assert_eq!(device.pcie_replay_counter().unwrap(), 12);
    assert_eq!(device.pcie_throughput(PcieUtilCounter::Send).unwrap(), 0);
}

#[test]
fn limits_come_in_their_order() {
    let machine = machine("l40s", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    let at = |threshold| device.temperature_threshold(threshold);
    let shutdown = at(TemperatureThreshold::Shutdown).unwrap();
    let slowdown = at(TemperatureThreshold::Slowdown).unwrap();
    assert!(shutdown > slowdown && slowdown > at(TemperatureThreshold::GpuMax).unwrap());
    assert!(matches!(
        at(TemperatureThreshold::MemoryMax),
        Err(NvmlError::NotSupported)
    ));
    let power = device.power_management_limit_constraints().unwrap();
    assert!(power.min_limit < power.max_limit);
    assert_eq!(device.enforced_power_limit().unwrap(), power.max_limit);
}

#[test]
fn figures_are_given_by_their_numbers_each_with_a_code_of_its_own() {
    let machine = machine("h100-80gb", 1);
    machine.inject(0, "remap pending");
    machine.inject(0, "ecc 3");
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    let ids = [
        sys::field_id::NVML_FI_DEV_REMAPPED_PENDING,
        sys::field_id::NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
        sys::field_id::NVML_FI_DEV_RETIRED_DBE,
        sys::field_id::NVML_FI_DEV_NVLINK_LINK_COUNT,
        60_000,
    ]
    .map(FieldId);
    let values: Vec<_> = device
        .field_values_for(&ids)
        .unwrap()
        .into_iter()
        .map(|sample| sample.and_then(|sample| sample.value))
        .collect();
    assert!(matches!(values[0], Ok(SampleValue::U32(1))));
    assert!(matches!(values[1], Ok(SampleValue::U64(3))));
    assert!(matches!(values[2], Err(NvmlError::NotSupported)));
    assert!(matches!(values[3], Ok(SampleValue::U32(18))));
    assert!(matches!(values[4], Err(NvmlError::NotSupported)));
    let plain = machine.begin();
    // SAFETY: a null pointer is said to be one.
    let ask = |count| unsafe {
        plain.nvmlDeviceGetFieldValues(card(&plain, 0), count, std::ptr::null_mut())
    };
    assert_eq!([ask(0), ask(-1), ask(1)], [INVALID_ARGUMENT; 3]);
}

#[test]
fn only_cards_without_stacked_memory_slow_down_when_they_are_idle() {
    for (profile, state, generation, memory_mhz) in [
        ("h100-80gb", PerformanceState::Zero, 5, 2619),
        ("l40s", PerformanceState::Eight, 1, 210),
    ] {
        let machine = machine(profile, 1);
        let nvml = machine.open();
        let device = nvml.device_by_index(0).unwrap();
        assert_eq!(device.performance_state().unwrap(), state);
        assert_eq!(device.current_pcie_link_gen().unwrap(), generation);
        assert_eq!(device.clock_info(Clock::Memory).unwrap(), memory_mhz);
        assert_eq!(device.clock_info(Clock::SM).unwrap(), 210);
    }
}
