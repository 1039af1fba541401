//! Files under a root that is not this process' own, with links that mean that root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Most links that are followed on the way to one file, as the kernel does.
const LINKS_MAX: usize = 40;

/// The root of another file system tree, as this process sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The tree under this directory.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// Where this path of the tree is for this process. It is for paths without links, such
    /// as [`Self::resolve`] gives.
    #[must_use]
    pub fn join(&self, inside: &Path) -> PathBuf {
        self.0.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The path in the tree, absolute and without links, of what is at this one. A link never
    /// leads out of the tree: an absolute one begins at the tree's root, and nothing is above
    /// that. Nothing where nothing is there.
    #[must_use]
    pub fn resolve(&self, inside: &Path) -> Option<PathBuf> {
        let mut ahead = parts(inside);
        let mut resolved = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            let there = self.join(&next);
            if !fs::symlink_metadata(&there).ok()?.is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            let target = fs::read_link(&there).ok()?;
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                ahead.push_front(part);
            }
        }
        Some(resolved)
    }
}

/// The names on the way, and the steps up.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_mean_the_tree_and_never_lead_out_of_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), "").unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("usr/lib64")).unwrap();
        fs::create_dir_all(tree.join("etc/alternatives")).unwrap();
        fs::write(tree.join("usr/lib64/libcuda.so.570.1"), "").unwrap();
        for (link, target) in [
            ("lib64", "usr/lib64"),
            ("usr/lib64/libcuda.so.1", "/etc/alternatives/cuda"),
            ("etc/alternatives/cuda", "/lib64/libcuda.so.570.1"),
            ("usr/lib64/libcuda.so", "libcuda.so.1"),
            ("up", "../../../../usr"),
            ("outside", "../secret"),
            ("dangling", "nowhere"),
            ("round", "round"),
        ] {
            symlink(target, tree.join(link)).unwrap();
        }
        let root = Root::new(&tree);
        for (path, resolved) in [
            ("/lib64/libcuda.so", Some("/usr/lib64/libcuda.so.570.1")),
            ("lib64/libcuda.so.1", Some("/usr/lib64/libcuda.so.570.1")),
            ("/up/./lib64/../lib64", Some("/usr/lib64")),
            ("/../../usr", Some("/usr")),
            ("/", Some("/")),
            ("/outside", None),
            ("/../secret", None),
            ("/dangling", None),
            ("/round", None),
            ("/usr/lib64/libcuda.so.570.1/x", None),
        ] {
            let found = root.resolve(Path::new(path));
            assert_eq!(found.as_deref(), resolved.map(Path::new), "{path}");
        }
        assert_eq!(root.join(Path::new("/usr")), tree.join("usr"));
    }
}
