//! A deployment's replicas through failures, losses and changed wishes: never
//! more at once than wanted, never two given up for one change, and when all is
//! quiet again, what was wanted.

use serde::{Deserialize, Serialize};

use super::{Random, Violation};
use crate::replicas::{Cause, Plan, Replica, Roll, State, Wanted, plan};

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicasReport {
    /// The seed that gives the same run again.
    pub seed: u64,
    /// Random steps taken, before the quiet ones at the end.
    pub steps: u64,
    /// Replicas that were created.
    pub created: u64,
    /// Replicas that were withdrawn.
    pub withdrawn: u64,
    /// Replicas that were changed in place or given up for other terms.
    pub rolled: u64,
    /// Times that a change waited for a replica.
    pub waited: u64,
    /// Replicas that were lost.
    pub lost: u64,
    /// Steps that the end took until nothing was left to do.
    pub quiet_steps: u64,
}

struct World {
    wanted: Wanted,
    replicas: Vec<Replica>,
    now_ms: i64,
}

/// The revision that never becomes ready.
const BROKEN: &str = "broken";
const MOST_REPLICAS: usize = 6;
/// Enough for every replica to be created, changed, given up and created again.
const MOST_QUIET_STEPS: u64 = 600;

/// `steps` random steps, then as many quiet ones as it takes.
///
/// # Errors
///
/// The first violation: more replicas than wanted, two given up for one change,
/// a better one withdrawn than one that stays, a plan that depends on the order
/// of the replicas, or a world that does not come to rest as wanted.
pub fn replicas_run(seed: u64, steps: u64) -> Result<ReplicasReport, Violation> {
    let mut random = Random::new(seed);
    let mut world = World {
        wanted: Wanted {
            replicas: random.index(5),
            revision: "v0".to_owned(),
        },
        replicas: Vec::new(),
        now_ms: 0,
    };
    let mut report = ReplicasReport {
        seed,
        steps,
        ..ReplicasReport::default()
    };
    for step in 0..steps {
        match random.below(8) {
            0 => world.wish(&mut random),
            1..5 => world.happen(&mut random, &mut report),
            _ => world
                .act(&mut random, &mut report)
                .map_err(|what| Violation { seed, step, what })?,
        }
    }
    "last".clone_into(&mut world.wanted.revision);
    for quiet in 0..MOST_QUIET_STEPS {
        let violated = |what| Violation {
            seed,
            step: steps + quiet,
            what,
        };
        world.calm();
        world.act(&mut random, &mut report).map_err(violated)?;
        if world.is_as_wanted() {
            report.quiet_steps = quiet;
            return Ok(report);
        }
    }
    let what = format!(
        "{:?} never came to rest at {:?}",
        world.replicas, world.wanted
    );
    Err(Violation {
        seed,
        step: steps + MOST_QUIET_STEPS,
        what,
    })
}

impl World {
    /// The customer changes the deployment.
    fn wish(&mut self, random: &mut Random) {
        match random.below(4) {
            0 => self.wanted.replicas = random.index(MOST_REPLICAS + 1),
            1 => BROKEN.clone_into(&mut self.wanted.revision),
            2 => self
                .replicas
                .iter_mut()
                .for_each(|replica| replica.terms_agree = false),
            _ => self.wanted.revision = format!("v{}", random.below(3)),
        }
    }

    /// Something happens to one replica.
    fn happen(&mut self, random: &mut Random, report: &mut ReplicasReport) {
        let index = random.index(self.replicas.len());
        let Some(replica) = self.replicas.get_mut(index) else {
            return;
        };
        let ends = replica.leaving && replica.state != State::Lost;
        if ends && random.once_in(2) {
            self.replicas.swap_remove(index);
            return;
        }
        let fate = random.below(8);
        replica.state = match (replica.state, fate) {
            (State::Over, _) | (State::Lost, 0) => State::Over,
            (State::Lost, 1..4) => State::Ready,
            (State::Lost, _) | (_, 0) => State::Lost,
            (_, 1) => State::Failed,
            (State::Starting | State::Ready, _) if replica.revision != BROKEN => State::Ready,
            (State::Failed, 2..5) => State::Starting,
            (state, _) => state,
        };
        report.lost += u64::from(replica.state == State::Lost && fate == 0);
    }

    /// Nothing fails any more, and what was on its way arrives.
    fn calm(&mut self) {
        self.replicas
            .retain(|replica| !replica.leaving || replica.state == State::Lost);
        for replica in self
            .replicas
            .iter_mut()
            .filter(|replica| replica.revision != BROKEN)
        {
            replica.state = match replica.state {
                State::Starting => State::Ready,
                State::Failed => State::Starting,
                state => state,
            };
        }
    }

