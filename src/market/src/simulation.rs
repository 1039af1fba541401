//! Long random runs of the rules against naive models of the world.
//!
//! A run is given by its seed and its number of steps, and the same seed gives
//! the same run on every machine. It either reports what it did, so that a run
//! that tested nothing shows, or the first thing that went wrong.

mod nodes;
mod random;
mod roll;

pub use nodes::{PlacementReport, placement_run};
pub use random::Random;
pub use roll::{ReplicasReport, replicas_run};

use std::fmt;

/// Something that the rules must never do, and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The run that shows it.
    pub seed: u64,
    /// The step at which it showed, from 0.
    pub step: u64,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, step {}: {}", self.seed, self.step, self.what)
    }
}

impl std::error::Error for Violation {}
