//! The command line, and what it means.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use creo_process::telemetry::LogArgs;
use jiff::SignedDuration;

use crate::cdi::Place;
use crate::config::{CdiSource, ConfigSource, MigStrategy, Overrides};
use crate::driver::library::Source;
use crate::resource::Resource;

/// Creo's GPU device plugin for the kubelet.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Offer this node's GPUs to its kubelet, until told to stop.
    Serve(Box<ServeArguments>),
    /// Check a configuration file and print what is in effect, without asking any GPU.
    Config(ConfigCommand),
    /// Print this machine's GPUs. Exits with 3 when there is no NVIDIA driver.
    Inventory(InventoryArguments),
    /// Try to open every GPU, in a pod that asked for none, and say what could be opened.
    Canary(CanaryArguments),
}

/// Where the driver is.
#[derive(Debug, Clone, Args)]
pub struct DriverArguments {
    /// The driver's libnvidia-ml.so.1; without it, it is searched under the driver's root.
    #[arg(long, env = "CREO_NVML_LIBRARY", value_name = "FILE", value_parser = absolute_path)]
    pub nvml_library: Option<PathBuf>,

    /// The driver's root on the host: / or, for a driver in a container, such as
    /// /run/nvidia/driver.
    #[arg(long, env = "CREO_DRIVER_ROOT", value_name = "DIR", default_value = "/", value_parser = absolute_path)]
    pub driver_root: PathBuf,

    /// The same root as this process sees it, where that is another path.
    #[arg(long, env = "CREO_DRIVER_ROOT_MOUNT", value_name = "DIR", value_parser = absolute_path)]
    pub driver_root_mount: Option<PathBuf>,

    /// The kernel's /sys as this process sees it.
    #[arg(long, env = "CREO_SYSFS_ROOT", value_name = "DIR", default_value = "/sys", value_parser = absolute_path)]
    pub sysfs_root: PathBuf,

    /// The kernel's /proc as this process sees it, for what the driver says there.
    #[arg(long, env = "CREO_PROCFS_ROOT", value_name = "DIR", default_value = "/proc", value_parser = absolute_path)]
    pub procfs_root: PathBuf,
}

impl DriverArguments {
    /// The driver's root as this process sees it.
    #[must_use]
    pub fn root_mount(&self) -> PathBuf {
        self.driver_root_mount
            .clone()
            .unwrap_or_else(|| self.driver_root.clone())
    }

    /// Where to look for what containers need of the driver.
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            root: self.driver_root.clone(),
            mount: self.root_mount(),
            procfs: self.procfs_root.clone(),
        }
    }

    /// Which library to load.
    #[must_use]
    pub fn source(&self) -> Source {
        Source {
            library: self.nvml_library.clone(),
            root: self.root_mount(),
            sysfs: self.sysfs_root.clone(),
        }
    }
}

/// The configuration, and what is set whatever the file says.
#[derive(Debug, Clone, Args)]
pub struct ConfigArguments {
    /// The configuration file; without it, what is usual holds. It is followed while the
    /// plugin runs.
    #[arg(long, env = "CREO_CONFIG", value_name = "FILE", value_parser = absolute_path)]
    pub config: Option<PathBuf>,

    /// The resource under which the kubelet counts whole cards [default: creo.cloud/gpu].
    #[arg(long, env = "CREO_RESOURCE")]
    pub resource: Option<Resource>,

    /// What becomes of partitioned cards [default: none].
    #[arg(long, env = "CREO_MIG_STRATEGY", value_name = "STRATEGY")]
    pub mig_strategy: Option<MigStrategy>,

    /// How long a GPU must be without a fault before it is offered again [default: 60s].
    #[arg(long, env = "CREO_HEALTHY_AFTER", value_name = "TIME", value_parser = time)]
    pub healthy_after: Option<Duration>,

    /// Whose CDI specification is used [default: generated].
    #[arg(long, env = "CREO_CDI_SOURCE", value_name = "SOURCE")]
    pub cdi_source: Option<CdiSource>,
}

impl ConfigArguments {
    /// Where the configuration of the node of this name comes from.
    #[must_use]
    pub fn source(&self, node_name: Option<&str>) -> ConfigSource {
        ConfigSource {
            file: self.config.clone(),
            node_name: node_name.map(str::to_owned),
            overrides: Overrides {
                resource: self.resource.clone(),
                mig: self.mig_strategy,
                healthy_after: self.healthy_after,
                cdi_source: self.cdi_source,
            },
        }
    }
}

/// Which configuration is checked.
#[derive(Debug, Clone, Args)]
pub struct ConfigCommand {
    /// What is checked.
    #[command(flatten)]
    pub config: ConfigArguments,

    /// The node whose configuration is printed; without it, what holds for all nodes.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
}

/// How GPUs are offered.
#[derive(Debug, Clone, Args)]
pub struct ServeArguments {
    /// Where the driver is.
    #[command(flatten)]
    pub driver: DriverArguments,

