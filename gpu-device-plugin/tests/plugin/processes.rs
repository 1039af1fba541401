//! Whose processes run on each GPU, from what driver, kernel and kubelet say to what is told.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::Duration;

use creo_gpu_device_plugin::driver::session::{PartitionReading, Reading};
use creo_gpu_device_plugin::driver::{Pace, Readings};
use creo_gpu_device_plugin::pod_resources::{Holder, PodsByDevice};
use creo_gpu_device_plugin::processes::host::Host;
use creo_gpu_device_plugin::processes::tracker::Patience;
use creo_gpu_device_plugin::processes::watcher::Watcher;
use creo_gpu_device_plugin::processes::{PodName, Use, Uses};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::machine::PATIENCE;

/// A machine with a plugin that looks all the time and believes what it sees.
struct Machine {
    root: TempDir,
    readings: watch::Sender<Readings>,
    pods: watch::Sender<Option<PodsByDevice>>,
    uses: watch::Receiver<Uses>,
    ask: Arc<Notify>,
    _stop: DropGuard,
}

impl Machine {
    /// The plugin has the machine's process numbers, or its own.
    fn new(host_pids: bool) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc")).unwrap();
        fs::create_dir_all(root.path().join("pods")).unwrap();
        let (readings, readings_seen) = watch::channel(Readings::new());
        let (pods, pods_seen) = watch::channel(Some(PodsByDevice::default()));
        let (sender, uses) = watch::channel(Uses::new());
        let (ask, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let watcher = Watcher {
            host: Host {
                procfs: root.path().join("proc"),
                pod_logs: root.path().join("pods"),
            },
            every: Duration::from_millis(10),
            patience: Patience {
                quiet: Duration::ZERO,
                sure: Duration::ZERO,
            },
            readings: readings_seen,
            pods: pods_seen,
            ask: Arc::clone(&ask),
            uses: sender,
        };
        let machine = Self {
            root,
            readings,
            pods,
            uses,
            ask,
            _stop: stop.clone().drop_guard(),
        };
        let plugin = if host_pids { 100 } else { 1 };
        machine.process(1, "/init.scope");
        machine.process(plugin, "/kubepods/poda/plugin");
        symlink(plugin.to_string(), machine.root.path().join("proc/self")).unwrap();
        tokio::spawn(watcher.run(stop));
        machine
    }

    fn process(&self, pid: u32, group: &str) {
        let directory = self.root.path().join("proc").join(pid.to_string());
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("cgroup"), format!("0::{group}\n")).unwrap();
        fs::write(directory.join("stat"), format!("{pid} (x) S 1\n")).unwrap();
    }

    /// A pod with one process.
    fn pod(&self, name: &str, pid: u32) {
        let folder = format!("tenant_{name}_uid-{name}");
        fs::create_dir(self.root.path().join("pods").join(folder)).unwrap();
        self.process(pid, &format!("/kubepods/burstable/poduid-{name}/c"));
    }

    /// These processes run on the card, and these on its partitions.
    fn runs(&self, card: &[u32], partitions: &[(&str, &[u32])]) {
        let partitions = partitions.iter().map(|(uuid, pids)| {
            let reading = PartitionReading {
                processes: Some(pids.to_vec()),
                ..PartitionReading::default()
            };
            ((*uuid).to_owned(), reading)
        });
        let reading = Reading {
            processes: Some(card.to_vec()),
            partitions: partitions.collect(),
            ..Reading::default()
        };
        let readings = BTreeMap::from([("GPU-1".to_owned(), Arc::new(reading))]);
        self.readings.send_replace(readings);
    }

    /// These pods have these devices.
    fn has(&self, pairs: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|(device, pod)| {
            let holder = Holder {
                namespace: "tenant".to_owned(),
                pod: (*pod).to_owned(),
                container: "engine".to_owned(),
                resource: "creo.cloud/gpu".to_owned(),
            };
            (*device, holder)
        });
        self.pods.send_replace(Some(pairs.collect()));
    }

    async fn until(&mut self, uuid: &str, expected: Use) {
        let found = self.uses.wait_for(|uses| uses.get(uuid) == Some(&expected));
        let in_time = timeout(PATIENCE, found).await.is_ok();
        let at_last = self.uses.borrow().clone();
        assert!(
            in_time,
            "{uuid} never was {expected:?}; at last: {at_last:?}"
        );
    }
}

