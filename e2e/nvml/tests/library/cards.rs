//! The library as a program sees it: loaded by path through `nvml-wrapper`.
use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{
    Clock, EccCounter, MemoryError, PerformanceState, TemperatureSensor,
};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;

use crate::machine::{inject, machine};

#[test]
fn a_card_answers_what_its_profile_says() {
    let machine = machine("h100-80gb", 2);
    let nvml = machine.open();
    assert_eq!(nvml.sys_driver_version().unwrap(), "570.133.20");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "12.570.133.20");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12_080);
    assert_eq!(nvml.device_count().unwrap(), 2);
    let device = nvml.device_by_index(1).unwrap();
    assert_eq!(device.name().unwrap(), "NVIDIA H100 80GB HBM3");
    assert_eq!(device.uuid().unwrap(), machine.state.gpus[1].uuid);
    assert_eq!(device.serial().unwrap(), machine.state.gpus[1].serial);
    assert_eq!(device.index().unwrap(), 1);
    assert_eq!(device.minor_number().unwrap(), 1);
    let memory = device.memory_info().unwrap();
    assert_eq!(memory.total, 81_559 << 20);
    assert_eq!(memory.total, memory.reserved + memory.free + memory.used);
    let capability = device.cuda_compute_capability().unwrap();
    assert_eq!((capability.major, capability.minor), (9, 0));
    let pci = device.pci_info().unwrap();
    assert_eq!(pci.bus_id, "00000000:02:00.0");
    assert_eq!((pci.domain, pci.bus, pci.device), (0, 2, 0));
    assert_eq!(pci.pci_device_id, 0x2330_10de);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 34);
    assert_eq!(device.power_usage().unwrap(), 69_000);
    assert_eq!(device.enforced_power_limit().unwrap(), 700_000);
    assert_eq!(device.utilization_rates().unwrap().gpu, 0);
    assert_eq!(device.mig_mode().unwrap().current, 0);
    assert!(device.is_ecc_enabled().unwrap().currently_enabled);
    assert!(device.is_in_persistent_mode().unwrap());
    assert_eq!(device.max_clock_info(Clock::SM).unwrap(), 1980);
    assert_eq!(device.performance_state().unwrap(), PerformanceState::Zero);
    assert_eq!(device.max_pcie_link_gen().unwrap(), 5);
}

#[test]
fn a_card_is_found_by_uuid_serial_and_pci_address() {
    let machine = machine("t4", 3);
    let nvml = machine.open();
    let gpu = &machine.state.gpus[2];
    assert_eq!(
        nvml.device_by_uuid(gpu.uuid.as_str())
            .unwrap()
            .index()
            .unwrap(),
        2
    );
    for address in ["00000000:03:00.0", "0000:03:00.0", "03:00"] {
        assert_eq!(
            nvml.device_by_pci_bus_id(address).unwrap().index().unwrap(),
            2
        );
    }
    assert!(matches!(
        nvml.device_by_uuid("GPU-none"),
        Err(NvmlError::NotFound)
    ));
    assert!(matches!(
        nvml.device_by_pci_bus_id("00:17:00.0"),
        Err(NvmlError::NotFound)
    ));
    assert!(matches!(
        nvml.device_by_pci_bus_id("rubbish"),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        nvml.device_by_index(3),
        Err(NvmlError::InvalidArg)
    ));
}

#[test]
fn what_a_card_cannot_do_is_not_supported() {
    let machine = machine("rtx-4090", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(device.mig_mode(), Err(NvmlError::NotSupported)));
    assert!(matches!(
        device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile),
        Err(NvmlError::NotSupported)
    ));
    let set = nvml.create_event_set().unwrap();
    assert!(
        device
            .register_events(EventTypes::DOUBLE_BIT_ECC_ERROR, set)
            .is_err()
    );
}

#[test]
fn an_xid_wakes_a_waiting_event_set_within_milliseconds_and_names_its_card() {
    let machine = machine("rtx-4090", 4);
    let nvml = machine.open();
    let mut set = nvml.create_event_set().unwrap();
    for index in 0..4 {
        let device = nvml.device_by_index(index).unwrap();
        set = device
            .register_events(EventTypes::CRITICAL_XID_ERROR, set)
            .unwrap();
    }
    assert!(matches!(set.wait(20), Err(NvmlError::Timeout)));
    let path = machine.state_path();
    let injector = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        inject(&path, 2, "xid 31");
        Instant::now()
    });
    let event = set.wait(5_000).unwrap();
    let heard = Instant::now();
    assert_eq!(event.device.uuid().unwrap(), machine.state.gpus[2].uuid);
    assert_eq!(event.event_data, Some(XidError::Value(31)));
    let injected = injector.join().unwrap();
    assert!(heard.saturating_duration_since(injected) < Duration::from_millis(40));
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
}

#[test]
fn every_event_is_told_once_in_its_order() {
    let machine = machine("t4", 1);
    let nvml = machine.open();
    machine.inject(0, "xid 1");
    let set = nvml.create_event_set().unwrap();
    let device = nvml.device_by_index(0).unwrap();
    let set = device
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .unwrap();
    for code in 2..20 {
        machine.inject(0, &format!("xid {code}"));
    }
    for code in 2..20 {
        assert_eq!(
            set.wait(1_000).unwrap().event_data,
            Some(XidError::Value(code))
        );
    }
    assert!(matches!(set.wait(10), Err(NvmlError::Timeout)));
}

