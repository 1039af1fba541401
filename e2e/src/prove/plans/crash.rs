//! The operator meets one fault at each of its writes, and must end where it
//! would have ended without.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use creo_api::placement::EnvVar;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::Value;

use super::super::environment::Environment;
use super::super::plan::{Case, Cases, Failure, Plan};
use super::super::seed::Seed;
use super::super::stage::{Kind, Observer, Stage, difference, effects, is_counted};
use super::super::world::World;
use crate::fault_proxy::{Action, Match, Moment, Refusal, Rule, Verb, Write};

/// The deployment that goes through the scenario.
const SUBJECT: &str = "subject";
/// A reference step may take this long, on a machine that does other things too.
const REFERENCE_LIMIT: Duration = Duration::from_mins(2);
/// What a step may take longer than twice the reference: the lease of a killed
/// operator runs out, and back-offs pass.
const SLACK: Duration = Duration::from_secs(20);
/// Longer than any time limit of the operator's calls.
const HANG: Duration = Duration::from_secs(40);
const HELD: Duration = Duration::from_secs(3);
/// Long enough for a new operator to get the lease and act on what it sees.
const LAG: Duration = Duration::from_secs(12);
const REPEATED: Duration = Duration::from_secs(10);
/// The rest that is asked for once, in the case of that name.
const LONG_REST: Duration = Duration::from_mins(1);
const LONG_REST_CASE: &str = "rest";
/// The most writes of each kind until two replicas are ready. A replica's status
/// changes with each phase of its pod, and the deployment's with each of these.
const WRITES_TO_READY: [(&str, usize); 5] = [
    ("services", 1),
    ("pods", 2),
    ("placements.creo.cloud", 2),
    ("placements.creo.cloud/status", 12),
    ("agentdeployments.creo.cloud/status", 14),
];
/// How often a case is tried whose write did not come up.
const TRIES: usize = 3;

/// The plan.
pub(in super::super) struct CrashAfterEveryWrite;

impl Plan for CrashAfterEveryWrite {
    fn name(&self) -> &'static str {
        "operator-crash-after-every-write"
    }

    fn description(&self) -> &'static str {
        "A deployment is created, changed, scaled and deleted; one fault meets one write of the operator; all ends as without it."
    }

    fn case_limit(&self) -> Duration {
        Duration::from_mins(15)
    }

    fn prepare(
        &self,
        environment: Arc<Environment>,
        seed: Seed,
    ) -> BoxFuture<'_, Result<Arc<dyn Cases>, Failure>> {
        async move {
            let world = environment.world().await?;
            let mut references = Vec::new();
            for number in ["1", "2"] {
                let evidence = environment
                    .folder()
                    .join("evidence")
                    .join(self.name())
                    .join("reference");
                std::fs::create_dir_all(&evidence)?;
                let case = Case {
                    name: format!("reference {number}"),
                    seed: seed.derive(&["reference", self.name(), number]),
                    evidence,
                };
                let run = play(&world, &case, &Limits::reference(), None)
                    .await
                    .map_err(|failure| failure.during("the reference run"))?;
                references.push(run);
            }
            let cases: Arc<dyn Cases> = Arc::new(Crashes::new(world, references)?);
            Ok(cases)
        }
        .boxed()
    }
}

/// The steps of the scenario, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Create,
    Change,
    Scale,
    Delete,
}

impl Step {
    const ALL: [Self; 4] = [Self::Create, Self::Change, Self::Scale, Self::Delete];
}

/// How long each step may take.
struct Limits(BTreeMap<Step, Duration>);

impl Limits {
    fn reference() -> Self {
        Self(Step::ALL.map(|step| (step, REFERENCE_LIMIT)).into())
    }

    /// Twice the slower reference, the fault's own delay, and some slack.
    fn after(references: &[Played], fault: Fault) -> Self {
        let longest = |step| {
            references
                .iter()
                .filter_map(|run| run.took.get(&step))
                .max()
                .copied()
                .unwrap_or_default()
        };
        Self(
            Step::ALL
                .map(|step| (step, longest(step) * 2 + SLACK + fault.delay()))
                .into(),
        )
    }
}

