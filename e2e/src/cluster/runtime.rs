//! Which container runtime a node's pods get where they do not ask for one: runc, or NVIDIA's,
//! which hands out GPUs to whoever sets a variable.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::gpus::DRIVER_ROOT;
use crate::{
    components::{self, NVIDIA_RUNTIME},
    error::Result,
    paths,
    progress::Progress,
};

/// NVIDIA's runtime looks for its configuration in a folder of this name.
const CONFIGURATION_DIR: &str = "nvidia-container-runtime";

/// A node's default runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DefaultRuntime {
    /// runc itself.
    #[default]
    Runc,
    /// NVIDIA's `nvidia-container-runtime` at this path, configured as their toolkit does: it
    /// honours `NVIDIA_VISIBLE_DEVICES` of any container.
    Nvidia(PathBuf),
}

impl DefaultRuntime {
    /// NVIDIA's, built where it is not yet.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn nvidia(progress: &Progress) -> Result<Self> {
        let programs = components::ensure(&[NVIDIA_RUNTIME], progress)?;
        Ok(Self::Nvidia(programs.path("nvidia-container-runtime")?))
    }

    /// containerd's tables of runtimes.
    pub(super) fn containerd_tables(&self) -> String {
        let table = r#"[plugins."io.containerd.cri.v1.runtime".containerd"#;
        let runc =
            format!("    {table}.runtimes.runc]\n      runtime_type = \"io.containerd.runc.v2\"\n");
        match self {
            Self::Runc => format!("  {table}]\n    default_runtime_name = \"runc\"\n{runc}"),
            Self::Nvidia(program) => format!(
                "  {table}]\n    default_runtime_name = \"nvidia\"\n{runc}    \
                 {table}.runtimes.nvidia]\n      runtime_type = \"io.containerd.runc.v2\"\n      \
                 {table}.runtimes.nvidia.options]\n        BinaryName = \"{}\"\n",
                program.display()
            ),
        }
    }

    /// Writes what the runtime needs below the node's folder.
    pub(super) fn configure(&self, dir: &Path, gpus: u8) -> Result<()> {
        if *self == Self::Runc {
            return Ok(());
        }
        let specs = dir.join("nvidia-cdi");
        paths::make_dir(&specs)?;
        paths::make_dir(&dir.join(CONFIGURATION_DIR))?;
        paths::write_file(
            &specs.join("nvidia.json"),
            format!("{:#}\n", specification(gpus)),
        )?;
        paths::write_file(
            &dir.join(CONFIGURATION_DIR).join("config.toml"),
            format!(
                r#"accept-nvidia-visible-devices-envvar-when-unprivileged = true

[nvidia-container-runtime]
log-level = "info"
mode = "cdi"
runtimes = ["runc"]

[nvidia-container-runtime.modes.cdi]
default-kind = "nvidia.com/gpu"
spec-dirs = ["{}"]
"#,
                specs.display()
            ),
        )
    }

    /// The variable by which NVIDIA's runtime finds its configuration below the node's folder:
    /// containerd hands its own environment on.
    pub(super) fn environment(dir: &Path) -> (String, String) {
        (
            "XDG_CONFIG_HOME".to_owned(),
            dir.to_string_lossy().into_owned(),
        )
    }
}

/// The GPUs as `nvidia-ctk cdi generate` names them: by number, and all at once.
fn specification(gpus: u8) -> serde_json::Value {
    let node = |name: String| json!({ "path": format!("/dev/{name}"), "hostPath": format!("{DRIVER_ROOT}/dev/{name}") });
    let nodes: Vec<_> = (0..gpus).map(|gpu| node(format!("nvidia{gpu}"))).collect();
    let devices = nodes
        .iter()
        .enumerate()
        .map(|(number, node)| (number.to_string(), vec![node.clone()]))
        .chain([("all".to_owned(), nodes.clone())])
        .map(|(name, nodes)| json!({ "name": name, "containerEdits": { "deviceNodes": nodes } }));
    json!({
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices.collect::<Vec<_>>(),
        "containerEdits": { "deviceNodes": [node("nvidiactl".to_owned())] },
    })
}
