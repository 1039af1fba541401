//! A node: its namespaces, its mounts, its cable, and containerd, kubelet and
//! kube-proxy within.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::json;

use super::{
    gpus::DRIVER_ROOT,
    network::{self, CONTROL_PLANE, PODS},
    runtime::DefaultRuntime,
    spec::{Gpus, NodeRecord},
};
use crate::{
    certificates::Authority,
    components::Programs,
    error::Result,
    kubeconfig, paths,
    preflight::CNI_PLUGINS,
    supervisor::{Control, StartRequest},
};

/// The component that the others wait for.
pub(super) const RUNTIME: &str = "containerd";
/// The components that make it a node of its cluster.
pub(super) const AGENTS: [&str; 2] = ["kubelet", "kube-proxy"];
/// What tells a node from a component at the cluster's supervisor.
pub(super) const PROCESS_PREFIX: &str = "node ";
/// containerd's socket within a node.
pub(super) const CONTAINERD_SOCKET: &str = "/run/containerd/containerd.sock";
const NAMESPACE_PATIENCE: Duration = Duration::from_secs(10);

/// One node of a running cluster.
#[derive(Debug, Clone)]
pub struct Node {
    record: NodeRecord,
    dir: PathBuf,
    control: Control,
}

impl Node {
    pub(super) fn new(cluster_dir: &Path, record: NodeRecord) -> Self {
        let dir = cluster_dir.join("nodes").join(&record.name);
        let control = Control::new(dir.join("control.sock"));
        Self {
            record,
            dir,
            control,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// What it was made with.
    #[must_use]
    pub fn record(&self) -> &NodeRecord {
        &self.record
    }

    /// Its folder on the machine.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its supervisor.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Its address in the cluster's network.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        network::node_address(self.record.index)
    }

    /// The name of its namespaces' process at the cluster's supervisor.
    pub(super) fn process_name(&self) -> String {
        format!("{PROCESS_PREFIX}{}", self.record.name)
    }

    /// Its cable's end at the bridge.
    pub(super) fn cable(&self) -> String {
        format!("node{}", self.record.index)
    }

    /// Writes its certificates and configurations.
    pub(super) fn configure(
        &self,
        cluster: &str,
        authority: &Authority,
        cgroup: &Path,
        pause_image: &str,
        cluster_dir: &Path,
    ) -> Result<()> {
        for folder in ["logs", "cni", "var-lib", "var-log", "driver"] {
            paths::make_dir(&self.dir.join(folder))?;
        }
        let identity = authority.client(
            &format!("system:node:{}", self.name()),
            Some("system:nodes"),
        )?;
        let server = format!("https://{CONTROL_PLANE}:6443");
        let text = kubeconfig::text(cluster, &server, authority.certificate_pem(), &identity);
        paths::write_file(&self.dir.join("kubelet.kubeconfig"), text)?;
        let authority_file = cluster_dir.join("pki/ca.crt");
        let cgroup_root = Path::new("/").join(cgroup).join(self.name());
        paths::write_file(
            &self.dir.join("kubelet.yaml"),
            format!(
                "{:#}\n",
                kubelet_configuration(&authority_file, &cgroup_root)
            ),
        )?;
        let proxy_kubeconfig = cluster_dir.join("kube-proxy.kubeconfig");
        paths::write_file(
            &self.dir.join("kube-proxy.yaml"),
            format!(
                "{:#}\n",
                proxy_configuration(self.name(), &proxy_kubeconfig)
            ),
        )?;
        self.configure_runtime(pause_image)?;
        let network = cni_configuration(&network::node_pods(self.record.index));
        paths::write_file(
            &self.dir.join("cni/10-creo.conflist"),
            format!("{network:#}\n"),
        )
    }

    /// Makes the namespaces, as a process of the cluster's supervisor.
    pub(super) fn namespaces(&self, cluster: &Control, program: &Path) -> Result<()> {
        let socket = self.dir.join("control.sock");
        if socket.exists() {
            // Left behind by a power cut.
            let _ = std::fs::remove_file(&socket);
        }
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut argv =
            words("unshare --mount --net --pid --ipc --uts --fork --mount-proc --kill-child --");
        argv.push(program.to_string_lossy().into_owned());
        argv.extend(words("internal supervisor --control"));
        argv.push(socket.to_string_lossy().into_owned());
        argv.extend(["--hostname".to_owned(), self.name().to_owned()]);
        cluster.start(StartRequest {
            name: self.process_name(),
            argv,
            env: BTreeMap::new(),
            log: self.dir.join("logs/supervisor.log"),
        })?;
        self.control.wait(NAMESPACE_PATIENCE)
    }

    /// The node's own mounts: what a kubelet and containerd expect at fixed
    /// places lies in the node's folder, and `/run` is lost with its power.
    pub(super) fn mounts_script(&self, gpus: Gpus) -> String {
        let dir = self.dir.display();
        let driver = match gpus {
            Gpus::StandIn => format!("{dir}/driver"),
            Gpus::Real => "/".to_owned(),
        };
        format!(
            "mount -t tmpfs -o mode=755 run /run
            mkdir -p /run/containerd /run/cdi /run/lock /run/netns {DRIVER_ROOT}
            mount --rbind '{driver}' {DRIVER_ROOT}
            mount --bind '{dir}/var-lib' /var/lib
            mkdir -p /var/lib/kubelet /var/lib/containerd /var/lib/cni
            mount --bind '{dir}/var-log' /var/log
            mkdir -p /var/log/pods /var/log/containers
            mount --make-rshared /"
        )
    }

    /// What a component of the node is started with.
    pub(super) fn request(&self, component: &str, programs: &Programs) -> Result<StartRequest> {
        let at = |path: &str| self.dir.join(path).to_string_lossy().into_owned();
        let mut argv = vec![programs.path(component)?.to_string_lossy().into_owned()];
        argv.extend(match component {
            "containerd" => vec!["--config".to_owned(), at("containerd.toml")],
            "kubelet" => vec![
                format!("--config={}", at("kubelet.yaml")),
                format!("--kubeconfig={}", at("kubelet.kubeconfig")),
                format!("--hostname-override={}", self.name()),
                format!("--node-ip={}", self.address()),
            ],
            _ => vec![format!("--config={}", at("kube-proxy.yaml"))],
        });
        // containerd finds its shim, and the shim runc, on the search path.
        let path = std::env::var("PATH").unwrap_or_default();
        Ok(StartRequest {
            name: component.to_owned(),
            argv,
            env: BTreeMap::from([
                (
                    "PATH".to_owned(),
                    format!("{}:{path}", programs.search_path()),
                ),
                DefaultRuntime::environment(&self.dir),
            ]),
            log: self.dir.join(format!("logs/{component}.log")),
        })
    }

    /// Writes containerd's configuration and what its runtimes need.
    pub(super) fn configure_runtime(&self, pause_image: &str) -> Result<()> {
        paths::write_file(
            &self.dir.join("containerd.toml"),
            self.containerd_configuration(pause_image),
        )?;
        self.record
            .default_runtime
            .configure(&self.dir, self.record.gpus)
    }

    fn containerd_configuration(&self, pause_image: &str) -> String {
        format!(
            r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause_image}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{CNI_PLUGINS}"]
    conf_dir = "{}/cni"
{}"#,
            self.dir.display(),
            self.record.default_runtime.containerd_tables()
        )
    }
}

fn kubelet_configuration(authority: &Path, cgroup_root: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": authority },
        },
        "authorization": { "mode": "Webhook" },
        "clusterDNS": [CONTROL_PLANE.to_string()],
        "clusterDomain": "cluster.local",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root,
        "failCgroupV1": false,
        "failSwapOn": false,
        "resolvConf": "/dev/null",
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD_SOCKET}"),
        "evictionHard": {
            "memory.available": "50Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        // The machine's disk is not the cluster's to clean up.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        // Failures are found in seconds, not in a minute.
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 8,
        "serializeImagePulls": false,
    })
}

fn proxy_configuration(node: &str, kubeconfig: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clusterCIDR": PODS,
        "hostnameOverride": node,
        "clientConnection": { "kubeconfig": kubeconfig },
        // These are settings of the whole machine, and so not a cluster's.
        "conntrack": { "maxPerCore": 0, "min": 0 },
        "nftables": { "minSyncPeriod": "100ms" },
    })
}

fn cni_configuration(pods: &str) -> serde_json::Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "creo",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipam": { "type": "host-local", "ranges": [[{ "subnet": pods }]] },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
