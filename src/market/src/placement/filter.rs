use super::{Effect, GpuPool, Node, Part, Taint, Wish, wish::listed};

/// The first filter that a node failed, and what it had.
///
/// The order of the variants is the order of the filters: what is least likely
/// to change by itself comes first, so that a node is counted under the reason
/// that someone must act on rather than under one that passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The wish names other nodes.
    NotNamed,
    /// The hub's administrator has not accepted it.
    NotAccepted,
    /// The wish names other regions.
    OtherRegion,
    /// Its owner keeps new replicas away.
    Cordoned,
    /// Containers on it can use GPUs that they did not ask for, or may.
    Exposed,
    /// The hub does not hear from it.
    Unreachable,
    /// Its GPUs are not in order.
    Unhealthy,
    /// It has a taint that is not tolerated.
    Tainted(Taint),
    /// It has no healthy GPU at all.
    NoGpu,
    /// Its GPUs are shared.
    Shared,
    /// Its GPUs are of another model, which is named.
    OtherModel(String),
    /// Its GPUs have this many bytes of memory each.
    GpuMemory(i64),
    /// It has this many GPUs for one replica, free or not.
    GpuCount(i64),
    /// It costs this many micro-credits per GPU-hour.
    Price(i64),
    /// It has too few GPUs left.
    GpusFree {
        /// GPUs left.
        free: i64,
        /// GPUs of the pool.
        of: i64,
    },
    /// It has this much CPU left, in thousandths.
    Cpu(i64),
    /// It has this much memory left, in bytes.
    Memory(i64),
    /// It has this much ephemeral storage left, in bytes.
    EphemeralStorage(i64),
    /// The kubelet takes no more pods.
    PodSlots,
    /// A placement failed there; it is tried again after this many
    /// milliseconds.
    BackedOff(i64),
}

impl Rejection {
    /// The filter's name, for metrics and for counting.
    #[must_use]
    pub fn filter(&self) -> &'static str {
        match self {
            Self::NotNamed => "named",
            Self::NotAccepted => "accepted",
            Self::OtherRegion => "region",
            Self::Cordoned => "cordon",
            Self::Exposed => "exposed",
            Self::Unreachable => "reachable",
            Self::Unhealthy => "healthy",
            Self::Tainted(_) => "taints",
            Self::NoGpu => "gpu",
            Self::Shared => "gpu_shared",
            Self::OtherModel(_) => "gpu_model",
            Self::GpuMemory(_) => "gpu_memory",
            Self::GpuCount(_) => "gpu_count",
            Self::Price(_) => "price",
            Self::GpusFree { .. } => "gpus_free",
            Self::Cpu(_) => "cpu",
            Self::Memory(_) => "memory",
            Self::EphemeralStorage(_) => "ephemeral_storage",
            Self::PodSlots => "pod_slots",
            Self::BackedOff(_) => "back_off",
        }
    }

    /// The filter's place in the order.
    pub(super) fn position(&self) -> usize {
        match self {
            Self::NotNamed => 0,
            Self::NotAccepted => 1,
            Self::OtherRegion => 2,
            Self::Cordoned => 3,
            Self::Exposed => 4,
            Self::Unreachable => 5,
            Self::Unhealthy => 6,
            Self::Tainted(_) => 7,
            Self::NoGpu => 8,
            Self::Shared => 9,
            Self::OtherModel(_) => 10,
            Self::GpuMemory(_) => 11,
            Self::GpuCount(_) => 12,
            Self::Price(_) => 13,
            Self::GpusFree { .. } => 14,
            Self::Cpu(_) => 15,
            Self::Memory(_) => 16,
            Self::EphemeralStorage(_) => 17,
            Self::PodSlots => 18,
            Self::BackedOff(_) => 19,
        }
    }
}

/// The pool that a replica's GPUs come from where the node fits, or the first
/// filter that it fails.
pub(super) fn pool<'a>(node: &'a Node, wish: &Wish, now_ms: i64) -> Result<&'a GpuPool, Rejection> {
    admits(node, wish)?;
    let pool = offered(node, wish)?;
    has_room(node, wish, now_ms)?;
    Ok(pool)
}