    /// What a person decided.
    #[command(flatten)]
    pub config: ConfigArguments,

    /// The kubelet's directory.
    #[arg(long, env = "CREO_KUBELET_DIR", value_name = "DIR", default_value = "/var/lib/kubelet", value_parser = absolute_path)]
    pub kubelet_dir: PathBuf,

    /// Where the container runtime reads CDI specifications.
    #[arg(long, env = "CREO_CDI_DIR", value_name = "DIR", default_value = "/var/run/cdi", value_parser = absolute_path)]
    pub cdi_dir: PathBuf,

    /// Where it is written down what waits for a reset of a GPU, so that a restart of the plugin
    /// does not forget it.
    #[arg(long, env = "CREO_STATE_DIR", value_name = "DIR", default_value = "/var/lib/creo/gpu-device-plugin", value_parser = absolute_path)]
    pub state_dir: PathBuf,

    /// The kubelet's pod-resources socket; without it, pod-resources/kubelet.sock in the
    /// kubelet's directory.
    #[arg(long, env = "CREO_POD_RESOURCES_SOCKET", value_name = "FILE", value_parser = absolute_path)]
    pub pod_resources_socket: Option<PathBuf>,

    /// Where the kubelet keeps the logs of pods, which joins the names of pods and their UIDs.
    #[arg(long, env = "CREO_POD_LOGS_DIR", value_name = "DIR", default_value = "/var/log/pods", value_parser = absolute_path)]
    pub pod_logs_dir: PathBuf,

    /// Where /metrics, /healthz and /readyz are served.
    #[arg(
        long,
        env = "CREO_METRICS_ADDRESS",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:9400"
    )]
    pub metrics_address: SocketAddr,

    /// This node's name, which is that of its CreoNode; without it, nothing is told to the hub.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Logging.
    #[command(flatten)]
    pub log: LogArgs,
}

impl ServeArguments {
    /// The kubelet's pod-resources socket.
    #[must_use]
    pub fn pod_resources_socket(&self) -> PathBuf {
        let in_its_place = || self.kubelet_dir.join("pod-resources/kubelet.sock");
        self.pod_resources_socket
            .clone()
            .unwrap_or_else(in_its_place)
    }
}

/// How the inventory is printed.
#[derive(Debug, Clone, Args)]
pub struct InventoryArguments {
    /// Where the driver is.
    #[command(flatten)]
    pub driver: DriverArguments,

    /// How it is printed.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Where the canary looks and speaks.
#[derive(Debug, Clone, Args)]
pub struct CanaryArguments {
    /// Where the device nodes are.
    #[arg(long, value_name = "DIR", default_value = "/dev", value_parser = absolute_path)]
    pub dev: PathBuf,

    /// What was found is written there, as JSON.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", value_parser = absolute_path)]
    pub termination_log: PathBuf,
}

/// A form of the inventory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// For people, at most 100 columns wide.
    #[default]
    Table,
    /// For programs.
    Json,
}

fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("a path that begins with / is needed".to_owned())
    }
}

/// A time that a person gives.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let longest = SignedDuration::from_hours(24);
    let time: SignedDuration = text
        .parse()
        .map_err(|_| "a time such as 60s or 5m is needed".to_owned())?;
    if time.is_negative() || time > longest {
        return Err("a time from 0s to 24h is needed".to_owned());
    }
    Ok(time.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    fn serve(arguments: &[&str]) -> Result<Box<ServeArguments>, String> {
        let line = ["creo-gpu-device-plugin", "serve"];
        match Arguments::try_parse_from(line.iter().chain(arguments)) {
            Ok(Arguments {
                command: Command::Serve(serve),
            }) => Ok(serve),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_root_is_seen_under_its_own_path_unless_it_is_mounted_elsewhere() {
        let plain = serve(&["--driver-root", "/run/nvidia/driver"]).unwrap();
        assert_eq!(plain.driver.root_mount(), Path::new("/run/nvidia/driver"));
        let mounted = serve(&["--driver-root-mount", "/driver-root"]).unwrap();
        assert_eq!(mounted.driver.driver_root, Path::new("/"));
        assert_eq!(mounted.driver.source().root, Path::new("/driver-root"));
    }

    #[test]
    fn a_wrong_value_is_refused_with_the_flag_and_what_it_needs() {
        for (flag, value, needs) in [
            ("--driver-root", "run", "begins with /"),
            ("--resource", "gpu", "creo.cloud/gpu"),
            ("--healthy-after", "soon", "60s"),
            ("--healthy-after", "48h", "24h"),
        ] {
            let refused = serve(&[flag, value]).unwrap_err();
            assert!(
                refused.contains(flag) && refused.contains(needs),
                "{refused}"
            );
        }
        assert_eq!(
            serve(&["--healthy-after", "1m 30s"])
                .unwrap()
                .config
                .healthy_after,
            Some(Duration::from_secs(90))
        );
    }
}
