//! Follows who uses each GPU.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::host::{Blind, Host};
use super::tracker::{Patience, Tracker};
use super::{PodName, Use, Uses, Whose, judge};
use crate::driver::Readings;
use crate::pod_resources::PodsByDevice;

/// Looks at whose the processes on each GPU are, and tells.
#[derive(Debug)]
pub struct Watcher {
    /// Where processes and pods are seen.
    pub host: Host,
    /// Time between two looks.
    pub every: Duration,
    /// How long things must last to be published.
    pub patience: Patience,
    /// What the driver says of each card, with the processes on it.
    pub readings: watch::Receiver<Readings>,
    /// What the kubelet says of which pod has which device; nothing while it does not say.
    pub pods: watch::Receiver<Option<PodsByDevice>>,
    /// Has the kubelet asked anew, since a pod on a GPU may be newer than its last answer.
    pub ask: Arc<Notify>,
    /// Who uses each GPU and partition.
    pub uses: watch::Sender<Uses>,
}

impl Watcher {
    /// Follows until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow()).await;
    }

    async fn follow(self) {
        let began = Instant::now();
        let mut tracker = Tracker::new(self.patience);
        let mut blind = None;
        let mut ticks = interval(self.every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let running = running(&self.readings.borrow());
            let whose = self.whose(&running, &mut blind).await;
            let pods = self.pods.borrow().clone();
            let seen = seen(&running, whose.as_ref(), pods.as_ref());
            if seen
                .values()
                .any(|seen| matches!(seen, Use::Intruder { .. }))
            {
                self.ask.notify_one();
            }
            self.publish(tracker.update(seen, began.elapsed()));
        }
    }

    /// Whose each process is; nothing where it cannot be told, which is said once.
    async fn whose(
        &self,
        running: &BTreeMap<String, Running>,
        blind: &mut Option<Blind>,
    ) -> Option<BTreeMap<u32, Whose>> {
        let pids: BTreeSet<u32> = running
            .values()
            .filter_map(|running| running.pids.as_ref())
            .flatten()
            .copied()
            .collect();
        let host = self.host.clone();
        // A task that was stopped knows nothing, as one that is blind.
        let told = tokio::task::spawn_blocking(move || host.whose(&pids))
            .await
            .ok()?;
        match told.blind {
            None if blind.take().is_some() => {
                tracing::info!("it can be told again whose the processes on the GPUs are");
            }
            Some(why) if blind.as_ref() != Some(&why) => {
                tracing::warn!("it cannot be told whose the processes on the GPUs are: {why}");
                *blind = Some(why);
            }
            None | Some(_) => {}
        }
        told.whose
    }

    fn publish(&self, uses: Uses) {
        self.uses.send_if_modified(|current| {
            if *current == uses {
                return false;
            }
            for (uuid, now) in &uses {
                let before = current.get(uuid).map_or("", Use::word);
                if before != now.word() {
                    tell(uuid, now);
                }
            }
            *current = uses;
            true
        });
    }
}

fn tell(uuid: &str, now: &Use) {
    match now {
        Use::Intruder { pods, pids } => {
            let pods: Vec<String> = pods.iter().map(PodName::to_string).collect();
            tracing::error!(
                gpu = uuid,
                pods = pods.join(", "),
                ?pids,
                "processes of a pod that was not given the GPU run on it; find out how it got there, and end the pod"
            );
        }
        Use::OwnerBusy { pids } => {
            tracing::info!(gpu = uuid, ?pids, "the machine's owner uses the GPU");
        }
        Use::Idle | Use::Ours | Use::Unknown => {
            tracing::debug!(gpu = uuid, now = now.word(), "the use of the GPU changed");
        }
    }
}

/// What runs on one GPU or partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Running {
    /// The processes, where the driver tells.
    pids: Option<BTreeSet<u32>>,
    /// The UUIDs by which a pod may have it: its own and, of a card, those of its partitions.
    units: BTreeSet<String>,
}

/// What runs on each GPU and partition, by UUID.
fn running(readings: &Readings) -> BTreeMap<String, Running> {
    let mut all = BTreeMap::new();
    for (uuid, reading) in readings {
        let mut card = Running {
            pids: reading
                .processes
                .as_ref()
                .map(|pids| pids.iter().copied().collect()),
            units: [uuid.clone()].into(),
        };
        for (partition, reading) in &reading.partitions {
            let pids: Option<BTreeSet<u32>> = reading
                .processes
                .as_ref()
                .map(|pids| pids.iter().copied().collect());
            // The driver lists processes of partitions for the card as well, or it does not.
            if let (Some(of_card), Some(of_partition)) = (&mut card.pids, &pids) {
                of_card.extend(of_partition);
            }
            card.units.insert(partition.clone());
            let running = Running {
                pids,
                units: [partition.clone()].into(),
            };
            all.insert(partition.clone(), running);
        }
        all.insert(uuid.clone(), card);
    }
    all
}

fn seen(
    running: &BTreeMap<String, Running>,
    whose: Option<&BTreeMap<u32, Whose>>,
    pods: Option<&PodsByDevice>,
) -> Uses {
    let seen = running.iter().map(|(uuid, running)| {
        let processes = running.pids.as_ref().zip(whose).map(|(pids, whose)| {
            let whose = |pid| whose.get(pid).cloned().unwrap_or(Whose::Unknown);
            pids.iter().map(|pid| (*pid, whose(pid))).collect()
        });
        let holders = pods.map(|pods| holders(pods, &running.units));
        (uuid.clone(), judge(processes.as_ref(), holders.as_ref()))
    });
    seen.collect()
}

/// The pods that have one of these, as a whole or a share of it: the id of a share is the
/// UUID, two colons and a number.
fn holders(pods: &PodsByDevice, units: &BTreeSet<String>) -> BTreeSet<PodName> {
    pods.iter()
        .filter(|(id, _)| {
            let uuid = id.split_once("::").map_or(*id, |(uuid, _)| uuid);
            units.contains(uuid)
        })
        .map(|(_, holder)| PodName {
            namespace: holder.namespace.clone(),
            name: holder.pod.clone(),
        })
        .collect()
}
