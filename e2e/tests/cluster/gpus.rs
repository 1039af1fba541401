//! GPUs of a node under way: one falls ill, one is taken out of service, one is
//! partitioned and one is shared, all beside pods that run on.

use std::collections::BTreeMap;

use creo_api::{
    CreoNode,
    creo_node::{Capacity, Claims, OUT_OF_SERVICE, Severity, conditions},
};
use creo_e2e::{cluster::Cluster, cluster::GpuFault, installation};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::shared::{Space, alone, eventually, take_away};

/// Opens the container's own GPU again and again, and ends when that fails.
const KEEP_OPENING: &str = r#"
import glob, os, time
own = glob.glob("/dev/nvidia[0-9]*")
assert len(own) == 1, own
while True:
    os.close(os.open(own[0], os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    time.sleep(0.2)
"#;

/// A pod that keeps one unit of a resource of a node, and uses it all the time.
async fn hold_one(space: &Space, name: &str, node: &str, resource: &str, image: &str) {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 0,
            "nodeSelector": { "kubernetes.io/hostname": node },
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "holder",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["python3", "-c", KEEP_OPENING],
                "resources": { "limits": { resource: "1" } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    }))
    .expect("it is a pod");
    space
        .pods()
        .create(&PostParams::default(), &pod)
        .await
        .expect("the pod is admitted");
}

/// The pods that run and never had to begin again, with their uids.
async fn untouched(space: &Space) -> BTreeMap<String, String> {
    let pods = space
        .pods()
        .list(&ListParams::default())
        .await
        .expect("pods are listed");
    pods.iter()
        .filter(|pod| {
            let status = pod.status.as_ref();
            let containers = status
                .and_then(|status| status.container_statuses.as_deref())
                .unwrap_or_default();
            let runs = |one: &k8s_openapi::api::core::v1::ContainerStatus| {
                let state = one.state.as_ref();
                one.restart_count == 0 && state.is_some_and(|state| state.running.is_some())
            };
            !containers.is_empty() && containers.iter().all(runs)
        })
        .map(|pod| (pod.name_any(), pod.uid().unwrap_or_default()))
        .collect()
}

async fn wait_untouched(space: &Space, count: usize) -> BTreeMap<String, String> {
    eventually(
        "the pods run",
        async || Ok(untouched(space).await),
        |running| running.len() == count,
    )
    .await
}

/// Waits until the CreoNode fulfils a condition.
async fn wait_offer(
    client: &Client,
    node: &str,
    what: &str,
    condition: impl Fn(&CreoNode) -> bool,
) -> CreoNode {
    let offers: Api<CreoNode> = Api::all(client.clone());
    let offer = eventually(
        what,
        async || {
            let offer = offers.get_opt(node).await;
            offer.map_err(|error| error.to_string())
        },
        |offer| offer.as_ref().is_some_and(&condition),
    )
    .await;
    offer.expect("it is there")
}

fn capacity(offer: &CreoNode) -> Capacity {
    let status = offer.status.clone().unwrap_or_default();
    status.capacity.unwrap_or_default()
}

/// The message of the condition that says whether the GPUs are in order.
fn health(offer: &CreoNode) -> String {
    let conditions = offer.status.iter().flat_map(|status| &status.conditions);
    conditions
        .filter(|one| one.type_ == conditions::HEALTHY)
        .map(|one| one.message.clone())
        .collect()
}

