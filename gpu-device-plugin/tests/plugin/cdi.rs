//! The CDI specification: what is found of a driver, and what is written of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use creo_gpu_device_plugin::cdi::{Injection, Source, Spec, existing, write};
use creo_gpu_device_plugin::inventory::{Gpu, Mig, MigDevice};
use creo_gpu_device_plugin::resource::Resource;
use serde_json::Value;

use crate::driver_root::{DriverRoot, MULTIARCH};

const VERSION: &str = "570.133.20";

fn gpu(index: u32) -> Gpu {
    Gpu {
        index,
        uuid: format!("GPU-{index}"),
        // A minor number is not always the index.
        minor: index + 4,
        ..Gpu::default()
    }
}

fn partitioned(index: u32, instances: &[(u32, u32)]) -> Gpu {
    let devices = instances
        .iter()
        .map(|(gpu_instance, compute_instance)| MigDevice {
            uuid: format!("MIG-{index}-{gpu_instance}-{compute_instance}"),
            gpu_instance: *gpu_instance,
            compute_instance: *compute_instance,
            ..MigDevice::default()
        });
    Gpu {
        mig: Mig::On(devices.collect()),
        ..gpu(index)
    }
}

fn kind() -> Resource {
    "creo.cloud/gpu".parse().unwrap()
}

fn json(spec: &Spec) -> Value {
    serde_json::to_value(spec).unwrap()
}

/// Path on the host of each mount, by the path in the container.
fn mounts(spec: &Spec) -> BTreeMap<String, String> {
    let json = json(spec);
    let mounts = json["containerEdits"]["mounts"].as_array().cloned();
    mounts
        .unwrap_or_default()
        .iter()
        .map(|mount| {
            let path = |key: &str| mount[key].as_str().unwrap().to_owned();
            (path("containerPath"), path("hostPath"))
        })
        .collect()
}

/// The names under which libraries are in this directory of a container.
fn names_in(spec: &Spec, directory: &str) -> BTreeSet<String> {
    let prefix = format!("{directory}/");
    mounts(spec)
        .keys()
        .filter_map(|path| Some(path.strip_prefix(&prefix)?.to_owned()))
        .collect()
}

/// The specification of one GPU with the driver under this root.
fn spec(root: &DriverRoot) -> Spec {
    Spec::new(&kind(), &[&gpu(0)], &root.find(&[]))
}

#[test]
fn a_specification_gives_each_gpu_its_own_node_and_all_of_them_the_driver() {
    let root = DriverRoot::empty();
    root.file("dev/nvidiactl", "")
        .file("usr/bin/nvidia-smi", "")
        .library("usr/lib64/libcuda.so.570.1", "libcuda.so.1")
        .link("usr/lib64/libcuda.so.1", "libcuda.so.570.1");
    let gpus = [&gpu(0), &gpu(1)];
    let text = serde_json::to_string_pretty(&Spec::new(&kind(), &gpus, &root.find(&gpus))).unwrap();
    insta::assert_snapshot!(text.replace(MULTIARCH, "MULTIARCH"));
}

