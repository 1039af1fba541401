//! Users' objects and pods live through what is done to the installation.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use creo_api::{AgentDeployment, CreoNode};
use creo_e2e::{
    chat,
    cluster::{Cluster, ImageSet},
    command, installation, samples,
};
use k8s_openapi::{
    api::{
        admissionregistration::v1::ValidatingAdmissionPolicy,
        apps::v1::{DaemonSet, Deployment},
        core::v1::Pod,
        rbac::v1::ClusterRole,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::copy_folder;
use crate::shared::{Space, alone, eventually, impatient, names};

/// How long Creo stays away between uninstalling and installing it: long enough
/// for a node's GPUs to be counted as gone.
const ABSENCE: Duration = Duration::from_secs(10);
/// How often the model is asked meanwhile.
const ASKING: Duration = Duration::from_millis(250);

/// What is the users', each with its uid; pods with their restarts as well.
async fn belongings(space: &Space) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    collect(space.deployments(), &mut all).await;
    collect(space.placements(), &mut all).await;
    collect(space.services(), &mut all).await;
    collect(Api::<CreoNode>::all(space.client.clone()), &mut all).await;
    collect(space.pods(), &mut all).await;
    for pod in space.pods_of("chat").await {
        let restarts: i32 = statuses(&pod).map(|status| status.restart_count).sum();
        let ready = statuses(&pod).all(|status| status.ready);
        all.insert(
            format!("{} runs", pod.name_any()),
            format!("ready {ready}, {restarts} restarts"),
        );
    }
    all
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerStatus> {
    pod.status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten())
}

async fn collect<K>(api: Api<K>, all: &mut BTreeMap<String, String>)
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + for<'de> serde::Deserialize<'de>,
{
    for object in api
        .list(&ListParams::default())
        .await
        .expect("objects are listed")
    {
        all.insert(
            format!("{} {}", K::kind(&()), object.name_any()),
            object.uid().unwrap_or_default(),
        );
    }
}

/// Asks a deployment again and again, as its users do.
struct Asking {
    stop: CancellationToken,
    task: JoinHandle<(u32, Vec<String>)>,
}

impl Asking {
    async fn begin(cluster: &Cluster, space: &Space, name: &str) -> Self {
        let service = space
            .services()
            .get(name)
            .await
            .expect("there is a Service");
        let address = samples::service_address(&service).expect("the Service has an address");
        let dialer = cluster.dialer("gpu-1").expect("the node is on");
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut asked, mut failures) = (0, Vec::new());
            while !stopped.is_cancelled() {
                asked += 1;
                let body = chat::request_body("tiny-chat", "Are you there?", false);
                match dialer.dial(address) {
                    Err(error) => failures.push(format!("request {asked}: {error}")),
                    Ok(connection) => match chat::send(connection, &address.to_string(), &body)
                        .await
                    {
                        Ok(answer) if answer.status == 200 => {}
                        Ok(answer) => failures.push(format!("request {asked}: {}", answer.body)),
                        Err(error) => failures.push(format!("request {asked}: {error}")),
                    },
                }
                tokio::time::sleep(ASKING).await;
            }
            (asked, failures)
        });
        Self { stop, task }
    }

    /// Every request had its answer.
    async fn end(self) {
        self.stop.cancel();
        let (asked, failures) = self.task.await.expect("asking ends in order");
        assert!(
            failures.is_empty(),
            "{} of {asked} failed: {failures:#?}",
            failures.len()
        );
        assert!(asked > 10, "asked {asked} times");
    }
}

/// This chart as it was one version ago: its AgentDeployments had no
/// `spec.suspend`.
fn older_chart() -> TempDir {
    let dir = tempfile::tempdir().expect("there is a folder");
    copy_folder(&installation::chart(), dir.path()).expect("the chart is copied");
    let change = |path: &str, change: &dyn Fn(&mut Value)| {
        let path = dir.path().join(path);
        let text = fs::read_to_string(&path).expect("the file is there");
        let mut value: Value = serde_saphyr::from_str(&text).expect("it is YAML");
        change(&mut value);
        fs::write(&path, serde_saphyr::to_string(&value).expect("it is YAML"))
            .expect("it is written");
    };
    change("Chart.yaml", &|chart| chart["version"] = "0.0.9".into());
    change(
        "files/crds/creo.cloud_agentdeployments.yaml",
        &|definition| {
            let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
            let fields = definition
                .pointer_mut(spec)
                .and_then(Value::as_object_mut)
                .expect("there are fields");
            fields.remove("suspend").expect("there is spec.suspend");
        },
    );
    dir
}

/// What the API server, asked to be strict, says of a deployment with `spec.suspend`.
async fn try_to_suspend(space: &Space) -> Result<AgentDeployment, String> {
    let dry_run = PatchParams {
        dry_run: true,
        ..PatchParams::default()
    }
    .validation_strict();
    let change = json!({ "spec": { "suspend": true } });
    space
        .deployments()
        .patch("chat", &dry_run, &Patch::Merge(change))
        .await
        .map_err(|error| error.to_string())
}

