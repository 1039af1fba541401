//! Replicas come and go on nodes that change: nothing is ever over-committed,
//! the chosen node fits, and a refusal is true.

use serde::{Deserialize, Serialize};

use super::{Random, Violation};
use crate::placement::{
    Amounts, Candidate, Effect, GpuKind, GpuPool, Node, Part, Refusal, Taint, Toleration, Wish,
    rank, standing_tolerations,
};

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// The seed that gives the same run again.
    pub seed: u64,
    /// Steps taken.
    pub steps: u64,
    /// Replicas that found a node.
    pub placed: u64,
    /// Replicas that found none.
    pub refused: u64,
    /// Replicas that ended.
    pub released: u64,
    /// Changes of a node: health, cordon, price, GPUs.
    pub changed: u64,
    /// The most replicas that there were at once.
    pub most_at_once: u64,
}

/// What a machine has, and what runs on it: the naive model, which keeps the
/// facts and nothing that was calculated from them.
struct Machine {
    /// The node as it would be with nothing on it.
    empty: Node,
    running: Vec<Running>,
}

struct Running {
    deployment: i64,
    resource: String,
    wish: Wish,
}

/// `steps` random steps: place a replica, end one, or change a node.
///
/// # Errors
///
/// The first violation: a node that was over-committed by placing, a choice that does not
/// fit or is not the least crowded, an answer that depends on the order of the
/// nodes, a refusal whose counts do not sum up or that is untrue.
pub fn placement_run(seed: u64, steps: u64) -> Result<PlacementReport, Violation> {
    let mut random = Random::new(seed);
    let mut machines: Vec<Machine> = (0..=random.below(8))
        .map(|index| machine(&mut random, index))
        .collect();
    let mut report = PlacementReport {
        seed,
        steps,
        ..PlacementReport::default()
    };
    for step in 0..steps {
        let violated = |what| Violation { seed, step, what };
        match random.below(8) {
            0..5 => place(&mut machines, &mut random, &mut report).map_err(violated)?,
            5..7 => end(&mut machines, &mut random, &mut report),
            _ => change(&mut machines, &mut random, &mut report),
        }
        let running = machines
            .iter()
            .map(|machine| machine.running.len() as u64)
            .sum();
        report.most_at_once = report.most_at_once.max(running);
    }
    Ok(report)
}

const MODELS: [(&str, i64); 4] = [
    ("NVIDIA T4", 16 << 30),
    ("NVIDIA L4", 24 << 30),
    ("NVIDIA GeForce RTX 4090", 24_564 << 20),
    ("NVIDIA H100 80GB HBM3", 81_559 << 20),
];

fn machine(random: &mut Random, index: i64) -> Machine {
    let mut gpus = vec![pool(random, "creo.cloud/gpu")];
    gpus.extend(random.once_in(4).then(|| pool(random, "creo.cloud/second")));
    let taints = [
        ("nvidia.com/gpu", Effect::NoSchedule),
        ("busy", Effect::PreferNoSchedule),
        ("maintenance", Effect::NoSchedule),
    ];
    Machine {
        empty: Node {
            name: format!("node-{index}"),
            accepted: !random.once_in(10),
            reachable: true,
            healthy: true,
            exposed: random.once_in(20),
            cordoned: false,
            gpus,
            free: Amounts {
                cpu_milli: 1_000 * (1 + random.below(64)),
                memory_bytes: (1 + random.below(256)) << 30,
                ephemeral_storage_bytes: (1 + random.below(100)) << 30,
                pods: 1 + random.below(20),
            },
            taints: taints
                .into_iter()
                .filter(|_| random.once_in(6))
                .map(|(key, effect)| Taint {
                    key: key.to_owned(),
                    value: String::new(),
                    effect,
                })
                .collect(),
            region: random.pick(&["eu", "us"]).to_owned(),
            price_micro_per_gpu_hour: 100_000 * random.below(5),
            backed_off_until_ms: None,
            replicas_here: 0,
        },
        running: Vec::new(),
    }
}

fn pool(random: &mut Random, resource: &str) -> GpuPool {
    let count = random.below(9);
    let (model, memory_bytes) = random.pick(&MODELS);
    let other = random.once_in(5).then(|| random.pick(&MODELS));
    let kinds = (0..count).map(|index| match other {
        Some((model, memory_bytes)) if index == 0 => GpuKind {
            memory_bytes,
            model: model.to_owned(),
        },
        _ => GpuKind {
            memory_bytes,
            model: model.to_owned(),
        },
    });
    let part = random.pick(&[Part::Whole, Part::Whole, Part::Partition, Part::Share]);
    GpuPool::new(resource, part, kinds, count, 0)
}

