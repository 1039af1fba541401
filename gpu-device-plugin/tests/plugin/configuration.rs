//! The configuration, while the plugin runs.

use crate::kubelet::{Kubelet, Seen};
use crate::machine::Machine;

const SHARED_BY_TWO: &str = "sharing: {cards: [{model: '*', replicas: 2}]}";

#[tokio::test]
async fn a_new_configuration_is_in_effect_without_a_restart() {
    let machine = Machine::new("t4", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let file = machine.configure(SHARED_BY_TWO);
    let plugin = machine.serve(&[&file]);
    let shared = "creo.cloud/gpu.shared";
    let resources = kubelet.until_resources(&[(shared, 4)]).await;
    assert!(resources[shared].contains_key(&format!("{}::1", machine.uuid(1))));
    machine.configure("sharing: {cards: [{index: 0, replicas: 3}]}");
    let resources = kubelet
        .until_resources(&[(shared, 3), ("creo.cloud/gpu", 1)])
        .await;
    // What a container has keeps its name as long as its card is shared.
    assert!(resources[shared].contains_key(&format!("{}::1", machine.uuid(0))));
    machine.configure(&format!("exclude: [{{uuid: {}}}]", machine.uuid(1)));
    kubelet.until_resources(&[("creo.cloud/gpu", 1)]).await;
    machine.configure("outOfService: [{index: 0}]");
    let gpus = |seen: &Seen| seen.resources.get("creo.cloud/gpu").cloned();
    let seen = kubelet
        .until(|seen| gpus(seen).is_some_and(|list| list.len() == 2))
        .await;
    assert_eq!(gpus(&seen).unwrap()[&machine.uuid(0)], "Unhealthy");
    plugin
        .until(
            "/metrics",
            "creo_gpu_plugin_config_reads_total{outcome=\"ok\"} 4",
        )
        .await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_wrong_new_configuration_changes_nothing_and_is_told() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let file = machine.configure(SHARED_BY_TWO);
    let plugin = machine.serve(&[&file]);
    kubelet
        .until_resources(&[("creo.cloud/gpu.shared", 2)])
        .await;
    let mut refused = 0;
    for wrong in ["sharing: {cards: 7}", "resource: nvidia.com/gpu", "a: ["] {
        machine.configure(wrong);
        refused += 1;
        let told = format!("creo_gpu_plugin_config_reads_total{{outcome=\"error\"}} {refused}");
        plugin.until("/metrics", &told).await;
        plugin.until("/readyz", "HTTP/1.1 200").await;
    }
    assert_eq!(kubelet.seen.borrow().registrations.len(), 1);
    machine.configure("");
    kubelet.until_resources(&[("creo.cloud/gpu", 1)]).await;
    plugin.stop().await;
}

#[tokio::test]
async fn with_a_wrong_first_configuration_nothing_is_offered_until_it_is_right() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let file = machine.configure("exclud: [{index: 0}]");
    let plugin = machine.serve(&[&file]);
    plugin.until("/readyz", "missing: config: ").await;
    plugin
        .until(
            "/readyz",
            "line 1: unknown key \"exclud\"; did you mean exclude?",
        )
        .await;
    plugin.until("/healthz", "HTTP/1.1 200").await;
    assert!(kubelet.seen.borrow().registrations.is_empty());
    machine.configure("exclude: [{index: 1}]");
    kubelet.until_resources(&[("creo.cloud/gpu", 1)]).await;
    plugin.until("/readyz", "HTTP/1.1 200").await;
    plugin.stop().await;
}
