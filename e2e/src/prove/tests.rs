//! Whole runs of small plans.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;
use tempfile::TempDir;

use super::*;

/// A plan of `total` cases that fails where it is told to.
#[derive(Clone, Default)]
struct Numbers {
    total: usize,
    /// Case 1 fails, case 2 panics, case 3 never ends.
    with_faults: bool,
    ran: Arc<Mutex<Vec<String>>>,
    seeds: Arc<Mutex<BTreeSet<u64>>>,
    /// The run is interrupted during case 2.
    interrupted_by: Option<CancellationToken>,
}

impl Plan for Numbers {
    fn name(&self) -> &'static str {
        "numbers"
    }
    fn description(&self) -> &'static str {
        "Counts."
    }
    fn case_limit(&self) -> Duration {
        Duration::from_millis(200)
    }
    fn prepare(
        &self,
        _: Arc<Environment>,
        _: Seed,
    ) -> BoxFuture<'_, Result<Arc<dyn Cases>, Failure>> {
        async { Ok(Arc::new(self.clone()) as Arc<dyn Cases>) }.boxed()
    }
}

impl Cases for Numbers {
    fn names(&self) -> Vec<String> {
        (0..self.total)
            .map(|number| format!("n/{number}"))
            .collect()
    }
    fn run(self: Arc<Self>, case: Case) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            self.seeds.lock().expect("the seeds").insert(case.seed);
            fs::write(case.evidence.join("log"), "a line").expect("evidence");
            match case.name.as_str() {
                "n/1" if self.with_faults => return Err(Failure::new("one is odd")),
                "n/2" if self.with_faults => panic!("two is too much"),
                "n/3" if self.with_faults => std::future::pending().await,
                "n/2" => {
                    if let Some(stop) = &self.interrupted_by {
                        stop.cancel();
                        std::future::pending::<()>().await;
                    }
                }
                _ => {}
            }
            self.ran.lock().expect("the list").push(case.name);
            Ok(())
        }
        .boxed()
    }
}

fn environment(checkout: &Path) -> Environment {
    let no_cluster = || async { Err(Failure::new("there is no cluster in this test")) }.boxed();
    Environment::new(checkout, Box::new(no_cluster))
}

async fn prove(directory: &TempDir, plan: &Numbers, arguments: Arguments) -> Result<Report> {
    run(
        &arguments,
        &[Box::new(plan.clone())],
        environment(directory.path()),
    )
    .await
}

fn checkout() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .arg("-C")
            .arg(directory.path())
            .args(["-c", "user.name=a", "-c", "user.email=a@example.org"])
            .args(arguments)
            .output()
            .expect("git");
        assert!(output.status.success(), "{output:?}");
    };
    fs::write(directory.path().join(".gitignore"), "/target\n").expect("a file");
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "one"]);
    directory
}

fn ran(plan: &Numbers) -> Vec<String> {
    std::mem::take(&mut plan.ran.lock().expect("the list"))
}

#[tokio::test]
async fn a_full_run_runs_every_case_once_and_says_so() {
    let (checkout, plan) = (
        checkout(),
        Numbers {
            total: 5,
            ..Numbers::default()
        },
    );
    let report = prove(&checkout, &plan, Arguments::default())
        .await
        .expect("a report");
    assert!(report.passed);
    assert_eq!(ran(&plan), plan.names());
    assert_eq!(
        plan.seeds.lock().expect("the seeds").len(),
        5,
        "each case has its own seed"
    );
    let line = report.plans[0].line(7);
    assert_eq!(line, "plan numbers: ran 5 of 5 cases (100.0 %), seed 7");
    let evidence = checkout.path().join("target/prove/evidence/numbers");
    assert_eq!(
        fs::read_dir(evidence).expect("a folder").count(),
        0,
        "passing leaves nothing"
    );
}

#[tokio::test]
async fn a_failure_a_panic_and_a_case_without_an_end_are_reported_with_their_rerun() {
    let (checkout, plan) = (
        checkout(),
        Numbers {
            total: 5,
            with_faults: true,
            ..Numbers::default()
        },
    );
    let arguments = Arguments {
        seed: Some(9),
        ..Arguments::default()
    };
    let report = prove(&checkout, &plan, arguments).await.expect("a report");
    assert!(!report.passed);
    let path = checkout.path().join("target/prove/report.json");
    let json: Value = serde_json::from_slice(&fs::read(path).expect("a report")).expect("JSON");
    assert_eq!(
        (&json["seed"], &json["passed"]),
        (&Value::from(9), &Value::from(false))
    );
    assert_eq!(json["revision"]["commit"].as_str().map(str::len), Some(40));
    assert_eq!(json["revision"]["dirty"], false);
    let failures = json["plans"][0]["failures"].as_array().expect("failures");
    let messages: Vec<_> = failures
        .iter()
        .map(|failure| failure["message"].as_str().expect("text"))
        .collect();
    assert_eq!(
        messages,
        [
            "one is odd",
            "panic: two is too much",
            "the case had not ended after 0 s"
        ]
    );
    let rerun = failures[0]["rerun"].as_str().expect("a command");
    assert!(
        rerun.ends_with("prove --plan numbers --seed 9 --only 'n/1'"),
        "{rerun}"
    );
    let evidence = Path::new(failures[0]["evidence"].as_str().expect("a folder")).join("log");
    assert_eq!(fs::read_to_string(evidence).expect("evidence"), "a line");
    assert_eq!(
        ran(&plan),
        ["n/0", "n/4"],
        "the others have run all the same"
    );
}

