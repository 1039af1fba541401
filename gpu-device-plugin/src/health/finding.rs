//! What can be wrong with a GPU, how grave it is and what to do.

use std::fmt;
use std::mem::discriminant;
use std::time::Duration;

use super::xid;
use crate::inventory::PcieLink;

/// How grave a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It is told and changes nothing.
    Note,
    /// Nobody new is given the GPU; what runs there goes on.
    Drain,
    /// What runs there is not worth keeping.
    Out,
}

impl Severity {
    /// The severity as a word for machines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Note => "Note",
            Self::Drain => "Drain",
            Self::Out => "Out",
        }
    }
}

/// Why a card's clocks are held down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slowdown {
    /// The driver holds the card below its highest operating temperature.
    Thermal,
    /// The card protects itself: it is hotter than it may be.
    HardwareThermal,
    /// The machine's power supply demands it.
    PowerBrake,
}

impl Slowdown {
    /// How long it may be so, all looks of one spell together, before nobody new is given the
    /// card.
    #[must_use]
    pub const fn patience(self) -> Duration {
        match self {
            // The driver trims the clocks by a few percent of a card under full load on a warm
            // day; ten minutes of it are no weather but a machine that is not cooled enough.
            Self::Thermal => Duration::from_mins(10),
            // The clocks are halved or worse. A fan that spins up takes seconds; after a
            // minute it does not get better by itself.
            Self::HardwareThermal | Self::PowerBrake => Duration::from_mins(1),
        }
    }
}

/// What the driver itself says must be done with a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recovery {
    /// A reset of the card.
    Reset,
    /// A reboot of the machine.
    Reboot,
    /// The end of all traffic between this card and others.
    DrainPeers,
    /// No new work, and a reset when the present work is done.
    DrainAndReset,
}

/// What is wrong with a GPU. Its text says what happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// It has fallen off the bus.
    Lost,
    /// It was here since the plugin started, and the driver does not count it any more.
    Missing,
    /// A faulty row of memory could not be remapped.
    RowRemapFailed,
    /// More uncorrectable errors of the card's SRAM than NVIDIA tolerates.
    SramThreshold,
    /// The driver says that this must be done.
    RecoveryNeeded(Recovery),
    /// The driver reported this XID, which is not a program's fault.
    Xid(u64),
    /// There are uncorrected memory errors that were not there before.
    UncorrectedEcc,
    /// A faulty row of memory is remapped at the next reset.
    RowRemapPending,
    /// Faulty pages of memory are retired at the next reset.
    RetiredPagesPending,
    /// The driver does not answer for it in time.
    Silent,
    /// The driver answers with an error.
    Unreadable(String),
    /// The clocks are held down.
    SlowedDown {
        /// Why.
        why: Slowdown,
        /// Whether it has been so for longer than passes by itself.
        lasting: bool,
    },
    /// NVLink connections that were up are down.
    NvLinkDown {
        /// How many are down.
        down: u32,
        /// How many were up.
        of: u32,
    },
    /// The PCI Express link never got as fast as card and slot could have it.
    PcieDegraded(PcieLink),
    /// A person took it out of service. The text says who or what said so, such as
    /// `the configuration`.
    OutOfService(String),
}

const RESET: &str = "when its work is done, stop this plugin on the node, reset the GPU (nvidia-smi --gpu-reset) or reboot";

