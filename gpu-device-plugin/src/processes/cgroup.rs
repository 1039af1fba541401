//! Which pod a process belongs to, from `/proc/PID/cgroup`.
//!
//! The kubelet puts every pod below a group called `kubepods`, and calls the pod's group by its
//! UID. How that reads depends on the version of cgroups, on the kubelet's cgroup driver, on
//! the pod's class of service and on the group that the kubelet itself was given as root:
//!
//! | driver | path |
//! |---|---|
//! | cgroupfs | `/kubepods/burstable/podUID/CONTAINER` |
//! | systemd | `/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice/cri-containerd-CONTAINER.scope`, dashes of the UID as underscores |
//! | with a root `kubelet` | `/kubelet/kubepods/...`, `/kubelet.slice/kubelet-kubepods.slice/...` |
//!
//! A container may make groups of its own below its group, and call them what it likes, so it
//! is the *first* pod on the path that counts. A node may itself be a container (kind), or
//! live in a pod of another cluster; what comes before its kubelet's groups is known from this
//! process, which is in a pod of that kubelet.

use std::collections::BTreeMap;

/// The group below which the kubelet puts pods.
const PODS: &str = "kubepods";
/// Longest UID that is one.
const UID_BYTES_MAX: usize = 64;

/// What the groups of a process say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Group {
    /// It is in the pod of this UID.
    Pod(String),
    /// It is in no pod: it is the machine's own.
    Outside,
    /// It cannot be told.
    Unclear,
}

/// The groups that come before the kubelet's own, by hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Base(BTreeMap<String, String>);

impl Base {
    /// The base of the kubelet that this process is in a pod of, from its own groups; nothing
    /// comes before where it is in none.
    #[must_use]
    pub fn of(own: &str) -> Self {
        let bases = lines(own).filter_map(|(hierarchy, path)| {
            let parts: Vec<&str> = parts(path).collect();
            // The last one: the process itself has no groups below its container's.
            let pods = parts.iter().rposition(|part| is_pods(part))?;
            let above = parts[..pods].iter().flat_map(|part| ["/", part]);
            Some((hierarchy.to_owned(), above.collect()))
        });
        Self(bases.collect())
    }
}

/// What these groups say; the text is that of `/proc/PID/cgroup`.
#[must_use]
pub fn group(text: &str, base: &Base) -> Group {
    let mut says = Group::Unclear;
    for (hierarchy, path) in lines(text) {
        let base = base.0.get(hierarchy).map_or("", String::as_str);
        match in_hierarchy(path, base) {
            // Of the hierarchies of cgroup v1, some may not be used for pods.
            Group::Pod(uid) => return Group::Pod(uid),
            Group::Outside => says = Group::Outside,
            // Not where another one is clear.
            Group::Unclear => return Group::Unclear,
        }
    }
    says
}

fn in_hierarchy(path: &str, base: &str) -> Group {
    if path.starts_with("/..") {
        // This process has a cgroup namespace: what is above its own group has no name. A
        // pod's group can be told by its own name, and nothing else can.
        let generated = |part| plain_uid(part).filter(|uid| is_generated(uid));
        return parts(path)
            .find_map(|part| slice_uid(part).or_else(|| generated(part)))
            .map_or(Group::Unclear, Group::Pod);
    }
    let below = path
        .strip_prefix(base)
        .filter(|below| below.is_empty() || below.starts_with('/'));
    let Some(below) = below else {
        return Group::Outside;
    };
    let mut parts = parts(below);
    // Whatever is in the way of `kubepods` there is somebody else's: the kubelet's root is
    // part of the base already, if it is known.
    if parts.by_ref().any(is_pods) {
        parts
            .find_map(|part| slice_uid(part).or_else(|| plain_uid(part)))
            .map_or(Group::Unclear, Group::Pod)
    } else {
        Group::Outside
    }
}

/// Hierarchy and path of each line.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let (_number, rest) = line.split_once(':')?;
        let (hierarchy, path) = rest.split_once(':')?;
        // The group of a process that is about to end may be gone before it is.
        Some((hierarchy, path.strip_suffix(" (deleted)").unwrap_or(path)))
    })
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty())
}

