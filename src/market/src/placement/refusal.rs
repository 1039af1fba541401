use std::{collections::BTreeSet, fmt};

use super::{Rejection, Wish};
use crate::wording;

/// Why no node fits: how many nodes failed which filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// How many nodes there are.
    pub nodes: usize,
    /// What they failed, the filter that most of them failed first. The counts
    /// sum to `nodes`.
    pub reasons: Vec<Reason>,
}

/// What some of the nodes failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The filter's name, see [`Rejection::filter`].
    pub filter: &'static str,
    /// How many nodes failed it first.
    pub nodes: usize,
    /// What they have and what is needed, as part of a sentence: `2 have 24 GiB
    /// of GPU memory, 80 GiB needed`.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("0/0 nodes fit: there is no CreoNode yet");
        }
        let reasons: Vec<&str> = self
            .reasons
            .iter()
            .map(|reason| reason.text.as_str())
            .collect();
        write!(f, "0/{} nodes fit: {}", self.nodes, reasons.join("; "))
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    pub(super) fn new(mut rejected: Vec<(String, Rejection)>, wish: &Wish) -> Self {
        let nodes = rejected.len();
        rejected.sort_by(|(a_name, a), (b_name, b)| {
            (a.position(), a_name).cmp(&(b.position(), b_name))
        });
        let rejections: Vec<Rejection> = rejected
            .into_iter()
            .map(|(_, rejection)| rejection)
            .collect();
        let mut reasons: Vec<Reason> = rejections
            .chunk_by(|a, b| a.position() == b.position())
            .map(|alike| Reason {
                filter: alike[0].filter(),
                nodes: alike.len(),
                text: text(alike, wish),
            })
            .collect();
        // Stable, so that ties stay in the order of the filters.
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.nodes));
        Self { nodes, reasons }
    }
}

/// What nodes that failed the same filter have, and what is needed.
fn text(alike: &[Rejection], wish: &Wish) -> String {
    let one = alike.len() == 1;
    let words = |singular: &'static str, plural: &'static str| if one { singular } else { plural };
    let (is, has) = (words("is", "are"), words("has", "have"));
    let rest = match &alike[0] {
        Rejection::NotNamed => format!("{is} not among the named nodes"),
        Rejection::NotAccepted => format!("{is} not accepted"),
        Rejection::OtherRegion => {
            let wanted = wording::either(wish.regions.iter().map(String::as_str));
            format!("{is} not in region {wanted}")
        }
        Rejection::Cordoned => format!("{is} cordoned"),
        Rejection::Exposed => format!(
            "{} containers use GPUs that they did not ask for, or {} not been checked for it",
            words("lets", "let"),
            has
        ),
        Rejection::Unreachable => format!("{is} not reachable"),
        Rejection::Unhealthy => format!("{is} not healthy"),
        Rejection::Tainted(_) => {
            format!("{has} the taint {}, which is not tolerated", named(alike))
        }
        Rejection::NoGpu => format!("{has} no healthy {}", words("GPU", "GPUs")),
        Rejection::Shared => format!(
            "{has} shared GPUs only, {} needed",
            wording::counted(wish.gpu_count, "GPU of its own", "GPUs of its own")
        ),
        Rejection::OtherModel(_) => {
            let wanted = wording::either(wish.gpu_models.iter().map(String::as_str));
            format!("{has} {}, {wanted} needed", named(alike))
        }
        Rejection::Price(_) => {
            let max = wish.max_price_micro_per_gpu_hour.unwrap_or_default();
            let (costs, price) = (words("costs", "cost"), Range::of(alike));
            format!("{costs} {price} micro-credits per GPU-hour, at most {max} allowed")
        }
        Rejection::PodSlots => format!("{has} no pod {} left", words("slot", "slots")),
        Rejection::BackedOff(_) => {
            let wait = Range::of(alike).with(wording::seconds);
            format!("{is} backed off for {wait} after a failed placement")
        }
        amount => format!("{has} {}", too_little(amount, alike, wish)),
    };
    format!("{} {rest}", alike.len())
}

/// What there is too little of, and how much is needed.
fn too_little(amount: &Rejection, alike: &[Rejection], wish: &Wish) -> String {
    let have = Range::of(alike);
    match amount {
        Rejection::GpuMemory(_) => have.bytes_of("GPU memory", wish.gpu_memory_bytes),
        Rejection::Memory(_) => have.bytes_of("free memory", wish.memory_bytes),
        Rejection::EphemeralStorage(_) => {
            have.bytes_of("free ephemeral storage", wish.ephemeral_storage_bytes)
        }
        Rejection::Cpu(_) => {
            let needed = wording::cpus(wish.cpu_milli);
            format!("{} of free CPU, {needed} needed", have.with(wording::cpus))
        }
        Rejection::GpusFree { .. } => {
            let of = Range::between(alike.iter().map(pool_size));
            format!(
                "{have} free {} of {of}, {} needed",
                have.noun("GPU", "GPUs"),
                wish.gpu_count
            )
        }
        _ => format!(
            "{have} {}, {} needed",
            have.noun("GPU", "GPUs"),
            wish.gpu_count
        ),
    }
}

/// What was named in rejections, each once.
fn named(alike: &[Rejection]) -> String {
    let names: BTreeSet<String> = alike
        .iter()
        .filter_map(|rejection| match rejection {
            Rejection::Tainted(taint) => Some(taint.to_string()),
            Rejection::OtherModel(model) => Some(model.clone()),
            _ => None,
        })
        .collect();
    wording::either(names.iter().map(String::as_str))
}

fn amount(rejection: &Rejection) -> i64 {
    match rejection {
        Rejection::GpuMemory(amount)
        | Rejection::GpuCount(amount)
        | Rejection::Price(amount)
        | Rejection::GpusFree { free: amount, .. }
        | Rejection::Cpu(amount)
        | Rejection::Memory(amount)
        | Rejection::EphemeralStorage(amount)
        | Rejection::BackedOff(amount) => *amount,
        _ => 0,
    }
}

fn pool_size(rejection: &Rejection) -> i64 {
    if let Rejection::GpusFree { of, .. } = rejection {
        *of
    } else {
        0
    }
}

/// The least and the most of what several nodes have.
#[derive(Clone, Copy)]
struct Range {
    least: i64,
    most: i64,
}

impl Range {
    fn of(alike: &[Rejection]) -> Self {
        Self::between(alike.iter().map(amount))
    }

    fn between(amounts: impl Iterator<Item = i64> + Clone) -> Self {
        Self {
            least: amounts.clone().min().unwrap_or_default(),
            most: amounts.max().unwrap_or_default(),
        }
    }

    fn noun(self, one: &'static str, many: &'static str) -> &'static str {
        if (self.least, self.most) == (1, 1) {
            one
        } else {
            many
        }
    }

    /// Bytes that are too few of something.
    fn bytes_of(self, what: &str, needed_bytes: i64) -> String {
        let (_, needed) = wording::bytes_beside(self.most, needed_bytes);
        let have = self.with(|bytes| wording::bytes_beside(bytes, needed_bytes).0);
        format!("{have} of {what}, {needed} needed")
    }

    /// The range in words, with one where both ends read the same.
    fn with(self, in_words: impl Fn(i64) -> String) -> String {
        let (least, most) = (in_words(self.least), in_words(self.most));
        if least == most {
            least
        } else {
            format!("{least} to {most}")
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with(|amount| amount.to_string()))
    }
}
