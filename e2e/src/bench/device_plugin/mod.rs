//! The device plugin's own figures: its release build with stand-in GPUs, and this process as
//! its kubelet, so that nothing but the plugin is in the figure.

mod kubelet;

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use creo_gpu_device_plugin::kubelet::api::{AllocateRequest, ContainerAllocateRequest};
use nvidia_ml::{
    install,
    state::{Fault, State, StoreError},
};
use tempfile::TempDir;

use self::kubelet::Kubelet;
use super::{Row, percentile};
use crate::{
    command,
    error::{Context as _, Error, Result},
    paths,
    progress::Progress,
};

/// The program, as cargo and the images call it.
const PROGRAM: &str = "creo-gpu-device-plugin";
/// Where a Debian driver package puts its libraries, below the driver root.
const LIBRARY_DIR: &str = "usr/lib/x86_64-linux-gnu";
/// As many devices as a node may have.
const MANY_GPUS: usize = 128;
const ALLOCATIONS: usize = 10_000;
const ALLOCATE_P99_MS: f64 = 1.0;
/// How long the plugin may take to register after the kubelet's socket is there again.
const REGISTERED_AGAIN_S: f64 = 2.0;
const FLIPS: usize = 10_000;
/// What the memory may grow by over all flips: nothing, but for the allocator's pages.
const GROWTH: f64 = 1.05;

/// Measures registration (`runs` times), allocation and memory.
pub(super) async fn measure(progress: &Progress, runs: u32) -> Result<Vec<Row>> {
    let program = progress.run("build the device plugin", build)?;
    let mut rows = Vec::new();
    let machine = Machine::start(&program, MANY_GPUS)?;
    let mut kubelet = Kubelet::start(&machine.kubelet_dir())?;
    kubelet.until_healthy(MANY_GPUS).await?;
    let step = progress.step(format!("measure {ALLOCATIONS} allocations"));
    rows.push(allocations(&mut kubelet).await?);
    step.done("");
    let step = progress.step(format!("measure {runs} registrations"));
    let (mut kubelet, row) = registrations(&machine, kubelet, runs).await?;
    rows.push(row);
    step.done("");
    let step = progress.step(format!("measure memory over {FLIPS} health flips"));
    rows.push(growth(&machine, &mut kubelet).await?);
    step.done("");
    Ok(rows)
}

/// Builds the program that the image has, in the same way.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(paths::checkout())
        .args(["build", "--quiet", "--release", "--locked"])
        .args(["--package", PROGRAM, "--bin", PROGRAM]);
    command::output(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| paths::checkout().join("target"), PathBuf::from);
    Ok(target.join("release").join(PROGRAM))
}

/// The time of one call, with as many containers as there can be: each call asks for one GPU
/// after the other.
async fn allocations(kubelet: &mut Kubelet) -> Result<Row> {
    let mut plugin = kubelet.plugin().await?;
    let ids: Vec<String> = kubelet.devices();
    let mut times_ms = Vec::with_capacity(ALLOCATIONS);
    for id in ids.iter().cycle().take(ALLOCATIONS) {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: vec![id.clone()],
            }],
        };
        let begun = Instant::now();
        plugin
            .allocate(request)
            .await
            .map_err(|status| Error::malformed("Allocate", status))?;
        times_ms.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(Row::within(
        &format!("Allocate with {MANY_GPUS} devices, p99 of {ALLOCATIONS}"),
        "ms",
        percentile(&times_ms, 0.99),
        ALLOCATE_P99_MS,
    ))
}

