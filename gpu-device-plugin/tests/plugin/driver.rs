//! Following the driver: faults, silence, reloads, cards that come and go.

use std::time::Duration;

use creo_gpu_device_plugin::driver::session::{Heard, Reader, Session};
use creo_gpu_device_plugin::driver::{Pace, Snapshot, inventory};
use creo_gpu_device_plugin::health::{Finding, Health};

use crate::machine::Machine;

const QUICK: Pace = Pace {
    poll: Duration::from_millis(50),
    answer: Duration::from_secs(2),
    retry: Duration::from_millis(200),
    look_again: Duration::from_millis(500),
    quiet: Duration::from_millis(300),
};

fn ill(snapshot: &Snapshot) -> Vec<u32> {
    snapshot
        .devices
        .iter()
        .filter(|device| !device.health.is_healthy())
        .map(|device| device.gpu.index)
        .collect()
}

fn all_well(count: usize) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| {
        snapshot.driver.is_ok() && snapshot.devices.len() == count && ill(snapshot).is_empty()
    }
}

#[tokio::test]
async fn the_inventory_is_what_the_library_says() {
    let machine = Machine::new("h100-80gb", 2);
    let found = inventory(&machine.source(), Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(found.versions.driver, "570.133.20");
    assert_eq!(found.versions.cuda, "12.8");
    assert_eq!(found.gpus[1].uuid, machine.uuid(1));
    assert_eq!(found.gpus[1].model, "NVIDIA H100 80GB HBM3");
    assert_eq!(found.gpus[1].memory_bytes, 81_559 << 20);
    assert_eq!(found.gpus[1].compute_capability, "9.0");
    assert_eq!(found.gpus[1].pci_address, "00000000:02:00.0");
    assert_eq!(found.gpus[1].minor, 1);
}

#[tokio::test]
async fn a_machine_without_a_driver_is_said_to_be_one() {
    let machine = Machine::without_driver("t4", 1);
    let why = inventory(&machine.source(), Duration::from_secs(10))
        .await
        .unwrap_err();
    assert!(why.to_string().starts_with("no NVIDIA driver: "), "{why}");
    machine.install_driver();
    machine.inject(0, "unload");
    let why = inventory(&machine.source(), Duration::from_secs(10))
        .await
        .unwrap_err();
    assert!(
        why.to_string()
            .contains("not loaded; load it (modprobe nvidia)"),
        "{why}"
    );
}

#[tokio::test]
async fn a_card_that_hangs_does_not_hide_the_others_from_the_inventory() {
    let machine = Machine::new("t4", 3);
    machine.inject(1, "hang 60000");
    let found = inventory(&machine.source(), Duration::from_millis(500))
        .await
        .unwrap();
    let indices: Vec<u32> = found.gpus.iter().map(|gpu| gpu.index).collect();
    assert_eq!(indices, [0, 2]);
    assert_eq!(found.unreadable[0].index, 1);
    assert_eq!(found.unreadable[0].why, "no answer for 500 ms");
    machine.inject(1, "heal");
}

#[tokio::test]
async fn a_library_that_hangs_at_its_start_does_not_hang_the_inventory() {
    let machine = Machine::new("t4", 1);
    machine.inject(0, "hang nvmlInit_v2");
    let why = inventory(&machine.source(), Duration::from_millis(300))
        .await
        .unwrap_err();
    assert!(why.to_string().contains("has not answered"), "{why}");
    machine.inject(0, "hang nvmlInit_v2 0");
}

#[tokio::test]
async fn one_lost_gpu_takes_no_other_along_and_comes_back_after_a_quiet_time() {
    let machine = Machine::new("l40s", 8);
    // What happens while the library is opened anew is not heard by anyone.
    let mut watching = machine.watch(Pace {
        look_again: Duration::from_mins(10),
        ..QUICK
    });
    watching.until(all_well(8)).await;
    machine.inject(3, "lost");
    let seen = watching.until(|seen| !ill(seen).is_empty()).await;
    assert_eq!(ill(&seen), [3]);
    // It is first told as an XID and then seen to be lost; the others stay as they are.
    let lost = Finding::Lost;
    let seen = watching
        .until(|seen| seen.devices[3].health.worst() == Some(&lost))
        .await;
    assert_eq!(ill(&seen), [3]);
    // The others are still heard, although the set of events had to be made anew.
    machine.inject(5, "xid 94");
    let seen = watching.until(|seen| ill(seen).len() == 2).await;
    assert_eq!(seen.devices[5].health, Health::of([Finding::Xid(94)]));
    machine.inject(3, "heal");
    watching.until(all_well(8)).await;
}

#[tokio::test]
async fn a_gpu_that_was_lost_is_heard_again_when_it_is_back() {
    let machine = Machine::new("t4", 2);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    machine.inject(0, "lost");
    watching.until(|seen| ill(seen) == [0]).await;
    machine.inject(0, "heal");
    watching.until(all_well(2)).await;
    // It is listened to again within seconds.
    let heard = async {
        loop {
            machine.inject(0, "xid 62");
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = watching.snapshots.borrow().devices[0].health.clone();
            if now.findings().contains(&Finding::Xid(62)) {
                return;
            }
        }
    };
    tokio::time::timeout(crate::machine::PATIENCE, heard)
        .await
        .unwrap();
}

#[tokio::test]
async fn errors_of_programs_change_nothing() {
    let machine = Machine::new("t4", 2);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    for code in [13, 31, 43, 45, 68, 109] {
        machine.inject(0, &format!("xid {code}"));
    }
    // Later events are heard later: when this one is, the others were.
    machine.inject(1, "xid 74");
    let seen = watching.until(|seen| !ill(seen).is_empty()).await;
    assert_eq!(ill(&seen), [1]);
}

#[tokio::test]
async fn a_thousand_xids_are_one_change() {
    let machine = Machine::new("t4", 8);
    let slow_to_forgive = Pace {
        quiet: Duration::from_mins(10),
        ..QUICK
    };
    let mut watching = machine.watch(slow_to_forgive);
    watching.until(all_well(8)).await;
    watching.snapshots.mark_unchanged();
    machine.inject_often(2, "xid 48", 1_000);
    machine.inject(4, "xid 74");
    let mut changes = 0;
    while ill(&watching.snapshots.borrow_and_update()) != [2, 4] {
        watching.snapshots.changed().await.unwrap();
        changes += 1;
    }
    assert!(changes <= 2, "{changes} changes");
}

#[tokio::test]
async fn uncorrected_memory_errors_take_a_gpu_out() {
    let machine = Machine::new("a100-80gb", 2);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    machine.inject(1, "ecc 2");
    let seen = watching.until(|seen| !ill(seen).is_empty()).await;
    assert_eq!(ill(&seen), [1]);
}

#[tokio::test]
async fn a_hanging_gpu_is_silent_and_the_others_are_watched_on() {
    let machine = Machine::new("t4", 3);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(3)).await;
    machine.inject(0, "hang 60000");
    let seen = watching.until(|seen| !ill(seen).is_empty()).await;
    assert_eq!(ill(&seen), [0]);
    assert_eq!(seen.devices[0].health, Health::of([Finding::Silent]));
    machine.inject(2, "xid 94");
    watching.until(|seen| ill(seen) == [0, 2]).await;
    machine.inject(0, "heal");
    watching.until(all_well(3)).await;
}

