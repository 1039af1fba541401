//! Tables: one node or a few, one wish, and the sentence or the order that
//! must come out.

use super::*;

const GIB: i64 = 1 << 30;

fn pool(model: &str, memory_bytes: i64, count: i64, free: i64) -> GpuPool {
    let kinds = vec![GpuKind {
        memory_bytes,
        model: model.to_owned(),
    }];
    GpuPool {
        resource: "creo.cloud/gpu".to_owned(),
        part: Part::Whole,
        kinds,
        count,
        free,
    }
}

/// A node with two free RTX 4090.
fn node(name: &str) -> Node {
    Node {
        name: name.to_owned(),
        accepted: true,
        reachable: true,
        healthy: true,
        gpus: vec![pool("NVIDIA GeForce RTX 4090", 24 * GIB, 2, 2)],
        free: Amounts {
            cpu_milli: 8_000,
            memory_bytes: 32 * GIB,
            ephemeral_storage_bytes: 100 * GIB,
            pods: 10,
        },
        region: "eu".to_owned(),
        price_micro_per_gpu_hour: 500_000,
        ..Node::default()
    }
}

fn wish() -> Wish {
    Wish {
        gpu_count: 1,
        cpu_milli: 500,
        memory_bytes: GIB,
        ephemeral_storage_bytes: GIB,
        tolerations: standing_tolerations(),
        ..Wish::default()
    }
}

fn refusal(nodes: &[Node], wish: &Wish) -> String {
    rank(nodes, wish, 0).expect_err("no node fits").to_string()
}

fn order(nodes: &[Node], wish: &Wish) -> Vec<String> {
    rank(nodes, wish, 0)
        .expect("a node fits")
        .into_iter()
        .map(|candidate| candidate.node)
        .collect()
}

fn taint(key: &str, effect: Effect) -> Taint {
    Taint {
        key: key.to_owned(),
        value: String::new(),
        effect,
    }
}

#[test]
fn a_wish_too_large_is_refused_with_what_there_is_and_what_is_needed() {
    let large = Wish {
        gpu_memory_bytes: 80 * GIB,
        ..wish()
    };
    assert_eq!(
        refusal(&[node("a"), node("b")], &large),
        "0/2 nodes fit: 2 have 24 GiB of GPU memory, 80 GiB needed"
    );
}

#[test]
fn reasons_come_in_the_order_of_how_many_nodes_they_hold_for() {
    let full = |name| Node {
        gpus: vec![pool("NVIDIA L4", 24 * GIB, 2, 0)],
        ..node(name)
    };
    let nodes = [
        Node {
            accepted: false,
            ..node("a")
        },
        full("b"),
        full("c"),
    ];
    assert_eq!(
        refusal(&nodes, &wish()),
        "0/3 nodes fit: 2 have 0 free GPUs of 2, 1 needed; 1 is not accepted"
    );
    let tied = [
        Node {
            healthy: false,
            ..node("a")
        },
        Node {
            cordoned: true,
            ..node("b")
        },
        Node {
            accepted: false,
            ..node("c")
        },
    ];
    assert_eq!(
        refusal(&tied, &wish()),
        "0/3 nodes fit: 1 is not accepted; 1 is cordoned; 1 is not healthy"
    );
}

type Change = fn(&mut Node, &mut Wish);

