//! Faults as people write them.

use std::fmt;
use std::str::FromStr;

use super::{Fault, FaultError, LinkChoice, MAX_HANG_MS, MAX_TIMES, REASONS};
use crate::state::{Code, EventKind, Partition, Process, ProcessKind};

const MIB: u64 = 1 << 20;

/// Highest number of anything that NVML counts in 32 bits.
const MAX: u64 = u32::MAX as u64;

/// What can be written, as help shows it: the words and what they do.
pub const FAULTS: &[(&str, &str)] = &[
    (
        "xid CODE [times N] [in GI[/CI]]",
        "report an XID, once or N times, of the card or of a partition",
    ),
    (
        "lost",
        "fall off the bus: XID 79, then no answer but \"lost\"",
    ),
    (
        "ecc N",
        "N uncorrected memory errors, with their event and XID 48",
    ),
    ("ecc-corrected N", "N corrected memory errors"),
    (
        "remap pending|failed|done",
        "a row of memory waits for a reset to be remapped (XID 63), cannot be (XID 64), or was",
    ),
    (
        "retire N",
        "N pages of memory wait for a reset to be retired",
    ),
    (
        "throttle REASON[,REASON]|none",
        "the clocks are held down: power-cap, thermal, hw-slowdown, hw-thermal, power-brake, sync-boost, app-clocks, display-clocks",
    ),
    ("temperature CELSIUS", "the die is this hot"),
    ("power MILLIWATTS", "the card draws this much"),
    (
        "use PERCENT [MEMORY-PERCENT]",
        "kernels run, and memory is read",
    ),
    ("pcie GENERATION WIDTH", "the PCIe link is as slow as this"),
    ("pcie-replays N", "N packets more were sent again over PCIe"),
    (
        "nvlink LINK|all down|up",
        "an NVLink fails (XID 74) or works again",
    ),
    (
        "nvlink-errors LINK N",
        "N errors more of each kind on an NVLink",
    ),
    (
        "process PID compute|graphics|mps MIB [in GI/CI]",
        "a process uses the card",
    ),
    ("process PID gone", "that process has ended"),
    (
        "mig off|on|LAYOUT",
        "partition the card, such as 1g.10gb,3g.40gb or 3g.40gb/1c/2c; on is without partitions",
    ),
    (
        "mig-pending on|off",
        "the mode that comes with the next reset",
    ),
    (
        "event KIND [DATA]",
        "report an event: single-bit-ecc, double-bit-ecc, pstate, clock, mig-config",
    ),
    (
        "hang MILLISECONDS",
        "every question about the card takes this long",
    ),
    (
        "hang FUNCTION [MILLISECONDS]",
        "a function takes this long (an hour by default; 0 ends it)",
    ),
    (
        "error FUNCTION CODE|none",
        "a function returns this code, such as GPU_IS_LOST",
    ),
    (
        "init CODE|none",
        "initialisation is refused with this code, such as LIB_RM_VERSION_MISMATCH",
    ),
    (
        "heal",
        "the card answers again: not lost, not slow, no errors counted",
    ),
    (
        "reset",
        "reset the card: counters, pending changes and partitions",
    ),
    (
        "reboot",
        "reboot the machine: every card is reset, the driver loaded anew",
    ),
    ("swap INDEX", "the card changes places with another one"),
    ("remove", "take the card out"),
    ("add [PROFILE]", "put the card back, or one more in"),
    ("unload", "unload the driver"),
    ("load", "load the driver"),
];

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let unknown = || FaultError::Unknown(text.trim().to_owned());
        let (verb, rest) = words.split_first().ok_or_else(unknown)?;
        match (*verb, rest) {
            ("lost", []) => Ok(Self::Lost),
            ("heal", []) => Ok(Self::Heal),
            ("reset", []) => Ok(Self::Reset),
            ("reboot", []) => Ok(Self::Reboot),
            ("remove", []) => Ok(Self::Remove),
            ("add", []) => Ok(Self::Add(None)),
            ("add", [profile]) => Ok(Self::Add(Some((*profile).to_owned()))),
            ("unload", []) => Ok(Self::Unload),
            ("load", []) => Ok(Self::Load),
            ("swap", [index]) => Ok(Self::Swap(small("swap", index)?)),
            ("hang" | "error" | "init", _) => misbehaviour(verb, rest).ok_or_else(unknown)?,
            ("xid" | "event", _) => event(verb, rest).ok_or_else(unknown)?,
            ("process", _) => process(rest).ok_or_else(unknown)?,
            ("mig" | "mig-pending" | "nvlink" | "nvlink-errors", _) => {
                arrangement(verb, rest).ok_or_else(unknown)?
            }
            _ => figure(verb, rest).ok_or_else(unknown)?,
        }
    }
}

type Parsed = Option<Result<Fault, FaultError>>;