impl Finding {
    /// A word for machines: the same for the same kind of finding.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Lost => "Lost",
            Self::Missing => "Missing",
            Self::RowRemapFailed => "RowRemapFailed",
            Self::SramThreshold => "SramThreshold",
            Self::RecoveryNeeded(_) => "RecoveryNeeded",
            Self::Xid(_) => "XidError",
            Self::UncorrectedEcc => "UncorrectedEcc",
            Self::RowRemapPending => "RowRemapPending",
            Self::RetiredPagesPending => "RetiredPagesPending",
            Self::Silent => "DriverSilent",
            Self::Unreadable(_) => "Unreadable",
            Self::SlowedDown {
                why: Slowdown::PowerBrake,
                ..
            } => "PowerBrake",
            Self::SlowedDown { .. } => "ThermalSlowdown",
            Self::NvLinkDown { .. } => "NvLinkDown",
            Self::PcieDegraded(_) => "PcieDegraded",
            Self::OutOfService(_) => "OutOfService",
        }
    }

    /// Whether the one takes the place of the other: the same thing, seen again or seen to have
    /// changed.
    #[must_use]
    pub fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Xid(one), Self::Xid(other)) => one == other,
            (Self::SlowedDown { why: one, .. }, Self::SlowedDown { why: other, .. }) => {
                one == other
            }
            _ => discriminant(self) == discriminant(other),
        }
    }

    /// How grave it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Lost
            | Self::Missing
            | Self::RowRemapFailed
            | Self::SramThreshold
            | Self::RecoveryNeeded(Recovery::Reset | Recovery::Reboot) => Severity::Out,
            Self::Xid(code) => xid::describe(*code).effect.severity(),
            Self::UncorrectedEcc
            | Self::RecoveryNeeded(Recovery::DrainPeers | Recovery::DrainAndReset)
            | Self::RowRemapPending
            | Self::RetiredPagesPending
            | Self::Silent
            | Self::Unreadable(_)
            | Self::SlowedDown { lasting: true, .. }
            | Self::NvLinkDown { .. }
            | Self::OutOfService(_) => Severity::Drain,
            Self::SlowedDown { lasting: false, .. } | Self::PcieDegraded(_) => Severity::Note,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.reason())?;
        match self {
            Self::Xid(code) => {
                let known = xid::describe(*code);
                write!(f, "XID {code}, {}; {}", known.meaning, known.remedy)
            }
            Self::Unreadable(why) => write!(
                f,
                "the driver answers \"{why}\"; look at nvidia-smi and the kernel's log"
            ),
            Self::NvLinkDown { down, of } => write!(
                f,
                "{down} of {of} NVLink connections are down; check bridges, cables and the fabric manager, then reset the GPU"
            ),
            Self::PcieDegraded(link) => write!(
                f,
                "the PCI Express link runs at generation {} with {} lanes, where generation {} with {} are possible; check slot, riser and the machine's settings",
                link.generation, link.width, link.generation_max, link.width_max
            ),
            Self::OutOfService(by) => write!(
                f,
                "taken out of service by {by}; take it off there to put it back"
            ),
            Self::UncorrectedEcc => write!(f, "uncorrected memory errors; {RESET}"),
            Self::RowRemapPending => write!(
                f,
                "a faulty row of memory is remapped at the next reset; {RESET}"
            ),
            Self::RetiredPagesPending => write!(
                f,
                "faulty pages of memory are retired at the next reset; {RESET}"
            ),
            Self::RecoveryNeeded(what) => write!(f, "{}", recovery(*what)),
            Self::SlowedDown { why, lasting } => f.write_str(slowdown(*why, *lasting)),
            Self::Silent => f.write_str(
                "the driver does not answer for this GPU; look at the kernel's log, and reboot the machine if it lasts",
            ),
            Self::Lost => f.write_str(
                "the GPU has fallen off the bus; check seat, power and cooling of the card, then reboot the machine",
            ),
            Self::Missing => f.write_str(
                "the driver does not count this GPU any more; put it back, or restart this plugin if it was taken out for good",
            ),
            Self::RowRemapFailed => f.write_str(
                "a faulty row of memory could not be remapped; have the card replaced",
            ),
            Self::SramThreshold => f.write_str(
                "too many uncorrectable errors of the GPU's SRAM; have the card replaced",
            ),
        }
    }
}