/// Whether this is `kubepods`, or systemd's `kubepods.slice` below any other slice.
fn is_pods(part: &str) -> bool {
    part == PODS
        || part
            .strip_suffix(".slice")
            .is_some_and(|slice| slice.rsplit('-').next() == Some(PODS))
}

/// The UID in the name of a pod's slice.
fn slice_uid(part: &str) -> Option<String> {
    let (above, pod) = part.strip_suffix(".slice")?.rsplit_once("-pod")?;
    above.split('-').any(|name| name == PODS).then_some(())?;
    uid(&pod.replace('_', "-"))
}

/// The UID in the name of a pod's group without systemd.
fn plain_uid(part: &str) -> Option<String> {
    uid(part.strip_prefix("pod")?)
}

fn uid(text: &str) -> Option<String> {
    let is_one = (1..=UID_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    is_one.then(|| text.to_owned())
}

/// Whether a machine made this UID: an API server a UUID, a kubelet a hash for a static pod.
/// People give UIDs to static pods as well, but where nothing else says that it is a pod, such
/// a name could be anything.
fn is_generated(uid: &str) -> bool {
    (32..=36).contains(&uid.len())
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0c4a7f7a-29f4-4c5b-9d51-6f3c2a1b0e9d";
    const SLICE: &str = "0c4a7f7a_29f4_4c5b_9d51_6f3c2a1b0e9d";
    const STATIC: &str = "5b3c1a2f4e6d8c7b9a0f1e2d3c4b5a69";

    fn v2(path: &str) -> String {
        format!("0::{path}\n")
    }

    /// What the groups say to a plugin on the machine itself.
    fn seen(text: &str) -> Group {
        group(text, &Base::default())
    }

    fn pod(uid: &str) -> Group {
        Group::Pod(uid.to_owned())
    }

    #[test]
    fn a_pod_is_told_under_every_driver_and_class_of_service() {
        for path in [
            format!("/kubepods/burstable/pod{UID}/3f0c"),
            format!("/kubepods/besteffort/pod{UID}/3f0c"),
            format!("/kubepods/pod{UID}/3f0c"),
            format!("/kubepods/pod{UID}"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SLICE}.slice/cri-containerd-3f0c.scope"
            ),
            format!("/kubepods.slice/kubepods-pod{SLICE}.slice/crio-3f0c.scope"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{SLICE}.slice/cri-containerd-3f0c.scope/init"
            ),
            // A container's own groups, whatever they are called.
            format!("/kubepods/burstable/pod{UID}/3f0c/system.slice/ssh.service"),
            format!("/kubepods/burstable/pod{UID}/3f0c/kubepods/pod{STATIC}/1"),
            // A kubelet with a root of its own, and a node that is a container.
            format!("/kubelet/kubepods/burstable/pod{UID}/3f0c"),
            format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{SLICE}.slice/cri-containerd-3f0c.scope"
            ),
            format!(
                "/system.slice/docker-77aa.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{SLICE}.slice/cri-containerd-3f0c.scope"
            ),
            format!("/docker/77aa/kubelet/kubepods/pod{UID}/3f0c"),
            // About to end.
            format!("/kubepods/pod{UID}/3f0c (deleted)"),
            // Seen from a cgroup namespace.
            format!("/../../pod{UID}/3f0c"),
            format!("/../../kubepods-burstable-pod{SLICE}.slice/cri-containerd-3f0c.scope"),
            format!("/../../../burstable/pod{UID}/3f0c"),
        ] {
            assert_eq!(seen(&v2(&path)), pod(UID), "{path}");
        }
        // The UID of a static pod is a hash.
        for path in [
            format!("/kubepods/burstable/pod{STATIC}/3f0c"),
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-3f0c.scope"
            ),
        ] {
            assert_eq!(seen(&v2(&path)), pod(STATIC), "{path}");
        }
    }

    #[test]
    fn what_is_in_no_pod_is_the_machine_s_own() {
        for path in [
            "/",
            "/init.scope",
            "/system.slice/containerd.service",
            "/user.slice/user-1000.slice/user@1000.service/app.slice/steam.scope",
            "/docker/77aa",
            "/machine.slice/libpod-77aa.scope",
            // Names that only look like it.
            "/kubepods-fake/burstable/pod1",
            "/podman/pod1",
            "/system.slice/kubepods-exporter.service",
        ] {
            assert_eq!(seen(&v2(path)), Group::Outside, "{path}");
        }
    }

    #[test]
    fn what_is_with_the_pods_and_in_none_is_unclear() {
        for path in [
            "/kubepods",
            "/kubepods/burstable",
            "/kubepods.slice/kubepods-besteffort.slice",
            "/kubepods/burstable/pod",
            "/kubepods/burstable/pod..",
            // Above a cgroup namespace nothing has a name.
            "/../../podman1",
            "/../../system.slice/containerd.service",
            "/../..",
        ] {
            assert_eq!(seen(&v2(path)), Group::Unclear, "{path}");
        }
        for text in ["", "\n", "rubbish", "0:"] {
            assert_eq!(seen(text), Group::Unclear, "{text:?}");
        }
    }

    #[test]
    fn any_hierarchy_of_the_first_version_may_know_the_pod() {
        let text = format!(
            "12:devices:/kubepods/burstable/pod{UID}/3f0c\n\
             11:misc:/\n\
             1:name=systemd:/kubepods/burstable/pod{UID}/3f0c\n\
             0::/system.slice/containerd.service\n"
        );
        assert_eq!(seen(&text), pod(UID));
        assert_eq!(
            seen("2:cpu:/user.slice\n1:name=systemd:/user.slice\n0::/user.slice\n"),
            Group::Outside
        );
    }

    #[test]
    fn what_comes_before_the_kubelet_s_groups_is_known_from_a_pod_of_its_own() {
        let outer = format!("/kubepods/burstable/pod{STATIC}/77aa");
        for (own, inside, outside) in [
            (
                format!("{outer}/kubelet/kubepods/pod{UID}/1"),
                format!("{outer}/kubelet/kubepods/besteffort/pod{UID}/2"),
                format!("{outer}/system.slice/containerd.service"),
            ),
            (
                format!("/node-1/kubepods/burstable/pod{UID}/1"),
                format!("/node-1/kubepods/pod{UID}/2"),
                format!("/node-10/kubepods/pod{UID}/2"),
            ),
            (
                format!("/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-1.scope"),
                format!("/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-2.scope"),
                "/system.slice/ssh.service".to_owned(),
            ),
        ] {
            let base = Base::of(&v2(&own));
            assert_eq!(group(&v2(&inside), &base), pod(UID), "{inside}");
            assert_eq!(group(&v2(&outside), &base), Group::Outside, "{outside}");
        }
        // Each hierarchy has its own.
        let own =
            format!("2:memory:/x/node-1/kubepods/pod{UID}/1\n1:cpu:/node-1/kubepods/pod{UID}/1\n");
        let base = Base::of(&own);
        let other = format!("2:memory:/x/node-1/kubepods/pod{STATIC}/1\n1:cpu:/y\n");
        assert_eq!(group(&other, &base), pod(STATIC));
    }

    proptest! {
        #[test]
        fn no_container_passes_for_another_pod_or_for_the_machine(
            below in "(/[a-z0-9_.-]{1,20}){0,4}",
        ) {
            for path in [
                format!("/kubepods/burstable/pod{UID}/3f0c{below}"),
                format!("/kubepods.slice/kubepods-pod{SLICE}.slice/cri-containerd-3f0c.scope{below}"),
            ] {
                prop_assert_eq!(seen(&v2(&path)), pod(UID));
            }
        }

        #[test]
        fn no_text_is_a_crash(text in ".{0,200}", own in ".{0,200}") {
            let _ = group(&text, &Base::of(&own));
        }
    }
}
