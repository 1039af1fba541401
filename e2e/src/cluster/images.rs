//! The images that a cluster runs, as `images/build` lists them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde::{Deserialize, Serialize};

use super::node::{CONTAINERD_SOCKET, Node};
use crate::{
    command,
    components::Programs,
    error::{Context as _, Error, Result},
    paths,
    progress::Progress,
};

/// The image that every pod's sandbox runs.
const PAUSE: &str = "pause";

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
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Its name without registry and tag.
    pub name: String,
    /// The OCI archive with it.
    pub archive: PathBuf,
    /// The name that it has within the archive, which follows from its content.
    pub imported: String,
    /// The name that manifests use.
    pub reference: String,
}

impl ImageSet {
    /// Builds all images with `images/build`, which does nothing for those that
    /// are built.
    ///
    /// # Errors
    ///
    /// A build fails; the error has its last lines.
    pub fn build(progress: &Progress) -> Result<Self> {
        let step = progress.step("build the images");
        let out = paths::cache_root().join("images");
        run_build(&out, &[], |line| {
            // One a step of the build, with its time; there is nothing to say
            // of what is up to date.
            if line.ends_with(" s)") {
                step.line(line);
            }
        })?;
        let set = Self::read(&out.join("images.json"))?;
        step.done(&format!("tag {}", set.tag));
        Ok(set)
    }

    /// Builds the one image that the cluster itself needs: what holds a pod's
    /// namespaces.
    ///
    /// # Errors
    ///
    /// The build fails; the error has its last lines.
    pub fn build_pause() -> Result<Image> {
        let out = paths::cache_root().join("images/pause");
        run_build(&out, &["--only", PAUSE], |_| {})?;
        let set = Self::read(&out.join("images.json"))?;
        set.images
            .into_iter()
            .find(|image| image.name == PAUSE)
            .ok_or_else(|| Error::malformed("the list of images", "pause is not in it"))
    }

    /// The name of an image that manifests use.
    ///
    /// # Errors
    ///
    /// The list does not have it.
    pub fn reference(&self, name: &str) -> Result<&str> {
        let found = self.images.iter().find(|image| image.name == name);
        found
            .map(|image| image.reference.as_str())
            .ok_or_else(|| Error::malformed("the list of images", format!("{name} is not in it")))
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).doing(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::malformed(path.display().to_string(), error))
    }
}

fn run_build(out: &Path, arguments: &[&str], said: impl Fn(&str)) -> Result<()> {
    let mut build = Command::new(paths::checkout().join("e2e/images/build"));
    build.arg("--out").arg(out).args(arguments);
    command::output_by_line(&mut build, |line| {
        said(line.strip_prefix("images: ").unwrap_or(line));
    })
}

/// Imports the images that the node does not have yet.
///
/// # Errors
///
/// containerd does not take an image.
pub(super) fn import(node: &Node, images: &[Image], programs: &Programs) -> Result<()> {
    let ctr = programs.path("ctr")?.to_string_lossy().into_owned();
    let ctr = format!("'{ctr}' --address {CONTAINERD_SOCKET} --namespace k8s.io images");
    // containerd may have been started a moment ago.
    let list = format!(
        "for try in $(seq 600); do {ctr} list --quiet 2>/dev/null && exit 0; sleep 0.05; done
        {ctr} list --quiet"
    );
    let present = node.control().script(&list)?;
    for image in images
        .iter()
        .filter(|image| !present.lines().any(|name| name == image.reference))
    {
        node.control().script(&format!(
            "{ctr} import '{}'
            {ctr} tag --force '{}' '{}'",
            image.archive.display(),
            image.imported,
            image.reference
        ))?;
    }
    Ok(())
}
