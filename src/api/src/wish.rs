//! The kinds read into the values that the market's rules work on. Whatever is
//! wrong with a specification shows here, once, with the field's name; what
//! comes behind never looks at the specification again.

use std::collections::BTreeMap;

use creo_market::{
    placement::{self as market, GpuKind, GpuPool, Part, Wish, standing_tolerations},
    replicas::State,
};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{
    agent_deployment::AgentDeploymentSpec,
    creo_node::{ClaimedGpu, Claims, MAX_MODEL_CHARS, OfferedAs},
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
            gpu_shared: self.gpu.shared,
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
            gpu_shared: self.gpu.shared,
            price_micro_per_gpu_hour: self.price_micro_per_gpu_hour,
        }
    }
}

impl Claims {
    /// What replicas can be placed on, one pool for each resource, by its name:
    /// the units that are healthy, at most as many as the kubelet counts
    /// (`allocatable` of a resource), less those that are `used`.
    ///
    /// A resource without any healthy unit has a pool as well, with nothing in
    /// it.
    #[must_use]
    pub fn pools(
        &self,
        allocatable: impl Fn(&str) -> i64,
        used: impl Fn(&str) -> i64,
    ) -> Vec<GpuPool> {
        let mut units: BTreeMap<&str, (Part, Vec<GpuKind>)> = BTreeMap::new();
        for (resource, part, kind) in self.gpus.iter().flat_map(|gpu| self.units(gpu)) {
            let (_, kinds) = units.entry(resource).or_insert((part, Vec::new()));
            kinds.extend(kind);
        }
        let pools = units.into_iter().map(|(resource, (part, kinds))| {
            GpuPool::new(resource, part, kinds, allocatable(resource), used(resource))
        });
        pools.collect()
    }

    /// What the kubelet counts of a GPU: under which resource, and what it is,
    /// which is nothing where it is not healthy.
    fn units<'a>(&'a self, gpu: &'a ClaimedGpu) -> Vec<(&'a str, Part, Option<GpuKind>)> {
        let kind = |healthy: bool, memory_bytes, model: String| {
            healthy.then_some(GpuKind {
                memory_bytes,
                model,
            })
        };
        let resource = gpu.resource.as_deref();
        match gpu.offered_as {
            _ if gpu.not_offered.is_some() => Vec::new(),
            // An older device plugin offers every GPU as a whole and does not say so.
            None | Some(OfferedAs::Whole) => {
                let kind = kind(gpu.healthy, gpu.memory_bytes, gpu.model.clone());
                vec![(resource.unwrap_or(&self.resource), Part::Whole, kind)]
            }
            Some(OfferedAs::Partitions) => gpu
                .partitions
                .iter()
                .filter_map(|partition| {
                    let model = format!("{} MIG {}", gpu.model, partition.profile);
                    let model = model.chars().take(MAX_MODEL_CHARS).collect();
                    let kind = kind(partition.healthy, partition.memory_bytes, model);
                    Some((partition.resource.as_deref()?, Part::Partition, kind))
                })
                .collect(),
            Some(OfferedAs::Shares) => {
                let shares = gpu.shares.unwrap_or(1).max(1);
                // What each of them may use if all use alike, rounded down.
                let memory_bytes = gpu.memory_bytes / i64::from(shares);
                let kind = kind(gpu.healthy, memory_bytes, gpu.model.clone());
                let unit = (resource.unwrap_or(&self.resource), Part::Share, kind);
                vec![unit; usize::try_from(shares).unwrap_or(1)]
            }
        }
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
            "gpu: {count: 2, memory: 80G, models: [H100], shared: true}, \
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
                gpu_shared: true,
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

    /// The pools of these GPUs, where the kubelet counts ten of each resource
    /// and one is used, as RESOURCE PART COUNT/FREE KIND.
    fn pools(gpus: &[&str]) -> Vec<String> {
        let gpus: Vec<String> = gpus
            .iter()
            .enumerate()
            .map(|(index, gpu)| {
                format!("{{index: {index}, uuid: GPU-{index}, computeCapability: '8.9', {gpu}}}")
            })
            .collect();
        let yaml = format!(
            "claims: {{resource: creo.cloud/gpu, gpus: [{}]}}",
            gpus.join(", ")
        );
        let status: CreoNodeStatus = serde_saphyr::from_str(&yaml).expect("a status");
        let claims = status.claims.expect("claims");
        let told = |pool: &GpuPool| {
            let kinds: Vec<String> = pool
                .kinds
                .iter()
                .map(|kind| format!("{} {}", kind.memory_bytes, kind.model))
                .collect();
            let (resource, part) = (&pool.resource, pool.part);
            format!(
                "{resource} {part:?} {}/{} {}",
                pool.free,
                pool.count,
                kinds.join(" + ")
            )
        };
        claims.pools(|_| 10, |_| 1).iter().map(told).collect()
    }

    const L4: &str = "model: L4, memoryBytes: 24";

    #[test]
    fn only_healthy_gpus_can_be_placed_on() {
        let healthy = format!("{L4}, healthy: true");
        let ill = format!("{L4}, healthy: false");
        assert_eq!(
            pools(&[&healthy, &ill, &healthy]),
            ["creo.cloud/gpu Whole 1/2 24 L4"]
        );
        assert_eq!(pools(&[&ill]), ["creo.cloud/gpu Whole 0/0 "]);
    }

    #[test]
    fn a_gpu_that_is_not_offered_is_in_no_pool() {
        let withheld =
            format!("{L4}, healthy: true, notOffered: {{reason: DeviceConflict, message: why}}");
        assert_eq!(pools(&[&withheld]), Vec::<String>::new());
    }

    #[test]
    fn unlike_gpus_partitions_and_shares_are_pools_of_their_own() {
        let l4 = format!("{L4}, healthy: true, offeredAs: Whole, resource: creo.cloud/gpu-l4");
        let shared = "model: T4, memoryBytes: 16, healthy: true, offeredAs: Shares, shares: 3, \
            resource: creo.cloud/gpu-t4.shared";
        let partition = |uuid, profile, memory, healthy, resource| {
            format!(
                "{{uuid: {uuid}, profile: {profile}, gpuInstance: 1, computeInstance: 0, \
                 memoryBytes: {memory}, healthy: {healthy}{resource}}}"
            )
        };
        let small = ", resource: creo.cloud/mig-1g.10gb";
        let partitions = [
            partition("a", "1g.10gb", 10, true, small),
            partition("b", "1g.10gb", 10, true, small),
            partition("c", "1g.10gb", 10, false, small),
            partition(
                "d",
                "3g.40gb",
                40,
                true,
                ", resource: creo.cloud/mig-3g.40gb",
            ),
            partition("e", "3g.40gb", 40, true, ""),
        ]
        .join(", ");
        let mig = format!(
            "model: H100, memoryBytes: 80, healthy: true, offeredAs: Partitions, \
             partitions: [{partitions}]"
        );
        assert_eq!(
            pools(&[&l4, shared, &mig]),
            [
                "creo.cloud/gpu-l4 Whole 0/1 24 L4",
                "creo.cloud/gpu-t4.shared Share 2/3 5 T4",
                "creo.cloud/mig-1g.10gb Partition 1/2 10 H100 MIG 1g.10gb",
                "creo.cloud/mig-3g.40gb Partition 0/1 40 H100 MIG 3g.40gb",
            ]
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
                gpu_shared: false,
                price_micro_per_gpu_hour: 5,
            }
        );
    }
}
