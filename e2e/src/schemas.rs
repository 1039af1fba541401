//! JSON schemas for kubeconform, made of what a running API server publishes.
//!
//! `/openapi/v2` describes the server's own kinds and those of every custom
//! resource definition in it, so that nothing is fetched, and what is checked
//! against is exactly what will be asked. It is OpenAPI 2, which is JSON schema
//! draft 4 but for three things: objects are open, although the server refuses
//! unknown fields where it is asked to be strict; a number or a string is called
//! a string; and so is a quantity, which the server takes as a number as well.

use std::path::Path;

use kube::Client;
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    paths,
};

/// What OpenAPI 2 is nearest to. Its references ignore what stands beside them,
/// as those of OpenAPI do.
const DIALECT: &str = "http://json-schema.org/draft-04/schema#";
/// The file with all definitions, in the folder of the schemas.
const DEFINITIONS: &str = "_definitions.json";
/// Which of its definitions a kind is.
const KINDS: &str = "x-kubernetes-group-version-kind";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";

/// Where kubeconform finds the schema of a kind in the folder that
/// [`Schemas::write`] filled: the value of its `-schema-location`.
#[must_use]
pub fn location(dir: &Path) -> String {
    format!(
        "{}/{{{{ .Group }}}}/{{{{ .ResourceKind }}}}_{{{{ .ResourceAPIVersion }}}}.json",
        dir.display()
    )
}

/// Strict schemas of all kinds that an API server serves.
#[derive(Debug, Clone)]
pub struct Schemas {
    definitions: Map<String, Value>,
    kinds: Vec<Kind>,
}

/// One kind, and the definition that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    group: String,
    version: String,
    name: String,
    definition: String,
}

impl Schemas {
    /// The schemas of what this API server serves now.
    ///
    /// # Errors
    ///
    /// It does not say, or in a form that is not known.
    pub async fn of(client: &Client) -> Result<Self> {
        let malformed = |error: &dyn std::fmt::Display| Error::malformed("/openapi/v2", error);
        let request = http::Request::get("/openapi/v2")
            .header("accept", "application/json")
            .body(Vec::new())
            .map_err(|error| malformed(&error))?;
        let document = client
            .request(request)
            .await
            .map_err(Error::kubernetes("reading the API server's schemas"))?;
        Self::from_openapi(document)
    }

    /// The schemas of an OpenAPI 2 document.
    ///
    /// # Errors
    ///
    /// It has no definitions, or none of them is a kind.
    pub fn from_openapi(mut document: Value) -> Result<Self> {
        let malformed = |problem: &str| Error::malformed("/openapi/v2", problem);
        let Value::Object(mut definitions) = document["definitions"].take() else {
            return Err(malformed("there are no definitions in it"));
        };
        let kinds: Vec<Kind> = definitions
            .iter()
            .flat_map(|(name, schema)| kinds_of(name, schema))
            .collect();
        if kinds.is_empty() {
            return Err(malformed("none of its definitions is a kind"));
        }
        definitions.values_mut().for_each(close);
        if let Some(quantity) = definitions.get_mut(QUANTITY) {
            quantity["type"] = json!(["string", "number"]);
        }
        Ok(Self { definitions, kinds })
    }

    /// Whether there is a schema of this kind; the core group is `""`.
    #[must_use]
    pub fn has(&self, group: &str, kind: &str) -> bool {
        self.kinds
            .iter()
            .any(|known| known.group == group && known.name == kind)
    }

    /// Writes a file for each kind, and the definitions that they share.
    ///
    /// # Errors
    ///
    /// A file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        paths::make_dir(dir)?;
        let shared = json!({ "$schema": DIALECT, "definitions": self.definitions });
        paths::write_file(&dir.join(DEFINITIONS), shared.to_string())?;
        for kind in &self.kinds {
            let group = dir.join(kind.folder());
            paths::make_dir(&group)?;
            let reference = format!("../{DEFINITIONS}#/definitions/{}", kind.definition);
            let schema = json!({ "$schema": DIALECT, "$ref": reference });
            let file = format!("{}_{}.json", kind.name.to_lowercase(), kind.version);
            paths::write_file(&group.join(file), schema.to_string())?;
        }
        Ok(())
    }
}

impl Kind {
    /// What kubeconform calls the group: all before the slash of an
    /// `apiVersion`, which for the core group is the version.
    fn folder(&self) -> &str {
        if self.group.is_empty() {
            &self.version
        } else {
            &self.group
        }
    }
}

fn kinds_of(name: &str, schema: &Value) -> Vec<Kind> {
    let listed = schema[KINDS]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    // What takes part in every group, such as DeleteOptions, is no kind of any.
    let [only] = listed else { return Vec::new() };
    let word = |field: &str| only[field].as_str().unwrap_or_default().to_owned();
    vec![Kind {
        group: word("group"),
        version: word("version"),
        name: word("kind"),
        definition: name.to_owned(),
    }]
}

/// Makes a schema, and every schema within it, as strict as the server is when
/// it is asked for strict validation, and as lenient where it takes two types.
fn close(schema: &mut Value) {
    let Value::Object(schema) = schema else {
        return;
    };
    if takes_a_number_or_a_string(schema) {
        schema.remove("format");
        schema.insert("type".to_owned(), json!(["integer", "string"]));
    }
    let keeps_unknown =
        schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if schema.contains_key("properties") && !keeps_unknown {
        schema
            .entry("additionalProperties")
            .or_insert(Value::Bool(false));
    }
    // What is a schema depends on the place: a field may be called "properties".
    for (keyword, value) in schema.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(fields)) => fields.values_mut().for_each(close),
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                schemas.iter_mut().for_each(close);
            }
            ("items" | "additionalProperties" | "not", value) => close(value),
            _ => {}
        }
    }
}

