//! The local cluster itself: it starts, takes faults, and leaves nothing behind.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use creo_e2e::{
    cgroups::Hierarchies,
    cluster::{self, Cluster, ClusterSpec, GpuLayout, Gpus, ImageSet, Tuning},
    paths,
    progress::Progress,
    supervisor::Control,
};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use tokio::sync::{Semaphore, SemaphorePermit};

const PROGRAM: &str = env!("CARGO_BIN_EXE_creo-e2e");

/// Clusters share the machine's inotify instances, of which a Debian has few:
/// so many tests have clusters at the same time, however many cores there are.
static TURNS: Semaphore = Semaphore::const_new(2);

async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.expect("nobody closes it")
}

fn unique(purpose: &str) -> String {
    format!("{purpose}-{}", std::process::id())
}

fn spec(name: &str, nodes: u8) -> ClusterSpec {
    ClusterSpec {
        name: name.to_owned(),
        nodes,
        gpus_per_node: 1,
        gpu_profile: "rtx-4090".to_owned(),
        gpu_layout: GpuLayout::Flat,
        gpus: Gpus::StandIn,
        api_port: 0,
        program: PathBuf::from(PROGRAM),
        detached: false,
        tuning: Tuning::default(),
    }
}

/// Everything on the machine that belongs to a cluster.
struct Traces {
    name: String,
    dir: PathBuf,
    namespaces: BTreeSet<PathBuf>,
}

impl Traces {
    fn of(name: &str) -> Self {
        let dir = paths::cluster_dir(name).expect("the name is good");
        let mut namespaces = BTreeSet::new();
        let mut sockets = vec![dir.join("control.sock")];
        for node in fs::read_dir(dir.join("nodes"))
            .expect("the cluster has nodes")
            .flatten()
        {
            sockets.push(node.path().join("control.sock"));
        }
        for socket in sockets {
            let pid = Control::new(socket).pid().expect("the supervisor listens");
            namespaces.insert(fs::read_link(format!("/proc/{pid}/ns/pid")).expect("it is alive"));
        }
        Self {
            name: name.to_owned(),
            dir,
            namespaces,
        }
    }

    fn remaining(&self) -> Vec<String> {
        let mut found = Vec::new();
        for process in fs::read_dir("/proc").expect("there is /proc").flatten() {
            let path = process.path();
            let inside =
                fs::read_link(path.join("ns/pid")).is_ok_and(|ns| self.namespaces.contains(&ns));
            let arguments = fs::read(path.join("cmdline")).unwrap_or_default();
            let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
            if inside || arguments.contains(&*self.dir.to_string_lossy()) {
                found.push(format!("process {}: {arguments}", path.display()));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("there are mounts");
        let below = self.dir.to_string_lossy().into_owned();
        found.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&below))
                .map(|line| format!("mount {line}")),
        );
        let hierarchies = Hierarchies::find().expect("there are cgroups");
        let cgroups = hierarchies.remains(&cluster::cgroup(&self.name));
        found.extend(
            cgroups
                .iter()
                .map(|path| format!("cgroup {}", path.display())),
        );
        if self.dir.exists() {
            found.push(format!("folder {}", self.dir.display()));
        }
        found
    }

    fn wait_until_gone(&self, within: Duration) -> Vec<String> {
        let deadline = Instant::now() + within;
        loop {
            let remaining = self.remaining();
            if remaining.is_empty() || Instant::now() > deadline {
                return remaining;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn network_devices() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/sys/class/net")
        .expect("there is a network")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

async fn run_a_pod(kubeconfig: &Path, name: &str) {
    let client = cluster::client_from(kubeconfig)
        .await
        .expect("the kubeconfig is good");
    let image = ImageSet::build_pause()
        .expect("the pause image is built")
        .imported;
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": { "name": name },
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "pause", "image": image, "imagePullPolicy": "Never" }],
        },
    }))
    .expect("it is a pod");
    let pods: Api<Pod> = Api::namespaced(client, "default");
    let deadline = Instant::now() + Duration::from_mins(1);
    // A new namespace has its service account a moment after itself.
    while let Err(error) = pods.create(&PostParams::default(), &pod).await {
        assert!(Instant::now() < deadline, "the pod is not created: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let running = kube::runtime::wait::await_condition(
        pods,
        name,
        kube::runtime::wait::conditions::is_pod_running(),
    );
    tokio::time::timeout(Duration::from_mins(1), running)
        .await
        .expect("the pod runs in time")
        .expect("the pod is watched");
}

