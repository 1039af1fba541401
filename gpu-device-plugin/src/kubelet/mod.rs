//! The kubelet's side of the plugin: its device plugin API, v1beta1.

pub mod life;
pub mod offer;
pub mod preference;
pub mod registrar;
pub mod service;
pub mod standing;

/// The API's messages and services, generated from `proto/deviceplugin.proto`.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "generated code"
)]
pub mod api {
    tonic::include_proto!("v1beta1");
}

/// The version of the API, as it is said at registration.
pub const VERSION: &str = "v1beta1";

/// Name of the kubelet's own socket.
pub const KUBELET_SOCKET: &str = "kubelet.sock";
