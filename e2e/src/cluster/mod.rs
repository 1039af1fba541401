//! A local cluster: start it, find it again, look at it, end it.

mod audit;
mod control_plane;
mod faults;
mod gpus;
mod images;
mod network;
mod node;
mod runtime;
mod spec;

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::Node as KubernetesNode, apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, Config, ResourceExt, api::ListParams, config::Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use audit::{AuditAnswer, AuditEvent, AuditObject, AuditUser};
pub use gpus::DRIVER_ROOT;
pub use images::{Image, ImageSet};
pub use node::Node;
pub use nvidia_ml::state::{
    FAULTS as GPU_FAULTS, Fault as GpuFault, Layout as GpuLayout, State as GpuState,
};
pub use runtime::DefaultRuntime;
pub use spec::{
    ClusterRecord, ClusterSpec, Gpus, MAX_GPUS_PER_NODE, MAX_NODES, NodeRecord, Tuning,
};

use crate::{
    certificates::Authority,
    cgroups::Hierarchies,
    components::{self, Programs},
    error::{Context as _, Error, Result},
    keeper, kubeconfig, paths, preflight,
    progress::Progress,
    relay::Dialer,
    supervisor::{Control, ProcessState, StartRequest},
};

const RECORD_FILE: &str = "cluster.json";
const KUBECONFIG_FILE: &str = "kubeconfig";
/// How long the API server and the nodes may take. Seconds on an idle machine;
/// several clusters may start at once on two cores.
const START_PATIENCE: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(50);

/// A running local cluster.
///
/// A cluster that was started without `detached` ends with the process that
/// started it.
#[derive(Debug)]
pub struct Cluster {
    record: ClusterRecord,
    dir: PathBuf,
    programs: Programs,
    keeper: Option<Child>,
}

impl Cluster {
    /// Starts a cluster and waits until its nodes are ready.
    ///
    /// # Errors
    ///
    /// The machine cannot run it, its name is taken, or a component does not
    /// get ready; then nothing of it is left.
    pub async fn start(spec: &ClusterSpec, progress: &Progress) -> Result<Self> {
        let hierarchies = preflight::check(spec.nodes)?;
        let dir = paths::cluster_dir(&spec.name)?;
        check_spec(spec)?;
        sweep()?;
        if keeper::State::alive(&dir).is_some() {
            return Err(Error::Usage(format!(
                "the cluster {0} is running; end it with `creo-e2e cluster down --name {0}`, or take another name",
                spec.name
            )));
        }
        let programs = components::ensure(&components::CLUSTER, progress)?;
        let record = ClusterRecord {
            name: spec.name.clone(),
            nodes: (1..=spec.nodes)
                .map(|index| node_record(spec, index))
                .collect(),
            gpus: spec.gpus,
            program: spec.program.clone(),
            tuning: spec.tuning.clone(),
            pause: progress.run("build the pause image", ImageSet::build_pause)?,
            images: Vec::new(),
        };
        let mut cluster = Self {
            record,
            dir,
            programs,
            keeper: None,
        };
        let started = cluster.bring_up(spec, &hierarchies, progress).await;
        if let Err(error) = started {
            // The logs go with the folder; the error carries their ends.
            let _ = cluster.end();
            return Err(error);
        }
        Ok(cluster)
    }

