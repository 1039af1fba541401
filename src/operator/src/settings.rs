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

/// How canaries are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canaries {
    /// The image: that of the device plugin, which is on the nodes already.
    pub image: String,
    /// When the nodes pull it: Always, IfNotPresent or Never.
    pub pull_policy: String,
    /// Names of Secrets with the registry's credentials, in their namespace.
    pub pull_secrets: Vec<String>,
    /// Where they are.
    pub namespace: String,
    /// How often a node is looked at that was found in order.
    pub interval: Duration,
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
    /// How canaries are sent; none are where this is absent, and every node is taken to keep
    /// containers from GPUs that they did not ask for.
    pub canaries: Option<Canaries>,
}
