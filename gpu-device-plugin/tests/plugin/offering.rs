//! From the driver to the kubelet.

use std::fs;
use std::time::Duration;

use creo_gpu_device_plugin::kubelet::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest,
    ContainerPreferredAllocationRequest, DeviceSpec, Empty, PreStartContainerRequest,
    PreferredAllocationRequest,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::kubelet::{Kubelet, healthy, wipe};
use crate::machine::{Machine, PATIENCE};

fn allocation(containers: &[&[String]]) -> AllocateRequest {
    AllocateRequest {
        container_requests: containers
            .iter()
            .map(|ids| ContainerAllocateRequest {
                device_ids: ids.to_vec(),
            })
            .collect(),
    }
}

fn cdi_names(response: &AllocateResponse) -> Vec<Vec<String>> {
    response
        .container_responses
        .iter()
        .map(|container| {
            container
                .cdi_devices
                .iter()
                .map(|device| device.name.clone())
                .collect()
        })
        .collect()
}

#[tokio::test]
async fn a_plugin_registers_lists_its_gpus_and_is_ready() {
    let machine = Machine::new("rtx-4090", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    let list = kubelet.until_healthy(2).await;
    assert_eq!(list.keys().len(), 2);
    assert!(list.contains_key(&machine.uuid(0)) && list.contains_key(&machine.uuid(1)));
    let registered = kubelet.seen.borrow().registrations[0].clone();
    assert_eq!(registered.version, "v1beta1");
    assert_eq!(registered.resource_name, "creo.cloud/gpu");
    assert_eq!(registered.endpoint, "creo.cloud-gpu.sock");
    let options = kubelet
        .plugin()
        .await
        .get_device_plugin_options(Empty {})
        .await
        .unwrap();
    assert_eq!(registered.options, Some(options.into_inner()));
    plugin.until("/readyz", "HTTP/1.1 200").await;
    plugin
        .until("/metrics", "creo_gpu_memory_total_bytes{gpu=\"1\"")
        .await;
    plugin
        .until("/metrics", "creo_gpu_temperature_celsius{gpu=\"0\"")
        .await;
    let metrics = plugin.get("/metrics").await;
    assert!(metrics.contains("creo_gpu_plugin_registrations_total{outcome=\"ok\"} 1"));
    plugin.stop().await;
    assert!(!machine.plugin_socket().exists());
    assert!(machine.cdi_specification().exists());
}

#[tokio::test]
async fn the_cdi_specification_is_there_before_the_kubelet_hears_of_the_gpus() {
    let machine = Machine::new("t4", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    kubelet.until(|seen| !seen.registrations.is_empty()).await;
    let text = fs::read_to_string(machine.cdi_specification()).unwrap();
    let specification: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(specification["kind"], "creo.cloud/gpu");
    assert_eq!(specification["devices"][1]["name"], machine.uuid(1));
    let node = &specification["devices"][1]["containerEdits"]["deviceNodes"][0];
    assert_eq!(node["path"], "/dev/nvidia1");
    let on_host = machine.driver_root().join("dev/nvidia1");
    assert_eq!(node["hostPath"], on_host.to_str().unwrap());
    let common = &specification["containerEdits"]["deviceNodes"];
    assert_eq!(common[0]["path"], "/dev/nvidiactl");
    assert_eq!(common.as_array().unwrap().len(), 1);
    plugin.stop().await;
}

#[tokio::test]
async fn an_allocation_names_the_cdi_devices_and_is_the_same_every_time() {
    let machine = Machine::new("t4", 4);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    let mut client = kubelet.plugin().await;
    let (one, two, three) = (machine.uuid(1), machine.uuid(2), machine.uuid(3));
    let request = allocation(&[
        &[two.clone(), one.clone(), two.clone()],
        std::slice::from_ref(&three),
        &[],
    ]);
    let first = client.allocate(request.clone()).await.unwrap().into_inner();
    let name = |uuid: &String| format!("creo.cloud/gpu={uuid}");
    assert_eq!(
        cdi_names(&first),
        [vec![name(&one), name(&two)], vec![name(&three)], vec![]]
    );
    let variable = &first.container_responses[0].envs["CREO_GPU_UUIDS"];
    assert_eq!(*variable, format!("{one},{two}"));
    // The health of a GPU that a container has already is no matter.
    machine.inject(1, "xid 48");
    kubelet.until_healthy(3).await;
    assert_eq!(client.allocate(request).await.unwrap().into_inner(), first);
    plugin.stop().await;
}

#[tokio::test]
async fn an_unknown_device_is_refused_with_its_name_and_nothing_else_is() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    let mut client = kubelet.plugin().await;
    let unknown = allocation(&[&["GPU-of-yesterday".to_owned()]]);
    let refused = client.allocate(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused
            .message()
            .contains("creo.cloud/gpu: there is no \"GPU-of-yesterday\" among the 1"),
        "{refused}"
    );
    let wish = |available: &[&str], required: &[&str], size| PreferredAllocationRequest {
        container_requests: vec![ContainerPreferredAllocationRequest {
            available_device_ids: available.iter().map(|id| (*id).to_owned()).collect(),
            must_include_device_ids: required.iter().map(|id| (*id).to_owned()).collect(),
            allocation_size: size,
        }],
    };
    for (available, required, size, expected) in [
        (&["x", "x"][..], &[][..], 2, &["x"][..]),
        (&[][..], &["gone", "gone"][..], 1, &["gone"][..]),
        (&["b", "a"][..], &["c"][..], -7, &["c"][..]),
        (&["b", "a"][..], &["c"][..], i32::MAX, &["c", "a", "b"][..]),
    ] {
        let answer = client
            .get_preferred_allocation(wish(available, required, size))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.container_responses[0].device_ids, expected);
    }
    client
        .pre_start_container(PreStartContainerRequest::default())
        .await
        .unwrap();
    plugin.stop().await;
}