/// What came of playing the scenario.
struct Played {
    /// How long each step took until what it wanted was there.
    took: BTreeMap<Step, Duration>,
    /// The state after each step.
    snapshots: BTreeMap<Step, String>,
    /// The operator's writes.
    writes: Vec<Write>,
    /// How many objects of each kind there have been.
    ever: BTreeMap<Kind, usize>,
    /// The ends of the operator that nobody asked for.
    exits: Vec<String>,
    /// Whether the fault has met its write, where there was one.
    fault_happened: bool,
}

/// Plays the scenario, with one fault or none.
async fn play(
    world: &Arc<World>,
    case: &Case,
    limits: &Limits,
    crash: Option<&Crash>,
) -> Result<Played, Failure> {
    let stage = Stage::set(world, case, |proxy| {
        for rule in crash.iter().flat_map(|crash| crash.rules()) {
            proxy.add_rule(rule)?;
        }
        Ok(())
    })
    .await?;
    let played = steps(world, &stage, case, limits).await;
    stage.testify()?;
    let (took, snapshots) = played?;
    let (ever, exits) = (stage.observer.ever(), stage.operator.exits());
    let report = stage.strike().await?;
    Ok(Played {
        took,
        snapshots,
        fault_happened: report.unfired.is_empty(),
        writes: report.writes,
        ever,
        exits,
    })
}

async fn steps(
    world: &World,
    stage: &Stage,
    case: &Case,
    limits: &Limits,
) -> Result<(BTreeMap<Step, Duration>, BTreeMap<Step, String>), Failure> {
    stage.open(world).await?;
    let mut took = BTreeMap::new();
    let mut snapshots = BTreeMap::new();
    for step in Step::ALL {
        act(stage, step).await?;
        let limit = limits.0.get(&step).copied().unwrap_or(REFERENCE_LIMIT);
        let reached = |observer: &Observer| reached(observer, step);
        took.insert(
            step,
            stage.settle(&format!("{step:?}"), limit, reached).await?,
        );
        snapshots.insert(step, stage.snapshot(world));
        if step == Step::Create && case.name == LONG_REST_CASE {
            few_writes(&stage.writes())?;
            stage.stays_quiet(LONG_REST).await?;
        }
    }
    Ok((took, snapshots))
}

/// Fails when the operator has written more than is declared for two replicas
/// to become ready.
fn few_writes(writes: &[Write]) -> Result<(), Failure> {
    for (kind, most) in WRITES_TO_READY {
        let count = writes
            .iter()
            .filter(|write| write.request.kind() == kind)
            .count();
        if count > most {
            return Err(Failure::new(format!(
                "{count} writes of {kind} until two replicas were ready, and {most} are declared"
            )));
        }
    }
    Ok(())
}

/// What the customer does in a step.
async fn act(stage: &Stage, step: Step) -> Result<(), Failure> {
    let seats = |count| {
        stage.observer.expect(|expected| {
            expected.seats.insert(SUBJECT.to_owned(), count);
        });
    };
    match step {
        Step::Create => {
            seats(2);
            stage.apply(SUBJECT, |_| {}).await
        }
        Step::Change => {
            let change = EnvVar {
                name: "GREETING".to_owned(),
                value: "hello".to_owned(),
            };
            stage
                .apply(SUBJECT, |wanted| wanted.spec.engine.env.push(change))
                .await
        }
        Step::Scale => stage.scale(SUBJECT, 1).await,
        Step::Delete => {
            seats(1);
            stage.delete(SUBJECT).await
        }
    }
}

