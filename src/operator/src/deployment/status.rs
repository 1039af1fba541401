//! The status of an AgentDeployment, from what was planned and from the Placements as they are
//! after it was applied.

use std::sync::Arc;

use creo_api::agent_deployment::{MAX_LISTED_PLACEMENTS, PlacementSummary, conditions};
use creo_api::condition::clip;
use creo_api::placement::{Phase, Placement};
use creo_api::{AgentDeployment, AgentDeploymentStatus, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;

use super::plan::{answers, phase};
use super::validate::{Invalid, Valid, endpoint};
use crate::annotations;
use crate::base::conditions::{Says, written};
use crate::base::publish::Note;
use crate::fleet::usage::holds_its_place;

/// What stands in the way of placing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// A replica got no node; the rules' words.
    NoNode(String),
    /// A replica has terms that no longer agree, and no other would find a place: it stays.
    CannotMove {
        /// The Placement that stays.
        name: String,
        /// The rules' words.
        refusal: String,
    },
}

/// What was found out about a deployment.
#[derive(Debug, Clone)]
pub struct Findings<'a> {
    /// What is wanted, or why that cannot be told.
    pub valid: Result<&'a Valid, &'a Invalid>,
    /// Its Placements as they are now.
    pub placements: &'a [Arc<Placement>],
    /// What stands in the way of placing.
    pub obstacle: Option<Obstacle>,
}

struct Counts {
    wanted: usize,
    placed: usize,
    ready: usize,
    current_ready: usize,
}

/// The status as it is to be.
#[must_use]
pub fn status(
    deployment: &AgentDeployment,
    findings: &Findings<'_>,
    now: Timestamp,
) -> AgentDeploymentStatus {
    let before = deployment.status.clone().unwrap_or_default();
    let seated: Vec<&Arc<Placement>> = findings
        .placements
        .iter()
        .filter(|one| is_seated(one))
        .collect();
    let revision = findings
        .valid
        .ok()
        .map(|valid| valid.wanted.revision.as_str());
    let is_current = |one: &&&Arc<Placement>| Some(one.spec.workload.revision.as_str()) == revision;
    let counts = Counts {
        wanted: match findings.valid {
            Ok(valid) => valid.wanted.replicas,
            Err(_) => usize::try_from(deployment.spec.replicas).unwrap_or(0),
        },
        placed: seated.len(),
        ready: seated.iter().filter(|one| answers(one)).count(),
        current_ready: seated
            .iter()
            .filter(is_current)
            .filter(|one| answers(one))
            .count(),
    };
    let says = match findings.valid {
        Err(invalid) => impossible(invalid, &counts, &seated),
        Ok(_) if counts.wanted == 0 => nothing_wanted(deployment, &counts),
        Ok(_) => vec![
            placed(&counts, findings.obstacle.as_ref()),
            model_ready(&counts, &seated),
            progressing(&counts, findings, &seated),
            ready(&counts, findings, &seated),
        ],
    };
    AgentDeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: i32::try_from(counts.placed).unwrap_or(i32::MAX),
        ready_replicas: i32::try_from(counts.ready).unwrap_or(i32::MAX),
        selector: Some(labels::selector_text(&labels::selector(
            &deployment.name_any(),
        ))),
        endpoint: Some(endpoint(deployment)),
        conditions: written(
            &before.conditions,
            says,
            deployment.metadata.generation,
            now,
        ),
        placements: summaries(findings.placements),
    }
}

/// Whether a Placement is one of the wanted number.
fn is_seated(placement: &Placement) -> bool {
    placement.metadata.deletion_timestamp.is_none()
        && holds_its_place(placement)
        && phase(placement) != Phase::Lost
}

