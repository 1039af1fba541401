//! The GPUs of a node: a driver root as NVIDIA's GPU operator lays one out,
//! with a stand-in for the driver's library and device nodes that open.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, SFlag, makedev, minor, mknod};
use nvidia_ml::{
    install,
    state::{Fault, State},
};

use super::spec::{Gpus, NodeRecord};
use crate::{
    error::{Context as _, Error, Result},
    paths,
};

/// Where a local node has its driver root.
pub const DRIVER_ROOT: &str = "/run/nvidia/driver";
/// Virtual terminals that nobody uses open as soon as the device cgroup allows
/// it; a device number that no driver has would answer ENXIO even then.
const TTY_MAJOR: u64 = 4;
const GPU_MINORS: std::ops::Range<u64> = 41..63;
const CONTROL_MINOR: u64 = 63;

/// Puts the driver root of `node` below its folder.
///
/// # Errors
///
/// The stand-in library was not built, or the profile is not known.
pub(super) fn install(cluster: &Path, dir: &Path, node: &NodeRecord, gpus: Gpus) -> Result<()> {
    let driver = dir.join("driver");
    paths::make_dir(&driver.join("dev"))?;
    if gpus == Gpus::Real {
        return Ok(());
    }
    let state = State::from_profile(&node.gpu_profile, usize::from(node.gpus), &node.name)
        .map_err(|error| Error::Usage(format!("--gpu-profile: {error}")))?
        .with_layout(node.gpu_layout)
        .map_err(|error| Error::Usage(format!("--gpu-layout: {error}")))?;
    let library = install::built_library().ok_or_else(|| {
        Error::Usage(
            "the stand-in for the driver's library was not built: `cargo build -p creo-e2e -p creo-nvml-stand-in`"
                .to_owned(),
        )
    })?;
    install::install_root(&library, &driver, &state)
        .map_err(|error| Error::malformed("the stand-in library", error))?;
    make_device(&driver.join("dev/nvidiactl"), CONTROL_MINOR)?;
    match_devices(cluster, dir)
}

/// The state that the stand-in library of the node in `dir` answers from.
pub(super) fn state_file(dir: &Path) -> PathBuf {
    State::path_in(&dir.join("driver").join(install::LIBRARY_DIRECTORY))
}

/// What the stand-in library of the node in `dir` answers.
///
/// # Errors
///
/// There is no such file, or it is no state.
pub(super) fn state(dir: &Path) -> Result<State> {
    State::load(&state_file(dir)).map_err(|error| Error::malformed("the GPUs' state", error))
}

/// Lets something happen to a GPU, live.
///
/// # Errors
///
/// There is no such GPU, or the fault does not apply to it.
pub(super) fn inject(cluster: &Path, dir: &Path, index: usize, fault: &Fault) -> Result<()> {
    State::inject_into(&state_file(dir), index, fault)
        .map_err(|error| Error::Usage(format!("gpu fault: {error}")))?;
    match_devices(cluster, dir)
}

/// Makes the device nodes of the GPUs that are there and removes those of the
/// others, and tells of their partitions below the root's `proc`, as a driver does.
fn match_devices(cluster: &Path, dir: &Path) -> Result<()> {
    let state = state(dir)?;
    install::install_capabilities(&dir.join("driver/proc"), &state)
        .map_err(|error| Error::malformed("the stand-in library", error))?;
    let capabilities = dir.join("driver/dev/nvidia-caps");
    paths::make_dir(&capabilities)?;
    for minor in install::capability_minors(&state) {
        let path = capabilities.join(format!("nvidia-cap{minor}"));
        if !path.exists() {
            make_device(&path, CONTROL_MINOR)?;
        }
    }
    for gpu in &state.gpus {
        let path = dir.join(format!("driver/dev/nvidia{}", gpu.minor));
        match (gpu.present, path.exists()) {
            (true, false) => make_device(&path, free_minor(cluster)?)?,
            (false, true) => {
                fs::remove_file(&path).doing(|| format!("removing {}", path.display()))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// A minor that no GPU of the cluster has, so that each can be told from every
/// other; the first one again where there are more GPUs than terminals.
fn free_minor(cluster: &Path) -> Result<u64> {
    let nodes = cluster.join("nodes");
    let reading = || format!("reading {}", nodes.display());
    let mut taken = BTreeSet::new();
    for node in fs::read_dir(&nodes).doing(reading)?.flatten() {
        let devices = fs::read_dir(node.path().join("driver/dev"))
            .into_iter()
            .flatten()
            .flatten();
        taken.extend(devices.filter_map(|device| Some(minor(device.metadata().ok()?.rdev()))));
    }
    Ok(GPU_MINORS
        .clone()
        .find(|minor| !taken.contains(minor))
        .unwrap_or(GPU_MINORS.start))
}

fn make_device(path: &Path, minor: u64) -> Result<()> {
    let mode = Mode::from_bits_truncate(0o666);
    mknod(path, SFlag::S_IFCHR, mode, makedev(TTY_MAJOR, minor))
        .doing(|| format!("making the device node {}", path.display()))?;
    // mknod minds the umask, and a driver's nodes are for everyone.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
        .doing(|| format!("opening {} to all", path.display()))
}
