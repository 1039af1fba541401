//! The machine's processes and the kubelet's folders, as far as they tell whose a process is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::cgroup::{Base, Group, group};
use super::{PodName, Whose};

/// Most processes that are looked at in one go; those beyond are not known.
const PROCESSES_MAX: usize = 4_096;
/// Most folders of pods that are looked at.
const FOLDERS_MAX: usize = 10_000;
/// Most bytes that are read of a file of a process.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Where the machine's processes and pods are seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The kernel's `/proc`.
    pub procfs: PathBuf,
    /// Where the kubelet keeps the logs of pods.
    pub pod_logs: PathBuf,
}

/// Why it cannot be told whose processes are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Blind {
    /// This process has process numbers of its own.
    #[error("the plugin does not see the machine's processes; give its pod hostPID: true")]
    OwnProcesses,
    /// The kubelet's folders cannot be read.
    #[error("the pods' logs in {} cannot be read: {why}; mount that directory, or name it with --pod-logs-dir", directory.display())]
    PodLogs {
        /// Where they should be.
        directory: PathBuf,
        /// What went wrong.
        why: String,
    },
}

/// What was told of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Whose each of them is; nothing where not even their numbers mean anything.
    pub whose: Option<BTreeMap<u32, Whose>>,
    /// Why more could not be told.
    pub blind: Option<Blind>,
}

impl Host {
    /// Whose each of these processes is. It waits for the kernel and for the disk.
    #[must_use]
    pub fn whose(&self, pids: &BTreeSet<u32>) -> Told {
        let base = match self.own_groups() {
            Ok(own) => Base::of(&own),
            Err(blind) => {
                return Told {
                    whose: None,
                    blind: Some(blind),
                };
            }
        };
        let groups: BTreeMap<u32, Option<Group>> = pids
            .iter()
            .take(PROCESSES_MAX)
            .map(|pid| (*pid, self.group(*pid, &base)))
            .collect();
        let is_pod = |group: &Option<Group>| matches!(group, Some(Group::Pod(_)));
        // Nobody needs the folders where no pod runs anything.
        let (names, blind) = if groups.values().any(is_pod) {
            self.pods()
                .map_or_else(|blind| (BTreeMap::new(), Some(blind)), |pods| (pods, None))
        } else {
            (BTreeMap::new(), None)
        };
        let judge = |pid| match groups.get(&pid) {
            Some(None) => Whose::Gone,
            Some(Some(Group::Outside)) => Whose::Owner,
            Some(Some(Group::Pod(uid))) => {
                names.get(uid).cloned().map_or(Whose::Unknown, Whose::Pod)
            }
            Some(Some(Group::Unclear)) | None => Whose::Unknown,
        };
        Told {
            whose: Some(pids.iter().map(|pid| (*pid, judge(*pid))).collect()),
            blind,
        }
    }

    /// The groups of this process, if the numbers that it sees are the machine's.
    fn own_groups(&self) -> Result<String, Blind> {
        let read = |process: &str| read(&self.procfs.join(process).join("cgroup"));
        // In a pod of its own numbers, the first process is this one or the pod's.
        let is_first =
            fs::read_link(self.procfs.join("self")).is_ok_and(|own| own == Path::new("1"));
        let own = read("self").map_err(|_| Blind::OwnProcesses)?;
        let first = read("1").map_err(|_| Blind::OwnProcesses)?;
        let is_in_pod = matches!(group(&first, &Base::of(&own)), Group::Pod(_));
        if is_first || is_in_pod {
            return Err(Blind::OwnProcesses);
        }
        Ok(own)
    }

