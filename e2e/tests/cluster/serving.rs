//! A deployment is placed, started and answers.

use std::collections::BTreeSet;

use creo_e2e::{chat, cluster::Cluster, samples};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, api::ListParams};

use crate::shared::{Space, beside_others, eventually};

async fn ask(cluster: &Cluster, service: &Service, stream: bool) -> chat::Answer {
    let address = samples::service_address(service).expect("the Service has an address");
    let connection = cluster
        .dialer("gpu-1")
        .expect("the node is on")
        .dial(address)
        .expect("the Service takes connections");
    let body = chat::request_body("tiny-chat", "What runs where?", stream);
    chat::send(connection, &address.to_string(), &body)
        .await
        .expect("there is an answer")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_spread_over_the_nodes_and_answer_over_their_service_streaming_too() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    let deployment = space.wait_ready("chat").await;

    let placements = space.list_placements().await;
    let nodes: BTreeSet<&str> = placements
        .iter()
        .map(|placement| placement.spec.terms.node.as_str())
        .collect();
    assert_eq!(nodes, BTreeSet::from(["gpu-1", "gpu-2"]));
    let endpoint = deployment
        .status
        .as_ref()
        .and_then(|status| status.endpoint.clone());
    assert_eq!(
        endpoint,
        Some(format!("http://chat.{}.svc:8000/v1", space.name))
    );

    let slices: Api<EndpointSlice> = Api::namespaced(hold.client.clone(), &space.name);
    eventually(
        "both replicas are behind the Service",
        async || {
            slices
                .list(&ListParams::default())
                .await
                .map_err(|error| error.to_string())
        },
        |list| {
            let ready = list
                .items
                .iter()
                .flat_map(|slice| slice.endpoints.iter().flatten())
                .filter(|endpoint| {
                    endpoint
                        .conditions
                        .as_ref()
                        .and_then(|conditions| conditions.ready)
                        == Some(true)
                });
            ready.count() == 2
        },
    )
    .await;
    let service = space
        .services()
        .get("chat")
        .await
        .expect("there is a Service");
    let whole = ask(&hold.cluster, &service, false).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert!(!whole.text.is_empty(), "{}", whole.body);
    assert_eq!(whole.events, 0);
    let streamed = ask(&hold.cluster, &service, true).await;
    assert_eq!(streamed.status, 200, "{}", streamed.body);
    assert!(streamed.events > 2, "{}", streamed.body);
    assert_eq!(
        streamed.text, whole.text,
        "the same seed gives the same words"
    );
    assert_eq!(streamed.completion_tokens, whole.completion_tokens);
    assert!(whole.completion_tokens.is_some_and(|tokens| tokens > 0));
    space.remove().await;
}
