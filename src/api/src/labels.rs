//! Labels. What is labelled and what selects are built from the same place, so
//! that a selector can never name labels that nothing carries.

use std::collections::BTreeMap;

/// Who made the object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The application, which is the AgentDeployment, as common tools show it.
pub const NAME: &str = "app.kubernetes.io/name";
/// The AgentDeployment that the object belongs to.
pub const DEPLOYMENT: &str = "creo.cloud/deployment";
/// The Placement that the object belongs to.
pub const PLACEMENT: &str = "creo.cloud/placement";

/// The value of [`MANAGED_BY`].
pub const CREO: &str = "creo";

/// A set of labels.
pub type Labels = BTreeMap<String, String>;

/// What selects everything of an AgentDeployment in its namespace: the part of
/// [`deployment`] and [`placement`] that tells one deployment from another.
#[must_use]
pub fn selector(deployment: &str) -> Labels {
    Labels::from([(DEPLOYMENT.to_owned(), deployment.to_owned())])
}

/// The labels of what belongs to an AgentDeployment as a whole, such as its
/// Service.
#[must_use]
pub fn deployment(deployment: &str) -> Labels {
    let mut labels = selector(deployment);
    labels.insert(MANAGED_BY.to_owned(), CREO.to_owned());
    labels.insert(NAME.to_owned(), deployment.to_owned());
    labels
}

/// The labels of a Placement and of its pod.
#[must_use]
pub fn placement(deployment_name: &str, placement: &str) -> Labels {
    let mut labels = deployment(deployment_name);
    labels.insert(PLACEMENT.to_owned(), placement.to_owned());
    labels
}

/// A selector as the text that list calls and `/scale` take.
#[must_use]
pub fn selector_text(labels: &Labels) -> String {
    labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_selector_of_a_deployment_selects_its_placements_and_no_others() {
        let selects = |labels: &Labels| {
            selector("chat")
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        };
        assert!(selects(&deployment("chat")));
        assert!(selects(&placement("chat", "chat-1f2e-0")));
        assert!(!selects(&placement("chat-2", "chat-2-1f2e-0")));
    }

    #[test]
    fn a_selector_is_written_as_list_calls_take_it() {
        assert_eq!(
            selector_text(&selector("chat")),
            "creo.cloud/deployment=chat"
        );
        assert_eq!(
            selector_text(&deployment("chat")),
            "app.kubernetes.io/managed-by=creo,app.kubernetes.io/name=chat,creo.cloud/deployment=chat"
        );
    }
}
