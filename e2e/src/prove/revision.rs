//! Which state of the sources was tried.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Context as _, Error, Result};

/// A state of the sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Revision {
    /// The full commit id; `None` outside a git checkout.
    pub commit: Option<String>,
    /// Whether the sources differ from that commit.
    pub dirty: bool,
    /// A digest of the difference, empty where there is none. Results of two
    /// different trees are never taken for one another's.
    pub difference: String,
}

impl Revision {
    /// Reads the state of the sources in `checkout`.
    ///
    /// # Errors
    /// When git is there and fails.
    pub fn read(checkout: &Path) -> Result<Self> {
        let unknown = Self {
            commit: None,
            dirty: true,
            difference: "unknown".to_owned(),
        };
        if !checkout.join(".git").exists() {
            return Ok(unknown);
        }
        let commit = git(checkout, &["rev-parse", "HEAD"])?;
        let changed = git(checkout, &["diff", "--no-ext-diff", "--binary", "HEAD"])?;
        let others = git(
            checkout,
            &["ls-files", "--others", "--exclude-standard", "-z"],
        )?;
        let dirty = !changed.is_empty() || !others.is_empty();
        let mut hash = Sha256::new();
        hash.update(&changed);
        for name in others
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            hash.update(name);
            let path = checkout.join(String::from_utf8_lossy(name).as_ref());
            // A file that has gone meanwhile is a difference of its own.
            hash.update(fs::read(path).unwrap_or_default());
        }
        let digest = hash.finalize();
        let digest = digest
            .iter()
            .take(4)
            .fold(0u32, |all, byte| (all << 8) | u32::from(*byte));
        Ok(Self {
            commit: Some(String::from_utf8_lossy(&commit).trim().to_owned()),
            dirty,
            difference: if dirty {
                format!("{digest:08x}")
            } else {
                String::new()
            },
        })
    }

    /// A short name for files: `6afdfbc01234`, or `6afdfbc01234-9f86d081` of a
    /// tree that differs.
    #[must_use]
    pub fn label(&self) -> String {
        let commit = self
            .commit
            .as_deref()
            .and_then(|commit| commit.get(..12))
            .unwrap_or("none");
        if self.dirty {
            format!("{commit}-{}", self.difference)
        } else {
            commit.to_owned()
        }
    }
}

fn git(checkout: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("git")
        .arg("-C")
        .arg(checkout)
        .args(arguments)
        .output()
        .doing(|| format!("running git {}", arguments.join(" ")))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Error::Command {
        command: format!("git {}", arguments.join(" ")),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        fs::write(path.join("file"), "one").expect("a file");
        git(path, &["init", "--quiet"]).expect("a repository");
        git(path, &["add", "file"]).expect("an index");
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.org"];
        git(
            path,
            &[&author[..], &["commit", "--quiet", "-m", "one"]].concat(),
        )
        .expect("a commit");
        directory
    }

    #[test]
    fn a_clean_tree_is_named_by_its_commit_alone() {
        let directory = repository();
        let revision = Revision::read(directory.path()).expect("a revision");
        assert!(!revision.dirty);
        assert_eq!(revision.label().len(), 12);
        assert!(revision.commit.is_some_and(|commit| commit.len() == 40));
    }

    #[test]
    fn two_different_changes_have_two_labels() {
        let directory = repository();
        let mut labels = Vec::new();
        for (file, text) in [
            ("file", "two"),
            ("file", "three"),
            ("new", "four"),
            ("new", "five"),
        ] {
            fs::write(directory.path().join(file), text).expect("a file");
            let revision = Revision::read(directory.path()).expect("a revision");
            assert!(revision.dirty);
            labels.push(revision.label());
        }
        labels.sort();
        labels.dedup();
        assert_eq!(labels.len(), 4, "{labels:?}");
    }

    #[test]
    fn a_folder_without_git_has_no_commit() {
        let directory = tempfile::tempdir().expect("a directory");
        let revision = Revision::read(directory.path()).expect("a revision");
        assert_eq!((revision.commit.as_deref(), revision.dirty), (None, true));
    }
}