fn wish(random: &mut Random) -> Wish {
    let some = |random: &mut Random, items: &[&str]| -> Vec<String> {
        items
            .iter()
            .filter(|_| random.once_in(6))
            .map(|item| (*item).to_owned())
            .collect()
    };
    let mut tolerations = standing_tolerations();
    tolerations.extend(random.once_in(4).then(|| Toleration::of_key("", None)));
    Wish {
        gpu_count: 1 + random.below(4) * random.below(2),
        gpu_memory_bytes: random.pick(&[0, 0, 16 << 30, 24_000_000_000, 79 << 30]),
        gpu_models: some(random, &["L4", "rtx 4090", "H100"]),
        gpu_shared: random.once_in(2),
        cpu_milli: 250 * (1 + random.below(16)),
        memory_bytes: (1 + random.below(32)) << 30,
        ephemeral_storage_bytes: (1 + random.below(8)) << 30,
        nodes: some(random, &["node-0", "node-1"]),
        regions: some(random, &["eu", "us"]),
        max_price_micro_per_gpu_hour: random.once_in(4).then(|| 100_000 * random.below(5)),
        tolerations,
    }
}

/// The nodes as the rules get them: counted anew from what exists.
fn counted(machines: &[Machine], deployment: i64) -> Vec<Node> {
    machines
        .iter()
        .map(|machine| {
            let mut node = machine.empty.clone();
            for running in &machine.running {
                node.take(&running.resource, &running.wish);
            }
            let here = machine
                .running
                .iter()
                .filter(|running| running.deployment == deployment)
                .count();
            node.replicas_here = i64::try_from(here).unwrap_or(i64::MAX);
            node
        })
        .collect()
}

fn place(
    machines: &mut [Machine],
    random: &mut Random,
    report: &mut PlacementReport,
) -> Result<(), String> {
    let (deployment, wish, now_ms) = (random.below(6), wish(random), random.below(1_000));
    let mut nodes = counted(machines, deployment);
    let answer = rank(&nodes, &wish, now_ms);
    random.shuffle(&mut nodes);
    if rank(&nodes, &wish, now_ms) != answer {
        return Err(format!(
            "the order of the nodes changed the answer to {wish:?}"
        ));
    }
    match answer {
        Ok(candidates) => {
            choice_is_right(machines, deployment, &wish, now_ms, &candidates)?;
            if let Some(best) = candidates.into_iter().next() {
                let on = machines
                    .iter_mut()
                    .filter(|machine| machine.empty.name == best.node);
                for machine in on {
                    let (resource, wish) = (best.resource.clone(), wish.clone());
                    machine.running.push(Running {
                        deployment,
                        resource,
                        wish,
                    });
                    not_over_committed(machine, &best.resource)?;
                }
                report.placed += 1;
            }
        }
        Err(refusal) => {
            refusal_is_true(machines, &wish, now_ms, &refusal)?;
            report.refused += 1;
        }
    }
    Ok(())
}

fn choice_is_right(
    machines: &[Machine],
    deployment: i64,
    wish: &Wish,
    now_ms: i64,
    candidates: &[Candidate],
) -> Result<(), String> {
    let here = |machine: &Machine| {
        machine
            .running
            .iter()
            .filter(|it| it.deployment == deployment)
            .count()
    };
    let fitting: Vec<&Machine> = machines
        .iter()
        .filter(|machine| fits(machine, wish, now_ms))
        .collect();
    let Some(best) = candidates.first() else {
        return Err("an answer names no node".to_owned());
    };
    let Some(chosen) = fitting
        .iter()
        .find(|machine| machine.empty.name == best.node)
    else {
        return Err(format!(
            "{} was chosen and does not fit {wish:?}",
            best.node
        ));
    };
    if candidates.len() != fitting.len() {
        return Err(format!(
            "{} nodes fit, and {} were ranked",
            fitting.len(),
            candidates.len()
        ));
    }
    if fitting.iter().any(|machine| here(machine) < here(chosen)) {
        return Err(format!(
            "{} was chosen though another has fewer replicas",
            best.node
        ));
    }
    Ok(())
}

fn refusal_is_true(
    machines: &[Machine],
    wish: &Wish,
    now_ms: i64,
    refusal: &Refusal,
) -> Result<(), String> {
    if let Some(machine) = machines.iter().find(|machine| fits(machine, wish, now_ms)) {
        return Err(format!(
            "{} fits, and the answer was {refusal}",
            machine.empty.name
        ));
    }
    let counted: usize = refusal.reasons.iter().map(|reason| reason.nodes).sum();
    if (counted, refusal.nodes) != (machines.len(), machines.len()) {
        return Err(format!(
            "{} nodes, and the answer was {refusal}",
            machines.len()
        ));
    }
    Ok(())
}

