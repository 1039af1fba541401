//! The cluster as plans see it: Creo is installed from its chart, but the
//! operator does not run in the cluster. Plans run it themselves, on the
//! machine and through a fault proxy, from the present sources and with the
//! rights that the chart grants it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use serde_json::json;

use super::plan::Failure;
use crate::cluster::{Cluster, ClusterSpec, GpuFault, GpuLayout, Gpus, ImageSet, Tuning};
use crate::error::{Context as _, Error, Result};
use crate::progress::Progress;
use crate::{installation, paths};

/// The name of the operator's Deployment and ServiceAccount in the chart.
const OPERATOR: &str = "creo-operator";
/// How long the operator's token is good for, in seconds: longer than any run.
const TOKEN_SECONDS: i64 = 48 * 3600;
/// Short, so that a killed operator is followed by the next after seconds.
const LEASE_DURATION: &str = "5s";
/// How long the installed operator may take to end.
const STOP_PATIENCE: Duration = Duration::from_mins(1);
/// GPU nodes, and GPUs of each.
const NODES: u8 = 2;
const GPUS_PER_NODE: u8 = 2;

/// Something that happens to the cluster under the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// A node's kubelet ends and starts again.
    RestartKubelet(String),
    /// The API server is killed and starts again.
    RestartApiServer,
    /// A GPU of a node fails.
    GpuFails(String, usize),
    /// All GPUs of a node are in order again.
    GpusHeal(String),
    /// A node is cut off.
    Partition(String),
    /// A node is reached again.
    Rejoin(String),
}

/// A cluster for plans.
#[derive(Debug)]
pub struct World {
    cluster: Cluster,
    operator_kubeconfig: PathBuf,
    operator_program: PathBuf,
    operator_arguments: Vec<String>,
}

impl World {
    /// Starts a cluster of its own, builds and installs Creo, and takes the
    /// operator out of it. `program` is `creo-e2e` itself.
    ///
    /// # Errors
    /// When a step of that fails.
    pub async fn start(name: &str, program: PathBuf) -> Result<Self> {
        let progress = Progress::stderr();
        let spec = ClusterSpec {
            name: name.to_owned(),
            nodes: NODES,
            gpus_per_node: GPUS_PER_NODE,
            gpu_profile: "rtx-4090".to_owned(),
            gpu_layout: GpuLayout::Flat,
            gpus: Gpus::StandIn,
            api_port: 0,
            program,
            detached: false,
            tuning: Tuning::default(),
        };
        let images = ImageSet::build(&progress)?;
        let mut cluster = Cluster::start(&spec, &progress).await?;
        progress.run("import the images", || cluster.import_images(&images))?;
        progress.run("install Creo", || {
            installation::install(&cluster, &installation::chart(), &images, &[])
        })?;
        Self::over(cluster).await
    }

    /// Ends the cluster and removes every trace of it.
    ///
    /// # Errors
    /// When something of it does not go away.
    pub async fn end(&self) -> Result<()> {
        let name = self.cluster.record().name.clone();
        let ended = tokio::task::spawn_blocking(move || crate::cluster::remove(&name)).await;
        ended.map_err(|error| Error::malformed("the end of the cluster", error))?
    }

    /// Takes over a cluster in which Creo is installed.
    async fn over(cluster: Cluster) -> Result<Self> {
        let client = cluster.client().await?;
        let operator_arguments = stop_operator(&client).await?;
        let operator_kubeconfig = cluster.dir().join("operator.kubeconfig");
        write_operator_kubeconfig(&client, &cluster.kubeconfig(), &operator_kubeconfig).await?;
        Ok(Self {
            cluster,
            operator_kubeconfig,
            operator_program: build_operator()?,
            operator_arguments,
        })
    }

    /// A kubeconfig with every right.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.cluster.kubeconfig()
    }

    /// A kubeconfig with the operator's rights.
    #[must_use]
    pub fn operator_kubeconfig(&self) -> &Path {
        &self.operator_kubeconfig
    }

    /// The command of an operator that reaches the API server by `kubeconfig`.
    /// It dies with the thread that starts it.
    #[must_use]
    pub fn operator_command(&self, kubeconfig: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.operator_program)
            .args(&self.operator_arguments)
            .env("KUBECONFIG", kubeconfig);
        command
    }

    /// The names of the GPU nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<String> {
        self.cluster
            .nodes()
            .iter()
            .map(|node| node.name().to_owned())
            .collect()
    }

    /// How many GPUs each node has.
    #[must_use]
    pub fn gpus_per_node(&self) -> usize {
        self.cluster
            .record()
            .nodes
            .iter()
            .map(|node| usize::from(node.gpus))
            .min()
            .unwrap_or(0)
    }

    /// Heals all that was disturbed.
    ///
    /// # Errors
    /// When it could not be done.
    pub async fn heal(self: &Arc<Self>) -> Result<(), Failure> {
        for node in self.nodes() {
            Arc::clone(self)
                .disturb(Disturbance::Rejoin(node.clone()))
                .await?;
            Arc::clone(self)
                .disturb(Disturbance::GpusHeal(node))
                .await?;
        }
        Ok(())
    }

    /// Lets something happen.
    ///
    /// # Errors
    /// When it could not be done.
    pub async fn disturb(self: Arc<Self>, disturbance: Disturbance) -> Result<(), Failure> {
        let what = format!("{disturbance:?}");
        let done = tokio::task::spawn_blocking(move || self.disturb_now(&disturbance)).await?;
        done.map_err(|error| Failure::from(error).during(what))
    }

    fn disturb_now(&self, disturbance: &Disturbance) -> Result<()> {
        match disturbance {
            Disturbance::RestartKubelet(node) => self.cluster.restart_kubelet(node),
            Disturbance::RestartApiServer => self.cluster.restart_api_server(),
            Disturbance::GpuFails(node, index) => {
                self.cluster.gpu_fault(node, *index, &GpuFault::Lost)
            }
            Disturbance::GpusHeal(node) => (0..self.gpus_per_node())
                .try_for_each(|index| self.cluster.gpu_fault(node, index, &GpuFault::Heal)),
            Disturbance::Partition(node) => self.cluster.partition(node),
            Disturbance::Rejoin(node) => self.cluster.heal(node),
        }
    }
}

