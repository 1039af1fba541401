//! What Creo's processes may do is what they do.
//!
//! Everything that the operator and the device plugin do is made to happen once,
//! odd turns included. The API server's audit log then says what they asked for,
//! which must be exactly what the chart's roles grant.

use std::{collections::BTreeSet, fmt};

use creo_api::{CreoNode, Placement, names};
use creo_e2e::{
    cluster::{AuditEvent, Cluster, GpuFault},
    installation, samples,
};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{Node, Pod},
        rbac::v1::{
            ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
        },
    },
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    callers::{self, OPERATOR},
    shared::{Hold, Space, alone, eventually},
};

/// What is granted and cannot be seen in an audit log, and why.
const UNSEEN: [(&str, &str, &str); 1] = [(
    OPERATOR,
    "accept creonodes.creo.cloud",
    "no request has this verb: the policy of acceptance asks whether it is granted when an \
     accepted CreoNode is created, which this test sees happen",
)];

/// A right of one of Creo's accounts, or its use.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    account: String,
    verb: String,
    /// `resource.group/subresource`.
    object: String,
}

impl Right {
    fn new(account: &str, verb: &str, group: &str, resource: &str, subresource: &str) -> Self {
        let group = if group.is_empty() {
            String::new()
        } else {
            format!(".{group}")
        };
        let subresource = if subresource.is_empty() {
            String::new()
        } else {
            format!("/{subresource}")
        };
        Self {
            account: account.to_owned(),
            verb: verb.to_owned(),
            object: format!("{resource}{group}{subresource}"),
        }
    }
}

impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.account, self.verb, self.object)
    }
}

/// The accounts of Creo's namespace that a binding is for.
fn accounts(subjects: Option<&Vec<Subject>>) -> Vec<String> {
    let subjects = subjects.into_iter().flatten();
    let ours = subjects.filter(|subject| {
        subject.kind == "ServiceAccount"
            && subject.namespace.as_deref() == Some(installation::NAMESPACE)
    });
    ours.map(|subject| subject.name.clone()).collect()
}

/// Every right of Creo's accounts, as the API server has it now.
async fn granted(client: &Client) -> BTreeSet<Right> {
    let all = ListParams::default();
    let mut rights = BTreeSet::new();
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    for binding in bindings.list(&all).await.expect("bindings are listed") {
        let rules = rules(client, None, &binding.role_ref).await;
        add(&mut rights, accounts(binding.subjects.as_ref()), &rules);
    }
    let bindings: Api<RoleBinding> = Api::all(client.clone());
    for binding in bindings.list(&all).await.expect("bindings are listed") {
        let rules = rules(client, binding.namespace(), &binding.role_ref).await;
        add(&mut rights, accounts(binding.subjects.as_ref()), &rules);
    }
    rights
}

/// The rules of a role; `namespace` is where a binding in a namespace looks for it.
async fn rules(client: &Client, namespace: Option<String>, role: &RoleRef) -> Vec<PolicyRule> {
    let rules = if let (Some(namespace), "Role") = (namespace, role.kind.as_str()) {
        let roles: Api<Role> = Api::namespaced(client.clone(), &namespace);
        let role = roles.get_opt(&role.name).await;
        role.map(|role| role.and_then(|role| role.rules))
    } else {
        let roles: Api<ClusterRole> = Api::all(client.clone());
        let role = roles.get_opt(&role.name).await;
        role.map(|role| role.and_then(|role| role.rules))
    };
    rules.expect("the role is read").unwrap_or_default()
}

fn add(rights: &mut BTreeSet<Right>, accounts: Vec<String>, rules: &[PolicyRule]) {
    for account in accounts {
        for rule in rules {
            for verb in &rule.verbs {
                for group in rule.api_groups.iter().flatten() {
                    for object in rule.resources.iter().flatten() {
                        let (resource, sub) = object.split_once('/').unwrap_or((object, ""));
                        rights.insert(Right::new(&account, verb, group, resource, sub));
                    }
                }
            }
        }
    }
}

