//! Random runs and random inputs: what must hold whatever comes.

use creo_market::{
    placement::{
        Amounts, Effect, GpuKind, GpuPool, Node, Part, Taint, Wish, rank, standing_tolerations,
    },
    replicas::{Replica, State, Wanted, plan},
    simulation::{placement_run, replicas_run},
};
use proptest::prelude::*;

#[test]
fn no_random_run_of_placing_and_releasing_breaks_a_rule() {
    let mut most_at_once = 0;
    let (mut placed, mut refused) = (0, 0);
    for seed in 0..200 {
        let report = placement_run(seed, 300).unwrap_or_else(|violation| panic!("{violation}"));
        most_at_once = most_at_once.max(report.most_at_once);
        placed += report.placed;
        refused += report.refused;
    }
    // A run that placed or refused nearly nothing would have tested nothing.
    assert!(
        placed > 1_000 && refused > 1_000 && most_at_once > 10,
        "{placed} {refused} {most_at_once}"
    );
}

#[test]
fn no_random_run_of_a_deployments_replicas_breaks_a_rule() {
    let (mut rolled, mut waited, mut lost) = (0, 0, 0);
    for seed in 0..500 {
        let report = replicas_run(seed, 300).unwrap_or_else(|violation| panic!("{violation}"));
        rolled += report.rolled;
        waited += report.waited;
        lost += report.lost;
    }
    assert!(
        rolled > 1_000 && waited > 1_000 && lost > 1_000,
        "{rolled} {waited} {lost}"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(placement_run(7, 100), placement_run(7, 100));
    assert_ne!(placement_run(7, 100), placement_run(8, 100));
    assert_eq!(replicas_run(7, 100), replicas_run(7, 100));
}

prop_compose! {
    fn any_node()(
        flags in prop::array::uniform5(prop::bool::weighted(0.9)),
        (model, memory) in prop::sample::select(vec![("NVIDIA T4", 16), ("NVIDIA H100", 80)]),
        count in 0..5_i64,
        used in 0..5_i64,
        (cpu_milli, memory_gib, pods) in (0..4_000_i64, 0..16_i64, 0..3_i64),
        taint in prop::option::weighted(0.2, prop::sample::select(
            vec![Effect::NoSchedule, Effect::PreferNoSchedule, Effect::NoExecute])),
        price in 0..4_i64,
        backed_off_until_ms in prop::option::weighted(0.1, 0..100_i64),
        replicas_here in 0..3_i64,
    ) -> Node {
        let kinds = (0..count).map(|_| GpuKind { memory_bytes: memory << 30, model: model.to_owned() });
        let [accepted, reachable, healthy, uncordoned, isolated] = flags;
        Node {
            name: String::new(),
            accepted,
            reachable,
            healthy,
            cordoned: !uncordoned,
            exposed: !isolated,
            gpus: vec![GpuPool::new("creo.cloud/gpu", Part::Whole, kinds, count, used)],
            free: Amounts { cpu_milli, memory_bytes: memory_gib << 30, ephemeral_storage_bytes: 1 << 40, pods },
            taints: taint.map(|effect| Taint { key: "spare".into(), value: String::new(), effect }).into_iter().collect(),
            region: "eu".to_owned(),
            price_micro_per_gpu_hour: price,
            backed_off_until_ms,
            replicas_here,
        }
    }
}

prop_compose! {
    fn any_wish()(
        gpu_count in 1..4_i64,
        memory in prop::sample::select(vec![0, 20, 100]),
        h100 in any::<bool>(),
        (cpu_milli, memory_gib) in (1..3_000_i64, 1..12_i64),
        max_price_micro_per_gpu_hour in prop::option::of(0..4_i64),
    ) -> Wish {
        Wish {
            gpu_count,
            gpu_memory_bytes: memory << 30,
            gpu_models: h100.then(|| "h100".to_owned()).into_iter().collect(),
            cpu_milli,
            memory_bytes: memory_gib << 30,
            ephemeral_storage_bytes: 1 << 30,
            max_price_micro_per_gpu_hour,
            tolerations: standing_tolerations(),
            ..Wish::default()
        }
    }
}

fn any_nodes() -> impl Strategy<Value = Vec<Node>> {
    prop::collection::vec(any_node(), 0..8).prop_map(|mut nodes| {
        for (index, node) in nodes.iter_mut().enumerate() {
            node.name = format!("node-{index}");
        }
        nodes
    })
}

fn any_replicas() -> impl Strategy<Value = Vec<Replica>> {
    let states = prop::sample::select(vec![
        State::Failed,
        State::Starting,
        State::Ready,
        State::Lost,
        State::Over,
    ]);
    let one = (states, any::<bool>(), 0..3, any::<bool>(), 0..4_i64);
    prop::collection::vec(one, 0..8).prop_map(|described| {
        described
            .into_iter()
            .enumerate()
            .map(
                |(index, (state, leaving, revision, terms_agree, created_ms))| Replica {
                    name: format!("replica-{index}"),
                    state,
                    leaving,
                    revision: format!("v{revision}"),
                    terms_agree,
                    created_ms,
                },
            )
            .collect()
    })
}

proptest! {
    #[test]
    fn the_order_of_the_nodes_never_matters(
        (nodes, shuffled) in any_nodes().prop_flat_map(|nodes| (Just(nodes.clone()), Just(nodes).prop_shuffle())),
        wish in any_wish(),
    ) {
        prop_assert_eq!(rank(&nodes, &wish, 50), rank(&shuffled, &wish, 50));
    }

    #[test]
    fn every_node_is_either_ranked_or_counted_in_the_refusal(nodes in any_nodes(), wish in any_wish()) {
        match rank(&nodes, &wish, 50) {
            Ok(candidates) => {
                prop_assert!(candidates.len() <= nodes.len());
                prop_assert!(candidates.is_sorted_by(|a, b| (b.score, &a.node) < (a.score, &b.node)));
            }
            Err(refusal) => {
                let counted: usize = refusal.reasons.iter().map(|reason| reason.nodes).sum();
                prop_assert_eq!(counted, nodes.len());
                prop_assert!(refusal.reasons.is_sorted_by_key(|reason| std::cmp::Reverse(reason.nodes)));
            }
        }
    }

    #[test]
    fn the_chosen_node_has_what_the_wish_names(nodes in any_nodes(), wish in any_wish()) {
        for candidate in rank(&nodes, &wish, 50).unwrap_or_default() {
            let node = nodes.iter().find(|node| node.name == candidate.node).expect("a ranked node exists");
            let pool = &node.gpus[0];
            prop_assert!(node.accepted && node.reachable && node.healthy && !node.cordoned);
            prop_assert!(pool.free >= wish.gpu_count && candidate.gpu_memory_bytes >= wish.gpu_memory_bytes);
            prop_assert!(wish.gpu_models.is_empty() || candidate.gpu_model == "NVIDIA H100");
            prop_assert!(node.free.cpu_milli >= wish.cpu_milli && node.free.memory_bytes >= wish.memory_bytes);
            prop_assert!(node.free.pods >= 1);
            prop_assert!(wish.max_price_micro_per_gpu_hour.is_none_or(|max| node.price_micro_per_gpu_hour <= max));
            prop_assert!(node.taints.iter().all(|taint| taint.effect == Effect::PreferNoSchedule));
            prop_assert!(node.backed_off_until_ms.is_none_or(|until| until <= 50));
        }
    }

    #[test]
    fn a_plan_depends_on_the_replicas_and_not_on_their_order(
        (replicas, shuffled) in any_replicas()
            .prop_flat_map(|replicas| (Just(replicas.clone()), Just(replicas).prop_shuffle())),
        wanted in 0..6_usize,
    ) {
        let wanted = Wanted { replicas: wanted, revision: "v1".to_owned() };
        prop_assert_eq!(plan(&wanted, &replicas), plan(&wanted, &shuffled));
    }

    #[test]
    fn a_plan_never_asks_for_more_seats_than_wanted(replicas in any_replicas(), wanted in 0..6_usize) {
        let plan = plan(&Wanted { replicas: wanted, revision: "v1".to_owned() }, &replicas);
        let seated = replicas
            .iter()
            .filter(|replica| matches!(replica.state, State::Failed | State::Starting | State::Ready))
            .count();
        prop_assert!(plan.create == 0 || seated + plan.create <= wanted);
        prop_assert!(plan.roll.is_none() || plan.waits_for.is_none());
    }
}
