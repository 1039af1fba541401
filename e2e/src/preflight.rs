//! What a machine must have for a local cluster, looked at before anything
//! starts, each lack said in one sentence.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::Uid;

use crate::{
    cgroups::Hierarchies,
    command,
    error::{Error, Result},
};

/// The programs that are called, and the Debian package of each.
const PROGRAMS: [(&str, &str); 10] = [
    ("conntrack", "conntrack"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("nft", "nftables"),
    ("nsenter", "util-linux"),
    ("runc", "runc"),
    ("unshare", "util-linux"),
    ("mknod", "coreutils"),
    ("go", "golang (1.26 or newer)"),
];

/// Where Debian puts the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// inotify instances that a control plane uses, with some to spare.
const INOTIFY_CONTROL_PLANE: usize = 12;
/// inotify instances that a node and what runs on it use, with some to spare.
const INOTIFY_NODE: usize = 12;

/// Looks whether this machine can run a cluster of so many nodes.
///
/// # Errors
///
/// [`Error::Machine`] with the first thing that is missing and what to do.
pub fn check(nodes: u8) -> Result<Hierarchies> {
    if !Uid::effective().is_root() {
        return Err(Error::Machine(
            "a local cluster makes namespaces, mounts and cgroups and so needs root: run it with sudo".to_owned(),
        ));
    }
    let hierarchies = Hierarchies::find()?;
    programs()?;
    overlay()?;
    namespaces()?;
    inotify(INOTIFY_CONTROL_PLANE + INOTIFY_NODE * usize::from(nodes))?;
    Ok(hierarchies)
}

fn programs() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .into_iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| package)
        .chain(
            (!Path::new(CNI_PLUGINS).join("bridge").exists())
                .then_some("containernetworking-plugins"),
        )
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Machine(format!(
        "missing on this machine: {}; `make deps` installs what Debian has",
        missing.join(", ")
    )))
}

/// The full path of a program on the `PATH`.
#[must_use]
pub fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
}

/// Where these run out, components of Kubernetes end with "too many open files".
fn inotify(needed: usize) -> Result<()> {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_instances");
    let Some(limit) = limit
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok())
    else {
        return Ok(());
    };
    let used = inotify_instances_in_use();
    if used + needed <= limit {
        return Ok(());
    }
    Err(Error::Machine(format!(
        "root may have {limit} inotify instances on this machine, {used} are in use and this cluster needs about {needed}: \
         end another cluster, or raise the limit (sysctl fs.inotify.max_user_instances=1024)"
    )))
}

fn inotify_instances_in_use() -> usize {
    let Ok(processes) = fs::read_dir("/proc") else {
        return 0;
    };
    processes
        .flatten()
        .filter_map(|process| fs::read_dir(process.path().join("fd")).ok())
        .flat_map(Iterator::flatten)
        .filter(|descriptor| {
            fs::read_link(descriptor.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:inotify")
        })
        .count()
}

fn overlay() -> Result<()> {
    let known = |text: &str| text.lines().any(|line| line.ends_with("\toverlay"));
    if fs::read_to_string("/proc/filesystems").is_ok_and(|text| known(&text)) {
        return Ok(());
    }
    // On many machines the module is loaded by the first that asks for it.
    let _ = Command::new("modprobe").arg("overlay").output();
    if fs::read_to_string("/proc/filesystems").is_ok_and(|text| known(&text)) {
        return Ok(());
    }
    Err(Error::Machine(
        "this machine's kernel has no overlay file system, which containerd needs (modprobe overlay)".to_owned(),
    ))
}

/// Tries in namespaces that end with the command what the cluster does in its own.
fn namespaces() -> Result<()> {
    let tries = [
        (
            "true",
            "this machine does not allow new mount, network and process namespaces",
        ),
        (
            "ip link add creo0 type bridge && ip link add creo1 type veth peer name creo2",
            "this machine's kernel has no bridge or veth network devices",
        ),
        (
            "nft add table inet creo && nft add chain inet creo c '{ type nat hook output priority 0; }'",
            "this machine's kernel has no nftables with NAT, which kube-proxy needs",
        ),
        (
            "iptables -t nat -L -n",
            "iptables does not work on this machine, and the CNI plugins need it",
        ),
    ];
    for (script, sentence) in tries {
        let mut unshare = Command::new("unshare");
        unshare.args([
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-ec",
            script,
        ]);
        if let Err(error) = command::output(&mut unshare) {
            return Err(Error::Machine(format!("{sentence} ({error})")));
        }
    }
    Ok(())
}
