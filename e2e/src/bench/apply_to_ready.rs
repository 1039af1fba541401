//! From apply to Ready, against a bare Deployment of the very same pod.

use std::time::{Duration, Instant};

use creo_api::AgentDeployment;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Namespace, core::v1::Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams, PropagationPolicy},
    runtime::wait::{Condition, await_condition},
};
use serde_json::json;

use super::{Row, percentile};
use crate::{
    cluster::Cluster,
    error::{Error, Result},
    progress::Progress,
    samples,
};

const NAMESPACE: &str = "bench";
const PATIENCE: Duration = Duration::from_mins(2);
/// How much longer than a bare Deployment Creo may take.
const GOAL: f64 = 1.3;

/// Measures `pairs` interleaved pairs; gives the rows for median and p90.
pub(super) async fn measure(
    cluster: &Cluster,
    progress: &Progress,
    pairs: u32,
) -> Result<Vec<Row>> {
    let client = cluster.client().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace = parse(
        "the namespace",
        json!({ "metadata": { "name": NAMESPACE } }),
    )?;
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .map_err(Error::kubernetes("making the namespace"))?;
    // The first of each fills caches of the machine, and shows which pod Creo makes.
    let (_, pod) = creo_once(&client).await?;
    let bare = bare_deployment(&pod)?;
    bare_once(&client, &bare).await?;
    let step = progress.step(format!("measure apply to Ready, {pairs} pairs"));
    let (mut creo, mut baseline) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Whoever comes second finds a machine that is still tidying up.
        if pair % 2 == 0 {
            creo.push(creo_once(&client).await?.0);
            baseline.push(bare_once(&client, &bare).await?);
        } else {
            baseline.push(bare_once(&client, &bare).await?);
            creo.push(creo_once(&client).await?.0);
        }
    }
    step.done("");
    let row = |name: &str, share: f64| {
        Row::at_most(
            name,
            "s",
            percentile(&creo, share),
            percentile(&baseline, share),
            GOAL,
        )
    };
    Ok(vec![
        row("apply to Ready, median", 0.5),
        row("apply to Ready, p90", 0.9),
    ])
}

async fn creo_once(client: &Client) -> Result<(f64, Pod)> {
    let api: Api<AgentDeployment> = Api::namespaced(client.clone(), NAMESPACE);
    let mut wish = samples::tiny_chat("bench")?;
    wish.spec.replicas = 1;
    let begun = Instant::now();
    api.create(&PostParams::default(), &wish)
        .await
        .map_err(Error::kubernetes("creating the deployment"))?;
    wait(&api, "bench", samples::is_ready).await?;
    let taken = begun.elapsed().as_secs_f64();
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let mut list = pods
        .list(&ListParams::default())
        .await
        .map_err(Error::kubernetes("listing pods"))?;
    let pod = list
        .items
        .pop()
        .ok_or_else(|| Error::malformed("the bench", "there is no pod"))?;
    remove(client, &api, "bench").await?;
    Ok((taken, pod))
}

async fn bare_once(client: &Client, deployment: &Deployment) -> Result<f64> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let begun = Instant::now();
    api.create(&PostParams::default(), deployment)
        .await
        .map_err(Error::kubernetes("creating the bare Deployment"))?;
    wait(&api, &deployment.name_any(), is_available).await?;
    let taken = begun.elapsed().as_secs_f64();
    remove(client, &api, &deployment.name_any()).await?;
    Ok(taken)
}

/// The same pod under a Deployment: everything but what ties it to a Placement
/// and to one node, and the restart policy, of which Deployments allow only one.
fn bare_deployment(pod: &Pod) -> Result<Deployment> {
    let mut spec = pod.spec.clone().unwrap_or_default();
    spec.node_name = None;
    spec.affinity = None;
    spec.restart_policy = None;
    spec.service_account_name = None;
    spec.service_account = None;
    let spec = serde_json::to_value(spec).map_err(|error| Error::malformed("the pod", error))?;
    let labels = json!({ "app": "bare" });
    parse(
        "the bare Deployment",
        json!({
            "metadata": { "name": "bare" },
            "spec": {
                "replicas": 1,
                "selector": { "matchLabels": labels },
                "template": { "metadata": { "labels": labels }, "spec": spec },
            },
        }),
    )
}

fn is_available(deployment: Option<&Deployment>) -> bool {
    deployment.is_some_and(|deployment| {
        deployment
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0)
            >= 1
    })
}

async fn wait<K>(api: &Api<K>, name: &str, condition: impl Condition<K>) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + for<'de> serde::Deserialize<'de> + Send + 'static,
{
    tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition))
        .await
        .map_err(|_| Error::Timeout {
            what: format!("the change of {name}"),
            within: PATIENCE,
            last: "it did not come".to_owned(),
        })?
        .map(drop)
        .map_err(|error| Error::malformed(format!("the watch of {name}"), error))
}

/// Deletes the object and waits until nothing of it is left, so that the next one of this
/// name finds the machine as this one did.
async fn remove<K>(client: &Client, api: &Api<K>, name: &str) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + for<'de> serde::Deserialize<'de> + Send + 'static,
{
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Foreground),
        ..DeleteParams::default()
    };
    api.delete(name, &params)
        .await
        .map_err(Error::kubernetes(format!("deleting {name}")))?;
    wait(api, name, |object: Option<&K>| object.is_none()).await?;
    wait_for_no_pod(client).await
}

async fn wait_for_no_pod(client: &Client) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let list = pods
            .list(&ListParams::default())
            .await
            .map_err(Error::kubernetes("listing pods"))?;
        if list.items.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: "the end of the pods".to_owned(),
                within: PATIENCE,
                last: format!("{} pods", list.items.len()),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn parse<T: for<'de> serde::Deserialize<'de>>(what: &str, value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| Error::malformed(what, error))
}
