//! Container images and image volumes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules;

/// The longest image reference, in characters.
pub const MAX_REFERENCE_CHARS: usize = 512;

/// An image, and when it is pulled.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Which image: like registry.example.com/team/model:1.0, or
    /// name@sha256:DIGEST. In an AgentDeployment a name without '/' and without
    /// a tag is one of Creo's own images, from the registry and with the tag
    /// that Creo was installed with.
    #[schemars(length(min = 1, max = MAX_REFERENCE_CHARS))]
    #[x_kube(validation = rules::image_reference())]
    pub reference: String,
    /// When the image is pulled. Default: IfNotPresent.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// When an image is pulled.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    /// At each start of the pod.
    Always,
    /// Where the node does not have it yet.
    #[default]
    IfNotPresent,
    /// Never: the node must have it already.
    Never,
}

impl PullPolicy {
    /// The word that a pod's specification uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// The registry and the tag of Creo's own images, as its installation says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnImages {
    /// Such as `registry.example.com/creo`, without a '/' at its end. Where it
    /// is empty, names stay without a registry.
    pub registry: String,
    /// Such as `0.1.0`.
    pub tag: String,
}

impl OwnImages {
    /// The full reference for what a specification or an engine profile wrote.
    ///
    /// A reference without '/' (`creo-model-tiny`) is one of Creo's own images
    /// and comes from Creo's registry; it gets Creo's tag where it has neither
    /// a tag nor a digest of its own. Anything with a '/' is taken as it is.
    #[must_use]
    pub fn resolve(&self, reference: &str) -> String {
        if reference.contains('/') {
            return reference.to_owned();
        }
        let registry = self.registry.trim_end_matches('/');
        let prefix = if registry.is_empty() {
            String::new()
        } else {
            format!("{registry}/")
        };
        let suffix = if reference.contains([':', '@']) {
            String::new()
        } else {
            format!(":{}", self.tag)
        };
        format!("{prefix}{reference}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_slash_comes_from_creos_registry_and_any_other_is_kept() {
        let own = OwnImages {
            registry: "registry.example.com/creo".to_owned(),
            tag: "0.1.0".to_owned(),
        };
        for (written, full) in [
            (
                "creo-model-tiny",
                "registry.example.com/creo/creo-model-tiny:0.1.0",
            ),
            (
                "creo-model-tiny:2",
                "registry.example.com/creo/creo-model-tiny:2",
            ),
            (
                "creo-model-tiny@sha256:00",
                "registry.example.com/creo/creo-model-tiny@sha256:00",
            ),
            ("vllm/vllm-openai:v1", "vllm/vllm-openai:v1"),
            ("localhost:5000/model", "localhost:5000/model"),
        ] {
            assert_eq!(own.resolve(written), full);
        }
    }

    #[test]
    fn a_registry_may_end_in_a_slash_or_be_empty() {
        let tag = "0.1.0".to_owned();
        let slash = OwnImages {
            registry: "r.example.com/".to_owned(),
            tag: tag.clone(),
        };
        assert_eq!(slash.resolve("creo"), "r.example.com/creo:0.1.0");
        let empty = OwnImages {
            registry: String::new(),
            tag,
        };
        assert_eq!(empty.resolve("creo"), "creo:0.1.0");
    }
}
