//! Big random runs of the market's pure rules, which check themselves against
//! naive models of the world.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use creo_market::simulation::{self, Violation};
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::super::environment::Environment;
use super::super::plan::{Case, Cases, Failure, Plan};
use super::super::seed::Seed;

/// Random steps of one run.
const STEPS: u64 = 1_000;
/// Runs of one case: together they have to do everything that a run can do.
const RUNS: u64 = 20;
const CASES: u64 = 500;

/// What a run did, by name, with how often.
type Activity = [(&'static str, u64); 4];

/// Runs of one set of rules.
#[derive(Clone, Copy)]
pub(super) struct RandomRuns {
    name: &'static str,
    description: &'static str,
    run: fn(seed: u64, steps: u64) -> Result<Activity, Violation>,
}

/// Which node a replica goes to.
pub(super) const PLACEMENT: RandomRuns = RandomRuns {
    name: "placement-random",
    description: "Replicas come and go on nodes that change: no node is over-committed, the chosen one fits, every refusal is true.",
    run: |seed, steps| {
        simulation::placement_run(seed, steps).map(|report| {
            [
                ("placed", report.placed),
                ("refused", report.refused),
                ("released", report.released),
                ("changed", report.changed),
            ]
        })
    },
};

/// What is created, withdrawn and changed for a deployment.
pub(super) const REPLICAS: RandomRuns = RandomRuns {
    name: "replicas-random",
    description: "A deployment's replicas through failures, losses and changed wishes: never more than wanted, one change at a time, and in the end what was wanted.",
    run: |seed, steps| {
        simulation::replicas_run(seed, steps).map(|report| {
            [
                ("created", report.created),
                ("withdrawn", report.withdrawn),
                ("rolled", report.rolled),
                ("lost", report.lost),
            ]
        })
    },
};

impl Plan for RandomRuns {
    fn name(&self) -> &'static str {
        self.name
    }

    fn description(&self) -> &'static str {
        self.description
    }

    fn case_limit(&self) -> Duration {
        Duration::from_mins(5)
    }

    fn prepare(
        &self,
        _: Arc<Environment>,
        _: Seed,
    ) -> BoxFuture<'_, Result<Arc<dyn Cases>, Failure>> {
        let cases: Arc<dyn Cases> = Arc::new(*self);
        async { Ok(cases) }.boxed()
    }
}

impl Cases for RandomRuns {
    fn names(&self) -> Vec<String> {
        (0..CASES).map(|number| format!("{number:03}")).collect()
    }

    fn run(self: Arc<Self>, case: Case) -> BoxFuture<'static, Result<(), Failure>> {
        // The runs keep a core busy and never wait.
        let runs = tokio::task::spawn_blocking(move || self.runs(&case));
        async { runs.await? }.boxed()
    }
}

impl RandomRuns {
    fn runs(&self, case: &Case) -> Result<(), Failure> {
        let mut random = case.random();
        let mut total: BTreeMap<&str, u64> = BTreeMap::new();
        for _ in 0..RUNS {
            for (what, count) in (self.run)(random.bits(), STEPS)? {
                *total.entry(what).or_default() += count;
            }
        }
        match total.iter().find(|(_, count)| **count == 0) {
            Some((what, _)) => Err(Failure::new(format!(
                "{RUNS} runs of {STEPS} steps, and nothing was ever {what}: they have tested nothing of it"
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case {
            name: "000".into(),
            seed: 1,
            evidence: std::path::PathBuf::new(),
        }
    }

    #[test]
    fn a_case_of_each_plan_passes() {
        for plan in [PLACEMENT, REPLICAS] {
            plan.runs(&case()).expect(plan.name);
        }
    }

    #[test]
    fn runs_that_never_did_something_are_no_proof_of_it() {
        let idle = RandomRuns {
            run: |_, _| {
                Ok([
                    ("placed", 1),
                    ("refused", 1),
                    ("released", 0),
                    ("changed", 1),
                ])
            },
            ..PLACEMENT
        };
        let failure = idle.runs(&case()).expect_err("a finding");
        assert!(
            failure.message().contains("nothing was ever released"),
            "{failure:?}"
        );
    }

    #[test]
    fn a_violation_is_reported_with_the_seed_that_shows_it() {
        let broken = RandomRuns {
            run: |seed, step| {
                Err(Violation {
                    seed,
                    step,
                    what: "two on one GPU".into(),
                })
            },
            ..PLACEMENT
        };
        let failure = broken.runs(&case()).expect_err("a finding");
        assert!(failure.message().contains("two on one GPU"), "{failure:?}");
    }
}