fn misbehaviour(verb: &str, rest: &[&str]) -> Parsed {
    Some(match (verb, rest) {
        ("hang", [function, time_ms]) => number("hang", time_ms, 0, MAX_HANG_MS)
            .map(|time_ms| Fault::HangFunction((*function).to_owned(), time_ms)),
        ("hang", [function]) if function.starts_with("nvml") => {
            Ok(Fault::HangFunction((*function).to_owned(), MAX_HANG_MS))
        }
        ("hang", [time_ms]) => number("hang", time_ms, 0, MAX_HANG_MS).map(Fault::Hang),
        ("error", [function, code]) => {
            code_or_none(code).map(|code| Fault::Error((*function).to_owned(), code))
        }
        ("init", [code]) => code_or_none(code).map(Fault::Init),
        _ => return None,
    })
}

fn code_or_none(word: &str) -> Result<Option<Code>, FaultError> {
    if word == "none" {
        return Ok(None);
    }
    Ok(Some(word.parse()?))
}

fn event(verb: &str, rest: &[&str]) -> Parsed {
    if verb == "event" {
        let (kind, data) = match rest {
            [kind] => (kind, Ok(0)),
            [kind, data] => (kind, number("event", data, 0, MAX)),
            _ => return None,
        };
        let kind = EventKind::ALL
            .into_iter()
            .find(|known| known.name() == *kind)?;
        return Some(data.map(|data| Fault::Event(kind, data)));
    }
    let (code, mut rest) = rest.split_first()?;
    let mut times = Ok(1);
    let mut place = Ok((None, None));
    while let [word, value, more @ ..] = rest {
        match *word {
            "times" => times = number("times", value, 1, MAX_TIMES),
            "in" => place = instance(value),
            _ => return None,
        }
        rest = more;
    }
    rest.is_empty().then(|| {
        let (gpu_instance, compute_instance) = place?;
        Ok(Fault::Xid {
            code: number("xid", code, 1, MAX)?,
            times: times?,
            gpu_instance,
            compute_instance,
        })
    })
}

/// `GI`, or `GI/CI`.
fn instance(text: &str) -> Result<(Option<u32>, Option<u32>), FaultError> {
    match text.split_once('/') {
        Some((gpu, compute)) => Ok((Some(small("in", gpu)?), Some(small("in", compute)?))),
        None => Ok((Some(small("in", text)?), None)),
    }
}

fn process(rest: &[&str]) -> Parsed {
    let pid = |word| number("process", word, 1, MAX).and_then(|pid| fits("process", pid));
    match rest {
        [word, "gone"] => Some(pid(word).map(Fault::ProcessGone)),
        [word, kind, memory, place @ ..] => {
            let kind = [
                ProcessKind::Compute,
                ProcessKind::Graphics,
                ProcessKind::Mps,
            ]
            .into_iter()
            .find(|known| kind_name(*known) == *kind)?;
            let partition = match place {
                [] => Ok(None),
                ["in", partition] => instance(partition).and_then(|place| match place {
                    (Some(gpu_instance), Some(compute_instance)) => Ok(Some(Partition {
                        gpu_instance,
                        compute_instance,
                    })),
                    _ => Err(FaultError::Unknown(format!("in {partition}"))),
                }),
                _ => return None,
            };
            let made = pid(word).and_then(|pid| {
                Ok(Fault::Process(Process {
                    pid,
                    kind,
                    memory_bytes: Some(number("process", memory, 0, MAX)? * MIB),
                    partition: partition?,
                }))
            });
            Some(made)
        }
        _ => None,
    }
}

fn kind_name(kind: ProcessKind) -> &'static str {
    match kind {
        ProcessKind::Compute => "compute",
        ProcessKind::Graphics => "graphics",
        ProcessKind::Mps => "mps",
    }
}

fn arrangement(verb: &str, rest: &[&str]) -> Parsed {
    Some(match (verb, rest) {
        ("mig", ["off"]) => Ok(Fault::Mig(None)),
        ("mig", ["on"]) => Ok(Fault::Mig(Some(Vec::new()))),
        ("mig", [layout]) => Ok(Fault::Mig(Some(
            layout.split(',').map(str::to_owned).collect(),
        ))),
        ("mig-pending", ["on"]) => Ok(Fault::MigPending(true)),
        ("mig-pending", ["off"]) => Ok(Fault::MigPending(false)),
        ("nvlink", [link, "down"]) => choice(link).map(|link| Fault::NvLink(link, false)),
        ("nvlink", [link, "up"]) => choice(link).map(|link| Fault::NvLink(link, true)),
        ("nvlink-errors", [link, count]) => choice(link).and_then(|link| {
            Ok(Fault::NvLinkErrors(
                link,
                number("nvlink-errors", count, 1, MAX)?,
            ))
        }),
        _ => return None,
    })
}

