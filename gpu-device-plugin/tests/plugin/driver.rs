//! Following the driver: faults, silence, reloads, cards that come and go.

use std::time::Duration;

use creo_gpu_device_plugin::driver::session::{Heard, ReadError, Reader, Session};
use creo_gpu_device_plugin::driver::{Pace, Readings, Snapshot, inventory};
use creo_gpu_device_plugin::health::{Finding, Health};
use creo_gpu_device_plugin::inventory::{LinkKind, Mig, PcieLink};
use nvidia_ml::state::Layout;
use tokio::time::timeout;

use crate::machine::{Machine, PATIENCE};

pub const QUICK: Pace = Pace {
    poll: Duration::from_millis(50),
    answer: Duration::from_secs(2),
    retry: Duration::from_millis(200),
    look_again: Duration::from_millis(500),
    quiet: Duration::from_millis(300),
};

pub fn ill(snapshot: &Snapshot) -> Vec<u32> {
    snapshot
        .devices
        .iter()
        .filter(|device| !device.health.is_healthy())
        .map(|device| device.gpu.index)
        .collect()
}

pub fn all_well(count: usize) -> impl Fn(&Snapshot) -> bool {
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

#[tokio::test]
async fn the_inventory_tells_all_of_a_card() {
    let machine = Machine::laid_out("h100-80gb", 4, Layout::NvSwitch);
    machine.place(0, 1);
    machine.place(1, -1);
    machine.inject(2, "pcie 4 8");
    let found = inventory(&machine.source(), Duration::from_secs(10))
        .await
        .unwrap();
    // As the kernel says; of cards that it does not know, as the driver says.
    let nodes: Vec<Option<u32>> = found.gpus.iter().map(|gpu| gpu.numa_node).collect();
    assert_eq!(nodes, [Some(1), None, Some(1), Some(1)]);
    assert_eq!(
        found.gpus[2].pcie,
        Some(PcieLink {
            generation: 4,
            generation_max: 5,
            width: 8,
            width_max: 16
        })
    );
    assert_eq!(found.gpus[0].ecc_enabled, Some(true));
    assert_eq!(found.gpus[0].power_limit_milliwatts, Some(700_000));
    assert_eq!(found.gpus[0].mig, Mig::Off);
    let links: Vec<(&str, LinkKind)> = (found.gpus[0].links.iter())
        .map(|link| (link.peer.as_str(), link.kind))
        .collect();
    let others = [1, 2, 3].map(|index| machine.uuid(index));
    let wanted: Vec<_> = (others.iter())
        .map(|uuid| (uuid.as_str(), LinkKind::NvLink(18)))
        .collect();
    assert_eq!(links, wanted);
}

#[tokio::test]
async fn links_are_as_the_machine_is_built() {
    let kinds = |layout| async move {
        let machine = Machine::laid_out("a100-80gb", 4, layout);
        let found = inventory(&machine.source(), Duration::from_secs(10))
            .await
            .unwrap();
        let kinds: Vec<LinkKind> = found.gpus[0].links.iter().map(|link| link.kind).collect();
        kinds
    };
    assert_eq!(kinds(Layout::Numa).await, []);
    assert_eq!(kinds(Layout::Pcie).await, [LinkKind::PcieSwitch]);
    assert_eq!(kinds(Layout::Pairs).await, [LinkKind::NvLink(12)]);
}

#[tokio::test]
async fn partitions_are_named_as_nvidias_tools_name_them() {
    for (profile, layout, names) in [
        (
            "a100-80gb",
            "3g.40gb/1c/2c,1g.10gb+me,1g.10gb",
            &["1c.3g.40gb", "2c.3g.40gb", "1g.10gb+me", "1g.10gb"][..],
        ),
        ("a100-40gb", "7g.40gb", &["7g.40gb"][..]),
        ("h200-141gb", "2g.35gb,1g.18gb", &["2g.35gb", "1g.18gb"][..]),
        ("a30", "2g.12gb,1g.6gb", &["2g.12gb", "1g.6gb"][..]),
    ] {
        let machine = Machine::new(profile, 1);
        machine.inject(0, &format!("mig {layout}"));
        let found = inventory(&machine.source(), Duration::from_secs(10))
            .await
            .unwrap();
        let mut found_names: Vec<&str> = (found.gpus[0].mig.devices().iter())
            .map(|partition| partition.profile.as_str())
            .collect();
        let mut names = names.to_vec();
        found_names.sort_unstable();
        names.sort_unstable();
        assert_eq!(found_names, names, "{profile}");
        let table = found.table();
        assert!(
            table.lines().all(|line| line.chars().count() <= 100),
            "{table}"
        );
        assert!(table.contains(&format!("MIG {}", names[0])), "{table}");
    }
}

#[tokio::test]
async fn a_layout_that_changes_while_the_plugin_runs_is_told() {
    let machine = Machine::new("a100-80gb", 1);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(1)).await;
    let parts = |seen: &Snapshot| seen.devices[0].gpu.mig.devices().len();
    machine.inject(0, "mig 3g.40gb,3g.40gb");
    watching.until(|seen| parts(seen) == 2).await;
    machine.inject(0, "mig 1g.10gb,1g.10gb,1g.10gb");
    let seen = watching.until(|seen| parts(seen) == 3).await;
    assert_eq!(seen.devices[0].gpu.mig.devices()[0].profile, "1g.10gb");
    watching
        .until_metrics("creo_gpu_partition_memory_total_bytes")
        .await;
    machine.inject(0, "mig off");
    watching
        .until(|seen| seen.devices[0].gpu.mig == Mig::Off)
        .await;
    assert!(!watching.metrics().contains("creo_gpu_partition_"));
}

