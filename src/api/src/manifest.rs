//! The definitions of the kinds as the files in `crds/`.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// A definition as a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Such as `creo.cloud_creonodes.yaml`.
    pub file_name: String,
    /// What is in it.
    pub yaml: String,
}

/// Why a definition could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// It has no form in JSON.
    #[error("the definition of {kind} cannot be written as JSON")]
    Json {
        /// The kind whose definition it is.
        kind: String,
        /// What the serializer says.
        source: serde_json::Error,
    },
    /// It has no form in YAML.
    #[error("the definition of {kind} cannot be written as YAML")]
    Yaml {
        /// The kind whose definition it is.
        kind: String,
        /// What the serializer says.
        source: serde_saphyr::ser::Error,
    },
}

/// The files of all kinds, in the order of [`crds`](crate::crds).
pub fn manifests() -> Result<Vec<Manifest>, ManifestError> {
    crate::crds().iter().map(manifest).collect()
}

fn manifest(crd: &CustomResourceDefinition) -> Result<Manifest, ManifestError> {
    let kind = || crd.spec.names.kind.clone();
    let mut value = serde_json::to_value(crd).map_err(|source| ManifestError::Json {
        kind: kind(),
        source,
    })?;
    whole_numbers(&mut value);
    let body = serde_saphyr::to_string(&value).map_err(|source| ManifestError::Yaml {
        kind: kind(),
        source,
    })?;
    Ok(Manifest {
        file_name: format!("{}_{}.yaml", crd.spec.group, crd.spec.names.plural),
        yaml: format!(
            "# Generated from src/api by `make crds`. Do not edit.\n---\n{}\n",
            body.trim_end()
        ),
    })
}

/// Writes bounds as people do: the types hold them as floating point numbers,
/// and `maximum: 16.0` on an integer reads like a mistake.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Number(number) => {
            // Up to here a floating point number holds each integer exactly.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            let whole = number
                .as_f64()
                .filter(|it| number.is_f64() && it.fract() == 0.0 && it.abs() <= EXACT);
            if let Some(integer) = whole.and_then(|it| format!("{it:.0}").parse::<i64>().ok()) {
                *value = Value::from(integer);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}
