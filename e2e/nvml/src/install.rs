//! Puts the library and its state where a driver would have put it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::elf;
pub use crate::elf::HideError;
use crate::state::{Gpu, State, StoreError};

/// Name under which programs load the driver's library.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";

/// Where Debian's packages and NVIDIA's GPU operator put libraries, below the driver's root.
pub const LIBRARY_DIRECTORY: &str = "usr/lib/x86_64-linux-gnu";

/// Name under which cargo builds the library.
const BUILT_NAME: &str = "libnvidia_ml.so";

/// Libraries of a driver beside NVML, without `.so`, and the names that programs know them by.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("libcuda", &["libcuda.so.1", "libcuda.so"]),
    ("libcudadebugger", &["libcudadebugger.so.1"]),
    ("libnvcuvid", &["libnvcuvid.so.1", "libnvcuvid.so"]),
    ("libnvidia-allocator", &["libnvidia-allocator.so.1"]),
    ("libnvidia-cfg", &["libnvidia-cfg.so.1"]),
    ("libnvidia-encode", &["libnvidia-encode.so.1"]),
    ("libnvidia-gpucomp", &[]),
    ("libnvidia-nvvm", &["libnvidia-nvvm.so.4"]),
    ("libnvidia-opencl", &["libnvidia-opencl.so.1"]),
    (
        "libnvidia-ptxjitcompiler",
        &["libnvidia-ptxjitcompiler.so.1"],
    ),
    // Those that draw, which a container that computes has no use for.
    ("libEGL_nvidia", &["libEGL_nvidia.so.0"]),
    ("libGLX_nvidia", &["libGLX_nvidia.so.0"]),
    ("libnvidia-glcore", &[]),
];

/// Programs of a driver.
const PROGRAMS: &[&str] = &[
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];

/// The library could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Nobody built the library.
    #[error(
        "{BUILT_NAME} is not beside the running program; build it with `cargo build -p creo-nvml-stand-in`"
    )]
    NotBuilt,
    /// The file system refused.
    #[error("cannot install the library in {}: {source}", directory.display())]
    File {
        /// Where it should go.
        directory: PathBuf,
        /// Why it does not.
        source: io::Error,
    },
    /// The state could not be written.
    #[error(transparent)]
    State(#[from] StoreError),
    /// A function could not be taken out.
    #[error(transparent)]
    Hide(#[from] HideError),
}

/// Path of the library that cargo built together with the running program: in `deps` of the
/// program's folder, or beside a test, which lies in `deps` itself.
#[must_use]
pub fn built_library() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let beside = program.parent()?;
    // The one in `deps` first: cargo makes it anew with every dependent, and the one beside
    // the program only when it is asked for by name.
    [
        beside.join("deps").join(BUILT_NAME),
        beside.join(BUILT_NAME),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

/// Copies this library and its state into a directory, which is made where it is
/// missing, and gives the path of the installed library.
///
/// It is a copy and no link, because the loader takes two links for one library.
pub fn install(library: &Path, directory: &Path, state: &State) -> Result<PathBuf, InstallError> {
    install_without(library, directory, state, &[])
}

/// As [`install`], a library that lacks these functions, as one of an older driver does.
pub fn install_without(
    library: &Path,
    directory: &Path,
    state: &State,
    functions: &[&str],
) -> Result<PathBuf, InstallError> {
    let installed = directory.join(LIBRARY_NAME);
    state_into(directory, state)?;
    replace(library, &installed, functions)?;
    Ok(installed)
}

/// As [`install`], with the library that [`built_library`] finds.
pub fn install_built(directory: &Path, state: &State) -> Result<PathBuf, InstallError> {
    install(
        &built_library().ok_or(InstallError::NotBuilt)?,
        directory,
        state,
    )
}

/// Lays out a driver's root as a package of the driver does: libraries under their version
/// with links of the names that programs load, and programs. Gives the path that programs
/// load, a link to the library itself, which lies beside it together with its state.
///
/// The other libraries are empty ones; the programs only say what they are. Device nodes are
/// not made.
pub fn install_root(library: &Path, root: &Path, state: &State) -> Result<PathBuf, InstallError> {
    let directory = root.join(LIBRARY_DIRECTORY);
    let version = &state.driver.version;
    state_into(&directory, state)?;
    let own = format!("libnvidia-ml.so.{version}");
    replace(library, &directory.join(&own), &[])?;
    link(&directory, &own, LIBRARY_NAME)?;
    link(&directory, LIBRARY_NAME, "libnvidia-ml.so")?;
    for (name, links) in LIBRARIES {
        let full = format!("{name}.so.{version}");
        let known_as = links.first().map_or(full.as_str(), |link| *link);
        let path = directory.join(&full);
        fs::write(&path, elf::empty_library(known_as)).map_err(failed(&directory))?;
        let mut target = full.as_str();
        for alias in *links {
            link(&directory, target, alias)?;
            target = alias;
        }
    }
    let programs = root.join("usr/bin");
    fs::create_dir_all(&programs).map_err(failed(&programs))?;
    for program in PROGRAMS {
        let path = programs.join(program);
        fs::write(&path, script(program, version)).map_err(failed(&programs))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed(&programs))?;
    }
    Ok(directory.join(LIBRARY_NAME))
}

fn script(program: &str, version: &str) -> String {
    format!("#!/bin/sh\necho '{program} of the stand-in for the NVIDIA driver, {version}'\n")
}

/// Lays out what the driver tells of partitions under `/proc`: their capabilities, and the
/// minor numbers of the device nodes that go with them. To be done again when the partitions
/// changed.
pub fn install_capabilities(procfs: &Path, state: &State) -> Result<(), InstallError> {
    let tree = procfs.join("driver/nvidia/capabilities");
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(failed(&tree))?;
    }
    let write = |path: PathBuf, minor: u32| {
        let directory = path.parent().unwrap_or(procfs);
        fs::create_dir_all(directory).map_err(failed(directory))?;
        // The mode is 0444, as the driver writes it.
        let text = format!("DeviceFileMinor: {minor}\nDeviceFileMode: 292\nDeviceFileModify: 1\n");
        fs::write(&path, text).map_err(failed(directory))
    };
    write(tree.join("mig/config"), 1)?;
    write(tree.join("mig/monitor"), 2)?;
    for gpu in state.gpus.iter().filter(|gpu| gpu.present) {
        for (instance, compute) in gpu.mig.partitions() {
            let own = tree.join(format!("gpu{}/mig/gi{}", gpu.minor, instance.id));
            write(own.join("access"), minor_of(gpu, instance.id, None))?;
            let minor = minor_of(gpu, instance.id, Some(compute.id));
            write(own.join(format!("ci{}/access", compute.id)), minor)?;
        }
    }
    let minors = procfs.join("driver/nvidia-caps");
    fs::create_dir_all(&minors).map_err(failed(&minors))?;
    fs::write(minors.join("mig-minors"), minor_numbers(state)).map_err(failed(&minors))
}