/// Whether a replica fits a machine, said once more from the facts and as
/// plainly as possible.
fn fits(machine: &Machine, wish: &Wish, now_ms: i64) -> bool {
    let node = &machine.empty;
    let named = |list: &[String], item: &String| list.is_empty() || list.contains(item);
    let tolerated = |taint: &Taint| {
        taint.effect == Effect::PreferNoSchedule
            || wish.tolerations.iter().any(|it| it.tolerates(taint))
    };
    let used = used(machine);
    let total = node.free;
    let pool_fits = |pool: &GpuPool| {
        pool.count >= gpus_used(machine, &pool.resource) + wish.gpu_count
            && !pool.kinds.is_empty()
            && (pool.part == Part::Whole || wish.gpu_count == 1)
            && (pool.part != Part::Share || wish.gpu_shared)
            && pool.kinds.iter().all(|kind| {
                kind.memory_bytes >= wish.gpu_memory_bytes && wish.accepts_model(&kind.model)
            })
    };
    node.accepted
        && node.reachable
        && node.healthy
        && !node.cordoned
        && !node.exposed
        && named(&wish.nodes, &node.name)
        && named(&wish.regions, &node.region)
        && node.taints.iter().all(tolerated)
        && node.gpus.iter().any(pool_fits)
        && wish
            .max_price_micro_per_gpu_hour
            .is_none_or(|max| node.price_micro_per_gpu_hour <= max)
        && used.cpu_milli + wish.cpu_milli <= total.cpu_milli
        && used.memory_bytes + wish.memory_bytes <= total.memory_bytes
        && used.ephemeral_storage_bytes + wish.ephemeral_storage_bytes
            <= total.ephemeral_storage_bytes
        && used.pods < total.pods
        && node.backed_off_until_ms.is_none_or(|until| until <= now_ms)
}

fn used(machine: &Machine) -> Amounts {
    machine
        .running
        .iter()
        .fold(Amounts::default(), |sum, running| Amounts {
            cpu_milli: sum.cpu_milli + running.wish.cpu_milli,
            memory_bytes: sum.memory_bytes + running.wish.memory_bytes,
            ephemeral_storage_bytes: sum.ephemeral_storage_bytes
                + running.wish.ephemeral_storage_bytes,
            pods: sum.pods + 1,
        })
}

fn gpus_used(machine: &Machine, resource: &str) -> i64 {
    machine
        .running
        .iter()
        .filter(|running| running.resource == resource)
        .map(|running| running.wish.gpu_count)
        .sum()
}

/// After a replica was placed, with GPUs from the pool of `resource`. Whatever
/// else runs there may use more than there still is: things fall ill.
fn not_over_committed(machine: &Machine, resource: &str) -> Result<(), String> {
    let (used, total) = (used(machine), machine.empty.free);
    let pools = machine
        .empty
        .gpus
        .iter()
        .filter(|pool| pool.resource == resource);
    let over = used.cpu_milli > total.cpu_milli
        || used.memory_bytes > total.memory_bytes
        || used.ephemeral_storage_bytes > total.ephemeral_storage_bytes
        || used.pods > total.pods
        || pools
            .into_iter()
            .any(|pool| gpus_used(machine, resource) > pool.count);
    if over {
        Err(format!(
            "{} is over-committed: {used:?} of {total:?}",
            machine.empty.name
        ))
    } else {
        Ok(())
    }
}

fn end(machines: &mut [Machine], random: &mut Random, report: &mut PlacementReport) {
    let chosen = random.index(machines.len());
    if let Some(machine) = machines
        .get_mut(chosen)
        .filter(|machine| !machine.running.is_empty())
    {
        machine
            .running
            .swap_remove(random.index(machine.running.len()));
        report.released += 1;
    }
}

fn change(machines: &mut [Machine], random: &mut Random, report: &mut PlacementReport) {
    let chosen = random.index(machines.len());
    let Some(machine) = machines.get_mut(chosen) else {
        return;
    };
    let node = &mut machine.empty;
    match random.below(9) {
        0 => node.reachable = !node.reachable,
        1 => node.healthy = !node.healthy,
        2 => node.cordoned = !node.cordoned,
        3 => node.price_micro_per_gpu_hour = 100_000 * random.below(5),
        4 => node.accepted = !node.accepted,
        7 => node.exposed = !node.exposed,
        // Less than what runs is using already: a GPU fell ill, or someone
        // else's pods came.
        5 => {
            for pool in &mut node.gpus {
                pool.count = random.below(9);
                pool.free = pool.count;
            }
        }
        6 => node.free.cpu_milli = 1_000 * random.below(64),
        _ => node.backed_off_until_ms = random.once_in(2).then(|| random.below(1_000)),
    }
    report.changed += 1;
}
