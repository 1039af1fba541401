//! A cluster in which nothing happens is left alone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use creo_api::{AgentDeployment, CreoNode, Placement};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, ResourceExt as _, api::ListParams};

use crate::shared::{Space, alone, eventually};

const QUIET: Duration = Duration::from_mins(1);

/// Every object that Creo writes, with the version of its last write.
async fn versions(client: &Client) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    collect::<CreoNode>(client, &mut all).await;
    collect::<AgentDeployment>(client, &mut all).await;
    collect::<Placement>(client, &mut all).await;
    collect::<Service>(client, &mut all).await;
    collect::<Pod>(client, &mut all).await;
    all
}

async fn collect<K>(client: &Client, all: &mut BTreeMap<String, String>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + for<'de> serde::Deserialize<'de>,
{
    let api: Api<K> = Api::all(client.clone());
    for object in api
        .list(&ListParams::default())
        .await
        .expect("objects are listed")
    {
        let name = format!(
            "{} {}/{}",
            K::kind(&()),
            object.namespace().unwrap_or_default(),
            object.name_any()
        );
        all.insert(name, object.resource_version().unwrap_or_default());
    }
}

/// The versions once nothing has been written for three seconds: what comes
/// right after Ready, such as a node's free capacity, may still be on its way.
async fn settled(client: &Client) -> BTreeMap<String, String> {
    let last = std::sync::Mutex::new((versions(client).await, Instant::now()));
    eventually(
        "the writes after Ready have come",
        async || {
            let now = versions(client).await;
            let mut last = last.lock().expect("nobody panicked");
            if last.0 != now {
                *last = (now.clone(), Instant::now());
            }
            Ok((now, last.1.elapsed() > Duration::from_secs(3)))
        },
        |(_, quiet)| *quiet,
    )
    .await
    .0
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_in_the_minute_after_everything_is_ready() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;
    let before = settled(&hold.client).await;
    assert!(
        before.keys().any(|name| name.starts_with("Placement")),
        "{before:?}"
    );
    let end = Instant::now() + QUIET;
    while Instant::now() < end {
        assert_eq!(versions(&hold.client).await, before);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    space.remove().await;
}
