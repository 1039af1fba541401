//! An AgentDeployment and what goes with it, to test with.

use std::time::Duration;

use creo_api::AgentDeployment;
use creo_api::image::OwnImages;

use crate::engine::{EngineProfile, Engines};
use crate::settings::{HubOffer, Settings};

/// A deployment of two replicas; `change` replaces parts of its specification.
pub(crate) fn deployment(change: serde_json::Value) -> AgentDeployment {
    let mut spec = serde_json::json!({
        "model": {"name": "tiny", "image": {"reference": "creo-model-tiny"}, "path": "model.gguf"},
        "engine": {"profile": "tiny"},
        "gpu": {"memory": "16G"},
        "replicas": 2,
    });
    if let serde_json::Value::Object(change) = change {
        for (name, value) in change {
            spec[name] = value;
        }
    }
    serde_json::from_value(serde_json::json!({
        "apiVersion": "creo.cloud/v1alpha1",
        "kind": "AgentDeployment",
        "metadata": {"name": "chat", "namespace": "team", "uid": "c5a1", "generation": 3, "resourceVersion": "9"},
        "spec": spec,
    }))
    .unwrap()
}

/// One engine, called tiny.
pub(crate) fn engines() -> Engines {
    let tiny: EngineProfile = serde_json::from_value(serde_json::json!({
        "name": "tiny", "description": "for tests", "image": {"reference": "creo-engine-tiny"},
        "command": ["/engine"], "args": ["--model=$(CREO_MODEL_PATH)"],
        "env": [{"name": "MODE", "value": "ours"}, {"name": "HOME", "value": "/tmp"}],
        "port": 8000, "health": {"path": "/health", "periodSeconds": 1, "startupTimeoutSeconds": 60},
    }))
    .unwrap();
    Engines::from([(tiny.name.clone(), tiny)])
}

/// Settings as an installation has them.
pub(crate) fn settings() -> Settings {
    Settings {
        images: OwnImages {
            registry: "registry.example.com/creo".to_owned(),
            tag: "0.1.0".to_owned(),
        },
        hub_offer: HubOffer {
            accepted: true,
            owner: "platform".to_owned(),
            region: "local".to_owned(),
            price_micro_per_gpu_hour: 1_000_000,
        },
        unschedulable_timeout: Duration::from_secs(30),
        canaries: None,
    }
}
