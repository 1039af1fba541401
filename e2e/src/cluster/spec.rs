//! What a cluster is asked to be, and what it writes down of itself.

use std::{fmt, path::PathBuf, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{GpuLayout, images::Image, runtime::DefaultRuntime};
use crate::error::Error;

/// The most nodes a local cluster has: each gets a /24 of pod addresses.
pub const MAX_NODES: u8 = 16;
/// The most GPUs a node has.
pub const MAX_GPUS_PER_NODE: u8 = 16;

/// What a cluster is asked to be.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// Its name; several run side by side.
    pub name: String,
    /// How many GPU nodes it has.
    pub nodes: u8,
    /// How many GPUs each of them has.
    pub gpus_per_node: u8,
    /// Which GPUs these are: a profile of the stand-in library.
    pub gpu_profile: String,
    /// Where they sit in the node, and how they are linked.
    pub gpu_layout: GpuLayout,
    /// Whether the GPUs are the machine's own.
    pub gpus: Gpus,
    /// The port of 127.0.0.1 for the API server; 0 takes a free one.
    pub api_port: u16,
    /// This program, which the namespaces are made with.
    pub program: PathBuf,
    /// Whether the cluster outlives the caller, until `down`.
    pub detached: bool,
    /// Settings of the control plane that tests and benches change.
    pub tuning: Tuning,
}

/// Where a node's GPUs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Gpus {
    /// The stand-in for the driver's library.
    StandIn,
    /// The driver and the GPUs of this machine.
    Real,
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StandIn => "stand-in",
            Self::Real => "real",
        })
    }
}

impl FromStr for Gpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "stand-in" => Ok(Self::StandIn),
            "real" => Ok(Self::Real),
            _ => Err(Error::Usage(format!(
                "--gpus {text}: there are `stand-in` and `real`"
            ))),
        }
    }
}

/// Settings of the control plane.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tuning {
    /// How long a silent node is thought well of, in seconds. Kubernetes' own
    /// default of 50 s is no good for a test.
    pub node_grace_s: u32,
    /// Calls per second of the controller manager and the scheduler. Their own
    /// default of 20 would be what a bench measures.
    pub api_qps: u32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            node_grace_s: 12,
            api_qps: 2000,
        }
    }
}

/// A node as its cluster wrote it down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name, `gpu-N`.
    pub name: String,
    /// N, counted from 1.
    pub index: u8,
    /// How many GPUs it was made with.
    pub gpus: u8,
    /// The profile that they were made of.
    pub gpu_profile: String,
    /// Where they sit in the node, and how they are linked.
    #[serde(default)]
    pub gpu_layout: GpuLayout,
    /// The runtime of pods that do not ask for one.
    #[serde(default)]
    pub default_runtime: DefaultRuntime,
}

/// What a cluster writes down of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Its name.
    pub name: String,
    /// Its nodes.
    pub nodes: Vec<NodeRecord>,
    /// Where the nodes' GPUs come from.
    pub gpus: Gpus,
    /// The program that its namespaces are made with.
    pub program: PathBuf,
    /// Settings of the control plane.
    pub tuning: Tuning,
    /// The image that every pod's sandbox runs.
    pub pause: Image,
    /// The images that its nodes have beside it.
    pub images: Vec<Image>,
}