/// What makes a filter fail, and how one node and two that failed it are told.
const SENTENCES: [(Change, &str, &str); 21] = [
    (
        |_, w| w.nodes = vec!["z".into()],
        "1 is not among the named nodes",
        "2 are not among the named nodes",
    ),
    (
        |n, _| n.accepted = false,
        "1 is not accepted",
        "2 are not accepted",
    ),
    (
        |_, w| w.regions = vec!["us".into(), "ap".into()],
        "1 is not in region us or ap",
        "2 are not in region us or ap",
    ),
    (|n, _| n.cordoned = true, "1 is cordoned", "2 are cordoned"),
    (
        |n, _| n.exposed = true,
        "1 lets containers use GPUs that they did not ask for, or has not been checked for it",
        "2 let containers use GPUs that they did not ask for, or have not been checked for it",
    ),
    (
        |n, _| n.reachable = false,
        "1 is not reachable",
        "2 are not reachable",
    ),
    (
        |n, _| n.healthy = false,
        "1 is not healthy",
        "2 are not healthy",
    ),
    (
        |n, _| n.taints = vec![taint("spare", Effect::NoSchedule)],
        "1 has the taint spare:NoSchedule, which is not tolerated",
        "2 have the taint spare:NoSchedule, which is not tolerated",
    ),
    (
        |n, _| n.gpus.clear(),
        "1 has no healthy GPU",
        "2 have no healthy GPUs",
    ),
    (
        |n, _| n.gpus[0].part = Part::Share,
        "1 has shared GPUs only, 1 GPU of its own needed",
        "2 have shared GPUs only, 1 GPU of its own needed",
    ),
    (
        |n, w| (n.gpus[0].part, w.gpu_count) = (Part::Partition, 2),
        "1 has 1 GPU, 2 needed",
        "2 have 1 GPU, 2 needed",
    ),
    (
        |_, w| w.gpu_models = vec!["H100".into()],
        "1 has NVIDIA GeForce RTX 4090, H100 needed",
        "2 have NVIDIA GeForce RTX 4090, H100 needed",
    ),
    (
        |_, w| w.gpu_memory_bytes = 80 * GIB,
        "1 has 24 GiB of GPU memory, 80 GiB needed",
        "2 have 24 GiB of GPU memory, 80 GiB needed",
    ),
    (
        |_, w| w.gpu_count = 4,
        "1 has 2 GPUs, 4 needed",
        "2 have 2 GPUs, 4 needed",
    ),
    (
        |_, w| w.max_price_micro_per_gpu_hour = Some(499_999),
        "1 costs 500000 micro-credits per GPU-hour, at most 499999 allowed",
        "2 cost 500000 micro-credits per GPU-hour, at most 499999 allowed",
    ),
    (
        |n, w| (n.gpus[0].free, w.gpu_count) = (1, 2),
        "1 has 1 free GPU of 2, 2 needed",
        "2 have 1 free GPU of 2, 2 needed",
    ),
    (
        |_, w| w.cpu_milli = 8_500,
        "1 has 8 of free CPU, 8.5 needed",
        "2 have 8 of free CPU, 8.5 needed",
    ),
    (
        |_, w| w.memory_bytes = 33 * GIB,
        "1 has 32 GiB of free memory, 33 GiB needed",
        "2 have 32 GiB of free memory, 33 GiB needed",
    ),
    (
        |_, w| w.ephemeral_storage_bytes = 200 * GIB,
        "1 has 100 GiB of free ephemeral storage, 200 GiB needed",
        "2 have 100 GiB of free ephemeral storage, 200 GiB needed",
    ),
    (
        |n, _| n.free.pods = 0,
        "1 has no pod slot left",
        "2 have no pod slots left",
    ),
    (
        |n, _| n.backed_off_until_ms = Some(23_001),
        "1 is backed off for 24 s after a failed placement",
        "2 are backed off for 24 s after a failed placement",
    ),
];

#[test]
fn each_filter_has_its_sentence_for_one_node_and_for_two() {
    for (change, one, two) in SENTENCES {
        let (mut a, mut b, mut wish) = (node("a"), node("b"), wish());
        change(&mut a, &mut wish);
        assert_eq!(
            refusal(&[a.clone()], &wish),
            format!("0/1 nodes fit: {one}")
        );
        change(&mut b, &mut wish);
        assert_eq!(refusal(&[a, b], &wish), format!("0/2 nodes fit: {two}"));
    }
}

#[test]
fn nodes_that_lack_different_amounts_are_told_as_a_range() {
    let with = |name, memory, free| Node {
        gpus: vec![pool("NVIDIA L4", memory * GIB, 4, free)],
        ..node(name)
    };
    let large = Wish {
        gpu_memory_bytes: 80 * GIB,
        ..wish()
    };
    assert_eq!(
        refusal(&[with("a", 24, 1), with("b", 16, 1)], &large),
        "0/2 nodes fit: 2 have 16 GiB to 24 GiB of GPU memory, 80 GiB needed"
    );
    let many = Wish {
        gpu_count: 2,
        ..wish()
    };
    assert_eq!(
        refusal(&[with("a", 24, 1), with("b", 24, 0)], &many),
        "0/2 nodes fit: 2 have 0 to 1 free GPUs of 4, 2 needed"
    );
}

