//! Nodes, Pods and Services as this operator reads them: the few fields that are decided on,
//! about 1 kB an object instead of up to 30.
//!
//! Every field that is left out of the JSON has a default, so that an object of a newer or older
//! API server still reads.

pub mod metadata;
pub mod node;
pub mod pod;
pub mod resources;
pub mod service;

pub use node::Node;
pub use pod::Pod;
pub use resources::Amounts;
pub use service::Service;
