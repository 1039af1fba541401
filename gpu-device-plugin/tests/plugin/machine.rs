//! A machine with GPUs and a kubelet's directory, under a temporary root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use creo_gpu_device_plugin::arguments::{Arguments, Command};
use creo_gpu_device_plugin::config::Config;
use creo_gpu_device_plugin::driver::library::Source;
use creo_gpu_device_plugin::driver::{Pace, Readings, Records, Snapshot, Watcher};
use creo_gpu_device_plugin::metrics::Metrics;
use creo_gpu_device_plugin::serve::serve;
use creo_process::prometheus::Registry;
use nvidia_ml::install::{built_library, install_built, install_without};
use nvidia_ml::state::{Fault, Layout, State, StoreError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longest time that anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Machine {
    root: TempDir,
    pub state: State,
}

impl Machine {
    pub fn new(profile: &str, gpus: usize) -> Self {
        let machine = Self::without_driver(profile, gpus);
        machine.install_driver();
        machine
    }

    pub fn without_driver(profile: &str, gpus: usize) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["driver/dev", "kubelet/device-plugins"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let state = State::from_profile(profile, gpus, "node-1").unwrap();
        Self { root, state }
    }

    /// A machine whose cards are placed and linked in this way.
    pub fn laid_out(profile: &str, gpus: usize, layout: Layout) -> Self {
        let mut machine = Self::without_driver(profile, gpus);
        machine.state = machine.state.clone().with_layout(layout).unwrap();
        machine.install_driver();
        machine
    }

    /// The kernel says of this card that it is at this NUMA node.
    pub fn place(&self, index: usize, numa_node: i64) {
        let bus = self.state.gpus[index].pci_bus;
        let device = format!("bus/pci/devices/0000:{bus:02x}:00.0");
        let device = self.sysfs_root().join(device);
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("numa_node"), format!("{numa_node}\n")).unwrap();
    }

    /// Every function of the library that is about a card, by its name.
    pub fn card_functions() -> Vec<&'static str> {
        nvidia_ml::functions()
            .filter(|name| name.starts_with("nvmlDeviceGet") || name.starts_with("nvmlGpuInstance"))
            .collect()
    }

    pub fn install_driver(&self) {
        install_built(&self.libraries(), &self.state).unwrap();
        for gpu in &self.state.gpus {
            self.make_node(gpu.minor);
        }
        fs::write(self.driver_root().join("dev/nvidiactl"), "").unwrap();
    }

    pub fn make_node(&self, minor: u32) {
        fs::write(self.driver_root().join(format!("dev/nvidia{minor}")), "").unwrap();
    }

    pub fn remove_node(&self, minor: u32) {
        fs::remove_file(self.driver_root().join(format!("dev/nvidia{minor}"))).unwrap();
    }

    pub fn driver_root(&self) -> PathBuf {
        self.root.path().join("driver")
    }

    /// Where the plugin sees the kernel's `/sys`.
    pub fn sysfs_root(&self) -> PathBuf {
        self.root.path().join("sys")
    }

    /// Where the plugin keeps what waits for a reset.
    pub fn state_directory(&self) -> PathBuf {
        self.root.path().join("state")
    }

    fn libraries(&self) -> PathBuf {
        self.driver_root().join("usr/lib/x86_64-linux-gnu")
    }

    pub fn kubelet_directory(&self) -> PathBuf {
        self.root.path().join("kubelet/device-plugins")
    }

    pub fn pod_resources_socket(&self) -> PathBuf {
        self.root.path().join("kubelet/pod-resources/kubelet.sock")
    }

    pub fn plugin_socket(&self) -> PathBuf {
        self.kubelet_directory().join("creo.cloud-gpu.sock")
    }

    pub fn cdi_specification(&self) -> PathBuf {
        self.root.path().join("cdi/creo.cloud-gpu.json")
    }

    /// Lets the driver say which devices open partitions.
    pub fn name_partitions(&self) {
        let procfs = self.root.path().join("proc");
        fs::create_dir_all(procfs.join("driver/nvidia-caps")).unwrap();
        let (mut lines, mut number) = (String::new(), 3);
        for gpu in &self.state.gpus {
            for instance in 0..15 {
                for what in ["access", "ci0/access"] {
                    let line = format!("gpu{}/gi{instance}/{what} {number}\n", gpu.minor);
                    lines.push_str(&line);
                    number += 1;
                }
            }
        }
        fs::write(procfs.join("driver/nvidia-caps/mig-minors"), lines).unwrap();
    }

    /// Puts a configuration in its place as the kubelet does with a ConfigMap: the file is a
    /// link into a folder that is a link to the newest folder, and that last link is swapped.
    /// Gives the flag for it.
    pub fn configure(&self, text: &str) -> String {
        let volume = self.root.path().join("config");
        fs::create_dir_all(&volume).unwrap();
        let number = fs::read_dir(&volume).unwrap().count();
        let newest = volume.join(format!("..{number}"));
        fs::create_dir(&newest).unwrap();
        fs::write(newest.join("plugin.yaml"), text).unwrap();
        symlink(&newest, volume.join("..new")).unwrap();
        fs::rename(volume.join("..new"), volume.join("..data")).unwrap();
        let file = volume.join("plugin.yaml");
        if !file.exists() {
            symlink("..data/plugin.yaml", &file).unwrap();
        }
        format!("--config={}", file.display())
    }

    pub fn uuid(&self, index: usize) -> String {
        self.state.gpus[index].uuid.clone()
    }

    pub fn inject(&self, index: usize, fault: &str) {
        self.inject_often(index, fault, 1);
    }

    /// The same fault so many times in one moment.
    pub fn inject_often(&self, index: usize, fault: &str, times: usize) {
        let fault: Fault = fault.parse().unwrap();
        State::change(&State::path_in(&self.libraries()), |state| {
            (0..times).try_for_each(|_| state.inject(index, &fault).map_err(StoreError::from))
        })
        .unwrap();
    }

    /// Takes functions out of the library, as an old driver lacks them.
    pub fn take_out(&self, functions: &[&str]) {
        let library = built_library().unwrap();
        install_without(&library, &self.libraries(), &self.state, functions).unwrap();
    }

    pub fn source(&self) -> Source {
        Source {
            library: None,
            root: self.driver_root(),
            sysfs: self.sysfs_root(),
        }
    }

    /// Follows the driver at this pace.
    pub fn watch(&self, pace: Pace) -> Watching {
        self.watch_with(pace, |watcher| watcher)
    }

    /// Follows the driver at this pace, and tells others what the cards say of themselves.
    pub fn watch_telling(&self, pace: Pace, readings: watch::Sender<Readings>) -> Watching {
        self.watch_with(pace, |watcher| watcher.telling(readings))
    }

    /// Follows the driver in a boot of this identifier, and remembers what it must.
    pub fn watch_in_boot(&self, pace: Pace, boot: &str) -> Watching {
        let records = Records::new(&self.state_directory(), boot);
        self.watch_with(pace, |watcher| watcher.recording(records))
    }

    /// Follows the driver under this configuration.
    pub fn watch_ruled(&self, pace: Pace, config: watch::Receiver<Arc<Config>>) -> Watching {
        self.watch_with(pace, |watcher| watcher.ruled_by(config))
    }

    fn watch_with(&self, pace: Pace, change: impl FnOnce(Watcher) -> Watcher) -> Watching {
        let (sender, snapshots) = watch::channel(Snapshot::default());
        let (readings_sender, readings) = watch::channel(Readings::default());
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let stop = CancellationToken::new();
        let watcher = Watcher::new(self.source(), pace, metrics, sender).telling(readings_sender);
        let task = tokio::spawn(change(watcher).run(stop.clone()));
        Watching {
            snapshots,
            readings,
            registry,
            task,
            stop: stop.drop_guard(),
        }
    }

    /// Runs the plugin as its binary does.
    pub fn serve(&self, flags: &[&str]) -> Serving {
        // Freed at once, and not given to anyone else that soon.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let root = self.root.path();
        let mut line = vec![
            "creo-gpu-device-plugin".to_owned(),
            "serve".to_owned(),
            format!("--driver-root={}", path(&root.join("driver"))),
            format!("--kubelet-dir={}", path(&root.join("kubelet"))),
            format!("--sysfs-root={}", path(&self.sysfs_root())),
            format!("--procfs-root={}", path(&root.join("proc"))),
            format!("--cdi-dir={}", path(&root.join("cdi"))),
            format!("--state-dir={}", path(&self.state_directory())),
            format!("--metrics-address={port}"),
        ];
        line.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let Command::Serve(arguments) = Arguments::parse_from(line).command else {
            panic!("not serve");
        };
        let stop = CancellationToken::new();
        let task = tokio::spawn({
            let stop = stop.clone();
            async move { serve(*arguments, stop).await.unwrap() }
        });
        Serving { port, stop, task }
    }
}