/// Whether what a step wants is there; otherwise what is there, in words.
fn reached(observer: &Observer, step: Step) -> Result<(), String> {
    let objects = observer.objects();
    let of = |kind| {
        objects
            .iter()
            .filter(move |((of, _), _)| *of == kind)
            .map(|(_, object)| object)
    };
    let (pods, placements) = (of(Kind::Pod).count(), of(Kind::Placement).count());
    let there = format!("{placements} placements, {pods} pods");
    let wanted = match step {
        Step::Create | Step::Change => 2,
        Step::Scale => 1,
        Step::Delete => {
            let left =
                pods + placements + of(Kind::Service).count() + of(Kind::AgentDeployment).count();
            return if left == 0 {
                Ok(())
            } else {
                Err(format!("{there}, {left} objects in all"))
            };
        }
    };
    let deployment = of(Kind::AgentDeployment)
        .next()
        .ok_or("the deployment is not seen yet")?;
    let ready = deployment["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "Ready")
        .ok_or("the deployment has no condition Ready")?;
    let generation = &deployment["metadata"]["generation"];
    let is_ready = ready["status"] == "True" && ready["observedGeneration"] == *generation;
    let changed = step < Step::Change || of(Kind::Pod).all(has_change);
    if is_ready && pods == wanted && placements == wanted && changed {
        return Ok(());
    }
    Err(format!(
        "{there}, changed: {changed}, Ready: {} {}",
        ready["status"], ready["message"]
    ))
}

fn has_change(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    containers
        .flat_map(|container| container["env"].as_array().into_iter().flatten())
        .any(|variable| variable["name"] == "GREETING")
}

/// What meets a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillBefore,
    KillAfter,
    /// Killed, and the next one has no news for a while, and old lists where it
    /// puts up with such.
    KillIntoThePast,
    DropAfter,
    ConflictBefore,
    TooManyBefore,
    InternalErrorBefore,
    UnavailableBefore,
    UnavailableAfter,
    TimeoutAfter,
    HangBefore,
    HangAfter,
    CutWatches,
    ExpireWatches,
    HoldEvents,
    RepeatEvents,
}

impl Fault {
    const ALL: [(Self, &'static str); 16] = [
        (Self::KillBefore, "kill-before"),
        (Self::KillAfter, "kill-after"),
        (Self::KillIntoThePast, "kill-into-the-past"),
        (Self::DropAfter, "drop-after"),
        (Self::ConflictBefore, "409-before"),
        (Self::TooManyBefore, "429-before"),
        (Self::InternalErrorBefore, "500-before"),
        (Self::UnavailableBefore, "503-before"),
        (Self::UnavailableAfter, "503-after"),
        (Self::TimeoutAfter, "504-after"),
        (Self::HangBefore, "hang-before"),
        (Self::HangAfter, "hang-after"),
        (Self::CutWatches, "cut-watches"),
        (Self::ExpireWatches, "410-watches"),
        (Self::HoldEvents, "hold-events"),
        (Self::RepeatEvents, "repeat-events"),
    ];

    fn action(self) -> Action {
        use Moment::{After, Before};
        match self {
            Self::KillBefore => Action::KillController(Before),
            Self::KillAfter => Action::KillController(After),
            Self::KillIntoThePast => Action::KillIntoThePast(LAG),
            Self::DropAfter => Action::DropReply(After),
            Self::ConflictBefore => Action::Answer(Before, Refusal::Conflict),
            Self::TooManyBefore => Action::Answer(Before, Refusal::TooManyRequests),
            Self::InternalErrorBefore => Action::Answer(Before, Refusal::InternalError),
            Self::UnavailableBefore => Action::Answer(Before, Refusal::Unavailable),
            Self::UnavailableAfter => Action::Answer(After, Refusal::Unavailable),
            Self::TimeoutAfter => Action::Answer(After, Refusal::Timeout),
            Self::HangBefore => Action::Hang(Before, HANG),
            Self::HangAfter => Action::Hang(After, HANG),
            Self::CutWatches => Action::CutWatches,
            Self::ExpireWatches => Action::ExpireWatches,
            Self::HoldEvents => Action::HoldWatchEvents(HELD),
            Self::RepeatEvents => Action::RepeatWatchEvents(REPEATED),
        }
    }

    /// How long the fault itself keeps the operator from going on.
    fn delay(self) -> Duration {
        match self {
            Self::HangBefore | Self::HangAfter => HANG,
            Self::HoldEvents => HELD,
            Self::KillIntoThePast => LAG,
            _ => Duration::ZERO,
        }
    }
}

/// A write of the reference, as it is found again in another run: objects have
/// other names there, and what happens at the same time comes in another order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    verb: Verb,
    resource: String,
    nth: u32,
}

