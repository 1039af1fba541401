//! What `creo-e2e` can be told, and whom it tells.

mod gpu;

use std::{
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Command, ExitCode, ExitStatus},
};

use clap::{Args, Subcommand};
use comfy_table::{Table, presets::NOTHING};
use creo_e2e::{
    Error, Result, bench,
    cluster::{self, Cluster, ClusterSpec, GpuLayout, Gpus, MAX_GPUS_PER_NODE, MAX_NODES, Tuning},
    components, demo, keeper, paths,
    progress::Progress,
    prove, supervisor,
};

/// A real Kubernetes with stand-in GPUs on this machine, and faults for it.
#[derive(Debug, clap::Parser)]
#[command(name = "creo-e2e", version)]
pub struct Arguments {
    /// The cluster's name; several run side by side.
    #[arg(long, global = true, default_value = "creo", env = "CREO_E2E_NAME")]
    name: String,
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start, end, find and enter a cluster.
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Let something happen to a node.
    #[command(subcommand)]
    Node(NodeVerb),
    /// Let something happen to a node's kubelet.
    #[command(subcommand)]
    Kubelet(KubeletVerb),
    /// Let something happen to the API server.
    #[command(subcommand)]
    Apiserver(RestartVerb),
    /// Let something happen to etcd.
    #[command(subcommand)]
    Etcd(EtcdVerb),
    /// Let something happen to a GPU, or to the driver under it.
    #[command(subcommand)]
    Gpu(gpu::Verb),
    /// From nothing to an answered request, on a cluster that goes on running.
    Demo {
        /// Where the GPUs come from.
        #[arg(long, value_enum, default_value_t = Gpus::StandIn)]
        gpus: Gpus,
    },
    /// Measure, and write the report.
    Bench(bench::Arguments),
    Prove(prove::Arguments),
    /// Build the programs of Kubernetes that are not built yet.
    Components,
    #[command(subcommand, hide = true)]
    Internal(InternalVerb),
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Start a cluster, which then runs until `cluster down`.
    Up(UpArguments),
    /// End the cluster and remove every trace of it.
    Down,
    /// Show the cluster's nodes and components.
    Status,
    /// Print what to set so that kubectl, helm and others reach the cluster.
    Kubeconfig,
    /// Run a command in the cluster's network, with its kubeconfig and programs.
    Exec {
        /// On this node instead of the control plane: its network, mounts and processes.
        #[arg(long)]
        node: Option<String>,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct UpArguments {
    /// How many GPU nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
    nodes: u8,
    /// How many GPUs a node has.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_GPUS_PER_NODE)))]
    gpus_per_node: u8,
    /// Which GPUs the nodes have.
    #[arg(long, default_value = "rtx-4090")]
    gpu_profile: String,
    /// Where they sit and how they are linked: flat, numa, pcie, pairs or nvswitch.
    #[arg(long, default_value = "flat")]
    gpu_layout: GpuLayout,
    /// Where the GPUs come from.
    #[arg(long, value_enum, default_value_t = Gpus::StandIn)]
    gpus: Gpus,
    /// The port of 127.0.0.1 for the API server; a free one by default.
    #[arg(long, default_value_t = 0)]
    api_port: u16,
    /// Keep the cluster until Ctrl-C, or until this process ends in any other way.
    #[arg(long)]
    foreground: bool,
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Take the node's power: all its processes are gone at once.
    PowerCut { node: String },
    /// Pull the node's cable.
    Partition { node: String },
    /// Plug the node's cable in again.
    Heal { node: String },
    /// Start the node after a power cut.
    Start { node: String },
    /// Add a node to the cluster.
    Add {
        /// How many GPUs it has.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=i64::from(MAX_GPUS_PER_NODE)))]
        gpus: u8,
        /// Which GPUs it has.
        #[arg(long, default_value = "rtx-4090")]
        gpu_profile: String,
        /// Where they sit and how they are linked: flat, numa, pcie, pairs or nvswitch.
        #[arg(long, default_value = "flat")]
        gpu_layout: GpuLayout,
    },
}

#[derive(Debug, Subcommand)]
enum KubeletVerb {
    /// End the kubelet and start it again; its pods go on.
    Restart { node: String },
}

#[derive(Debug, Subcommand)]
enum RestartVerb {
    /// Kill it and start it again.
    Restart,
}

#[derive(Debug, Subcommand)]
enum EtcdVerb {
    /// Kill it and start it again.
    Kill,
}

#[derive(Debug, Subcommand)]
enum InternalVerb {
    Keeper(keeper::Arguments),
    Supervisor(supervisor::Arguments),
}

/// Does what was asked.
///
/// # Errors
///
/// What went wrong, as a sentence for a person.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    // The processes that hold a cluster are single programs without a runtime:
    // one of them is the first process of its namespace.
    match arguments.command {
        Verb::Internal(InternalVerb::Keeper(keeper)) => return keeper::run(&keeper).map(done),
        Verb::Internal(InternalVerb::Supervisor(supervisor)) => {
            return supervisor::run(&supervisor).map(done);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Io {
            what: "starting the runtime".to_owned(),
            source,
        })?;
    runtime.block_on(dispatch(arguments.name, arguments.command))
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

async fn dispatch(name: String, verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Cluster(verb) => return cluster_verb(name, verb).await,
        Verb::Node(verb) => node_verb(&name, verb).await?,
        Verb::Kubelet(KubeletVerb::Restart { node }) => {
            Cluster::open(&name)?.restart_kubelet(&node)?;
        }
        Verb::Apiserver(RestartVerb::Restart) => Cluster::open(&name)?.restart_api_server()?,
        Verb::Etcd(EtcdVerb::Kill) => Cluster::open(&name)?.kill_etcd()?,
        Verb::Gpu(verb) => gpu::run(&name, &verb)?,
        Verb::Demo { gpus } => print(&Box::pin(demo::run(&name, gpus, this_program()?)).await?)?,
        Verb::Bench(arguments) => Box::pin(bench::run(&arguments, this_program()?)).await?,
        Verb::Prove(arguments) => return prove_verb(&arguments).await,
        Verb::Components => {
            components::ensure(&components::CLUSTER, &Progress::stderr())?;
        }
        Verb::Internal(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn cluster_verb(name: String, verb: ClusterVerb) -> Result<ExitCode> {
    match verb {
        ClusterVerb::Up(arguments) => up(name, arguments).await?,
        ClusterVerb::Down => cluster::remove(&name)?,
        ClusterVerb::Status => status(&Cluster::open(&name)?)?,
        ClusterVerb::Kubeconfig => print_kubeconfig(&Cluster::open(&name)?)?,
        ClusterVerb::Exec { node, command } => {
            return exec(&Cluster::open(&name)?, node.as_deref(), &command);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(name: String, arguments: UpArguments) -> Result<()> {
    let spec = ClusterSpec {
        name,
        nodes: arguments.nodes,
        gpus_per_node: arguments.gpus_per_node,
        gpu_profile: arguments.gpu_profile,
        gpu_layout: arguments.gpu_layout,
        gpus: arguments.gpus,
        api_port: arguments.api_port,
        program: this_program()?,
        detached: !arguments.foreground,
        tuning: Tuning::default(),
    };
    let cluster = Cluster::start(&spec, &Progress::stderr()).await?;
    print_kubeconfig(&cluster)?;
    if arguments.foreground {
        tokio::signal::ctrl_c().await.map_err(|source| Error::Io {
            what: "waiting for Ctrl-C".to_owned(),
            source,
        })?;
        cluster.down()?;
    }
    Ok(())
}

async fn prove_verb(arguments: &prove::Arguments) -> Result<ExitCode> {
    let program = this_program()?;
    let start_world: prove::StartWorld = Box::new(move || {
        let program = program.clone();
        Box::pin(async move {
            let name = format!("prove-{}", std::process::id());
            let world = prove::World::start(&name, program)
                .await
                .map_err(prove::Failure::from)?;
            Ok(std::sync::Arc::new(world))
        })
    });
    let environment = prove::Environment::new(paths::checkout(), start_world);
    let report = prove::run(arguments, &prove::all(), environment).await?;
    Ok(if report.passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn node_verb(name: &str, verb: NodeVerb) -> Result<()> {
    let mut cluster = Cluster::open(name)?;
    match verb {
        NodeVerb::PowerCut { node } => cluster.power_cut(&node),
        NodeVerb::Partition { node } => cluster.partition(&node),
        NodeVerb::Heal { node } => cluster.heal(&node),
        NodeVerb::Start { node } => {
            cluster.power_on(&node)?;
            cluster.wait_nodes_ready(&[node]).await
        }
        NodeVerb::Add {
            gpus,
            gpu_profile,
            gpu_layout,
        } => {
            let node = cluster.add_node_with(gpus, &gpu_profile, gpu_layout)?;
            cluster.wait_nodes_ready(&[node.name().to_owned()]).await?;
            print(node.name())
        }
    }
}

fn this_program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|source| Error::Io {
        what: "finding this program".to_owned(),
        source,
    })
}

fn print_kubeconfig(cluster: &Cluster) -> Result<()> {
    print(&format!(
        "export KUBECONFIG={}\nexport PATH={}:$PATH",
        cluster.kubeconfig().display(),
        cluster.programs().search_path()
    ))
}

/// `println!` would panic where the reader has gone.
fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|source| Error::Io {
        what: "writing to the standard output".to_owned(),
        source,
    })
}

fn status(cluster: &Cluster) -> Result<()> {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(["PLACE", "COMPONENT", "STATE", "LOG"]);
    for (place, name, state) in cluster.components()? {
        let how = state.exit_status.map_or_else(
            || "running".to_owned(),
            |status| format!("ended with status {status}"),
        );
        table.add_row([place, name, how, state.log.display().to_string()]);
    }
    for node in cluster.nodes() {
        if !node.control().is_alive() {
            table.add_row([node.name(), "", "off", ""]);
        }
    }
    print(&table.to_string())
}

fn exec(cluster: &Cluster, node: Option<&str>, words: &[String]) -> Result<ExitCode> {
    let control = match node {
        Some(name) => cluster.node(name)?.control().clone(),
        None => cluster.control(),
    };
    let here = std::env::current_dir().unwrap_or_else(|_| paths::clusters_root());
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("nsenter");
    command
        .args([
            "--target",
            &control.pid()?.to_string(),
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
        ])
        // Without it the working directory becomes `/`.
        .arg(format!("--wd={}", here.display()))
        .arg("--")
        .args(words)
        .env("KUBECONFIG", cluster.kubeconfig())
        .env(
            "PATH",
            format!("{}:{path}", cluster.programs().search_path()),
        );
    let status = command.status().map_err(|source| Error::Io {
        what: "starting nsenter".to_owned(),
        source,
    })?;
    Ok(ExitCode::from(exit_code(status)))
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}