    /// Finds a running cluster by its name.
    ///
    /// # Errors
    ///
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let dir = paths::cluster_dir(name)?;
        if keeper::State::alive(&dir).is_none() {
            return Err(Error::Usage(format!(
                "there is no cluster {name}; `creo-e2e cluster up --name {name}` starts one"
            )));
        }
        let path = dir.join(RECORD_FILE);
        let text = fs::read(&path).doing(|| format!("reading {}", path.display()))?;
        let record = serde_json::from_slice(&text)
            .map_err(|error| Error::malformed(path.display().to_string(), error))?;
        let programs = components::ensure(&components::CLUSTER, &Progress::stderr())?;
        Ok(Self {
            record,
            dir,
            programs,
            keeper: None,
        })
    }

    /// What it is.
    #[must_use]
    pub fn record(&self) -> &ClusterRecord {
        &self.record
    }

    /// Its folder on the machine.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The programs that it runs, `kubectl` and `helm` among them.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The kubeconfig file for the machine, of a user who may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join(KUBECONFIG_FILE)
    }

    /// The supervisor of the control plane's namespaces.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(self.dir.join(keeper::CONTROL_SOCKET))
    }

    /// Its nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.record
            .nodes
            .iter()
            .map(|record| Node::new(&self.dir, record.clone()))
            .collect()
    }

    /// One of its nodes.
    ///
    /// # Errors
    ///
    /// It has none of that name; the error lists those that it has.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()
            .into_iter()
            .find(|node| node.name() == name)
            .ok_or_else(|| {
                let names: Vec<&str> = self
                    .record
                    .nodes
                    .iter()
                    .map(|node| node.name.as_str())
                    .collect();
                Error::Usage(format!(
                    "there is no node {name}; there are {}",
                    names.join(", ")
                ))
            })
    }

    /// A client for its API server, with every right.
    ///
    /// # Errors
    ///
    /// The kubeconfig file cannot be used.
    pub async fn client(&self) -> Result<Client> {
        client_from(&self.kubeconfig()).await
    }

    /// Dials from a node, where the addresses of pods and Services lead on.
    ///
    /// # Errors
    ///
    /// The node is off.
    pub fn dialer(&self, node: &str) -> Result<Dialer> {
        Dialer::enter(self.node(node)?.control().pid()?)
    }

    /// Imports images into every node that is on, and into those that are
    /// started from now on: a pod whose image is missing waits long for its
    /// next try.
    ///
    /// # Errors
    ///
    /// A node does not take one.
    pub fn import_images(&mut self, set: &ImageSet) -> Result<()> {
        self.record.images.clone_from(&set.images);
        self.write_record()?;
        let nodes: Vec<Node> = self
            .nodes()
            .into_iter()
            .filter(|node| node.control().is_alive())
            .collect();
        thread::scope(|scope| {
            let imports: Vec<_> = nodes
                .iter()
                .map(|node| scope.spawn(|| images::import(node, &set.images, &self.programs)))
                .collect();
            imports.into_iter().try_for_each(|import| {
                import
                    .join()
                    .map_err(|_| Error::Supervisor("an import ended by a panic".to_owned()))?
            })
        })
    }

    /// What Creo's processes have asked of the API server since a moment; what
    /// others asked is not logged.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn requests_since(&self, moment: &MicroTime) -> Result<Vec<AuditEvent>> {
        audit::read(&self.dir, moment)
    }

    /// A program of the cluster's own, such as `kubectl`, with its kubeconfig.
    ///
    /// # Errors
    ///
    /// No component has the program.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(self.programs.path(program)?);
        command.env("KUBECONFIG", self.kubeconfig());
        Ok(command)
    }

    /// Every component: where it runs, its name and how it is.
    ///
    /// # Errors
    ///
    /// The control plane is gone.
    pub fn components(&self) -> Result<Vec<(String, String, ProcessState)>> {
        let mut all = Vec::new();
        for (name, state) in self.control().status()? {
            if !name.starts_with(node::PROCESS_PREFIX) {
                all.push(("control-plane".to_owned(), name, state));
            }
        }
        for node in self.nodes() {
            for (name, state) in node.control().status().unwrap_or_default() {
                all.push((node.name().to_owned(), name, state));
            }
        }
        Ok(all)
    }

    /// Ends the cluster and removes all that it made.
    ///
    /// # Errors
    ///
    /// Something of it does not go away.
    pub fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(mut keeper) = self.keeper.take() {
            // A pipe that ends is the sign to end, and the keeper then is a
            // child to be collected.
            drop(keeper.stdin.take());
            keeper
                .wait()
                .doing(|| "waiting for the keeper".to_owned())?;
        }
        remove(&self.record.name)
    }

    async fn bring_up(
        &mut self,
        spec: &ClusterSpec,
        hierarchies: &Hierarchies,
        progress: &Progress,
    ) -> Result<()> {
        let step = progress.step(format!(
            "start Kubernetes {}",
            components::KUBERNETES_VERSION
        ));
        for folder in ["logs", "nodes", "pki"] {
            paths::make_dir(&self.dir.join(folder))?;
        }
        self.write_record()?;
        let cgroup = cgroup(&self.record.name);
        hierarchies.create(&cgroup)?;
        let authority = Authority::create(&self.dir.join("pki"))?;
        let admin = control_plane::configure(&self.dir, &self.record.name, &authority)?;
        let (keeper, state) = keeper::spawn_keeper(
            &spec.program,
            &self.dir,
            &cgroup,
            network::api_server(),
            spec.api_port,
            spec.detached,
        )?;
        self.keeper = (!spec.detached).then_some(keeper);
        let server = format!("https://127.0.0.1:{}", state.api_port);
        let text = kubeconfig::text(
            &self.record.name,
            &server,
            authority.certificate_pem(),
            &admin,
        );
        paths::write_file(&self.kubeconfig(), text)?;

        let control = self.control();
        control.script(&network::control_plane_script())?;
        for component in control_plane::FIRST {
            control.start(self.control_plane_request(component)?)?;
        }
        for node in self.nodes() {
            self.start_node(&node)?;
        }
        self.wait_api().await?;
        for component in control_plane::SECOND {
            control.start(self.control_plane_request(component)?)?;
        }
        step.done(&format!("API server at {server}"));
        let step = progress.step(format!("wait for {} nodes", self.record.nodes.len()));
        let names: Vec<String> = self
            .record
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .collect();
        self.wait_nodes_ready(&names).await?;
        step.done("");
        Ok(())
    }

    fn control_plane_request(&self, component: &str) -> Result<StartRequest> {
        control_plane::request(component, &self.dir, &self.programs, &self.record.tuning)
    }

    fn write_record(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.record)
            .map_err(|error| Error::malformed(RECORD_FILE, error))?;
        paths::write_file(&self.dir.join(RECORD_FILE), text)
    }

    /// Starts a node that is off; also one that never was on.
    pub(crate) fn start_node(&self, node: &Node) -> Result<()> {
        let cgroup = cgroup(&self.record.name);
        Hierarchies::find()?.create(&cgroup.join(node.name()))?;
        let authority = Authority::open(&self.dir.join("pki"))?;
        node.configure(
            &self.record.name,
            &authority,
            &cgroup,
            &self.record.pause.imported,
            &self.dir,
        )?;
        if !gpus::state_file(node.dir()).exists() {
            gpus::install(&self.dir, node.dir(), node.record(), self.record.gpus)?;
        }
        let control = self.control();
        node.namespaces(&control, &self.record.program)?;
        node.control()
            .script(&node.mounts_script(self.record.gpus))?;
        self.plug_in(node)?;
        let start = |component| {
            node.control()
                .start(node.request(component, &self.programs)?)
        };
        start(node::RUNTIME)?;
        // It waits for containerd, and a kubelet without a runtime ends at once.
        images::import(
            node,
            std::slice::from_ref(&self.record.pause),
            &self.programs,
        )?;
        images::import(node, &self.record.images, &self.programs)?;
        node::AGENTS.into_iter().try_for_each(start)
    }

    /// A cable between two network namespaces is made from outside both, where
    /// the ids of both processes mean something.
    fn plug_in(&self, node: &Node) -> Result<()> {
        let (inside, outside) = (node.control().pid()?, self.control().pid()?);
        let cable = node.cable();
        let mut ip = Command::new("nsenter");
        ip.args([
            "--target",
            &outside.to_string(),
            "--net",
            "--",
            "ip",
            "link",
            "add",
            &cable,
        ])
        .args([
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &inside.to_string(),
        ]);
        crate::command::output(&mut ip)?;
        self.control()
            .script(&network::plug_in_script(&cable, node.record().index))?;
        node.control()
            .script(&network::node_script(node.record().index))?;
        Ok(())
    }

    async fn wait_api(&self) -> Result<()> {
        let client = self.client().await?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let last = match client.request_text(http_get("/readyz")?).await {
                Ok(text) if text == "ok" => return Ok(()),
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            self.go_on("the API server is ready", deadline, last)
                .await?;
        }
    }

    /// Waits until the nodes of these names are ready.
    ///
    /// # Errors
    ///
    /// One of them is not in time, or a component has ended.
    pub async fn wait_nodes_ready(&self, names: &[String]) -> Result<()> {
        let nodes: Api<KubernetesNode> = Api::all(self.client().await?);
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let last = match nodes.list(&ListParams::default()).await {
                Ok(list) => {
                    let ready: BTreeSet<String> = list
                        .iter()
                        .filter(|node| is_ready(node))
                        .map(ResourceExt::name_any)
                        .collect();
                    let unready: Vec<&str> = names
                        .iter()
                        .filter(|name| !ready.contains(*name))
                        .map(String::as_str)
                        .collect();
                    if unready.is_empty() {
                        return Ok(());
                    }
                    format!("not ready: {}", unready.join(", "))
                }
                Err(error) => error.to_string(),
            };
            self.go_on("the nodes are ready", deadline, last).await?;
        }
    }

    /// Waits a moment before the next look, unless a component has ended or it
    /// takes too long.
    async fn go_on(&self, what: &str, deadline: Instant, last: String) -> Result<()> {
        for (place, name, state) in self.components()? {
            if let Some(status) = state.exit_status {
                let problem = format!("ended with status {status} on {place}");
                return Err(Error::component(&name, problem, &state.log));
            }
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: what.to_owned(),
                within: START_PATIENCE,
                last,
            });
        }
        tokio::time::sleep(POLL).await;
        Ok(())
    }

    /// The address of the API server within the cluster's network.
    #[must_use]
    pub fn api_server(&self) -> SocketAddr {
        network::api_server()
    }
}