/// A running plugin.
pub struct Serving {
    port: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Stops the plugin and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    /// The answer to a GET, head and body.
    pub async fn get(&self, path: &str) -> String {
        let mut stream = loop {
            match TcpStream::connect(self.port).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until the answer holds this text.
    pub async fn until(&self, path: &str, text: &str) {
        let mut last = String::new();
        let waiting = async {
            loop {
                last = self.get(path).await;
                if last.contains(text) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = timeout(PATIENCE, waiting).await.is_ok();
        assert!(in_time, "{path} never held {text:?}; at last: {last}");
    }
}

/// A driver that is followed.
pub struct Watching {
    pub snapshots: watch::Receiver<Snapshot>,
    pub readings: watch::Receiver<Readings>,
    pub registry: Registry,
    task: JoinHandle<()>,
    stop: tokio_util::sync::DropGuard,
}

impl Watching {
    /// Stops following, as the end of the process does.
    pub async fn stop(self) {
        drop(self.stop);
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    /// What Prometheus sees.
    pub fn metrics(&self) -> String {
        creo_process::prometheus::TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap()
    }

    /// Waits until the metrics hold this text.
    pub async fn until_metrics(&self, text: &str) {
        let waiting = async {
            while !self.metrics().contains(text) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(PATIENCE, waiting).await.is_ok();
        assert!(in_time, "{text:?} is not in\n{}", self.metrics());
    }

    /// Waits until this holds.
    pub async fn until(&mut self, holds: impl FnMut(&Snapshot) -> bool) -> Snapshot {
        let waited = timeout(PATIENCE, self.snapshots.wait_for(holds)).await;
        if let Ok(found) = waited {
            return found.unwrap().clone();
        }
        drop(waited);
        panic!("it never held; at last: {:#?}", *self.snapshots.borrow())
    }
}
