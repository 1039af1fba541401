//! What every controller stands on: caches, the work queue, leadership, and the one place that
//! publishes what happened. Nothing here knows a kind of Creo.

pub mod backoff;
pub mod cache;
pub mod conditions;
pub mod error;
pub mod key;
pub mod leader;
pub mod lease;
pub mod publish;
pub mod queue;
pub mod runner;
pub mod slim;
pub mod write;

pub use cache::Cache;
pub use error::{Class, ReconcileError};
pub use key::Key;
pub use publish::{Note, Outcome, Publisher, Report};
pub use runner::{Reconciler, Runner};
