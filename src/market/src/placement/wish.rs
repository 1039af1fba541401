use serde::{Deserialize, Serialize};

use super::{Amounts, Toleration};
use crate::wording;

/// What one replica needs of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// GPUs, all on one node.
    pub gpu_count: i64,
    /// Memory of each GPU at least, in bytes; 0 is any.
    pub gpu_memory_bytes: i64,
    /// GPU models of which one must match, see [`Wish::accepts_model`]; empty
    /// is any.
    pub gpu_models: Vec<String>,
    /// Whether a share of a GPU will do, which others use at the same time.
    pub gpu_shared: bool,
    /// CPU, in thousandths of a CPU.
    pub cpu_milli: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Ephemeral storage, in bytes.
    pub ephemeral_storage_bytes: i64,
    /// Nodes that may be used; empty is any.
    pub nodes: Vec<String>,
    /// Regions that may be used; empty is any.
    pub regions: Vec<String>,
    /// What one GPU may cost for one hour at most, in micro-credits.
    pub max_price_micro_per_gpu_hour: Option<i64>,
    /// Taints that the replica's pod puts up with.
    pub tolerations: Vec<Toleration>,
}

/// What a replica was placed on, as far as a changed wish may no longer agree
/// with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The node's name.
    pub node: String,
    /// Where the node is; absent where the node is not known any more.
    pub region: Option<String>,
    /// GPUs of the replica.
    pub gpu_count: i64,
    /// The GPUs' model.
    pub gpu_model: String,
    /// Memory of each GPU, in bytes.
    pub gpu_memory_bytes: i64,
    /// Whether others use the GPU at the same time.
    pub gpu_shared: bool,
    /// What one GPU costs for one hour, in micro-credits.
    pub price_micro_per_gpu_hour: i64,
}

impl Wish {
    /// What the replica's pod uses beside GPUs.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        Amounts {
            cpu_milli: self.cpu_milli,
            memory_bytes: self.memory_bytes,
            ephemeral_storage_bytes: self.ephemeral_storage_bytes,
            pods: 1,
        }
    }

    /// Whether a GPU's model will do: the words of one wanted model stand in
    /// its name, in their order and side by side, whatever their case. `L4`
    /// thus matches `NVIDIA L4` and not `NVIDIA L40S`.
    #[must_use]
    pub fn accepts_model(&self, model: &str) -> bool {
        let has = words(model);
        self.gpu_models.is_empty()
            || self
                .gpu_models
                .iter()
                .map(|wanted| words(wanted))
                .any(|wanted| {
                    !wanted.is_empty() && has.windows(wanted.len()).any(|window| window == wanted)
                })
    }

    /// Whether a replica on `terms` is still what is wished.
    ///
    /// # Errors
    ///
    /// The sentence says what no longer agrees.
    pub fn agrees_with(&self, terms: &Terms) -> Result<(), String> {
        let disagreements = [
            (self.gpu_count != terms.gpu_count).then(|| {
                format!(
                    "it has {}, {} needed",
                    wording::counted(terms.gpu_count, "GPU", "GPUs"),
                    self.gpu_count
                )
            }),
            (self.gpu_memory_bytes > terms.gpu_memory_bytes).then(|| {
                let (have, need) =
                    wording::bytes_beside(terms.gpu_memory_bytes, self.gpu_memory_bytes);
                format!("it has {have} of GPU memory, {need} needed")
            }),
            (terms.gpu_shared && !self.gpu_shared)
                .then(|| "it has a share of a GPU, one of its own needed".to_owned()),
            (!self.accepts_model(&terms.gpu_model)).then(|| {
                let wanted = wording::either(self.gpu_models.iter().map(String::as_str));
                format!("it has {}, {wanted} needed", terms.gpu_model)
            }),
            (!listed(&self.nodes, &terms.node))
                .then(|| "its node is not among the named nodes".to_owned()),
            terms
                .region
                .as_ref()
                .filter(|region| !listed(&self.regions, region))
                .map(|region| {
                    let wanted = wording::either(self.regions.iter().map(String::as_str));
                    format!("it is in region {region}, {wanted} needed")
                }),
            self.max_price_micro_per_gpu_hour
                .filter(|max| terms.price_micro_per_gpu_hour > *max)
                .map(|max| {
                    let price = terms.price_micro_per_gpu_hour;
                    format!("it costs {price} micro-credits per GPU-hour, at most {max} allowed")
                }),
        ];
        disagreements
            .into_iter()
            .flatten()
            .next()
            .map_or(Ok(()), Err)
    }
}

