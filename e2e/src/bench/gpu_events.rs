//! From what a driver reports to who must know it: the kubelet, and the hub.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use creo_api::CreoNode;
use creo_gpu_device_plugin::pod_resources;
use kube::{Api, runtime::wait::await_condition};

use super::{Row, device_plugin::resident_mib, percentile};
use crate::{
    cluster::{self, Cluster, GpuFault, Node},
    error::{Context as _, Error, Result},
    progress::Progress,
};

const PATIENCE: Duration = Duration::from_mins(2);
/// Time between two questions to the kubelet: it tells nobody by itself.
const ASK: Duration = Duration::from_millis(5);
/// How long either may take.
const KNOWN_S: f64 = 1.0;
/// Memory of the plugin with eight stand-in GPUs and the API client running.
const RESIDENT_MIB: f64 = 15.0;
/// The plugin's name as the kernel shows it, which is at most 15 bytes.
const COMMAND: &str = "creo-gpu-device";

/// Measures `runs` events on the cluster's first node, and the plugin's memory there.
pub(super) async fn measure(cluster: &Cluster, progress: &Progress, runs: u32) -> Result<Vec<Row>> {
    let node = cluster
        .nodes()
        .into_iter()
        .next()
        .ok_or_else(|| Error::malformed("the cluster", "it has no node"))?;
    let nodes: Api<CreoNode> = Api::all(cluster.client().await?);
    let socket = PathBuf::from(format!(
        "/proc/{}/root/var/lib/kubelet/pod-resources/kubelet.sock",
        node.control().pid()?
    ));
    let kubelet = pod_resources::Client::new(&socket, pod_resources::CALL);
    let fault: GpuFault = "xid 79"
        .parse()
        .map_err(|error| Error::malformed("the fault", error))?;
    let step = progress.step(format!("measure {runs} events of GPUs"));
    let (mut to_kubelet, mut to_hub) = (Vec::new(), Vec::new());
    for run in 0..runs {
        let gpu = usize::try_from(run).unwrap_or(0) % usize::from(node.record().gpus);
        let uuid = uuid(&nodes, node.name(), gpu).await?;
        until_allocatable(&kubelet, &uuid, true).await?;
        let begun = Instant::now();
        cluster.gpu_fault(node.name(), gpu, &fault)?;
        let (kubelet_knows, hub_knows) = tokio::join!(
            async {
                until_allocatable(&kubelet, &uuid, false)
                    .await
                    .map(|()| begun.elapsed())
            },
            async {
                until_claimed(&nodes, node.name(), &uuid, false)
                    .await
                    .map(|()| begun.elapsed())
            },
        );
        to_kubelet.push(kubelet_knows?.as_secs_f64());
        to_hub.push(hub_knows?.as_secs_f64());
        cluster.gpu_fault(node.name(), gpu, &GpuFault::Reset)?;
        until_claimed(&nodes, node.name(), &uuid, true).await?;
    }
    step.done("");
    let row = |name: &str, times_s: &[f64]| {
        Row::within(
            &format!("NVML event to {name}, longest of {runs}"),
            "s",
            percentile(times_s, 1.0),
            KNOWN_S,
        )
    };
    Ok(vec![
        row("GetAllocatableResources", &to_kubelet),
        row("status.claims", &to_hub),
        Row::within(
            &format!(
                "device plugin, resident memory with {} GPUs",
                node.record().gpus
            ),
            "MiB",
            resident_mib(plugin(cluster, &node)?)?,
            RESIDENT_MIB,
        ),
    ])
}

async fn uuid(nodes: &Api<CreoNode>, name: &str, index: usize) -> Result<String> {
    let node = nodes
        .get(name)
        .await
        .map_err(Error::kubernetes(format!("reading CreoNode {name}")))?;
    let claims = node.status.and_then(|status| status.claims);
    claims
        .into_iter()
        .flat_map(|claims| claims.gpus)
        .find(|gpu| usize::try_from(gpu.index) == Ok(index))
        .map(|gpu| gpu.uuid)
        .ok_or_else(|| Error::malformed(format!("CreoNode {name}"), format!("no GPU {index}")))
}

async fn until_allocatable(
    kubelet: &pod_resources::Client,
    uuid: &str,
    wanted: bool,
) -> Result<()> {
    let asking = async {
        loop {
            let devices = kubelet
                .allocatable()
                .await
                .map_err(|error| Error::malformed("the kubelet's pod-resources API", error))?;
            if devices.values().any(|ids| ids.contains(uuid)) == wanted {
                return Ok(());
            }
            tokio::time::sleep(ASK).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking)
        .await
        .unwrap_or_else(|_| Err(too_late("the kubelet's list of devices")))
}

async fn until_claimed(nodes: &Api<CreoNode>, name: &str, uuid: &str, healthy: bool) -> Result<()> {
    let is_so = |node: Option<&CreoNode>| {
        node.and_then(|node| node.status.as_ref()?.claims.as_ref())
            .is_some_and(|claims| {
                claims
                    .gpus
                    .iter()
                    .any(|gpu| gpu.uuid == uuid && gpu.healthy == healthy)
            })
    };
    tokio::time::timeout(PATIENCE, await_condition(nodes.clone(), name, is_so))
        .await
        .map_err(|_| too_late("the node's claims"))?
        .map(drop)
        .map_err(|error| Error::malformed("the watch of the node", error))
}

fn too_late(what: &str) -> Error {
    Error::Timeout {
        what: what.to_owned(),
        within: PATIENCE,
        last: "it did not change".to_owned(),
    }
}

/// The plugin's process on this node.
fn plugin(cluster: &Cluster, node: &Node) -> Result<u32> {
    let cgroup = cluster::cgroup(&cluster.record().name);
    let of_cluster = cgroup.to_string_lossy();
    let is_it = |pid: &u32| {
        let path = PathBuf::from(format!("/proc/{pid}"));
        let says = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
        says("comm").trim_end() == COMMAND
            && says("cgroup").contains(&*of_cluster)
            && environment(&path).contains(&format!("NODE_NAME={}", node.name()))
    };
    fs::read_dir("/proc")
        .doing(|| "reading /proc".to_owned())?
        .flatten()
        .filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .find(is_it)
        .ok_or_else(|| Error::malformed(node.name(), "no device plugin runs there"))
}

fn environment(process: &Path) -> Vec<String> {
    fs::read(process.join("environ"))
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .map(|variable| String::from_utf8_lossy(variable).into_owned())
        .collect()
}