fn takes_a_number_or_a_string(schema: &Map<String, Value>) -> bool {
    schema
        .get("format")
        .is_some_and(|format| format == "int-or-string")
        || schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn document() -> Value {
        json!({
            "swagger": "2.0",
            "definitions": {
                "io.k8s.api.core.v1.Pod": {
                    "type": "object",
                    "properties": {
                        "apiVersion": { "type": "string" },
                        "kind": { "type": "string" },
                        "spec": { "$ref": "#/definitions/io.k8s.api.core.v1.PodSpec" },
                    },
                    KINDS: [{ "group": "", "version": "v1", "kind": "Pod" }],
                },
                "io.k8s.api.core.v1.PodSpec": {
                    "type": "object",
                    "required": ["containers"],
                    "properties": {
                        "containers": { "type": "array", "items": {
                            "type": "object",
                            "properties": { "name": { "type": "string" } },
                        } },
                        "nodeSelector": { "type": "object", "additionalProperties": { "type": "string" } },
                    },
                },
                "cloud.creo.v1alpha1.Wish": {
                    "type": "object",
                    "properties": {
                        "memory": { "maxLength": 32, "x-kubernetes-int-or-string": true },
                        "port": { "type": "string", "format": "int-or-string" },
                        "anything": {
                            "type": "object",
                            "x-kubernetes-preserve-unknown-fields": true,
                            "properties": { "known": { "type": "string" } },
                        },
                        "properties": { "type": "object", "additionalProperties": { "type": "string" } },
                    },
                    KINDS: [{ "group": "creo.cloud", "version": "v1alpha1", "kind": "Wish" }],
                },
                "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions": {
                    "type": "object",
                    "properties": {},
                    KINDS: [
                        { "group": "", "version": "v1", "kind": "DeleteOptions" },
                        { "group": "apps", "version": "v1", "kind": "DeleteOptions" },
                    ],
                },
                QUANTITY: { "description": "A quantity.", "type": "string" },
            },
        })
    }

    fn schemas() -> Schemas {
        Schemas::from_openapi(document()).expect("it is a good document")
    }

    #[test]
    fn an_object_whose_fields_are_known_has_no_others_at_any_depth() {
        let schemas = schemas();
        let pod = &schemas.definitions["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(pod["additionalProperties"], false);
        assert_eq!(
            pod["properties"]["containers"]["items"]["additionalProperties"],
            false
        );
        let selector = &pod["properties"]["nodeSelector"];
        assert_eq!(
            selector["additionalProperties"],
            json!({ "type": "string" }),
            "a map stays one"
        );
    }

    #[test]
    fn what_keeps_unknown_fields_stays_open() {
        let wish = &schemas().definitions["cloud.creo.v1alpha1.Wish"];
        assert_eq!(
            wish["properties"]["anything"].get("additionalProperties"),
            None
        );
    }

    #[test]
    fn a_field_that_is_called_properties_is_a_field() {
        let wish = &schemas().definitions["cloud.creo.v1alpha1.Wish"];
        let fields = wish["properties"].as_object().expect("it has fields");
        let names: Vec<&str> = fields.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["anything", "memory", "port", "properties"],
            "no field was made up"
        );
    }

    #[test]
    fn a_number_does_where_a_number_or_a_string_does() {
        let schemas = schemas();
        let wish = &schemas.definitions["cloud.creo.v1alpha1.Wish"]["properties"];
        for field in ["memory", "port"] {
            assert_eq!(wish[field]["type"], json!(["integer", "string"]), "{field}");
            assert_eq!(wish[field].get("format"), None, "{field}");
        }
        assert_eq!(wish["memory"]["maxLength"], 32);
        assert_eq!(
            schemas.definitions[QUANTITY]["type"],
            json!(["string", "number"])
        );
    }

    #[test]
    fn each_kind_has_a_file_that_leads_to_its_definition() {
        let dir = tempfile::tempdir().expect("there is a folder");
        let schemas = schemas();
        schemas.write(dir.path()).expect("the files are written");
        for (file, definition) in [
            ("v1/pod_v1.json", "io.k8s.api.core.v1.Pod"),
            ("creo.cloud/wish_v1alpha1.json", "cloud.creo.v1alpha1.Wish"),
        ] {
            let text = fs::read(dir.path().join(file)).expect("there is a file");
            let schema: Value = serde_json::from_slice(&text).expect("it is JSON");
            assert_eq!(
                schema["$ref"],
                format!("../_definitions.json#/definitions/{definition}")
            );
        }
        assert!(schemas.has("", "Pod") && schemas.has("creo.cloud", "Wish"));
        assert!(!schemas.has("creo.cloud", "Pod") && !schemas.has("", "DeleteOptions"));
        assert!(!dir.path().join("apps").exists());
    }

    #[test]
    fn the_location_is_a_template_that_kubeconform_fills_in() {
        assert_eq!(
            location(Path::new("/schemas")),
            "/schemas/{{ .Group }}/{{ .ResourceKind }}_{{ .ResourceAPIVersion }}.json"
        );
    }

    #[test]
    fn a_document_without_kinds_is_an_error_that_says_so() {
        let message = |document| {
            Schemas::from_openapi(document)
                .expect_err("it is refused")
                .to_string()
        };
        assert!(message(json!({})).contains("no definitions"));
        assert!(
            message(json!({ "definitions": { "x": {} } }))
                .contains("none of its definitions is a kind")
        );
    }
}
