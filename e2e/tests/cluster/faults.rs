//! Nodes, schedulers and operators fail; what runs goes on.

use std::collections::BTreeSet;

use creo_api::placement::Phase;
use creo_e2e::{installation, samples};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::shared::{Space, alone, eventually};

fn phase(placement: &creo_api::Placement) -> Option<Phase> {
    placement.status.as_ref().and_then(|status| status.phase)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_of_a_node_that_lost_its_power_is_replaced_and_ends_when_the_node_is_back() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;

    hold.cluster.power_cut("gpu-2").expect("the power is cut");
    let placements = eventually(
        "the replica is lost, and another takes its part on the other node",
        async || Ok(space.list_placements().await),
        |placements| {
            let lost = placements
                .iter()
                .filter(|placement| phase(placement) == Some(Phase::Lost))
                .count();
            let ready = placements.iter().filter(|placement| {
                phase(placement) == Some(Phase::Ready) && placement.spec.terms.node == "gpu-1"
            });
            lost == 1 && ready.count() == 2
        },
    )
    .await;
    assert_eq!(placements.len(), 3);
    space.wait_ready("chat").await;
    let pods = space
        .pods()
        .list(&ListParams::default())
        .await
        .expect("pods are listed");
    assert!(
        pods.iter().any(
            |pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("gpu-2")
        ),
        "nothing is deleted because it cannot be seen"
    );

    hold.cluster.power_on("gpu-2").expect("the power is back");
    eventually(
        "two replicas are left",
        async || Ok(space.list_placements().await),
        |placements| {
            placements.len() == 2
                && placements
                    .iter()
                    .all(|placement| phase(placement) == Some(Phase::Ready))
        },
    )
    .await;
    space.wait_ready("chat").await;
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_partition_that_heals_one_replica_is_left() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 1).await;
    space.wait_ready("chat").await;
    let node = space.list_placements().await.remove(0).spec.terms.node;
    let uids = async |space: &Space| -> BTreeSet<String> {
        space
            .pods_of("chat")
            .await
            .iter()
            .filter_map(ResourceExt::uid)
            .collect()
    };
    let before = uids(&space).await;

    hold.cluster.partition(&node).expect("the cable is pulled");
    eventually(
        "the replica is lost",
        async || Ok(space.list_placements().await),
        |placements| {
            placements
                .iter()
                .any(|placement| phase(placement) == Some(Phase::Lost))
        },
    )
    .await;
    hold.cluster.heal(&node).expect("the cable is plugged in");
    eventually(
        "one replica is left and answers",
        async || Ok(space.list_placements().await),
        |placements| placements.len() == 1 && phase(&placements[0]) == Some(Phase::Ready),
    )
    .await;
    let after = uids(&space).await;
    assert!(after.len() == 1, "before {before:?}, after {after:?}");
    space.remove().await;
}

/// A pod of someone else's that keeps the deployment's engines off gpu-1: the
/// placement rules do not know pods' anti-affinity, and the scheduler does.
fn guard(image: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "guard" },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": "gpu-1" },
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{
                "labelSelector": { "matchLabels": { "creo.cloud/deployment": "chat" } },
                "topologyKey": "kubernetes.io/hostname",
            }] } },
            "containers": [{
                "name": "sleep",
                "image": image,
                "imagePullPolicy": "Never",
                "command": ["sleep", "infinity"],
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    }))
    .expect("it is a pod")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_the_scheduler_cannot_bind_is_withdrawn_and_placed_elsewhere() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let nodes: Api<Node> = Api::all(hold.client.clone());
    let image = hold
        .images
        .reference("creo-engine-llama-cpp")
        .expect("the image is built");
    let guard = guard(image);
    eventually(
        "the guard is created",
        async || {
            space
                .pods()
                .create(&kube::api::PostParams::default(), &guard)
                .await
                .map_err(|e| e.to_string())
        },
        |_| true,
    )
    .await;
    eventually(
        "the guard is on its node",
        async || {
            space
                .pods()
                .get("guard")
                .await
                .map_err(|error| error.to_string())
        },
        |pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        },
    )
    .await;
    assert_eq!(
        nodes
            .list(&ListParams::default())
            .await
            .expect("nodes are listed")
            .items
            .len(),
        2
    );

    // Two replicas spread over two nodes, so one of them meets the guard.
    space.deploy("chat", 2).await;
    let deployment = space.wait_ready("chat").await;
    let nodes: BTreeSet<String> = space
        .list_placements()
        .await
        .into_iter()
        .filter(|placement| phase(placement) == Some(Phase::Ready))
        .map(|placement| placement.spec.terms.node)
        .collect();
    assert_eq!(
        nodes,
        BTreeSet::from(["gpu-2".to_owned()]),
        "{:#?}",
        deployment.status
    );
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_operator_takes_over_when_the_leader_is_killed() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 1).await;
    space.wait_ready("chat").await;
    let leases: Api<Lease> = Api::namespaced(hold.client.clone(), installation::NAMESPACE);
    let holder = async || {
        let lease = leases
            .get("creo-operator")
            .await
            .map_err(|error| error.to_string())?;
        Ok(lease
            .spec
            .and_then(|spec| spec.holder_identity)
            .unwrap_or_default())
    };
    let first = eventually("someone leads", holder, |holder| !holder.is_empty()).await;
    let pods: Api<Pod> = Api::namespaced(hold.client.clone(), installation::NAMESPACE);
    let list = pods
        .list(&ListParams::default())
        .await
        .expect("pods are listed");
    let leader = list
        .iter()
        .map(ResourceExt::name_any)
        .find(|name| first.starts_with(name.as_str()));
    let leader = leader.expect("the lease names the leader's pod");
    // No grace: the kubelet kills it, and it cannot give its lease back.
    pods.delete(&leader, &DeleteParams::default().grace_period(0))
        .await
        .expect("the leader is killed");

    eventually("another leads", holder, |holder| {
        !holder.is_empty() && *holder != first
    })
    .await;
    let scale = json!({ "spec": { "replicas": 2 } });
    space
        .deployments()
        .patch("chat", &PatchParams::default(), &Patch::Merge(scale))
        .await
        .expect("it is scaled");
    space
        .wait("chat", "the new leader does its work", |deployment| {
            samples::is_ready(Some(deployment))
                && deployment
                    .status
                    .as_ref()
                    .is_some_and(|status| status.ready_replicas == 2)
        })
        .await;
    space.remove().await;
}
