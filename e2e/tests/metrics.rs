//! The names and texts of the device plugin's metrics, before Prometheus' own linter.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use creo_e2e::{
    components::{self, PROMLINT},
    progress::Progress,
};
use creo_gpu_device_plugin::{
    config::ConfigMetrics,
    driver::{Pace, Snapshot, Watcher, library::Source},
    health::Health,
    metrics::{Metrics, NvmlCall, NvmlFailure},
    pod_resources::{Holder, PodsByDevice},
    processes::{Use, Uses},
    unit::{Offered, Part, Unit, Withheld},
};
use creo_process::{
    client::ClientMetrics,
    prometheus::{Registry, TextEncoder},
};
use nvidia_ml::{
    install::{LIBRARY_NAME, install_built},
    state::{Fault, Layout, State, StoreError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// What Prometheus' linter has against this exposition; nothing where it has nothing.
fn lint(exposition: &str) -> String {
    let programs = components::ensure(&[PROMLINT], &Progress::stderr()).expect("promlint builds");
    let mut promlint = Command::new(programs.path("promlint").expect("there is promlint"))
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promlint starts");
    let mut input = promlint.stdin.take().expect("it has an input");
    input.write_all(exposition.as_bytes()).expect("it reads");
    drop(input);
    let output = promlint.wait_with_output().expect("it ends");
    let problems = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), problems.is_empty(), "{problems}");
    problems
}

/// A machine with everything that can be told of cards.
fn machine(root: &Path) -> State {
    let state = State::from_profile("h100-80gb", 2, "metrics")
        .expect("a profile")
        .with_layout(Layout::NvSwitch)
        .expect("a layout");
    let libraries = root.join("usr/lib64");
    install_built(&libraries, &state).expect("the stand-in library is built");
    assert!(libraries.join(LIBRARY_NAME).exists());
    let faults = [
        "mig 3g.40gb,1g.10gb",
        "use 50 20",
        "process 1 compute 10 in 1/0",
        "xid 94",
    ];
    State::change(&State::path_in(&libraries), |state| {
        faults.iter().try_for_each(|fault| {
            let fault: Fault = fault.parse().expect("a fault");
            state.inject(0, &fault).map_err(StoreError::from)
        })
    })
    .expect("the faults fit");
    state
}

fn offered(uuid: &str) -> Offered {
    let unit = Unit {
        id: uuid.to_owned(),
        gpu: uuid.to_owned(),
        part: Part::Whole,
        numa_node: None,
        memory_bytes: 1 << 30,
        health: Health::healthy(),
    };
    Offered {
        units: BTreeMap::from([("creo.cloud/gpu".parse().expect("a resource"), vec![unit])]),
        withheld: vec![Withheld {
            gpu: "GPU-1".to_owned(),
            part: Part::Whole,
            reason: "Excluded",
            message: String::new(),
        }],
    }
}

fn pods(uuid: &str) -> PodsByDevice {
    let holder = Holder {
        namespace: "default".to_owned(),
        pod: "pod".to_owned(),
        container: "main".to_owned(),
        resource: "creo.cloud/gpu".to_owned(),
    };
    [(uuid, holder)].into_iter().collect()
}

fn families(exposition: &str) -> BTreeSet<&str> {
    exposition
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect()
}

#[tokio::test]
async fn prometheus_has_nothing_against_any_metric_of_the_device_plugin() {
    let root = tempfile::tempdir().expect("a folder");
    let state = machine(root.path());
    let uuid = &state.gpus[0].uuid;
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).expect("they register");
    let _config = ConfigMetrics::register(&registry).expect("they register");
    let _client = ClientMetrics::register(&registry).expect("they register");
    let _up = creo_gpu_device_plugin::pod_resources::register_up(&registry).expect("it registers");
    let (_offer, told) = watch::channel(offered(uuid));
    metrics.show_offered(told);
    let (_pods, told) = watch::channel(Some(pods(uuid)));
    metrics.show_pods(told);
    let (_uses, told) = watch::channel(Uses::from([(uuid.clone(), Use::Idle)]));
    metrics.show_uses(told);
    metrics.registration(true);
    metrics.allocation(true);
    metrics.claims_write(false);
    metrics.nvml_failed(NvmlCall::Read, NvmlFailure::Timeout);
    let source = Source {
        library: None,
        root: root.path().to_owned(),
        sysfs: root.path().join("sys"),
    };
    let (snapshots, mut seen) = watch::channel(Snapshot::default());
    let stop = CancellationToken::new();
    let watcher = Watcher::new(source, Pace::default(), metrics, snapshots);
    let watching = tokio::spawn(watcher.run(stop.clone()));
    let all = seen.wait_for(|seen| seen.devices.len() == 2);
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("the driver answers in time")
        .expect("it is watched");
    // What happens to a card that is listened to is counted.
    let file = State::path_in(&root.path().join("usr/lib64"));
    let xid: Fault = "xid 119".parse().expect("a fault");
    State::change(&file, |state| {
        state.inject(1, &xid).map_err(StoreError::from)
    })
    .expect("the fault fits");
    let ill = seen.wait_for(|seen| seen.devices.iter().any(|one| !one.health.is_healthy()));
    tokio::time::timeout(PATIENCE, ill)
        .await
        .expect("it is heard in time")
        .expect("it is watched");
    let exposition = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .expect("it can be written");
    let shown = families(&exposition);
    // One of each kind, so that none is left out because there was nothing to say.
    for family in [
        "creo_gpu_allocated",
        "creo_gpu_clock_max_hertz",
        "creo_gpu_driver_info",
        "creo_gpu_ecc_errors_total",
        "creo_gpu_findings",
        "creo_gpu_nvlink_errors_total",
        "creo_gpu_partition_memory_used_bytes",
        "creo_gpu_pcie_bytes_per_second",
        "creo_gpu_plugin_nvml_failures_total",
        "creo_gpu_throttled",
        "creo_gpu_units_allocated",
        "creo_gpu_use",
        "creo_gpu_withheld",
        "creo_gpu_xids_total",
    ] {
        assert!(shown.contains(family), "{family} is not in\n{exposition}");
    }
    assert!(shown.len() > 45, "{shown:?}");
    assert_eq!(lint(&exposition), "");
    stop.cancel();
    watching.await.expect("it ends");
}

#[test]
fn the_linter_finds_what_is_wrong() {
    let wrong = "# HELP creo_gpuPower x\n# TYPE creo_gpuPower counter\ncreo_gpuPower 1\n";
    let problems = lint(wrong);
    assert!(
        problems.contains("_total") && problems.contains("camelCase"),
        "{problems}"
    );
}
