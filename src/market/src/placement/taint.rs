use std::fmt;

use serde::{Deserialize, Serialize};

/// A taint of a Kubernetes node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taint {
    /// Such as `node.kubernetes.io/unschedulable`.
    pub key: String,
    /// Often empty.
    pub value: String,
    /// What it does to pods that do not tolerate it.
    pub effect: Effect,
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, effect } = self;
        let equals = if value.is_empty() { "" } else { "=" };
        write!(f, "{key}{equals}{value}:{effect:?}")
    }
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// New pods are not bound to the node.
    NoSchedule,
    /// New pods are bound elsewhere where that is possible.
    PreferNoSchedule,
    /// New pods are not bound, and running ones are evicted.
    NoExecute,
}

/// What a pod puts up with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toleration {
    /// The taint's key; empty together with [`Operator::Exists`] is any key.
    pub key: String,
    /// How the taint's value is compared.
    pub operator: Operator,
    /// Compared under [`Operator::Equal`].
    pub value: String,
    /// The effect that is tolerated; absent is any.
    pub effect: Option<Effect>,
}

/// How a toleration compares the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operator {
    /// Any value will do.
    Exists,
    /// The value must be the same.
    Equal,
}

impl Toleration {
    /// A toleration of every taint with this key.
    #[must_use]
    pub fn of_key(key: &str, effect: Option<Effect>) -> Self {
        Self {
            key: key.to_owned(),
            operator: Operator::Exists,
            value: String::new(),
            effect,
        }
    }

    /// Whether a pod with this toleration puts up with `taint`, as Kubernetes
    /// reads it.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        let effect = self.effect.is_none_or(|effect| effect == taint.effect);
        let same_key = self.key == taint.key;
        effect
            && match self.operator {
                Operator::Exists => same_key || self.key.is_empty(),
                Operator::Equal => same_key && self.value == taint.value,
            }
    }
}

/// What every replica's pod tolerates, and hence every wish.
///
/// An unseen node's taints are tolerated without limit, so that the cluster
/// never evicts what may still serve; and so are the taints by which operators
/// of clusters keep pods without GPUs away from GPU nodes.
#[must_use]
pub fn standing_tolerations() -> Vec<Toleration> {
    vec![
        Toleration::of_key("node.kubernetes.io/not-ready", Some(Effect::NoExecute)),
        Toleration::of_key("node.kubernetes.io/unreachable", Some(Effect::NoExecute)),
        Toleration::of_key("creo.cloud/gpu", None),
        Toleration::of_key("nvidia.com/gpu", None),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str, value: &str, effect: Effect) -> Taint {
        Taint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect,
        }
    }

    fn toleration(
        key: &str,
        operator: Operator,
        value: &str,
        effect: Option<Effect>,
    ) -> Toleration {
        Toleration {
            key: key.to_owned(),
            operator,
            value: value.to_owned(),
            effect,
        }
    }

    #[test]
    fn tolerations_are_read_as_kubernetes_reads_them() {
        use Effect::{NoExecute, NoSchedule, PreferNoSchedule};
        use Operator::{Equal, Exists};
        let gpu = taint("gpu", "yes", NoSchedule);
        for (tolerated, toleration) in [
            (true, toleration("gpu", Exists, "", None)),
            (true, toleration("gpu", Exists, "ignored", Some(NoSchedule))),
            (true, toleration("gpu", Equal, "yes", None)),
            (true, toleration("", Exists, "", None)),
            (true, toleration("", Exists, "", Some(NoSchedule))),
            (false, toleration("gpu", Equal, "no", None)),
            (false, toleration("gpu", Exists, "", Some(NoExecute))),
            (
                false,
                toleration("gpu", Equal, "yes", Some(PreferNoSchedule)),
            ),
            (false, toleration("cpu", Exists, "", None)),
            (false, toleration("", Equal, "yes", None)),
        ] {
            assert_eq!(toleration.tolerates(&gpu), tolerated, "{toleration:?}");
        }
    }

    #[test]
    fn a_node_that_kubectl_cordoned_is_not_tolerated_but_an_unseen_ones_eviction_is() {
        let tolerated = |taint: &Taint| standing_tolerations().iter().any(|it| it.tolerates(taint));
        assert!(!tolerated(&taint(
            "node.kubernetes.io/unschedulable",
            "",
            Effect::NoSchedule
        )));
        assert!(!tolerated(&taint(
            "node.kubernetes.io/unreachable",
            "",
            Effect::NoSchedule
        )));
        assert!(tolerated(&taint(
            "node.kubernetes.io/unreachable",
            "",
            Effect::NoExecute
        )));
        assert!(tolerated(&taint(
            "nvidia.com/gpu",
            "present",
            Effect::NoSchedule
        )));
    }

    #[test]
    fn a_taint_is_written_as_kubectl_writes_it() {
        assert_eq!(
            taint("gpu", "yes", Effect::NoSchedule).to_string(),
            "gpu=yes:NoSchedule"
        );
        assert_eq!(
            taint("gpu", "", Effect::NoExecute).to_string(),
            "gpu:NoExecute"
        );
    }
}
