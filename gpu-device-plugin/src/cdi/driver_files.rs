//! What of the driver a container needs, as it lies on this host.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use super::root::Root;
use super::{elf, linker_cache};
use crate::inventory::Gpu;

/// Device nodes that every container with a GPU needs, where the driver has them.
const NODES: [&str; 4] = [
    "nvidiactl",
    "nvidia-uvm",
    "nvidia-uvm-tools",
    "nvidia-modeset",
];

/// Debian's name of this architecture, which is part of its directories.
const MULTIARCH: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};

/// Where distributions and driver containers put libraries, beside what the linker's list says.
const LIBRARY_DIRECTORIES: [&str; 7] = [
    "/usr/lib/MULTIARCH",
    "/usr/lib/MULTIARCH/nvidia/current",
    "/usr/lib64",
    "/usr/lib",
    "/lib/MULTIARCH",
    "/lib64",
    "/usr/local/nvidia/lib64",
];

/// Libraries whose file tells the driver's version: all others of that version belong to it.
const ANCHORS: [&str; 2] = ["libcuda.so.1", "libnvidia-ml.so.1"];

/// Libraries of the driver that do not carry its version.
const UNVERSIONED: [&str; 2] = ["libnvidia-nvvm70.so.4", "libnvidia-api.so.1"];

/// Names under which programs look for a library although no package has to install them.
const EXTRA_NAMES: [(&str, &str); 3] = [
    ("libcuda", "libcuda.so"),
    ("libnvidia-opticalflow", "libnvidia-opticalflow.so"),
    ("libGLX_nvidia", "libGLX_indirect.so.0"),
];

/// Programs of the driver, and where they may be.
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
const PROGRAM_DIRECTORIES: [&str; 5] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"];

/// What tells loaders of other programming interfaces that this driver is there, and data of
/// its libraries: the path in a container, and where it may be on a host.
const DATA: [(&str, &[&str]); 4] = [
    (
        "/usr/share/nvidia/nvoptix.bin",
        &["/usr/share/nvidia/nvoptix.bin"],
    ),
    (
        "/etc/OpenCL/vendors/nvidia.icd",
        &["/etc/OpenCL/vendors/nvidia.icd"],
    ),
    (
        "/etc/vulkan/icd.d/nvidia_icd.json",
        &[
            "/etc/vulkan/icd.d/nvidia_icd.json",
            "/usr/share/vulkan/icd.d/nvidia_icd.json",
            "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
            "/usr/share/vulkan/icd.d/nvidia_icd.aarch64.json",
        ],
    ),
    (
        "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
        &["/usr/share/glvnd/egl_vendor.d/10_nvidia.json"],
    ),
];

/// Where the kernel looks for firmware, and the driver's in it.
const FIRMWARE_DIRECTORIES: [&str; 2] = ["/lib/firmware/updates", "/lib/firmware"];
const FIRMWARE_PREFIXES: [&str; 2] = ["gsp", "ucodes"];
const FIRMWARE_ENDING: &str = ".bin";

/// Where daemons of the driver listen; the path in a container is the one that their clients
/// open.
const SOCKETS: [(&str, &str); 2] = [
    (
        "/var/run/nvidia-persistenced/socket",
        "/run/nvidia-persistenced/socket",
    ),
    (
        "/var/run/nvidia-fabricmanager/socket",
        "/run/nvidia-fabricmanager/socket",
    ),
];
/// The pipes of the multi-process service, where it runs on the host.
const MPS: &str = "/tmp/nvidia-mps";

/// Most bytes that are read of a list of the system's.
const LIST_BYTES_MAX: u64 = 16 << 20;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 50_000;

/// Where the driver is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The driver's root on the host, where the runtime that reads the specification lives.
    pub root: PathBuf,
    /// The same root as this process sees it.
    pub mount: PathBuf,
    /// Where the kernel's `/proc` is, for what it says of MIG; `/proc` but in a test.
    pub procfs: PathBuf,
}