async fn versions(client: &Client) -> Vec<Option<String>> {
    let labelled = ListParams::default().labels("app.kubernetes.io/part-of=creo");
    let api =
        |client: &Client| Api::<Deployment>::namespaced(client.clone(), installation::NAMESPACE);
    let operators = api(client).list(&labelled).await.expect("they are listed");
    let plugins = Api::<DaemonSet>::namespaced(client.clone(), installation::NAMESPACE);
    let plugins = plugins.list(&labelled).await.expect("they are listed");
    let label = |labels: &BTreeMap<String, String>| labels.get("helm.sh/chart").cloned();
    operators
        .iter()
        .map(|o| label(o.labels()))
        .chain(plugins.iter().map(|o| label(o.labels())))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_from_a_chart_with_an_older_definition_adds_the_field_under_running_pods() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    let older = older_chart();
    installation::install(&hold.cluster, older.path(), hold.images, &impatient())
        .expect("the older chart is installed");
    assert_eq!(
        versions(&hold.client).await,
        vec![Some("creo-0.0.9".to_owned()); 2]
    );
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;
    eventually(
        "the older definition has no spec.suspend",
        async || Ok(try_to_suspend(&space).await.err()),
        |refusal| {
            refusal
                .as_ref()
                .is_some_and(|text| text.contains(r#"unknown field "spec.suspend""#))
        },
    )
    .await;
    let before = belongings(&space).await;
    let asking = Asking::begin(&hold.cluster, &space, "chat").await;

    installation::install(
        &hold.cluster,
        &installation::chart(),
        hold.images,
        &impatient(),
    )
    .expect("it is upgraded");

    assert_ne!(
        versions(&hold.client).await[0],
        Some("creo-0.0.9".to_owned())
    );
    eventually(
        "the field is there",
        async || try_to_suspend(&space).await,
        |deployment| deployment.spec.suspend,
    )
    .await;
    space.wait_ready("chat").await;
    asking.end().await;
    assert_eq!(belongings(&space).await, before);

    // The field is more than let in: it does what it is for.
    let change = Patch::Merge(json!({ "spec": { "suspend": true } }));
    space
        .deployments()
        .patch("chat", &PatchParams::default(), &change)
        .await
        .expect("it is taken");
    eventually(
        "no pod is left",
        async || Ok(names(&space.pods_of("chat").await)),
        Vec::is_empty,
    )
    .await;
    space.remove().await;
}

/// What of Creo's own is there, besides what users have made.
async fn installed(client: &Client) -> Result<Vec<String>, String> {
    let labelled = ListParams::default().labels("app.kubernetes.io/part-of=creo");
    let failed = |error: kube::Error| error.to_string();
    let pods: Api<Pod> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let mut found = names(
        &pods
            .list(&ListParams::default())
            .await
            .map_err(failed)?
            .items,
    );
    let roles: Api<ClusterRole> = Api::all(client.clone());
    found.extend(names(&roles.list(&labelled).await.map_err(failed)?.items));
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(client.clone());
    found.extend(names(
        &policies.list(&labelled).await.map_err(failed)?.items,
    ));
    Ok(found)
}

fn install_as(
    cluster: &Cluster,
    images: &ImageSet,
    release: &str,
    chart: &Path,
    options: &[&str],
) -> Result<String, String> {
    let mut helm = cluster.command("helm").expect("there is helm");
    helm.args(["install", release])
        .arg(chart)
        .args(["--namespace", installation::NAMESPACE])
        .args(options);
    for value in installation::local_values(images) {
        helm.args(["--set", &value]);
    }
    command::output(&mut helm).map_err(|error| error.to_string())
}

async fn assert_definitions_stay(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in [
        "agentdeployments.creo.cloud",
        "creonodes.creo.cloud",
        "placements.creo.cloud",
    ] {
        definitions.get(name).await.expect("the definition stays");
    }
}

/// What is kept belongs to the release that made it, and Helm says so to another.
fn assert_others_must_ask(cluster: &Cluster, images: &ImageSet) {
    let chart = installation::chart();
    let refusal = install_as(cluster, images, "other", &chart, &["--dry-run=server"])
        .expect_err("the definitions are another release's");
    assert!(refusal.contains("invalid ownership metadata"), "{refusal}");
    let take = ["--dry-run=server", "--take-ownership"];
    install_as(cluster, images, "other", &chart, &take).expect("unless it is told to take them");
}

#[tokio::test(flavor = "multi_thread")]
async fn uninstalling_leaves_what_is_the_users_and_installing_again_takes_it_up() {
    let hold = alone().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 2).await;
    space.wait_ready("chat").await;
    let before = belongings(&space).await;
    let count = |kind| before.keys().filter(|name| name.starts_with(kind)).count();
    assert_eq!(
        (count("CreoNode"), count("Placement")),
        (2, 2),
        "{before:?}"
    );
    let asking = Asking::begin(&hold.cluster, &space, "chat").await;

    installation::uninstall(&hold.cluster).expect("it is uninstalled");
    eventually(
        "Creo itself is gone",
        async || installed(&hold.client).await,
        Vec::is_empty,
    )
    .await;
    tokio::time::sleep(ABSENCE).await;
    assert_definitions_stay(&hold.client).await;
    assert_eq!(
        belongings(&space).await,
        before,
        "everything goes on without Creo"
    );

    assert_others_must_ask(&hold.cluster, hold.images);

    installation::install(
        &hold.cluster,
        &installation::chart(),
        hold.images,
        &impatient(),
    )
    .expect("it is installed again");
    // One replica more is what shows that somebody is at work again.
    let scale = Patch::Merge(json!({ "spec": { "replicas": 3 } }));
    space
        .deployments()
        .patch("chat", &PatchParams::default(), &scale)
        .await
        .expect("it is scaled");
    space
        .wait("chat", "the third replica answers", |deployment| {
            samples::is_ready(Some(deployment))
                && deployment
                    .status
                    .as_ref()
                    .is_some_and(|status| status.ready_replicas == 3)
        })
        .await;
    asking.end().await;
    let after = belongings(&space).await;
    let kept: BTreeMap<_, _> = after
        .into_iter()
        .filter(|(name, _)| before.contains_key(name))
        .collect();
    assert_eq!(kept, before);
    space.remove().await;
}
