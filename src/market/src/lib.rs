//! Creo's market rules as pure functions of values.
//!
//! Nothing here has a clock, a socket or a file: the time comes in as a value,
//! and the same input always gives the same answer. Whatever is compared or
//! paid is an integer whose name ends in its unit.

pub mod money;
pub mod placement;
pub mod replicas;
pub mod simulation;
pub mod wording;
