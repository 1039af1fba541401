//! The GPUs of a node: a driver root as NVIDIA's GPU operator lays one out,
//! with a stand-in for the driver's library and device nodes that open.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nvidia_ml::state::{self, Fault, State};

use super::spec::{Gpus, NodeRecord};
use crate::{
    error::{Context as _, Error, Result},
    paths,
};

/// Where a local node has its driver root.
pub const DRIVER_ROOT: &str = "/run/nvidia/driver";
/// Where a Debian driver package puts its libraries, below the driver root.
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
const LIBRARY: &str = "libnvidia-ml.so.1";
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
pub(super) fn install(
    dir: &Path,
    node: &NodeRecord,
    gpus: Gpus,
    program: &Path,
    taken: u64,
) -> Result<()> {
    let driver = dir.join("driver");
    if gpus == Gpus::Real {
        return paths::make_dir(&driver);
    }
    let libraries = driver.join(LIBRARY_DIR);
    paths::make_dir(&libraries)?;
    paths::make_dir(&driver.join("dev"))?;
    let from = built_library(program)?;
    fs::copy(&from, libraries.join(LIBRARY)).doing(|| format!("copying {}", from.display()))?;
    let state = State::from_profile(&node.gpu_profile, usize::from(node.gpus), &node.name)
        .map_err(|error| Error::Usage(format!("--gpu-profile: {error}")))?;
    state
        .store(&state_file(dir))
        .map_err(|error| Error::malformed("the GPUs' state", error))?;
    make_device(&driver.join("dev/nvidiactl"), CONTROL_MINOR)?;
    let minors = GPU_MINORS.end - GPU_MINORS.start;
    for index in 0..u64::from(node.gpus) {
        let minor = GPU_MINORS.start + (taken + index) % minors;
        make_device(&driver.join(format!("dev/nvidia{index}")), minor)?;
    }
    Ok(())
}

/// The state that the stand-in library of the node in `dir` answers from.
pub(super) fn state_file(dir: &Path) -> PathBuf {
    dir.join("driver").join(LIBRARY_DIR).join(state::FILE_NAME)
}

/// Lets something happen to a GPU, live.
///
/// # Errors
///
/// There is no such GPU, or the fault does not apply to it.
pub(super) fn inject(dir: &Path, index: usize, fault: &Fault) -> Result<()> {
    State::inject_into(&state_file(dir), index, fault)
        .map_err(|error| Error::Usage(format!("gpu fault: {error}")))
}

/// cargo puts the library beside the program, or into `deps` where it was only
/// built as a dependency.
fn built_library(program: &Path) -> Result<PathBuf> {
    let name = "libnvidia_ml.so";
    let dir = program.parent().unwrap_or(Path::new("."));
    [dir.join(name), dir.join("deps").join(name)].into_iter().find(|path| path.exists()).ok_or_else(|| {
        Error::Usage(format!(
            "the stand-in for the driver's library is not beside {}; build it with `cargo build -p creo-e2e -p creo-nvml-stand-in`",
            program.display()
        ))
    })
}

fn make_device(path: &Path, minor: u64) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    mknod(
        path,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(TTY_MAJOR, minor),
    )
    .doing(|| format!("making the device node {}", path.display()))?;
    // mknod minds the umask, and a driver's nodes are for everyone.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(path, mode).doing(|| format!("opening {} to all", path.display()))
}
