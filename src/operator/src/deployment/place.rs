//! Finds nodes for replicas. Decisions are taken one after the other, each with those before it
//! in view, whether or not the API server has them yet.

use std::sync::Arc;

use creo_api::AgentDeployment;
use creo_api::placement::Placement;
use creo_market::placement::{self as market, Refusal};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::build::placement::{Place, placement};
use super::plan::{Plan, ordinals};
use super::validate::Valid;
use crate::base::Key;
use crate::fleet::{Fleet, Reservation, Reservations, usage::holds_its_place};

/// What became of a wish for more replicas.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// The Placements to create; each is reserved.
    pub create: Vec<Placement>,
    /// Why the next replica got no node.
    pub refusal: Option<Refusal>,
}

/// Decides where the missing replicas go, and reserves their places.
pub fn place(
    fleet: &Fleet,
    reservations: &Reservations,
    deployment: &AgentDeployment,
    valid: &Valid,
    placements: &[Arc<Placement>],
    plan: &Plan,
) -> Decision {
    if plan.rule.create == 0 {
        return Decision::default();
    }
    let numbers = ordinals(deployment, placements, plan.rule.create);
    let again = names(deployment, &numbers);
    reservations.decide(|reserved| {
        let now = Timestamp::now();
        // A create in doubt that is tried again under its name takes one place and not two.
        let others: Vec<Reservation> = reserved
            .iter()
            .filter(|one| !again.contains(&one.placement))
            .cloned()
            .collect();
        let mut nodes = nodes(fleet, &others, None, placements, plan);
        let placed = market::place(
            &mut nodes,
            &valid.wish,
            plan.rule.create,
            now.as_millisecond(),
        );
        let create: Vec<Placement> = placed
            .chosen
            .into_iter()
            .zip(numbers)
            .filter_map(|(candidate, ordinal)| {
                let node = fleet
                    .creo_nodes
                    .get(&Key::cluster(candidate.node.clone()))?;
                let place = Place {
                    candidate,
                    owner: node.spec.owner.clone(),
                    kubernetes_node: node.spec.source.kubernetes_node.clone(),
                };
                Some(placement(deployment, valid, ordinal, &place, now))
            })
            .collect();
        let reserved = create.iter().map(Reservation::of).collect();
        (
            Decision {
                create,
                refusal: placed.refusal,
            },
            reserved,
        )
    })
}

/// The names that the Placements of these ordinals have.
fn names(deployment: &AgentDeployment, numbers: &[u32]) -> Vec<Key> {
    let (name, uid) = (deployment.name_any(), deployment.uid().unwrap_or_default());
    let namespace = deployment.namespace().unwrap_or_default();
    numbers
        .iter()
        .map(|number| {
            Key::namespaced(
                namespace.clone(),
                creo_api::names::placement(&name, &uid, *number),
            )
        })
        .collect()
}

/// Whether a replica that is to be replaced would find a place if it were gone; the refusal if
/// it would not, because then it stays.
pub fn would_find_a_place(
    fleet: &Fleet,
    reservations: &Reservations,
    valid: &Valid,
    placements: &[Arc<Placement>],
    plan: &Plan,
    replaced: &Key,
) -> Result<(), Refusal> {
    reservations.decide(|others| {
        let nodes = nodes(fleet, others, Some(replaced), placements, plan);
        let ranked = market::rank(&nodes, &valid.wish, Timestamp::now().as_millisecond());
        (ranked.map(|_| ()), Vec::new())
    })
}

/// The nodes as this deployment sees them: with its own replicas and its own bad experiences.
fn nodes(
    fleet: &Fleet,
    reserved: &[Reservation],
    without: Option<&Key>,
    placements: &[Arc<Placement>],
    plan: &Plan,
) -> Vec<market::Node> {
    let mut nodes = fleet.market_nodes(reserved, without);
    for node in &mut nodes {
        node.backed_off_until_ms = plan
            .backed_off
            .iter()
            .filter(|(name, _)| *name == node.name)
            .map(|(_, until_ms)| *until_ms)
            .max();
        let here = placements.iter().filter(|placement| {
            placement.spec.terms.node == node.name
                && holds_its_place(placement)
                && Some(placement.name_any()) != without.map(|key| key.name.clone())
        });
        node.replicas_here = i64::try_from(here.count()).unwrap_or(i64::MAX);
    }
    nodes
}