/// The rights that these requests made use of.
fn used(requests: &[AuditEvent]) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for request in requests {
        let Some(object) = &request.object_ref else {
            continue;
        };
        let account = request.user.username.rsplit(':').next().unwrap_or_default();
        let mut verbs = vec![request.verb.as_str()];
        // A server-side apply that makes the object needs the right to create it as well.
        if request.verb == "patch" && request.code() == 201 {
            verbs.push("create");
        }
        for verb in verbs {
            rights.insert(Right::new(
                account,
                verb,
                &object.api_group,
                &object.resource,
                &object.subresource,
            ));
        }
    }
    rights
}

/// What came in since the test began.
struct Log<'a> {
    cluster: &'a Cluster,
    since: MicroTime,
}

impl Log<'_> {
    fn requests(&self) -> Vec<AuditEvent> {
        self.cluster
            .requests_since(&self.since)
            .expect("the log is read")
    }

    /// Waits until the operator has asked for this very object, in this way.
    async fn wait(&self, verb: &str, resource: &str, name: &str) {
        eventually(
            &format!("the operator asks: {verb} {resource} {name}"),
            async || Ok(self.requests()),
            |requests| {
                requests.iter().any(|request| {
                    request.verb == verb
                        && request.object_ref.as_ref().is_some_and(|object| {
                            object.resource == resource && object.name == name
                        })
                })
            },
        )
        .await;
    }
}

fn merge(change: Value) -> Patch<Value> {
    Patch::Merge(change)
}

/// The operator starts with no lease there, as on the first day.
async fn start_the_operator_anew(client: &Client) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let pods: Api<Pod> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let operators = ListParams::default().labels("app.kubernetes.io/component=operator");
    let scale = async |replicas: i32| {
        let change = merge(json!({ "spec": { "replicas": replicas } }));
        let usual = PatchParams::default();
        deployments
            .patch(OPERATOR, &usual, &change)
            .await
            .expect("it is scaled");
    };
    scale(0).await;
    eventually(
        "no operator is left",
        async || {
            pods.list(&operators)
                .await
                .map_err(|error| error.to_string())
        },
        |pods| pods.items.is_empty(),
    )
    .await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), installation::NAMESPACE);
    leases
        .delete(OPERATOR, &DeleteParams::default())
        .await
        .expect("the lease is deleted");
    scale(2).await;
    eventually(
        "the operators are ready",
        async || {
            deployments
                .get(OPERATOR)
                .await
                .map_err(|error| error.to_string())
        },
        |deployment| {
            let status = deployment.status.as_ref();
            status.and_then(|status| status.ready_replicas) == Some(2)
        },
    )
    .await;
}

/// The device plugins start again, and one of them sees a GPU fail and heal.
async fn exercise_the_plugin(hold: &Hold<impl Sized>) {
    let pods: Api<Pod> = Api::namespaced(hold.client.clone(), installation::NAMESPACE);
    let plugins = ListParams::default().labels("app.kubernetes.io/component=gpu-device-plugin");
    let running = pods.list(&plugins).await.expect("pods are listed").items;
    let before: Vec<Option<String>> = running.iter().map(ResourceExt::uid).collect();
    assert_eq!(before.len(), 2);
    for pod in running {
        pods.delete(&pod.name_any(), &DeleteParams::default())
            .await
            .expect("it is deleted");
    }
    eventually(
        "the device plugins are ready again",
        async || pods.list(&plugins).await.map_err(|error| error.to_string()),
        |pods| {
            let ready = pods.iter().filter(|pod| {
                !before.contains(&pod.uid())
                    && pod
                        .status
                        .iter()
                        .flat_map(|status| status.conditions.iter().flatten())
                        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
            });
            ready.count() == 2
        },
    )
    .await;
    let nodes: Api<CreoNode> = Api::all(hold.client.clone());
    for (fault, is_healthy) in [("lost", false), ("heal", true)] {
        let fault: GpuFault = fault.parse().expect("it is a fault");
        hold.cluster
            .gpu_fault("gpu-1", 7, &fault)
            .expect("it happens");
        eventually(
            "the node says how its GPU is",
            async || nodes.get("gpu-1").await.map_err(|error| error.to_string()),
            |node| {
                let claims = node
                    .status
                    .as_ref()
                    .and_then(|status| status.claims.as_ref());
                claims.is_some_and(|claims| {
                    claims
                        .gpus
                        .iter()
                        .any(|gpu| gpu.index == 7 && gpu.healthy == is_healthy)
                })
            },
        )
        .await;
    }
}

