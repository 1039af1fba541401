//! A stage: a namespace of its own, an operator behind a fault proxy, and an
//! observer that sees every state that the objects go through.

mod invariants;
mod observer;
mod operator;
mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use creo_api::AgentDeployment;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

pub(super) use self::observer::{Kind, Observer};
pub(super) use self::operator::Operator;
pub(super) use self::snapshot::difference;
use super::plan::{Case, Failure};
use super::world::World;
use crate::fault_proxy::{Effect, FaultProxy, Report, Write};
use crate::samples;

/// Namespaces of stages carry this label, so that what a broken-off run left
/// behind is found.
const STAGE_LABEL: &str = "creo.cloud/stage";
/// Without a write for this long, the operator is at rest.
const QUIET: Duration = Duration::from_millis(1_500);
/// After what was wanted is there, rest has to follow within this.
const QUIET_LIMIT: Duration = Duration::from_secs(15);
/// The nodes have to be offered within this: a node that was cut off needs its
/// time to be seen again.
const OPEN_LIMIT: Duration = Duration::from_mins(2);
/// What an earlier stage left has to be gone within this, in seconds.
const SWEEP_LIMIT_S: i64 = 120;
const POLL: Duration = Duration::from_millis(50);

/// The deployments' field manager.
const CUSTOMER: &str = "prove";

/// A stage that is set.
pub(super) struct Stage {
    client: kube::Client,
    namespace: String,
    evidence: PathBuf,
    proxy: FaultProxy,
    pub(super) operator: Operator,
    pub(super) observer: Observer,
}

impl Stage {
    /// Clears what earlier stages left, and starts an operator in front of an
    /// empty namespace. Rules are added by `prepare` before the operator starts.
    pub(super) async fn set(
        world: &Arc<World>,
        case: &Case,
        prepare: impl FnOnce(&FaultProxy) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let client = crate::cluster::client_from(&world.admin_kubeconfig()).await?;
        // An earlier stage may have been broken off at any point.
        world.heal().await?;
        sweep(&client).await?;
        let namespace = format!("stage-{:08x}", case.seed >> 32);
        create_namespace(&client, &namespace).await?;
        let proxy = FaultProxy::start(
            world.operator_kubeconfig(),
            &world.admin_kubeconfig(),
            &case.evidence,
        )
        .await?;
        prepare(&proxy)?;
        let observer = Observer::start(&client, &namespace);
        let command = world.operator_command(proxy.kubeconfig());
        let operator = Operator::start(command, &case.evidence.join("operator.log"))?;
        proxy.set_kill_switch(operator.kill_switch());
        Ok(Self {
            client,
            namespace,
            evidence: case.evidence.clone(),
            proxy,
            operator,
            observer,
        })
    }

    /// Waits until every node is offered with all its GPUs free.
    pub(super) async fn open(&self, world: &World) -> Result<(), Failure> {
        let nodes = world.nodes().len();
        let gpus = world.gpus_per_node();
        let offered = move |observer: &Observer| {
            let objects = observer.objects();
            let free = objects
                .iter()
                .filter(|((kind, _), node)| {
                    *kind == Kind::CreoNode && node["status"]["capacity"]["gpusFree"] == gpus
                })
                .count();
            if free == nodes {
                Ok(())
            } else {
                Err(format!(
                    "{free} of {nodes} nodes have all their {gpus} GPUs free"
                ))
            }
        };
        self.settle("the offer of all GPUs", OPEN_LIMIT, offered)
            .await?;
        Ok(())
    }

    fn deployments(&self) -> Api<AgentDeployment> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies a small chat deployment, changed as the customer wants it.
    pub(super) async fn apply(
        &self,
        name: &str,
        change: impl FnOnce(&mut AgentDeployment),
    ) -> Result<(), Failure> {
        let mut wanted = samples::tiny_chat(name)?;
        change(&mut wanted);
        let params = PatchParams::apply(CUSTOMER).force();
        self.deployments()
            .patch(name, &params, &Patch::Apply(&wanted))
            .await?;
        Ok(())
    }

    /// Scales a deployment as `kubectl scale` does.
    pub(super) async fn scale(&self, name: &str, replicas: usize) -> Result<(), Failure> {
        let scale = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.deployments()
            .patch_scale(name, &PatchParams::default(), &scale)
            .await?;
        Ok(())
    }