#[test]
fn every_name_of_every_library_is_in_both_directories_that_glibc_knows() {
    let root = DriverRoot::debian(VERSION);
    let spec = spec(&root);
    let expected: BTreeSet<String> = [
        "libcuda.so",
        "libcuda.so.1",
        "libcuda.so.570.133.20",
        "libnvidia-gpucomp.so.570.133.20",
        "libnvidia-ml.so.1",
        "libnvidia-ml.so.570.133.20",
        "libnvidia-opticalflow.so",
        "libnvidia-opticalflow.so.1",
        "libnvidia-opticalflow.so.570.133.20",
        "libnvidia-ptxjitcompiler.so.1",
        "libnvidia-ptxjitcompiler.so.570.133.20",
    ]
    .map(str::to_owned)
    .into();
    for directory in [format!("/usr/lib/{MULTIARCH}"), "/usr/lib64".to_owned()] {
        assert_eq!(names_in(&spec, &directory), expected, "{directory}");
    }
    let mounts = mounts(&spec);
    assert_eq!(
        mounts["/usr/lib64/libcuda.so"],
        format!("/run/nvidia/driver/usr/lib/{MULTIARCH}/libcuda.so.570.133.20")
    );
    assert_eq!(
        mounts["/usr/bin/nvidia-smi"],
        "/run/nvidia/driver/usr/bin/nvidia-smi"
    );
    assert!(mounts.contains_key("/usr/bin/nvidia-cuda-mps-control"));
    assert!(!mounts.contains_key("/usr/bin/nvidia-settings"));
    let edits = &json(&spec)["containerEdits"];
    let nodes: Vec<_> = edits["deviceNodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["path"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(nodes, ["/dev/nvidiactl", "/dev/nvidia-uvm"]);
    assert_eq!(edits.get("hooks"), None);
    let library_path = |value: &Value| value.as_str().unwrap().starts_with("LD_LIBRARY_PATH");
    assert!(!edits["env"].as_array().unwrap().iter().any(library_path));
}

#[test]
fn a_driver_that_only_the_linker_s_list_knows_is_found_over_debian_s_alternatives() {
    let root = DriverRoot::empty();
    root.library("opt/driver/current/libcuda.so.570.1", "libcuda.so.1")
        .link("opt/driver/current/libcuda.so.1", "libcuda.so.570.1")
        .library(
            "opt/driver/current/libnvidia-cfg.so.570.1",
            "libnvidia-cfg.so.1",
        )
        .link(
            "etc/alternatives/libcuda",
            "/opt/driver/current/libcuda.so.1",
        )
        .link("opt/lib/libcuda.so.1", "/etc/alternatives/libcuda");
    assert_eq!(names_in(&spec(&root), "/usr/lib64").len(), 0);
    // ldconfig with another root does not follow absolute links, so the list names the file.
    root.ldconfig(&["/opt/driver/current"]);
    let spec = spec(&root);
    let names: Vec<_> = names_in(&spec, "/usr/lib64").into_iter().collect();
    assert_eq!(
        names,
        [
            "libcuda.so",
            "libcuda.so.1",
            "libcuda.so.570.1",
            "libnvidia-cfg.so.1",
            "libnvidia-cfg.so.570.1",
        ]
    );
    assert_eq!(
        mounts(&spec)["/usr/lib64/libcuda.so.1"],
        "/run/nvidia/driver/opt/driver/current/libcuda.so.570.1"
    );
}

#[test]
fn libraries_of_debian_s_own_packages_are_found_behind_their_alternatives() {
    let root = DriverRoot::empty();
    let lib = format!("usr/lib/{MULTIARCH}");
    root.library(
        &format!("{lib}/nvidia/current/libcuda.so.535.1"),
        "libcuda.so.1",
    )
    .link(
        &format!("{lib}/nvidia/current/libcuda.so.1"),
        "libcuda.so.535.1",
    )
    .link(
        "etc/alternatives/nvidia--libcuda.so.1",
        &format!("/{lib}/nvidia/current/libcuda.so.1"),
    )
    .link(
        &format!("{lib}/libcuda.so.1"),
        "/etc/alternatives/nvidia--libcuda.so.1",
    )
    .library(
        &format!("{lib}/libnvidia-eglcore.so.535.1"),
        "libnvidia-eglcore.so.535.1",
    );
    let names = names_in(&spec(&root), "/usr/lib64");
    assert!(names.contains("libcuda.so.1"), "{names:?}");
    assert!(names.contains("libnvidia-eglcore.so.535.1"), "{names:?}");
}

#[test]
fn a_driver_without_its_version_in_a_name_is_found_by_its_sonames() {
    let root = DriverRoot::empty();
    root.library("usr/lib64/libnvidia-ml.so.1", "libnvidia-ml.so.1")
        .library("usr/lib64/libother.so.1", "libother.so.1");
    let names: Vec<_> = names_in(&spec(&root), "/usr/lib64").into_iter().collect();
    assert_eq!(names, ["libnvidia-ml.so.1"]);
}

#[test]
fn libraries_of_another_version_or_architecture_are_left_alone() {
    let root = DriverRoot::debian(VERSION);
    let lib = format!("usr/lib/{MULTIARCH}");
    root.library(
        &format!("{lib}/libnvidia-cfg.so.535.1"),
        "libnvidia-cfg.so.1",
    )
    .file(&format!("{lib}/libnvidia-tls.so.{VERSION}"), "no library");
    let names = names_in(&spec(&root), "/usr/lib64");
    assert!(!names.iter().any(|name| name.contains("cfg")), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("tls")), "{names:?}");
}