/// A node comes and goes whose name somebody has offered another one under.
async fn exercise_offers(client: &Client, log: &Log<'_>) {
    let (nodes, offers) = (
        Api::<Node>::all(client.clone()),
        Api::<CreoNode>::all(client.clone()),
    );
    let new = PostParams::default();
    let squatter: CreoNode = serde_json::from_value(json!({
        "metadata": { "name": "phantom" },
        "spec": {
            "source": { "kubernetesNode": "nowhere" },
            "owner": "acme",
            "offer": { "priceMicroPerGpuHour": 1, "region": "local" },
        },
    }))
    .expect("it is a CreoNode");
    offers.create(&new, &squatter).await.expect("it is offered");
    log.wait("get", "nodes", "nowhere").await;

    let node: Node =
        serde_json::from_value(json!({ "metadata": { "name": "phantom" } })).expect("it is a Node");
    nodes.create(&new, &node).await.expect("the node is there");
    let gpus = json!({ "status": { "capacity": { "creo.cloud/gpu": "1" } } });
    nodes
        .patch_status("phantom", &PatchParams::default(), &merge(gpus))
        .await
        .expect("it has GPUs");
    log.wait("get", "creonodes", "phantom").await;

    let now = DeleteParams::default();
    offers
        .delete("phantom", &now)
        .await
        .expect("the name is free");
    eventually(
        "the node is offered, and accepted",
        async || {
            offers
                .get_opt("phantom")
                .await
                .map_err(|error| error.to_string())
        },
        |offer| {
            offer.as_ref().is_some_and(|offer| {
                offer.spec.source.kubernetes_node == "phantom" && offer.spec.accepted
            })
        },
    )
    .await;
    nodes.delete("phantom", &now).await.expect("the node goes");
    log.wait("get", "nodes", "phantom").await;
    offers
        .delete("phantom", &now)
        .await
        .expect("the offer goes");
}

/// A deployment is made, scaled, changed, and loses a pod whose successor's name is taken.
async fn exercise_a_deployment(space: &Space, log: &Log<'_>) {
    let change = async |change: Value| {
        let usual = PatchParams::default();
        space
            .deployments()
            .patch("chat", &usual, &merge(change))
            .await
            .expect("it is taken");
    };
    let wait_for = async |replicas: i32| {
        space
            .wait("chat", "all replicas answer", |deployment| {
                samples::is_ready(Some(deployment))
                    && deployment
                        .status
                        .as_ref()
                        .is_some_and(|status| status.ready_replicas == replicas)
            })
            .await;
    };
    space.deploy("chat", 1).await;
    wait_for(1).await;
    change(json!({ "spec": { "replicas": 2 } })).await;
    wait_for(2).await;
    change(json!({ "spec": { "engine": { "env": [{ "name": "GREETING", "value": "hello" }] } } }))
        .await;
    wait_for(2).await;
    change(json!({ "spec": { "replicas": 1 } })).await;
    wait_for(1).await;

    let pod = space.pods_of("chat").await.remove(0);
    let name = pod.name_any();
    let (stem, attempt) = name
        .rsplit_once('-')
        .expect("the name ends with the attempt");
    let attempt: u32 = attempt.parse().expect("it is a number");
    let next = format!("{stem}-{}", attempt + 1);
    space
        .pods()
        .create(&PostParams::default(), &squatting_pod(&next))
        .await
        .expect("it is taken");
    space
        .pods()
        .delete(&name, &DeleteParams::default())
        .await
        .expect("the pod is deleted");
    log.wait("get", "pods", &next).await;
    let now = DeleteParams::default().grace_period(0);
    space
        .pods()
        .delete(&next, &now)
        .await
        .expect("the name is free");
    wait_for(1).await;
}

/// A pod of somebody's, which no node takes.
fn squatting_pod(name: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "nodeSelector": { "there-is": "none" },
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": 65532,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "nothing",
                "image": "nothing",
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    }))
    .expect("it is a pod")
}