fn choice(word: &str) -> Result<LinkChoice, FaultError> {
    if word == "all" {
        return Ok(LinkChoice::All);
    }
    small("nvlink", word).map(LinkChoice::One)
}

/// What is a figure and nothing more.
fn figure(verb: &str, rest: &[&str]) -> Parsed {
    Some(match (verb, rest) {
        ("ecc", []) => Ok(Fault::Ecc(1)),
        ("ecc", [count]) => number("ecc", count, 1, MAX).map(Fault::Ecc),
        ("ecc-corrected", [count]) => {
            number("ecc-corrected", count, 1, MAX).map(Fault::EccCorrected)
        }
        ("remap", ["pending"]) => Ok(Fault::RemapPending),
        ("remap", ["failed"]) => Ok(Fault::RemapFailed),
        ("remap", ["done"]) => Ok(Fault::RemapDone),
        ("retire", [count]) => number("retire", count, 1, 64).map(Fault::Retire),
        ("throttle", ["none"]) => Ok(Fault::Throttle(0)),
        ("throttle", [names]) => reasons(names).map(Fault::Throttle),
        ("temperature", [degrees]) => number("temperature", degrees, 0, 200)
            .and_then(|degrees| fits("temperature", degrees))
            .map(Fault::Temperature),
        ("power", [milliwatts]) => small("power", milliwatts).map(Fault::Power),
        ("use", [percent]) => percentage(percent).map(|percent| Fault::Use(percent, 0)),
        ("use", [percent, memory]) => {
            percentage(percent).and_then(|percent| Ok(Fault::Use(percent, percentage(memory)?)))
        }
        ("pcie", [generation, width]) => small("pcie", generation)
            .and_then(|generation| Ok(Fault::Pcie(generation, small("pcie", width)?))),
        ("pcie-replays", [count]) => small("pcie-replays", count).map(Fault::PcieReplays),
        _ => return None,
    })
}

fn percentage(word: &str) -> Result<u32, FaultError> {
    number("use", word, 0, 100).and_then(|percent| fits("use", percent))
}

fn reasons(names: &str) -> Result<u64, FaultError> {
    names.split(',').try_fold(0, |bits, name| {
        let (_, bit) = REASONS
            .iter()
            .find(|(known, _)| *known == name)
            .ok_or_else(|| FaultError::Reason(name.to_owned()))?;
        Ok(bits | u64::from(*bit))
    })
}

/// A number that NVML counts in 32 bits.
fn small(verb: &'static str, given: &str) -> Result<u32, FaultError> {
    number(verb, given, 0, MAX).and_then(|number| fits(verb, number))
}

fn fits(verb: &'static str, number: u64) -> Result<u32, FaultError> {
    u32::try_from(number).map_err(|_| FaultError::Number {
        verb,
        given: number.to_string(),
        min: 0,
        max: MAX,
    })
}

fn number(verb: &'static str, given: &str, min: u64, max: u64) -> Result<u64, FaultError> {
    given
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| FaultError::Number {
            verb,
            given: given.to_owned(),
            min,
            max,
        })
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid {
                code,
                times,
                gpu_instance,
                compute_instance,
            } => {
                write!(f, "xid {code}")?;
                if *times != 1 {
                    write!(f, " times {times}")?;
                }
                match (gpu_instance, compute_instance) {
                    (Some(gpu), Some(compute)) => write!(f, " in {gpu}/{compute}"),
                    (Some(gpu), None) => write!(f, " in {gpu}"),
                    _ => Ok(()),
                }
            }
            Self::Lost => f.write_str("lost"),
            Self::Ecc(count) => write!(f, "ecc {count}"),
            Self::EccCorrected(count) => write!(f, "ecc-corrected {count}"),
            Self::RemapPending => f.write_str("remap pending"),
            Self::RemapFailed => f.write_str("remap failed"),
            Self::RemapDone => f.write_str("remap done"),
            Self::Retire(count) => write!(f, "retire {count}"),
            Self::Throttle(bits) => write_reasons(f, *bits),
            Self::Temperature(degrees) => write!(f, "temperature {degrees}"),
            Self::Power(milliwatts) => write!(f, "power {milliwatts}"),
            Self::Use(percent, memory) => write!(f, "use {percent} {memory}"),
            Self::Pcie(generation, width) => write!(f, "pcie {generation} {width}"),
            Self::PcieReplays(count) => write!(f, "pcie-replays {count}"),
            Self::NvLink(link, up) => {
                write!(f, "nvlink {link} {}", if *up { "up" } else { "down" })
            }
            Self::NvLinkErrors(link, count) => write!(f, "nvlink-errors {link} {count}"),
            Self::Process(process) => write_process(f, process),
            Self::ProcessGone(pid) => write!(f, "process {pid} gone"),
            Self::Mig(None) => f.write_str("mig off"),
            Self::Mig(Some(layout)) if layout.is_empty() => f.write_str("mig on"),
            Self::Mig(Some(layout)) => write!(f, "mig {}", layout.join(",")),
            Self::MigPending(on) => write!(f, "mig-pending {}", if *on { "on" } else { "off" }),
            Self::Event(kind, data) => write!(f, "event {} {data}", kind.name()),
            Self::Hang(time_ms) => write!(f, "hang {time_ms}"),
            Self::HangFunction(function, time_ms) => write!(f, "hang {function} {time_ms}"),
            Self::Error(function, code) => {
                write!(f, "error {function} {}", code.map_or("none", Code::name))
            }
            Self::Init(code) => write!(f, "init {}", code.map_or("none", Code::name)),
            Self::Heal => f.write_str("heal"),
            Self::Reset => f.write_str("reset"),
            Self::Reboot => f.write_str("reboot"),
            Self::Swap(index) => write!(f, "swap {index}"),
            Self::Remove => f.write_str("remove"),
            Self::Add(None) => f.write_str("add"),
            Self::Add(Some(profile)) => write!(f, "add {profile}"),
            Self::Unload => f.write_str("unload"),
            Self::Load => f.write_str("load"),
        }
    }
}

