//! Customers come and go while the cluster misbehaves, in a random order; in
//! the end everyone has what was wanted last.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use creo_api::AgentDeployment;
use creo_api::placement::EnvVar;
use creo_market::simulation::Random;
use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::super::environment::Environment;
use super::super::plan::{Case, Cases, Failure, Plan};
use super::super::seed::Seed;
use super::super::stage::{Kind, Observer, Stage};
use super::super::world::{Disturbance, World};

const CASES: usize = 100;
/// What happens in a case, one after the other.
const ACTS: usize = 14;
/// The longest pause between two acts.
const PAUSE_MS: i64 = 3_000;
const NAMES: [&str; 3] = ["amber", "birch", "cedar"];
const REPLICAS_MAX: i64 = 3;
/// A customer whom the API server does not answer tries again for this long.
const PATIENCE: Duration = Duration::from_mins(1);
/// After the last act: a cut-off node is seen again, GPUs are trusted again,
/// failed pods have waited for their next attempt.
const CALM_LIMIT: Duration = Duration::from_mins(5);

/// The plan.
#[derive(Clone, Copy)]
pub(in super::super) struct Soak;

impl Plan for Soak {
    fn name(&self) -> &'static str {
        "soak"
    }

    fn description(&self) -> &'static str {
        "Customers apply, scale, change, suspend and delete while kubelets, the API server, GPUs, cables and the operator fail; in the end all is as wanted last."
    }

    fn case_limit(&self) -> Duration {
        Duration::from_mins(20)
    }

    fn prepare(
        &self,
        environment: Arc<Environment>,
        _: Seed,
    ) -> BoxFuture<'_, Result<Arc<dyn Cases>, Failure>> {
        async move {
            let cases: Arc<dyn Cases> = Arc::new(Soaks {
                world: environment.world().await?,
            });
            Ok(cases)
        }
        .boxed()
    }
}

struct Soaks {
    world: Arc<World>,
}

impl Cases for Soaks {
    fn names(&self) -> Vec<String> {
        (0..CASES).map(|number| format!("{number:02}")).collect()
    }

    fn run(self: Arc<Self>, case: Case) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            let script = script(
                &mut case.random(),
                &self.world.nodes(),
                self.world.gpus_per_node(),
            );
            let mut text = String::new();
            for act in &script {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{act:?}");
            }
            std::fs::write(case.evidence.join("script.txt"), text)?;
            let stage = Stage::set(&self.world, &case, |_| Ok(())).await?;
            let played = play(&self.world, &stage, &script, &mut case.random()).await;
            stage.testify()?;
            played?;
            stage.strike().await?;
            Ok(())
        }
        .boxed()
    }
}

/// What a customer wants of a deployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Wanted {
    replicas: usize,
    revision: usize,
    suspended: bool,
}

impl Wanted {
    /// How many replicas run when all is well.
    fn running(self) -> usize {
        if self.suspended { 0 } else { self.replicas }
    }

