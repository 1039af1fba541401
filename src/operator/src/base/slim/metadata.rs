//! The part of an object's metadata that is kept.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use serde::{Deserialize, Deserializer};

/// The prefix of the labels and annotations that are kept besides `app.kubernetes.io/`.
const OURS: [&str; 2] = ["creo.cloud/", "app.kubernetes.io/"];

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Kept {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    generation: Option<i64>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

fn ours(map: Option<BTreeMap<String, String>>) -> Option<BTreeMap<String, String>> {
    let mut map = map?;
    map.retain(|key, _| OURS.iter().any(|prefix| key.starts_with(prefix)));
    (!map.is_empty()).then_some(map)
}

/// Reads metadata without managedFields, finalizers, and the labels and annotations of others.
pub fn kept<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let kept = Kept::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: kept.name,
        namespace: kept.namespace,
        uid: kept.uid,
        resource_version: kept.resource_version,
        generation: kept.generation,
        creation_timestamp: kept.creation_timestamp,
        deletion_timestamp: kept.deletion_timestamp,
        owner_references: kept.owner_references.filter(|owners| !owners.is_empty()),
        labels: ours(kept.labels),
        annotations: ours(kept.annotations),
        ..ObjectMeta::default()
    })
}

/// The owner that controls the object, if it is of `kind`: its name and uid.
#[must_use]
pub fn controller<'a>(metadata: &'a ObjectMeta, kind: &str) -> Option<(&'a str, &'a str)> {
    metadata
        .owner_references
        .as_deref()
        .unwrap_or_default()
        .iter()
        .find(|owner| owner.controller == Some(true))
        .filter(|owner| owner.kind == kind && owner.api_version.starts_with("creo.cloud/"))
        .map(|owner| (owner.name.as_str(), owner.uid.as_str()))
}
