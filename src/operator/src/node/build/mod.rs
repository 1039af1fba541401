//! What a hub node with GPUs is made into.

pub mod creo_node;
