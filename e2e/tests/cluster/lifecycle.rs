//! A deployment is changed, scaled, suspended and deleted; children follow.

use creo_e2e::samples;
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::shared::{Space, beside_others, eventually, names};

async fn patch(space: &Space, name: &str, change: serde_json::Value) {
    space
        .deployments()
        .patch(name, &PatchParams::default(), &Patch::Merge(change))
        .await
        .expect("the change is admitted");
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_adds_and_removes_replicas_and_leaves_the_others_alone() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 1).await;
    space.wait_ready("chat").await;
    let first = space.pods_of("chat").await.remove(0);

    let scale = json!({ "spec": { "replicas": 3 } });
    space
        .deployments()
        .patch_scale("chat", &PatchParams::default(), &Patch::Merge(scale))
        .await
        .expect("the scale subresource takes it");
    space
        .wait("chat", "three replicas answer", |deployment| {
            deployment
                .status
                .as_ref()
                .is_some_and(|status| status.ready_replicas == 3)
                && samples::is_ready(Some(deployment))
        })
        .await;
    let uids: Vec<_> = space
        .pods_of("chat")
        .await
        .iter()
        .map(|pod| pod.metadata.uid.clone())
        .collect();
    assert_eq!(uids.len(), 3);
    assert!(uids.contains(&first.metadata.uid), "the first pod goes on");

    patch(&space, "chat", json!({ "spec": { "replicas": 1 } })).await;
    eventually(
        "one pod is left",
        async || {
            Ok(names(
                &space
                    .pods()
                    .list(&ListParams::default())
                    .await
                    .map_err(|e| e.to_string())?
                    .items,
            ))
        },
        |pods| pods.len() == 1,
    )
    .await;
    assert_eq!(
        space
            .wait_ready("chat")
            .await
            .status
            .map(|status| status.ready_replicas),
        Some(1)
    );
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_rolls_through_the_replicas_one_at_a_time() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;
    let before: Vec<_> = space
        .pods_of("chat")
        .await
        .iter()
        .map(|pod| pod.metadata.uid.clone())
        .collect();
    let placements_before = names(&space.list_placements().await);

    patch(
        &space,
        "chat",
        json!({ "spec": { "engine": { "env": [{ "name": "GREETING", "value": "hello" }] } } }),
    )
    .await;
    let fewest = eventually(
        "every replica has the change",
        async || Ok(space.pods_of("chat").await),
        |pods| {
            let answering = pods.iter().filter(|pod| is_ready(pod)).count();
            assert!(answering >= 1, "one replica answers at any time");
            pods.len() == 2
                && answering == 2
                && pods
                    .iter()
                    .all(|pod| !before.contains(&pod.metadata.uid) && has_greeting(pod))
        },
    )
    .await;
    assert_eq!(fewest.len(), 2);
    space.wait_ready("chat").await;
    assert_eq!(
        names(&space.list_placements().await),
        placements_before,
        "the agreements stay"
    );
    space.remove().await;
}

fn is_ready(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_greeting(pod: &k8s_openapi::api::core::v1::Pod) -> bool {
    pod.spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.env.iter().flatten())
        .any(|variable| variable.name == "GREETING" && variable.value.as_deref() == Some("hello"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_deployment_frees_its_gpus_and_comes_back() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 1).await;
    space.wait_ready("chat").await;
    patch(&space, "chat", json!({ "spec": { "suspend": true } })).await;
    eventually(
        "no pod is left",
        async || {
            Ok(names(
                &space
                    .pods()
                    .list(&ListParams::default())
                    .await
                    .map_err(|e| e.to_string())?
                    .items,
            ))
        },
        Vec::is_empty,
    )
    .await;
    patch(&space, "chat", json!({ "spec": { "suspend": false } })).await;
    space
        .wait("chat", "it is ready again", |deployment| {
            samples::is_ready(Some(deployment))
                && deployment
                    .status
                    .as_ref()
                    .is_some_and(|status| status.ready_replicas == 1)
        })
        .await;
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_a_deleted_deployment() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;
    assert_eq!(space.list_placements().await.len(), 2);

    space
        .deployments()
        .delete("chat", &DeleteParams::default())
        .await
        .expect("it is deleted");
    let slices: Api<k8s_openapi::api::discovery::v1::EndpointSlice> =
        Api::namespaced(hold.client.clone(), &space.name);
    eventually(
        "nothing is left",
        async || {
            let all = ListParams::default();
            let failed = |error: kube::Error| error.to_string();
            let mut left = names(&space.deployments().list(&all).await.map_err(failed)?.items);
            left.extend(names(
                &space.placements().list(&all).await.map_err(failed)?.items,
            ));
            left.extend(names(&space.pods().list(&all).await.map_err(failed)?.items));
            left.extend(names(
                &space.services().list(&all).await.map_err(failed)?.items,
            ));
            left.extend(names(&slices.list(&all).await.map_err(failed)?.items));
            Ok(left)
        },
        Vec::is_empty,
    )
    .await;
    space.remove().await;
}