    /// What the groups of this process say; nothing where it has ended.
    fn group(&self, pid: u32, base: &Base) -> Option<Group> {
        let process = self.procfs.join(pid.to_string());
        let groups = match read(&process.join("cgroup")) {
            Ok(groups) => groups,
            Err(error) if is_gone(&error) => return None,
            Err(_) => return Some(Group::Unclear),
        };
        // One that has ended and waits for its parent is in the first group of all.
        match read(&process.join("stat")) {
            Ok(stat) if has_ended(&stat) => None,
            Ok(_) => Some(group(&groups, base)),
            Err(error) if is_gone(&error) => None,
            Err(_) => Some(Group::Unclear),
        }
    }

    /// The pods of this machine by UID. Of those with one name the one that was made last; the
    /// others are not running any more, or should not be.
    fn pods(&self) -> Result<BTreeMap<String, PodName>, Blind> {
        let blind = |error: io::Error| Blind::PodLogs {
            directory: self.pod_logs.clone(),
            why: error.to_string(),
        };
        let mut newest = BTreeMap::<PodName, (Option<SystemTime>, String)>::new();
        for entry in fs::read_dir(&self.pod_logs)
            .map_err(blind)?
            .take(FOLDERS_MAX)
        {
            let entry = entry.map_err(blind)?;
            let Some((pod, uid)) = entry.file_name().to_str().and_then(pod) else {
                continue;
            };
            let made = entry.metadata().and_then(|folder| folder.created()).ok();
            let of_name = newest.entry(pod).or_insert((made, uid.clone()));
            if made > of_name.0 {
                *of_name = (made, uid);
            }
        }
        let by_uid = newest.into_iter().map(|(pod, (_, uid))| (uid, pod));
        Ok(by_uid.collect())
    }
}

/// The pod and its UID in the name of its folder, `NAMESPACE_NAME_UID`. None of the three has
/// an underscore.
fn pod(folder: &str) -> Option<(PodName, String)> {
    let mut parts = folder.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let is_complete =
        parts.next().is_none() && [namespace, name, uid].iter().all(|part| !part.is_empty());
    is_complete.then(|| {
        let pod = PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        (pod, uid.to_owned())
    })
}

/// Whether the process' line of state says that it has ended. The state follows the program's
/// name, which is in brackets and may hold brackets itself.
fn has_ended(stat: &str) -> bool {
    stat.rsplit_once(") ")
        .is_some_and(|(_, state)| state.starts_with(['Z', 'X', 'x']))
}

