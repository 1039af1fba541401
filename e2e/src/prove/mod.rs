//! The long plans, which prove at length what the tests show in passing.
//!
//! A [`Plan`] is a family of cases, each with a name. A run takes all of them,
//! or a sample that the seed draws, runs each under a time limit, and writes a
//! report that names commit, seed and share, and for each failure the one
//! command that runs that case again.

mod arguments;
mod environment;
mod meter;
mod plan;
mod plans;
mod report;
mod revision;
mod runner;
mod seed;
mod selection;
mod stage;
mod state;
#[cfg(test)]
mod tests;
mod world;

use std::sync::Arc;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use self::arguments::Arguments;
pub use self::environment::{Environment, StartWorld};
pub use self::plan::{Case, Cases, Failure, Plan};
pub use self::plans::all;
pub use self::report::{FailureReport, PlanReport, Report};
pub use self::revision::Revision;
pub use self::seed::Seed;
pub use self::selection::Sample;
pub use self::world::{Disturbance, World};
use crate::error::{Context as _, Error, Result};

/// Runs the plans that are asked for and writes the report. Lines for a person
/// go to the standard output. The report says whether all has passed.
///
/// # Errors
/// When the arguments make no sense, or a file cannot be read or written.
pub async fn run(
    arguments: &Arguments,
    plans: &[Box<dyn Plan>],
    environment: Environment,
) -> Result<Report> {
    run_until(stop_on_signal()?, arguments, plans, environment).await
}

async fn run_until(
    stop: CancellationToken,
    arguments: &Arguments,
    plans: &[Box<dyn Plan>],
    environment: Environment,
) -> Result<Report> {
    let wanted = arguments.wanted()?;
    let plans = select_plans(arguments, plans)?;
    let revision = Revision::read(environment.checkout())?;
    runner::check_resumable(arguments, &revision, environment.checkout())?;
    let seed = match arguments.seed {
        Some(seed) => Seed(seed),
        None => Seed::of_commit(revision.commit.as_deref()),
    };
    let report_path = match &arguments.report {
        Some(path) => path.clone(),
        None => environment.folder().join("report.json"),
    };
    let runner = runner::Runner {
        environment: Arc::new(environment),
        revision,
        seed,
        wanted,
        resume: arguments.resume,
        stop,
    };
    let mut report = begin(&runner, arguments);
    for plan in plans {
        if arguments.list {
            list(&runner, plan).await?;
            continue;
        }
        let plan_report = runner.run(plan).await?;
        println!("{}", plan_report.line(seed.0));
        report.plans.push(plan_report);
        if runner.stop.is_cancelled() {
            break;
        }
    }
    let ended = runner.environment.close().await;
    report.interrupted = runner.stop.is_cancelled();
    report.passed = !report.interrupted && report.plans.iter().all(PlanReport::passed);
    report.ended = Timestamp::now();
    if !arguments.list {
        report.write(&report_path)?;
        println!("report: {}", report_path.display());
        if report.interrupted {
            println!("interrupted; the same command with --resume goes on");
        }
    }
    // The report is written first: it is worth more than a tidy end.
    ended?;
    Ok(report)
}

fn begin(runner: &runner::Runner, arguments: &Arguments) -> Report {
    Report {
        revision: runner.revision.clone(),
        seed: runner.seed.0,
        mode: arguments.mode(),
        began: Timestamp::now(),
        ended: Timestamp::now(),
        interrupted: false,
        passed: false,
        plans: Vec::new(),
    }
}

fn select_plans<'a>(
    arguments: &Arguments,
    plans: &'a [Box<dyn Plan>],
) -> Result<Vec<&'a dyn Plan>> {
    let known = || {
        plans
            .iter()
            .map(|plan| plan.name())
            .collect::<Vec<_>>()
            .join(", ")
    };
    if let Some(name) = arguments
        .plans
        .iter()
        .find(|name| plans.iter().all(|plan| plan.name() != **name))
    {
        return Err(Error::Usage(format!(
            "--plan {name}: there is no such plan; there are {}",
            known()
        )));
    }
    let asked = |plan: &&dyn Plan| {
        arguments.plans.is_empty() || arguments.plans.iter().any(|name| name == plan.name())
    };
    Ok(plans.iter().map(AsRef::as_ref).filter(asked).collect())
}

async fn list(runner: &runner::Runner, plan: &dyn Plan) -> Result<()> {
    match runner.cases(plan).await {
        Some(Ok((_, names))) => {
            println!(
                "plan {}: {} cases. {}",
                plan.name(),
                names.len(),
                plan.description()
            );
            for name in names {
                println!("  {name}");
            }
            Ok(())
        }
        Some(Err(failure)) => Err(Error::Usage(format!(
            "plan {}: {}",
            plan.name(),
            failure.message()
        ))),
        None => Err(Error::Usage("interrupted".to_owned())),
    }
}

/// A token that Ctrl-C and SIGTERM cancel. The finished cases are on disk by
/// then, and the run ends after its present case was broken off.
fn stop_on_signal() -> Result<CancellationToken> {
    let listening = || "listening for signals".to_owned();
    let mut interrupt = signal(SignalKind::interrupt()).doing(listening)?;
    let mut terminate = signal(SignalKind::terminate()).doing(listening)?;
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
