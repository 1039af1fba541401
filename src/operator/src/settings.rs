//! The operator's settings, resolved: what the controllers go by.

use std::time::Duration;

use creo_api::image::OwnImages;

/// What a hub node is offered at when it becomes a CreoNode by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubOffer {
    /// Whether it is accepted at once.
    pub accepted: bool,
    /// The account that is paid.
    pub owner: String,
    /// Where it is.
    pub region: String,
    /// What one GPU costs for one hour, in micro-credits.
    pub price_micro_per_gpu_hour: i64,
}

/// What the controllers go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where Creo's own images come from.
    pub images: OwnImages,
    /// What hub nodes are offered at.
    pub hub_offer: HubOffer,
    /// How long a pod may wait for the scheduler before its Placement is withdrawn.
    pub unschedulable_timeout: Duration,
}