/// A fault at a write.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Crash {
    point: Point,
    fault: Fault,
}

impl Crash {
    fn rules(&self) -> [Rule; 1] {
        let request = Match::of(self.point.verb, &self.point.resource);
        [Rule::once(request, self.point.nth, self.fault.action())]
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point {
            verb,
            resource,
            nth,
        } = &self.point;
        let fault = Fault::ALL.iter().find(|(fault, _)| *fault == self.fault);
        let fault = fault.map_or("", |(_, name)| name);
        write!(formatter, "{verb}:{resource}:{nth}:{fault}")
    }
}

/// The writes that come up in every reference run: in one of them alone, a
/// fault could not count on it.
fn points(references: &[Played]) -> Vec<Point> {
    let mut least: Option<BTreeMap<(Verb, String), u32>> = None;
    for run in references {
        let mut counts = BTreeMap::new();
        for write in run.writes.iter().filter(|write| is_counted(write)) {
            let request = &write.request;
            let resource = match &request.subresource {
                Some(subresource) => format!("{}/{subresource}", request.resource),
                None => request.resource.clone(),
            };
            *counts.entry((request.verb, resource)).or_insert(0) += 1;
        }
        if let Some(before) = &least {
            counts.retain(|key, count| {
                let other = before.get(key).copied().unwrap_or(0);
                *count = other.min(*count);
                *count > 0
            });
        }
        least = Some(counts);
    }
    least
        .unwrap_or_default()
        .into_iter()
        .flat_map(|((verb, resource), count)| {
            (1..=count).map(move |nth| Point {
                verb,
                resource: resource.clone(),
                nth,
            })
        })
        .collect()
}

/// The plan with its reference runs done.
struct Crashes {
    world: Arc<World>,
    references: Vec<Played>,
    by_name: BTreeMap<String, Crash>,
}

impl Crashes {
    fn new(world: Arc<World>, references: Vec<Played>) -> Result<Self, Failure> {
        if let [first, others @ ..] = references.as_slice() {
            for other in others {
                same_states(first, other)
                    .map_err(|failure| failure.during("two runs without a fault differ"))?;
            }
        }
        let by_name = points(&references)
            .into_iter()
            .flat_map(|point| {
                Fault::ALL.map(|(fault, _)| Crash {
                    point: point.clone(),
                    fault,
                })
            })
            .map(|crash| (crash.to_string(), crash))
            .collect();
        Ok(Self {
            world,
            references,
            by_name,
        })
    }

    async fn try_case(&self, case: &Case) -> Result<(), Failure> {
        let crash = self.by_name.get(&case.name);
        let limits = match crash {
            Some(crash) => Limits::after(&self.references, crash.fault),
            None => Limits::reference(),
        };
        for _ in 0..TRIES {
            let played = play(&self.world, case, &limits, crash).await?;
            if played.fault_happened {
                return self.judge(&played);
            }
        }
        Err(Failure::new(format!(
            "in {TRIES} tries the operator never came to this write"
        )))
    }