async fn allocatable(client: &Client, node: &str, resource: &str, count: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    eventually(
        &format!("the kubelet counts {count} of {resource}"),
        async || nodes.get(node).await.map_err(|error| error.to_string()),
        |node| {
            let allocatable = node
                .status
                .as_ref()
                .and_then(|status| status.allocatable.as_ref());
            allocatable
                .and_then(|allocatable| allocatable.get(resource))
                .is_some_and(|there| there.0 == count)
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_gpu_that_falls_off_the_bus_takes_no_other_along_and_its_pod_is_left_alone() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let image = hold
        .images
        .reference("creo-engine-llama-cpp")
        .expect("the engine's image is built");
    for number in 0..8 {
        hold_one(
            &space,
            &format!("holder-{number}"),
            "gpu-1",
            "creo.cloud/gpu",
            image,
        )
        .await;
    }
    let before = wait_untouched(&space, 8).await;

    let inject = |gpu, fault: &GpuFault| {
        let injected = hold.cluster.gpu_fault("gpu-1", gpu, fault);
        injected.expect("the fault is injected");
    };
    inject(3, &fallen_off_the_bus(1));
    let ill = wait_offer(&hold.client, "gpu-1", "seven are left", |offer| {
        capacity(offer).gpus == 7 && health(offer).contains("XID 79")
    })
    .await;
    assert!(
        health(&ill).starts_with("7 of 8 GPUs are in order; GPU 3 ")
            && health(&ill).contains("reboot the machine"),
        "it says what to do: {}",
        health(&ill)
    );
    assert_eq!(claims(&ill).gpus[3].findings[0].severity, Severity::Out);
    allocatable(&hold.client, "gpu-1", "creo.cloud/gpu", "7").await;

    // A thousand more of them are the same finding.
    inject(3, &fallen_off_the_bus(1_000));
    inject(5, &"xid 31".parse().expect("it is a program's fault"));
    eventually(
        "the plugin has counted them",
        async || Ok(metrics(&hold.client, "gpu-1").await),
        |metrics| counted(metrics, "79") >= 1_001.0 && counted(metrics, "31") >= 1.0,
    )
    .await;
    let after = wait_offer(&hold.client, "gpu-1", "it is there", |_| true).await;
    assert_eq!(claims(&after), claims(&ill));
    assert_eq!(untouched(&space).await, before);

    inject(3, &GpuFault::Reboot);
    wait_offer(&hold.client, "gpu-1", "all eight are in order", |offer| {
        capacity(offer).gpus == 8
    })
    .await;
    allocatable(&hold.client, "gpu-1", "creo.cloud/gpu", "8").await;
    assert_eq!(untouched(&space).await, before);
    space.remove().await;
}

fn fallen_off_the_bus(times: u64) -> GpuFault {
    GpuFault::Xid {
        code: 79,
        times,
        gpu_instance: None,
        compute_instance: None,
    }
}

fn claims(offer: &CreoNode) -> Claims {
    let status = offer.status.clone().unwrap_or_default();
    status.claims.expect("there are claims")
}

/// How often an XID was counted on the GPU that has it most often.
fn counted(metrics: &str, code: &str) -> f64 {
    metrics
        .lines()
        .filter(|line| line.contains("xid") && line.contains(&format!("\"{code}\"")))
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .fold(0.0, f64::max)
}

/// The metrics of the device plugin on a node.
async fn metrics(client: &Client, node: &str) -> String {
    let pod = crate::callers::plugin_pod(client, node).await;
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}:9400/proxy/metrics",
        installation::NAMESPACE,
        pod.name_any()
    );
    let request = http::Request::get(path)
        .body(Vec::new())
        .expect("it is a request");
    client.request_text(request).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_takes_a_gpu_out_of_service_by_an_annotation_and_puts_it_back() {
    let hold = alone().await;
    let offers: Api<CreoNode> = Api::all(hold.client.clone());
    let annotate = async |value: Value| {
        let change = json!({ "metadata": { "annotations": { OUT_OF_SERVICE: value } } });
        let params = PatchParams::default();
        offers
            .patch("gpu-2", &params, &Patch::Merge(change))
            .await
            .expect("the annotation is written")
    };
    let offer = annotate(Value::Null).await;
    let uuid = offer
        .status
        .and_then(|status| Some(status.claims?.gpus[6].uuid.clone()))
        .expect("the GPU is claimed");
    annotate(json!(format!("{uuid}, 2"))).await;
    let out = wait_offer(&hold.client, "gpu-2", "six are left", |offer| {
        capacity(offer).gpus == 6
    })
    .await;
    assert!(health(&out).contains("OutOfService"), "{}", health(&out));
    allocatable(&hold.client, "gpu-2", "creo.cloud/gpu", "6").await;
    annotate(Value::Null).await;
    wait_offer(&hold.client, "gpu-2", "all eight are back", |offer| {
        capacity(offer).gpus == 8
    })
    .await;
    allocatable(&hold.client, "gpu-2", "creo.cloud/gpu", "8").await;
}

/// Writes the device plugin's configuration, and lets the kubelet of a node look
/// at it now rather than within a minute.
async fn configure(client: &Client, node: &str, config: &Value) {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let text = format!("{config:#}\n");
    let change = json!({ "data": { "config.yaml": text } });
    maps.patch(
        crate::callers::PLUGIN,
        &PatchParams::default(),
        &Patch::Merge(change),
    )
    .await
    .expect("the configuration is written");
    let pods: Api<Pod> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let plugin = crate::callers::plugin_pod(client, node).await;
    let looked = json!({ "metadata": { "annotations": { "test/config": digest(&text) } } });
    pods.patch(
        &plugin.name_any(),
        &PatchParams::default(),
        &Patch::Merge(looked),
    )
    .await
    .expect("the pod is annotated");
}

/// Another value for another text.
fn digest(text: &str) -> String {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish().to_string()
}

async fn plugin_is_there(client: &Client, node: &str) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let on_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    eventually(
        "the device plugin runs on the node",
        async || {
            let pods = pods.list(&on_it).await.map_err(|error| error.to_string())?;
            Ok(crate::shared::names(&pods.items))
        },
        |names| {
            names
                .iter()
                .any(|name| name.starts_with(crate::callers::PLUGIN))
        },
    )
    .await;
}

