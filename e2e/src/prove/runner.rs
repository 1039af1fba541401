//! Runs the selected cases of one plan after the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::arguments::Arguments;
use super::environment::Environment;
use super::meter::Meter;
use super::plan::{Case, Cases, Failure, Plan};
use super::report::{FailureReport, PlanReport};
use super::revision::Revision;
use super::seed::Seed;
use super::selection::{Wanted, choose};
use super::state::{Finished, StateFile};
use crate::error::{Context as _, Error, Result};

/// No plan has more cases than this: their names are held in memory.
const CASES_MAX: usize = 1_000_000;

/// One run over several plans.
pub(super) struct Runner {
    pub(super) environment: Arc<Environment>,
    pub(super) revision: Revision,
    pub(super) seed: Seed,
    pub(super) wanted: Wanted,
    pub(super) resume: bool,
    pub(super) stop: CancellationToken,
}

/// How a case ended.
enum End {
    Passed,
    Failed(Failure),
    Interrupted,
}

impl Runner {
    /// Gets a plan ready and lists its cases; `None` when the run is ended.
    pub(super) async fn cases(
        &self,
        plan: &dyn Plan,
    ) -> Option<Result<(Arc<dyn Cases>, Vec<String>), Failure>> {
        let prepared = tokio::select! {
            () = self.stop.cancelled() => return None,
            prepared = plan.prepare(Arc::clone(&self.environment), self.seed) => prepared,
        };
        Some(prepared.and_then(|cases| {
            let names = cases.names();
            match names.len() {
                0 => Err(Failure::new("the plan has no cases")),
                count if count > CASES_MAX => Err(Failure::new(format!(
                    "the plan has {count} cases, more than {CASES_MAX}"
                ))),
                _ => Ok((cases, names)),
            }
        }))
    }

    /// Runs the wanted cases of a plan.
    ///
    /// # Errors
    /// When files cannot be written or the command line asks for what is not
    /// there. That a case fails, or that the plan cannot be prepared, is part
    /// of the report.
    pub(super) async fn run(&self, plan: &dyn Plan) -> Result<PlanReport> {
        let mut report = PlanReport {
            name: plan.name().to_owned(),
            description: plan.description().to_owned(),
            cases_total: 0,
            cases_selected: 0,
            cases_run: 0,
            cases_resumed: 0,
            share_basis_points: 0,
            duration_ms: 0,
            error: None,
            failures: Vec::new(),
        };
        let (cases, names) = match self.cases(plan).await {
            Some(Ok(ready)) => ready,
            Some(Err(failure)) => {
                report.error = Some(failure.message().to_owned());
                return Ok(report);
            }
            None => {
                report.error = Some("interrupted before its first case".to_owned());
                return Ok(report);
            }
        };
        let chosen = choose(plan.name(), &names, &self.wanted, self.seed)?;
        report.cases_total = names.len() as u64;
        report.cases_selected = chosen.len() as u64;
        let mut state = StateFile::open(self.state_path(plan), self.resume)?;
        let mut meter = Meter::new(plan.name(), chosen.len());
        for name in &chosen {
            let (finished, resumed) = match state.finished(name) {
                Some(finished) => (finished.clone(), true),
                None => match self.run_case(plan, &cases, name).await? {
                    Some(finished) => {
                        state.record(finished.clone())?;
                        (finished, false)
                    }
                    None => break,
                },
            };
            meter.advance(name, finished.failure.as_deref());
            self.count(&mut report, finished, resumed);
        }
        report.share_basis_points = report.cases_run * 10_000 / report.cases_total;
        tracing::debug!(state = %state.path().display(), "the plan has ended");
        Ok(report)
    }

