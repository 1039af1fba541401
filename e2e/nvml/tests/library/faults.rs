//! What goes wrong: in the driver, in a card, in a single function.

use std::time::{Duration, Instant};

use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

use crate::codes::*;
use crate::machine::{card, machine};

#[test]
fn initialisation_is_refused_with_every_documented_code() {
    let machine = machine("t4", 1);
    let nvml = machine.load();
    for (name, code) in [
        ("DRIVER_NOT_LOADED", DRIVER_NOT_LOADED),
        ("NO_PERMISSION", NO_PERMISSION),
        ("GPU_IS_LOST", GPU_IS_LOST),
        ("UNKNOWN", UNKNOWN),
        (
            "LIB_RM_VERSION_MISMATCH",
            sys::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        ),
    ] {
        machine.inject(0, &format!("init {name}"));
        // SAFETY: they take no pointers.
        unsafe {
            assert_eq!(nvml.nvmlInit_v2(), code);
            assert_eq!(nvml.nvmlInit(), code);
            assert_eq!(nvml.nvmlInitWithFlags(0), code);
            assert_eq!(nvml.nvmlShutdown(), UNINITIALIZED);
        }
    }
    machine.inject(0, "init none");
    assert!(machine.try_open().is_ok());
}

#[test]
fn one_function_of_one_card_returns_what_it_was_told() {
    let machine = machine("h100-80gb", 2);
    let nvml = machine.open();
    let [one, two] = [0, 1].map(|index| nvml.device_by_index(index).unwrap());
    machine.inject(0, "error nvmlDeviceGetTemperature UNKNOWN");
    let temperature = |card: &nvml_wrapper::Device<'_>| card.temperature(TemperatureSensor::Gpu);
    assert!(matches!(temperature(&one), Err(NvmlError::Unknown)));
    assert!(one.power_usage().is_ok());
    assert!(temperature(&two).is_ok());
    machine.inject(0, "error nvmlDeviceGetTemperature none");
    assert!(temperature(&one).is_ok());
    machine.inject(0, "error nvmlDeviceGetHandleByUUID GPU_IS_LOST");
    let by_uuid = |index: usize| nvml.device_by_uuid(machine.state.gpus[index].uuid.as_str());
    assert!(matches!(by_uuid(0), Err(NvmlError::GpuLost)));
    assert!(by_uuid(1).is_ok());
    machine.inject(0, "error nvmlSystemGetDriverVersion NO_PERMISSION");
    assert!(matches!(
        nvml.sys_driver_version(),
        Err(NvmlError::NoPermission)
    ));
}

