//! Kubeconfig files for the components, and for the people at the machine.

use crate::certificates::Identity;

/// A kubeconfig for one user of one cluster, everything within the file.
///
/// JSON is YAML as well, and so a string with any character in it is safe.
#[must_use]
pub fn text(cluster: &str, server: &str, authority_pem: &str, identity: &Identity) -> String {
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": cluster,
        "clusters": [{
            "name": cluster,
            "cluster": {
                "server": server,
                "certificate-authority-data": base64(authority_pem.as_bytes()),
            },
        }],
        "users": [{
            "name": cluster,
            "user": {
                "client-certificate-data": base64(identity.certificate_pem.as_bytes()),
                "client-key-data": base64(identity.key_pem.as_bytes()),
            },
        }],
        "contexts": [{
            "name": cluster,
            "context": { "cluster": cluster, "user": cluster },
        }],
    });
    format!("{config:#}\n")
}

fn base64(bytes: &[u8]) -> String {
    // `ByteString` is Kubernetes' own base64 form, and its crate is here already.
    match serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}