/// A process that ends while its file is read gives "no such process" and not "no such file".
fn is_gone(error: &io::Error) -> bool {
    const NO_SUCH_PROCESS: i32 = 3;
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(NO_SUCH_PROCESS)
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use tempfile::TempDir;

    /// A machine with processes and folders of pods; the plugin is process 100 in a pod.
    struct Machine(TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(machine.0.path().join("pods")).unwrap();
            machine.process(1, "/init.scope", 'S');
            machine.process(100, "/kubepods/poda/plugin", 'S');
            symlink("100", machine.0.path().join("self")).unwrap();
            machine
        }

        fn process(&self, pid: u32, group: &str, state: char) {
            let directory = self.0.path().join(pid.to_string());
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup"), format!("0::{group}\n")).unwrap();
            let stat = format!("{pid} (a) Z (b) {state} 1 1 1\n");
            fs::write(directory.join("stat"), stat).unwrap();
        }

        fn pod(&self, folder: &str) {
            fs::create_dir(self.0.path().join("pods").join(folder)).unwrap();
        }

        fn host(&self) -> Host {
            Host {
                procfs: self.0.path().to_owned(),
                pod_logs: self.0.path().join("pods"),
            }
        }

        fn whose(&self, pids: &[u32]) -> Vec<Whose> {
            let pids = pids.iter().copied().collect();
            let whose = self.host().whose(&pids).whose.unwrap();
            whose.into_values().collect()
        }
    }

    fn pod_of(namespace: &str, name: &str) -> Whose {
        Whose::Pod(PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    #[test]
    fn processes_are_the_owner_s_a_pod_s_nobody_s_or_unknown() {
        let machine = Machine::new();
        machine.pod("tenant_engine-0_u1");
        machine.process(7, "/user.slice", 'R');
        machine.process(8, "/kubepods/burstable/podu1/c", 'S');
        machine.process(9, "/kubepods/burstable/podu2/c", 'S');
        machine.process(10, "/kubepods", 'S');
        machine.process(11, "/", 'Z');
        assert_eq!(
            machine.whose(&[7, 8, 9, 10, 11, 12]),
            [
                Whose::Owner,
                pod_of("tenant", "engine-0"),
                Whose::Unknown,
                Whose::Unknown,
                Whose::Gone,
                Whose::Gone,
            ]
        );
        assert_eq!(machine.whose(&[]), []);
    }

    #[test]
    fn of_two_pods_with_one_name_it_is_the_one_that_was_made_last() {
        let machine = Machine::new();
        machine.process(8, "/kubepods/podold/c", 'S');
        machine.process(9, "/kubepods/podnew/c", 'S');
        machine.pod("tenant_engine-0_old");
        // The clock of files has steps.
        let folder = |name: &str| machine.host().pod_logs.join(name);
        let made = |name: &str| fs::metadata(folder(name)).unwrap().created().unwrap();
        machine.pod("tenant_engine-0_new");
        while made("tenant_engine-0_new") == made("tenant_engine-0_old") {
            fs::remove_dir(folder("tenant_engine-0_new")).unwrap();
            machine.pod("tenant_engine-0_new");
        }
        assert_eq!(
            machine.whose(&[8, 9]),
            [Whose::Unknown, pod_of("tenant", "engine-0")]
        );
    }

    #[test]
    fn folders_that_are_no_pod_s_are_passed_over() {
        let machine = Machine::new();
        machine.process(8, "/kubepods/podu1/c", 'S');
        for folder in ["u1", "_u1", "a_u1", "a__u1", "a_b_c_u1", "a_b_"] {
            machine.pod(folder);
        }
        assert_eq!(machine.whose(&[8]), [Whose::Unknown]);
    }

    #[test]
    fn without_the_machine_s_processes_it_says_so() {
        let machine = Machine::new();
        // The plugin is the first process of a pod, or has that pod's for one.
        machine.process(1, "/kubepods/poda/pause", 'S');
        let blind = Told {
            whose: None,
            blind: Some(Blind::OwnProcesses),
        };
        assert_eq!(machine.host().whose(&BTreeSet::new()), blind);
        assert!(Blind::OwnProcesses.to_string().contains("hostPID"));
        machine.process(1, "/init.scope", 'S');
        fs::remove_file(machine.0.path().join("self")).unwrap();
        symlink("1", machine.0.path().join("self")).unwrap();
        assert_eq!(machine.host().whose(&BTreeSet::new()), blind);
    }

    #[test]
    fn folders_that_cannot_be_read_are_said_only_where_they_matter() {
        let machine = Machine::new();
        fs::remove_dir(machine.host().pod_logs).unwrap();
        machine.process(7, "/user.slice", 'R');
        assert_eq!(machine.whose(&[7]), [Whose::Owner]);
        machine.process(8, "/kubepods/podu1/c", 'S');
        let told = machine.host().whose(&[7, 8].into());
        let whose = [(7, Whose::Owner), (8, Whose::Unknown)].into();
        assert_eq!(told.whose, Some(whose));
        let blind = told.blind.unwrap().to_string();
        assert!(blind.contains("--pod-logs-dir"), "{blind}");
    }

    #[test]
    fn a_real_process_that_ends_is_nobody_s() {
        let host = Host {
            procfs: PathBuf::from("/proc"),
            pod_logs: PathBuf::from("/nonexistent"),
        };
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let base = Base::default();
        assert!(host.group(child.id(), &base).is_some());
        child.kill().unwrap();
        // Ended and not waited for, until this process asks.
        while host.group(child.id(), &base).is_some() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(host.group(child.id(), &base), None);
    }
}