    fn count(&self, report: &mut PlanReport, finished: Finished, resumed: bool) {
        report.cases_run += 1;
        report.cases_resumed += u64::from(resumed);
        report.duration_ms += finished.duration_ms;
        if let Some(message) = finished.failure {
            report.failures.push(FailureReport {
                rerun: self.rerun(&report.name, &finished.case),
                evidence: self
                    .evidence(&report.name, &finished.case)
                    .display()
                    .to_string(),
                case: finished.case,
                message,
            });
        }
    }

    /// Runs one case; `None` when the run was ended during it.
    async fn run_case(
        &self,
        plan: &dyn Plan,
        cases: &Arc<dyn Cases>,
        name: &str,
    ) -> Result<Option<Finished>> {
        let evidence = self.evidence(plan.name(), name);
        let preparing = || format!("preparing {}", evidence.display());
        if evidence.exists() {
            fs::remove_dir_all(&evidence).doing(preparing)?;
        }
        fs::create_dir_all(&evidence).doing(preparing)?;
        let case = Case {
            name: name.to_owned(),
            seed: self.seed.derive(&["case", plan.name(), name]),
            evidence: evidence.clone(),
        };
        let began = Instant::now();
        let failure = match self
            .end_of(Arc::clone(cases), case, plan.case_limit())
            .await
        {
            End::Interrupted => return Ok(None),
            End::Failed(failure) => Some(failure.message().to_owned()),
            End::Passed => {
                fs::remove_dir_all(&evidence)
                    .doing(|| format!("removing {}", evidence.display()))?;
                None
            }
        };
        Ok(Some(Finished {
            case: name.to_owned(),
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            failure,
        }))
    }

    /// Runs a case in a task of its own, so that a panic is a finding and not
    /// the end of the run.
    async fn end_of(&self, cases: Arc<dyn Cases>, case: Case, limit: Duration) -> End {
        let mut task = tokio::spawn(cases.run(case));
        let end = tokio::select! {
            () = self.stop.cancelled() => End::Interrupted,
            () = tokio::time::sleep(limit) => End::Failed(Failure::new(format!(
                "the case had not ended after {} s", limit.as_secs()
            ))),
            joined = &mut task => match joined {
                Ok(Ok(())) => End::Passed,
                Ok(Err(failure)) => End::Failed(failure),
                Err(error) => End::Failed(panic_failure(error)),
            },
        };
        if !task.is_finished() {
            // What the case has started ends with it, before the next begins.
            task.abort();
            let _ = (&mut task).await;
        }
        end
    }

    fn state_path(&self, plan: &dyn Plan) -> PathBuf {
        let name = format!(
            "{}-{}-{}.jsonl",
            plan.name(),
            self.revision.label(),
            self.seed.0
        );
        self.environment.folder().join("state").join(name)
    }

    fn evidence(&self, plan: &str, case: &str) -> PathBuf {
        self.environment
            .folder()
            .join("evidence")
            .join(plan)
            .join(file_name(case))
    }

    fn rerun(&self, plan: &str, case: &str) -> String {
        format!(
            "cargo run --quiet -p creo-e2e -- prove --plan {plan} --seed {} --only '{case}'",
            self.seed.0
        )
    }
}

/// Resuming rests on knowing which sources the finished cases are about.
pub(super) fn check_resumable(
    arguments: &Arguments,
    revision: &Revision,
    checkout: &Path,
) -> Result<()> {
    if arguments.resume && revision.commit.is_none() {
        return Err(Error::Usage(format!(
            "--resume needs to know which sources were tried, and {} is no git checkout",
            checkout.display()
        )));
    }
    Ok(())
}

fn panic_failure(error: tokio::task::JoinError) -> Failure {
    let Ok(payload) = error.try_into_panic() else {
        return Failure::new("the case was ended from outside");
    };
    let message = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    Failure::new(format!("panic: {message}"))
}

/// A case's name as the name of a folder.
fn file_name(case: &str) -> String {
    case.chars()
        .map(|letter| match letter {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' | '#' => letter,
            _ => '_',
        })
        .collect()
}