    fn write_into(self, deployment: &mut AgentDeployment) {
        deployment.spec.replicas = i32::try_from(self.replicas).unwrap_or(0);
        deployment.spec.suspend = self.suspended;
        let revision = self.revision.to_string();
        deployment.spec.engine.env.push(EnvVar {
            name: "REVISION".to_owned(),
            value: revision,
        });
    }
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Apply(&'static str, Wanted),
    Scale(&'static str, usize),
    Delete(&'static str),
    Disturb(Disturbance),
    KillOperator,
}

/// What the customers want, act by act.
#[derive(Clone, Debug, Default)]
struct Customers(BTreeMap<&'static str, Wanted>);

impl Customers {
    fn take(&mut self, act: &Act) {
        match act {
            Act::Apply(name, wanted) => {
                self.0.insert(name, *wanted);
            }
            Act::Scale(name, replicas) => {
                if let Some(wanted) = self.0.get_mut(name) {
                    wanted.replicas = *replicas;
                }
            }
            Act::Delete(name) => {
                self.0.remove(name);
            }
            Act::Disturb(_) | Act::KillOperator => {}
        }
    }

    /// Something that a customer may do next.
    fn draw(&self, random: &mut Random) -> Act {
        let name = random.pick(&NAMES);
        let replicas = usize::try_from(random.below(REPLICAS_MAX + 1)).unwrap_or(0);
        let Some(wanted) = self.0.get(name).copied() else {
            return Act::Apply(
                name,
                Wanted {
                    replicas: replicas.max(1),
                    ..Wanted::default()
                },
            );
        };
        match random.below(6) {
            0 | 1 => Act::Scale(name, replicas),
            2 | 3 => Act::Apply(
                name,
                Wanted {
                    revision: wanted.revision + 1,
                    ..wanted
                },
            ),
            4 => Act::Apply(
                name,
                Wanted {
                    suspended: !wanted.suspended,
                    ..wanted
                },
            ),
            _ => Act::Delete(name),
        }
    }

    /// What has to be taken back for all to fit `gpus`.
    fn trim(&self, gpus: usize) -> Vec<Act> {
        let mut room = gpus;
        let mut acts = Vec::new();
        for (name, wanted) in &self.0 {
            let fits = wanted.running().min(room);
            if fits < wanted.running() {
                acts.push(Act::Scale(name, fits));
            }
            room -= fits;
        }
        acts
    }
}

/// A random sequence of acts. It begins with a customer.
fn script(random: &mut Random, nodes: &[String], gpus_per_node: usize) -> Vec<Act> {
    let mut customers = Customers::default();
    let mut acts = Vec::new();
    while acts.len() < ACTS {
        let act = if acts.is_empty() || !random.once_in(3) {
            customers.draw(random)
        } else {
            disturbance(random, nodes, gpus_per_node)
        };
        customers.take(&act);
        acts.push(act);
    }
    acts
}

fn disturbance(random: &mut Random, nodes: &[String], gpus_per_node: usize) -> Act {
    let node = random.pick(nodes);
    Act::Disturb(match random.below(8) {
        0 => Disturbance::RestartKubelet(node),
        1 => Disturbance::RestartApiServer,
        2 => Disturbance::GpuFails(node, random.index(gpus_per_node)),
        3 => Disturbance::GpusHeal(node),
        4 => Disturbance::Partition(node),
        5 => Disturbance::Rejoin(node),
        _ => return Act::KillOperator,
    })
}

/// Plays the script, calms everything down, and clears away.
async fn play(
    world: &Arc<World>,
    stage: &Stage,
    script: &[Act],
    random: &mut Random,
) -> Result<(), Failure> {
    stage.open(world).await?;
    let mut customers = Customers::default();
    for act in script {
        perform(world, stage, act, &mut customers).await?;
        let pause_ms = u64::try_from(random.below(PAUSE_MS)).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        stage.check()?;
    }
    world.heal().await?;
    for act in customers.trim(world.nodes().len() * world.gpus_per_node()) {
        perform(world, stage, &act, &mut customers).await?;
    }
    let last = customers.clone();
    stage
        .settle("what was wanted last", CALM_LIMIT, |observer| {
            is_as_wanted(observer, &last)
        })
        .await?;
    for name in last.0.into_keys() {
        perform(world, stage, &Act::Delete(name), &mut customers).await?;
    }
    stage
        .settle("the end of all", CALM_LIMIT, |observer| {
            is_as_wanted(observer, &customers)
        })
        .await?;
    stage.open(world).await
}

async fn perform(
    world: &Arc<World>,
    stage: &Stage,
    act: &Act,
    customers: &mut Customers,
) -> Result<(), Failure> {
    allow(stage, act, customers);
    match act {
        Act::Disturb(disturbance) => Arc::clone(world).disturb(disturbance.clone()).await?,
        Act::KillOperator => stage.operator.kill(),
        Act::Apply(..) | Act::Scale(..) | Act::Delete(_) => ask(stage, act).await?,
    }
    customers.take(act);
    Ok(())
}

/// Says what may be seen because of an act, before it is done.
fn allow(stage: &Stage, act: &Act, customers: &Customers) {
    stage.observer.expect(|expected| match act {
        Act::Apply(name, wanted) => {
            let seats = expected.seats.entry((*name).to_owned()).or_default();
            // A new deployment's replicas may meet those that its predecessor
            // of the same name has left.
            let left = if customers.0.contains_key(name) {
                0
            } else {
                *seats
            };
            *seats = (*seats).max(left + wanted.replicas);
        }
        Act::Scale(name, replicas) => {
            let seats = expected.seats.entry((*name).to_owned()).or_default();
            *seats = (*seats).max(*replicas);
        }
        Act::Disturb(Disturbance::Partition(_)) => {
            expected.lost_may_return = true;
            expected.pods_may_fail = true;
        }
        Act::Disturb(_) => expected.pods_may_fail = true,
        Act::Delete(_) | Act::KillOperator => {}
    });
}

/// Does what a customer wants, again and again while the API server is away.
async fn ask(stage: &Stage, act: &Act) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        let asked = match act {
            Act::Apply(name, wanted) => {
                stage
                    .apply(name, |subject| wanted.write_into(subject))
                    .await
            }
            Act::Scale(name, replicas) => stage.scale(name, *replicas).await,
            Act::Delete(name) => stage.delete(name).await,
            Act::Disturb(_) | Act::KillOperator => Ok(()),
        };
        match asked {
            Err(failure) if began.elapsed() > PATIENCE => {
                return Err(failure.during(format!("{act:?}")));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            Ok(()) => return Ok(()),
        }
    }
}

/// Whether everything is as the customers want it; otherwise what is not.
fn is_as_wanted(observer: &Observer, customers: &Customers) -> Result<(), String> {
    let objects = observer.objects();
    let count = |kind| objects.keys().filter(|(of, _)| *of == kind).count();
    let running: usize = customers.0.values().map(|wanted| wanted.running()).sum();
    for (kind, expected) in [
        (Kind::AgentDeployment, customers.0.len()),
        (Kind::Placement, running),
        (Kind::Pod, running),
        (Kind::Service, customers.0.len()),
    ] {
        if count(kind) != expected {
            return Err(format!(
                "{} objects of kind {kind} instead of {expected}",
                count(kind)
            ));
        }
    }
    for (name, wanted) in &customers.0 {
        let found = objects.iter().find(|((kind, _), object)| {
            *kind == Kind::AgentDeployment && object["metadata"]["name"] == *name
        });
        let Some((_, deployment)) = found else {
            return Err(format!("{name} is not there"));
        };
        let status = &deployment["status"];
        let is_seen = status["observedGeneration"] == deployment["metadata"]["generation"];
        if !is_seen || status["readyReplicas"] != wanted.running() {
            return Err(format!(
                "{name} has {} ready replicas instead of {}",
                status["readyReplicas"],
                wanted.running()
            ));
        }
        let revision = wanted.revision.to_string();
        let pods = objects.iter().filter(|((kind, _), pod)| {
            *kind == Kind::Pod && pod["metadata"]["labels"]["creo.cloud/deployment"] == *name
        });
        let is_old = |pod: &serde_json::Value| {
            let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
            !containers
                .flat_map(|container| container["env"].as_array().into_iter().flatten())
                .any(|variable| variable["name"] == "REVISION" && variable["value"] == revision)
        };
        if pods.into_iter().any(|(_, pod)| is_old(pod)) {
            return Err(format!("{name} still has a pod of an old revision"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> Vec<String> {
        vec!["gpu-1".to_owned(), "gpu-2".to_owned()]
    }

    #[test]
    fn a_script_follows_from_its_seed_and_asks_only_for_what_is_possible() {
        for seed in 0..200 {
            let acts = script(&mut Random::new(seed), &nodes(), 2);
            assert_eq!(acts, script(&mut Random::new(seed), &nodes(), 2));
            assert_eq!(acts.len(), ACTS);
            let mut customers = Customers::default();
            for act in &acts {
                if let Act::Scale(name, _) | Act::Delete(name) = act {
                    assert!(customers.0.contains_key(name), "{act:?} in {acts:?}");
                }
                customers.take(act);
            }
        }
    }

    #[test]
    fn every_kind_of_act_comes_up_in_the_cases() {
        let mut kinds: Vec<String> = (0..200)
            .flat_map(|seed| script(&mut Random::new(seed), &nodes(), 2))
            .map(|act| {
                let text = format!("{act:?}");
                text.split(['"', ',']).next().unwrap_or_default().to_owned()
            })
            .collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
    }

    #[test]
    fn what_does_not_fit_is_scaled_down_and_a_suspended_one_takes_no_room() {
        let wanted = |replicas, suspended| Wanted {
            replicas,
            suspended,
            ..Wanted::default()
        };
        let customers = Customers(BTreeMap::from([
            ("amber", wanted(3, true)),
            ("birch", wanted(3, false)),
            ("cedar", wanted(3, false)),
        ]));
        assert_eq!(customers.trim(4), [Act::Scale("cedar", 1)]);
        assert_eq!(customers.trim(9), []);
    }
}
