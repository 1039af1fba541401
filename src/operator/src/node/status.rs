//! The status of a CreoNode, from what the node claims, what Kubernetes knows of it, and what is
//! used there.

use creo_api::creo_node::{
    Capacity, Claims, CreoNode, CreoNodeStatus, MAX_POOLS, NotOffered, OfferedAs, Pool,
    ServiceClass, Verdict, conditions,
};
use creo_market::placement::{GpuPool, Part};
use creo_market::wording;
use k8s_openapi::jiff::Timestamp;

use crate::base::conditions::{Says, written};
use crate::base::publish::Note;
use crate::base::slim::Node;
use crate::base::slim::node::Answers;
use crate::fleet::{Usage, free, gpu_pools};

/// What is known of the offered node.
#[derive(Debug, Clone)]
pub struct Sight<'a> {
    /// The Node object; none when the API server positively does not have it.
    pub node: Option<&'a Node>,
    /// What is used there.
    pub used: &'a Usage,
    /// The name of an older CreoNode that offers the same node.
    pub older_twin: Option<&'a str>,
    /// Whether canaries are sent.
    pub sends_canaries: bool,
}

/// The status as it is to be, without the claims, which are the device plugin's to write.
#[must_use]
pub fn status(creo_node: &CreoNode, sight: &Sight<'_>, now: Timestamp) -> CreoNodeStatus {
    let before = creo_node.status.clone().unwrap_or_default();
    let mut says = vec![
        accepted(creo_node),
        reachable(creo_node, sight.node),
        healthy(creo_node, sight),
    ];
    says.extend(sight.sends_canaries.then(|| isolated(creo_node)));
    let ready = ready(creo_node, sight, &says);
    let generation = creo_node.metadata.generation;
    CreoNodeStatus {
        claims: None,
        observed_generation: generation,
        conditions: written(
            &before.conditions,
            says.into_iter().chain(std::iter::once(ready)).collect(),
            generation,
            now,
        ),
        capacity: Some(capacity(creo_node, sight)),
        isolation: None,
        service_class: service_class(creo_node),
    }
}

fn accepted(creo_node: &CreoNode) -> Says {
    if creo_node.spec.accepted {
        Says::new(
            conditions::ACCEPTED,
            true,
            "Accepted",
            "spec.accepted is true",
        )
    } else {
        let message =
            "an administrator has to set spec.accepted to true before customers' replicas run here";
        Says::new(conditions::ACCEPTED, false, "NotAccepted", message)
    }
}

fn reachable(creo_node: &CreoNode, node: Option<&Node>) -> Says {
    let name = &creo_node.spec.source.kubernetes_node;
    match node.map(Node::answers) {
        None => {
            let message = format!(
                "there is no Kubernetes node {name}; delete this CreoNode if it does not come back"
            );
            Says::new(conditions::REACHABLE, false, "NodeGone", message)
        }
        Some(Answers::Unseen) => {
            let message = format!("nothing is heard of the kubelet of node {name}");
            Says::new(conditions::REACHABLE, false, "NodeUnseen", message)
        }
        Some(Answers::Ready | Answers::NotReady(_)) => Says::new(
            conditions::REACHABLE,
            true,
            "NodeAnswers",
            format!("the kubelet of node {name} reports"),
        ),
    }
}

fn claims(creo_node: &CreoNode) -> Option<&Claims> {
    creo_node.status.as_ref()?.claims.as_ref()
}

/// What is not in order in a node's GPUs.
struct Ailing {
    /// How many GPUs there are.
    gpus: usize,
    /// How many of them are not in order as a whole.
    ill: usize,
    /// Each GPU or partition that is not in order, with why and what to do.
    told: Vec<String>,
}

