//! The controllers of Creo, one folder per kind.
//!
//! [`run::run`] is the whole process. [`base`] is what every controller stands on and knows no
//! kind of Creo; [`fleet`] counts what is free where; [`node`], [`isolation`],
//! [`deployment`] and [`placement`] are the controllers. What is decided is decided by pure functions: the rules in `creo_market`,
//! and `plan`, `build` and `status` of each controller.

pub mod annotations;
pub mod arguments;
pub mod base;
pub mod deployment;
pub mod digest;
pub mod engine;
pub mod fleet;
pub mod isolation;
pub mod kinds;
pub mod node;
pub mod placement;
pub mod run;
pub mod settings;
pub mod wiring;

pub use arguments::OperatorArgs;
pub use run::{OperatorError, run};
