//! The plans themselves.

mod crash;
mod market;
mod soak;

use super::plan::Plan;

/// Every plan, quick ones first.
#[must_use]
pub fn all() -> Vec<Box<dyn Plan>> {
    vec![
        Box::new(market::PLACEMENT),
        Box::new(market::REPLICAS),
        Box::new(crash::CrashAfterEveryWrite),
        Box::new(soak::Soak),
    ]
}