/// What was found of the driver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverFiles {
    /// The driver's root on the host.
    pub(super) root: PathBuf,
    /// Version that its libraries carry, such as `570.133.20`, where they do.
    pub(super) version: Option<String>,
    /// Names in `/dev` for every container.
    pub(super) nodes: Vec<&'static str>,
    /// Libraries in the root, by each name that a program may ask for.
    pub(super) libraries: BTreeMap<String, PathBuf>,
    /// Programs, data and firmware in the root, by the path in a container.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Sockets and pipes in the root, by the path in a container.
    pub(super) sockets: BTreeMap<&'static str, PathBuf>,
    /// Number of the device that opens a partition or a part of it.
    pub(super) capabilities: BTreeMap<Capability, u32>,
}

/// The right to use a partition, which is a device node of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Capability {
    /// Minor number of the card.
    pub gpu: u32,
    /// Number of the GPU instance.
    pub gpu_instance: u32,
    /// Number of the compute instance in it; without, it is the right to the GPU instance.
    pub compute_instance: Option<u32>,
}

impl Capability {
    /// Its name in the file of minor numbers.
    fn name(self) -> String {
        let (gpu, instance) = (self.gpu, self.gpu_instance);
        match self.compute_instance {
            None => format!("gpu{gpu}/gi{instance}/access"),
            Some(compute) => format!("gpu{gpu}/gi{instance}/ci{compute}/access"),
        }
    }

    /// Its own file, which is there while the partition is.
    fn file(self) -> String {
        let name = self.name();
        let (gpu, rest) = name.split_once('/').unwrap_or((&name, ""));
        format!("driver/nvidia/capabilities/{gpu}/mig/{rest}")
    }
}

impl DriverFiles {
    /// Looks for the driver, and for what opens the partitions of these GPUs. It waits for
    /// the disk.
    #[must_use]
    pub fn find(place: &Place, gpus: &[&Gpu]) -> Self {
        let root = Root::new(&place.mount);
        let libraries = Libraries::find(&root);
        let mut files = programs_and_data(&root);
        if let Some(version) = &libraries.version {
            files.extend(firmware(&root, version));
        }
        Self {
            root: place.root.clone(),
            nodes: NODES
                .into_iter()
                .filter(|name| is_there(&root, &format!("/dev/{name}")))
                .collect(),
            version: libraries.version,
            libraries: libraries.by_name,
            files,
            sockets: sockets(&root),
            capabilities: capabilities(&place.procfs, gpus),
        }
    }

    /// Whether the library that every CUDA program needs was found.
    #[must_use]
    pub fn has_cuda(&self) -> bool {
        self.libraries.contains_key("libcuda.so.1")
    }

    /// Directories of a container in which glibc looks for a library by itself: Debian's and
    /// its descendants', and that of the others.
    pub(super) fn container_directories() -> [String; 2] {
        [format!("/usr/lib/{MULTIARCH}"), "/usr/lib64".to_owned()]
    }
}

fn is_there(root: &Root, path: &str) -> bool {
    root.resolve(Path::new(path)).is_some()
}

/// The libraries of the driver, while they are looked for.
struct Libraries {
    version: Option<String>,
    by_name: BTreeMap<String, PathBuf>,
}

impl Libraries {
    fn find(root: &Root) -> Self {
        let listed = read_at_most(&root.join(Path::new("/etc/ld.so.cache")));
        let listed = linker_cache::libraries(&listed);
        let directories = directories(root, &listed);
        let mut found = Self {
            version: None,
            by_name: BTreeMap::new(),
        };
        for name in ANCHORS.into_iter().chain(UNVERSIONED) {
            let on_list = listed
                .iter()
                .filter(|(listed, _)| *listed == name)
                .map(|(_, path)| path.clone());
            let in_directories = directories.iter().map(|directory| directory.join(name));
            let file = on_list
                .chain(in_directories)
                .filter_map(|path| root.resolve(&path))
                .find(|path| found.add(root, name, path));
            if ANCHORS.contains(&name) && found.version.is_none() {
                found.version = file.as_deref().and_then(version);
            }
        }
        let entries: Vec<Entry> = directories
            .iter()
            .flat_map(|directory| entries(root, directory))
            .collect();
        if let Some(version) = found.version.clone() {
            let ending = format!(".so.{version}");
            for entry in entries.iter().filter(|entry| !entry.is_link) {
                if entry.name.ends_with(&ending) {
                    found.add(root, &entry.name, &entry.path());
                }
            }
        }
        found.add_links(root, &entries);
        found
    }

