//! What a run says at its end.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::revision::Revision;
use crate::error::{Context as _, Error, Result};

/// The report of a run, as it is written.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was tried.
    pub revision: Revision,
    /// What the run was drawn from.
    pub seed: u64,
    /// `full`, `sample` or `only`.
    pub mode: &'static str,
    /// When it began.
    pub began: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// Whether it was ended before its time; `--resume` goes on with it.
    pub interrupted: bool,
    /// Whether every selected case of every plan has run and passed.
    pub passed: bool,
    /// The plans, in the order in which they ran.
    pub plans: Vec<PlanReport>,
}

/// What came of one plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlanReport {
    /// Its name.
    pub name: String,
    /// What it tries.
    pub description: String,
    /// How many cases it has.
    pub cases_total: u64,
    /// How many of them were selected.
    pub cases_selected: u64,
    /// How many of those have run, now or before a resumption.
    pub cases_run: u64,
    /// How many of those ran before the resumption.
    pub cases_resumed: u64,
    /// How much of the plan has run, in basis points, rounded down.
    pub share_basis_points: u64,
    /// Time of the cases that ran, in milliseconds.
    pub duration_ms: u64,
    /// Why the plan could not be run at all, where that is so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The cases that failed.
    pub failures: Vec<FailureReport>,
}

/// A case that failed.
#[derive(Clone, Debug, Serialize)]
pub struct FailureReport {
    /// Its name.
    pub case: String,
    /// What was wrong.
    pub message: String,
    /// The command that runs it again.
    pub rerun: String,
    /// The folder with what it left behind: logs, writes, objects.
    pub evidence: String,
}

impl PlanReport {
    /// Whether every selected case has run and passed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.error.is_none() && self.failures.is_empty() && self.cases_run == self.cases_selected
    }

    /// One line for a person: `plan X: ran 12 of 480 cases (2.5 %), seed S`.
    #[must_use]
    pub fn line(&self, seed: u64) -> String {
        let share = self.share_basis_points;
        let mut line = format!(
            "plan {}: ran {} of {} cases ({}.{} %), seed {seed}",
            self.name,
            self.cases_run,
            self.cases_total,
            share / 100,
            share % 100 / 10,
        );
        if let Some(error) = &self.error {
            line.push_str(": ");
            line.push_str(error);
        } else if !self.failures.is_empty() {
            // Writing to a string cannot fail.
            let _ = write!(line, ", {} FAILED", self.failures.len());
        }
        line
    }
}

impl Report {
    /// Writes the report whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let writing = || format!("writing {}", path.display());
        let json = serde_json::to_string_pretty(self)
            .map_err(|error| Error::malformed(writing(), error))?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).doing(writing)?;
        }
        let next = path.with_extension("next");
        fs::write(&next, json + "\n").doing(writing)?;
        fs::rename(&next, path).doing(writing)
    }
}
