//! A Placement to test with.

use creo_api::Placement;

/// A Placement as the API server would answer with it.
pub(crate) fn placement() -> Placement {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "creo.cloud/v1alpha1",
        "kind": "Placement",
        "metadata": {
            "name": "chat-1f2e-0", "namespace": "team", "uid": "0f0c9b5e-6b7e", "generation": 1,
            "resourceVersion": "7",
        },
        "spec": {
            "terms": {
                "node": "gpu-1", "owner": "acme",
                "gpu": {"resource": "creo.cloud/gpu", "model": "NVIDIA L4", "count": 2, "memoryBytes": 24_i64 << 30},
                "priceMicroPerGpuHour": 500, "since": "2026-11-22T00:00:00Z",
            },
            "workload": {
                "revision": "r1", "deployment": "chat", "kubernetesNode": "machine-1",
                "image": {"reference": "registry.example.com/creo/engine:1"},
                "args": ["--model=$(CREO_MODEL_PATH)"],
                "env": [{"name": "CREO_MODEL_PATH", "value": "/models/model.gguf"}],
                "port": 8000,
                "health": {"path": "/health", "periodSeconds": 2, "startupTimeoutSeconds": 600},
                "resources": {"cpuMilli": 500, "memoryBytes": 1 << 30, "ephemeralStorageBytes": 1 << 30},
                "model": {"reference": "registry.example.com/creo/model:1"},
            },
        },
    }))
    .unwrap()
}