    /// Adds a library under this name and under those that it has by itself, unless another
    /// one was found under it before. Gives whether it is a library at all.
    fn add(&mut self, root: &Root, name: &str, file: &Path) -> bool {
        let Some(library) = elf::library(&root.join(file)) else {
            return false;
        };
        let own = file.file_name().and_then(OsStr::to_str);
        let extra = EXTRA_NAMES
            .iter()
            .filter(|(stem, _)| *stem == self::stem(name))
            .map(|(_, extra)| *extra);
        let names = [Some(name), own, library.soname.as_deref()];
        for name in names.into_iter().flatten().chain(extra) {
            self.by_name
                .entry(name.to_owned())
                .or_insert_with(|| file.to_owned());
        }
        true
    }

    /// Adds the names that links of the host give to what was found.
    fn add_links(&mut self, root: &Root, entries: &[Entry]) {
        let known: BTreeSet<PathBuf> = self.by_name.values().cloned().collect();
        let stems: BTreeSet<String> = known
            .iter()
            .filter_map(|path| path.file_name()?.to_str())
            .map(|name| stem(name).to_owned())
            .collect();
        for entry in entries.iter().filter(|entry| entry.is_link) {
            if !stems.contains(stem(&entry.name)) {
                continue;
            }
            if let Some(file) = root.resolve(&entry.path())
                && known.contains(&file)
            {
                self.by_name.entry(entry.name.clone()).or_insert(file);
            }
        }
    }
}

/// One entry of a directory with libraries.
struct Entry {
    directory: PathBuf,
    name: String,
    is_link: bool,
}

impl Entry {
    fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }
}

/// The libraries' entries of this directory, in the order of their names.
fn entries(root: &Root, directory: &Path) -> Vec<Entry> {
    let read = fs::read_dir(root.join(directory)).into_iter().flatten();
    let mut entries: Vec<Entry> = read
        .take(ENTRIES_MAX)
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kind = entry.file_type().ok()?;
            let is_library = name.starts_with("lib") && name.contains(".so");
            (is_library && (kind.is_file() || kind.is_symlink())).then(|| Entry {
                directory: directory.to_owned(),
                name,
                is_link: kind.is_symlink(),
            })
        })
        .collect();
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    entries
}

/// Where to look for libraries, without links and each once: those of the driver on the
/// linker's list first.
fn directories(root: &Root, listed: &[(&OsStr, PathBuf)]) -> Vec<PathBuf> {
    let of_driver = listed
        .iter()
        .filter(|(name, _)| ANCHORS.iter().any(|anchor| name == anchor))
        .filter_map(|(_, path)| Some(root.resolve(path)?.parent()?.to_owned()));
    let usual = LIBRARY_DIRECTORIES
        .iter()
        .map(|directory| directory.replace("MULTIARCH", MULTIARCH))
        .filter_map(|directory| root.resolve(Path::new(&directory)));
    let mut directories: Vec<PathBuf> = Vec::new();
    for directory in of_driver.chain(usual) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories
}

/// The driver's version in the name of one of its files, such as `libcuda.so.570.133.20`.
fn version(file: &Path) -> Option<String> {
    let (_, version) = file.file_name()?.to_str()?.split_once(".so.")?;
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    // A single number is a SONAME's.
    (version.contains('.') && version.split('.').all(is_number)).then(|| version.to_owned())
}

/// What comes before `.so` in a library's name.
fn stem(name: &str) -> &str {
    name.split_once(".so").map_or(name, |(stem, _)| stem)
}

