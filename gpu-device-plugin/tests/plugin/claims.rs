//! From the driver to the hub.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use creo_gpu_device_plugin::cdi::Place;
use creo_gpu_device_plugin::claims::{ANNOTATION, Claiming};
use creo_gpu_device_plugin::driver::Pace;
use creo_gpu_device_plugin::kubelet::offer::Offers;
use creo_gpu_device_plugin::metrics::Metrics;
use creo_gpu_device_plugin::offer::conflict::Conflicts;
use creo_gpu_device_plugin::offer::{Offering, Sources};
use creo_gpu_device_plugin::processes::Uses;
use creo_gpu_device_plugin::unit::Offered;
use creo_process::probes::Readiness;
use creo_process::prometheus::Registry;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::hub::Hub;
use crate::machine::{Machine, Watching};

fn claim(machine: &Machine, client: Client) -> (Watching, DropGuard) {
    claim_with(machine, client, watch::channel(None).1)
}

/// Claims, with a configuration that is refused as this says.
fn claim_with(
    machine: &Machine,
    client: Client,
    refused: watch::Receiver<Option<String>>,
) -> (Watching, DropGuard) {
    let watching = machine.watch(Pace {
        poll: Duration::from_millis(100),
        quiet: Duration::from_millis(500),
        retry: Duration::from_millis(200),
        ..Pace::default()
    });
    let (out_of_service, taken_out) = watch::channel(BTreeSet::new());
    let (offered_sender, offered) = watch::channel(Offered::default());
    let offering = Offering {
        sources: Sources {
            snapshots: watching.snapshots.clone(),
            config: watch::channel(Arc::default()).1,
            out_of_service: taken_out,
            conflicts: watch::channel(Conflicts::default()).1,
        },
        cdi_directory: machine.cdi_specification().parent().unwrap().to_owned(),
        place: Place {
            root: machine.driver_root(),
            mount: machine.driver_root(),
            procfs: "/proc".into(),
        },
        offered: offered_sender,
        offers: watch::channel(Offers::new()).0,
        written: Readiness::new().check("cdi", ""),
    };
    let (uses_sender, uses) = watch::channel(Uses::new());
    // Nobody tells of processes, and it does not end either.
    tokio::spawn(async move { uses_sender.closed().await });
    let claiming = Claiming {
        client,
        node_name: "node-1".to_owned(),
        resource: "creo.cloud/gpu".parse().unwrap(),
        snapshots: watching.snapshots.clone(),
        offered,
        uses,
        refused,
        out_of_service,
        metrics: Metrics::register(&Registry::new()).unwrap(),
    };
    let stop = CancellationToken::new();
    tokio::spawn(offering.run(stop.clone()));
    tokio::spawn(claiming.run(stop.clone()));
    (watching, stop.drop_guard())
}

fn healthy(claims: &Value) -> usize {
    let gpus = claims["gpus"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    gpus.iter().filter(|gpu| gpu["healthy"] == true).count()
}

#[tokio::test]
async fn the_claims_name_every_gpu_and_are_written_once() {
    let machine = Machine::new("t4", 2);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({"conditions": []}));
    let _claiming = claim(&machine, client);
    let claims = hub.until(|claims| healthy(claims) == 2).await;
    let gpu = |index: usize| {
        json!({
            "index": index,
            "uuid": machine.uuid(index),
            "model": "Tesla T4",
            "memoryBytes": 15_360_u64 << 20,
            "computeCapability": "7.5",
            "healthy": true,
            "eccEnabled": true,
            "numaNode": 0,
            "pcie": {"generation": 1, "generationMax": 3, "width": 16, "widthMax": 16},
            "powerLimitMilliwatts": 70_000,
            "offeredAs": "Whole",
            "resource": "creo.cloud/gpu",
        })
    };
    assert_eq!(
        claims,
        json!({
            "driverVersion": "570.133.20",
            "cudaVersion": "12.8",
            "resource": "creo.cloud/gpu",
            "gpus": [gpu(0), gpu(1)],
        })
    );
    sleep(Duration::from_secs(1)).await;
    // Watching and writing go on side by side.
    let mut asked = hub.asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(
        asked,
        [
            "LIST metadata.name=node-1",
            "PATCH node-1 as creo-gpu-device-plugin",
            "WATCH metadata.name=node-1",
        ]
    );
}

#[tokio::test]
async fn a_plugin_that_starts_again_writes_nothing() {
    let machine = Machine::new("t4", 2);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let first = claim(&machine, client.clone());
    hub.until(|claims| healthy(claims) == 2).await;
    drop(first);
    let (mut watching, _stop) = claim(&machine, client);
    watching.until(|seen| seen.devices.len() == 2).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(hub.writes(), 1);
}

