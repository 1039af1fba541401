//! Where the driver's library is.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The name that programs load: it stays the same over all versions of the driver.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";

/// Where distributions and driver containers put the library, under the driver's root.
const DIRECTORIES: [&str; 9] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "lib/x86_64-linux-gnu",
    "lib/aarch64-linux-gnu",
    "lib64",
    "lib",
];

/// Which library to load, and which device nodes go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The library, where somebody named it.
    pub library: Option<PathBuf>,
    /// The driver's root as this process sees it.
    pub root: PathBuf,
    /// Where this process sees the kernel's `/sys`.
    pub sysfs: PathBuf,
}

/// A driver that can be told from the one that was there before: another file of the library
/// or other device nodes are a reason to look at everything anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footprint {
    library: Option<(u64, u64, i64)>,
    nodes: Vec<OsString>,
}

impl Source {
    /// The path of the library: the named one, else the first that exists under the root,
    /// else (when the root is that of this process) its bare name, for the loader to find.
    ///
    /// The error says what was looked for and what to do.
    pub fn find(&self) -> Result<PathBuf, String> {
        if let Some(named) = &self.library {
            return if named.is_file() {
                Ok(named.clone())
            } else {
                Err(format!(
                    "--nvml-library {} is not there; name the driver's {LIBRARY_NAME}",
                    named.display()
                ))
            };
        }
        let found = DIRECTORIES
            .iter()
            .map(|directory| self.root.join(directory).join(LIBRARY_NAME))
            .find(|path| path.is_file());
        match found {
            Some(path) => Ok(path),
            None if self.root == Path::new("/") => Ok(PathBuf::from(LIBRARY_NAME)),
            None => Err(format!(
                "no NVIDIA driver: {LIBRARY_NAME} is not under {}; install the driver, or name its root with --driver-root",
                self.root.display()
            )),
        }
    }

    /// What the driver looks like from outside now.
    #[must_use]
    pub fn footprint(&self) -> Footprint {
        let library = self
            .find()
            .ok()
            .and_then(|path| fs::metadata(path).ok())
            .map(|file| (file.dev(), file.ino(), file.mtime()));
        let mut nodes: Vec<OsString> = fs::read_dir(self.root.join("dev"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| is_gpu_node(name.as_encoded_bytes()))
            .collect();
        nodes.sort();
        Footprint { library, nodes }
    }
}

/// Whether this is `nvidia` and a number.
fn is_gpu_node(name: &[u8]) -> bool {
    name.strip_prefix(b"nvidia")
        .is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(root: &Path) -> Source {
        Source {
            library: None,
            root: root.to_owned(),
            sysfs: PathBuf::from("/sys"),
        }
    }

    #[test]
    fn the_library_is_found_where_distributions_put_it() {
        for directory in DIRECTORIES {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(directory).join(LIBRARY_NAME);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            assert_eq!(source(root.path()).find().unwrap(), path);
        }
    }

    #[test]
    fn a_root_without_a_library_is_said_to_be_without_a_driver() {
        let root = tempfile::tempdir().unwrap();
        let refused = source(root.path()).find().unwrap_err();
        assert!(refused.starts_with("no NVIDIA driver: libnvidia-ml.so.1 is not under"));
        assert!(refused.contains("--driver-root"));
    }

    #[test]
    fn a_named_library_that_is_not_there_is_said_by_its_name() {
        let source = Source {
            library: Some(PathBuf::from("/nowhere/libnvidia-ml.so.1")),
            root: PathBuf::from("/"),
            sysfs: PathBuf::from("/sys"),
        };
        assert!(
            source
                .find()
                .unwrap_err()
                .contains("/nowhere/libnvidia-ml.so.1")
        );
    }

    #[test]
    fn a_new_gpu_node_or_another_library_changes_the_footprint_and_nothing_else_does() {
        let root = tempfile::tempdir().unwrap();
        let library = root.path().join("usr/lib").join(LIBRARY_NAME);
        fs::create_dir_all(library.parent().unwrap()).unwrap();
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(&library, "1").unwrap();
        let source = source(root.path());
        let first = source.footprint();
        for other in ["nvidiactl", "nvidia-uvm", "null", "nvidia", "nvidia0x"] {
            fs::write(root.path().join("dev").join(other), "").unwrap();
        }
        assert_eq!(source.footprint(), first);
        fs::write(root.path().join("dev/nvidia0"), "").unwrap();
        let second = source.footprint();
        assert_ne!(second, first);
        fs::write(root.path().join("new"), "2").unwrap();
        fs::rename(root.path().join("new"), &library).unwrap();
        assert_ne!(source.footprint(), second);
    }
}
