//! The chart: what it renders, and what becomes of a cluster that it is
//! installed, upgraded and uninstalled on.

mod conformance;
mod rendering;
mod upgrade;

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use creo_e2e::{
    command,
    components::{self, Programs},
    installation,
    progress::Progress,
};

/// The one value that has no default.
const REGISTRY: &str = "image.registry=registry.example.com/creo";

/// Values under which the most is left out.
const SWITCHED_OFF: [&str; 5] = [
    "operator.replicas=1",
    "devicePlugin.enabled=false",
    "admissionPolicies.enabled=false",
    "rbac.aggregateToUserRoles=false",
    "metrics.annotations=false",
];

fn programs() -> Programs {
    let needed = [components::HELM, components::KUBECONFORM];
    components::ensure(&needed, &Progress::stderr()).expect("helm and kubeconform are built")
}

/// Helm, which reaches no cluster.
fn helm(arguments: &[&str]) -> Command {
    let mut helm = Command::new(programs().path("helm").expect("there is helm"));
    helm.args(arguments);
    helm
}

fn with(mut helm: Command, values: &[impl AsRef<str>]) -> Command {
    for value in values {
        helm.args(["--set", value.as_ref()]);
    }
    helm
}

/// `helm template` of the chart of this checkout.
fn template() -> Command {
    let mut helm = helm(&["template", "creo"]);
    helm.arg(installation::chart())
        .args(["--namespace", installation::NAMESPACE]);
    helm
}

fn rendered(mut helm: Command) -> String {
    command::output(&mut helm).expect("the chart is rendered")
}

/// The file with every value of the chart.
fn all_values() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/all-values.yaml")
}

fn with_all_values(mut helm: Command) -> Command {
    helm.arg("--values").arg(all_values());
    helm
}

/// Copies a folder with what its links lead to, as `helm package` does.
fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (from, to) = {
            let entry = entry?;
            (entry.path(), to.join(entry.file_name()))
        };
        if fs::metadata(&from)?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}
