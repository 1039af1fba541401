//! The images that a cluster runs, as `images/build` lists them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::node::{CONTAINERD_SOCKET, Node};
use crate::{
    components::Programs,
    error::{Context as _, Error, Result},
};

/// The images of one build: a list with an archive for each.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageSet {
    /// The registry that their names begin with.
    pub registry: String,
    /// The tag that they have in common.
    pub tag: String,
    /// The images.
    pub images: Vec<Image>,
}

/// One image.
#[derive(Debug, Clone, Deserialize)]
pub struct Image {
    /// Its name without registry and tag.
    pub name: String,
    /// The OCI archive with it.
    pub archive: PathBuf,
    /// Its whole name.
    pub reference: String,
}

impl ImageSet {
    /// Reads the list that `images/build` wrote.
    ///
    /// # Errors
    ///
    /// The file is not there or not such a list.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).doing(|| format!("reading {} (`make images` writes it)", path.display()))?;
        serde_json::from_slice(&text).map_err(|error| Error::malformed(path.display().to_string(), error))
    }

    /// The whole name of an image.
    ///
    /// # Errors
    ///
    /// The list does not have it.
    pub fn reference(&self, name: &str) -> Result<&str> {
        self.images
            .iter()
            .find(|image| image.name == name)
            .map(|image| image.reference.as_str())
            .ok_or_else(|| Error::malformed("the list of images", format!("{name} is not in it")))
    }
}

/// Imports the images that the node does not have yet.
///
/// # Errors
///
/// containerd does not take an image.
pub(super) fn import(node: &Node, set: &ImageSet, programs: &Programs) -> Result<usize> {
    let ctr = programs.path("ctr")?.to_string_lossy().into_owned();
    let ctr = format!("'{ctr}' --address {CONTAINERD_SOCKET} --namespace k8s.io images");
    let present = node.control().script(&format!("{ctr} list --quiet"))?;
    let mut imported = 0;
    for image in &set.images {
        if present.lines().any(|name| name == image.reference) {
            continue;
        }
        let archive = image.archive.display();
        // Unpacked at once, so that the first pod does not wait for it.
        node.control().script(&format!(
            "{ctr} import --snapshotter overlayfs --local '{archive}'
            {ctr} label '{}' io.cri-containerd.image=managed >/dev/null",
            image.reference
        ))?;
        imported += 1;
    }
    Ok(imported)
}