/// A client from a kubeconfig file.
///
/// # Errors
///
/// The file cannot be used.
pub async fn client_from(path: &Path) -> Result<Client> {
    let malformed =
        |error: &dyn std::fmt::Display| Error::malformed(path.display().to_string(), error);
    let file = Kubeconfig::read_from(path).map_err(|error| malformed(&error))?;
    let config = Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|error| malformed(&error))?;
    Client::try_from(config).map_err(Error::kubernetes("making a client"))
}

/// Removes what clusters left behind whose keepers were killed.
///
/// # Errors
///
/// Something of them is still in use.
pub fn sweep() -> Result<()> {
    for name in paths::cluster_names()? {
        let dir = paths::clusters_root().join(&name);
        if keeper::State::alive(&dir).is_none() && !is_starting(&dir) {
            keeper::remove(&dir, &cgroup(&name))?;
        }
    }
    Ok(())
}

/// Ends the cluster of this name, whatever its state is, and removes all of
/// it. One that does not exist is removed already.
///
/// # Errors
///
/// Something of it does not go away.
pub fn remove(name: &str) -> Result<()> {
    let dir = paths::cluster_dir(name)?;
    let deadline = Instant::now() + START_PATIENCE;
    while let Some(state) = keeper::State::alive(&dir) {
        let _ = kill(Pid::from_raw(state.pid), Signal::SIGTERM);
        thread::sleep(POLL);
        if Instant::now() > deadline {
            let log = dir.join("logs/keeper.log");
            return Err(Error::component("keeper", "does not end", &log));
        }
    }
    keeper::remove(&dir, &cgroup(name))
}

