//! `make demo`: from nothing to an answered request, with a line for each step.

use std::{path::PathBuf, process::Command, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use creo_api::{AgentDeployment, CreoNode, Placement, agent_deployment::conditions};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, LogParams},
    runtime::wait::await_condition,
};

use crate::{
    chat,
    cluster::{Cluster, ClusterSpec, GpuLayout, Gpus, ImageSet, Tuning},
    command,
    error::{Error, Result, last_lines},
    installation, keeper, paths,
    progress::Progress,
    samples,
};

/// How long the sample may take to answer.
const PATIENCE: Duration = Duration::from_mins(3);
const QUESTION: &str = "What runs where?";

/// Runs the demo on the cluster `name`, which is started where it is not
/// running; gives what to show at the end.
///
/// # Errors
///
/// A step fails; the error names the component and its last log lines.
pub async fn run(name: &str, gpus: Gpus, program: PathBuf) -> Result<String> {
    let progress = Progress::stderr();
    let images = ImageSet::build(&progress)?;
    let mut cluster = open_or_start(name, gpus, program, &progress).await?;
    progress.run("import the images into the nodes", || {
        cluster.import_images(&images)
    })?;
    let client = cluster.client().await?;
    let installed = progress.run("install the chart", || {
        installation::install(&cluster, &installation::chart(), &images, &[])
    });
    if let Err(error) = installed {
        return Err(explain(&client, installation::NAMESPACE, error).await);
    }
    progress
        .run_async(
            "wait until the nodes take work",
            wait_nodes(&cluster, &client),
        )
        .await?;
    let sample = samples::dir().join("quickstart.yaml");
    progress.run("apply config/samples/quickstart.yaml", || {
        let mut kubectl = cluster.command("kubectl")?;
        kubectl.arg("apply").arg("-f").arg(&sample);
        command::output(&mut kubectl)
    })?;
    let deployment = progress
        .run_async("wait until the model answers", wait_ready(&client))
        .await;
    let deployment = match deployment {
        Ok(deployment) => deployment,
        Err(error) => return Err(explain(&client, &sample_namespace()?, error).await),
    };
    let answer = progress
        .run_async("send a chat request", ask(&cluster, &client, &deployment))
        .await?;
    summary(&cluster, &client, &deployment, &answer).await
}

async fn open_or_start(
    name: &str,
    gpus: Gpus,
    program: PathBuf,
    progress: &Progress,
) -> Result<Cluster> {
    if keeper::State::alive(&paths::cluster_dir(name)?).is_some() {
        return progress.run("find the running cluster", || Cluster::open(name));
    }
    let spec = ClusterSpec {
        name: name.to_owned(),
        // The machine's own GPUs can be offered by one node only.
        nodes: if gpus == Gpus::Real { 1 } else { 2 },
        gpus_per_node: 2,
        gpu_profile: "rtx-4090".to_owned(),
        gpu_layout: GpuLayout::Flat,
        gpus,
        api_port: 0,
        program,
        detached: true,
        tuning: Tuning::default(),
    };
    Cluster::start(&spec, progress).await
}

fn sample_namespace() -> Result<String> {
    Ok(samples::quickstart()?
        .namespace()
        .unwrap_or_else(|| "default".to_owned()))
}

/// Waits until every node is ready for replicas: each is looked at by a canary first, and the
/// sample is to show how replicas spread.
async fn wait_nodes(cluster: &Cluster, client: &Client) -> Result<()> {
    let nodes: Api<CreoNode> = Api::all(client.clone());
    for node in cluster.nodes() {
        let is_ready = |node: Option<&CreoNode>| {
            node.and_then(|node| node.status.as_ref())
                .is_some_and(|status| {
                    let mut conditions = status.conditions.iter();
                    conditions.any(|one| one.type_ == "Ready" && one.status == "True")
                })
        };
        let waiting = await_condition(nodes.clone(), node.name(), is_ready);
        tokio::time::timeout(PATIENCE, waiting)
            .await
            .map_err(|_| Error::Timeout {
                what: format!("creonode/{} getting ready", node.name()),
                within: PATIENCE,
                last: "it is not".to_owned(),
            })?
            .map_err(|error| Error::malformed("the watch of the node", error))?;
    }
    Ok(())
}

async fn wait_ready(client: &Client) -> Result<AgentDeployment> {
    let sample = samples::quickstart()?;
    let name = sample.name_any();
    let api: Api<AgentDeployment> = Api::namespaced(client.clone(), &sample_namespace()?);
    let waited = tokio::time::timeout(
        PATIENCE,
        await_condition(api.clone(), &name, samples::is_ready),
    )
    .await;
    if let Ok(Ok(Some(deployment))) = waited {
        return Ok(deployment);
    }
    let last = match api.get_status(&name).await {
        Ok(deployment) => shown_conditions(&deployment),
        Err(error) => error.to_string(),
    };
    Err(Error::Timeout {
        what: format!("agentdeployment/{name} getting ready"),
        within: PATIENCE,
        last,
    })
}

/// Asks over the Service, from a node as any client in the cluster would.
async fn ask(
    cluster: &Cluster,
    client: &Client,
    deployment: &AgentDeployment,
) -> Result<chat::Answer> {
    let namespace = deployment.namespace().unwrap_or_default();
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    let service = services
        .get(&deployment.name_any())
        .await
        .map_err(Error::kubernetes("reading the Service"))?;
    let address = samples::service_address(&service)?;
    let node = cluster.nodes().into_iter().next();
    let node = node.ok_or_else(|| Error::malformed("the cluster", "it has no node"))?;
    let connection = cluster
        .dialer(node.name())?
        .dial(address)
        .map_err(|source| Error::Io {
            what: format!("connecting to {address}"),
            source,
        })?;
    let body = chat::request_body(&deployment.spec.model.name, QUESTION, false);
    let answer = chat::send(connection, &address.to_string(), &body).await?;
    if answer.status != 200 {
        return Err(Error::malformed(
            "the engine's answer",
            format!("status {}: {}", answer.status, answer.body),
        ));
    }
    Ok(answer)
}

