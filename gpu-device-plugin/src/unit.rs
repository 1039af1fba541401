//! What the kubelet can give to a container, one by one.

use std::collections::BTreeMap;

use crate::health::Health;
use crate::resource::Resource;

/// Everything that this node offers, and what it has and does not offer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// The units of each resource, in the order of the driver's numbers. Units of one
    /// resource are alike: whoever gets one cannot tell it from another.
    pub units: BTreeMap<Resource, Vec<Unit>>,
    /// The GPUs and parts of GPUs that are not offered, in the order of the driver's numbers.
    pub withheld: Vec<Withheld>,
}

/// One thing that one container can have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its name for the kubelet. It stays the same over restarts of plugin and machine.
    pub id: String,
    /// UUID of the card.
    pub gpu: String,
    /// What of the card it is.
    pub part: Part,
    /// The NUMA node that the card is attached to, where the machine says so.
    pub numa_node: Option<u32>,
    /// The memory that its holder may use, in bytes: all of the card or partition, or the
    /// share's part of it.
    pub memory_bytes: u64,
    /// Whether it may be given to new containers.
    pub health: Health,
}

/// What of a card a unit is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// All of it.
    Whole,
    /// A partition of this UUID.
    Mig(String),
    /// All of it, together with the holders of the card's other shares.
    Share {
        /// Number of the share on its card, from 0.
        number: u32,
        /// How many shares the card has.
        of: u32,
    },
}

impl Unit {
    /// The UUID under which CUDA and the CDI specification know what the container gets.
    #[must_use]
    pub fn uuid(&self) -> &str {
        match &self.part {
            Part::Whole | Part::Share { .. } => &self.gpu,
            Part::Mig(uuid) => uuid,
        }
    }
}

impl Offered {
    /// The name of this share of a card for the kubelet.
    #[must_use]
    pub fn share_id(gpu: &str, number: u32) -> String {
        format!("{gpu}::{number}")
    }

    /// The resource that this card, partition or share is a unit of.
    #[must_use]
    pub fn resource_of(&self, id: &str) -> Option<&Resource> {
        self.units
            .iter()
            .find(|(_, units)| units.iter().any(|unit| unit.id == id))
            .map(|(resource, _)| resource)
    }
}

/// A GPU, or a part of one, that is not offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// UUID of the card.
    pub gpu: String,
    /// What of it: all that there is, or one partition.
    pub part: Part,
    /// A word for machines: the same for the same kind of cause.
    pub reason: &'static str,
    /// Why, and what to do to have it offered.
    pub message: String,
}