    fn is_as_wanted(&self) -> bool {
        let staying: Vec<&Replica> = self
            .replicas
            .iter()
            .filter(|replica| !replica.leaving)
            .collect();
        let right = |replica: &&Replica| {
            replica.state == State::Ready
                && replica.terms_agree
                && replica.revision == self.wanted.revision
        };
        staying.len() == self.wanted.replicas && staying.iter().all(right)
    }

    /// Makes a plan, looks at it, and does what it says.
    fn act(&mut self, random: &mut Random, report: &mut ReplicasReport) -> Result<(), String> {
        let plan = plan(&self.wanted, &self.replicas);
        random.shuffle(&mut self.replicas);
        if crate::replicas::plan(&self.wanted, &self.replicas) != plan {
            return Err(format!(
                "the order of {:?} changed the plan {plan:?}",
                self.replicas
            ));
        }
        self.withdraws_the_worst(&plan)?;
        self.gives_up_one_at_a_time(&plan)?;
        report.waited += u64::from(plan.waits_for.is_some());
        report.withdrawn += plan.withdraw.len() as u64;
        report.rolled += u64::from(plan.roll.is_some());
        report.created += plan.create as u64;
        self.apply(&plan)
    }

    fn withdraws_the_worst(&self, plan: &Plan) -> Result<(), String> {
        let causes = |replica: &Replica| {
            plan.withdraw
                .iter()
                .filter(|it| it.name == replica.name)
                .map(|it| it.cause)
                .collect::<Vec<_>>()
        };
        let stays = |replica: &&Replica| !replica.leaving && causes(replica).is_empty();
        let ready = self
            .replicas
            .iter()
            .filter(stays)
            .filter(|replica| replica.state == State::Ready)
            .count();
        for replica in &self.replicas {
            let right = match (causes(replica).as_slice(), replica.state) {
                ([], _) => true,
                _ if replica.leaving => false,
                ([Cause::Over], State::Over) => true,
                ([Cause::LostAndReplaced], State::Lost) => ready >= self.wanted.replicas,
                ([Cause::TooMany], State::Failed | State::Starting | State::Ready) => self
                    .replicas
                    .iter()
                    .filter(stays)
                    .all(|other| replica.state <= other.state),
                _ => false,
            };
            if !right {
                return Err(format!(
                    "{replica:?} must not be withdrawn by {plan:?} from {:?}",
                    self.replicas
                ));
            }
        }
        Ok(())
    }

    fn gives_up_one_at_a_time(&self, plan: &Plan) -> Result<(), String> {
        let Some(Roll::Update { name } | Roll::Replace { name }) = &plan.roll else {
            return Ok(());
        };
        let others_serve = self
            .replicas
            .iter()
            .filter(|replica| replica.name != *name)
            .all(|replica| {
                let changed = replica.terms_agree && replica.revision == self.wanted.revision;
                match replica.state {
                    State::Failed | State::Starting => !replica.leaving && !changed,
                    State::Ready => !replica.leaving,
                    State::Lost | State::Over => true,
                }
            });
        let stays = !plan
            .withdraw
            .iter()
            .any(|withdrawal| withdrawal.name == *name);
        if others_serve && stays {
            Ok(())
        } else {
            Err(format!(
                "{plan:?} gives up a second one of {:?}",
                self.replicas
            ))
        }
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), String> {
        let leaves = |replica: &Replica| {
            plan.withdraw
                .iter()
                .any(|withdrawal| withdrawal.name == replica.name)
                || plan.roll
                    == Some(Roll::Replace {
                        name: replica.name.clone(),
                    })
        };
        for replica in &mut self.replicas {
            replica.leaving |= leaves(replica);
            if plan.roll
                == Some(Roll::Update {
                    name: replica.name.clone(),
                })
            {
                self.wanted.revision.clone_into(&mut replica.revision);
                replica.state = State::Starting;
            }
        }
        for _ in 0..plan.create {
            self.now_ms += 1;
            self.replicas.push(Replica {
                name: format!("replica-{}", self.now_ms),
                state: State::Starting,
                leaving: false,
                revision: self.wanted.revision.clone(),
                terms_agree: true,
                created_ms: self.now_ms,
            });
        }
        let at_once = self
            .replicas
            .iter()
            .filter(|replica| {
                matches!(
                    replica.state,
                    State::Failed | State::Starting | State::Ready
                )
            })
            .count();
        if plan.create > 0 && at_once > self.wanted.replicas {
            return Err(format!(
                "{at_once} replicas at once, and {} are wanted",
                self.wanted.replicas
            ));
        }
        Ok(())
    }
}