#[tokio::test]
async fn a_fault_and_its_end_are_told_within_a_second_each_with_one_write() {
    let machine = Machine::new("t4", 2);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    hub.until(|claims| healthy(claims) == 2).await;
    let began = Instant::now();
    machine.inject(1, "xid 94");
    let claims = hub.until(|claims| healthy(claims) == 1).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    let reason = claims["gpus"][1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("XidError: XID 94"), "{reason}");
    hub.until(|claims| healthy(claims) == 2).await;
    assert_eq!(hub.writes(), 3);
}

#[tokio::test]
async fn a_thousand_errors_of_one_card_in_a_second_are_one_change_of_the_claims() {
    let machine = Machine::new("t4", 8);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    hub.until(|claims| healthy(claims) == 8).await;
    machine.inject_often(3, "xid 79", 1_000);
    let claims = hub.until(|claims| healthy(claims) == 7).await;
    let lost = &claims["gpus"][3];
    assert_eq!(lost["findings"].as_array().unwrap().len(), 1, "{lost}");
    assert_eq!(lost["findings"][0]["severity"], "Out");
    assert!(
        lost["reason"].as_str().unwrap().contains("reboot"),
        "it says what to do: {lost}"
    );
    // The first claims, the failure, and the end of it: nothing for each single error.
    hub.until(|claims| healthy(claims) == 8).await;
    assert_eq!(hub.writes(), 3);
}

#[tokio::test]
async fn a_person_takes_a_card_out_of_service_at_the_nodes_object_and_puts_it_back() {
    let machine = Machine::new("t4", 2);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    hub.until(|claims| healthy(claims) == 2).await;
    hub.annotate(&json!({ANNOTATION: machine.uuid(1)}));
    let claims = hub.until(|claims| healthy(claims) == 1).await;
    let reason = claims["gpus"][1]["reason"].as_str().unwrap();
    assert!(reason.starts_with("OutOfService"), "{reason}");
    hub.annotate(&json!({}));
    hub.until(|claims| healthy(claims) == 2).await;
    assert_eq!(hub.writes(), 3);
}

#[tokio::test]
async fn a_node_that_the_hub_does_not_know_yet_is_waited_for() {
    let machine = Machine::new("t4", 1);
    let (hub, client) = Hub::start().await;
    let _claiming = claim(&machine, client);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(hub.writes(), 0);
    hub.put("node-1", &json!({}));
    hub.until(|claims| healthy(claims) == 1).await;
    // Deleted and made anew by the operator, it is told again.
    hub.delete();
    sleep(Duration::from_millis(300)).await;
    hub.put("node-1", &json!({}));
    hub.until(|claims| healthy(claims) == 1).await;
    assert_eq!(hub.writes(), 2);
}

#[tokio::test]
async fn claims_that_somebody_else_changed_are_put_right() {
    let machine = Machine::new("t4", 1);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    hub.until(|claims| healthy(claims) == 1).await;
    hub.put(
        "node-1",
        &json!({"claims": {"resource": "creo.cloud/gpu", "gpus": []}}),
    );
    hub.until(|claims| healthy(claims) == 1).await;
}

#[tokio::test]
async fn a_hub_that_refuses_is_asked_again_later_and_not_in_a_storm() {
    let machine = Machine::new("t4", 1);
    let (hub, client) = Hub::start().await;
    *hub.refuse_writes.lock().unwrap() = true;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    sleep(Duration::from_secs(4)).await;
    let refused = hub.writes();
    assert!((1..=4).contains(&refused), "{refused} writes");
    *hub.refuse_writes.lock().unwrap() = false;
    hub.until(|claims| healthy(claims) == 1).await;
}

#[tokio::test]
async fn a_node_without_a_driver_says_why() {
    let machine = Machine::without_driver("t4", 1);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let _claiming = claim(&machine, client);
    let claims = hub.until(|claims| claims["message"].is_string()).await;
    assert!(
        claims["message"]
            .as_str()
            .unwrap()
            .starts_with("no NVIDIA driver")
    );
    assert_eq!(claims["gpus"], json!([]));
}

#[tokio::test]
async fn a_configuration_that_is_refused_is_told_until_it_is_right() {
    let machine = Machine::new("t4", 1);
    let (hub, client) = Hub::start().await;
    hub.put("node-1", &json!({}));
    let (refused, told) = watch::channel(None);
    let _claiming = claim_with(&machine, client, told);
    hub.until(|claims| healthy(claims) == 1).await;
    let why = "the new configuration is not used: line 1: unlike: 7 is given";
    refused.send_replace(Some(why.to_owned()));
    hub.until(|claims| claims["message"] == why).await;
    refused.send_replace(None);
    let claims = hub.until(|claims| claims["message"].is_null()).await;
    assert_eq!(healthy(&claims), 1);
}