/// A cluster whose folder is younger than this may have no keeper yet.
fn is_starting(dir: &Path) -> bool {
    fs::metadata(dir)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.elapsed().ok())
        .is_some_and(|age| age < Duration::from_secs(30))
}

/// The cgroup of a cluster, below each hierarchy's root.
#[must_use]
pub fn cgroup(name: &str) -> PathBuf {
    PathBuf::from(format!("creo-e2e-{name}"))
}

fn node_record(spec: &ClusterSpec, index: u8) -> NodeRecord {
    NodeRecord {
        name: format!("gpu-{index}"),
        index,
        gpus: spec.gpus_per_node,
        gpu_profile: spec.gpu_profile.clone(),
        gpu_layout: spec.gpu_layout,
        default_runtime: DefaultRuntime::default(),
    }
}

fn check_spec(spec: &ClusterSpec) -> Result<()> {
    if !(1..=MAX_NODES).contains(&spec.nodes) {
        return Err(Error::Usage(format!(
            "--nodes {}: 1 to {MAX_NODES}",
            spec.nodes
        )));
    }
    if spec.gpus_per_node > MAX_GPUS_PER_NODE {
        return Err(Error::Usage(format!(
            "--gpus-per-node {}: 0 to {MAX_GPUS_PER_NODE}",
            spec.gpus_per_node
        )));
    }
    if spec.gpus == Gpus::Real && spec.nodes > 1 {
        return Err(Error::Usage(format!(
            "--nodes {}: the machine's own GPUs can be offered by one node only; use --nodes 1 with --gpus real",
            spec.nodes
        )));
    }
    if spec.gpus == Gpus::Real && !Path::new("/dev/nvidiactl").exists() {
        return Err(Error::Machine(
            "--gpus real: this machine has no NVIDIA driver (there is no /dev/nvidiactl); install one, or use --gpus stand-in"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Ready, and the controller manager has noticed: until then the scheduler
/// keeps pods away.
fn is_ready(node: &KubernetesNode) -> bool {
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let tainted = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .any(|taint| taint.key.starts_with("node.kubernetes.io/"));
    ready && !tainted
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>> {
    http::Request::get(path)
        .body(Vec::new())
        .map_err(|error| Error::malformed("a request", error))
}
