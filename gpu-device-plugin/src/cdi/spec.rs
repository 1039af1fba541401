//! The specification as the file holds it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::driver_files::{Capability, DriverFiles};
use crate::inventory::{Gpu, MigDevice};
use crate::resource::Resource;

/// The oldest version that knows a device node's path on the host, so that the spec is
/// understood by every runtime that can use it at all.
const VERSION: &str = "0.5.0";

/// How a container sees a file of the driver: it cannot change it, and cannot become another
/// user by it.
const FILE_OPTIONS: [&str; 5] = ["ro", "nosuid", "nodev", "bind", "rprivate"];
/// How a container sees a socket: writable, and nothing in it can be run.
const SOCKET_OPTIONS: [&str; 5] = ["nosuid", "nodev", "noexec", "rbind", "rprivate"];

/// A CDI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    cdi_version: &'static str,
    kind: String,
    devices: Vec<SpecDevice>,
    container_edits: Edits,
    /// The devices that cannot be named, and why.
    #[serde(skip)]
    left_out: Vec<LeftOut>,
}

/// A device that a specification cannot name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// UUID of the GPU or of the partition.
    pub uuid: String,
    /// Why, and what to do.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct SpecDevice {
    name: String,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    device_nodes: Vec<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
}

/// A device node of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Path in the container.
    pub path: String,
    /// Path on the host.
    pub host_path: PathBuf,
    /// What the container may do with it: of `r`, `w` and `m`.
    pub permissions: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: PathBuf,
    container_path: String,
    options: [&'static str; 5],
}

impl Node {
    fn new(name: &str, root: &Path) -> Self {
        Self {
            path: format!("/dev/{name}"),
            host_path: root.join("dev").join(name),
            // No "m": a container has no reason to make nodes.
            permissions: "rw",
        }
    }
}

impl Spec {
    /// The specification for these GPUs, their partitions and this driver. A device's name is
    /// its UUID, whatever else is configured.
    #[must_use]
    pub fn new(kind: &Resource, gpus: &[&Gpu], driver: &DriverFiles) -> Self {
        let mut spec = Self {
            cdi_version: VERSION,
            kind: kind.to_string(),
            devices: Vec::new(),
            container_edits: common(driver),
            left_out: Vec::new(),
        };
        for gpu in gpus {
            let node = Node::new(&format!("nvidia{}", gpu.minor), &driver.root);
            spec.add(&gpu.uuid, Ok(vec![node.clone()]));
            for device in gpu.mig.devices() {
                let nodes = partition(gpu, device, driver).map(|mut nodes| {
                    nodes.insert(0, node.clone());
                    nodes
                });
                spec.add(&device.uuid, nodes);
            }
        }
        spec
    }

    fn add(&mut self, uuid: &str, nodes: Result<Vec<Node>, String>) {
        let nodes = if is_device_name(uuid) {
            nodes
        } else {
            Err("its UUID is no name for a CDI device; the driver is too old".to_owned())
        };
        match nodes {
            Ok(device_nodes) => self.devices.push(SpecDevice {
                name: uuid.to_owned(),
                container_edits: Edits {
                    device_nodes,
                    ..Edits::default()
                },
            }),
            Err(why) => self.left_out.push(LeftOut {
                uuid: uuid.to_owned(),
                why,
            }),
        }
    }

    /// The names of the devices: UUIDs of GPUs and partitions.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().map(|device| device.name.as_str())
    }

    /// All nodes that a container with a device gets, by the device's name.
    #[must_use]
    pub fn nodes(&self) -> BTreeMap<String, Vec<Node>> {
        let common = &self.container_edits.device_nodes;
        self.devices
            .iter()
            .map(|device| {
                let own = &device.container_edits.device_nodes;
                (device.name.clone(), [&own[..], &common[..]].concat())
            })
            .collect()
    }

    /// The GPUs and partitions that cannot be named, and why.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }
}

/// What every container with a device of this specification gets.
fn common(driver: &DriverFiles) -> Edits {
    // A host whose default runtime is NVIDIA's adds every GPU that an image asks for by this
    // variable; this value asks for none.
    let mut env = vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()];
    let directories = DriverFiles::container_directories();
    if driver.has_cuda() {
        // Triton, and with it most of what compiles kernels, asks `ldconfig -p` for libcuda
        // and gives up where the image's list does not have it, unless this is set. One of
        // the directories is good for every image: the library is in both.
        env.push(format!("TRITON_LIBCUDA_PATH={}", directories[0]));
    }
    let mut mounts = Vec::new();
    let mut mount = |path: &Path, container_path: String, options| {
        mounts.push(Mount {
            host_path: on_host(&driver.root, path),
            container_path,
            options,
        });
    };
    for directory in &directories {
        for (name, path) in &driver.libraries {
            mount(path, format!("{directory}/{name}"), FILE_OPTIONS);
        }
    }
    for (container_path, path) in &driver.files {
        mount(path, container_path.clone(), FILE_OPTIONS);
    }
    for (container_path, path) in &driver.sockets {
        mount(path, (*container_path).to_owned(), SOCKET_OPTIONS);
    }
    Edits {
        env,
        device_nodes: driver
            .nodes
            .iter()
            .map(|name| Node::new(name, &driver.root))
            .collect(),
        mounts,
    }
}

fn on_host(root: &Path, inside: &Path) -> PathBuf {
    root.join(inside.strip_prefix("/").unwrap_or(inside))
}

/// The nodes that open a partition, beside that of its card.
fn partition(gpu: &Gpu, device: &MigDevice, driver: &DriverFiles) -> Result<Vec<Node>, String> {
    [None, Some(device.compute_instance)]
        .into_iter()
        .map(|compute_instance| {
            let capability = Capability {
                gpu: gpu.minor,
                gpu_instance: device.gpu_instance,
                compute_instance,
            };
            let minor = driver.capabilities.get(&capability).ok_or_else(|| {
                format!(
                    "the driver does not say which device opens GPU instance {} of GPU {}; it is \
                     in /proc/driver/nvidia-caps/mig-minors where the kernel module runs with \
                     nv_cap_enable_devfs=1",
                    device.gpu_instance, gpu.index
                )
            })?;
            Ok(Node::new(
                &format!("nvidia-caps/nvidia-cap{minor}"),
                &driver.root,
            ))
        })
        .collect()
}

/// Whether CDI takes this for the name of a device; one that it does not take makes the whole
/// file worthless.
fn is_device_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends_well = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.:".contains(byte))
}
