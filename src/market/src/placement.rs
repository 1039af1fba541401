//! Which node a replica goes to, or why it goes to none.
//!
//! [`rank`] filters the nodes by a [`Wish`] and orders those that fit; where
//! none fits, the [`Refusal`] counts how many nodes failed which filter.
//! [`place`] does so for several replicas, each seeing what the ones before it
//! took.

mod filter;
mod node;
mod refusal;
mod score;
mod taint;
#[cfg(test)]
mod tests;
mod wish;

pub use filter::Rejection;
pub use node::{Amounts, GpuKind, GpuPool, Node, Part};
pub use refusal::{Reason, Refusal};
pub use score::Candidate;
pub use taint::{Effect, Operator, Taint, Toleration, standing_tolerations};
pub use wish::{Terms, Wish};

/// The nodes that fit `wish`, best first, or why none does.
///
/// `now_ms` is the time in milliseconds on the clock of
/// [`Node::backed_off_until_ms`]. The order of `nodes` does not matter, as long
/// as their names differ.
///
/// # Errors
///
/// The refusal says how many nodes failed which filter.
pub fn rank(nodes: &[Node], wish: &Wish, now_ms: i64) -> Result<Vec<Candidate>, Refusal> {
    let mut fitting = Vec::new();
    let mut rejected = Vec::new();
    for node in nodes {
        match filter::pool(node, wish, now_ms) {
            Ok(pool) => fitting.push((node, pool)),
            Err(rejection) => rejected.push((node.name.clone(), rejection)),
        }
    }
    if fitting.is_empty() {
        return Err(Refusal::new(rejected, wish));
    }
    Ok(score::ordered(&fitting, wish))
}

/// What became of several replicas of one deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// A node for each replica that got one, in the order of placing.
    pub chosen: Vec<Candidate>,
    /// Why the next one got none; absent where each got one.
    pub refusal: Option<Refusal>,
}

/// Places up to `replicas` replicas one after the other, and takes from `nodes`
/// what each of them uses.
pub fn place(nodes: &mut [Node], wish: &Wish, replicas: usize, now_ms: i64) -> Placed {
    let mut chosen = Vec::new();
    for _ in 0..replicas {
        match rank(nodes, wish, now_ms) {
            Ok(candidates) => chosen.extend(candidates.into_iter().next().inspect(|best| {
                for node in nodes.iter_mut().filter(|node| node.name == best.node) {
                    node.take(&best.resource, wish);
                }
            })),
            Err(refusal) => {
                return Placed {
                    chosen,
                    refusal: Some(refusal),
                };
            }
        }
    }
    Placed {
        chosen,
        refusal: None,
    }
}