impl fmt::Display for LinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::One(number) => write!(f, "{number}"),
        }
    }
}

fn write_reasons(f: &mut fmt::Formatter<'_>, bits: u64) -> fmt::Result {
    let names: Vec<&str> = REASONS
        .iter()
        .filter(|(_, bit)| bits & u64::from(*bit) != 0)
        .map(|(name, _)| *name)
        .collect();
    if names.is_empty() {
        return f.write_str("throttle none");
    }
    write!(f, "throttle {}", names.join(","))
}

fn write_process(f: &mut fmt::Formatter<'_>, process: &Process) -> fmt::Result {
    let memory_mib = process.memory_bytes.unwrap_or(0) / MIB;
    write!(
        f,
        "process {} {} {memory_mib}",
        process.pid,
        kind_name(process.kind)
    )?;
    match &process.partition {
        Some(partition) => write!(f, " in {partition}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_read_as_it_is_written() {
        for text in [
            "xid 79",
            "xid 31 times 1000",
            "xid 94 in 3",
            "xid 94 times 2 in 3/0",
            "lost",
            "ecc 2",
            "ecc-corrected 5",
            "remap pending",
            "remap failed",
            "remap done",
            "retire 3",
            "throttle none",
            "throttle power-cap,hw-thermal",
            "temperature 91",
            "power 12000",
            "use 90 30",
            "pcie 1 4",
            "pcie-replays 9",
            "nvlink all down",
            "nvlink 3 up",
            "nvlink-errors 3 7",
            "process 4711 compute 512",
            "process 4711 mps 0 in 7/0",
            "process 4711 gone",
            "mig off",
            "mig on",
            "mig 1g.10gb,3g.40gb/1c/2c",
            "mig-pending on",
            "event clock 0",
            "hang 5000",
            "hang nvmlInit_v2 3600000",
            "error nvmlDeviceGetTemperature UNKNOWN",
            "error nvmlDeviceGetTemperature none",
            "init LIB_RM_VERSION_MISMATCH",
            "init none",
            "heal",
            "reset",
            "reboot",
            "swap 1",
            "remove",
            "add",
            "add t4",
            "unload",
            "load",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!("ecc".parse(), Ok(Fault::Ecc(1)));
        assert_eq!(
            " hang   nvmlInit_v2 ".parse(),
            Ok(Fault::HangFunction("nvmlInit_v2".to_owned(), MAX_HANG_MS))
        );
    }

    #[test]
    fn help_names_every_verb_and_nothing_else() {
        for (words, _) in FAULTS {
            let verb = words.split(' ').next().unwrap();
            let alone = verb.parse::<Fault>();
            let understood = !matches!(alone, Err(FaultError::Unknown(_)));
            assert!(understood || words.contains(' '), "{words}");
        }
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_would_be_one() {
        let message = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
        assert!(message("explode").contains("xid CODE [times N]"));
        assert_eq!(
            message("xid many"),
            "`xid` needs a number from 1 to 4294967295, not `many`"
        );
        assert!(message("xid 1 times 0").contains("`times` needs a number"));
        assert!(message("xid 1 in").contains("is no fault"));
        assert!(message("hang -1").contains("0 to 3600000"));
        assert!(message("throttle tired").contains("`tired`"));
        assert!(message("error nvmlInit_v2 SORRY").contains("`SORRY`"));
        assert!(message("process 1 compute 5 in 3").contains("is no fault"));
        assert!(message("").contains("is no fault"));
    }
}
