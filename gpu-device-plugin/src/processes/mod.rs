//! Whose processes run on each GPU.
//!
//! A machine is offered by somebody who may use it as well, and its GPUs are given to pods one
//! by one. So a process on a GPU is one of three kinds: a process of a pod that has the GPU; a
//! process outside all pods, which is the machine's owner's; or a process of a pod that does
//! *not* have the GPU, which nobody accounts for, and which must not be possible: an intruder.
//!
//! The driver tells the processes, by the numbers of the machine. To know those numbers the
//! plugin must share the machine's processes (`hostPID`); without, nothing is known and it is
//! said once. [`cgroup`] tells the pod's UID from a process' groups. The pod-resources API
//! ([`crate::pod_resources`]) tells the names of the pods that have the GPU, and no UID; what
//! joins them is the kubelet's own folder for the pod's logs, `NAMESPACE_NAME_UID` in
//! `/var/log/pods`, which is there from before the pod's first container to after its last.
//! The alternatives were worse: a process' environment says what the container wants it to
//! say, and asking the container runtime takes the right to command it. A name that was used
//! again has several folders until the kubelet clears up; the one that was made last is the
//! pod of that name.
//!
//! [`judge`] is the rule. [`tracker`] keeps its answers from flickering.

pub mod cgroup;
pub mod host;
pub mod tracker;
pub mod watcher;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A pod as people call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whose {
    /// The machine's owner's: it is in no pod.
    Owner,
    /// This pod's.
    Pod(PodName),
    /// It cannot be told.
    Unknown,
    /// Nobody's any more: it has ended.
    Gone,
}

/// Who uses a GPU or a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Use {
    /// Nobody: no process runs on it.
    Idle,
    /// Pods that have it, and nobody else.
    Ours,
    /// The machine's owner, with these processes.
    OwnerBusy {
        /// Their numbers on the machine.
        pids: BTreeSet<u32>,
    },
    /// Pods that do not have it.
    Intruder {
        /// The pods.
        pods: BTreeSet<PodName>,
        /// The numbers of their processes on the machine.
        pids: BTreeSet<u32>,
    },
    /// It cannot be told.
    Unknown,
}

impl Use {
    /// All words, in the order of the kinds.
    pub const WORDS: [&'static str; 5] = ["Idle", "InUse", "OwnerBusy", "Intruder", "Unknown"];

    /// A word for logs and machines.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Idle => "Idle",
            Self::Ours => "InUse",
            Self::OwnerBusy { .. } => "OwnerBusy",
            Self::Intruder { .. } => "Intruder",
            Self::Unknown => "Unknown",
        }
    }
}

/// Who uses each GPU and partition, by UUID.
pub type Uses = BTreeMap<String, Use>;

/// Who uses a GPU on which these processes run and that these pods have.
///
/// `processes` is nothing where the driver does not tell them, and `holders` where the kubelet
/// does not. What is known for certain goes before what is not: one intruder among processes
/// that cannot be told is an intruder.
#[must_use]
pub fn judge(processes: Option<&BTreeMap<u32, Whose>>, holders: Option<&BTreeSet<PodName>>) -> Use {
    let Some(processes) = processes else {
        return Use::Unknown;
    };
    let (mut owners, mut intruders) = (BTreeSet::new(), BTreeSet::new());
    let mut pods = BTreeSet::new();
    let (mut is_ours, mut is_unclear) = (false, false);
    for (pid, whose) in processes {
        match (whose, holders) {
            (Whose::Gone, _) => {}
            (Whose::Owner, _) => {
                owners.insert(*pid);
            }
            (Whose::Unknown, _) | (Whose::Pod(_), None) => is_unclear = true,
            (Whose::Pod(pod), Some(holders)) if holders.contains(pod) => is_ours = true,
            (Whose::Pod(pod), Some(_)) => {
                intruders.insert(*pid);
                pods.insert(pod.clone());
            }
        }
    }
    if !intruders.is_empty() {
        Use::Intruder {
            pods,
            pids: intruders,
        }
    } else if !owners.is_empty() {
        Use::OwnerBusy { pids: owners }
    } else if is_unclear {
        Use::Unknown
    } else if is_ours {
        Use::Ours
    } else {
        Use::Idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> PodName {
        PodName {
            namespace: "tenant".to_owned(),
            name: name.to_owned(),
        }
    }

    fn pids(pids: &[u32]) -> BTreeSet<u32> {
        pids.iter().copied().collect()
    }

    /// What is judged of processes with the numbers 1, 2, 3, ...
    fn judged(processes: &[Whose], holders: Option<&[&str]>) -> Use {
        let processes = (1..).zip(processes.iter().cloned()).collect();
        let holders = holders.map(|names| names.iter().map(|name| pod(name)).collect());
        judge(Some(&processes), holders.as_ref())
    }

    #[test]
    fn a_gpu_is_used_by_whoever_has_a_process_on_it() {
        use Whose::{Gone, Owner, Pod, Unknown};
        let (ours, other) = (Pod(pod("ours")), Pod(pod("other")));
        let owner_busy = |numbers: &[u32]| Use::OwnerBusy {
            pids: pids(numbers),
        };
        let intruder = |numbers: &[u32]| Use::Intruder {
            pods: [pod("other")].into(),
            pids: pids(numbers),
        };
        let holders: Option<&[&str]> = Some(&["ours"]);
        for (processes, holders, expected) in [
            (vec![], holders, Use::Idle),
            (vec![], None, Use::Idle),
            (vec![ours.clone()], holders, Use::Ours),
            (vec![ours.clone()], None, Use::Unknown),
            (vec![ours.clone(), Owner], holders, owner_busy(&[2])),
            (vec![Owner, Owner], None, owner_busy(&[1, 2])),
            (vec![other.clone()], holders, intruder(&[1])),
            (vec![other.clone()], Some(&[]), intruder(&[1])),
            (vec![other.clone()], None, Use::Unknown),
            (
                vec![other.clone(), ours.clone(), Owner, Unknown],
                holders,
                intruder(&[1]),
            ),
            (vec![Unknown], holders, Use::Unknown),
            (vec![Unknown, ours.clone()], holders, Use::Unknown),
            (vec![Unknown, Owner], holders, owner_busy(&[2])),
            (vec![Gone], holders, Use::Idle),
            (vec![Gone, ours.clone()], holders, Use::Ours),
        ] {
            let judged = judged(&processes, holders);
            assert_eq!(judged, expected, "{processes:?} {holders:?}");
        }
        assert_eq!(judge(None, Some(&BTreeSet::new())), Use::Unknown);
    }
}