#[test]
fn a_link_that_leads_out_of_the_root_is_not_followed() {
    let root = DriverRoot::empty();
    let outside = DriverRoot::debian(VERSION);
    let target = outside
        .path()
        .join(format!("usr/lib/{MULTIARCH}/libcuda.so.1"));
    root.link("usr/lib64/libcuda.so.1", target.to_str().unwrap())
        .link("usr/bin/nvidia-smi", "/bin/../../../../../../../../bin/sh");
    assert_eq!(mounts(&spec(&root)), BTreeMap::new());
}

#[test]
fn data_firmware_and_sockets_are_given_where_they_are() {
    let root = DriverRoot::debian(VERSION);
    root.file("usr/share/vulkan/icd.d/nvidia_icd.json", "{}")
        .file("usr/share/nvidia/nvoptix.bin", "")
        .file(
            &format!("usr/lib/firmware/nvidia/{VERSION}/gsp_ga10x.bin"),
            "",
        )
        .file(&format!("usr/lib/firmware/nvidia/{VERSION}/notes.txt"), "")
        .file("usr/lib/firmware/nvidia/535.1/gsp_ga10x.bin", "")
        .socket("run/nvidia-persistenced/socket")
        .file("run/nvidia-fabricmanager/socket", "no socket");
    let found = mounts(&spec(&root));
    for (container_path, host_path) in [
        (
            "/etc/vulkan/icd.d/nvidia_icd.json",
            "usr/share/vulkan/icd.d/nvidia_icd.json",
        ),
        (
            "/usr/share/nvidia/nvoptix.bin",
            "usr/share/nvidia/nvoptix.bin",
        ),
        (
            "/lib/firmware/nvidia/570.133.20/gsp_ga10x.bin",
            "usr/lib/firmware/nvidia/570.133.20/gsp_ga10x.bin",
        ),
        (
            "/var/run/nvidia-persistenced/socket",
            "run/nvidia-persistenced/socket",
        ),
    ] {
        assert_eq!(
            found[container_path],
            format!("/run/nvidia/driver/{host_path}")
        );
    }
    let rest: Vec<_> = found
        .keys()
        .filter(|path| {
            path.contains("notes")
                || path.contains("535")
                || path.contains("fabric")
                || path.contains("mps-")
        })
        .collect();
    assert_eq!(rest, ["/usr/bin/nvidia-cuda-mps-control"]);
    // An empty folder is what a service left that has ended.
    root.file("tmp/nvidia-mps/log", "");
    assert!(!mounts(&spec(&root)).contains_key("/tmp/nvidia-mps"));
    root.file("tmp/nvidia-mps/control", "");
    assert!(mounts(&spec(&root)).contains_key("/tmp/nvidia-mps"));
}