#[test]
fn without_any_node_the_refusal_says_so() {
    assert_eq!(
        refusal(&[], &wish()),
        "0/0 nodes fit: there is no CreoNode yet"
    );
}

#[test]
fn a_node_is_counted_under_the_filter_that_someone_must_act_on() {
    let broken = Node {
        accepted: false,
        healthy: false,
        reachable: false,
        ..node("a")
    };
    assert_eq!(
        refusal(&[broken], &wish()),
        "0/1 nodes fit: 1 is not accepted"
    );
    let full = Node {
        gpus: vec![pool("NVIDIA L4", 24 * GIB, 2, 0)],
        ..node("a")
    };
    let large = Wish {
        gpu_memory_bytes: 80 * GIB,
        ..wish()
    };
    assert_eq!(
        refusal(&[full], &large),
        "0/1 nodes fit: 1 has 24 GiB of GPU memory, 80 GiB needed"
    );
}

#[test]
fn a_back_off_that_has_passed_no_longer_counts() {
    let backed_off = [Node {
        backed_off_until_ms: Some(1_000),
        ..node("a")
    }];
    assert!(rank(&backed_off, &wish(), 999).is_err());
    assert!(rank(&backed_off, &wish(), 1_000).is_ok());
}

#[test]
fn what_others_over_committed_counts_as_nothing_left() {
    let free = Amounts {
        cpu_milli: -1_500,
        ..node("a").free
    };
    let over = Node {
        free,
        gpus: vec![pool("NVIDIA L4", 24 * GIB, 2, -3)],
        ..node("a")
    };
    assert_eq!(
        refusal(std::slice::from_ref(&over), &wish()),
        "0/1 nodes fit: 1 has 0 free GPUs of 2, 1 needed"
    );
    let with_gpus = Node {
        gpus: node("a").gpus,
        ..over
    };
    assert_eq!(
        refusal(&[with_gpus], &wish()),
        "0/1 nodes fit: 1 has 0 of free CPU, 0.5 needed"
    );
}

#[test]
fn more_gpus_taken_than_healthy_leave_none_and_never_fewer() {
    let kind = |memory_bytes| GpuKind {
        memory_bytes,
        model: "NVIDIA L4".to_owned(),
    };
    for (allocatable, used, count, free) in [
        (4, 0, 2, 2),
        (1, 0, 1, 1),
        (2, 1, 2, 1),
        (2, 5, 2, 0),
        (-1, 0, 0, 0),
        (2, -7, 2, 2),
        (2, i64::MAX, 2, 0),
    ] {
        let pool = GpuPool::new(
            "creo.cloud/gpu",
            Part::Whole,
            [kind(24), kind(24)],
            allocatable,
            used,
        );
        assert_eq!(
            (pool.count, pool.free, pool.kinds.len()),
            (count, free, 1),
            "{allocatable} {used}"
        );
    }
}

#[test]
fn unlike_gpus_under_one_name_promise_only_what_each_of_them_has() {
    let kind = |model: &str, memory_bytes| GpuKind {
        memory_bytes,
        model: model.to_owned(),
    };
    let mixed = GpuPool::new(
        "creo.cloud/gpu",
        Part::Whole,
        [kind("NVIDIA H100", 80 * GIB), kind("NVIDIA T4", 16 * GIB)],
        2,
        0,
    );
    let nodes = [Node {
        gpus: vec![mixed],
        ..node("a")
    }];
    let chosen = rank(&nodes, &wish(), 0).unwrap();
    assert_eq!(
        (chosen[0].gpu_model.as_str(), chosen[0].gpu_memory_bytes),
        ("NVIDIA T4", 16 * GIB)
    );
    let h100 = Wish {
        gpu_models: vec!["H100".to_owned()],
        ..wish()
    };
    assert_eq!(
        refusal(&nodes, &h100),
        "0/1 nodes fit: 1 has NVIDIA T4, H100 needed"
    );
    let large = Wish {
        gpu_memory_bytes: 80 * GIB,
        ..wish()
    };
    assert_eq!(
        refusal(&nodes, &large),
        "0/1 nodes fit: 1 has 16 GiB of GPU memory, 80 GiB needed"
    );
}

