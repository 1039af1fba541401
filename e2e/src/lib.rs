//! A real Kubernetes on one machine, the end-to-end tests and the benches.
//!
//! The command line (`creo-e2e`) and the tests use the same code: a
//! [`cluster::Cluster`] is started, given faults and ended here and nowhere
//! else.

pub mod bench;
pub mod certificates;
pub mod cgroups;
pub mod chat;
pub mod cluster;
pub mod command;
pub mod components;
pub mod demo;
pub mod error;
pub mod fault_proxy;
pub mod installation;
pub mod keeper;
pub mod kubeconfig;
pub mod paths;
pub mod preflight;
pub mod progress;
pub mod prove;
pub mod relay;
pub mod samples;
pub mod schemas;
pub mod supervisor;

pub use error::{Error, Result};