#[test]
fn a_partition_gets_its_card_and_the_two_devices_that_open_it() {
    let root = DriverRoot::empty();
    root.file(
        "proc/driver/nvidia-caps/mig-minors",
        "config 1\nmonitor 2\ngpu4/gi1/access 12\ngpu4/gi1/ci0/access 13\ngpu4/gi2/access 21\n",
    )
    // What the partition itself says goes before the list.
    .file(
        "proc/driver/nvidia/capabilities/gpu4/mig/gi2/ci1/access",
        "DeviceFileMinor: 23\nDeviceFileMode: 292\nDeviceFileModify: 1\n",
    );
    let card = partitioned(0, &[(1, 0), (2, 1), (3, 0)]);
    let spec = Spec::new(&kind(), &[&card], &root.find(&[&card]));
    let nodes: BTreeMap<String, Vec<String>> = spec
        .nodes()
        .into_iter()
        .map(|(name, nodes)| (name, nodes.into_iter().map(|node| node.path).collect()))
        .collect();
    let cap = |minor: u32| format!("/dev/nvidia-caps/nvidia-cap{minor}");
    let expected: BTreeMap<String, Vec<String>> = [
        ("GPU-0", vec!["/dev/nvidia4".to_owned()]),
        (
            "MIG-0-1-0",
            vec!["/dev/nvidia4".to_owned(), cap(12), cap(13)],
        ),
        (
            "MIG-0-2-1",
            vec!["/dev/nvidia4".to_owned(), cap(21), cap(23)],
        ),
    ]
    .into_iter()
    .map(|(name, nodes)| (name.to_owned(), nodes))
    .collect();
    assert_eq!(nodes, expected);
    let [left_out] = spec.left_out() else {
        panic!("{:?}", spec.left_out());
    };
    assert_eq!(left_out.uuid, "MIG-0-3-0");
    assert!(
        left_out.why.contains("GPU instance 3 of GPU 0"),
        "{left_out:?}"
    );
}

#[test]
fn a_name_that_cdi_does_not_take_spoils_no_other_device() {
    let old = Gpu {
        mig: Mig::On(vec![MigDevice {
            uuid: "MIG-GPU-0/1/0".to_owned(),
            ..MigDevice::default()
        }]),
        ..gpu(0)
    };
    let spec = Spec::new(&kind(), &[&old], &DriverRoot::empty().find(&[&old]));
    assert_eq!(spec.names().collect::<Vec<_>>(), ["GPU-0"]);
    assert_eq!(spec.left_out()[0].uuid, "MIG-GPU-0/1/0");
}

