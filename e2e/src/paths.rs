//! Where things lie on the machine: what is built once, and what a cluster
//! leaves on disk while it runs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use crate::error::{Context as _, Error, Result};

/// A unix socket's path has 107 bytes at most, and the longest one below a
/// cluster's folder is `nodes/NODE/control.sock`.
const LONGEST_SOCKET_PATH: usize = 107;
const LONGEST_SOCKET_NAME: usize = "/nodes/".len() + MAX_NODE_NAME + "/control.sock".len();

/// The longest name that a node of a local cluster has, in bytes.
pub const MAX_NODE_NAME: usize = 12;
/// The longest name that a local cluster may have, in bytes.
pub const MAX_CLUSTER_NAME: usize = 24;

/// The folder for everything outside the checkout:
/// `CREO_CACHE_DIR`, or `/var/cache/creo-e2e`.
#[must_use]
pub fn cache_root() -> PathBuf {
    env::var_os("CREO_CACHE_DIR")
        .filter(|value| !value.is_empty())
        .map_or_else(|| PathBuf::from("/var/cache/creo-e2e"), PathBuf::from)
}

/// Where the programs of Kubernetes lie, by the hash of what they are built from.
#[must_use]
pub fn components_root() -> PathBuf {
    cache_root().join("components")
}

/// The folder of all clusters of this machine.
#[must_use]
pub fn clusters_root() -> PathBuf {
    cache_root().join("clusters")
}

/// The folder of the cluster `name`, after a look at the name.
///
/// # Errors
///
/// The name is no DNS label, or the path would be too long for a socket.
pub fn cluster_dir(name: &str) -> Result<PathBuf> {
    let fits = !name.is_empty()
        && name.len() <= MAX_CLUSTER_NAME
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !fits {
        return Err(Error::Usage(format!(
            "--name {name}: a cluster's name has 1 to {MAX_CLUSTER_NAME} lower-case letters, digits and inner hyphens"
        )));
    }
    let dir = clusters_root().join(name);
    if dir.as_os_str().len() + LONGEST_SOCKET_NAME > LONGEST_SOCKET_PATH {
        return Err(Error::Usage(format!(
            "the folder {} is too long for the sockets below it; set CREO_CACHE_DIR to a shorter path",
            dir.display()
        )));
    }
    Ok(dir)
}

/// The names of the clusters that have a folder, in order.
///
/// # Errors
///
/// The folder cannot be read.
pub fn cluster_names() -> Result<Vec<String>> {
    let root = clusters_root();
    if !root.exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&root).doing(|| format!("reading {}", root.display()))? {
        let entry = entry.doing(|| format!("reading {}", root.display()))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The checkout that this program was built from.
#[must_use]
pub fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Makes a folder and all above it.
///
/// # Errors
///
/// The folder cannot be made.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).doing(|| format!("making the folder {}", path.display()))
}

/// Writes a file whole.
///
/// # Errors
///
/// The file cannot be written.
pub fn write_file(path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, text).doing(|| format!("writing {}", path.display()))
}