fn ailing(creo_node: &CreoNode) -> Option<Ailing> {
    let claims = claims(creo_node)?;
    let (mut ill, mut told) = (0, Vec::new());
    for gpu in &claims.gpus {
        let why = |reason: &Option<String>| reason.clone().unwrap_or("no reason given".to_owned());
        if gpu.healthy {
            let partitions = gpu.partitions.iter().filter(|one| !one.healthy);
            told.extend(partitions.map(|one| {
                format!(
                    "partition {} ({}) of GPU {}: {}",
                    one.profile,
                    one.uuid,
                    gpu.index,
                    why(&one.reason)
                )
            }));
        } else {
            ill += 1;
            told.push(format!(
                "GPU {} ({}): {}",
                gpu.index,
                gpu.uuid,
                why(&gpu.reason)
            ));
        }
    }
    Some(Ailing {
        gpus: claims.gpus.len(),
        ill,
        told,
    })
}

/// The GPUs that are offered to nobody, as their index and why.
fn withheld(claims: &Claims) -> Vec<(i32, &NotOffered)> {
    let gpus = claims.gpus.iter();
    gpus.filter_map(|gpu| Some((gpu.index, gpu.not_offered.as_ref()?)))
        .collect()
}

fn healthy(creo_node: &CreoNode, sight: &Sight<'_>) -> Says {
    let r#type = conditions::HEALTHY;
    if let Some(Answers::NotReady(why)) = sight.node.map(Node::answers) {
        return Says::new(r#type, false, "NodeNotReady", why);
    }
    let Some(ailing) = ailing(creo_node) else {
        let message = "the device plugin has not said yet which GPUs the node has; check that its pod runs there";
        return Says::unknown(r#type, "NoClaims", message);
    };
    let (count, ill) = (ailing.gpus, ailing.ill);
    if count == 0 {
        let why = claims(creo_node).and_then(|claims| claims.message.clone());
        let message = why.unwrap_or_else(|| "the node has no GPU".to_owned());
        return Says::new(r#type, false, "NoGpu", message);
    }
    if ailing.told.is_empty() {
        return Says::new(
            r#type,
            true,
            "AllHealthy",
            format!("{count} of {count} GPUs are in order"),
        );
    }
    let word = if ill == count {
        "NoHealthyGpu"
    } else {
        "SomeGpusUnhealthy"
    };
    let message = format!(
        "{} of {count} GPUs are in order; {}",
        count - ill,
        ailing.told.join("; ")
    );
    Says::new(r#type, false, word, message)
}

/// What somebody has to do whose runtime hands out GPUs unasked.
const CLOSE_THE_HOLE: &str = "make runc the default runtime of the node (default_runtime_name in containerd's configuration), or set accept-nvidia-visible-devices-envvar-when-unprivileged = false in /etc/nvidia-container-runtime/config.toml; nothing is placed here until a canary finds it closed, and one is sent every minute";

fn isolated(creo_node: &CreoNode) -> Says {
    let r#type = conditions::ISOLATED;
    let isolation = creo_node
        .status
        .as_ref()
        .and_then(|status| status.isolation.as_ref());
    let Some(isolation) = isolation else {
        let message = "a pod that asks for no GPU is to find out whether it reaches one; nothing is placed here until it has, or could not run for a minute";
        return Says::unknown(r#type, "NotChecked", message);
    };
    let found = &isolation.message;
    match isolation.verdict {
        Verdict::Isolated => Says::new(r#type, true, "NoneReached", found.clone()),
        Verdict::Exposed => {
            let message = format!("{found}; {CLOSE_THE_HOLE}");
            Says::new(r#type, false, "RuntimeExposesAllGpus", message)
        }
        Verdict::Unknown => {
            let message = format!(
                "the pod that was to find out did not run: {found}; replicas are placed here all the same, and it is tried again within five minutes"
            );
            Says::unknown(r#type, CANARY_DID_NOT_RUN, message)
        }
    }
}

/// The word for a canary that did not run, which does not keep replicas away.
const CANARY_DID_NOT_RUN: &str = "CanaryDidNotRun";

/// What does not hold and keeps nobody away: one GPU that is lost must not take the others with
/// it, and a pod that finds no room is no fault of the node.
const HARMLESS: [&str; 2] = ["SomeGpusUnhealthy", CANARY_DID_NOT_RUN];

fn ready(creo_node: &CreoNode, sight: &Sight<'_>, says: &[Says]) -> Says {
    let r#type = conditions::READY;
    if let Some(twin) = sight.older_twin {
        let message = format!(
            "CreoNode {twin} offers the same Kubernetes node and is older; delete one of them"
        );
        return Says::new(r#type, false, "DuplicateSource", message);
    }
    let missing = says
        .iter()
        .find(|one| one.holds != Some(true) && !HARMLESS.contains(&one.reason.as_str()));
    if let Some(missing) = missing {
        return Says::new(
            r#type,
            false,
            missing.reason.clone(),
            missing.message.clone(),
        );
    }
    if creo_node.spec.offer.cordon {
        let message = "spec.offer.cordon keeps new replicas away; running ones stay";
        return Says::new(r#type, false, "Cordoned", message);
    }
    let withheld = claims(creo_node).map(withheld).unwrap_or_default();
    let pools = gpu_pools(creo_node, sight.node, sight.used);
    if let Some((_, first)) = withheld.first().filter(|_| pools.is_empty()) {
        let message = format!("no GPU is offered; {}", in_words(&withheld));
        return Says::new(r#type, false, first.reason.clone(), message);
    }
    if pools.iter().all(|pool| pool.count == 0) {
        let message =
            "the kubelet hands out no GPU; the device plugin may just have started, or has stopped";
        return Says::new(r#type, false, "NotAllocatable", message);
    }
    let mut message = "replicas can be placed here".to_owned();
    if !withheld.is_empty() {
        message = format!(
            "{message}; not all GPUs are offered: {}",
            in_words(&withheld)
        );
    }
    Says::new(r#type, true, "Ready", message)
}

/// Why GPUs are not offered; those of one cause together.
fn in_words(withheld: &[(i32, &NotOffered)]) -> String {
    let mut by_cause: Vec<(&NotOffered, Vec<String>)> = Vec::new();
    for (index, cause) in withheld {
        match by_cause.iter_mut().find(|(known, _)| known == cause) {
            Some((_, gpus)) => gpus.push(index.to_string()),
            None => by_cause.push((cause, vec![index.to_string()])),
        }
    }
    let told = by_cause.iter().map(|(cause, gpus)| {
        let noun = if gpus.len() == 1 { "GPU" } else { "GPUs" };
        format!(
            "{noun} {}: {}: {}",
            gpus.join(", "),
            cause.reason,
            cause.message
        )
    });
    told.collect::<Vec<_>>().join("; ")
}

fn capacity(creo_node: &CreoNode, sight: &Sight<'_>) -> Capacity {
    let pools = gpu_pools(creo_node, sight.node, sight.used);
    let promised = pools.iter().filter_map(GpuPool::promised).min();
    let free = sight
        .node
        .map(|node| free(node, sight.used))
        .unwrap_or_default();
    let count = |count: i64| i32::try_from(count.max(0)).unwrap_or(i32::MAX);
    Capacity {
        gpus: count(pools.iter().map(|pool| pool.count).sum()),
        gpus_free: count(pools.iter().map(|pool| pool.free).sum()),
        gpu_model: promised.map(|kind| kind.model.clone()),
        gpu_memory: promised.map(|kind| wording::bytes(kind.memory_bytes)),
        gpu_memory_bytes: promised.map_or(0, |kind| kind.memory_bytes),
        cpu_milli_free: free.cpu_milli.max(0),
        memory_bytes_free: free.memory_bytes.max(0),
        ephemeral_storage_bytes_free: free.ephemeral_storage_bytes.max(0),
        pods_free: count(free.pods),
        pools: pools.iter().take(MAX_POOLS).map(told).collect(),
    }
}

fn told(pool: &GpuPool) -> Pool {
    let count = |count: i64| i32::try_from(count.max(0)).unwrap_or(i32::MAX);
    let promised = pool.promised();
    Pool {
        resource: pool.resource.clone(),
        offered_as: match pool.part {
            Part::Whole => OfferedAs::Whole,
            Part::Partition => OfferedAs::Partitions,
            Part::Share => OfferedAs::Shares,
        },
        model: promised.map(|kind| kind.model.clone()),
        memory_bytes: promised.map_or(0, |kind| kind.memory_bytes),
        count: count(pool.count),
        free: count(pool.free),
    }
}

fn service_class(creo_node: &CreoNode) -> Option<ServiceClass> {
    Some(if ailing(creo_node)?.told.is_empty() {
        ServiceClass::Good
    } else {
        ServiceClass::Degraded
    })
}

/// What people are told: when the node became ready or ceased to be.
#[must_use]
pub fn notes(before: &CreoNodeStatus, after: &CreoNodeStatus) -> Vec<Note> {
    let ready = |status: &CreoNodeStatus| {
        status
            .conditions
            .iter()
            .find(|one| one.type_ == conditions::READY)
            .cloned()
    };
    let (old, Some(new)) = (ready(before), ready(after)) else {
        return Vec::new();
    };
    if old
        .as_ref()
        .is_some_and(|old| old.status == new.status && old.reason == new.reason)
    {
        return Vec::new();
    }
    let is_ready = new.status == "True";
    vec![Note {
        warning: !is_ready,
        reason: if is_ready {
            "NodeReady"
        } else {
            "NodeNotReady"
        },
        action: "Watch",
        message: format!("{}: {}", new.reason, new.message),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn creo_node(accepted: bool, cordon: bool, healthy: &[bool]) -> CreoNode {
        let gpus: Vec<_> = healthy
            .iter()
            .enumerate()
            .map(|(index, healthy)| {
                json!({"index": index, "uuid": format!("GPU-{index}"), "model": "NVIDIA L4",
                    "memoryBytes": 24_i64 << 30, "computeCapability": "8.9", "healthy": healthy,
                    "reason": (!healthy).then_some("XID 79")})
            })
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "gpu-1", "generation": 2},
            "spec": {"source": {"kubernetesNode": "machine-1"}, "owner": "acme", "accepted": accepted,
                "offer": {"priceMicroPerGpuHour": 1, "region": "eu", "cordon": cordon}},
            "status": {"claims": {"resource": "creo.cloud/gpu", "gpus": gpus}},
        }))
        .unwrap()
    }

    /// A node whose first GPU is offered as it is and whose second is like `second`.
    fn with_second(second: &serde_json::Value) -> CreoNode {
        let mut creo_node = creo_node(true, false, &[true, true]);
        let mut gpus = json!(claims(&creo_node).unwrap().gpus);
        for (key, value) in second.as_object().unwrap() {
            gpus[1][key] = value.clone();
        }
        let status = creo_node.status.as_mut().unwrap();
        status.claims.as_mut().unwrap().gpus = serde_json::from_value(gpus).unwrap();
        creo_node
    }

    fn node(ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "machine-1"},
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "creo.cloud/gpu": "2"},
                "conditions": [{"type": "Ready", "status": ready, "message": "kubelet says"}],
            },
        }))
        .unwrap()
    }

    /// Each condition as TYPE=STATUS(REASON).
    fn said(creo_node: &CreoNode, node: Option<&Node>, older_twin: Option<&str>) -> String {
        let used = Usage::default();
        let status = status(
            creo_node,
            &Sight {
                node,
                used: &used,
                older_twin,
                sends_canaries: false,
            },
            Timestamp::UNIX_EPOCH,
        );
        status
            .conditions
            .iter()
            .map(|one| format!("{}={}({})", one.type_, one.status, one.reason))
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_conditions_say_what_is_missing() {
        let good = creo_node(true, false, &[true, true]);
        let ready = node("True");
        let cases = [
            (
                said(&good, Some(&ready), None),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=True(AllHealthy) Ready=True(Ready)",
            ),
            (
                said(&creo_node(false, false, &[true]), Some(&ready), None),
                "Accepted=False(NotAccepted) Reachable=True(NodeAnswers) Healthy=True(AllHealthy) Ready=False(NotAccepted)",
            ),
            (
                said(&creo_node(true, true, &[true]), Some(&ready), None),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=True(AllHealthy) Ready=False(Cordoned)",
            ),
            (
                said(&creo_node(true, false, &[true, false]), Some(&ready), None),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=False(SomeGpusUnhealthy) Ready=True(Ready)",
            ),
            (
                said(&creo_node(true, false, &[false, false]), Some(&ready), None),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=False(NoHealthyGpu) Ready=False(NoHealthyGpu)",
            ),
            (
                said(&good, Some(&node("Unknown")), None),
                "Accepted=True(Accepted) Reachable=False(NodeUnseen) Healthy=True(AllHealthy) Ready=False(NodeUnseen)",
            ),
            (
                said(&good, Some(&node("False")), None),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=False(NodeNotReady) Ready=False(NodeNotReady)",
            ),
            (
                said(&good, None, None),
                "Accepted=True(Accepted) Reachable=False(NodeGone) Healthy=True(AllHealthy) Ready=False(NodeGone)",
            ),
            (
                said(&good, Some(&ready), Some("gpu-0")),
                "Accepted=True(Accepted) Reachable=True(NodeAnswers) Healthy=True(AllHealthy) Ready=False(DuplicateSource)",
            ),
        ];
        for (said, expected) in cases {
            assert_eq!(said, expected);
        }
    }

    fn ready_of(creo_node: &CreoNode) -> (String, String) {
        let used = Usage::default();
        let node = node("True");
        let sight = Sight {
            node: Some(&node),
            used: &used,
            older_twin: None,
            sends_canaries: false,
        };
        let status = status(creo_node, &sight, Timestamp::UNIX_EPOCH);
        let ready = status.conditions.last().unwrap();
        (ready.reason.clone(), ready.message.clone())
    }

    #[test]
    fn gpus_that_are_not_offered_are_named_with_the_cause_and_the_remedy() {
        let conflict = json!({"notOffered": {
            "reason": "DeviceConflict", "message": "nvidia.com/gpu counts it; remove that plugin",
        }});
        let (reason, message) = ready_of(&with_second(&conflict));
        assert_eq!(reason, "Ready");
        assert_eq!(
            message,
            "replicas can be placed here; not all GPUs are offered: GPU 1: DeviceConflict: nvidia.com/gpu counts it; remove that plugin"
        );
        let mut none = with_second(&conflict);
        let gpus = &mut none.status.as_mut().unwrap().claims.as_mut().unwrap().gpus;
        gpus[0].not_offered = gpus[1].not_offered.clone();
        let (reason, message) = ready_of(&none);
        assert_eq!(reason, "DeviceConflict");
        assert_eq!(
            message,
            "no GPU is offered; GPUs 0, 1: DeviceConflict: nvidia.com/gpu counts it; remove that plugin"
        );
    }

    #[test]
    fn a_partition_that_is_ill_is_named_and_leaves_the_node_usable() {
        let partition = json!({"offeredAs": "Partitions", "partitions": [
            {"uuid": "MIG-1", "profile": "1g.6gb", "gpuInstance": 7, "computeInstance": 0,
             "memoryBytes": 6, "healthy": false, "reason": "XidError: XID 94; restart its program"},
        ]});
        let used = Usage::default();
        let node = node("True");
        let sight = Sight {
            node: Some(&node),
            used: &used,
            older_twin: None,
            sends_canaries: false,
        };
        let status = status(&with_second(&partition), &sight, Timestamp::UNIX_EPOCH);
        let healthy = &status.conditions[2];
        assert_eq!(healthy.reason, "SomeGpusUnhealthy");
        assert_eq!(
            healthy.message,
            "2 of 2 GPUs are in order; partition 1g.6gb (MIG-1) of GPU 1: XidError: XID 94; restart its program"
        );
        assert_eq!(status.conditions[3].reason, "Ready");
        assert_eq!(status.service_class, Some(ServiceClass::Degraded));
    }

    #[test]
    fn each_resource_is_told_and_they_are_counted_together() {
        let shares =
            json!({"offeredAs": "Shares", "shares": 4, "resource": "creo.cloud/gpu.shared"});
        let creo_node = with_second(&shares);
        let mut node = node("True");
        let allocatable = &mut node.status.allocatable.extended;
        allocatable.insert("creo.cloud/gpu.shared".to_owned(), 4);
        let mut used = Usage::default();
        used.extended.insert("creo.cloud/gpu.shared".to_owned(), 1);
        let sight = Sight {
            node: Some(&node),
            used: &used,
            older_twin: None,
            sends_canaries: false,
        };
        let capacity = capacity(&creo_node, &sight);
        assert_eq!((capacity.gpus, capacity.gpus_free), (5, 4));
        assert_eq!(capacity.gpu_memory.as_deref(), Some("6 GiB"));
        let pools: Vec<_> = capacity
            .pools
            .iter()
            .map(|pool| {
                (
                    pool.resource.as_str(),
                    pool.free,
                    pool.count,
                    pool.memory_bytes >> 30,
                )
            })
            .collect();
        assert_eq!(
            pools,
            [
                ("creo.cloud/gpu", 1, 1, 24),
                ("creo.cloud/gpu.shared", 3, 4, 6)
            ]
        );
    }

    #[test]
    fn capacity_is_what_is_claimed_healthy_and_handed_out_less_what_is_used() {
        let creo_node = creo_node(true, false, &[true, true, false]);
        let mut used = Usage::default();
        used.extended.insert("creo.cloud/gpu".to_owned(), 1);
        used.amounts.cpu_milli = 5000;
        let node = node("True");
        let sight = Sight {
            node: Some(&node),
            used: &used,
            older_twin: None,
            sends_canaries: false,
        };
        let status = status(&creo_node, &sight, Timestamp::UNIX_EPOCH);
        let capacity = status.capacity.unwrap();
        assert_eq!((capacity.gpus, capacity.gpus_free), (2, 1));
        assert_eq!(capacity.gpu_memory.as_deref(), Some("24 GiB"));
        assert_eq!((capacity.cpu_milli_free, capacity.pods_free), (0, 110));
        assert_eq!(status.service_class, Some(ServiceClass::Degraded));
        assert_eq!(status.claims, None, "the claims are the plugin's to write");
    }

    #[test]
    fn a_node_is_ready_when_a_canary_found_it_in_order_or_could_not_run() {
        let node = node("True");
        let used = Usage::default();
        let said = |verdict: Option<&str>| {
            let mut creo_node = creo_node(true, false, &[true]);
            creo_node.status.as_mut().unwrap().isolation = verdict.map(|verdict| {
                let isolation = json!({"verdict": verdict, "message": "reached /dev/nvidia0",
                    "checkedAt": "2026-11-22T00:00:00Z", "bootId": "", "containerRuntime": "",
                    "image": ""});
                serde_json::from_value(isolation).unwrap()
            });
            let sight = Sight {
                node: Some(&node),
                used: &used,
                older_twin: None,
                sends_canaries: true,
            };
            let status = status(&creo_node, &sight, Timestamp::UNIX_EPOCH);
            let isolated = &status.conditions[3];
            let ready = &status.conditions[4];
            (
                format!("{} {}", isolated.status, isolated.reason),
                format!("{} {}", ready.status, ready.reason),
                isolated.message.clone(),
            )
        };
        for (verdict, isolated, ready) in [
            (None, "Unknown NotChecked", "False NotChecked"),
            (Some("Isolated"), "True NoneReached", "True Ready"),
            (Some("Unknown"), "Unknown CanaryDidNotRun", "True Ready"),
            (
                Some("Exposed"),
                "False RuntimeExposesAllGpus",
                "False RuntimeExposesAllGpus",
            ),
        ] {
            let (said_isolated, said_ready, _) = said(verdict);
            assert_eq!(
                (said_isolated.as_str(), said_ready.as_str()),
                (isolated, ready)
            );
        }
        let (_, _, message) = said(Some("Exposed"));
        assert!(
            message.contains("/dev/nvidia0") && message.contains("default runtime"),
            "{message}"
        );
    }
}
