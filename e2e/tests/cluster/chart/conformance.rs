//! The chart's output against what the API server says and does: kubeconform
//! with the server's own schemas, and Pod Security.

use std::{fs, path::Path, process::Command};

use creo_e2e::{
    installation, samples,
    schemas::{self, Schemas},
};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{REGISTRY, SWITCHED_OFF, programs, rendered, template, with, with_all_values};
use crate::shared::{Space, beside_others, eventually};

/// What kubeconform says of a manifest.
#[derive(Debug, Deserialize)]
struct Verdict {
    resources: Vec<Resource>,
    summary: Summary,
}

#[derive(Debug, Deserialize)]
struct Resource {
    kind: String,
    name: String,
    status: String,
    msg: String,
}

#[derive(Debug, Deserialize)]
struct Summary {
    valid: u32,
    invalid: u32,
    errors: u32,
    skipped: u32,
}

impl Verdict {
    fn assert_good(&self, at_least: u32) {
        let Summary {
            valid,
            invalid,
            errors,
            skipped,
        } = self.summary;
        assert_eq!(
            (invalid, errors, skipped),
            (0, 0, 0),
            "{:#?}",
            self.resources
        );
        assert!(valid >= at_least, "only {valid} were looked at");
    }

    /// The one resource that is refused: its kind, its name and why.
    fn refused(&self) -> (&str, &str, &str) {
        let [only] = self.resources.as_slice() else {
            panic!("one is refused: {:#?}", self.resources)
        };
        assert_eq!(only.status, "statusInvalid", "{}", only.msg);
        assert_eq!(
            (
                self.summary.invalid,
                self.summary.errors,
                self.summary.skipped
            ),
            (1, 0, 0)
        );
        (&only.kind, &only.name, &only.msg)
    }
}

/// The schemas of the running API server, as files.
async fn server_schemas(client: &Client) -> TempDir {
    let schemas = eventually(
        "the API server publishes the schemas of Creo's kinds",
        async || Schemas::of(client).await.map_err(|error| error.to_string()),
        |schemas| {
            ["AgentDeployment", "CreoNode", "Placement"]
                .iter()
                .all(|kind| schemas.has("creo.cloud", kind))
        },
    )
    .await;
    let dir = tempfile::tempdir().expect("there is a folder");
    schemas.write(dir.path()).expect("the schemas are written");
    dir
}