#[test]
fn a_file_is_written_once_and_again_only_when_it_differs() {
    let directory = tempfile::tempdir().unwrap();
    let cdi = directory.path().join("cdi");
    let of = |gpu: &Gpu| Spec::new(&kind(), &[gpu], &DriverRoot::empty().find(&[]));
    let (one, other) = (gpu(0), gpu(1));
    assert!(write(&cdi, &kind(), &of(&one)).unwrap());
    assert!(!write(&cdi, &kind(), &of(&one)).unwrap());
    assert!(write(&cdi, &kind(), &of(&other)).unwrap());
    fs::write(cdi.join("creo.cloud-gpu.json"), "rubbish").unwrap();
    assert!(write(&cdi, &kind(), &of(&other)).unwrap());
    let names: Vec<_> = fs::read_dir(&cdi)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["creo.cloud-gpu.json"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named() {
    let root = DriverRoot::empty();
    root.file("file", "");
    let injection = Injection {
        place: root.place(),
        kind: kind(),
        source: Source::Own(root.path().join("file/cdi")),
    };
    let refused = injection.prepare(&[&gpu(0)]).unwrap_err().to_string();
    assert!(
        refused.contains("file/cdi/creo.cloud-gpu.json"),
        "{refused}"
    );
    assert!(refused.contains("--cdi-dir"), "{refused}");
}

/// What is found of these GPUs in specifications with these texts.
fn existing(
    files: &[(&str, &str)],
    gpus: &[&Gpu],
) -> Result<(BTreeMap<String, String>, Vec<String>), String> {
    let root = DriverRoot::empty();
    for (name, text) in files {
        root.file(name, text);
    }
    let (first, second) = (root.path().join("etc-cdi"), root.path().join("run-cdi"));
    let kind = Resource::nvidia();
    existing::names(&[&first, &second], &kind, gpus)
        .map(|(names, left_out)| {
            let left_out = left_out.into_iter().map(|left_out| left_out.uuid);
            (names, left_out.collect())
        })
        .map_err(|error| error.to_string())
}

fn named(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(uuid, name)| ((*uuid).to_owned(), format!("nvidia.com/gpu={name}")))
        .collect()
}

#[test]
fn devices_of_an_existing_specification_are_found_by_uuid_else_by_number_and_node() {
    let text = "---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
devices:
- name: GPU-0
  containerEdits: {deviceNodes: [{path: /dev/nvidia4}]}
- name: \"1\"
  containerEdits: {deviceNodes: [{path: /dev/nvidia5, hostPath: /x}], hooks: []}
- name: \"2\"
  containerEdits: {deviceNodes: [{path: /dev/nvidia7}]}
- name: gpu3
  containerEdits: {deviceNodes: [{path: /dev/nvidia7}]}
- name: MIG-4-1-0
  containerEdits: {}
- name: all
containerEdits: {env: [A=b]}
";
    let (one, two, three, four, five) = (
        gpu(0),
        gpu(1),
        gpu(2),
        gpu(3),
        partitioned(4, &[(1, 0), (2, 0)]),
    );
    let found = existing(
        &[("etc-cdi/nvidia.yaml", text)],
        &[&one, &two, &three, &four, &five],
    )
    .unwrap();
    let expected = named(&[
        ("GPU-0", "GPU-0"),
        ("GPU-1", "1"),
        ("GPU-3", "gpu3"),
        ("MIG-4-1-0", "MIG-4-1-0"),
    ]);
    // GPU 2 is another card's number by now; what is partitioned is not given as a whole.
    assert_eq!(
        found,
        (expected, vec!["GPU-2".to_owned(), "MIG-4-2-0".to_owned()])
    );
}

#[test]
fn the_later_directory_goes_before_the_earlier_one_and_other_kinds_are_passed_over() {
    let file = |kind: &str, name: &str, minor: u32| {
        format!(
            "{{\"kind\": \"{kind}\", \"devices\": [{{\"name\": \"{name}\", \"containerEdits\": {{\"deviceNodes\": [{{\"path\": \"/dev/nvidia{minor}\"}}]}}}}]}}"
        )
    };
    let files = [
        ("etc-cdi/nvidia.json", &*file("nvidia.com/gpu", "0", 4)),
        ("run-cdi/nvidia.json", &*file("nvidia.com/gpu", "0", 9)),
        ("run-cdi/creo.json", &*file("creo.cloud/gpu", "GPU-0", 4)),
        ("run-cdi/notes.txt", "kind: nvidia.com/gpu"),
    ];
    let found = existing(&files, &[&gpu(0)]).unwrap();
    assert_eq!(found, (BTreeMap::new(), vec!["GPU-0".to_owned()]));
}

#[test]
fn without_a_specification_it_is_said_what_was_looked_for_and_what_to_do() {
    let missing = existing(&[], &[&gpu(0)]).unwrap_err();
    for part in [
        "nvidia.com/gpu",
        "etc-cdi or /",
        "nvidia-ctk cdi generate",
        "--cdi-source=existing",
    ] {
        assert!(missing.contains(part), "{missing}");
    }
    let damaged = existing(&[("run-cdi/nvidia.yaml", "kind: [")], &[&gpu(0)]).unwrap_err();
    assert!(
        damaged.contains("run-cdi/nvidia.yaml cannot be read"),
        "{damaged}"
    );
    let large = " ".repeat((4 << 20) + 1);
    let large = existing(&[("run-cdi/nvidia.json", &large)], &[&gpu(0)]).unwrap_err();
    assert!(large.contains("larger than 4 MiB"), "{large}");
}