fn programs_and_data(root: &Root) -> BTreeMap<String, PathBuf> {
    let program = |name: &str| {
        PROGRAM_DIRECTORIES
            .iter()
            .find_map(|directory| file(root, &Path::new(directory).join(name)))
            .map(|path| (format!("/usr/bin/{name}"), path))
    };
    let data = DATA.iter().filter_map(|(in_container, on_host)| {
        let found = on_host.iter().find_map(|path| file(root, Path::new(path)));
        found.map(|path| ((*in_container).to_owned(), path))
    });
    PROGRAMS
        .into_iter()
        .filter_map(program)
        .chain(data)
        .collect()
}

fn file(root: &Root, path: &Path) -> Option<PathBuf> {
    root.resolve(path)
        .filter(|resolved| root.join(resolved).is_file())
}

fn firmware(root: &Root, version: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for directory in FIRMWARE_DIRECTORIES {
        let directory = Path::new(directory).join("nvidia").join(version);
        let Some(resolved) = root.resolve(&directory) else {
            continue;
        };
        let entries = fs::read_dir(root.join(&resolved)).into_iter().flatten();
        for name in entries
            .take(ENTRIES_MAX)
            .flatten()
            .map(|entry| entry.file_name())
        {
            let Some(name) = name.to_str() else { continue };
            let wanted = name.ends_with(FIRMWARE_ENDING)
                && FIRMWARE_PREFIXES
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            if wanted && let Some(path) = file(root, &resolved.join(name)) {
                found
                    .entry(format!("/lib/firmware/nvidia/{version}/{name}"))
                    .or_insert(path);
            }
        }
    }
    found
}

fn sockets(root: &Root) -> BTreeMap<&'static str, PathBuf> {
    let mut found = BTreeMap::new();
    for (in_container, on_host) in SOCKETS {
        let socket = root.resolve(Path::new(on_host)).filter(|path| {
            fs::symlink_metadata(root.join(path)).is_ok_and(|file| file.file_type().is_socket())
        });
        found.extend(socket.map(|path| (in_container, path)));
    }
    let pipes = root
        .resolve(Path::new(MPS))
        // An empty one was left behind: nothing answers there.
        .filter(|path| fs::symlink_metadata(root.join(path).join("control")).is_ok());
    found.extend(pipes.map(|path| (MPS, path)));
    found
}

fn capabilities(procfs: &Path, gpus: &[&Gpu]) -> BTreeMap<Capability, u32> {
    let mut wanted = BTreeSet::new();
    for gpu in gpus {
        for device in gpu.mig.devices() {
            for compute_instance in [None, Some(device.compute_instance)] {
                wanted.insert(Capability {
                    gpu: gpu.minor,
                    gpu_instance: device.gpu_instance,
                    compute_instance,
                });
            }
        }
    }
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    let minors = read_at_most(&procfs.join("driver/nvidia-caps/mig-minors"));
    let minors = minor_numbers(&String::from_utf8_lossy(&minors));
    wanted
        .into_iter()
        .filter_map(|capability| {
            let file = read_at_most(&procfs.join(capability.file()));
            let minor = own_minor(&String::from_utf8_lossy(&file))
                .or_else(|| minors.get(&capability.name()).copied())?;
            Some((capability, minor))
        })
        .collect()
}

/// The number in a capability's own file.
fn own_minor(text: &str) -> Option<u32> {
    text.lines()
        .find_map(|line| line.strip_prefix("DeviceFileMinor:")?.trim().parse().ok())
}

/// The numbers in the file of them all: a name, a space and a number on each line.
fn minor_numbers(text: &str) -> BTreeMap<String, u32> {
    text.lines()
        .filter_map(|line| {
            let (name, minor) = line.split_once(' ')?;
            Some((name.to_owned(), minor.trim().parse().ok()?))
        })
        .collect()
}

/// The file's bytes; none where it cannot be read.
fn read_at_most(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LIST_BYTES_MAX).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    bytes
}
