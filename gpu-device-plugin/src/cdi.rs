//! The Container Device Interface: a file on the host that tells the container runtime what a
//! container with a GPU needs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::inventory::Gpu;
use crate::resource::Resource;

/// The oldest version that knows a device node's path on the host, so that the spec is
/// understood by every runtime that can use it at all.
const VERSION: &str = "0.5.0";

/// Device nodes that every container with a GPU needs, where the driver has them.
const COMMON_NODES: [&str; 4] = [
    "nvidiactl",
    "nvidia-uvm",
    "nvidia-uvm-tools",
    "nvidia-modeset",
];

/// A CDI specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    cdi_version: &'static str,
    kind: String,
    devices: Vec<SpecDevice>,
    container_edits: Edits,
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
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: PathBuf,
    permissions: &'static str,
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

/// The nodes for every container that are under this root, as this process sees it.
#[must_use]
pub fn common_nodes(root: &Path) -> Vec<&'static str> {
    COMMON_NODES
        .into_iter()
        .filter(|name| root.join("dev").join(name).exists())
        .collect()
}

impl Spec {
    /// The specification for these GPUs.
    ///
    /// `root` is the driver's root on the host: the runtime that reads the file lives there.
    #[must_use]
    pub fn new(resource: &Resource, gpus: &[&Gpu], common_nodes: &[&str], root: &Path) -> Self {
        Self {
            cdi_version: VERSION,
            kind: resource.to_string(),
            devices: gpus
                .iter()
                .map(|gpu| SpecDevice {
                    name: gpu.uuid.clone(),
                    container_edits: Edits {
                        device_nodes: vec![Node::new(&format!("nvidia{}", gpu.minor), root)],
                        ..Edits::default()
                    },
                })
                .collect(),
            container_edits: Edits {
                // A host whose default runtime is NVIDIA's adds every GPU that an image asks
                // for by this variable; this value asks for none.
                env: vec!["NVIDIA_VISIBLE_DEVICES=void".to_owned()],
                device_nodes: common_nodes
                    .iter()
                    .map(|name| Node::new(name, root))
                    .collect(),
            },
        }
    }
}

/// The specification could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the CDI specification {}: {source}; make --cdi-dir a directory that this process may write to", path.display())]
pub struct WriteError {
    path: PathBuf,
    source: io::Error,
}

/// Puts the specification into this directory, whole or not at all, and only where it differs
/// from what is there. Gives whether it did.
pub fn write(directory: &Path, resource: &Resource, spec: &Spec) -> Result<bool, WriteError> {
    let path = directory.join(format!("{}.json", resource.file_stem()));
    replace(directory, &path, spec).map_err(|source| WriteError { path, source })
}

fn replace(directory: &Path, path: &Path, spec: &Spec) -> io::Result<bool> {
    let mut text = serde_json::to_vec_pretty(spec)?;
    text.push(b'\n');
    if fs::read(path).is_ok_and(|present| present == text) {
        return Ok(false);
    }
    fs::create_dir_all(directory)?;
    // A runtime reads files that end in .json or .yaml only.
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(&text)?;
    // The content must be on the disk before the name is.
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(directory)?.sync_all()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32) -> Gpu {
        Gpu {
            index,
            uuid: format!("GPU-{index}"),
            model: "T4".to_owned(),
            memory_bytes: 1,
            compute_capability: "7.5".to_owned(),
            pci_address: String::new(),
            // A minor number is not always the index.
            minor: index + 4,
            ..Gpu::default()
        }
    }

    fn resource() -> Resource {
        "creo.cloud/gpu".parse().unwrap()
    }

    fn spec(gpus: &[&Gpu]) -> Spec {
        Spec::new(
            &resource(),
            gpus,
            &["nvidiactl", "nvidia-uvm"],
            Path::new("/run/nvidia/driver"),
        )
    }

    #[test]
    fn a_specification_gives_each_gpu_its_own_node_and_all_of_them_the_common_ones() {
        let text = serde_json::to_string_pretty(&spec(&[&gpu(0), &gpu(1)])).unwrap();
        insta::assert_snapshot!(text, @r#"
        {
          "cdiVersion": "0.5.0",
          "kind": "creo.cloud/gpu",
          "devices": [
            {
              "name": "GPU-0",
              "containerEdits": {
                "deviceNodes": [
                  {
                    "path": "/dev/nvidia4",
                    "hostPath": "/run/nvidia/driver/dev/nvidia4",
                    "permissions": "rw"
                  }
                ]
              }
            },
            {
              "name": "GPU-1",
              "containerEdits": {
                "deviceNodes": [
                  {
                    "path": "/dev/nvidia5",
                    "hostPath": "/run/nvidia/driver/dev/nvidia5",
                    "permissions": "rw"
                  }
                ]
              }
            }
          ],
          "containerEdits": {
            "env": [
              "NVIDIA_VISIBLE_DEVICES=void"
            ],
            "deviceNodes": [
              {
                "path": "/dev/nvidiactl",
                "hostPath": "/run/nvidia/driver/dev/nvidiactl",
                "permissions": "rw"
              },
              {
                "path": "/dev/nvidia-uvm",
                "hostPath": "/run/nvidia/driver/dev/nvidia-uvm",
                "permissions": "rw"
              }
            ]
          }
        }
        "#);
    }

    #[test]
    fn only_common_nodes_that_exist_are_named() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        fs::write(root.path().join("dev/nvidia0"), "").unwrap();
        assert_eq!(common_nodes(root.path()), ["nvidiactl"]);
    }

    #[test]
    fn a_file_is_written_once_and_again_only_when_it_differs() {
        let directory = tempfile::tempdir().unwrap();
        let cdi = directory.path().join("cdi");
        assert!(write(&cdi, &resource(), &spec(&[&gpu(0)])).unwrap());
        assert!(!write(&cdi, &resource(), &spec(&[&gpu(0)])).unwrap());
        assert!(write(&cdi, &resource(), &spec(&[&gpu(1)])).unwrap());
        fs::write(cdi.join("creo.cloud-gpu.json"), "rubbish").unwrap();
        assert!(write(&cdi, &resource(), &spec(&[&gpu(1)])).unwrap());
        let names: Vec<_> = fs::read_dir(&cdi)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["creo.cloud-gpu.json"]);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let refused = write(&file.join("cdi"), &resource(), &spec(&[])).unwrap_err();
        assert!(refused.to_string().contains("file/cdi/creo.cloud-gpu.json"));
        assert!(refused.to_string().contains("--cdi-dir"));
    }
}