#[test]
fn of_several_pools_the_smallest_that_fits_is_taken_and_the_nearest_miss_is_told() {
    let named = |resource: &str, pool: GpuPool| GpuPool {
        resource: resource.to_owned(),
        ..pool
    };
    let gpus = vec![
        named("creo.cloud/h100", pool("NVIDIA H100", 80 * GIB, 2, 1)),
        named("creo.cloud/l4", pool("NVIDIA L4", 24 * GIB, 4, 4)),
    ];
    let nodes = [Node { gpus, ..node("a") }];
    let resource = |wish: &Wish| rank(&nodes, wish, 0).unwrap()[0].resource.clone();
    assert_eq!(resource(&wish()), "creo.cloud/l4");
    assert_eq!(
        resource(&Wish {
            gpu_memory_bytes: 40 * GIB,
            ..wish()
        }),
        "creo.cloud/h100"
    );
    assert_eq!(
        refusal(
            &nodes,
            &Wish {
                gpu_memory_bytes: 40 * GIB,
                gpu_count: 2,
                ..wish()
            }
        ),
        "0/1 nodes fit: 1 has 1 free GPU of 2, 2 needed"
    );
}

#[test]
fn a_share_is_taken_by_those_alone_for_whom_it_will_do() {
    let part = |resource: &str, part, memory| GpuPool {
        resource: resource.to_owned(),
        part,
        ..pool("NVIDIA L4", memory * GIB, 4, 4)
    };
    let nodes = [Node {
        gpus: vec![
            part("creo.cloud/gpu.shared", Part::Share, 6),
            part("creo.cloud/mig-1g.10gb", Part::Partition, 10),
            part("creo.cloud/gpu", Part::Whole, 24),
        ],
        ..node("a")
    }];
    let resource = |gpu_shared, gpu_count| {
        let wish = Wish {
            gpu_count,
            gpu_shared,
            ..wish()
        };
        rank(&nodes, &wish, 0).unwrap()[0].resource.clone()
    };
    assert_eq!(resource(true, 1), "creo.cloud/gpu.shared");
    assert_eq!(resource(false, 1), "creo.cloud/mig-1g.10gb");
    assert_eq!(resource(false, 2), "creo.cloud/gpu");
    assert_eq!(resource(true, 2), "creo.cloud/gpu");
}

#[test]
fn a_taint_keeps_away_unless_it_is_tolerated_or_only_asks() {
    let tainted = |effect| {
        [
            Node {
                taints: vec![taint("spare", effect)],
                ..node("a")
            },
            node("b"),
        ]
    };
    let tolerant = || Wish {
        tolerations: vec![Toleration::of_key("spare", None)],
        ..wish()
    };
    assert_eq!(order(&tainted(Effect::NoSchedule), &wish()), ["b"]);
    assert_eq!(order(&tainted(Effect::NoExecute), &wish()), ["b"]);
    assert_eq!(
        order(&tainted(Effect::PreferNoSchedule), &wish()),
        ["b", "a"]
    );
    assert_eq!(
        order(&tainted(Effect::PreferNoSchedule), &tolerant()),
        ["a", "b"]
    );
    assert_eq!(order(&tainted(Effect::NoSchedule), &tolerant()), ["a", "b"]);
}

#[test]
fn replicas_spread_before_anything_else_counts() {
    let crowded = Node {
        price_micro_per_gpu_hour: 0,
        replicas_here: 1,
        ..node("a")
    };
    let dear = Node {
        price_micro_per_gpu_hour: 9_000_000,
        taints: vec![taint("spare", Effect::PreferNoSchedule)],
        gpus: vec![pool("NVIDIA H100", 80 * GIB, 8, 8)],
        ..node("b")
    };
    assert_eq!(order(&[crowded, dear], &wish()), ["b", "a"]);
}

