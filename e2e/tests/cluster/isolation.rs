//! A node whose container runtime hands out GPUs unasked is found, and nothing
//! is placed on it until the runtime is put right.

use creo_api::{CreoNode, agent_deployment, creo_node::conditions};
use creo_e2e::{cluster::DefaultRuntime, progress::Progress, samples};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Client,
    api::{ListParams, LogParams, PostParams},
};
use serde_json::json;

use crate::shared::{Space, alone, eventually, take_away};

/// The device nodes of GPUs that a pod has which asks for none, but for all of
/// them by NVIDIA's variable.
async fn gpus_unasked(space: &Space, node: &str, image: &str) -> Vec<String> {
    let name = format!("unasked-on-{node}");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": { "kubernetes.io/hostname": node },
            "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "unasked",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["python3", "-c", "
import glob, os
for path in sorted(glob.glob('/dev/nvidia[0-9]*')):
    os.close(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
    print(path)
"],
                "env": [{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }],
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
    let pods = space.pods();
    eventually(
        "the pod has ended",
        async || pods.get(&name).await.map_err(|error| error.to_string()),
        |pod| {
            let status = pod.status.as_ref();
            status.and_then(|status| status.phase.as_deref()) == Some("Succeeded")
        },
    )
    .await;
    let log = pods
        .logs(&name, &LogParams::default())
        .await
        .expect("there is a log");
    log.lines().map(str::to_owned).collect()
}

fn condition(creo_node: Option<&CreoNode>, r#type: &str) -> Option<Condition> {
    let conditions = &creo_node?.status.as_ref()?.conditions;
    conditions.iter().find(|one| one.type_ == r#type).cloned()
}

/// Waits until a condition of a CreoNode has this reason.
async fn wait(client: &Client, node: &str, r#type: &str, reason: &str) -> Condition {
    let offers: Api<CreoNode> = Api::all(client.clone());
    let offer = eventually(
        &format!("{type} of {node} says {reason}"),
        async || {
            let offer = offers.get_opt(node).await;
            offer.map_err(|error| error.to_string())
        },
        |offer| condition(offer.as_ref(), r#type).is_some_and(|one| one.reason == reason),
    )
    .await;
    condition(offer.as_ref(), r#type).expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_exposes_all_gpus_is_found_and_shut_out_until_it_is_put_right() {
    let mut hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let image = hold
        .images
        .reference("creo-engine-llama-cpp")
        .expect("the engine's image is built");
    let nvidia = DefaultRuntime::nvidia(&Progress::stderr()).expect("NVIDIA's runtime is built");
    let node = hold
        .cluster
        .add_node_running(2, "l40s", nvidia)
        .expect("a node is added");
    let wait = async |r#type, reason| wait(&hold.client, node.name(), r#type, reason).await;

    let isolated = wait(conditions::ISOLATED, "RuntimeExposesAllGpus").await;
    assert_eq!(isolated.status, "False");
    for part in [
        "/dev/nvidia0 (opens)",
        "/dev/nvidia1 (opens)",
        "runc the default runtime",
    ] {
        assert!(isolated.message.contains(part), "{}", isolated.message);
    }
    wait(conditions::READY, "RuntimeExposesAllGpus").await;

    // The hole is there, and it is the runtime's: with runc the same pod has no GPU.
    let unasked = gpus_unasked(&space, node.name(), image).await;
    assert_eq!(unasked, ["/dev/nvidia0", "/dev/nvidia1"]);
    assert_eq!(
        gpus_unasked(&space, "gpu-1", image).await,
        Vec::<String>::new()
    );

    refuse_to_place_on(&space, node.name()).await;

    hold.cluster
        .set_default_runtime(node.name(), &DefaultRuntime::Runc)
        .expect("the runtime is put right");
    let healed = wait(conditions::ISOLATED, "NoneReached").await;
    assert_eq!(healed.status, "True");
    space.wait_ready("there").await;
    assert_eq!(canaries(&hold.client).await, Vec::<String>::new());

    space.remove().await;
    take_away(&hold.cluster, &hold.client, node.name()).await;
}

/// A deployment `there`, for this node alone, is not placed because of what its runtime does.
async fn refuse_to_place_on(space: &Space, node: &str) {
    let mut wish = samples::tiny_chat("there").expect("the sample is good");
    wish.spec.replicas = 1;
    wish.spec.placement.nodes = vec![node.to_owned()];
    space.apply_new(&wish).await;
    space
        .wait("there", "it is refused with the reason", |deployment| {
            samples::condition(deployment, agent_deployment::conditions::PLACED).is_some_and(
                |placed| {
                    placed
                        .message
                        .contains("1 lets containers use GPUs that they did not ask for")
                },
            )
        })
        .await;
    assert!(space.list_placements().await.is_empty());
}

/// The canaries that are left, once those that have answered are gone.
async fn canaries(client: &Client) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), creo_e2e::installation::NAMESPACE);
    let ours = ListParams::default().labels("app.kubernetes.io/name=creo-canary");
    eventually(
        "the canaries are gone",
        async || {
            let pods = pods.list(&ours).await.map_err(|error| error.to_string())?;
            Ok(crate::shared::names(&pods.items))
        },
        Vec::is_empty,
    )
    .await
}
