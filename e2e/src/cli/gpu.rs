//! What can be done to GPUs, and to the driver under them.

use clap::{Args, Subcommand};
use comfy_table::{Table, presets::NOTHING};
use creo_e2e::{
    Error, Result,
    cluster::{Cluster, GPU_FAULTS, GpuFault, GpuState},
};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Let anything happen to a GPU; --help lists what can.
    #[command(after_help = fault_list())]
    Fault(Target),
    /// Show a node's GPUs, what runs on them and what is wrong with them.
    Show {
        /// The node.
        node: String,
    },
    /// Partition a GPU: off, on, or such as 1g.10gb,3g.40gb or 3g.40gb/1c/2c.
    Mig(Target),
    /// Let a process use a GPU: PID compute|graphics|mps MIB [in GI/CI]; or PID gone.
    Process(Target),
    /// Let an NVLink fail or work again: LINK|all down|up.
    Nvlink(Target),
    /// Hold a GPU's clocks down: REASON[,REASON]|none, such as power-brake or hw-thermal.
    Throttle(Target),
    /// Let a row of memory wait for a reset to be remapped, or be beyond it: pending|failed|done.
    Remap(Target),
    /// Let a function of the library hang: FUNCTION [MILLISECONDS], where 0 ends it.
    Hang(Target),
    /// Let a function of the library return a code: FUNCTION CODE|none.
    Error(Target),
    /// Reset a GPU: its counters, and what waits for it.
    Reset {
        /// The node.
        node: String,
        /// The GPU's index on the node.
        index: usize,
    },
    /// Unload, load or reload a node's driver, or let it refuse initialisation.
    Driver {
        /// The node.
        node: String,
        #[command(subcommand)]
        change: DriverChange,
    },
}