    /// Compares a run with the reference runs.
    fn judge(&self, played: &Played) -> Result<(), Failure> {
        let Some(reference) = self.references.first() else {
            return Err(Failure::new("there is no reference run"));
        };
        same_states(reference, played)?;
        if let Some(exit) = played.exits.first() {
            return Err(Failure::new(format!(
                "the operator ended by itself: {exit}"
            )));
        }
        let range = |count: &dyn Fn(&Played) -> usize| {
            let counts = self.references.iter().map(count);
            (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0))
        };
        for kind in [Kind::Placement, Kind::Pod, Kind::Service] {
            let count = |run: &Played| run.ever.get(&kind).copied().unwrap_or(0);
            let (least, most) = range(&count);
            let seen = count(played);
            if !(least..=most).contains(&seen) {
                return Err(Failure::new(format!(
                    "there were {seen} objects of kind {kind}, and {least} to {most} without the fault"
                )));
            }
        }
        for key in effects(&played.writes).keys() {
            let count = |run: &Played| effects(&run.writes).get(key).copied().unwrap_or(0);
            let (_, most) = range(&count);
            let seen = count(played);
            // Fewer deletes are well: the garbage collector may be quicker.
            if seen > most {
                let (kind, effect) = key;
                return Err(Failure::new(format!(
                    "{seen} times {kind} was {effect:?}, and at most {most} times without the fault"
                )));
            }
        }
        Ok(())
    }
}

/// Fails where a step ended in another state.
fn same_states(reference: &Played, played: &Played) -> Result<(), Failure> {
    for (step, expected) in &reference.snapshots {
        let seen = played.snapshots.get(step).map_or("", String::as_str);
        if let Some(difference) = difference(expected, seen) {
            return Err(Failure::new(format!(
                "after {step:?} the state is another:\n{difference}"
            )));
        }
    }
    Ok(())
}

impl Cases for Crashes {
    fn names(&self) -> Vec<String> {
        let rest = std::iter::once(LONG_REST_CASE.to_owned());
        rest.chain(self.by_name.keys().cloned()).collect()
    }

    fn run(self: Arc<Self>, case: Case) -> BoxFuture<'static, Result<(), Failure>> {
        async move { self.try_case(&case).await }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;
    use crate::fault_proxy::{ApiRequest, Outcome, Seen, Version};

    fn write(method: &Method, path: &str, before: Seen) -> Write {
        let version = Version {
            uid: "u".into(),
            resource_version: "9".into(),
            deleting: false,
        };
        Write {
            number: 1,
            at_ms: 0,
            request: ApiRequest::parse(method, path, None, None).expect("a resource path"),
            outcome: Outcome::Accepted {
                before,
                after: Seen::Present(version),
            },
            fault: None,
        }
    }

    fn created(count: usize) -> Vec<Write> {
        let pods = "/api/v1/namespaces/a/pods";
        (0..count)
            .map(|_| write(&Method::POST, pods, Seen::Absent))
            .collect()
    }

    fn played(pods: usize, state: &str, writes: Vec<Write>) -> Played {
        Played {
            took: BTreeMap::new(),
            snapshots: BTreeMap::from([(Step::Create, state.to_owned())]),
            writes,
            ever: BTreeMap::from([(Kind::Pod, pods)]),
            exits: Vec::new(),
            fault_happened: true,
        }
    }

    #[test]
    fn only_writes_that_every_reference_has_are_met_by_faults() {
        let lease = "/apis/coordination.k8s.io/v1/namespaces/a/leases/l";
        let status = "/api/v1/namespaces/a/pods/p/status";
        let mut first = created(2);
        first.push(write(&Method::PUT, lease, Seen::Absent));
        first.push(write(&Method::PUT, status, Seen::Absent));
        let references = [played(2, "", first), played(2, "", created(3))];
        let names: Vec<String> = points(&references)
            .into_iter()
            .map(|point| {
                Crash {
                    point,
                    fault: Fault::KillAfter,
                }
                .to_string()
            })
            .collect();
        assert_eq!(
            names,
            ["create:pods:1:kill-after", "create:pods:2:kill-after"]
        );
    }

    #[test]
    fn every_fault_has_a_name_of_its_own_and_a_rule_that_can_fire() {
        let mut names: Vec<&str> = Fault::ALL.iter().map(|(_, name)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Fault::ALL.len());
    }
}
