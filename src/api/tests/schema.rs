//! What every schema must have, found by walking through it: descriptions,
//! bounds, messages.

use serde_json::Value;

/// A place in a kind's schema.
struct Place<'a> {
    path: String,
    schema: &'a Value,
    /// Whether it is a property that may be left out.
    optional: bool,
    /// Whether it is a property, rather than a list's item.
    property: bool,
}

/// Every property and item of every kind, below the root.
fn walk(visit: &mut dyn FnMut(&Place)) {
    for crd in creo_api::crds() {
        let kind = crd.spec.names.kind;
        let schema = crd.spec.versions[0]
            .schema
            .as_ref()
            .and_then(|it| it.open_api_v3_schema.as_ref());
        let root = serde_json::to_value(schema).unwrap_or_default();
        descend(&kind, &root, visit);
    }
}

fn descend(path: &str, schema: &Value, visit: &mut dyn FnMut(&Place)) {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let optional = !required.contains(&name.as_str());
        visit(&Place {
            path: path.clone(),
            schema: property,
            optional,
            property: true,
        });
        descend(&path, property, visit);
    }
    if let Some(items) = schema.get("items") {
        let path = format!("{path}[]");
        visit(&Place {
            path: path.clone(),
            schema: items,
            optional: false,
            property: false,
        });
        descend(&path, items, visit);
    }
}

/// The paths for which something does not hold.
fn offenders(holds: impl Fn(&Place) -> bool) -> Vec<String> {
    let mut offenders = Vec::new();
    let mut seen = 0;
    walk(&mut |place| {
        seen += 1;
        if !holds(place) {
            offenders.push(place.path.clone());
        }
    });
    assert!(seen > 100, "only {seen} places were walked");
    offenders
}

fn has(schema: &Value, key: &str) -> bool {
    schema.get(key).is_some()
}

#[test]
fn every_field_has_a_description_that_is_a_sentence() {
    let described = |place: &Place| {
        let description = place.schema["description"].as_str().unwrap_or_default();
        description.len() > 10 && description.ends_with('.')
    };
    assert_eq!(
        offenders(|place| !place.property || described(place)),
        Vec::<String>::new()
    );
}

#[test]
fn every_field_of_a_specification_that_may_be_left_out_tells_its_default() {
    let told = |place: &Place| {
        let description = place.schema["description"].as_str().unwrap_or_default();
        description.contains("Default:") || description.contains("default:")
    };
    let concerns = |place: &Place| place.optional && place.path.contains(".spec.");
    assert_eq!(
        offenders(|place| !concerns(place) || told(place)),
        Vec::<String>::new()
    );
}

#[test]
fn every_string_list_and_number_is_bounded() {
    let bounded = |place: &Place| {
        let schema = place.schema;
        if schema["x-kubernetes-int-or-string"] == true {
            return has(schema, "maxLength") && has(schema, "x-kubernetes-validations");
        }
        match schema["type"].as_str() {
            Some("string") => {
                has(schema, "maxLength") || has(schema, "enum") || schema["format"] == "date-time"
            }
            Some("integer") => has(schema, "minimum") && has(schema, "maximum"),
            Some("array") => has(schema, "maxItems") && has(schema, "items"),
            Some("object") => has(schema, "properties") && !has(schema, "additionalProperties"),
            Some("boolean") => true,
            _ => false,
        }
    };
    assert_eq!(offenders(bounded), Vec::<String>::new());
}

#[test]
fn no_field_takes_what_the_types_could_not_read_back() {
    let readable = |place: &Place| {
        let schema = place.schema;
        let signed = !schema["format"]
            .as_str()
            .unwrap_or_default()
            .starts_with("uint");
        // The status as a whole is kube's own, and may be null.
        let root_status = place.path.ends_with(".status") && place.path.matches('.').count() == 1;
        signed
            && !has(schema, "x-kubernetes-preserve-unknown-fields")
            && (root_status || schema["nullable"] != true)
            && !has(schema, "anyOf")
            && !has(schema, "oneOf")
    };
    assert_eq!(offenders(readable), Vec::<String>::new());
}

#[test]
fn every_list_says_how_two_writers_share_it() {
    let shared = |place: &Place| {
        place.schema["type"] != "array" || has(place.schema, "x-kubernetes-list-type")
    };
    assert_eq!(offenders(shared), Vec::<String>::new());
}

#[test]
fn every_rule_has_a_message() {
    let told = |place: &Place| {
        let rules = place.schema["x-kubernetes-validations"]
            .as_array()
            .into_iter()
            .flatten();
        rules.into_iter().all(|rule| {
            rule["message"]
                .as_str()
                .is_some_and(|message| message.len() > 10)
        })
    };
    assert_eq!(offenders(told), Vec::<String>::new());
}

#[test]
fn no_bound_is_beyond_what_json_readers_hold_exactly() {
    let exact = |place: &Place| {
        let holds = |key| {
            place.schema[key]
                .as_f64()
                .is_none_or(|bound: f64| bound.abs() < 9_007_199_254_740_992.0)
        };
        holds("minimum") && holds("maximum")
    };
    assert_eq!(offenders(exact), Vec::<String>::new());
}

#[test]
fn every_kind_can_be_listed_by_a_short_name_and_together_with_the_others() {
    let names: Vec<(String, Vec<String>, Vec<String>, String)> = creo_api::crds()
        .into_iter()
        .map(|crd| {
            let names = crd.spec.names;
            (
                names.kind,
                names.short_names.unwrap_or_default(),
                names.categories.unwrap_or_default(),
                crd.spec.scope,
            )
        })
        .collect();
    let expected = |kind: &str, short: &str, scope: &str| {
        (
            kind.to_owned(),
            vec![short.to_owned()],
            vec!["creo".to_owned()],
            scope.to_owned(),
        )
    };
    assert_eq!(
        names,
        [
            expected("AgentDeployment", "agd", "Namespaced"),
            expected("CreoNode", "cn", "Cluster"),
            expected("Placement", "plc", "Namespaced")
        ]
    );
}

#[test]
fn an_autoscaler_finds_what_it_needs_at_the_scale_of_a_deployment() {
    let crd = creo_api::crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == "AgentDeployment");
    let subresources = crd
        .and_then(|crd| crd.spec.versions[0].subresources.clone())
        .expect("subresources");
    let scale = subresources.scale.expect("a scale");
    assert_eq!(
        (
            scale.spec_replicas_path.as_str(),
            scale.status_replicas_path.as_str(),
            scale.label_selector_path.as_deref()
        ),
        (
            ".spec.replicas",
            ".status.replicas",
            Some(".status.selector")
        )
    );
    assert!(subresources.status.is_some());
}
