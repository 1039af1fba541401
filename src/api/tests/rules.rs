//! What the CEL rules admit and refuse, without an API server. The specs that
//! must be refused are those that the end-to-end tests send to a real one.

use creo_api::{AgentDeployment, CreoNode, Placement};
use kube::core::cel::{Validator, apply_defaults};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

const BAD_SPECS: &str = include_str!("../../../e2e/fixtures/bad-specs.yaml");

/// A specification that must be refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BadSpec {
    name: String,
    why: String,
    message: String,
    base: Option<Value>,
    object: Value,
}

/// The schema of each kind, by its name.
fn schemas() -> Vec<(String, Value)> {
    let schema = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
        let version = crd.spec.versions.into_iter().next();
        let schema = version.and_then(|version| version.schema).and_then(|schema| schema.open_api_v3_schema);
        (crd.spec.names.kind, serde_json::to_value(schema).unwrap_or_default())
    };
    creo_api::crds().into_iter().map(schema).collect()
}

/// The messages of all rules in a schema.
fn messages(schema: &Value) -> Vec<String> {
    let own = schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten();
    let below = schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(|properties| properties.values());
    own.filter_map(|rule| rule["message"].as_str().map(str::to_owned))
        .chain(below.chain(schema.get("items")).flat_map(messages))
        .collect()
}

/// What the rules of the object's kind say about it.
fn answers(object: &Value, base: Option<&Value>) -> Vec<String> {
    let schemas = schemas();
    let Some((_, schema)) = schemas
        .iter()
        .find(|(kind, _)| object["kind"] == kind.as_str())
    else {
        return vec![format!("{} is no kind", object["kind"])];
    };
    let defaulted = |object: &Value| apply_defaults(schema, object);
    match Validator::new().validate(schema, &defaulted(object), base.map(defaulted).as_ref()) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.into_iter().map(|error| error.message).collect(),
    }
}

fn bad_specs() -> Vec<BadSpec> {
    serde_saphyr::from_str(BAD_SPECS).unwrap_or_default()
}

#[test]
fn each_bad_spec_that_a_rule_refuses_is_answered_with_its_message() {
    let rules: Vec<String> = schemas()
        .iter()
        .flat_map(|(_, schema)| messages(schema))
        .collect();
    let mut refused_by_a_rule = 0;
    for spec in bad_specs() {
        assert!(
            !spec.why.is_empty() && spec.message.len() > 10,
            "{}",
            spec.name
        );
        if rules.iter().any(|rule| rule.contains(&spec.message)) {
            refused_by_a_rule += 1;
            let answers = answers(&spec.object, spec.base.as_ref());
            assert!(
                answers.iter().any(|answer| answer.contains(&spec.message)),
                "{}: {:?} is not in {answers:?}",
                spec.name,
                spec.message
            );
        }
    }
    assert!(
        refused_by_a_rule >= 25,
        "only {refused_by_a_rule} bad specs were refused by a rule"
    );
}

#[test]
fn each_rule_is_shown_by_a_bad_spec() {
    let specs = bad_specs();
    let shown = |rule: &String| specs.iter().any(|spec| rule.contains(&spec.message));
    let silent: Vec<String> = schemas()
        .iter()
        .flat_map(|(_, schema)| messages(schema))
        .filter(|rule| !shown(rule))
        .collect();
    assert!(silent.is_empty(), "no bad spec shows {silent:?}");
}

#[test]
fn what_an_update_starts_from_is_admitted() {
    for base in bad_specs().into_iter().filter_map(|spec| spec.base) {
        assert_eq!(answers(&base, None), Vec::<String>::new());
    }
}

#[cfg(test)]
fn parse<T: DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).expect("the manifest is one of the kind")
}

fn deployment(name: &str, more: &str) -> AgentDeployment {
    parse(&format!(
        "{{apiVersion: creo.cloud/v1alpha1, kind: AgentDeployment, metadata: {{name: {name}}}, spec: {{\
         model: {{name: tiny, image: {{reference: creo-model-tiny}}, path: tiny.gguf}}, \
         engine: {{profile: llama-cpp}}, {more}}}}}"
    ))
}

fn node(kubernetes_node: &str, price: i64) -> CreoNode {
    parse(&format!(
        "{{apiVersion: creo.cloud/v1alpha1, kind: CreoNode, metadata: {{name: gpu-1}}, spec: {{\
         source: {{kubernetesNode: {kubernetes_node}}}, owner: provider-1, \
         offer: {{region: eu-west, priceMicroPerGpuHour: {price}}}}}}}"
    ))
}

