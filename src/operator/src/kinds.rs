//! Waits at the start until the API server knows our kinds.
//!
//! RBAC: discovery of `creo.cloud/v1alpha1`, which Kubernetes grants to every authenticated user
//! (`system:discovery`).

use std::collections::BTreeSet;
use std::time::Duration;

use creo_process::probes::Check;
use kube::Client;

const GROUP_VERSION: &str = "creo.cloud/v1alpha1";
const NEEDED: [&str; 6] = [
    "agentdeployments",
    "agentdeployments/status",
    "creonodes",
    "creonodes/status",
    "placements",
    "placements/status",
];

/// How often it is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// Waits until every kind is served; the check names those that are missing meanwhile.
pub async fn wait_until_served(client: &Client, check: &Check) {
    let mut said = String::new();
    loop {
        let missing = match client.list_api_group_resources(GROUP_VERSION).await {
            Ok(list) => {
                let served: BTreeSet<&str> =
                    list.resources.iter().map(|one| one.name.as_str()).collect();
                missing(&served)
            }
            Err(kube::Error::Api(status)) if status.code == 404 => missing(&BTreeSet::new()),
            Err(error) => Some(format!(
                "the API server cannot be asked which kinds it knows: {error}"
            )),
        };
        let Some(missing) = missing else {
            check.holds();
            return;
        };
        if missing != said {
            tracing::warn!("{missing}");
            said.clone_from(&missing);
        }
        check.fails(missing);
        tokio::time::sleep(PAUSE).await;
    }
}

fn missing(served: &BTreeSet<&str>) -> Option<String> {
    let missing: Vec<&str> = NEEDED
        .into_iter()
        .filter(|name| !served.contains(name))
        .collect();
    (!missing.is_empty()).then(|| {
        format!(
            "the API server does not know {} of {GROUP_VERSION}; install the chart, or run `creo crds | kubectl apply --server-side -f -`",
            missing.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let text = missing(&BTreeSet::from(["creonodes", "creonodes/status"])).unwrap();
        assert!(
            text.contains("agentdeployments, agentdeployments/status, placements"),
            "{text}"
        );
        assert!(text.contains("creo crds"), "{text}");
        assert_eq!(missing(&BTreeSet::from(NEEDED)), None);
    }
}
