//! What is said of a card that is not as it should be, and when it goes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use creo_gpu_device_plugin::config::{Config, HealthConfig};
use creo_gpu_device_plugin::driver::{Device, Pace, Snapshot};
use creo_gpu_device_plugin::health::{Finding, Health, Severity, Slowdown};
use tokio::sync::watch;

use crate::driver::{QUICK, all_well, ill};
use crate::machine::Machine;

/// Nothing goes by itself.
const PATIENT: Pace = Pace {
    quiet: Duration::from_hours(1),
    ..QUICK
};

fn has(device: &Device, reason: &str) -> bool {
    let mut findings = device.health.findings().iter();
    findings.any(|finding| finding.reason() == reason)
}

fn says(index: usize, reason: &'static str) -> impl Fn(&Snapshot) -> bool {
    move |seen| {
        seen.devices
            .get(index)
            .is_some_and(|device| has(device, reason))
    }
}

#[tokio::test]
async fn what_needs_a_reset_goes_with_a_reset_and_not_with_time() {
    let machine = Machine::new("h100-80gb", 2);
    machine.inject(1, "ecc-corrected 3");
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(2)).await;
    machine.inject(1, "xid 119");
    let seen = watching.until(|seen| ill(seen) == [1]).await;
    assert_eq!(seen.devices[1].health.severity(), Some(Severity::Out));
    // Another fault comes and goes; this one stays.
    machine.inject(0, "xid 94");
    watching.until(|seen| ill(seen) == [0, 1]).await;
    watching.until(|seen| ill(seen) == [1]).await;
    machine.inject(1, "reset");
    watching.until(all_well(2)).await;
}

#[tokio::test]
async fn what_needs_a_reset_is_known_to_a_plugin_that_starts_again_in_the_same_boot() {
    let machine = Machine::new("h100-80gb", 2);
    let mut watching = machine.watch_in_boot(QUICK, "first");
    watching.until(all_well(2)).await;
    machine.inject(0, "xid 62");
    watching.until(|seen| ill(seen) == [0]).await;
    let file = machine.state_directory().join("health.json");
    let written = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("62")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(crate::machine::PATIENCE, written)
        .await
        .unwrap();
    watching.stop().await;
    let mut again = machine.watch_in_boot(QUICK, "first");
    let seen = again.until(|seen| seen.devices.len() == 2).await;
    assert_eq!(seen.devices[0].health, Health::of([Finding::Xid(62)]));
    assert_eq!(ill(&seen), [0]);
    again.stop().await;
    let mut rebooted = machine.watch_in_boot(QUICK, "second");
    let seen = rebooted.until(|seen| seen.devices.len() == 2).await;
    assert_eq!(ill(&seen), [0_u32; 0]);
}

#[tokio::test]
async fn states_of_the_memory_are_findings_until_they_are_gone() {
    let machine = Machine::new("a100-80gb", 3);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(3)).await;
    machine.inject(0, "remap pending");
    machine.inject(1, "remap failed");
    machine.inject(2, "ecc 1");
    let seen = watching.until(|seen| {
        says(0, "RowRemapPending")(seen)
            && says(1, "RowRemapFailed")(seen)
            && says(2, "UncorrectedEcc")(seen)
    });
    let seen = seen.await;
    let severities: Vec<_> = seen
        .devices
        .iter()
        .map(|device| device.health.severity())
        .collect();
    assert_eq!(
        severities,
        [
            Some(Severity::Drain),
            Some(Severity::Out),
            Some(Severity::Drain)
        ]
    );
    machine.inject(0, "reset");
    machine.inject(2, "reset");
    // A card that failed to remap is not put right by a reset.
    watching.until(|seen| ill(seen) == [1]).await;
}

#[tokio::test]
async fn pages_that_wait_to_be_retired_drain_an_older_card() {
    let machine = Machine::new("t4", 1);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(1)).await;
    machine.inject(0, "retire 2");
    watching.until(says(0, "RetiredPagesPending")).await;
    machine.inject(0, "reset");
    watching.until(all_well(1)).await;
}

