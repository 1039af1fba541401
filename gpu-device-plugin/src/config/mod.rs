//! What a person can decide about a node's GPUs.

mod check;
mod follow;
mod read;
pub mod select;
mod show;
mod tree;

pub use check::Problem;
pub use follow::{ConfigMetrics, ConfigSource, Following};
pub use read::{ConfigError, Overrides, load};

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum;

use crate::resource::Resource;
use select::Selector;

/// The configuration in effect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// The resource of whole cards, from which the names of all others are made.
    pub resource: Resource,
    /// What becomes of cards that are not alike.
    pub unlike: Unlike,
    /// What becomes of partitioned cards.
    pub mig: MigStrategy,
    /// Which cards are shared.
    pub sharing: Sharing,
    /// The cards and partitions that are not offered.
    pub exclude: Vec<Selector>,
    /// The cards and partitions that nobody new is given.
    pub out_of_service: Vec<Selector>,
    /// What counts as a fault, and how long.
    pub health: HealthConfig,
    /// How containers learn what a card needs.
    pub cdi: Cdi,
    /// When containers are given device nodes one by one as well.
    pub device_nodes: DeviceNodes,
}

/// What becomes of cards that are not alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unlike {
    /// Each model has a resource of its own.
    #[default]
    ByModel,
    /// None of them is offered.
    Refuse,
}

/// What becomes of partitioned cards (Multi-Instance GPU).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum MigStrategy {
    /// They are not offered.
    #[default]
    None,
    /// Their partitions are offered under the name of whole cards, and have to be alike.
    Single,
    /// Each size of partition has a resource of its own.
    Mixed,
}

/// Which cards are shared, and how shares are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sharing {
    /// On which cards the shares of new containers are.
    pub allocation: Allocation,
    /// The first that fits a card decides; a card that none fits is not shared.
    pub cards: Vec<SharedCards>,
}

/// On which cards the shares of new containers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Allocation {
    /// On those that have the fewest left, so that others stay empty.
    #[default]
    Pack,
    /// On those that have the most left.
    Spread,
}

/// Cards that are shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedCards {
    /// Which cards.
    pub select: Selector,
    /// How many containers have a card at a time.
    pub replicas: u32,
}

/// What counts as a fault, and how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// How long a GPU must be without a fault before it is offered again.
    pub healthy_after: Duration,
    /// XIDs that are told and change nothing.
    pub ignored_xids: BTreeSet<u64>,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            healthy_after: Duration::from_mins(1),
            ignored_xids: BTreeSet::new(),
        }
    }
}

/// How containers learn what a card needs: the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cdi {
    /// Whether the container runtime knows CDI. Where it does not, everything is in the
    /// plugin's answer to the kubelet.
    pub enabled: bool,
    /// Whose specification is used.
    pub source: CdiSource,
    /// The kind of the devices of a specification that is on the host already.
    pub kind: Resource,
}

/// Whose CDI specification is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum CdiSource {
    /// The plugin writes one.
    #[default]
    Generated,
    /// One that is on the host already.
    Existing,
}

impl Default for Cdi {
    fn default() -> Self {
        Self {
            enabled: true,
            source: CdiSource::default(),
            kind: Resource::nvidia(),
        }
    }
}

/// When containers are given device nodes one by one as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceNodes {
    /// Where there is no CDI.
    #[default]
    WithoutCdi,
    /// Always: the kubelet's static CPU manager updates containers, and some runtimes then
    /// forget the devices that the kubelet has not heard of.
    Always,
}