/// The name of a deployment's first Placement is taken, by one that nobody owns.
async fn exercise_a_taken_name(cluster: &Cluster, space: &Space, log: &Log<'_>) {
    let wish = space.deploy("late", 0).await;
    let name = names::placement("late", &wish.uid().expect("it has a uid"), 0);
    let mut squatter = space.list_placements().await.remove(0);
    squatter.metadata = ObjectMeta {
        name: Some(name.clone()),
        ..ObjectMeta::default()
    };
    "somebody".clone_into(&mut squatter.spec.workload.deployment);
    squatter.status = None;
    // Nobody else could write it; what is asked in another's name is not logged as theirs.
    let operator = callers::user(cluster, &callers::account(OPERATOR)).await;
    let placements: Api<Placement> = Api::namespaced(operator, &space.name);
    placements
        .create(&PostParams::default(), &squatter)
        .await
        .expect("the name is taken");
    let scale = merge(json!({ "spec": { "replicas": 1 } }));
    space
        .deployments()
        .patch("late", &PatchParams::default(), &scale)
        .await
        .expect("it is taken");
    log.wait("get", "placements", &name).await;
    placements
        .delete(&name, &DeleteParams::default())
        .await
        .expect("the name is free");
    space
        .wait("late", "its replica answers", |deployment| {
            samples::is_ready(Some(deployment))
                && deployment
                    .status
                    .as_ref()
                    .is_some_and(|status| status.ready_replicas == 1)
        })
        .await;
}

/// What is granted and cannot be seen.
fn unseen(granted: &BTreeSet<Right>) -> BTreeSet<Right> {
    granted
        .iter()
        .filter(|right| {
            UNSEEN.iter().any(|(account, what, _)| {
                right.account == *account && format!("{} {}", right.verb, right.object) == *what
            })
        })
        .cloned()
        .collect()
}

async fn delete_all(space: &Space) {
    for name in ["chat", "late"] {
        space
            .deployments()
            .delete(name, &DeleteParams::default())
            .await
            .expect("it is deleted");
    }
    // A namespace that ends takes nothing new, and would refuse what is tried until then.
    eventually(
        "nothing is left to be done",
        async || {
            space
                .placements()
                .list(&ListParams::default())
                .await
                .map_err(|error| error.to_string())
        },
        |placements| placements.items.is_empty(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rights_that_are_granted_are_those_that_are_used_and_nothing_is_refused() {
    let hold = alone().await;
    let log = Log {
        cluster: &hold.cluster,
        since: MicroTime(Timestamp::now()),
    };
    start_the_operator_anew(&hold.client).await;
    exercise_the_plugin(&hold).await;
    exercise_offers(&hold.client, &log).await;
    let space = Space::restricted(&hold.client).await;
    exercise_a_deployment(&space, &log).await;
    exercise_a_taken_name(&hold.cluster, &space, &log).await;
    delete_all(&space).await;

    let granted = granted(&hold.client).await;
    assert!(granted.len() > 20, "{granted:#?}");
    let wildcards: Vec<_> = granted
        .iter()
        .filter(|right| format!("{right:?}").contains('*'))
        .collect();
    assert!(wildcards.is_empty(), "{wildcards:?}");
    let unseen = unseen(&granted);
    assert_eq!(
        unseen.len(),
        UNSEEN.len(),
        "each exception is of something that is granted"
    );
    let expected: BTreeSet<Right> = granted.difference(&unseen).cloned().collect();
    eventually(
        "each right that is granted is used, but for what cannot be seen",
        async || {
            Ok(expected
                .difference(&used(&log.requests()))
                .cloned()
                .collect::<Vec<_>>())
        },
        Vec::is_empty,
    )
    .await;
    let requests = log.requests();
    let more: Vec<_> = used(&requests).difference(&expected).cloned().collect();
    assert!(
        more.is_empty(),
        "used and not granted by a role of Creo's: {more:#?}"
    );
    let refused: Vec<_> = requests
        .iter()
        .filter(|request| matches!(request.code(), 401 | 403))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    space.remove().await;
}