#[tokio::test]
async fn heat_and_power_brake_are_notes_at_first_and_the_card_is_offered_on() {
    let machine = Machine::new("h100-80gb", 1);
    let mut watching = machine.watch(QUICK);
    watching.until(all_well(1)).await;
    machine.inject(0, "throttle hw-thermal,power-brake");
    let slow = |why| Finding::SlowedDown {
        why,
        lasting: false,
    };
    let both = Health::of([slow(Slowdown::HardwareThermal), slow(Slowdown::PowerBrake)]);
    let seen = watching.until(|seen| seen.devices[0].health == both).await;
    assert!(seen.devices[0].health.is_healthy());
    machine.inject(0, "throttle none");
    watching
        .until(|seen| seen.devices[0].health == Health::healthy())
        .await;
}

#[tokio::test]
async fn an_nvlink_that_goes_down_is_missed_on_its_card() {
    let machine = Machine::laid_out("h100-80gb", 2, nvidia_ml::state::Layout::NvSwitch);
    let mut watching = machine.watch(PATIENT);
    watching.until(all_well(2)).await;
    machine.inject(0, "nvlink 3 down");
    let seen = watching.until(says(0, "NvLinkDown")).await;
    assert!(has(&seen.devices[0], "XidError"));
    assert!(!has(&seen.devices[1], "NvLinkDown"));
    let text = format!("{:?}", seen.devices[0].health);
    assert!(text.contains("NvLinkDown { down: 1, of: 18 }"), "{text}");
}

#[tokio::test]
async fn a_slow_link_of_a_working_card_is_a_note() {
    let machine = Machine::new("h100-80gb", 1);
    machine.inject(0, "pcie 3 8");
    machine.inject(0, "use 90");
    let mut watching = machine.watch(QUICK);
    let seen = watching.until(says(0, "PcieDegraded")).await;
    assert!(seen.devices[0].health.is_healthy());
    let text = seen.devices[0].health.findings()[0].to_string();
    assert!(text.contains("generation 3 with 8 lanes"), "{text}");
}

#[tokio::test]
async fn an_xid_of_a_partition_leaves_its_card_and_the_other_partitions_alone() {
    let machine = Machine::new("a100-80gb", 1);
    machine.inject(0, "mig 3g.40gb,1g.10gb,1g.10gb");
    let mut watching = machine.watch(PATIENT);
    let seen = watching
        .until(|seen| {
            seen.devices
                .first()
                .is_some_and(|one| one.gpu.mig.devices().len() == 3)
        })
        .await;
    let second = seen.devices[0].gpu.mig.devices()[1].clone();
    machine.inject(0, &format!("xid 94 in {}/0", second.gpu_instance));
    let seen = watching
        .until(|seen| !seen.devices[0].partitions.is_empty())
        .await;
    let card = &seen.devices[0];
    assert_eq!(card.health, Health::healthy());
    for partition in card.gpu.mig.devices() {
        let healthy = card.partition_health(&partition.uuid).is_healthy();
        assert_eq!(healthy, partition.uuid != second.uuid);
    }
    watching
        .until_metrics(&format!(
            "partition=\"{}\",profile=\"1g.10gb\",uuid=\"{}\"}} 0",
            second.uuid, card.gpu.uuid
        ))
        .await;
    // One that names no partition is of the card, and so of all.
    machine.inject(0, "xid 119");
    let seen = watching.until(|seen| ill(seen) == [0]).await;
    for partition in seen.devices[0].gpu.mig.devices() {
        assert!(
            !seen.devices[0]
                .partition_health(&partition.uuid)
                .is_healthy()
        );
    }
}

#[tokio::test]
async fn xids_that_a_person_ignores_are_counted_and_change_nothing() {
    let machine = Machine::new("t4", 2);
    let config = Config {
        health: HealthConfig {
            ignored_xids: BTreeSet::from([119]),
            healthy_after: Duration::from_millis(300),
        },
        ..Config::default()
    };
    let (sender, config) = watch::channel(Arc::new(config));
    let mut watching = machine.watch_ruled(PATIENT, config);
    watching.until(all_well(2)).await;
    machine.inject(0, "xid 119");
    machine.inject(1, "xid 94");
    // Later events are heard later, and the quiet time is that of the configuration.
    watching.until(|seen| ill(seen) == [1]).await;
    watching.until(all_well(2)).await;
    watching.until_metrics("xid=\"119\"} 1").await;
    sender.send_replace(Arc::default());
    machine.inject(0, "xid 119");
    watching.until(|seen| ill(seen) == [0]).await;
}