/// A cluster held by another process, as a test run holds one.
fn held_by_a_process(name: &str) -> (Child, PathBuf) {
    let mut child = Command::new(PROGRAM)
        .args([
            "--name",
            name,
            "cluster",
            "up",
            "--foreground",
            "--nodes",
            "1",
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let output = child.stdout.as_mut().expect("it has an output");
    let mut lines = BufReader::new(output).lines();
    let first = lines
        .next()
        .expect("it prints the kubeconfig")
        .expect("it prints text");
    let kubeconfig = first
        .strip_prefix("export KUBECONFIG=")
        .expect("the kubeconfig comes first");
    (child, PathBuf::from(kubeconfig))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_run_that_is_killed_with_pods_running() {
    let _turn = turn().await;
    let name = unique("killed");
    let devices = network_devices();
    let (mut child, kubeconfig) = held_by_a_process(&name);
    run_a_pod(&kubeconfig, "one").await;
    let traces = Traces::of(&name);
    let before = traces.remaining();
    assert!(
        before.iter().any(|trace| trace.starts_with("cgroup")),
        "the test sees cgroups: {before:?}"
    );
    let processes = before
        .iter()
        .filter(|trace| trace.starts_with("process"))
        .count();
    assert!(processes > 10, "the test sees processes: {before:?}");

    child.kill().expect("SIGKILL is sent");
    child.wait().expect("it ends");
    assert_eq!(
        traces.wait_until_gone(Duration::from_secs(10)),
        Vec::<String>::new()
    );
    assert_eq!(network_devices(), devices);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_on_when_the_keeper_is_killed_as_well() {
    let _turn = turn().await;
    let name = unique("keeper");
    let (mut child, kubeconfig) = held_by_a_process(&name);
    run_a_pod(&kubeconfig, "one").await;
    let traces = Traces::of(&name);
    let keeper = creo_e2e::keeper::State::alive(&traces.dir)
        .expect("the keeper is alive")
        .pid;
    for pid in [keeper, child.id().cast_signed()] {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGKILL,
        );
    }
    child.wait().expect("it ends");

    let deadline = Instant::now() + Duration::from_secs(10);
    let folder = format!("folder {}", traces.dir.display());
    while traces.remaining() != [folder.clone()] {
        assert!(
            Instant::now() < deadline,
            "left over: {:?}",
            traces.remaining()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    // Only files are left, and the next `down` or `up` takes them.
    cluster::remove(&name).expect("the folder is removed");
    assert_eq!(traces.remaining(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_takes_every_fault_and_leaves_nothing_when_it_goes_down() {
    let _turn = turn().await;
    let name = unique("faults");
    let mut cluster = Cluster::start(&spec(&name, 2), &Progress::silent())
        .await
        .expect("the cluster starts");
    run_a_pod(&cluster.kubeconfig(), "one").await;
    let client = cluster.client().await.expect("there is a client");
    let nodes: Api<Node> = Api::all(client.clone());

    cluster.partition("gpu-2").expect("the cable is pulled");
    wait_for_ready(&nodes, "gpu-2", "Unknown").await;
    cluster.heal("gpu-2").expect("the cable is plugged in");
    wait_for_ready(&nodes, "gpu-2", "True").await;

    cluster.power_cut("gpu-2").expect("the power is cut");
    assert!(
        !cluster
            .node("gpu-2")
            .expect("it is known")
            .control()
            .is_alive()
    );
    wait_for_ready(&nodes, "gpu-2", "Unknown").await;
    cluster.power_on("gpu-2").expect("the power is back");
    wait_for_ready(&nodes, "gpu-2", "True").await;

    let pod_before = only_pod(&client).await;
    cluster
        .restart_kubelet("gpu-1")
        .expect("the kubelet restarts");
    cluster
        .restart_api_server()
        .expect("the API server restarts");
    wait_for_ready(&nodes, "gpu-1", "True").await;
    cluster.kill_etcd().expect("etcd restarts");
    wait_for_ready(&nodes, "gpu-1", "True").await;
    if pod_before
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        == Some("gpu-1")
    {
        let started = |pod: &Pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.start_time.clone())
        };
        assert_eq!(
            started(&only_pod(&client).await),
            started(&pod_before),
            "the pod went on"
        );
    }

    let added = cluster.add_node(1, "h100-80gb").expect("a node is added");
    assert_eq!(added.name(), "gpu-3");
    wait_for_ready(&nodes, "gpu-3", "True").await;

    let traces = Traces::of(&name);
    cluster.down().expect("the cluster goes down");
    assert_eq!(traces.remaining(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn clusters_run_side_by_side_and_the_machines_kubectl_reaches_each() {
    let _turn = turn().await;
    let (first, second) = (unique("side-a"), unique("side-b"));
    let (one, other) = (spec(&first, 1), spec(&second, 1));
    let progress = Progress::silent();
    let (one, other) = tokio::join!(
        Cluster::start(&one, &progress),
        Cluster::start(&other, &progress)
    );
    let (one, other) = (
        one.expect("the first starts"),
        other.expect("the second starts"),
    );
    for cluster in [&one, &other] {
        let output = creo_e2e::command::output(
            cluster
                .command("kubectl")
                .expect("there is kubectl")
                .args(["get", "nodes", "-o", "name"]),
        );
        assert_eq!(output.expect("kubectl works"), "node/gpu-1\n");
    }
    let status = Command::new(PROGRAM)
        .args([
            "--name",
            &first,
            "cluster",
            "exec",
            "--node",
            "gpu-1",
            "--",
            "sh",
            "-c",
            "exit $(hostname | wc -c)",
        ])
        .status()
        .expect("exec starts");
    assert_eq!(status.code(), Some(6), "`gpu-1` and a line end are 6 bytes");
}

/// Ends a cluster that would outlive a test which fails, since it is no part of its process.
struct DownWhenFailed<'a>(&'a str);

impl Drop for DownWhenFailed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The test has failed; this is all that can be done.
            let _ = Command::new(PROGRAM)
                .args(["--name", self.0, "cluster", "down"])
                .output();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_goes_to_the_models_answer_and_its_second_run_takes_less_than_30_seconds() {
    let _turn = turn().await;
    let name = unique("demo");
    let _end = DownWhenFailed(&name);
    let run = |verb: &[&str]| {
        let begun = Instant::now();
        let output = Command::new(PROGRAM)
            .args(["--name", &name])
            .args(verb)
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let steps = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{verb:?}:\n{steps}\n{said}");
        (said, steps, begun.elapsed())
    };
    let (said, steps, _) = run(&["demo"]);
    for part in [
        "gpu-2  True   1/2   1    NVIDIA GeForce RTX 4090  24 GiB",
        "Placed=True AllPlaced: 2 of 2 replicas have a node",
        "answered in ",
        "cluster kubeconfig",
    ] {
        assert!(said.contains(part), "{part:?} is not in\n{said}");
    }
    assert!(steps.contains("send a chat request"), "{steps}");
    let traces = Traces::of(&name);
    let (_, _, taken) = run(&["demo"]);
    assert!(taken < Duration::from_secs(30), "{taken:?}");
    run(&["cluster", "down"]);
    assert_eq!(traces.remaining(), Vec::<String>::new());
}

#[test]
fn mistakes_are_answered_with_what_to_do() {
    let said = |arguments: &[&str]| {
        let output = Command::new(PROGRAM)
            .args(arguments)
            .output()
            .expect("the program starts");
        assert!(!output.status.success(), "{arguments:?} fails");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["--name", "No Such", "cluster", "down"]).contains("lower-case letters"));
    assert!(
        said(&["--name", "absent", "cluster", "status"])
            .contains("`creo-e2e cluster up --name absent`")
    );
    assert!(said(&["cluster", "up", "--nodes", "0"]).contains("1..=16"));
    assert!(said(&["--name", "two", "cluster", "up", "--gpus", "real"]).contains("--nodes 1"));
    assert!(
        said(&[
            "--name",
            "bad-gpu",
            "cluster",
            "up",
            "--gpu-profile",
            "abacus"
        ])
        .contains("rtx-4090")
    );
    assert!(said(&["gpu", "fault", "gpu-1", "0", "tickle"]).contains("xid"));
}

async fn wait_for_ready(nodes: &Api<Node>, name: &str, status: &str) {
    let deadline = Instant::now() + Duration::from_mins(2);
    let mut last = String::new();
    while Instant::now() < deadline {
        match nodes.get(name).await {
            Ok(node) => {
                let conditions = node
                    .status
                    .and_then(|status| status.conditions)
                    .unwrap_or_default();
                last = conditions
                    .into_iter()
                    .find(|condition| condition.type_ == "Ready")
                    .map(|condition| condition.status)
                    .unwrap_or_default();
                if last == status {
                    return;
                }
            }
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} should have been Ready={status}, last seen: {last}");
}

async fn only_pod(client: &kube::Client) -> Pod {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let mut list = pods
        .list(&ListParams::default())
        .await
        .expect("pods are listed");
    assert_eq!(list.items.len(), 1);
    list.items.remove(0)
}