/// Whether an item is in a list where an empty list stands for everything.
pub(super) fn listed(list: &[String], item: &str) -> bool {
    list.is_empty() || list.iter().any(|listed| listed == item)
}

fn words(model: &str) -> Vec<String> {
    model
        .split(|c: char| !c.is_alphanumeric() && c != '.')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_matches_by_whole_words_side_by_side_in_any_case() {
        for (wanted, model, accepted) in [
            ("H100", "NVIDIA H100 80GB HBM3", true),
            ("h100 80gb", "NVIDIA H100 80GB HBM3", true),
            ("h100-80gb", "NVIDIA H100 80GB HBM3", true),
            ("RTX 4090", "NVIDIA GeForce RTX 4090", true),
            ("4090 RTX", "NVIDIA GeForce RTX 4090", false),
            ("GeForce 4090", "NVIDIA GeForce RTX 4090", false),
            ("L4", "NVIDIA L40S", false),
            ("L4", "NVIDIA L4", true),
            ("A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB", true),
            (" - ", "NVIDIA L4", false),
            ("NVIDIA GeForce RTX 4090 Ti Super", "NVIDIA L4", false),
        ] {
            let wish = Wish {
                gpu_models: vec![wanted.to_owned()],
                ..Wish::default()
            };
            assert_eq!(wish.accepts_model(model), accepted, "{wanted} in {model}");
        }
        assert!(Wish::default().accepts_model("anything"));
    }

    fn terms() -> Terms {
        Terms {
            node: "a".to_owned(),
            region: Some("eu".to_owned()),
            gpu_count: 1,
            gpu_model: "NVIDIA L4".to_owned(),
            gpu_memory_bytes: 24 << 30,
            gpu_shared: false,
            price_micro_per_gpu_hour: 500,
        }
    }

    #[test]
    fn a_wish_says_what_no_longer_agrees_with_the_terms() {
        let wish = Wish {
            gpu_count: 1,
            ..Wish::default()
        };
        let smaller = Wish {
            gpu_memory_bytes: 16 << 30,
            ..wish.clone()
        };
        assert_eq!(
            [wish.agrees_with(&terms()), smaller.agrees_with(&terms())],
            [Ok(()), Ok(())]
        );
        for (changed, expected) in [
            (
                Wish {
                    gpu_count: 2,
                    ..wish.clone()
                },
                "it has 1 GPU, 2 needed",
            ),
            (
                Wish {
                    gpu_memory_bytes: 80 << 30,
                    ..wish.clone()
                },
                "it has 24 GiB of GPU memory, 80 GiB needed",
            ),
            (
                Wish {
                    gpu_models: vec!["H100".to_owned()],
                    ..wish.clone()
                },
                "it has NVIDIA L4, H100 needed",
            ),
            (
                Wish {
                    nodes: vec!["b".to_owned()],
                    ..wish.clone()
                },
                "its node is not among the named nodes",
            ),
            (
                Wish {
                    regions: vec!["us".to_owned()],
                    ..wish.clone()
                },
                "it is in region eu, us needed",
            ),
            (
                Wish {
                    max_price_micro_per_gpu_hour: Some(499),
                    ..wish.clone()
                },
                "it costs 500 micro-credits per GPU-hour, at most 499 allowed",
            ),
        ] {
            assert_eq!(changed.agrees_with(&terms()), Err(expected.to_owned()));
        }
    }

    #[test]
    fn a_replica_on_a_share_is_replaced_when_one_will_do_no_longer() {
        let share = Terms {
            gpu_shared: true,
            ..terms()
        };
        let wish = |gpu_shared| Wish {
            gpu_count: 1,
            gpu_shared,
            ..Wish::default()
        };
        assert_eq!(wish(true).agrees_with(&share), Ok(()));
        assert_eq!(wish(true).agrees_with(&terms()), Ok(()));
        assert_eq!(
            wish(false).agrees_with(&share),
            Err("it has a share of a GPU, one of its own needed".to_owned())
        );
    }

    #[test]
    fn a_wish_agrees_with_a_price_at_its_limit_and_with_an_unknown_region() {
        let wish = Wish {
            gpu_count: 1,
            regions: vec!["us".to_owned()],
            max_price_micro_per_gpu_hour: Some(500),
            ..Wish::default()
        };
        assert_eq!(
            wish.agrees_with(&Terms {
                region: None,
                ..terms()
            }),
            Ok(())
        );
    }
}
