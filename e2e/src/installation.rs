//! Creo itself on a local cluster: the chart, installed as anyone installs it.

use std::path::Path;

use crate::{
    cluster::{Cluster, DRIVER_ROOT, ImageSet},
    command,
    error::Result,
    paths,
};

/// The namespace that Creo is installed into.
pub const NAMESPACE: &str = "creo-system";
/// The release's name.
pub const RELEASE: &str = "creo";
/// How long Helm waits for the processes to be ready, as Helm writes it.
const HELM_PATIENCE: &str = "180s";

/// The chart of this checkout.
#[must_use]
pub fn chart() -> std::path::PathBuf {
    paths::checkout().join("charts/creo")
}

/// Installs a chart, or upgrades what is installed, and waits until every
/// process is ready.
///
/// # Errors
///
/// Helm fails; the error has what it said.
pub fn install(
    cluster: &Cluster,
    chart: &Path,
    images: &ImageSet,
    values: &[String],
) -> Result<()> {
    let mut helm = cluster.command("helm")?;
    helm.args(["upgrade", "--install", RELEASE])
        .arg(chart)
        .args([
            "--namespace",
            NAMESPACE,
            "--create-namespace",
            "--wait",
            "--timeout",
            HELM_PATIENCE,
        ]);
    for value in local_values(images).iter().chain(values) {
        helm.args(["--set", value]);
    }
    command::output(&mut helm).map(drop)
}

/// Uninstalls Creo; users' objects and their pods stay.
///
/// # Errors
///
/// Helm fails; the error has what it said.
pub fn uninstall(cluster: &Cluster) -> Result<()> {
    let mut helm = cluster.command("helm")?;
    helm.args([
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--timeout",
        HELM_PATIENCE,
    ]);
    command::output(&mut helm).map(drop)
}

/// What a local cluster needs that another does not: images that are there
/// already, GPUs under a driver root of their own, and faults that heal in
/// seconds.
#[must_use]
pub fn local_values(images: &ImageSet) -> Vec<String> {
    vec![
        format!("image.registry={}", images.registry),
        format!("image.tag={}", images.tag),
        "image.pullPolicy=Never".to_owned(),
        format!("devicePlugin.driverRoot={DRIVER_ROOT}"),
        // Where the stand-in's driver tells of partitions; a real one has them in /proc
        // and is not partitioned by anything here.
        "devicePlugin.procfsRoot=/driver-root/proc".to_owned(),
        "devicePlugin.healthyAfter=5s".to_owned(),
    ]
}
