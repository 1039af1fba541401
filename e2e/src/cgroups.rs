//! A cluster's own cgroup directories, made before its kubelets start and
//! removed with them.
//!
//! kubelet makes 30 and more directories below its `cgroupRoot` in each
//! hierarchy and leaves them behind when it is killed, so each cluster gets a
//! root of its own that can be removed whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::error::{Context as _, Error, Result};

const CGROUP_MOUNT: &str = "/sys/fs/cgroup";
const V2_CONTROLLERS: &str = "cgroup.controllers";
/// What the kubelet manages, and so what its root must have on cgroup v2.
const WANTED_V2: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// Without these a kubelet does not start.
const NEEDED: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// The roots of the hierarchies that this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchies {
    /// cgroup v1: one hierarchy a controller.
    V1(Vec<PathBuf>),
    /// cgroup v2: one hierarchy.
    V2(PathBuf),
}

impl Hierarchies {
    /// Looks at what is mounted.
    ///
    /// # Errors
    ///
    /// There are no cgroups, or a controller that the kubelet needs is missing.
    pub fn find() -> Result<Self> {
        let root = Path::new(CGROUP_MOUNT);
        if let Ok(controllers) = fs::read_to_string(root.join(V2_CONTROLLERS)) {
            let present: Vec<&str> = controllers.split_whitespace().collect();
            require(|name| present.contains(&name))?;
            return Ok(Self::V2(root.to_owned()));
        }
        let mounts =
            fs::read_to_string("/proc/self/mounts").doing(|| "reading the mounts".to_owned())?;
        let roots: Vec<PathBuf> = mounts
            .lines()
            .filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                let (point, kind) = (fields.next()?, fields.next()?);
                matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(point))
            })
            .collect();
        require(|name| {
            roots
                .iter()
                .any(|root| root.file_name().is_some_and(|last| last == name))
        })?;
        Ok(Self::V1(roots))
    }

    fn roots(&self) -> Vec<&Path> {
        match self {
            Self::V1(roots) => roots.iter().map(PathBuf::as_path).collect(),
            Self::V2(root) => vec![root.as_path()],
        }
    }

    /// Makes `group` (a path such as `creo-e2e-NAME/gpu-1`) in every hierarchy.
    ///
    /// # Errors
    ///
    /// A directory cannot be made or prepared.
    pub fn create(&self, group: &Path) -> Result<()> {
        for root in self.roots() {
            let mut dir = root.to_owned();
            for part in group {
                let parent = dir.clone();
                dir.push(part);
                fs::create_dir_all(&dir)
                    .doing(|| format!("making the cgroup {}", dir.display()))?;
                match self {
                    Self::V1(_) => copy_cpuset(&parent, &dir)?,
                    Self::V2(_) => delegate(&parent)?,
                }
            }
            if matches!(self, Self::V2(_)) {
                delegate(&dir)?;
            }
        }
        Ok(())
    }

    /// Removes `group` and all below it, deepest first. A directory that still
    /// has a process in it refuses, so nothing alive is lost.
    ///
    /// # Errors
    ///
    /// A directory is still in use.
    pub fn remove(&self, group: &Path) -> Result<()> {
        for root in self.roots() {
            let dir = root.join(group);
            if dir.is_dir() {
                remove_tree(&dir)?;
            }
        }
        Ok(())
    }

    /// The directories of `group` that still exist, for a test to look at.
    #[must_use]
    pub fn remains(&self, group: &Path) -> Vec<PathBuf> {
        self.roots()
            .iter()
            .map(|root| root.join(group))
            .filter(|dir| dir.exists())
            .collect()
    }
}

fn require(present: impl Fn(&str) -> bool) -> Result<()> {
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !present(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Machine(format!(
        "this machine has no cgroup controller for {}; a kubelet cannot run here (boot with cgroups enabled)",
        missing.join(", ")
    )))
}

/// On cgroup v1 a new cpuset is empty, and nothing can be put into it.
fn copy_cpuset(parent: &Path, dir: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let from = parent.join(name);
        if from.exists() {
            let value =
                fs::read_to_string(&from).doing(|| format!("reading {}", from.display()))?;
            let to = dir.join(name);
            fs::write(&to, value.trim()).doing(|| format!("writing {}", to.display()))?;
        }
    }
    Ok(())
}

/// On cgroup v2 a parent says which controllers its children have.
fn delegate(dir: &Path) -> Result<()> {
    let path = dir.join(V2_CONTROLLERS);
    let controllers = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
    let wanted: Vec<String> = controllers
        .split_whitespace()
        .filter(|name| WANTED_V2.contains(name))
        .map(|name| format!("+{name}"))
        .collect();
    let path = dir.join("cgroup.subtree_control");
    fs::write(&path, wanted.join(" ")).doing(|| format!("writing {}", path.display()))
}

fn remove_tree(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).doing(|| format!("reading {}", dir.display()))?;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir).doing(|| format!("removing the cgroup {}", dir.display()))
}
