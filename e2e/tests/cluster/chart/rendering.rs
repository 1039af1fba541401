//! What Helm makes of the chart and its values, without a cluster.

use std::fs;

use creo_e2e::{command, installation};
use serde_json::Value;

use super::{REGISTRY, SWITCHED_OFF, all_values, helm, rendered, template, with, with_all_values};

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("it is YAML")
}

/// The paths of all values that a schema knows, as far down as it names fields.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        Some(fields) => {
            for (name, field) in fields {
                leaves(field, &format!("{path}/{name}"), found);
            }
        }
        None => found.push(path.to_owned()),
    }
}

#[test]
fn the_fixture_with_all_values_has_every_value_and_no_default() {
    let chart = installation::chart();
    let read = |path| fs::read_to_string(path).expect("the file is there");
    let schema: Value =
        serde_json::from_str(&read(chart.join("values.schema.json"))).expect("it is JSON");
    let defaults = yaml(&read(chart.join("values.yaml")));
    let all = yaml(&read(all_values()));
    let mut known = Vec::new();
    leaves(&schema, "", &mut known);
    // Helm's own, which no template looks at.
    known.retain(|path| path != "/global");
    assert!(known.len() > 40, "{known:?}");
    for path in known {
        let value = all
            .pointer(&path)
            .unwrap_or_else(|| panic!("{path} is missing"));
        if value != &Value::Bool(true) {
            assert_ne!(
                Some(value),
                defaults.pointer(&path),
                "{path} is the default"
            );
        }
    }
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let lint = || {
        let mut helm = helm(&["lint", "--strict"]);
        helm.arg(installation::chart());
        helm
    };
    for helm in [
        with(lint(), &[REGISTRY]),
        with(with(lint(), &[REGISTRY]), &SWITCHED_OFF),
        with_all_values(lint()),
    ] {
        let said = rendered(helm);
        assert!(
            said.contains("1 chart(s) linted, 0 chart(s) failed"),
            "{said}"
        );
        assert!(
            !said.contains("[WARNING]") && !said.contains("[ERROR]"),
            "{said}"
        );
    }
}

#[test]
fn a_missing_registry_is_a_message_before_anything_is_installed() {
    let error = command::output(&mut template())
        .expect_err("it is refused")
        .to_string();
    assert!(
        error.contains("at '/image': missing property 'registry'"),
        "{error}"
    );
}

/// Values that are refused, each with a part of the message.
const BAD_VALUES: [(&str, &str); 21] = [
    (
        "devicePlugin.config.mig.strategy=both",
        "at '/devicePlugin/config/mig/strategy': value must be one of 'none', 'single', 'mixed'",
    ),
    (
        "operator.canary.interval=often",
        "at '/operator/canary/interval': 'often' does not match pattern",
    ),
    (
        "operatr.replicas=3",
        "at '': additional properties 'operatr' not allowed",
    ),
    (
        "operator.replica=3",
        "at '/operator': additional properties 'replica' not allowed",
    ),
    (
        "operator.hubNodes.price=3",
        "at '/operator/hubNodes': additional properties 'price' not allowed",
    ),
    (
        "operator.replicas=many",
        "at '/operator/replicas': got string, want integer",
    ),
    (
        "operator.replicas=0",
        "at '/operator/replicas': minimum: got 0, want 1",
    ),
    (
        "operator.leaseDuration=15",
        "at '/operator/leaseDuration': got number, want string",
    ),
    (
        "operator.leaseDuration=soon",
        "at '/operator/leaseDuration': 'soon' does not match pattern",
    ),
    (
        "operator.hubNodes.owner=Acme Inc",
        "at '/operator/hubNodes/owner': 'Acme Inc' does not match pattern",
    ),
    (
        "operator.resources.limits.memory=1 GB",
        "at '/operator/resources/limits/memory'",
    ),
    (
        "operator.tolerations[0].effect=Never",
        "at '/operator/tolerations/0/effect': value must be one of",
    ),
    (
        "devicePlugin.driverRoot=usr",
        "at '/devicePlugin/driverRoot': 'usr' does not match pattern",
    ),
    (
        "devicePlugin.enabled=1",
        "at '/devicePlugin/enabled': got number, want boolean",
    ),
    (
        "devicePlugin.resource=gpu",
        "at '/devicePlugin/resource': 'gpu' does not match pattern",
    ),
    (
        "image.registry=https://registry.example.com/creo",
        "at '/image/registry'",
    ),
    (
        "image.tag=a b",
        "at '/image/tag': 'a b' does not match pattern",
    ),
    (
        "image.pullPolicy=Sometimes",
        "at '/image/pullPolicy': value must be one of",
    ),
    (
        "log.format=xml",
        "at '/log/format': value must be one of 'text', 'json'",
    ),
    (
        "engines.mine.description=x",
        "at '/engines/mine': missing properties 'image', 'port', 'health'",
    ),
    ("engines.Mine.description=x", "invalid propertyName 'Mine'"),
];