/// Whether this is held until the fault ends, and answers then.
fn held(end: impl FnOnce(), ask: impl FnOnce() -> bool + Send) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(ask);
        let began = Instant::now();
        // Nothing can be waited for here: that nothing happens is what is tested.
        std::thread::sleep(Duration::from_millis(100));
        assert!(!asked.is_finished());
        end();
        assert!(asked.join().unwrap());
        assert!(began.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn initialisation_can_hang_and_end() {
    let machine = machine("t4", 1);
    machine.inject(0, "hang nvmlInit_v2");
    held(
        || machine.inject(0, "hang nvmlInit_v2 0"),
        || machine.try_open().is_ok(),
    );
}

#[test]
fn waiting_for_events_can_hang_over_its_limit() {
    let machine = machine("t4", 1);
    let nvml = machine.open();
    machine.inject(0, "hang nvmlEventSetWait_v2");
    held(
        || machine.inject(0, "hang nvmlEventSetWait_v2 0"),
        || {
            let set = nvml.create_event_set().unwrap();
            matches!(set.wait(1), Err(NvmlError::Timeout))
        },
    );
}

#[test]
fn one_function_of_one_card_can_hang_while_its_others_answer() {
    let machine = machine("t4", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    machine.inject(0, "hang nvmlDeviceGetPowerUsage");
    assert!(device.name().is_ok());
    held(
        || machine.inject(0, "heal"),
        || device.power_usage().is_ok(),
    );
}

#[test]
fn a_thousand_xids_at_once_are_told_in_their_order() {
    let machine = machine("h100-80gb", 2);
    let nvml = machine.open();
    let mut set = nvml.create_event_set().unwrap();
    for index in 0..2 {
        let device = nvml.device_by_index(index).unwrap();
        set = device
            .register_events(EventTypes::CRITICAL_XID_ERROR, set)
            .unwrap();
    }
    let began = Instant::now();
    machine.inject(0, "xid 13 times 400");
    machine.inject(1, "xid 31 times 600");
    for number in 0..1_000 {
        let event = set.wait(1_000).unwrap();
        let (index, code) = if number < 400 { (0, 13) } else { (1, 31) };
        assert_eq!(event.device.index().unwrap(), index);
        assert_eq!(event.event_data, Some(XidError::Value(code)));
    }
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
    // As fast as they can happen, on a machine that has other things to do as well.
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

#[test]
fn an_event_names_the_partition_that_it_happened_in_and_its_kind() {
    let machine = machine("h100-80gb", 1);
    machine.inject(0, "mig 3g.40gb");
    let nvml = machine.begin();
    let device = card(&nvml, 0);
    let mut set = std::ptr::null_mut();
    let all = u64::from(
        sys::nvmlEventTypeXidCriticalError
            | sys::nvmlEventTypeClock
            | sys::nvmlEventMigConfigChange
            | sys::nvmlEventTypeSingleBitEccError,
    );
    // SAFETY: the pointers are to local variables; an all-zero structure is a valid one.
    let wait = unsafe {
        assert_eq!(nvml.nvmlEventSetCreate(&raw mut set), OK);
        assert_eq!(nvml.nvmlDeviceRegisterEvents(device, all, set), OK);
        || {
            let mut data: sys::nvmlEventData_t = std::mem::zeroed();
            assert_eq!(nvml.nvmlEventSetWait_v2(set, &raw mut data, 1_000), OK);
            (
                data.eventType,
                data.eventData,
                data.gpuInstanceId,
                data.computeInstanceId,
            )
        }
    };
    machine.inject(0, "xid 94 in 1/0");
    machine.inject(0, "xid 13 in 1");
    machine.inject(0, "event clock 0");
    machine.inject(0, "ecc-corrected 1");
    machine.inject(0, "mig off");
    let none = u32::MAX;
    assert_eq!(wait(), (8, 94, 1, 0));
    assert_eq!(wait(), (8, 13, 1, none));
    assert_eq!(wait(), (16, 0, none, none));
    assert_eq!(wait(), (1, 0, none, none));
    assert_eq!(wait(), (256, 0, none, none));
}

#[test]
fn a_card_that_was_reset_is_the_same_and_a_reboot_ends_the_session() {
    let machine = machine("h100-80gb", 2);
    let nvml = machine.open();
    let device = nvml.device_by_index(1).unwrap();
    machine.inject(1, "ecc 4");
    machine.inject(1, "reset");
    assert_eq!(device.uuid().unwrap(), machine.state.gpus[1].uuid);
    assert_eq!(machine.now().gpus[1].resets, 1);
    machine.inject(0, "reboot");
    assert!(matches!(device.uuid(), Err(NvmlError::Unknown)));
    drop(nvml);
    assert_eq!(machine.open().device_count().unwrap(), 2);
}

#[test]
fn cards_that_changed_places_are_found_at_the_next_initialisation() {
    let machine = machine("l40s", 2);
    let nvml = machine.open();
    machine.inject(0, "swap 1");
    let uuid = |nvml: &nvml_wrapper::Nvml| nvml.device_by_index(0).unwrap().uuid().unwrap();
    assert_eq!(uuid(&nvml), machine.state.gpus[0].uuid);
    drop(nvml);
    assert_eq!(uuid(&machine.open()), machine.state.gpus[1].uuid);
}
