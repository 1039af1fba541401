//! A wish that no node fulfils is refused with the whole reason, and fulfilled
//! as soon as a node can.

use creo_api::agent_deployment::conditions;
use creo_e2e::samples;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::shared::{Space, alone, take_away};

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