#[tokio::test]
async fn a_driver_that_comes_late_goes_and_comes_back_is_followed() {
    let machine = Machine::without_driver("t4", 2);
    let mut watching = machine.watch(QUICK);
    let without = |seen: &Snapshot| {
        seen.driver
            .as_ref()
            .is_err_and(|why| why.contains("no NVIDIA driver"))
    };
    watching.until(without).await;
    machine.install_driver();
    watching.until(all_well(2)).await;
    machine.inject(0, "unload");
    let seen = watching.until(|seen| seen.driver.is_err()).await;
    assert_eq!(ill(&seen), [0, 1]);
    assert!(seen.driver.unwrap_err().contains("not loaded"));
    machine.inject(0, "load");
    watching.until(all_well(2)).await;
}

#[tokio::test]
async fn a_driver_that_is_reloaded_in_between_is_opened_anew() {
    let machine = Machine::new("t4", 2);
    // At once, and not when it is time to look again.
    let mut watching = machine.watch(Pace {
        look_again: Duration::from_mins(10),
        ..QUICK
    });
    watching.until(all_well(2)).await;
    machine.inject(0, "unload");
    machine.inject(0, "load");
    watching.until(|seen| ill(seen) == [0, 1]).await;
    watching.until(all_well(2)).await;
}