fn placed(counts: &Counts, obstacle: Option<&Obstacle>) -> Says {
    let have = format!(
        "{} of {} replicas have a node",
        counts.placed.min(counts.wanted),
        counts.wanted
    );
    match obstacle {
        Some(Obstacle::NoNode(refusal)) if counts.placed == 0 => {
            Says::new(conditions::PLACED, false, "NoNodeFits", refusal)
        }
        Some(Obstacle::NoNode(refusal)) => Says::new(
            conditions::PLACED,
            false,
            "NoNodeFits",
            format!("{refusal}; {have}"),
        ),
        Some(Obstacle::CannotMove { name, refusal }) => Says::new(
            conditions::PLACED,
            false,
            "CannotMove",
            format!("{refusal}; {name} stays on its old terms until another place is found"),
        ),
        None if counts.placed < counts.wanted => {
            Says::new(conditions::PLACED, false, "Placing", have)
        }
        None => Says::new(conditions::PLACED, true, "AllPlaced", have),
    }
}

fn model_ready(counts: &Counts, seated: &[&Arc<Placement>]) -> Says {
    if counts.ready > 0 {
        let message = format!("{} of {} replicas answer", counts.ready, counts.wanted);
        return Says::new(conditions::MODEL_READY, true, "Answers", message);
    }
    match slowest(seated) {
        Some((word, message)) => Says::new(conditions::MODEL_READY, false, word, message),
        None => Says::new(
            conditions::MODEL_READY,
            false,
            "NoReplica",
            "no replica has a node yet",
        ),
    }
}

