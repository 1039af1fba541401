//! Creo's GPU device plugin: from NVIDIA's driver to the kubelet, and to the hub.
//!
//! [`driver`] follows the driver's library and knows the GPUs and their [`health`];
//! [`offer`] writes what a container needs to have one ([`cdi`]) and then offers it;
//! [`kubelet`] hands the offer to the kubelet; [`claims`] tells the hub what is there.
//! Between them are watch channels, so that each always works on the newest state.

pub mod arguments;
pub mod canary;
pub mod cdi;
pub mod claims;
pub mod config;
pub mod driver;
pub mod health;
pub mod inventory;
pub mod kubelet;
pub mod metrics;
pub mod offer;
pub mod pod_resources;
pub mod processes;
pub mod resource;
pub mod serve;
pub mod socket;
pub mod unit;
