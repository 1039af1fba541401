//! The cluster as plans see it.

/// A cluster in which Creo is installed but for its operator, which the plans
/// run themselves.
pub trait World: Send + Sync {}