/// A GPU, and what happens to it.
#[derive(Debug, Args)]
pub struct Target {
    /// The node.
    node: String,
    /// The GPU's index on the node.
    index: usize,
    /// What happens.
    #[arg(required = true)]
    words: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum DriverChange {
    /// Unload it.
    Unload,
    /// Load it.
    Load,
    /// Unload and load it: every session from before is dead.
    Reload,
    /// Let initialisation fail with this code, such as LIB_RM_VERSION_MISMATCH; none ends it.
    Init {
        /// The code.
        code: String,
    },
}

/// Does what was asked, on the cluster of this name.
///
/// # Errors
///
/// The words are no fault, or there is no such cluster, node or GPU, or that cannot happen to
/// it.
pub fn run(name: &str, verb: &Verb) -> Result<()> {
    if let Verb::Show { node } = verb {
        return super::print(&table(&Cluster::open(name)?.gpu_state(node)?));
    }
    let (node, index, faults) = faults(verb);
    // Before anything is looked for: a mistyped word is the mistake that can be told best.
    let faults = faults
        .iter()
        .map(|fault| fault.parse())
        .collect::<std::result::Result<Vec<GpuFault>, _>>()
        .map_err(|error| Error::Usage(format!("gpu: {error}")))?;
    let cluster = Cluster::open(name)?;
    for fault in &faults {
        cluster.gpu_fault(node, index, fault)?;
    }
    Ok(())
}

/// The node, the GPU's index, and what happens to it in the words of faults.
fn faults(verb: &Verb) -> (&str, usize, Vec<String>) {
    let with = |word: &str, target: &'_ Target| vec![format!("{word} {}", target.words.join(" "))];
    match verb {
        Verb::Fault(target) => (&target.node, target.index, vec![target.words.join(" ")]),
        Verb::Mig(target) => (&target.node, target.index, with("mig", target)),
        Verb::Process(target) => (&target.node, target.index, with("process", target)),
        Verb::Nvlink(target) => (&target.node, target.index, with("nvlink", target)),
        Verb::Throttle(target) => (&target.node, target.index, with("throttle", target)),
        Verb::Remap(target) => (&target.node, target.index, with("remap", target)),
        Verb::Hang(target) => (&target.node, target.index, with("hang", target)),
        Verb::Error(target) => (&target.node, target.index, with("error", target)),
        Verb::Reset { node, index } => (node, *index, vec!["reset".to_owned()]),
        Verb::Driver { node, change } => {
            let words: Vec<String> = match change {
                DriverChange::Unload => vec!["unload".to_owned()],
                DriverChange::Load => vec!["load".to_owned()],
                DriverChange::Reload => vec!["unload".to_owned(), "load".to_owned()],
                DriverChange::Init { code } => vec![format!("init {code}")],
            };
            // These are about no card.
            (node, 0, words)
        }
        // It changes nothing.
        Verb::Show { node } => (node, 0, Vec::new()),
    }
}

fn fault_list() -> String {
    let width = GPU_FAULTS
        .iter()
        .map(|(words, _)| words.len())
        .max()
        .unwrap_or(0);
    let lines = GPU_FAULTS
        .iter()
        .map(|(words, what)| format!("  {words:width$}  {what}"));
    std::iter::once("What can happen:".to_owned())
        .chain(lines)
        .collect::<Vec<_>>()
        .join("\n")
}

fn table(state: &GpuState) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "GPU",
        "MODEL",
        "UUID",
        "PARTITIONS",
        "PROCESSES",
        "WRONG",
    ]);
    for (index, gpu) in state.gpus.iter().enumerate() {
        let partitions: Vec<&str> = gpu
            .mig
            .instances
            .iter()
            .map(|instance| instance.profile.as_str())
            .collect();
        let processes: Vec<String> = gpu
            .processes
            .iter()
            .map(|process| process.pid.to_string())
            .collect();
        table.add_row([
            index.to_string(),
            gpu.profile.model.clone(),
            gpu.uuid.clone(),
            partitions.join(","),
            processes.join(","),
            gpu.faults().join(", "),
        ]);
    }
    let driver = if state.driver.loaded {
        format!("driver {}", state.driver.version)
    } else {
        "no driver is loaded".to_owned()
    };
    format!("{driver}\n{table}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Arguments;

    fn words(line: &str) -> Vec<String> {
        let line = format!("creo-e2e gpu {line}");
        let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
        let crate::cli::Verb::Gpu(verb) = arguments.command else {
            panic!("not about GPUs");
        };
        faults(&verb).2
    }

    #[test]
    fn every_verb_says_a_fault_that_is_understood() {
        for (line, fault) in [
            ("fault gpu-1 0 xid 79", "xid 79"),
            ("mig gpu-1 0 1g.10gb,3g.40gb", "mig 1g.10gb,3g.40gb"),
            (
                "process gpu-1 0 71 compute 5 in 1/0",
                "process 71 compute 5 in 1/0",
            ),
            ("nvlink gpu-1 0 all down", "nvlink all down"),
            ("throttle gpu-1 0 power-brake", "throttle power-brake"),
            ("remap gpu-1 0 pending", "remap pending"),
            ("hang gpu-1 0 nvmlInit_v2 500", "hang nvmlInit_v2 500"),
            (
                "error gpu-1 0 nvmlDeviceGetName UNKNOWN",
                "error nvmlDeviceGetName UNKNOWN",
            ),
            ("reset gpu-1 0", "reset"),
            ("driver gpu-1 init NO_PERMISSION", "init NO_PERMISSION"),
        ] {
            assert_eq!(words(line), [fault]);
            assert_eq!(fault.parse::<GpuFault>().unwrap().to_string(), fault);
        }
        assert_eq!(words("driver gpu-1 reload"), ["unload", "load"]);
    }

    #[test]
    fn help_lists_every_fault_in_lines_of_a_terminal() {
        assert!(fault_list().lines().count() > 20);
        assert!(fault_list().contains("xid CODE [times N] [in GI[/CI]]"));
    }
}
