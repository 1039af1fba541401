//! The kinds read into the values that the market's rules work on. Whatever is
//! wrong with a specification shows here, once, with the field's name; what
//! comes behind never looks at the specification again.

use creo_market::{
    placement::{self as market, GpuKind, GpuPool, Wish, standing_tolerations},
    replicas::State,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    agent_deployment::AgentDeploymentSpec,
    creo_node::Claims,
    placement::{Phase, Terms},
    quantity::{self, InvalidField},
};

impl AgentDeploymentSpec {
    /// What one replica needs of its node.
    ///
    /// # Errors
    ///
    /// The first field that cannot be used, as it may be where an object was
    /// stored under another schema than today's.
    pub fn wish(&self) -> Result<Wish, InvalidField> {
        if self.gpu.count < 1 {
            return Err(InvalidField::new("spec.gpu.count", "must be at least 1"));
        }
        let gpu_memory = self.gpu.memory.as_ref();
        Ok(Wish {
            gpu_count: i64::from(self.gpu.count),
            gpu_memory_bytes: gpu_memory
                .map_or(Ok(0), |memory| quantity::bytes("spec.gpu.memory", memory))?,
            gpu_models: self.gpu.models.clone(),
            cpu_milli: above_zero(
                "spec.resources.cpu",
                quantity::millicores,
                &self.resources.cpu,
            )?,
            memory_bytes: above_zero(
                "spec.resources.memory",
                quantity::bytes,
                &self.resources.memory,
            )?,
            ephemeral_storage_bytes: above_zero(
                "spec.resources.ephemeralStorage",
                quantity::bytes,
                &self.resources.ephemeral_storage,
            )?,
            nodes: self.placement.nodes.clone(),
            regions: self.placement.regions.clone(),
            max_price_micro_per_gpu_hour: self.placement.max_price_micro_per_gpu_hour,
            tolerations: standing_tolerations(),
        })
    }

    /// How many replicas are to run: none while the deployment is suspended.
    #[must_use]
    pub fn replicas_wanted(&self) -> usize {
        if self.suspend {
            0
        } else {
            usize::try_from(self.replicas).unwrap_or(0)
        }
    }
}

type Read = fn(&'static str, &Quantity) -> Result<i64, InvalidField>;

fn above_zero(field: &'static str, read: Read, quantity: &Quantity) -> Result<i64, InvalidField> {
    match read(field, quantity)? {
        0 => Err(InvalidField::new(field, "must be above zero")),
        amount => Ok(amount),
    }
}

impl Terms {
    /// The terms as a changed wish is compared with them. `region` is where the
    /// node is today; absent where the node is not known any more.
    #[must_use]
    pub fn agreed(&self, region: Option<String>) -> market::Terms {
        market::Terms {
            node: self.node.clone(),
            region,
            gpu_count: i64::from(self.gpu.count),
            gpu_model: self.gpu.model.clone(),
            gpu_memory_bytes: self.gpu.memory_bytes,
            price_micro_per_gpu_hour: self.price_micro_per_gpu_hour,
        }
    }
}

impl Claims {
    /// The GPUs as replicas can be placed on them: those that are healthy, at
    /// most as many as the kubelet counts (`allocatable`), less those that are
    /// `used`.
    #[must_use]
    pub fn pool(&self, allocatable: i64, used: i64) -> GpuPool {
        let healthy = self.gpus.iter().filter(|gpu| gpu.healthy);
        let kinds = healthy.map(|gpu| GpuKind {
            memory_bytes: gpu.memory_bytes,
            model: gpu.model.clone(),
        });
        GpuPool::new(self.resource.clone(), kinds, allocatable, used)
    }
}

impl From<Phase> for State {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pending | Phase::Starting => Self::Starting,
            Phase::Ready => Self::Ready,
            Phase::Failed => Self::Failed,
            Phase::Lost => Self::Lost,
            Phase::Withdrawn | Phase::Ended => Self::Over,
        }
    }
}
