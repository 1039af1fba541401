//! What every Creo process is made of: telemetry, probes, shutdown, the Kubernetes client.
//!
//! A process parses its arguments, calls [`telemetry::init`], takes one token from
//! [`shutdown::on_signal`], serves [`probes::Probes`], and gets every client it needs from
//! [`client::connect`]. Nothing here knows what the process does.

pub mod client;
pub mod probes;
pub mod shutdown;
pub mod telemetry;

pub use prometheus;
pub use tokio_util::sync::CancellationToken;