fn progressing(counts: &Counts, findings: &Findings<'_>, seated: &[&Arc<Placement>]) -> Says {
    let r#type = conditions::PROGRESSING;
    if counts.current_ready == counts.wanted && counts.placed == counts.wanted {
        return match &findings.obstacle {
            None => Says::new(
                r#type,
                false,
                "Complete",
                "every replica runs what is wanted",
            ),
            Some(_) => Says::new(
                r#type,
                false,
                "Blocked",
                "no place for what is wanted; see Placed",
            ),
        };
    }
    let moves = seated.iter().any(|one| !answers(one));
    if !moves && findings.obstacle.is_some() {
        return Says::new(
            r#type,
            false,
            "Blocked",
            "no place for what is wanted; see Placed",
        );
    }
    let message = format!(
        "{} of {} replicas run what is wanted and answer",
        counts.current_ready, counts.wanted
    );
    Says::new(r#type, true, "Rolling", message)
}

fn ready(counts: &Counts, findings: &Findings<'_>, seated: &[&Arc<Placement>]) -> Says {
    let answer = format!("{} of {} replicas answer", counts.ready, counts.wanted);
    if counts.current_ready == counts.wanted && findings.obstacle.is_none() {
        return Says::new(conditions::READY, true, "AllAnswer", answer);
    }
    let (word, why) = match &findings.obstacle {
        Some(Obstacle::NoNode(refusal)) => ("NoNodeFits".to_owned(), refusal.clone()),
        Some(Obstacle::CannotMove { refusal, .. }) => ("CannotMove".to_owned(), refusal.clone()),
        None if counts.ready == counts.wanted => (
            "Rolling".to_owned(),
            "some run an older revision".to_owned(),
        ),
        None => slowest(seated)
            .unwrap_or_else(|| ("Placing".to_owned(), "a replica is being placed".to_owned())),
    };
    Says::new(conditions::READY, false, word, format!("{answer}: {why}"))
}

fn nothing_wanted(deployment: &AgentDeployment, counts: &Counts) -> Vec<Says> {
    let (word, why) = if deployment.spec.suspend {
        ("Suspended", "spec.suspend is true")
    } else {
        ("NoReplicas", "spec.replicas is 0")
    };
    let progress = if counts.placed == 0 {
        Says::new(
            conditions::PROGRESSING,
            false,
            "Complete",
            "no replica runs",
        )
    } else {
        let message = format!("{} replicas are ending", counts.placed);
        Says::new(conditions::PROGRESSING, true, "Stopping", message)
    };
    vec![
        Says::new(conditions::PLACED, true, word, why),
        Says::new(conditions::MODEL_READY, counts.ready > 0, word, why),
        progress,
        Says::new(conditions::READY, false, word, why),
    ]
}

/// What runs goes on; nothing else can be said before the specification is corrected.
fn impossible(invalid: &Invalid, counts: &Counts, seated: &[&Arc<Placement>]) -> Vec<Says> {
    let says = |r#type| Says::new(r#type, false, invalid.reason, &invalid.message);
    vec![
        says(conditions::PLACED),
        model_ready(counts, seated),
        says(conditions::PROGRESSING),
        says(conditions::READY),
    ]
}

/// Why the replica that is furthest from answering does not answer.
fn slowest(seated: &[&Arc<Placement>]) -> Option<(String, String)> {
    let rank = |placement: &Placement| match phase(placement) {
        Phase::Failed => 0,
        Phase::Pending => 1,
        _ => 2,
    };
    let slowest = seated
        .iter()
        .filter(|one| !answers(one))
        .min_by_key(|one| (rank(one), one.name_any()))?;
    let status = slowest.status.as_ref();
    let word = status
        .and_then(|status| status.reason.clone())
        .unwrap_or_else(|| "Pending".to_owned());
    let message = status
        .and_then(|status| status.message.clone())
        .unwrap_or_default();
    Some((word, format!("{}: {message}", slowest.name_any())))
}

/// The replicas one by one, those that do not answer first.
fn summaries(placements: &[Arc<Placement>]) -> Vec<PlacementSummary> {
    let mut sorted: Vec<&Arc<Placement>> = placements
        .iter()
        .filter(|placement| placement.metadata.deletion_timestamp.is_none())
        .collect();
    sorted.sort_by_key(|placement| (answers(placement), placement.name_any()));
    sorted
        .into_iter()
        .take(MAX_LISTED_PLACEMENTS)
        .map(|placement| summary(placement))
        .collect()
}

fn summary(placement: &Placement) -> PlacementSummary {
    let status = placement.status.as_ref();
    let chosen = placement.annotations().get(annotations::CHOSEN);
    let said = status.and_then(|status| status.message.clone());
    let message = match (said, chosen) {
        (Some(said), Some(chosen)) => Some(format!("{said}; chosen because: {chosen}")),
        (None, Some(chosen)) => Some(format!("chosen because: {chosen}")),
        (said, None) => said,
    };
    PlacementSummary {
        name: placement.name_any(),
        node: placement.spec.terms.node.clone(),
        phase: phase(placement),
        reason: status.and_then(|status| status.reason.clone()),
        message: message.map(|message| clip(&message)),
    }
}

/// What the owner is told: when it became Ready or Placed or ceased to be, and why.
#[must_use]
pub fn notes(before: &[Condition], after: &[Condition]) -> Vec<Note> {
    let told = [(conditions::PLACED, "Place"), (conditions::READY, "Serve")];
    after
        .iter()
        .filter_map(|now| {
            let (_, action) = told.iter().find(|(r#type, _)| *r#type == now.type_)?;
            let old = before.iter().find(|old| old.type_ == now.type_);
            let passing = matches!(now.reason.as_str(), "Placing" | "Rolling");
            let is_new = old.is_none_or(|old| old.status != now.status);
            let is_worse = now.status == "False" && old.is_some_and(|old| old.reason != now.reason);
            let news = match now.type_.as_str() {
                // Each replica's own story is told at its Placement.
                conditions::READY => is_new && (now.status == "True" || old.is_some()),
                _ => (is_new || is_worse) && !passing,
            };
            news.then(|| Note {
                warning: now.status == "False",
                reason: reason_of(now),
                action,
                message: now.message.clone(),
            })
        })
        .collect()
}

fn reason_of(condition: &Condition) -> &'static str {
    match (condition.type_.as_str(), condition.status.as_str()) {
        (conditions::PLACED, "True") => "Placed",
        (conditions::PLACED, _) => "NotPlaced",
        (_, "True") => "Ready",
        _ => "NotReady",
    }
}