#[test]
fn values_that_make_no_sense_are_refused_with_their_place() {
    for (value, message) in BAD_VALUES {
        let mut helm = with(template(), &[REGISTRY, value]);
        let error = match command::output(&mut helm) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{value} is taken"),
        };
        assert!(
            error.contains(message),
            "{value}: the answer lacks {message:?}: {error}"
        );
    }
}

#[test]
fn the_notes_say_what_to_look_at_next() {
    let notes = |values: &[&str]| {
        let mut helm = with(helm(&["install", "creo", "--dry-run=client"]), &[REGISTRY]);
        helm.arg(installation::chart())
            .args(["--namespace", "mine"]);
        let said = rendered(with(helm, values));
        said.split_once("NOTES:")
            .expect("there are notes")
            .1
            .to_owned()
    };
    let usual = notes(&[]);
    for expected in [
        "is installed in namespace mine",
        "kubectl -n mine get pods",
        "kubectl get creonodes",
        "kubectl -n mine logs daemonset/creo-gpu-device-plugin",
        "kubectl apply -f quickstart.yaml",
    ] {
        assert!(
            usual.contains(expected),
            "the notes lack {expected:?}: {usual}"
        );
    }
    let accepting = r#"kubectl patch creonode NAME --type=merge -p '{"spec":{"accepted":true}}'"#;
    assert!(
        !usual.contains(accepting),
        "nodes are accepted by themselves: {usual}"
    );
    let careful = notes(&["operator.hubNodes.accept=false"]);
    assert!(careful.contains(accepting), "{careful}");
    let without = notes(&["devicePlugin.enabled=false"]);
    assert!(!without.contains("daemonset"), "{without}");
}

#[test]
fn an_engine_of_ones_own_stands_beside_those_of_the_chart_or_in_place_of_one() {
    let config_map = |helm| {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&rendered(helm)).expect("it is YAML");
        documents
            .into_iter()
            .find(|document| {
                let name = document["metadata"]["name"].as_str().unwrap_or_default();
                document["kind"] == "ConfigMap" && name.ends_with("-engines")
            })
            .expect("there are engines")
    };
    let profile =
        |map: &Value, name: &str| yaml(map["data"][name].as_str().expect("there is a profile"));
    let usual = config_map(with(template(), &[REGISTRY]));
    assert_eq!(
        profile(&usual, "llama-cpp.yaml")["image"]["reference"],
        "creo-engine-llama-cpp"
    );
    let all = config_map(with_all_values(template()));
    assert_eq!(
        profile(&all, "llama-cpp.yaml")["image"]["reference"],
        "registry.example.com/llama:1"
    );
    assert_eq!(profile(&all, "llama-cpp.yaml")["name"], "llama-cpp");
    assert_eq!(profile(&all, "sglang.yaml")["port"], 30_000);
    assert_eq!(profile(&all, "vllm.yaml"), profile(&usual, "vllm.yaml"));
}
