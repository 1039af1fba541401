//! Creo on a real Kubernetes, from the customer's wish to the engine's answer.
//!
//! All tests share one cluster with two nodes of eight GPUs each, and each has
//! a namespace of its own. A test that disturbs the others takes the cluster
//! for itself.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_in_result,
    clippy::unwrap_used,
    reason = "a test ends by a panic"
)]

mod bad_specs;
mod callers;
mod chart;
mod devices;
mod faults;
mod gpus;
mod isolation;
mod lifecycle;
mod policies;
mod quiet;
mod refusal;
mod rights;
mod serving;
mod shared;