/// The configuration with which this node offers partitions, and shares its third GPU.
fn shared(node: &str, replicas: u32) -> Value {
    json!({ "nodes": [{ "names": [node], "set": {
        "mig": { "strategy": "mixed" },
        "sharing": { "cards": [{ "index": 2, "replicas": replicas }] },
    } }] })
}

/// Each resource of a node and how many healthy units it has.
fn pools(offer: &CreoNode) -> Vec<(String, i32)> {
    let pools = capacity(offer).pools;
    pools
        .into_iter()
        .map(|pool| (pool.resource, pool.count))
        .collect()
}

fn shown_by_kubectl(cluster: &Cluster, node: &str) -> String {
    let mut kubectl = cluster.command("kubectl").expect("there is kubectl");
    kubectl.args(["get", "creonode", node, "-o", "yaml"]);
    creo_e2e::command::output(&mut kubectl).expect("kubectl shows it")
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_shares_are_given_to_pods_and_a_change_of_the_configuration_ends_none() {
    let mut hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let image = hold
        .images
        .reference("creo-engine-llama-cpp")
        .expect("the engine's image is built");
    let node = hold
        .cluster
        .add_node(3, "a100-80gb")
        .expect("a node is added");
    hold.cluster
        .gpu_fault(
            node.name(),
            0,
            &"mig 1g.10gb,1g.10gb,3g.40gb"
                .parse()
                .expect("it is a layout"),
        )
        .expect("the GPU is partitioned");
    plugin_is_there(&hold.client, node.name()).await;
    configure(&hold.client, node.name(), &shared(node.name(), 4)).await;
    let expected = [
        ("creo.cloud/gpu", 1),
        ("creo.cloud/gpu.shared", 4),
        ("creo.cloud/mig-1g.10gb", 2),
        ("creo.cloud/mig-3g.40gb", 1),
    ]
    .map(|(resource, count)| (resource.to_owned(), count));
    let offer = wait_offer(&hold.client, node.name(), "each is a pool", |offer| {
        pools(offer) == expected
    })
    .await;
    let shown = shown_by_kubectl(&hold.cluster, node.name());
    assert!(
        shown.contains("resource: creo.cloud/mig-3g.40gb"),
        "{shown}"
    );
    let pools_of = capacity(&offer).pools;
    assert!(
        pools_of.iter().all(|pool| pool.memory_bytes > 0),
        "{pools_of:?}"
    );

    for (name, resource) in [
        ("whole", "creo.cloud/gpu"),
        ("share-a", "creo.cloud/gpu.shared"),
        ("share-b", "creo.cloud/gpu.shared"),
        ("small", "creo.cloud/mig-1g.10gb"),
        ("large", "creo.cloud/mig-3g.40gb"),
    ] {
        hold_one(&space, name, node.name(), resource, image).await;
    }
    let before = wait_untouched(&space, 5).await;

    configure(&hold.client, node.name(), &shared(node.name(), 6)).await;
    allocatable(&hold.client, node.name(), "creo.cloud/gpu.shared", "6").await;
    assert_eq!(untouched(&space).await, before);

    space.remove().await;
    configure(&hold.client, "gpu-1", &json!({})).await;
    take_away(&hold.cluster, &hold.client, node.name()).await;
}