/// The longest time from the kubelet's socket to the plugin's registration.
async fn registrations(
    machine: &Machine,
    mut kubelet: Kubelet,
    runs: u32,
) -> Result<(Kubelet, Row)> {
    let mut times_s = Vec::new();
    for run in 0..runs {
        drop(kubelet);
        // Away for as long as a kubelet is that restarts, or that is updated: the plugin's
        // back-off must not have grown meanwhile.
        tokio::time::sleep(Duration::from_millis(u64::from(run % 5) * 900)).await;
        let begun = Instant::now();
        kubelet = Kubelet::start(&machine.kubelet_dir())?;
        let registered = kubelet.until_registered().await?;
        times_s.push((registered - begun).as_secs_f64());
        kubelet.until_healthy(MANY_GPUS).await?;
    }
    let row = Row::within(
        &format!("registered again after kubelet.sock is back, longest of {runs}"),
        "s",
        percentile(&times_s, 1.0),
        REGISTERED_AGAIN_S,
    );
    Ok((kubelet, row))
}

/// The plugin's memory after all flips of health, against that after the first tenth.
async fn growth(machine: &Machine, kubelet: &mut Kubelet) -> Result<Row> {
    let mut early = None;
    let mut flips = 0;
    while flips < FLIPS {
        machine.inject(&Fault::Lost)?;
        kubelet.until_healthy(0).await?;
        machine.inject(&Fault::Heal)?;
        kubelet.until_healthy(MANY_GPUS).await?;
        flips += MANY_GPUS;
        if early.is_none() && flips >= FLIPS / 10 {
            early = Some(machine.resident_mib()?);
        }
    }
    let early = early.ok_or_else(|| Error::malformed("the bench", "there was no early figure"))?;
    Ok(Row::at_most(
        &format!("resident memory after {flips} health flips of {MANY_GPUS} GPUs"),
        "MiB",
        machine.resident_mib()?,
        early,
        GROWTH,
    ))
}

/// The plugin on a machine of its own, which ends when this is dropped.
struct Machine {
    root: TempDir,
    plugin: Child,
}

impl Machine {
    fn start(program: &PathBuf, gpus: usize) -> Result<Self> {
        let root = tempfile::tempdir().doing(|| "making a folder".to_owned())?;
        let driver = root.path().join("driver");
        paths::make_dir(&driver.join("dev"))?;
        paths::make_dir(&root.path().join("kubelet/device-plugins"))?;
        let state = State::from_profile("h100-80gb", gpus, "bench")
            .map_err(|error| Error::malformed("the GPUs", error))?;
        install::install_built(&driver.join(LIBRARY_DIR), &state)
            .map_err(|error| Error::malformed("the stand-in library", error))?;
        for gpu in &state.gpus {
            paths::write_file(&driver.join(format!("dev/nvidia{}", gpu.minor)), "")?;
        }
        let log = fs::File::create(root.path().join("log"))
            .doing(|| "making the plugin's log".to_owned())?;
        let plugin = Command::new(program)
            .arg("serve")
            .arg("--driver-root")
            .arg(&driver)
            .arg("--kubelet-dir")
            .arg(root.path().join("kubelet"))
            .arg("--cdi-dir")
            .arg(root.path().join("cdi"))
            .arg("--state-dir")
            .arg(root.path().join("state"))
            .args(["--metrics-address", "127.0.0.1:0", "--healthy-after", "0s"])
            .env_remove("NODE_NAME")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .doing(|| format!("starting {}", program.display()))?;
        Ok(Self { root, plugin })
    }

    fn kubelet_dir(&self) -> PathBuf {
        self.root.path().join("kubelet/device-plugins")
    }

    /// Lets something happen to all GPUs in one moment.
    fn inject(&self, fault: &Fault) -> Result<()> {
        let file = State::path_in(&self.root.path().join("driver").join(LIBRARY_DIR));
        State::change(&file, |state| {
            (0..state.gpus.len())
                .try_for_each(|index| state.inject(index, fault).map_err(StoreError::from))
        })
        .map_err(|error| Error::malformed("the GPUs' state", error))
    }

    fn resident_mib(&self) -> Result<f64> {
        resident_mib(self.plugin.id())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
    }
}

/// The memory of a process that is in the machine's, in MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).doing(|| format!("reading {path}"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.parse::<f64>().ok())
        .map(|kib| kib / 1024.0)
        .ok_or_else(|| Error::malformed(path, "it has no VmRSS"))
}
