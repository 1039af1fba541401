//! What a canary says: a pod that asked for no GPU and tries to open every one.
//!
//! The device plugin's program writes it as its container's termination message; the operator
//! reads it.

use serde::{Deserialize, Serialize};

/// The most device nodes that are told one by one: a termination message has 4 KiB.
pub const MAX_NODES: usize = 32;

/// What opening a device node gives where the device cgroup does its work.
pub const REFUSED: &str = "EPERM";

/// What a canary found.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// NVIDIA's device nodes in its `/dev`, those that were not refused first; at most
    /// [`MAX_NODES`] of them.
    pub nodes: Vec<Node>,
    /// How many more there are.
    pub more: usize,
}

/// One device node, and what came of opening it for reading and writing.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Where it is, such as /dev/nvidia0.
    pub path: String,
    /// `opens`, or the error's name such as EPERM.
    pub result: String,
}

impl Found {
    /// The nodes that the device cgroup did not refuse. A node that could not be opened for
    /// another reason (a file's mode, a driver that is not loaded) counts as well: another
    /// container can get past that.
    pub fn reached(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.result != REFUSED)
    }
}
