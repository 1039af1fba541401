//! A wish that no node fulfils is refused with the whole reason, and fulfilled
//! as soon as a node can.

use creo_api::agent_deployment::conditions;
use creo_e2e::{cluster::Cluster, samples};
use k8s_openapi::{
    api::core::v1::{Node, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use crate::shared::{Space, alone, eventually, names};

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_too_large_is_refused_with_its_reason_and_placed_when_capacity_appears() {
    let mut hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let mut wish = samples::tiny_chat("large").expect("the sample is good");
    wish.spec.replicas = 1;
    wish.spec.gpu.memory = Some(Quantity("80Gi".to_owned()));
    let created = space.apply_new(&wish).await;
    let reason = "0/2 nodes fit: 2 have 24 GiB of GPU memory, 80 GiB needed";
    space
        .wait("large", "it is refused with its reason", |deployment| {
            samples::condition(deployment, conditions::PLACED)
                .is_some_and(|placed| placed.status == "False" && placed.message == reason)
        })
        .await;
    assert_eq!(space.pods_of("large").await.len(), 0);

    // One that cannot be placed does not block the others.
    space.deploy("small", 1).await;
    space.wait_ready("small").await;

    let node = hold
        .cluster
        .add_node(1, "a100-80gb")
        .expect("a node is added");
    let placed = space.wait_ready("large").await;
    assert_eq!(
        placed.metadata.generation, created.metadata.generation,
        "nobody touched it"
    );
    assert!(
        space
            .list_placements()
            .await
            .iter()
            .any(|placement| placement.spec.terms.node == node.name()),
        "it is on the new node"
    );

    space.remove().await;
    take_away(&hold.cluster, &hold.client, node.name()).await;
}

/// Removes a node with all that the API server knows of it.
async fn take_away(cluster: &Cluster, client: &Client, node: &str) {
    cluster.power_cut(node).expect("the node is switched off");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .delete(node, &DeleteParams::default())
        .await
        .expect("the node is removed");
    let creo_nodes: Api<creo_api::CreoNode> = Api::all(client.clone());
    creo_nodes
        .delete(node, &DeleteParams::default())
        .await
        .expect("the offer is removed");
    // Nobody is left who could say that its pods have ended.
    let pods: Api<Pod> = Api::all(client.clone());
    let on_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let at_once = DeleteParams::default().grace_period(0);
    eventually(
        "its pods are gone",
        async || {
            let left = pods.list(&on_it).await.map_err(|error| error.to_string())?;
            for pod in &left {
                let namespace = pod.namespace().expect("a pod has a namespace");
                let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                // The controller manager may have been faster.
                let _ = api.delete(&pod.name_any(), &at_once).await;
            }
            Ok(names(&left.items))
        },
        Vec::is_empty,
    )
    .await;
    eventually(
        "the offer is gone",
        async || {
            creo_nodes
                .get_opt(node)
                .await
                .map_err(|error| error.to_string())
        },
        Option::is_none,
    )
    .await;
}
