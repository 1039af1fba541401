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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AgentDeployment, CreoNodeStatus, Placement};

    fn spec(more: &str) -> AgentDeploymentSpec {
        let yaml = format!(
            "{{apiVersion: creo.cloud/v1alpha1, kind: AgentDeployment, metadata: {{name: chat}}, spec: {{\
             model: {{name: tiny, image: {{reference: creo-model-tiny}}, path: tiny.gguf}}, \
             engine: {{profile: llama-cpp}}, {more}}}}}"
        );
        serde_saphyr::from_str::<AgentDeployment>(&yaml)
            .expect("a deployment")
            .spec
    }

    #[test]
    fn a_specification_becomes_integers_with_the_documented_defaults() {
        let wish = spec("replicas: 1").wish().expect("the defaults are valid");
        assert_eq!(
            wish,
            Wish {
                gpu_count: 1,
                cpu_milli: 500,
                memory_bytes: 1 << 30,
                ephemeral_storage_bytes: 1 << 30,
                tolerations: standing_tolerations(),
                ..Wish::default()
            }
        );
    }

    #[test]
    fn every_wish_of_a_specification_is_carried_over() {
        let wish = spec(
            "gpu: {count: 2, memory: 80G, models: [H100]}, \
             resources: {cpu: 2, memory: 8Gi, ephemeralStorage: 1e9}, \
             placement: {nodes: [gpu-1], regions: [eu], maxPriceMicroPerGpuHour: 7}",
        )
        .wish()
        .expect("the specification is valid");
        assert_eq!(
            wish,
            Wish {
                gpu_count: 2,
                gpu_memory_bytes: 80_000_000_000,
                gpu_models: vec!["H100".to_owned()],
                cpu_milli: 2_000,
                memory_bytes: 8 << 30,
                ephemeral_storage_bytes: 1_000_000_000,
                nodes: vec!["gpu-1".to_owned()],
                regions: vec!["eu".to_owned()],
                max_price_micro_per_gpu_hour: Some(7),
                tolerations: standing_tolerations(),
            }
        );
    }

    #[test]
    fn a_specification_that_cannot_be_used_is_an_error_that_names_the_field() {
        for (more, error) in [
            ("gpu: {count: 0}", "spec.gpu.count: must be at least 1"),
            (
                "gpu: {memory: lots}",
                "spec.gpu.memory: \"lots\" is not a quantity: write it like 80Gi",
            ),
            (
                "resources: {cpu: 0}",
                "spec.resources.cpu: must be above zero",
            ),
            (
                "resources: {memory: -1Gi}",
                "spec.resources.memory: \"-1Gi\" is negative: write a quantity above zero, like 80Gi",
            ),
            (
                "resources: {ephemeralStorage: 9Ei}",
                "spec.resources.ephemeralStorage: \"9Ei\" is too large: no machine has this much",
            ),
        ] {
            assert_eq!(spec(more).wish().expect_err(more).to_string(), error);
        }
    }

    #[test]
    fn a_suspended_deployment_wants_no_replicas() {
        assert_eq!(spec("replicas: 3").replicas_wanted(), 3);
        assert_eq!(spec("replicas: 3, suspend: true").replicas_wanted(), 0);
        assert_eq!(spec("replicas: -3").replicas_wanted(), 0);
    }

    #[test]
    fn only_healthy_gpus_can_be_placed_on() {
        let gpu = |uuid, healthy| {
            format!(
                "{{index: 0, uuid: {uuid}, model: NVIDIA L4, memoryBytes: 24, computeCapability: '8.9', \
                 healthy: {healthy}}}"
            )
        };
        let yaml = format!(
            "claims: {{resource: creo.cloud/gpu, gpus: [{}, {}, {}]}}",
            gpu("a", true),
            gpu("b", false),
            gpu("c", true)
        );
        let status: CreoNodeStatus = serde_saphyr::from_str(&yaml).expect("a status");
        let pool = status.claims.expect("claims").pool(3, 1);
        assert_eq!(
            (pool.resource.as_str(), pool.count, pool.free),
            ("creo.cloud/gpu", 2, 1)
        );
        assert_eq!(
            pool.kinds,
            [GpuKind {
                memory_bytes: 24,
                model: "NVIDIA L4".to_owned()
            }]
        );
    }

    #[test]
    fn the_terms_of_a_placement_are_compared_with_a_wish_as_they_were_agreed() {
        let yaml = "{apiVersion: creo.cloud/v1alpha1, kind: Placement, metadata: {name: a}, spec: {\
             terms: {node: gpu-1, owner: o, priceMicroPerGpuHour: 5, since: '2026-11-22T10:00:00Z', \
             gpu: {resource: creo.cloud/gpu, model: NVIDIA L4, count: 2, memoryBytes: 24}}, \
             workload: {revision: v1, deployment: chat, kubernetesNode: n, port: 8000, \
             image: {reference: e}, model: {reference: m}, \
             health: {path: /health, periodSeconds: 1, startupTimeoutSeconds: 60}, \
             resources: {cpuMilli: 500, memoryBytes: 1, ephemeralStorageBytes: 1}}}}";
        let placement: Placement = serde_saphyr::from_str(yaml).expect("a placement");
        assert_eq!(
            placement.spec.terms.agreed(Some("eu".to_owned())),
            market::Terms {
                node: "gpu-1".to_owned(),
                region: Some("eu".to_owned()),
                gpu_count: 2,
                gpu_model: "NVIDIA L4".to_owned(),
                gpu_memory_bytes: 24,
                price_micro_per_gpu_hour: 5,
            }
        );
    }
}
