//! What is to be done for an AgentDeployment now, as a pure function of what was seen. The rule
//! itself is `creo_market::replicas`; this says how Placements are read for it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use creo_api::placement::{Phase, Placement};
use creo_api::{AgentDeployment, names};
use creo_market::replicas::{self, Cause, Replica, State};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::validate::Valid;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The rule's answer.
    pub rule: replicas::Plan,
    /// Until when which CreoNode is left alone, in milliseconds since 1970.
    pub backed_off: Vec<(String, i64)>,
    /// When to look again although nothing changes.
    pub again_after: Option<Duration>,
}

/// The phase of a Placement; one without a status has not been looked at.
#[must_use]
pub fn phase(placement: &Placement) -> Phase {
    placement
        .status
        .as_ref()
        .and_then(|status| status.phase)
        .unwrap_or(Phase::Pending)
}

/// Whether the replica answers, and with what its Placement says now: a status from before the
/// last change of the workload does not count.
#[must_use]
pub fn answers(placement: &Placement) -> bool {
    placement.status.as_ref().is_some_and(|status| {
        status.phase == Some(Phase::Ready)
            && status.observed_generation == placement.metadata.generation
            && status.revision.as_deref() == Some(&placement.spec.workload.revision)
    })
}

/// Decides. `leaving` are those of which only a pod is left; `region_of` says where a CreoNode
/// is, if it is known.
#[must_use]
pub fn plan(
    valid: &Valid,
    placements: &[Arc<Placement>],
    leaving: Vec<Replica>,
    region_of: impl Fn(&str) -> Option<String>,
    now: Timestamp,
) -> Plan {
    let remembered: Vec<(&Arc<Placement>, Timestamp)> = placements
        .iter()
        .filter_map(|placement| Some((placement, backed_off_until(placement)?)))
        .filter(|(_, until)| *until > now)
        .collect();
    let replicas: Vec<Replica> = placements
        .iter()
        .filter(|placement| {
            !remembered
                .iter()
                .any(|(kept, _)| Arc::ptr_eq(kept, placement))
        })
        .map(|placement| replica(valid, placement, &region_of))
        .chain(leaving)
        .collect();
    let mut rule = replicas::plan(&valid.wanted, &replicas);
    // A lost replica may still serve whom it can reach, and comes back when its node answers:
    // nobody but that node, or a person who wants no replica at all, ends it.
    if valid.wanted.replicas > 0 {
        rule.withdraw
            .retain(|one| one.cause != Cause::LostAndReplaced);
    }
    Plan {
        rule,
        backed_off: remembered
            .iter()
            .map(|(placement, until)| (placement.spec.terms.node.clone(), until.as_millisecond()))
            .collect(),
        again_after: remembered
            .iter()
            .filter_map(|(_, until)| Duration::try_from(until.duration_since(now)).ok())
            .min(),
    }
}

/// Until when the node of a withdrawn replica is left alone. The Placement stays that long: it is
/// the memory of the refusal.
fn backed_off_until(placement: &Placement) -> Option<Timestamp> {
    if phase(placement) != Phase::Withdrawn || placement.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let until = placement.status.as_ref()?.next_attempt_after.as_ref()?;
    Some(until.0)
}

fn replica(
    valid: &Valid,
    placement: &Placement,
    region_of: impl Fn(&str) -> Option<String>,
) -> Replica {
    let terms = &placement.spec.terms;
    let agreed = terms.agreed(region_of(&terms.node));
    let state = match phase(placement) {
        // What its status says is not yet about what its specification says.
        Phase::Ready if !answers(placement) => State::Starting,
        phase => State::from(phase),
    };
    Replica {
        name: placement.name_any(),
        state,
        leaving: placement.metadata.deletion_timestamp.is_some(),
        revision: placement.spec.workload.revision.clone(),
        terms_agree: valid.wish.agrees_with(&agreed).is_ok(),
        created_ms: placement
            .metadata
            .creation_timestamp
            .as_ref()
            .map_or(0, |created| created.0.as_millisecond()),
    }
}

/// The numbers for `count` new replicas: no Placement has them, in whatever state it is.
#[must_use]
pub fn ordinals(
    deployment: &AgentDeployment,
    placements: &[Arc<Placement>],
    count: usize,
) -> Vec<u32> {
    let (name, uid) = (deployment.name_any(), deployment.uid().unwrap_or_default());
    let taken: BTreeSet<u32> = placements
        .iter()
        .filter_map(|placement| names::ordinal(&name, &uid, &placement.name_any()))
        .collect();
    replicas::free_ordinals(&taken, count)
}