fn kubeconform(schemas: &Path, manifest: &str) -> Verdict {
    // It looks at no file of another ending.
    let file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .expect("there is a file");
    fs::write(file.path(), manifest).expect("the manifest is written");
    let output = Command::new(
        programs()
            .path("kubeconform")
            .expect("there is kubeconform"),
    )
    .args([
        "-strict",
        "-summary",
        "-output",
        "json",
        "-schema-location",
        &schemas::location(schemas),
    ])
    .arg(file.path())
    .output()
    .expect("kubeconform starts");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_charts_output_and_the_samples_pass_kubeconform() {
    let hold = beside_others().await;
    let schemas = server_schemas(&hold.client).await;
    let usual = rendered(with(template(), &[REGISTRY]));
    kubeconform(schemas.path(), &usual).assert_good(20);
    kubeconform(schemas.path(), &rendered(with_all_values(template()))).assert_good(20);
    let least = with(with(template(), &[REGISTRY]), &SWITCHED_OFF);
    kubeconform(schemas.path(), &rendered(least)).assert_good(10);
    let mut looked_at = 0;
    for entry in fs::read_dir(samples::dir()).expect("there are samples") {
        let text = fs::read_to_string(entry.expect("it is a file").path()).expect("it is text");
        kubeconform(schemas.path(), &text).assert_good(1);
        looked_at += 1;
    }
    assert!(looked_at >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn kubeconform_refuses_unknown_fields_and_wrong_types_in_kubernetes_kinds_and_creos() {
    let hold = beside_others().await;
    let schemas = server_schemas(&hold.client).await;
    let chart = rendered(with(template(), &[REGISTRY]));
    let sample =
        fs::read_to_string(samples::dir().join("quickstart.yaml")).expect("there is the sample");
    for (manifest, from, to, refused) in [
        (
            &chart,
            "revisionHistoryLimit: 3\n  selector:\n    matchLabels:\n      app.kubernetes.io/name: creo\n      app.kubernetes.io/instance: creo\n      app.kubernetes.io/component: operator",
            "revisionHistoryLimits: 3\n  selector: {}",
            (
                "Deployment",
                "creo-operator",
                "'revisionHistoryLimits' not allowed",
            ),
        ),
        (
            &chart,
            "  replicas: 2\n",
            "  replicas: two\n",
            ("Deployment", "creo-operator", "got string, want integer"),
        ),
        (
            &chart,
            "            type: boolean\n",
            "            typ: boolean\n",
            ("CustomResourceDefinition", "", "'typ' not allowed"),
        ),
        (
            &sample,
            "    profile: llama-cpp\n",
            "    profil: llama-cpp\n",
            ("AgentDeployment", "tiny-chat", "'profil' not allowed"),
        ),
        (
            &sample,
            "    count: 1\n",
            "    count: one\n",
            ("AgentDeployment", "tiny-chat", "got string, want integer"),
        ),
    ] {
        assert!(manifest.contains(from), "nothing to break: {from}");
        let verdict = kubeconform(schemas.path(), &manifest.replacen(from, to, 1));
        let (kind, name, why) = verdict.refused();
        assert_eq!(kind, refused.0, "{why}");
        assert!(
            name.starts_with(refused.1) && why.contains(refused.2),
            "{name}: {why}"
        );
    }
    // A kind that the server does not have is an error, and not skipped.
    let unknown = "apiVersion: creo.cloud/v1alpha1\nkind: Unheard\nmetadata: {name: x}\n";
    let verdict = kubeconform(schemas.path(), unknown);
    assert_eq!(
        (verdict.summary.errors, verdict.summary.skipped),
        (1, 0),
        "{:?}",
        verdict.resources
    );
}

/// The pods that a manifest's controllers make, by their controllers' names.
fn pods_of(manifest: &str) -> Vec<(String, Pod)> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).expect("it is YAML");
    documents
        .into_iter()
        .filter(|document| document.pointer("/spec/template/spec/containers").is_some())
        .map(|mut document| {
            let name = document["metadata"]["name"]
                .as_str()
                .expect("it has a name")
                .to_owned();
            let mut pod = document["spec"]["template"].take();
            pod["metadata"]["name"] = json!(name);
            (name, serde_json::from_value(pod).expect("it is a pod"))
        })
        .collect()
}

/// Asks the API server whether it would take the pod in this namespace.
async fn try_pod(space: &Space, pod: &Pod) -> kube::Result<()> {
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .expect("it has one");
    let accounts: Api<ServiceAccount> = Api::namespaced(space.client.clone(), &space.name);
    let wanted =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": account } });
    accounts
        .patch(
            &account,
            &PatchParams::apply("test").force(),
            &Patch::Apply(wanted),
        )
        .await?;
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    space.pods().create(&dry_run, pod).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_but_the_device_plugins_meets_pod_security_restricted() {
    let hold = beside_others().await;
    let restricted = Space::restricted(&hold.client).await;
    let privileged = Space::privileged(&hold.client).await;
    let usual = with(template(), &installation::local_values(hold.images));
    let everything = with_all_values(template());
    for manifest in [rendered(usual), rendered(everything)] {
        let mut pods = pods_of(&manifest);
        for (_, pod) in &mut pods {
            // A class of one's own does not exist here, and is no matter of Pod Security.
            pod.spec
                .as_mut()
                .expect("a pod has a spec")
                .priority_class_name = None;
        }
        let names: Vec<&str> = pods.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["creo-gpu-device-plugin", "creo-operator"],
            "these are the processes"
        );
        for (name, pod) in &pods {
            try_pod(&privileged, pod)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let answer = try_pod(&restricted, pod).await;
            if name == "creo-gpu-device-plugin" {
                let error = answer.expect_err("it is privileged").to_string();
                // The processes of others are told by the host's numbers alone.
                let violates = r#"violates PodSecurity "restricted:latest": host namespaces (hostPID=true), privileged"#;
                assert!(error.contains(violates), "{error}");
            } else {
                answer.unwrap_or_else(|error| panic!("{name}: {error}"));
            }
        }
    }
    restricted.remove().await;
    privileged.remove().await;
}