    /// Deletes a deployment as `kubectl delete` does.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Failure> {
        self.deployments()
            .delete(name, &DeleteParams::background())
            .await?;
        Ok(())
    }

    /// Waits until `reached` says yes of the observed objects, then until the
    /// operator is at rest. Fails as soon as an invariant is broken.
    pub(super) async fn settle(
        &self,
        what: &str,
        limit: Duration,
        reached: impl Fn(&Observer) -> Result<(), String>,
    ) -> Result<Duration, Failure> {
        let began = Instant::now();
        let mut last;
        loop {
            self.check()?;
            match reached(&self.observer) {
                Ok(()) => break,
                Err(state) => last = state,
            }
            if began.elapsed() > limit {
                // A panic explains more than what it has prevented.
                self.operator.check_log()?;
                return Err(Failure::new(format!(
                    "{what} was not reached within {} s; last seen: {last}",
                    limit.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        let took = began.elapsed();
        self.rest(what).await?;
        // What was reached must still be so.
        reached(&self.observer)
            .map_err(|state| Failure::new(format!("{what} was reached and left again: {state}")))?;
        Ok(took)
    }

    /// Waits until the operator has written nothing for a while.
    async fn rest(&self, what: &str) -> Result<(), Failure> {
        let mut began = Instant::now();
        let mut writes = self.writes().len();
        let mut since = Instant::now();
        while since.elapsed() < QUIET {
            if self.proxy.is_disturbing() {
                // An operator without news is quiet too; that is no rest.
                (began, since) = (Instant::now(), Instant::now());
            }
            if began.elapsed() > QUIET_LIMIT {
                let writes = self.writes();
                let recent: Vec<String> = writes
                    .iter()
                    .rev()
                    .take(5)
                    .map(|write| format!("{} ({:?})", write.request, write.effect()))
                    .collect();
                return Err(Failure::new(format!(
                    "after {what} the operator does not come to rest: {}",
                    recent.join(", ")
                )));
            }
            tokio::time::sleep(POLL).await;
            self.check()?;
            let now = self.writes().len();
            if now != writes {
                (writes, since) = (now, Instant::now());
            }
        }
        Ok(())
    }

    /// Fails when the operator has written anything within `span`.
    pub(super) async fn stays_quiet(&self, span: Duration) -> Result<(), Failure> {
        let before = self.writes().len();
        tokio::time::sleep(span).await;
        self.check()?;
        let writes = self.writes();
        let new: Vec<String> = writes
            .iter()
            .skip(before)
            .take(5)
            .map(|write| format!("{} ({:?})", write.request, write.effect()))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} writes in {} s of rest: {}",
            writes.len() - before,
            span.as_secs(),
            new.join(", ")
        )))
    }

    /// Fails when an invariant was broken or the operator keeps ending.
    pub(super) fn check(&self) -> Result<(), Failure> {
        self.observer.check()?;
        self.operator.check_exits()
    }

    /// The operator's writes, without its lease and its events, which follow
    /// from the clock.
    pub(super) fn writes(&self) -> Vec<Write> {
        let mut writes = self.proxy.writes();
        writes.retain(is_counted);
        writes
    }

    /// What is there now, with all masked that differs between two runs.
    pub(super) fn snapshot(&self, world: &World) -> String {
        snapshot::snapshot(&self.observer.objects(), &self.namespace, &world.nodes())
    }

    /// Writes down what there is and what the operator has written.
    pub(super) fn testify(&self) -> Result<(), Failure> {
        let objects: Vec<_> = self.observer.objects().into_values().collect();
        let write = |name: &str, json: String| std::fs::write(self.evidence.join(name), json);
        write("objects.json", serde_json::to_string_pretty(&objects)?)?;
        write(
            "writes.json",
            serde_json::to_string_pretty(&self.proxy.writes())?,
        )?;
        Ok(())
    }

    /// Ends the operator in an orderly way and removes the namespace.
    pub(super) async fn strike(self) -> Result<Report, Failure> {
        let ended = self.operator.stop().await;
        self.observer.stop().await;
        let report = self.proxy.stop().await?;
        let namespaces: Api<Namespace> = Api::all(self.client);
        namespaces
            .delete(&self.namespace, &DeleteParams::background())
            .await?;
        ended?;
        Ok(report)
    }
}

/// Whether a write counts as the operator's work. The lease is renewed by the
/// clock, and events tell what happened without being part of it.
pub(super) fn is_counted(write: &Write) -> bool {
    !matches!(write.request.resource.as_str(), "leases" | "events")
}

/// How often each kind of object was created and deleted by these writes.
pub(super) fn effects(writes: &[Write]) -> std::collections::BTreeMap<(String, Effect), usize> {
    let mut counts = std::collections::BTreeMap::new();
    for write in writes.iter().filter(|write| is_counted(write)) {
        let effect = write.effect();
        if matches!(effect, Effect::Created | Effect::Deleted) {
            *counts.entry((write.request.kind(), effect)).or_default() += 1;
        }
    }
    counts
}

async fn create_namespace(client: &kube::Client, name: &str) -> Result<(), Failure> {
    let labels = [
        (STAGE_LABEL, "true"),
        ("pod-security.kubernetes.io/enforce", "restricted"),
    ];
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(
                labels
                    .into_iter()
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            ),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

/// Deletes the namespaces of earlier stages. It is not waited for: a stage opens
/// when all GPUs are free. One that does not go away is a finding.
async fn sweep(client: &kube::Client) -> Result<(), Failure> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let stages = ListParams::default().labels(STAGE_LABEL);
    for left in namespaces.list_metadata(&stages).await? {
        let Some(name) = left.metadata.name else {
            continue;
        };
        let Some(Time(since)) = left.metadata.deletion_timestamp else {
            namespaces
                .delete(&name, &DeleteParams::background())
                .await?;
            continue;
        };
        let age_s = Timestamp::now().as_second() - since.as_second();
        if age_s > SWEEP_LIMIT_S {
            return Err(Failure::new(format!(
                "the namespace {name} of an earlier stage has not gone away within {age_s} s"
            )));
        }
    }
    Ok(())
}
