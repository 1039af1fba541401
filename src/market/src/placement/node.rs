use serde::{Deserialize, Serialize};

use super::{Taint, Wish};

/// A node as a replica could be placed on it.
#[allow(
    clippy::struct_excessive_bools,
    reason = "five facts that do not depend on one another, each asked by a filter"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// The CreoNode's name.
    pub name: String,
    /// Whether the hub's administrator accepted it.
    pub accepted: bool,
    /// Whether the hub hears from it.
    pub reachable: bool,
    /// Whether its GPUs are in order.
    pub healthy: bool,
    /// Whether containers on it can use GPUs that they did not ask for, or may,
    /// for all that is known.
    pub exposed: bool,
    /// Whether its owner keeps new replicas away.
    pub cordoned: bool,
    /// Its GPUs, one pool for each resource name.
    pub gpus: Vec<GpuPool>,
    /// What is left after all pods on the node, whoever owns them, and after
    /// the placements that have no pod yet. A figure below zero, as on a node
    /// that was over-committed by others, counts as zero.
    pub free: Amounts,
    /// The Kubernetes node's taints.
    pub taints: Vec<Taint>,
    /// Where it is.
    pub region: String,
    /// What one GPU costs for one hour, in micro-credits.
    pub price_micro_per_gpu_hour: i64,
    /// The time until which nothing is placed here, since a placement failed.
    pub backed_off_until_ms: Option<i64>,
    /// How many replicas of the deployment that is being placed are here.
    pub replicas_here: i64,
}

/// The GPUs that the kubelet hands out under one resource name.
///
/// Which of them a pod gets is the kubelet's choice, so a pool promises only
/// what each of its kinds has: a wish must fit all of them, and the terms name
/// the least.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuPool {
    /// The resource's name, such as `creo.cloud/gpu`.
    pub resource: String,
    /// What of a GPU each of its units is.
    pub part: Part,
    /// What is in it; empty where there is nothing.
    pub kinds: Vec<GpuKind>,
    /// How many healthy GPUs it has.
    pub count: i64,
    /// How many of them are left after all pods and waiting placements.
    pub free: i64,
}

/// What of a GPU the kubelet hands out as one unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// All of it, to one container.
    #[default]
    Whole,
    /// A partition that the hardware keeps apart from the others.
    Partition,
    /// All of it, together with the holders of its other shares: nothing keeps
    /// them apart, so that only those get one who said that it will do.
    Share,
}

impl Part {
    /// The most units that are of use to one replica. A program can use one
    /// partition at a time, and two shares may be of the same GPU.
    #[must_use]
    pub fn most_per_replica(self) -> i64 {
        match self {
            Self::Whole => i64::MAX,
            Self::Partition | Self::Share => 1,
        }
    }
}

/// GPUs that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GpuKind {
    /// Memory of each, in bytes.
    pub memory_bytes: i64,
    /// The model, such as `NVIDIA GeForce RTX 4090`.
    pub model: String,
}

impl GpuPool {
    /// The pool of the GPUs that are healthy, of which `used` are taken.
    ///
    /// `allocatable` is what the kubelet counts: where it still says less than
    /// the driver, the smaller figure holds. More GPUs taken than there are (one
    /// of them fell ill) leave none, not fewer than none.
    pub fn new(
        resource: impl Into<String>,
        part: Part,
        healthy: impl IntoIterator<Item = GpuKind>,
        allocatable: i64,
        used: i64,
    ) -> Self {
        let mut kinds: Vec<GpuKind> = healthy.into_iter().collect();
        let healthy = i64::try_from(kinds.len()).unwrap_or(i64::MAX);
        let count = healthy.min(allocatable).max(0);
        kinds.sort();
        kinds.dedup();
        Self {
            resource: resource.into(),
            part,
            kinds,
            count,
            free: count.saturating_sub(used.max(0)).max(0),
        }
    }

    /// The kind that is promised: the one with the least memory.
    #[must_use]
    pub fn promised(&self) -> Option<&GpuKind> {
        self.kinds.iter().min()
    }
}

/// What a node has or a pod asks for, beside GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// CPU, in thousandths of a CPU.
    pub cpu_milli: i64,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Ephemeral storage, in bytes.
    pub ephemeral_storage_bytes: i64,
    /// Pods.
    pub pods: i64,
}

impl Amounts {
    /// The sum, at most what an integer holds.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.zip(other, i64::saturating_add)
    }

    /// The difference, at least what an integer holds; it may be below zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.zip(other, i64::saturating_sub)
    }

    fn zip(self, other: Self, combine: fn(i64, i64) -> i64) -> Self {
        Self {
            cpu_milli: combine(self.cpu_milli, other.cpu_milli),
            memory_bytes: combine(self.memory_bytes, other.memory_bytes),
            ephemeral_storage_bytes: combine(
                self.ephemeral_storage_bytes,
                other.ephemeral_storage_bytes,
            ),
            pods: combine(self.pods, other.pods),
        }
    }
}

impl Node {
    /// Takes what one replica of `wish` uses, with its GPUs from the pool of
    /// `resource`.
    pub fn take(&mut self, resource: &str, wish: &Wish) {
        for pool in self
            .gpus
            .iter_mut()
            .filter(|pool| pool.resource == resource)
        {
            pool.free = pool.free.saturating_sub(wish.gpu_count).max(0);
        }
        self.free = self.free.minus(wish.amounts());
        self.replicas_here = self.replicas_here.saturating_add(1);
    }

    /// Gives back what one replica of `wish` used. With it one asks whether a
    /// replica would find a place if the one that it replaces were gone.
    pub fn give_back(&mut self, resource: &str, wish: &Wish) {
        for pool in self
            .gpus
            .iter_mut()
            .filter(|pool| pool.resource == resource)
        {
            pool.free = pool.free.saturating_add(wish.gpu_count).min(pool.count);
        }
        self.free = self.free.plus(wish.amounts());
        self.replicas_here = self.replicas_here.saturating_sub(1).max(0);
    }
}