/// The minor numbers of the device nodes of all partitions that there are.
#[must_use]
pub fn capability_minors(state: &State) -> Vec<u32> {
    let present = state.gpus.iter().filter(|gpu| gpu.present);
    present
        .flat_map(|gpu| {
            gpu.mig.partitions().flat_map(|(instance, compute)| {
                [None, Some(compute.id)].map(|compute| minor_of(gpu, instance.id, compute))
            })
        })
        .collect()
}

/// GPU instances, and compute instances in each, that the driver has minor numbers for.
const INSTANCES: u32 = 15;
const COMPUTES: u32 = 8;

/// The minor number of a partition's device node: the driver counts all that there could be.
fn minor_of(gpu: &Gpu, instance: u32, compute: Option<u32>) -> u32 {
    let first = 3 + (gpu.minor * INSTANCES + instance) * (1 + COMPUTES);
    compute.map_or(first, |compute| first + 1 + compute)
}

fn minor_numbers(state: &State) -> String {
    let mut lines = vec!["config 1".to_owned(), "monitor 2".to_owned()];
    for gpu in state.gpus.iter().filter(|gpu| gpu.present) {
        for instance in 0..INSTANCES {
            let own = format!("gpu{}/gi{instance}", gpu.minor);
            let minor = minor_of(gpu, instance, None);
            lines.push(format!("{own}/access {minor}"));
            lines.extend((0..COMPUTES).map(|compute| {
                let minor = minor_of(gpu, instance, Some(compute));
                format!("{own}/ci{compute}/access {minor}")
            }));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

fn state_into(directory: &Path, state: &State) -> Result<(), InstallError> {
    fs::create_dir_all(directory).map_err(failed(directory))?;
    Ok(state.store(&State::path_in(directory))?)
}

/// Puts a copy of the library there, without these functions.
fn replace(library: &Path, installed: &Path, without: &[&str]) -> Result<(), InstallError> {
    let directory = installed.parent().unwrap_or(installed);
    // A process may have the old copy mapped: writing into it would crash that
    // process, renaming over it does not.
    let mut temporary = installed.as_os_str().to_owned();
    temporary.push(".new");
    if without.is_empty() {
        fs::copy(library, &temporary).map_err(failed(directory))?;
    } else {
        let mut bytes = fs::read(library).map_err(failed(directory))?;
        elf::hide(&mut bytes, without)?;
        fs::write(&temporary, bytes).map_err(failed(directory))?;
    }
    fs::rename(&temporary, installed).map_err(failed(directory))
}

/// Makes a link in a directory, in place of one that may be there.
fn link(directory: &Path, target: &str, name: &str) -> Result<(), InstallError> {
    let path = directory.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(directory)(error));
        }
        _ => {}
    }
    symlink(target, &path).map_err(failed(directory))
}

fn failed(directory: &Path) -> impl Fn(io::Error) -> InstallError + use<> {
    let directory = directory.to_owned();
    move |source| InstallError::File {
        directory: directory.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_numbers_are_those_that_the_driver_gives() {
        let directory = tempfile::tempdir().unwrap();
        let mut state = State::from_profile("a100-40gb", 2, "node").unwrap();
        state.inject(1, &"mig 3g.20gb".parse().unwrap()).unwrap();
        install_capabilities(directory.path(), &state).unwrap();
        let read = |path: &str| fs::read_to_string(directory.path().join(path)).unwrap();
        let minors = read("driver/nvidia-caps/mig-minors");
        // Lines of a real /proc/driver/nvidia-caps/mig-minors.
        for line in [
            "config 1",
            "monitor 2",
            "gpu0/gi0/access 3",
            "gpu0/gi0/ci0/access 4",
            "gpu0/gi1/access 12",
            "gpu1/gi0/access 138",
        ] {
            assert!(minors.lines().any(|known| known == line), "{line}");
        }
        let access = read("driver/nvidia/capabilities/gpu1/mig/gi1/ci0/access");
        assert!(access.contains("DeviceFileMinor: 148\n"));
        state.inject(1, &"mig off".parse().unwrap()).unwrap();
        install_capabilities(directory.path(), &state).unwrap();
        assert!(
            !directory
                .path()
                .join("driver/nvidia/capabilities/gpu1")
                .exists()
        );
    }
}
