//! The status of a Placement, from what was planned and done.

use creo_api::condition::clip;
use creo_api::placement::{Phase, Placement, PlacementStatus, conditions};
use k8s_openapi::jiff::Timestamp;

use super::plan::View;
use crate::base::conditions::{Says, whole_seconds, written};
use crate::base::publish::Note;

/// The status as it is to be.
#[must_use]
pub fn status(placement: &Placement, view: &View, now: Timestamp) -> PlacementStatus {
    let before = placement.status.clone().unwrap_or_default();
    let generation = placement.metadata.generation;
    let ready = view.phase == Phase::Ready;
    let says = vec![
        if view.scheduled {
            Says::new(
                conditions::SCHEDULED,
                true,
                "Bound",
                "the pod is bound to its node",
            )
        } else {
            Says::new(conditions::SCHEDULED, false, &view.reason, &view.message)
        },
        match view.phase {
            Phase::Ready => Says::new(conditions::READY, true, &view.reason, &view.message),
            Phase::Lost => Says::unknown(conditions::READY, &view.reason, &view.message),
            _ => Says::new(conditions::READY, false, &view.reason, &view.message),
        },
    ];
    let mut status = PlacementStatus {
        observed_generation: generation,
        phase: Some(view.phase),
        reason: Some(view.reason.clone()),
        message: Some(clip(&view.message)),
        pod_name: view.pod_name.clone(),
        revision: view.revision.clone(),
        attempt: view.attempt,
        failures: view.failures,
        next_attempt_after: view.next_attempt_after.map(round_up),
        conditions: written(&before.conditions, says, generation, now),
        ready_stretches: before.ready_stretches.clone(),
        earlier_ready_ms: before.earlier_ready_ms,
    };
    status.saw_ready(ready, &whole_seconds(now));
    status
}

/// The time as the API stores it, never earlier.
fn round_up(time: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    let floor = whole_seconds(time);
    if floor.0 == time {
        return floor;
    }
    whole_seconds(time + std::time::Duration::from_secs(1))
}

/// What the owner is told: each new phase, once.
#[must_use]
pub fn notes(placement: &Placement, view: &View) -> Vec<Note> {
    let before = placement.status.as_ref();
    let same_phase = before.and_then(|status| status.phase) == Some(view.phase);
    let same_attempt = before.is_some_and(|status| status.attempt == view.attempt);
    let (warning, action) = match view.phase {
        Phase::Pending | Phase::Starting => return Vec::new(),
        Phase::Ready => (false, "Serve"),
        Phase::Ended => (false, "End"),
        Phase::Failed => (true, "Run"),
        Phase::Lost => (true, "Watch"),
        Phase::Withdrawn => (true, "Schedule"),
    };
    if same_phase && same_attempt {
        return Vec::new();
    }
    vec![Note {
        warning,
        reason: view.phase.as_str(),
        action,
        message: format!("{}: {}", view.reason, view.message),
    }]
}
