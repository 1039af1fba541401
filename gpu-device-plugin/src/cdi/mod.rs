//! The Container Device Interface: a file on the host that tells the container runtime what a
//! container with a GPU needs, so that an image without anything of NVIDIA's driver works on
//! a host without anything of NVIDIA's container toolkit.
//!
//! # Mounts and no hooks
//!
//! A program in the container asks the dynamic linker for `libcuda.so.1`. There are two ways to
//! have it found. What `nvidia-ctk cdi generate` writes mounts each library under the name of
//! its file (`libcuda.so.570.133.20`) at the host's path, and lets hooks make the links in the
//! container and run `ldconfig` there. This file mounts each library under *every* name that it
//! has (its file's, its SONAME, those of the host's links) and needs no hook, because glibc
//! looks into its own directories when `/etc/ld.so.cache` does not know a library. Those
//! directories are `/usr/lib/x86_64-linux-gnu` (or that of the architecture) where Debian's
//! rules hold and `/usr/lib64` elsewhere; a specification cannot know the image, so it is both.
//!
//! The hooks were weighed and left out:
//!
//! - A hook is a program of the host's, run by root for every container, on files of an image
//!   that a stranger made. NVIDIA's own had CVE-2024-0132 and CVE-2025-23266, both a way out of
//!   the container. Here the runtime's own mounts are all there is.
//! - A hook must be installed on the host, and a container cannot start while it is missing.
//!
//! What that costs, and what was looked up in the specifications of CDI and OCI, in containerd
//! 2.4 and runc 1.1:
//!
//! - The number of mounts: two names and two directories make some 150 of them with a driver
//!   of 40 libraries. The start of a container with 65 of them took as long as one without.
//! - `ldconfig -p` in the container does not list the libraries. Triton asks it; it is told by
//!   `TRITON_LIBCUDA_PATH`. Python's `ctypes.util.find_library("cuda")` finds nothing, and
//!   `ctypes.CDLL("libcuda.so.1")`, which everyone uses, does.
//! - The toolkit's hook that prefers a newer `cuda-compat` of the image to an older driver is
//!   not there: such an image sets `LD_LIBRARY_PATH=/usr/local/cuda/compat` itself.
//! - The hook that sets `ModifyDeviceFiles` to 0 in the container's `/proc/driver/nvidia/params`
//!   is not there, and runc allows no mount at that place. The driver's libraries may then make
//!   nodes of other cards when they run as root; the device cgroup refuses to open them.
//! - `LD_LIBRARY_PATH` is not set at all: of two values for one variable the one of CDI wins,
//!   so it would take the place of the image's.
//!
//! What is no trouble: a read-only root file system, since runc makes the mount points before
//! it sets that, in the container's own layer; a directory or file that is missing in the
//! image, since it is made; links in the image such as `/lib64 -> usr/lib64`, `/usr/lib64 ->
//! lib` or an own `libcuda.so.1 -> libcuda.so.550.54.15`, since a destination is resolved
//! inside the container's root and the driver's library lies over what is there; the order,
//! since mounts are sorted by depth.
//!
//! # What differs from `nvidia-ctk cdi generate`
//!
//! Beside the hooks (`create-symlinks`, `update-ldcache`, `enable-cuda-compat`,
//! `disable-device-node-modification`, `chmod`): no `/dev/dri` nodes, which no CUDA program
//! opens and which reach the display; no X.Org modules and configuration, no VDPAU, for the
//! same reason; no `nvidia-imex`, a daemon of the host's; no `all` device, since a container
//! gets what the kubelet counted. Programs are always in `/usr/bin`, wherever the host has
//! them. `NVIDIA_CTK_LIBCUDA_DIR` is not set, which only its own hooks read. The tests beside
//! the local cluster compare the two on one driver, and start containers with this one.
//!
//! # Life of the file
//!
//! The file is written whole or not at all, and only where it differs. It is never removed and
//! never left without devices: a container that starts again needs what it started with, so a
//! GPU that is gone stays in it for as long as the process lives (see [`crate::driver`]).

pub mod driver_files;
pub mod elf;
pub mod existing;
pub mod linker_cache;
pub mod root;
pub mod spec;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::inventory::Gpu;
use crate::resource::Resource;
pub use driver_files::{DriverFiles, Place};
pub use existing::ExistingError;
pub use spec::{LeftOut, Node, Spec};

/// Where runtimes find what a machine's owner specified; the one for what programs write goes
/// before it.
pub const STATIC_DIRECTORY: &str = "/etc/cdi";

/// How GPUs get into containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// Where the driver is.
    pub place: Place,
    /// The kind of the specification.
    pub kind: Resource,
    /// Where the specification comes from.
    pub source: Source,
}

/// Where the specification comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// This plugin writes it into this directory.
    Own(PathBuf),
    /// It is on the host already, in one of these directories, and is only read. A later
    /// directory goes before an earlier one.
    Existing(Vec<PathBuf>),
    /// There is none, because the runtime knows no CDI.
    Off,
}

/// What the answer for a container is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prepared {
    /// Full names of CDI devices, by UUID of the GPU or of the partition; none where CDI is
    /// off.
    pub names: BTreeMap<String, String>,
    /// The device nodes of each GPU and partition, for whoever gives them one by one.
    pub nodes: BTreeMap<String, Vec<Node>>,
    /// The GPUs and partitions that no container can get, and why.
    pub left_out: Vec<LeftOut>,
    /// Whether the specification was written just now.
    pub is_new: bool,
}

/// There is no specification that can be used.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It is not there.
    #[error(transparent)]
    Existing(#[from] ExistingError),
}

impl Injection {
    /// Sees to it that containers can get these GPUs and their partitions. It waits for the
    /// disk.
    pub fn prepare(&self, gpus: &[&Gpu]) -> Result<Prepared, CdiError> {
        let kind = &self.kind;
        let spec = Spec::new(kind, gpus, &DriverFiles::find(&self.place, gpus));
        let mut prepared = Prepared {
            nodes: spec.nodes(),
            left_out: spec.left_out().to_vec(),
            ..Prepared::default()
        };
        match &self.source {
            Source::Own(directory) => {
                prepared.is_new = write(directory, kind, &spec)?;
                let names = spec.names();
                prepared.names = names
                    .map(|uuid| (uuid.to_owned(), kind.cdi_device(uuid)))
                    .collect();
            }
            Source::Existing(directories) => {
                let directories: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
                (prepared.names, prepared.left_out) = existing::names(&directories, kind, gpus)?;
            }
            Source::Off => {}
        }
        Ok(prepared)
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