async fn summary(
    cluster: &Cluster,
    client: &Client,
    deployment: &AgentDeployment,
    answer: &chat::Answer,
) -> Result<String> {
    let namespace = deployment.namespace().unwrap_or_default();
    let name = deployment.name_any();
    let tokens = answer
        .completion_tokens
        .map(|count| format!(", {count} tokens"))
        .unwrap_or_default();
    Ok(format!(
        "\nNodes and their GPUs\n{}\n\nPlacement of {namespace}/{name}\n{}\n{}\n\n\
         {}: {QUESTION:?}\n  {:?}\n  (a tiny model with random weights, so these are random words)\n  \
         answered in {:.1} ms{tokens}\n\n\
         Try next\n  eval \"$({} cluster kubeconfig)\"    # kubectl and helm of this cluster, in this shell\n  \
         kubectl get creo -A                # all that Creo knows\n  \
         kubectl -n {namespace} scale agentdeployment {name} --replicas=4\n\n\
         `make demo-down` removes everything.",
        nodes_table(client).await?,
        placements_table(client, &namespace).await?,
        shown_conditions(deployment),
        deployment.spec.model.name,
        answer.text.trim(),
        answer.total.as_secs_f64() * 1000.0,
        command::shown(&Command::new(&cluster.record().program)),
    ))
}

async fn nodes_table(client: &Client) -> Result<Table> {
    let nodes: Api<CreoNode> = Api::all(client.clone());
    let list = nodes
        .list(&ListParams::default())
        .await
        .map_err(Error::kubernetes("listing the CreoNodes"))?;
    let mut table = table([
        "  NODE", "READY", "FREE", "GPU", "MODEL", "MEMORY", "HEALTHY",
    ]);
    for node in list {
        let status = node.status.clone().unwrap_or_default();
        let ready = status
            .conditions
            .iter()
            .find(|condition| condition.type_ == creo_api::creo_node::conditions::READY)
            .map_or("Unknown", |condition| condition.status.as_str())
            .to_owned();
        let free = status
            .capacity
            .as_ref()
            .map(|capacity| format!("{}/{}", capacity.gpus_free, capacity.gpus))
            .unwrap_or_default();
        for gpu in status.claims.iter().flat_map(|claims| &claims.gpus) {
            table.add_row([
                format!("  {}", node.name_any()),
                ready.clone(),
                free.clone(),
                gpu.index.to_string(),
                gpu.model.clone(),
                format!("{} GiB", gpu.memory_bytes >> 30),
                if gpu.healthy { "yes" } else { "no" }.to_owned(),
            ]);
        }
    }
    Ok(table)
}

async fn placements_table(client: &Client, namespace: &str) -> Result<Table> {
    let placements: Api<Placement> = Api::namespaced(client.clone(), namespace);
    let list = placements
        .list(&ListParams::default())
        .await
        .map_err(Error::kubernetes("listing the Placements"))?;
    let mut table = table([
        "  PLACEMENT",
        "NODE",
        "PHASE",
        "POD",
        "MICRO-CREDITS/GPU-HOUR",
    ]);
    for placement in list {
        let status = placement.status.clone().unwrap_or_default();
        table.add_row([
            format!("  {}", placement.name_any()),
            placement.spec.terms.node.clone(),
            status
                .phase
                .map(|phase| format!("{phase:?}"))
                .unwrap_or_default(),
            status.pod_name.unwrap_or_default(),
            placement.spec.terms.price_micro_per_gpu_hour.to_string(),
        ]);
    }
    Ok(table)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn shown_conditions(deployment: &AgentDeployment) -> String {
    [
        conditions::PLACED,
        conditions::MODEL_READY,
        conditions::PROGRESSING,
        conditions::READY,
    ]
    .into_iter()
    .filter_map(|kind| samples::condition(deployment, kind))
    .map(|condition| {
        format!(
            "  {}={} {}: {}",
            condition.type_, condition.status, condition.reason, condition.message
        )
    })
    .collect::<Vec<_>>()
    .join("\n")
}

/// Adds to an error which pods of a namespace are not ready, and what they
/// wrote last.
async fn explain(client: &Client, namespace: &str, error: Error) -> Error {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut said = error.to_string();
    for pod in pods
        .list(&ListParams::default())
        .await
        .map(|list| list.items)
        .unwrap_or_default()
    {
        let statuses = pod
            .status
            .as_ref()
            .and_then(|status| status.container_statuses.as_ref());
        if statuses.is_some_and(|statuses| statuses.iter().all(|status| status.ready)) {
            continue;
        }
        let name = pod.name_any();
        let parameters = LogParams {
            tail_lines: Some(12),
            ..LogParams::default()
        };
        let log = match pods.logs(&name, &parameters).await {
            Ok(log) => last_lines(&log, 12),
            Err(error) => format!("(no log: {error})"),
        };
        let phase = pod
            .status
            .and_then(|status| status.phase)
            .unwrap_or_default();
        said = format!("{said}\npod {namespace}/{name} ({phase}), last lines:\n{log}");
    }
    Error::malformed("the demo", said)
}