#[test]
fn then_the_price_then_packing_then_the_smaller_gpu_then_the_name_decide() {
    let cheap = Node {
        price_micro_per_gpu_hour: 400_000,
        gpus: vec![pool("NVIDIA L4", 24 * GIB, 8, 8)],
        ..node("z")
    };
    assert_eq!(order(&[node("a"), cheap], &wish()), ["z", "a"]);
    let nearly_full = Node {
        gpus: vec![pool("NVIDIA GeForce RTX 4090", 24 * GIB, 2, 1)],
        ..node("z")
    };
    assert_eq!(order(&[node("a"), nearly_full], &wish()), ["z", "a"]);
    let smaller = Node {
        gpus: vec![pool("NVIDIA T4", 16 * GIB, 2, 2)],
        ..node("z")
    };
    assert_eq!(order(&[node("a"), smaller], &wish()), ["z", "a"]);
    assert_eq!(
        order(&[node("b"), node("a"), node("c")], &wish()),
        ["a", "b", "c"]
    );
}

#[test]
fn a_choice_says_why() {
    let nodes = [Node {
        replicas_here: 2,
        ..node("a")
    }];
    let chosen = rank(&nodes, &wish(), 0).unwrap();
    assert_eq!(
        chosen[0].reasons,
        [
            "2 other replicas of this deployment are here",
            "500000 micro-credits per GPU-hour",
            "1 of 2 GPUs free afterwards"
        ]
    );
}

#[test]
fn replicas_placed_together_see_what_the_ones_before_them_took() {
    let mut nodes = [node("a"), node("b")];
    let Placed { chosen, refusal } = place(&mut nodes, &wish(), 5, 0);
    let names: Vec<&str> = chosen
        .iter()
        .map(|candidate| candidate.node.as_str())
        .collect();
    assert_eq!(names, ["a", "b", "a", "b"]);
    assert_eq!(
        refusal.expect("four GPUs hold four replicas").to_string(),
        "0/2 nodes fit: 2 have 0 free GPUs of 2, 1 needed"
    );
}

#[test]
fn what_is_given_back_is_what_was_taken_and_never_more_than_there_is() {
    let mut given_back = node("a");
    given_back.take("creo.cloud/gpu", &wish());
    assert_ne!(given_back, node("a"));
    given_back.give_back("creo.cloud/gpu", &wish());
    assert_eq!(given_back, node("a"));
    given_back.give_back("creo.cloud/gpu", &wish());
    assert_eq!((given_back.gpus[0].free, given_back.replicas_here), (2, 0));
}

#[test]
fn extreme_values_neither_overflow_nor_panic() {
    let extreme = Node {
        price_micro_per_gpu_hour: i64::MAX,
        replicas_here: i64::MAX,
        backed_off_until_ms: Some(i64::MAX),
        free: Amounts {
            cpu_milli: i64::MIN,
            memory_bytes: i64::MIN,
            ephemeral_storage_bytes: i64::MIN,
            pods: i64::MIN,
        },
        gpus: vec![pool("NVIDIA L4", i64::MAX, i64::MAX, i64::MAX)],
        ..node("a")
    };
    let mut nodes = vec![
        extreme.clone(),
        Node {
            price_micro_per_gpu_hour: i64::MIN,
            backed_off_until_ms: None,
            ..extreme
        },
    ];
    let greedy = Wish {
        gpu_count: i64::MAX,
        gpu_memory_bytes: i64::MAX,
        cpu_milli: i64::MAX,
        memory_bytes: i64::MAX,
        ephemeral_storage_bytes: i64::MAX,
        ..wish()
    };
    assert!(place(&mut nodes, &greedy, 3, i64::MIN).chosen.is_empty());
    let modest = Wish {
        cpu_milli: i64::MIN,
        memory_bytes: i64::MIN,
        ephemeral_storage_bytes: i64::MIN,
        ..wish()
    };
    for node in &mut nodes {
        node.free.pods = i64::MAX;
        node.take("creo.cloud/gpu", &greedy);
        node.give_back("creo.cloud/gpu", &greedy);
    }
    assert_eq!(place(&mut nodes, &modest, 1, i64::MAX).chosen.len(), 1);
}