fn intruder(pod: &str, pids: &[u32]) -> Use {
    let pod = PodName {
        namespace: "tenant".to_owned(),
        name: pod.to_owned(),
    };
    Use::Intruder {
        pods: [pod].into(),
        pids: pids.iter().copied().collect(),
    }
}

#[tokio::test]
async fn a_card_is_idle_ours_the_owner_s_or_an_intruder_s() {
    let mut machine = Machine::new(true);
    machine.pod("ours", 7);
    machine.pod("other", 8);
    machine.process(9, "/user.slice/game.scope");
    machine.has(&[("GPU-1", "ours"), ("GPU-2", "other")]);
    machine.runs(&[], &[]);
    machine.until("GPU-1", Use::Idle).await;
    machine.runs(&[7], &[]);
    machine.until("GPU-1", Use::Ours).await;
    machine.runs(&[7, 9], &[]);
    machine
        .until("GPU-1", Use::OwnerBusy { pids: [9].into() })
        .await;
    machine.runs(&[7, 8, 9], &[]);
    machine.until("GPU-1", intruder("other", &[8])).await;
    // It may be a pod that the kubelet has not told of yet.
    timeout(PATIENCE, machine.ask.notified()).await.unwrap();
    machine.has(&[("GPU-1", "ours"), ("GPU-1", "other")]);
    machine.runs(&[7, 8], &[]);
    machine.until("GPU-1", Use::Ours).await;
    machine.runs(&[10], &[]);
    machine.until("GPU-1", Use::Idle).await;
}

#[tokio::test]
async fn whoever_has_a_share_has_the_card_and_a_partition_is_its_holder_s_alone() {
    let mut machine = Machine::new(true);
    machine.pod("one", 7);
    machine.pod("two", 8);
    machine.has(&[
        ("GPU-1::0", "one"),
        ("GPU-1::1", "two"),
        ("GPU-10", "three"),
    ]);
    machine.runs(&[7, 8], &[]);
    machine.until("GPU-1", Use::Ours).await;
    machine.has(&[("MIG-1", "one"), ("MIG-2", "two")]);
    machine.runs(&[], &[("MIG-1", &[7]), ("MIG-2", &[7])]);
    machine.until("MIG-1", Use::Ours).await;
    machine.until("MIG-2", intruder("one", &[7])).await;
    // Of the card, it has a part.
    machine.until("GPU-1", Use::Ours).await;
}

#[tokio::test]
async fn nothing_is_said_of_pods_while_the_kubelet_does_not_say_who_has_what() {
    let mut machine = Machine::new(true);
    machine.pod("ours", 7);
    machine.process(9, "/user.slice");
    machine.has(&[("GPU-1", "ours")]);
    machine.runs(&[7], &[]);
    machine.until("GPU-1", Use::Ours).await;
    machine.pods.send_replace(None);
    machine.until("GPU-1", Use::Unknown).await;
    machine.runs(&[7, 9], &[]);
    machine
        .until("GPU-1", Use::OwnerBusy { pids: [9].into() })
        .await;
}

#[tokio::test]
async fn without_the_machine_s_process_numbers_no_card_counts_as_idle() {
    let mut machine = Machine::new(false);
    machine.runs(&[], &[]);
    machine.until("GPU-1", Use::Unknown).await;
}

#[tokio::test]
async fn what_the_driver_lists_is_judged() {
    let cards = crate::machine::Machine::new("t4", 1);
    let uuid = cards.uuid(0);
    let mut machine = Machine::new(true);
    machine.pod("ours", 7);
    machine.process(9, "/user.slice/game.scope");
    machine.has(&[(&uuid, "ours")]);
    let pace = Pace {
        poll: Duration::from_millis(20),
        ..Pace::default()
    };
    let _following = cards.watch_telling(pace, machine.readings.clone());
    machine.until(&uuid, Use::Idle).await;
    cards.inject(0, "process 7 compute 100");
    machine.until(&uuid, Use::Ours).await;
    cards.inject(0, "process 9 graphics 100");
    machine
        .until(&uuid, Use::OwnerBusy { pids: [9].into() })
        .await;
    cards.inject(0, "process 9 gone");
    machine.until(&uuid, Use::Ours).await;
}