#[test]
fn a_lost_card_tells_its_xid_then_is_lost_and_the_others_answer() {
    let machine = machine("l40s", 3);
    let nvml = machine.open();
    let lost = nvml.device_by_index(1).unwrap();
    let other = nvml.device_by_index(2).unwrap();
    let set = nvml.create_event_set().unwrap();
    let set = lost
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .unwrap();
    let set = other
        .register_events(EventTypes::CRITICAL_XID_ERROR, set)
        .unwrap();
    machine.inject(1, "lost");
    assert_eq!(
        set.wait(1_000).unwrap().event_data,
        Some(XidError::Value(79))
    );
    assert!(matches!(set.wait(1_000), Err(NvmlError::GpuLost)));
    assert!(matches!(lost.uuid(), Err(NvmlError::GpuLost)));
    assert!(matches!(
        lost.temperature(TemperatureSensor::Gpu),
        Err(NvmlError::GpuLost)
    ));
    assert!(matches!(nvml.device_by_index(1), Err(NvmlError::GpuLost)));
    assert_eq!(nvml.device_count().unwrap(), 3);
    assert_eq!(other.uuid().unwrap(), machine.state.gpus[2].uuid);
    machine.inject(1, "heal");
    assert_eq!(lost.uuid().unwrap(), machine.state.gpus[1].uuid);
}

#[test]
fn ecc_errors_are_counted_and_reported() {
    let machine = machine("a100-80gb", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    let set = nvml.create_event_set().unwrap();
    let all = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    assert!(device.supported_event_types().unwrap().contains(all));
    let set = device.register_events(all, set).unwrap();
    machine.inject(0, "ecc 3");
    assert_eq!(
        set.wait(1_000).unwrap().event_type,
        EventTypes::DOUBLE_BIT_ECC_ERROR
    );
    assert_eq!(
        set.wait(1_000).unwrap().event_data,
        Some(XidError::Value(48))
    );
    let counted = device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile);
    assert_eq!(counted.unwrap(), 3);
}

#[test]
fn a_removed_card_is_lost_to_a_session_and_absent_from_the_next() {
    let machine = machine("t4", 2);
    let nvml = machine.open();
    machine.inject(0, "remove");
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    drop(nvml);
    let nvml = machine.open();
    assert_eq!(nvml.device_count().unwrap(), 1);
    let left = nvml.device_by_index(0).unwrap();
    assert_eq!(left.uuid().unwrap(), machine.state.gpus[1].uuid);
    assert_eq!(left.minor_number().unwrap(), 1);
    machine.inject(0, "add");
    machine.inject(2, "add h100-80gb");
    assert_eq!(nvml.device_count().unwrap(), 1);
    drop(nvml);
    assert_eq!(machine.open().device_count().unwrap(), 3);
}

#[test]
fn a_hanging_card_holds_its_caller_until_it_heals_and_nobody_else() {
    let machine = machine("t4", 2);
    let nvml = machine.open();
    let slow = nvml.device_by_index(0).unwrap();
    let quick = nvml.device_by_index(1).unwrap();
    machine.inject(0, "hang 60000");
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| slow.name());
        let began = Instant::now();
        assert!(quick.name().is_ok());
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asked.is_finished());
        machine.inject(0, "heal");
        assert!(asked.join().unwrap().is_ok());
        assert!(began.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn without_a_driver_nothing_is_initialised_and_a_reload_ends_the_session() {
    let machine = machine("t4", 1);
    machine.inject(0, "unload");
    assert!(matches!(
        machine.try_open(),
        Err(NvmlError::DriverNotLoaded)
    ));
    machine.inject(0, "load");
    let nvml = machine.open();
    assert!(nvml.device_count().is_ok());
    machine.inject(0, "unload");
    assert!(matches!(nvml.device_count(), Err(NvmlError::Unknown)));
    machine.inject(0, "load");
    assert!(matches!(nvml.device_count(), Err(NvmlError::Unknown)));
    drop(nvml);
    assert_eq!(machine.open().device_count().unwrap(), 1);
}

#[test]
fn without_a_state_there_is_no_driver() {
    let machine = machine("t4", 1);
    std::fs::remove_file(machine.state_path()).unwrap();
    assert!(matches!(
        machine.try_open(),
        Err(NvmlError::DriverNotLoaded)
    ));
}

#[test]
fn half_a_state_leaves_the_last_whole_one_in_force() {
    let machine = machine("t4", 2);
    let nvml = machine.open();
    std::fs::write(machine.state_path(), "{\"gpus\": [").unwrap();
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert!(nvml.device_by_index(1).unwrap().name().is_ok());
}

#[test]
fn the_library_counts_its_users() {
    let machine = machine("t4", 1);
    let first = machine.open();
    let second = machine.open();
    drop(first);
    assert_eq!(second.device_count().unwrap(), 1);
    second.shutdown().unwrap();
    assert_eq!(machine.open().device_count().unwrap(), 1);
}