#[tokio::test]
async fn a_fault_is_listed_within_a_second_and_its_end_after_the_quiet_time() {
    let machine = Machine::new("t4", 8);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&["--healthy-after", "2s"]);
    kubelet.until_healthy(8).await;
    let began = Instant::now();
    machine.inject(3, "lost");
    let list = kubelet.until_healthy(7).await;
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(list[&machine.uuid(3)], "Unhealthy");
    plugin.until("/metrics", "xid=\"79\"} 1").await;
    // A GPU that is ill does not make the plugin unready: the others are served.
    plugin.until("/readyz", "HTTP/1.1 200").await;
    machine.inject(3, "heal");
    let healed = Instant::now();
    kubelet.until_healthy(8).await;
    assert!(healed.elapsed() > Duration::from_secs(1));
    // Two changes, two lists: nothing flapped.
    assert_eq!(kubelet.seen.borrow().lists.len(), 3);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_starts_anew_is_registered_with_within_two_seconds() {
    let machine = Machine::new("t4", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    kubelet.until_healthy(2).await;
    drop(kubelet);
    for _ in 0..3 {
        let began = Instant::now();
        let mut kubelet = Kubelet::start(&machine.kubelet_directory());
        kubelet.until_healthy(2).await;
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{:?}",
            began.elapsed()
        );
        let seen = kubelet.seen.borrow().registrations.len();
        assert_eq!(seen, 1);
    }
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_is_away_for_a_while_is_waited_for() {
    let machine = Machine::new("t4", 1);
    let plugin = machine.serve(&[]);
    plugin
        .until("/readyz", "missing: kubelet: kubelet.sock is not in")
        .await;
    plugin.until("/healthz", "HTTP/1.1 200").await;
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    kubelet.until_healthy(1).await;
    plugin.until("/readyz", "HTTP/1.1 200").await;
    drop(kubelet);
    wipe(&machine.kubelet_directory());
    plugin.until("/readyz", "missing: kubelet").await;
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    kubelet.until_healthy(1).await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_socket_or_a_whole_directory_that_is_wiped_is_made_again() {
    let machine = Machine::new("t4", 1);
    let directory = machine.kubelet_directory();
    let mut kubelet = Kubelet::start(&directory);
    let plugin = machine.serve(&[]);
    kubelet.until_healthy(1).await;
    fs::remove_file(machine.plugin_socket()).unwrap();
    kubelet.until(|seen| seen.registrations.len() == 2).await;
    kubelet.until_healthy(1).await;
    drop(kubelet);
    fs::remove_dir_all(&directory).unwrap();
    sleep(Duration::from_millis(600)).await;
    fs::create_dir(&directory).unwrap();
    let mut kubelet = Kubelet::start(&directory);
    kubelet.until_healthy(1).await;
    plugin.stop().await;
}

#[tokio::test]
async fn without_a_driver_the_plugin_lives_says_what_to_do_and_serves_when_it_comes() {
    let machine = Machine::without_driver("t4", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    plugin
        .until(
            "/readyz",
            "missing: driver: no NVIDIA driver: libnvidia-ml.so.1 is not under",
        )
        .await;
    plugin.until("/healthz", "HTTP/1.1 200").await;
    plugin.until("/metrics", "creo_gpu_driver_up 0").await;
    assert!(kubelet.seen.borrow().registrations.is_empty());
    machine.install_driver();
    kubelet.until_healthy(2).await;
    plugin.until("/readyz", "HTTP/1.1 200").await;
    // A driver that goes makes its GPUs ill; it does not make them vanish.
    machine.inject(0, "unload");
    let list = kubelet.until_healthy(0).await;
    assert_eq!(list.len(), 2);
    plugin
        .until(
            "/readyz",
            "missing: driver: the NVIDIA driver is installed but not loaded",
        )
        .await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_gpu_that_is_put_in_is_offered_without_anyone_touching_the_plugin() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    kubelet.until_healthy(1).await;
    machine.inject(1, "add t4");
    machine.make_node(1);
    let list = kubelet.until_healthy(2).await;
    let new = healthy(&list)
        .into_iter()
        .find(|uuid| *uuid != machine.uuid(0))
        .unwrap();
    let answer = kubelet
        .plugin()
        .await
        .allocate(allocation(&[std::slice::from_ref(&new)]))
        .await
        .unwrap();
    assert_eq!(
        cdi_names(&answer.into_inner()),
        [[format!("creo.cloud/gpu={new}")]]
    );
    assert!(
        fs::read_to_string(machine.cdi_specification())
            .unwrap()
            .contains(&new)
    );
    plugin.stop().await;
}

#[tokio::test]
async fn unlike_cards_have_a_resource_each_and_a_new_one_parts_them() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&[]);
    kubelet.until_resources(&[("creo.cloud/gpu", 1)]).await;
    machine.inject(1, "add h100-80gb");
    machine.make_node(1);
    let resources = kubelet
        .until_resources(&[
            ("creo.cloud/gpu-h100-80gb-hbm3", 1),
            ("creo.cloud/gpu-tesla-t4", 1),
        ])
        .await;
    // A card keeps its name, whatever it is counted as, and so do its CDI devices.
    assert!(resources["creo.cloud/gpu-tesla-t4"].contains_key(&machine.uuid(0)));
    let answer = kubelet
        .plugin_of("creo.cloud/gpu-tesla-t4")
        .await
        .allocate(allocation(&[&[machine.uuid(0)]]))
        .await
        .unwrap();
    assert_eq!(
        cdi_names(&answer.into_inner()),
        [[format!("creo.cloud/gpu={}", machine.uuid(0))]]
    );
    assert!(!machine.plugin_socket().exists());
    plugin.until("/readyz", "HTTP/1.1 200").await;
    plugin.stop().await;
    assert_eq!(sockets(&machine), ["kubelet.sock"]);
}

/// What is in the kubelet's directory.
fn sockets(machine: &Machine) -> Vec<String> {
    let entries = fs::read_dir(machine.kubelet_directory()).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn where_no_specification_can_be_written_no_gpu_is_offered() {
    let machine = Machine::new("t4", 1);
    let kubelet = Kubelet::start(&machine.kubelet_directory());
    // A file is where the directory should be.
    fs::write(machine.cdi_specification().parent().unwrap(), "").unwrap();
    let plugin = machine.serve(&[]);
    plugin
        .until(
            "/readyz",
            "missing: cdi: cannot write the CDI specification",
        )
        .await;
    assert!(kubelet.seen.borrow().registrations.is_empty());
    plugin.stop().await;
}

#[tokio::test]
async fn another_resource_name_is_used_everywhere() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let plugin = machine.serve(&["--resource", "nvidia.com/gpu"]);
    kubelet.until_healthy(1).await;
    let registered = kubelet.seen.borrow().registrations[0].clone();
    assert_eq!(registered.resource_name, "nvidia.com/gpu");
    assert_eq!(registered.endpoint, "nvidia.com-gpu.sock");
    let answer = kubelet
        .plugin()
        .await
        .allocate(allocation(&[&[machine.uuid(0)]]))
        .await
        .unwrap();
    assert_eq!(
        cdi_names(&answer.into_inner()),
        [[format!("nvidia.com/gpu={}", machine.uuid(0))]]
    );
    plugin.stop().await;
}

#[tokio::test]
async fn partitions_are_offered_as_they_are_made_and_as_the_strategy_says() {
    let machine = Machine::new("a100-80gb", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let file = machine.configure("mig: {strategy: mixed}");
    machine.name_partitions();
    let plugin = machine.serve(&[&file]);
    kubelet.until_resources(&[("creo.cloud/gpu", 2)]).await;
    machine.inject(0, "mig 3g.40gb,1g.10gb,1g.10gb");
    let resources = kubelet
        .until_resources(&[
            ("creo.cloud/gpu", 1),
            ("creo.cloud/mig-1g.10gb", 2),
            ("creo.cloud/mig-3g.40gb", 1),
        ])
        .await;
    let partition = resources["creo.cloud/mig-3g.40gb"].keys().next().unwrap();
    assert!(partition.starts_with("MIG-"), "{partition}");
    let answer = kubelet
        .plugin_of("creo.cloud/mig-3g.40gb")
        .await
        .allocate(allocation(&[std::slice::from_ref(partition)]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        cdi_names(&answer),
        [[format!("creo.cloud/gpu={partition}")]]
    );
    // The partitions have the name of whole cards, and no whole card has it then.
    machine.configure("mig: {strategy: single}");
    kubelet.until_resources(&[]).await;
    machine.inject(0, "mig 3g.40gb,3g.40gb");
    kubelet.until_resources(&[("creo.cloud/gpu", 2)]).await;
    machine.inject(1, "mig 3g.40gb,3g.40gb");
    kubelet.until_resources(&[("creo.cloud/gpu", 4)]).await;
    machine.configure("");
    kubelet.until_resources(&[]).await;
    plugin
        .until("/readyz", "missing: kubelet: no GPU is offered")
        .await;
    plugin.stop().await;
}

#[tokio::test]
async fn without_cdi_a_container_is_given_device_nodes() {
    let machine = Machine::new("t4", 2);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let file = machine.configure("cdi: {enabled: false}");
    let plugin = machine.serve(&[&file]);
    kubelet.until_healthy(2).await;
    let request = allocation(&[&[machine.uuid(1)]]);
    let mut client = kubelet.plugin().await;
    let answer = client.allocate(request.clone()).await.unwrap().into_inner();
    let given = &answer.container_responses[0];
    assert!(given.cdi_devices.is_empty());
    assert_eq!(given.envs["NVIDIA_VISIBLE_DEVICES"], machine.uuid(1));
    let paths = |given: &[DeviceSpec]| -> Vec<String> {
        given
            .iter()
            .map(|node| node.container_path.clone())
            .collect()
    };
    let nodes = paths(&given.devices);
    assert!(nodes.contains(&"/dev/nvidia1".to_owned()), "{nodes:?}");
    assert!(nodes.contains(&"/dev/nvidiactl".to_owned()), "{nodes:?}");
    assert!(!nodes.contains(&"/dev/nvidia0".to_owned()), "{nodes:?}");
    assert!(given.devices.iter().all(|node| node.permissions == "rw"));
    // Both, for the kubelet's static CPU manager.
    machine.configure("deviceNodes: always");
    let began = Instant::now();
    let given = loop {
        let answer = client.allocate(request.clone()).await.unwrap().into_inner();
        let given = answer.container_responses[0].clone();
        if !given.cdi_devices.is_empty() {
            break given;
        }
        assert!(began.elapsed() < PATIENCE);
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(paths(&given.devices), nodes);
    assert!(!given.envs.contains_key("NVIDIA_VISIBLE_DEVICES"));
    plugin.stop().await;
}