#[tokio::test]
async fn a_resumed_run_leaves_out_what_is_finished_and_keeps_its_failures() {
    let (checkout, mut plan) = (
        checkout(),
        Numbers {
            total: 4,
            with_faults: true,
            ..Numbers::default()
        },
    );
    let sample = Arguments {
        sample: Some(Sample::Count(2)),
        ..Arguments::default()
    };
    let first = prove(&checkout, &plan, sample).await.expect("a report");
    let before = first.plans[0].failures.len();
    ran(&plan);
    let resume = Arguments {
        resume: true,
        ..Arguments::default()
    };
    plan.with_faults = false;
    let second = prove(&checkout, &plan, resume).await.expect("a report");
    assert_eq!(
        (second.plans[0].cases_run, second.plans[0].cases_resumed),
        (4, 2)
    );
    assert_eq!(second.plans[0].failures.len(), before);
    assert_eq!(ran(&plan).len(), 2);
}

#[tokio::test]
async fn an_interrupted_run_keeps_what_is_finished_and_is_no_success() {
    let (checkout, mut plan) = (
        checkout(),
        Numbers {
            total: 4,
            ..Numbers::default()
        },
    );
    let stop = CancellationToken::new();
    plan.interrupted_by = Some(stop.clone());
    let plans: [Box<dyn Plan>; 1] = [Box::new(plan.clone())];
    let environment = environment(checkout.path());
    let report = run_until(stop, &Arguments::default(), &plans, environment)
        .await
        .expect("a report");
    assert!(report.interrupted && !report.passed);
    assert_eq!(
        (report.plans[0].cases_run, report.plans[0].cases_selected),
        (2, 4)
    );
    plan.interrupted_by = None;
    let resume = Arguments {
        resume: true,
        ..Arguments::default()
    };
    assert!(
        prove(&checkout, &plan, resume)
            .await
            .expect("a report")
            .passed
    );
    assert_eq!(
        ran(&plan),
        plan.names(),
        "each case has run to its end once"
    );
}

#[tokio::test]
async fn a_run_does_not_resume_from_other_sources() {
    let (checkout, plan) = (
        checkout(),
        Numbers {
            total: 3,
            ..Numbers::default()
        },
    );
    prove(&checkout, &plan, Arguments::default())
        .await
        .expect("a report");
    fs::write(checkout.path().join("new"), "source").expect("a file");
    let resume = Arguments {
        resume: true,
        ..Arguments::default()
    };
    let report = prove(&checkout, &plan, resume.clone())
        .await
        .expect("a report");
    assert_eq!(report.plans[0].cases_resumed, 0);
    assert!(report.revision.dirty);
    let nowhere = tempfile::tempdir().expect("a directory");
    let refused = prove(&nowhere, &plan, resume).await.expect_err("no commit");
    assert!(refused.to_string().contains("no git checkout"), "{refused}");
}

#[tokio::test]
async fn a_sample_prints_its_share_and_one_seed_draws_one_sample() {
    let (checkout, plan) = (
        checkout(),
        Numbers {
            total: 480,
            ..Numbers::default()
        },
    );
    let sample = Arguments {
        sample: Some(Sample::Count(12)),
        seed: Some(3),
        ..Arguments::default()
    };
    let report = prove(&checkout, &plan, sample.clone())
        .await
        .expect("a report");
    assert!(report.passed);
    assert_eq!(
        report.plans[0].line(3),
        "plan numbers: ran 12 of 480 cases (2.5 %), seed 3"
    );
    let first = ran(&plan);
    prove(&checkout, &plan, sample.clone())
        .await
        .expect("a report");
    assert_eq!(ran(&plan), first);
    prove(
        &checkout,
        &plan,
        Arguments {
            seed: Some(4),
            ..sample
        },
    )
    .await
    .expect("a report");
    assert_ne!(ran(&plan), first);
}

#[tokio::test]
async fn one_case_is_run_again_by_its_name() {
    let (checkout, plan) = (
        checkout(),
        Numbers {
            total: 9,
            ..Numbers::default()
        },
    );
    let only = Arguments {
        only: vec!["n/7".into()],
        plans: vec!["numbers".into()],
        ..Arguments::default()
    };
    prove(&checkout, &plan, only.clone())
        .await
        .expect("a report");
    assert_eq!(ran(&plan), ["n/7"]);
    let unclear = Arguments {
        plans: Vec::new(),
        ..only
    };
    let refused = prove(&checkout, &plan, unclear).await.expect_err("no plan");
    assert!(refused.to_string().contains("--plan"), "{refused}");
}

#[tokio::test]
async fn a_plan_without_cases_and_a_plan_that_does_not_exist_are_no_success() {
    let (checkout, plan) = (checkout(), Numbers::default());
    let report = prove(&checkout, &plan, Arguments::default())
        .await
        .expect("a report");
    assert!(!report.passed);
    assert!(report.plans[0].line(1).ends_with("the plan has no cases"));
    let other = Arguments {
        plans: vec!["letters".into()],
        ..Arguments::default()
    };
    let refused = prove(&checkout, &plan, other)
        .await
        .expect_err("no such plan");
    assert!(
        refused.to_string().contains("there are numbers"),
        "{refused}"
    );
}