#[tokio::test]
async fn a_card_that_is_put_in_appears_and_one_that_is_taken_out_is_missing() {
    let machine = Machine::new("t4", 1);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(1)).await;
    machine.inject(1, "add t4");
    machine.make_node(1);
    watching.until(all_well(2)).await;
    machine.inject(0, "remove");
    machine.remove_node(0);
    let missing = Health::of([Finding::Missing]);
    let gone = |seen: &Snapshot| seen.devices.iter().any(|device| device.health == missing);
    let seen = watching.until(gone).await;
    assert_eq!(seen.devices.len(), 2);
    machine.inject(0, "add");
    machine.make_node(0);
    watching.until(all_well(2)).await;
}

#[tokio::test]
async fn a_gpu_that_is_lost_before_the_plugin_starts_is_counted_as_unreadable() {
    let machine = Machine::new("t4", 2);
    machine.inject(0, "lost");
    let mut watching = machine.watch(QUICK);
    let seen = watching.until(|seen| seen.driver.is_ok()).await;
    assert_eq!(seen.devices.len(), 1);
    assert_eq!(seen.unreadable[0].index, 0);
    machine.inject(0, "heal");
    watching.until(all_well(2)).await;
}

#[tokio::test]
async fn an_old_library_without_the_newer_functions_still_gives_an_inventory() {
    let machine = Machine::new("t4", 1);
    machine.take_out(&[
        "nvmlShutdown",
        "nvmlEventSetFree",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetTotalEccErrors",
        "nvmlDeviceGetPciInfo_v3",
    ]);
    let session = Session::open(&machine.source().find().unwrap(), &machine.sysfs_root()).unwrap();
    assert_eq!(session.count().unwrap(), 1);
    let gpu = session.describe(0).unwrap();
    assert_eq!(gpu.memory_bytes, 15_360 << 20);
    assert_eq!(gpu.pci_address, "");
    let reading = Reader::new(&machine.uuid(0)).read(&session).unwrap();
    assert_eq!(reading.ecc_volatile.uncorrected, None);
    assert_eq!(reading.temperature_celsius, Some(34));
    let listener = session.listen().unwrap();
    assert_eq!(listener.wait(1), Ok(Heard::Nothing));
    // Neither panics, although there is nothing to call.
    drop(listener);
    drop(session);
}

#[tokio::test]
async fn a_library_that_reports_no_events_is_said_to_be_deaf_and_still_read() {
    let machine = Machine::new("t4", 2);
    machine.take_out(&["nvmlEventSetCreate"]);
    let mut watching = machine.watch(Pace {
        look_again: Duration::from_mins(10),
        ..QUICK
    });
    let seen = watching.until(|seen| seen.deaf.is_some()).await;
    assert!(seen.deaf.unwrap().contains("nvmlEventSetCreate"));
    machine.inject(1, "lost");
    watching.until(|seen| ill(seen) == [1]).await;
}
