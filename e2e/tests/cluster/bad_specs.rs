//! What the API server refuses, and that it says what to do.

use std::{fs, path::Path};

use creo_e2e::cluster::Cluster;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{ApiResource, DeleteParams, DynamicObject, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::GroupVersionKind,
};
use serde::Deserialize;
use serde_json::Value;

use crate::shared::{Space, beside_others};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BadSpec {
    name: String,
    why: String,
    /// The object as it was before, where the change is what is bad.
    #[serde(default)]
    base: Option<Value>,
    object: Value,
    message: String,
}

fn api(client: &Client, object: &Value, namespace: &str) -> Api<DynamicObject> {
    let kind = object["kind"].as_str().expect("a fixture has a kind");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("creo.cloud", "v1alpha1", kind));
    if kind == "CreoNode" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}

fn parse(value: &Value) -> DynamicObject {
    let mut object: DynamicObject =
        serde_json::from_value(value.clone()).expect("a fixture is an object");
    object.metadata.namespace = None;
    object
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_spec_is_refused_with_what_to_do_instead() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    let client = as_the_operator(&hold.cluster).await;
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bad-specs.yaml");
    let text = fs::read_to_string(path).expect("the fixtures are there");
    let specs: Vec<BadSpec> = serde_saphyr::from_str(&text).expect("the fixtures are good");
    assert!(specs.len() >= 20, "there are {}", specs.len());
    let strict = PostParams {
        field_manager: Some("test".to_owned()),
        ..PostParams::default()
    };
    let mut wrong = Vec::new();
    for spec in &specs {
        let api = api(&client, &spec.object, &space.name);
        let result = match &spec.base {
            None => create_strictly(&client, &api, &spec.object).await,
            Some(base) => {
                api.create(&strict, &parse(base))
                    .await
                    .expect("the base is good");
                let result = replace(&api, &strict, &parse(&spec.object)).await;
                let name = spec.object["metadata"]["name"].as_str();
                api.delete(name.expect("it has a name"), &DeleteParams::default())
                    .await
                    .expect("the base is removed");
                result
            }
        };
        match result {
            Ok(()) => wrong.push(format!("{}: admitted, although {}", spec.name, spec.why)),
            Err(error) if !error.to_string().contains(&spec.message) => {
                wrong.push(format!(
                    "{}: the answer lacks {:?}: {error}",
                    spec.name, spec.message
                ));
            }
            Err(_) => {}
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        specs.len(),
        wrong.join("\n")
    );
    space.remove().await;
}

/// A client that may do everything, under the operator's name: nobody else may
/// write Placements, and it is their schema that is asked for here.
async fn as_the_operator(cluster: &Cluster) -> Client {
    let file = Kubeconfig::read_from(cluster.kubeconfig()).expect("there is a kubeconfig");
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("the kubeconfig is good");
    config.auth_info.impersonate =
        Some("system:serviceaccount:creo-system:creo-operator".to_owned());
    config.auth_info.impersonate_groups = Some(vec!["system:masters".to_owned()]);
    Client::try_from(config).expect("there is a client")
}

/// Replaces an object whatever its version is: the operator writes its status
/// meanwhile.
async fn replace(
    api: &Api<DynamicObject>,
    params: &PostParams,
    wanted: &DynamicObject,
) -> kube::Result<()> {
    let name = wanted.name_any();
    loop {
        let mut changed = wanted.clone();
        changed.metadata.resource_version = api.get(&name).await?.metadata.resource_version;
        match api.replace(&name, params, &changed).await {
            Err(kube::Error::Api(status)) if status.is_conflict() => {}
            result => return result.map(drop),
        }
    }
}

/// Creates as kubectl does: unknown fields are an error, not pruned.
async fn create_strictly(
    client: &Client,
    api: &Api<DynamicObject>,
    object: &Value,
) -> kube::Result<()> {
    let body = serde_json::to_vec(&parse(object)).expect("it is JSON");
    let url = format!("{}?fieldValidation=Strict", api.resource_url());
    let request = http::Request::post(url)
        .header("content-type", "application/json")
        .body(body)
        .expect("it is a request");
    client.request::<Value>(request).await.map(drop)
}