/// Who and where the node is.
fn admits(node: &Node, wish: &Wish) -> Result<(), Rejection> {
    let intolerable = node.taints.iter().find(|taint| {
        taint.effect != Effect::PreferNoSchedule
            && !wish
                .tolerations
                .iter()
                .any(|toleration| toleration.tolerates(taint))
    });
    let failed = [
        (!listed(&wish.nodes, &node.name)).then_some(Rejection::NotNamed),
        (!node.accepted).then_some(Rejection::NotAccepted),
        (!listed(&wish.regions, &node.region)).then_some(Rejection::OtherRegion),
        node.cordoned.then_some(Rejection::Cordoned),
        node.exposed.then_some(Rejection::Exposed),
        (!node.reachable).then_some(Rejection::Unreachable),
        (!node.healthy).then_some(Rejection::Unhealthy),
        intolerable.cloned().map(Rejection::Tainted),
    ];
    failed.into_iter().flatten().next().map_or(Ok(()), Err)
}

/// The pool to take the GPUs from: of those that fit, the one that wastes least
/// (least memory, then fewest left, then by name). Where none fits, the node is
/// rejected for what its best pool lacks.
fn offered<'a>(node: &'a Node, wish: &Wish) -> Result<&'a GpuPool, Rejection> {
    let mut fitting: Vec<&GpuPool> = Vec::new();
    let mut best_rejection = Rejection::NoGpu;
    for pool in &node.gpus {
        match pool_fits(pool, node.price_micro_per_gpu_hour, wish) {
            Ok(()) => fitting.push(pool),
            Err(rejection) if closeness(&rejection) > closeness(&best_rejection) => {
                best_rejection = rejection;
            }
            Err(_) => {}
        }
    }
    let waste = |pool: &&GpuPool| {
        (
            pool.promised().map(|kind| kind.memory_bytes),
            pool.free,
            pool.resource.clone(),
        )
    };
    fitting.into_iter().min_by_key(waste).ok_or(best_rejection)
}

/// How near a pool came: the later the filter, and the more it had, the nearer.
fn closeness(rejection: &Rejection) -> (usize, i64, String) {
    let (amount, text) = match rejection {
        Rejection::GpuMemory(amount) | Rejection::GpuCount(amount) => (*amount, String::new()),
        Rejection::GpusFree { free, of } => (*free, format!("{of:020}")),
        Rejection::OtherModel(model) => (0, model.clone()),
        _ => (0, String::new()),
    };
    (rejection.position(), amount, text)
}

fn pool_fits(pool: &GpuPool, price_micro: i64, wish: &Wish) -> Result<(), Rejection> {
    let Some(promised) = pool.promised().filter(|_| pool.count > 0) else {
        return Err(Rejection::NoGpu);
    };
    if pool.part == Part::Share && !wish.gpu_shared {
        return Err(Rejection::Shared);
    }
    if let Some(other) = pool
        .kinds
        .iter()
        .find(|kind| !wish.accepts_model(&kind.model))
    {
        return Err(Rejection::OtherModel(other.model.clone()));
    }
    if promised.memory_bytes < wish.gpu_memory_bytes {
        return Err(Rejection::GpuMemory(promised.memory_bytes));
    }
    let for_one_replica = pool.count.min(pool.part.most_per_replica());
    if for_one_replica < wish.gpu_count {
        return Err(Rejection::GpuCount(for_one_replica));
    }
    if wish
        .max_price_micro_per_gpu_hour
        .is_some_and(|max| price_micro > max)
    {
        return Err(Rejection::Price(price_micro));
    }
    if pool.free < wish.gpu_count {
        return Err(Rejection::GpusFree {
            free: pool.free.max(0),
            of: pool.count,
        });
    }
    Ok(())
}

/// What is left on the node now.
fn has_room(node: &Node, wish: &Wish, now_ms: i64) -> Result<(), Rejection> {
    let short = |free: i64, needed: i64| (free < needed).then_some(free.max(0));
    let wait_ms = node
        .backed_off_until_ms
        .map(|until| until.saturating_sub(now_ms))
        .filter(|wait| *wait > 0);
    let failed = [
        short(node.free.cpu_milli, wish.cpu_milli).map(Rejection::Cpu),
        short(node.free.memory_bytes, wish.memory_bytes).map(Rejection::Memory),
        short(
            node.free.ephemeral_storage_bytes,
            wish.ephemeral_storage_bytes,
        )
        .map(Rejection::EphemeralStorage),
        short(node.free.pods, 1).map(|_| Rejection::PodSlots),
        wait_ms.map(Rejection::BackedOff),
    ];
    failed.into_iter().flatten().next().map_or(Ok(()), Err)
}