fn recovery(what: Recovery) -> &'static str {
    match what {
        Recovery::Reset => {
            "the driver asks for a reset; stop what uses the GPU and this plugin on the node, then reset it (nvidia-smi --gpu-reset)"
        }
        Recovery::Reboot => "the driver asks for a reboot; reboot the machine",
        Recovery::DrainPeers => {
            "the driver asks to end all traffic between this GPU and others; end the work that uses several GPUs, then reset it (nvidia-smi --gpu-reset)"
        }
        Recovery::DrainAndReset => {
            "the driver asks for a reset when the present work is done; then stop this plugin on the node and reset the GPU (nvidia-smi --gpu-reset)"
        }
    }
}

fn slowdown(why: Slowdown, lasting: bool) -> &'static str {
    match (why, lasting) {
        (Slowdown::Thermal, false) => {
            "the driver slows the GPU down to keep it from getting too hot; look at the machine's cooling if it lasts"
        }
        (Slowdown::Thermal, true) => {
            "the driver has been slowing the GPU down for long to keep it from getting too hot; check fans, dust, airflow and the room's temperature"
        }
        (Slowdown::HardwareThermal, false) => {
            "the GPU is too hot and slows itself down; look at the machine's cooling"
        }
        (Slowdown::HardwareThermal, true) => {
            "the GPU stays too hot and slows itself down; check fans, dust, airflow and the room's temperature"
        }
        (Slowdown::PowerBrake, false) => {
            "the machine's power supply slows the GPU down; look at the power supplies"
        }
        (Slowdown::PowerBrake, true) => {
            "the machine's power supply keeps the GPU slowed down; check power supplies, cables and the rack's power budget"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Finding> {
        let mut all = vec![
            Finding::Lost,
            Finding::Missing,
            Finding::RowRemapFailed,
            Finding::SramThreshold,
            Finding::Xid(79),
            Finding::UncorrectedEcc,
            Finding::RowRemapPending,
            Finding::RetiredPagesPending,
            Finding::Silent,
            Finding::Unreadable("Unknown Error".to_owned()),
            Finding::NvLinkDown { down: 1, of: 18 },
            Finding::PcieDegraded(PcieLink {
                generation: 3,
                generation_max: 5,
                width: 8,
                width_max: 16,
            }),
            Finding::OutOfService("the configuration".to_owned()),
        ];
        for what in [
            Recovery::Reset,
            Recovery::Reboot,
            Recovery::DrainPeers,
            Recovery::DrainAndReset,
        ] {
            all.push(Finding::RecoveryNeeded(what));
        }
        for why in [
            Slowdown::Thermal,
            Slowdown::HardwareThermal,
            Slowdown::PowerBrake,
        ] {
            all.push(Finding::SlowedDown { why, lasting: true });
            all.push(Finding::SlowedDown {
                why,
                lasting: false,
            });
        }
        all
    }

    #[test]
    fn every_finding_says_what_happened_and_what_to_do() {
        assert_eq!(
            Finding::Xid(79).to_string(),
            "XidError: XID 79, the GPU has fallen off the bus; check seat, power and cooling of the card, then reboot the machine"
        );
        assert!(Finding::Xid(777).to_string().contains("does not know"));
        for finding in all() {
            let text = finding.to_string();
            let said = text.strip_prefix(finding.reason()).unwrap();
            assert!(said.starts_with(": "), "{text}");
            assert!(said.contains("; "), "{text}");
            assert!(text.len() < 512, "{text}");
        }
    }

    #[test]
    fn reasons_are_words() {
        for finding in all() {
            let reason = finding.reason();
            assert!(reason.chars().all(char::is_alphanumeric), "{reason}");
            assert!(reason.starts_with(char::is_uppercase), "{reason}");
        }
    }

    #[test]
    fn the_page_about_the_plugin_has_every_reason_with_its_severity() {
        let page = include_str!("../../../docs/gpu-device-plugin.md");
        for finding in all() {
            let row = page
                .lines()
                .find(|line| line.starts_with(&format!("| `{}` |", finding.reason())));
            let row = row.unwrap_or_else(|| panic!("{} is not described", finding.reason()));
            let severity = finding.severity().word();
            assert!(
                row.contains(severity) || row.contains("[by number]"),
                "{row}"
            );
        }
    }
}
