//! The arguments of `creo operator`, and how they become settings.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};
use creo_api::image::OwnImages;
use k8s_openapi::jiff::SignedDuration;

use crate::settings::{Canaries, HubOffer, Settings};

/// The arguments of `creo operator`.
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// The folder with the engine profiles, one file NAME.yaml for each.
    #[arg(long, env = "CREO_ENGINES_DIR", value_name = "DIR")]
    pub engines_dir: PathBuf,

    /// Where Creo's own images come from, such as registry.example.com/creo.
    #[arg(long, env = "CREO_IMAGE_REGISTRY", value_name = "REGISTRY", value_parser = registry)]
    pub image_registry: String,

    /// The tag of Creo's own images.
    #[arg(long, env = "CREO_IMAGE_TAG", value_name = "TAG", value_parser = tag)]
    pub image_tag: String,

    /// Where /metrics, /healthz and /readyz are served.
    #[arg(
        long,
        env = "CREO_METRICS_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub metrics_address: SocketAddr,

    /// The namespace of the lease that lets one operator work at a time [default: that of the
    /// pod or of the kubeconfig's context]
    #[arg(long, env = "CREO_LEASE_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// The name of the lease.
    #[arg(
        long,
        env = "CREO_LEASE_NAME",
        value_name = "NAME",
        default_value = "creo-operator"
    )]
    pub lease_name: String,

    /// How long the lease holds after its last renewal; another operator takes over after this
    /// time without a word. 3s to 5m.
    #[arg(long, env = "CREO_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = lease_duration)]
    pub lease_duration: Duration,

    /// Whether hub nodes with GPUs are accepted at once when they become CreoNodes.
    #[arg(long, env = "CREO_ACCEPT_HUB_NODES", value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    pub accept_hub_nodes: bool,

    /// The account that is paid for hub nodes that become CreoNodes by themselves.
    #[arg(long, env = "CREO_DEFAULT_OWNER", value_name = "ACCOUNT", default_value = "platform", value_parser = word)]
    pub default_owner: String,

    /// The region of hub nodes that become CreoNodes by themselves.
    #[arg(long, env = "CREO_DEFAULT_REGION", value_name = "REGION", default_value = "local", value_parser = word)]
    pub default_region: String,

    /// The price of hub nodes that become CreoNodes by themselves, in micro-credits for one GPU
    /// and one hour.
    #[arg(
        long,
        env = "CREO_DEFAULT_PRICE_MICRO_PER_GPU_HOUR",
        value_name = "MICRO",
        default_value_t = 1_000_000,
        value_parser = clap::value_parser!(i64).range(0..=1_000_000_000_000)
    )]
    pub default_price_micro_per_gpu_hour: i64,

    /// How long the scheduler may refuse a replica's pod before the replica goes elsewhere. 1s
    /// to 1h.
    #[arg(long, env = "CREO_UNSCHEDULABLE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = unschedulable_timeout)]
    pub unschedulable_timeout: Duration,

    /// The image of canaries: pods that ask for no GPU and try to open every one, that of the
    /// device plugin. Nothing is placed on a node where they succeed. Without it none are sent,
    /// and every node is taken to be in order.
    #[arg(
        long,
        env = "CREO_CANARY_IMAGE",
        value_name = "IMAGE",
        requires = "canary_namespace"
    )]
    pub canary_image: Option<String>,

    /// The namespace of canaries.
    #[arg(long, env = "CREO_CANARY_NAMESPACE", value_name = "NAMESPACE")]
    pub canary_namespace: Option<String>,

    /// When nodes pull the canaries' image.
    #[arg(long, env = "CREO_CANARY_PULL_POLICY", value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub canary_pull_policy: String,

    /// A Secret in the canaries' namespace with credentials for their image's registry; may be
    /// given several times, or as a list with commas.
    #[arg(
        long = "canary-pull-secret",
        env = "CREO_CANARY_PULL_SECRET",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub canary_pull_secrets: Vec<String>,

    /// How often a node is looked at by a canary that was found in order; one that was not is
    /// looked at every minute. 5s to 24h.
    #[arg(long, env = "CREO_CANARY_INTERVAL", value_name = "DURATION", default_value = "1h", value_parser = canary_interval)]
    pub canary_interval: Duration,

    /// How many objects each controller works on at once.
    #[arg(long, env = "CREO_CONCURRENCY", value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
}

impl OperatorArgs {
    /// What the controllers go by.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            images: OwnImages {
                registry: self.image_registry.clone(),
                tag: self.image_tag.clone(),
            },
            hub_offer: HubOffer {
                accepted: self.accept_hub_nodes,
                owner: self.default_owner.clone(),
                region: self.default_region.clone(),
                price_micro_per_gpu_hour: self.default_price_micro_per_gpu_hour,
            },
            unschedulable_timeout: self.unschedulable_timeout,
            canaries: self.canaries(),
        }
    }

    fn canaries(&self) -> Option<Canaries> {
        Some(Canaries {
            image: self
                .canary_image
                .clone()
                .filter(|image| !image.is_empty())?,
            pull_policy: self.canary_pull_policy.clone(),
            pull_secrets: self.canary_pull_secrets.clone(),
            namespace: self.canary_namespace.clone()?,
            interval: self.canary_interval,
        })
    }
}

fn registry(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    if text.is_empty() {
        return Err(
            "name the registry that has Creo's images, such as registry.example.com/creo"
                .to_owned(),
        );
    }
    if text.contains("://") || text.contains(char::is_whitespace) {
        return Err("write it as in an image's name, such as registry.example.com/creo".to_owned());
    }
    Ok(text.to_owned())
}

fn tag(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 128
        && !text.starts_with(['.', '-'])
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if fits {
        Ok(text.to_owned())
    } else {
        Err(
            "write a tag of at most 128 letters, digits, '.', '_' and '-', such as 0.1.0"
                .to_owned(),
        )
    }
}

/// A word as CreoNodes hold it for owners and regions.
fn word(text: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("write at most 63 lower-case letters, digits and '-', beginning and ending with a letter or digit".to_owned())
    }
}

fn duration(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let parsed: SignedDuration = text
        .parse()
        .map_err(|_| format!("{text:?} is not a duration: write it like 30s or 2m"))?;
    let duration = Duration::try_from(parsed)
        .map_err(|_| format!("{text:?} is negative: write it like 30s or 2m"))?;
    if (least..=most).contains(&duration) {
        Ok(duration)
    } else {
        Err(format!(
            "write a duration from {} to {} seconds",
            least.as_secs(),
            most.as_secs()
        ))
    }
}

fn lease_duration(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(3), Duration::from_mins(5))
}

fn unschedulable_timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(1), Duration::from_hours(1))
}

fn canary_interval(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(5), Duration::from_hours(24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them_and_bounded() {
        assert_eq!(lease_duration("15s"), Ok(Duration::from_secs(15)));
        assert_eq!(lease_duration("1m30s"), Ok(Duration::from_secs(90)));
        for bad in ["", "15", "-5s", "1s", "1h", "soon"] {
            assert!(lease_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_would_make_every_image_name_wrong_is_refused() {
        assert_eq!(
            registry("registry.example.com/creo/"),
            Ok("registry.example.com/creo".to_owned())
        );
        for bad in ["", "/", "https://registry.example.com", "a b"] {
            assert!(registry(bad).is_err(), "{bad}");
        }
        for bad in ["", "a/b", "-x", "a:b"] {
            assert!(tag(bad).is_err(), "{bad}");
        }
        assert!(word("eu-west").is_ok() && word("EU").is_err() && word("-x").is_err());
    }
}