fn placement(price: i64, node: &str, revision: &str) -> Placement {
    parse(&format!(
        "{{apiVersion: creo.cloud/v1alpha1, kind: Placement, metadata: {{name: chat-1f2e-0}}, spec: {{\
         terms: {{node: gpu-1, owner: provider-1, priceMicroPerGpuHour: {price}, since: '2026-11-22T10:00:00Z', \
         gpu: {{resource: creo.cloud/gpu, model: NVIDIA L4, count: 1, memoryBytes: 25769803776}}}}, \
         workload: {{revision: {revision}, deployment: chat, kubernetesNode: {node}, port: 8000, \
         image: {{reference: creo-engine}}, model: {{reference: creo-model}}, \
         health: {{path: /health, periodSeconds: 1, startupTimeoutSeconds: 60}}, \
         resources: {{cpuMilli: 500, memoryBytes: 1, ephemeralStorageBytes: 1}}}}}}}}"
    ))
}

#[test]
fn a_deployment_is_admitted_with_the_names_that_people_give() {
    let longest = "a".repeat(50);
    for name in ["a", "chat", "chat-8b", "a-1", &longest] {
        assert!(
            deployment(name, "replicas: 1").validate_cel().is_ok(),
            "{name}"
        );
    }
    let too_long = "a".repeat(51);
    for name in ["chat.8b", "chat-", &too_long] {
        assert!(
            deployment(name, "replicas: 1").validate_cel().is_err(),
            "{name}"
        );
    }
}

#[test]
fn quantities_are_admitted_as_text_and_as_numbers_within_their_bounds() {
    for (admitted, more) in [
        (true, "gpu: {memory: 24G}"),
        (true, "gpu: {memory: 1Mi}"),
        (true, "gpu: {memory: 16Ti}"),
        (true, "gpu: {memory: 85899345920}"),
        (true, "gpu: {memory: 8e10}"),
        (true, "resources: {cpu: 2}"),
        (
            true,
            "resources: {cpu: 1m, memory: 1.5Gi, ephemeralStorage: 10Gi}",
        ),
        (false, "gpu: {memory: 1Ki}"),
        (false, "gpu: {memory: 17Ti}"),
        (false, "gpu: {memory: -24G}"),
        (false, "gpu: {memory: ''}"),
        (false, "resources: {cpu: 0}"),
        (false, "resources: {cpu: 1025}"),
        (false, "resources: {memory: lots}"),
    ] {
        assert_eq!(
            deployment("chat", more).validate_cel().is_ok(),
            admitted,
            "{more}"
        );
    }
}

#[test]
fn model_paths_and_images_are_admitted_as_people_write_them() {
    let with = |reference: &str, path: &str| {
        let mut deployment = deployment("chat", "replicas: 1");
        reference.clone_into(&mut deployment.spec.model.image.reference);
        path.clone_into(&mut deployment.spec.model.path);
        deployment.validate_cel().is_ok()
    };
    for path in [
        ".",
        "tiny.gguf",
        "weights/v1.0/model..old.gguf",
        "Llama 3/model.gguf",
        "..a/b..",
    ] {
        assert!(with("creo-model-tiny", path), "{path}");
    }
    for path in ["/", "..", "a/..", "../a", "a\\b", "a;b", "$(X)"] {
        assert!(!with("creo-model-tiny", path), "{path}");
    }
    let digest = format!(
        "registry.example.com:5000/team/model:1.0@sha256:{}",
        "0".repeat(64)
    );
    for reference in [
        "creo-model-tiny",
        "team/model",
        "localhost:5000/model:v1",
        &digest,
    ] {
        assert!(with(reference, "."), "{reference}");
    }
    for reference in [
        "oci://registry.example.com/model",
        "model@sha256:00",
        "my model",
        "-model",
        "model:",
    ] {
        assert!(!with(reference, "."), "{reference}");
    }
}

#[test]
fn a_node_may_change_its_price_and_not_its_source() {
    assert!(
        node("gpu-1", 7)
            .validate_cel_update(&node("gpu-1", 5))
            .is_ok()
    );
    assert!(
        node("gpu-2", 5)
            .validate_cel_update(&node("gpu-1", 5))
            .is_err()
    );
}

#[test]
fn a_placement_may_change_its_workload_and_not_its_terms_or_its_node() {
    let old = placement(5, "gpu-1", "v1");
    assert!(old.validate_cel().is_ok());
    assert!(
        placement(5, "gpu-1", "v2")
            .validate_cel_update(&old)
            .is_ok()
    );
    assert!(
        placement(6, "gpu-1", "v1")
            .validate_cel_update(&old)
            .is_err()
    );
    assert!(
        placement(5, "gpu-2", "v1")
            .validate_cel_update(&old)
            .is_err()
    );
}

#[test]
fn immutable_terms_are_written_back_as_they_were_read() {
    let read = placement(5, "gpu-1", "v1");
    let written = serde_json::to_value(&read).expect("a placement is JSON");
    let again: Placement = serde_json::from_value(written).expect("it is a placement");
    assert!(again.validate_cel_update(&read).is_ok());
    assert_eq!(again, read);
}