#[tokio::test]
async fn readings_have_the_processes_of_cards_and_partitions_each_once() {
    let machine = Machine::new("a100-80gb", 2);
    machine.inject(0, "process 41 compute 100");
    machine.inject(0, "process 40 graphics 100");
    machine.inject(0, "process 42 mps 100");
    machine.inject(1, "mig 3g.40gb");
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    let layout = watching.snapshots.borrow().devices[1].gpu.mig.clone();
    let partition = &layout.devices()[0];
    machine.inject(
        1,
        &format!("process 50 compute 10 in {}/0", partition.gpu_instance),
    );
    let (card, uuid) = (machine.uuid(0), machine.uuid(1));
    let told = |readings: &Readings| {
        let of = |uuid: &str| readings.get(uuid)?.processes.clone();
        let of_partition = readings
            .get(&uuid)
            .and_then(|reading| reading.partitions.get(&partition.uuid)?.processes.clone());
        of(&card) == Some(vec![40, 41, 42])
            && of(&uuid) == Some(vec![50])
            && of_partition == Some(vec![50])
    };
    let waited = timeout(PATIENCE, watching.readings.wait_for(told))
        .await
        .is_ok();
    assert!(waited, "{:#?}", *watching.readings.borrow());
    // What a lost card said is not known any more.
    machine.inject(0, "lost");
    let gone = |readings: &Readings| !readings.contains_key(&card);
    let waited = timeout(PATIENCE, watching.readings.wait_for(gone))
        .await
        .is_ok();
    assert!(waited);
    let power = format!(
        "creo_gpu_power_watts{{gpu=\"0\",model=\"NVIDIA A100-SXM4-80GB\",uuid=\"{card}\"}}"
    );
    assert!(!watching.metrics().contains(&power));
}

#[tokio::test]
async fn a_card_that_hangs_from_the_start_does_not_keep_the_others() {
    let machine = Machine::new("t4", 3);
    machine.inject(1, "hang 60000");
    let mut watching = machine.watch(QUICK);
    let seen = watching.until(|seen| seen.devices.len() == 2).await;
    assert_eq!(ill(&seen), [0_u32; 0]);
    assert_eq!(seen.unreadable[0].index, 1);
    assert_eq!(seen.unreadable[0].why, "no answer for 2 s");
    watching
        .until_metrics(
            "creo_gpu_plugin_nvml_failures_total{call=\"describe\",failure=\"timeout\"} 1",
        )
        .await;
    machine.inject(2, "xid 94");
    watching.until(|seen| ill(seen) == [2]).await;
    // It answers at last, and is heard from then on.
    machine.inject(1, "hang 0");
    watching.until(all_well(3)).await;
    let heard = async {
        loop {
            machine.inject(1, "xid 119");
            tokio::time::sleep(Duration::from_millis(100)).await;
            if ill(&watching.snapshots.borrow()).contains(&1) {
                return;
            }
        }
    };
    timeout(PATIENCE, heard).await.unwrap();
}

