use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::{Effect, GpuPool, Node, Part, Wish};
use crate::wording;

/// One replica of the deployment more on a node outweighs all the rest: the sum
/// of the other parts stays below it.
const SPREAD_POINTS: i64 = 1_000_000;
/// For the cheapest of the nodes that fit; nothing for the dearest.
const PRICE_POINTS: i64 = 500_000;
/// For a node without a taint that asks to be avoided.
const UNTAINTED_POINTS: i64 = 200_000;
/// For a node that the replica fills up; half of it where one GPU stays free.
const PACKING_POINTS: i64 = 200_000;
/// For the GPU with the least memory that fits; less for more memory.
const FITTING_POINTS: i64 = 90_000;

/// A node that fits, and how well.
///
/// The score is a sum of integers: few replicas of the same deployment count
/// most, so that one node's fault takes as few of them as possible; then a low
/// price; then that the node does not ask to be avoided; then that few GPUs
/// stay free beside the replica. Packing rather than spreading unrelated
/// replicas keeps whole nodes free for those that need many GPUs at once, and
/// GPUs are never shared, so a full node serves no worse. Then a GPU that is no
/// larger than it must be. Ties go to the name that sorts first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The node's name.
    pub node: String,
    /// The resource that the GPUs come from.
    pub resource: String,
    /// The model that is promised.
    pub gpu_model: String,
    /// Memory of each GPU that is promised, in bytes.
    pub gpu_memory_bytes: i64,
    /// Whether others use the GPU at the same time.
    pub gpu_shared: bool,
    /// What one GPU costs for one hour, in micro-credits.
    pub price_micro_per_gpu_hour: i64,
    /// The more the better; comparable within one ranking only.
    pub score: i64,
    /// Why the node is where it is in the ranking, for people to read.
    pub reasons: Vec<String>,
}

/// What the parts of the score are measured against.
struct Field {
    least_price_micro: i64,
    most_price_micro: i64,
    least_memory_bytes: i64,
}

pub(super) fn ordered(fitting: &[(&Node, &GpuPool)], wish: &Wish) -> Vec<Candidate> {
    let prices = || {
        fitting
            .iter()
            .map(|(node, _)| node.price_micro_per_gpu_hour)
    };
    let field = Field {
        least_price_micro: prices().min().unwrap_or_default(),
        most_price_micro: prices().max().unwrap_or_default(),
        least_memory_bytes: fitting
            .iter()
            .map(|(_, pool)| memory_bytes(pool))
            .min()
            .unwrap_or_default(),
    };
    let mut candidates: Vec<Candidate> = fitting
        .iter()
        .map(|(node, pool)| candidate(node, pool, wish, &field))
        .collect();
    candidates.sort_by(|a, b| (Reverse(a.score), &a.node).cmp(&(Reverse(b.score), &b.node)));
    candidates
}

fn memory_bytes(pool: &GpuPool) -> i64 {
    pool.promised().map_or(0, |kind| kind.memory_bytes)
}

fn candidate(node: &Node, pool: &GpuPool, wish: &Wish, field: &Field) -> Candidate {
    let left = pool.free.saturating_sub(wish.gpu_count).max(0);
    let avoided = node.taints.iter().any(|taint| {
        taint.effect == Effect::PreferNoSchedule
            && !wish
                .tolerations
                .iter()
                .any(|toleration| toleration.tolerates(taint))
    });
    let parts = [
        node.replicas_here.max(0).saturating_mul(-SPREAD_POINTS),
        share(
            PRICE_POINTS,
            field
                .most_price_micro
                .saturating_sub(node.price_micro_per_gpu_hour),
            field
                .most_price_micro
                .saturating_sub(field.least_price_micro),
        ),
        if avoided { 0 } else { UNTAINTED_POINTS },
        PACKING_POINTS / left.saturating_add(1),
        share(FITTING_POINTS, field.least_memory_bytes, memory_bytes(pool)),
    ];
    let mut reasons = vec![
        match node.replicas_here.max(0) {
            0 => "no other replica of this deployment is here".to_owned(),
            1 => "1 other replica of this deployment is here".to_owned(),
            more => format!("{more} other replicas of this deployment are here"),
        },
        format!(
            "{} micro-credits per GPU-hour",
            node.price_micro_per_gpu_hour
        ),
        format!(
            "{} of {} free afterwards",
            left,
            wording::counted(pool.count, "GPU", "GPUs")
        ),
    ];
    reasons.extend(avoided.then(|| "a taint asks to be avoided".to_owned()));
    Candidate {
        node: node.name.clone(),
        resource: pool.resource.clone(),
        gpu_model: pool
            .promised()
            .map(|kind| kind.model.clone())
            .unwrap_or_default(),
        gpu_memory_bytes: memory_bytes(pool),
        gpu_shared: pool.part == Part::Share,
        price_micro_per_gpu_hour: node.price_micro_per_gpu_hour,
        score: parts.into_iter().fold(0, i64::saturating_add),
        reasons,
    }
}

/// `points` times `part` of `whole`, rounded down; all of them where the whole
/// is nothing.
fn share(points: i64, part: i64, whole: i64) -> i64 {
    if whole <= 0 {
        return points;
    }
    let exact = i128::from(points) * i128::from(part.clamp(0, whole)) / i128::from(whole);
    i64::try_from(exact).unwrap_or(points)
}