/// Scales the installed operator to nothing, and returns its arguments with
/// those replaced that mean something else on the machine.
async fn stop_operator(client: &kube::Client) -> Result<Vec<String>> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let none = Patch::Merge(json!({"spec": {"replicas": 0}}));
    let installed = deployments
        .patch(OPERATOR, &PatchParams::default(), &none)
        .await
        .map_err(Error::kubernetes("stopping the installed operator"))?;
    wait_stopped(&deployments).await?;
    let container = installed
        .spec
        .and_then(|spec| spec.template.spec)
        .and_then(|pod| pod.containers.into_iter().next())
        .ok_or_else(|| Error::malformed(OPERATOR, "the Deployment has no container"))?;
    let engines = paths::checkout().join("config/engines");
    let replaced = [
        ("--engines-dir", engines.display().to_string()),
        ("--metrics-address", "127.0.0.1:0".to_owned()),
        ("--lease-duration", LEASE_DURATION.to_owned()),
        ("--log-format", "text".to_owned()),
    ];
    let is_replaced = |argument: &String| {
        replaced
            .iter()
            .any(|(flag, _)| argument.split('=').next() == Some(*flag))
    };
    let mut arguments = container.args.unwrap_or_default();
    arguments.retain(|argument| !is_replaced(argument));
    arguments.extend(
        replaced
            .iter()
            .map(|(flag, value)| format!("{flag}={value}")),
    );
    Ok(arguments)
}

async fn wait_stopped(deployments: &Api<Deployment>) -> Result<()> {
    let began = Instant::now();
    loop {
        let deployment = deployments
            .get_status(OPERATOR)
            .await
            .map_err(Error::kubernetes(
                "looking whether the operator has stopped",
            ))?;
        let replicas = deployment
            .status
            .and_then(|status| status.replicas)
            .unwrap_or(0);
        if replicas == 0 {
            return Ok(());
        }
        if began.elapsed() > STOP_PATIENCE {
            return Err(Error::Timeout {
                what: "the end of the installed operator".to_owned(),
                within: STOP_PATIENCE,
                last: format!("{replicas} replicas"),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Writes a kubeconfig with the credentials of the operator's ServiceAccount.
async fn write_operator_kubeconfig(client: &kube::Client, admin: &Path, path: &Path) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            expiration_seconds: Some(TOKEN_SECONDS),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let token = accounts
        .create_token_request(OPERATOR, &PostParams::default(), &request)
        .await
        .map_err(Error::kubernetes("asking for the operator's token"))?
        .status
        .and_then(|status| status.token)
        .ok_or_else(|| Error::malformed("the operator's token", "the answer has none"))?;
    let mut kubeconfig = Kubeconfig::read_from(admin)
        .map_err(|error| Error::malformed(admin.display().to_string(), error))?;
    for user in &mut kubeconfig.auth_infos {
        user.auth_info = Some(kube::config::AuthInfo {
            token: Some(token.clone().into()),
            ..kube::config::AuthInfo::default()
        });
    }
    let json = serde_json::to_string_pretty(&kubeconfig)
        .map_err(|error| Error::malformed("the operator's kubeconfig", error))?;
    paths::write_file(path, json)
}

/// Builds the operator of the present sources and returns its program.
fn build_operator() -> Result<PathBuf> {
    let mut build = Command::new("cargo");
    build
        .args([
            "build",
            "--quiet",
            "--locked",
            "--package",
            "creo",
            "--bin",
            "creo",
        ])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(paths::checkout());
    let messages = crate::command::output(&mut build)?;
    let program = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .ok_or_else(|| Error::malformed("cargo build --package creo", "it names no program"))?;
    fs::metadata(&program).doing(|| format!("looking at {}", program.display()))?;
    Ok(program)
}