#[tokio::test]
async fn waiting_for_events_that_hangs_is_said_and_the_cards_are_watched_on() {
    let machine = Machine::new("t4", 2);
    let mut watching = machine.watch(Pace {
        answer: Duration::from_millis(500),
        ..QUICK
    });
    watching.until(all_well(2)).await;
    machine.inject(0, "hang nvmlEventSetWait_v2");
    let seen = watching.until(|seen| seen.deaf.is_some()).await;
    assert!(seen.deaf.unwrap().contains("hangs"));
    machine.inject(1, "lost");
    watching.until(|seen| ill(seen) == [1]).await;
    machine.inject(0, "hang nvmlEventSetWait_v2 0");
    watching.until(|seen| seen.deaf.is_none()).await;
}

#[tokio::test]
async fn a_library_that_hangs_at_its_start_is_said_to_and_comes_back() {
    let machine = Machine::new("t4", 1);
    machine.inject(0, "hang nvmlInit_v2");
    let mut watching = machine.watch(QUICK);
    let silent = |seen: &Snapshot| {
        (seen.driver.as_ref()).is_err_and(|why| why.contains("has not answered for 2 s"))
    };
    watching.until(silent).await;
    machine.inject(0, "hang nvmlInit_v2 0");
    watching.until(all_well(1)).await;
}

#[tokio::test]
async fn cards_that_change_places_keep_their_names() {
    let machine = Machine::new("t4", 2);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    machine.inject(0, "swap 1");
    // What a person does to a card shows in its device nodes.
    machine.make_node(9);
    let first = machine.uuid(0);
    let swapped = |seen: &Snapshot| seen.devices.len() == 2 && seen.devices[1].gpu.uuid == first;
    let seen = watching.until(swapped).await;
    assert_eq!(seen.devices[1].gpu.index, 1);
    assert_eq!(ill(&seen), [0_u32; 0]);
    watching
        .until_metrics(&format!("gpu=\"1\",model=\"Tesla T4\",uuid=\"{first}\""))
        .await;
    assert!(
        !watching
            .metrics()
            .contains(&format!("gpu=\"0\",model=\"Tesla T4\",uuid=\"{first}\""))
    );
}

#[tokio::test]
async fn a_library_that_can_only_tell_what_a_card_is_still_offers_it() {
    let machine = Machine::new("h100-80gb", 1);
    let needed = [
        "nvmlDeviceGetHandleByIndex_v2",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetName",
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetCudaComputeCapability",
        "nvmlDeviceGetMinorNumber",
        "nvmlDeviceGetCount_v2",
    ];
    let mut rest = Machine::card_functions();
    rest.retain(|name| !needed.contains(name));
    assert!(rest.len() > 50, "{rest:?}");
    machine.take_out(&rest);
    let session = Session::open(&machine.source().find().unwrap(), &machine.sysfs_root()).unwrap();
    let gpu = session.describe(0).unwrap();
    assert_eq!(
        (gpu.numa_node, gpu.pcie, gpu.ecc_enabled),
        (None, None, None)
    );
    assert_eq!(gpu.mig, Mig::Unsupported);
    let reading = Reader::new(&machine.uuid(0)).read(&session).unwrap();
    assert_eq!(reading.processes, None);
    assert_eq!(reading.throttle_reasons, None);
    assert_eq!(session.links()[&machine.uuid(0)], []);
}

#[tokio::test]
async fn whatever_a_function_answers_nothing_panics_and_the_other_card_is_read() {
    let machine = Machine::laid_out("h100-80gb", 2, Layout::NvSwitch);
    machine.inject(0, "mig 3g.40gb,1g.10gb");
    let session = Session::open(&machine.source().find().unwrap(), &machine.sysfs_root()).unwrap();
    for index in [0, 1] {
        session.describe(index).unwrap();
    }
    for function in Machine::card_functions() {
        for code in [
            "NOT_SUPPORTED",
            "UNKNOWN",
            "NO_PERMISSION",
            "INSUFFICIENT_SIZE",
            "GPU_IS_LOST",
        ] {
            machine.inject(0, &format!("error {function} {code}"));
            let read = Reader::new(&machine.uuid(0)).read(&session);
            if let Err(ReadError::Gpu(why) | ReadError::Driver(why)) = read {
                assert!(!why.is_empty());
            }
            let _ = session.describe(0);
            machine.inject(0, &format!("error {function} none"));
        }
        let other = Reader::new(&machine.uuid(1)).read(&session);
        assert!(other.is_ok(), "{function}: {other:?}");
    }
}
