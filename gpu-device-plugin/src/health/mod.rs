//! Whether a GPU is fit for new work: a pure rule over what was seen of it, and when.

pub mod xid;

use std::fmt;
use std::time::Duration;

use xid::Cause;

/// Whether a GPU may be given to new containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It may.
    Healthy,
    /// It may not, for this reason.
    Unhealthy(Finding),
}

impl Health {
    /// Whether the GPU may be given away.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        matches!(self, Self::Healthy)
    }
}

/// What is wrong with a GPU. Its text says what happened and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// The driver does not answer for it in time.
    Silent,
    /// The driver answers with an error.
    Unreadable(String),
    /// The driver reported this XID, which is not a program's fault.
    Xid(u64),
    /// There are uncorrected memory errors that were not there before.
    UncorrectedEcc,
    /// It has fallen off the bus.
    Lost,
    /// It was here since the plugin started, and the driver does not count it any more.
    Missing,
}

impl Finding {
    /// A word for machines: the same for the same kind of finding.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Silent => "DriverSilent",
            Self::Unreadable(_) => "Unreadable",
            Self::Xid(_) => "XidError",
            Self::UncorrectedEcc => "UncorrectedEcc",
            Self::Lost => "Lost",
            Self::Missing => "Missing",
        }
    }

    /// How much a finding says: a lesser one does not hide a greater one.
    fn weight(&self) -> u8 {
        match self {
            Self::Silent => 0,
            Self::Unreadable(_) => 1,
            Self::Xid(_) | Self::UncorrectedEcc => 2,
            Self::Lost | Self::Missing => 3,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.reason())?;
        match self {
            Self::Silent => f.write_str(
                "the driver does not answer for this GPU; look at the kernel's log, and reboot the machine if it lasts",
            ),
            Self::Unreadable(why) => write!(
                f,
                "the driver answers \"{why}\"; look at nvidia-smi and the kernel's log"
            ),
            Self::Xid(code) => {
                let known = xid::describe(*code);
                write!(f, "XID {code}, {}; {}", known.meaning, known.remedy)
            }
            Self::UncorrectedEcc => f.write_str(
                "uncorrected memory errors; stop what uses the GPU and reset it (nvidia-smi --gpu-reset)",
            ),
            Self::Lost => f.write_str(
                "the GPU has fallen off the bus; check seat, power and cooling of the card, then reboot the machine",
            ),
            Self::Missing => f.write_str(
                "the driver does not count this GPU any more; put it back, or restart this plugin if it was taken out for good",
            ),
        }
    }
}

/// What one look at a GPU gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Uncorrected ECC errors since the driver was loaded, where they are counted.
    pub uncorrected_ecc_errors: Option<u64>,
}

/// Follows the health of one GPU.
///
/// Times are spans since any fixed moment, the same for all calls.
#[derive(Debug, Clone)]
pub struct Tracker {
    /// How long a GPU must be without a finding before it is healthy again.
    quiet: Duration,
    uncorrected_ecc_errors: Option<u64>,
    /// What is wrong, and when it was last seen to be.
    fault: Option<(Finding, Duration)>,
}

impl Tracker {
    /// A GPU without any finding.
    #[must_use]
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            uncorrected_ecc_errors: None,
            fault: None,
        }
    }

    /// Something is wrong now.
    pub fn found(&mut self, finding: Finding, now: Duration) {
        if let Finding::Xid(code) = finding
            && xid::describe(code).cause == Cause::Application
        {
            return;
        }
        match &mut self.fault {
            Some((known, seen)) => {
                *seen = now;
                if finding.weight() >= known.weight() {
                    *known = finding;
                }
            }
            None => self.fault = Some((finding, now)),
        }
    }

    /// The GPU answered. The only way back to healthy: a GPU that does not answer has not
    /// become any better by the time that passed.
    pub fn answered(&mut self, seen: Seen, now: Duration) {
        let before = self.uncorrected_ecc_errors;
        if seen.uncorrected_ecc_errors.is_some() {
            self.uncorrected_ecc_errors = seen.uncorrected_ecc_errors;
        }
        // Errors from before the first look were dealt with by the driver's own restart.
        if before.is_some() && seen.uncorrected_ecc_errors > before {
            self.found(Finding::UncorrectedEcc, now);
        }
        if let Some((_, last)) = &self.fault
            && now.saturating_sub(*last) >= self.quiet
        {
            self.fault = None;
        }
    }

    /// The health as of the last thing that was seen.
    #[must_use]
    pub fn health(&self) -> Health {
        match &self.fault {
            None => Health::Healthy,
            Some((finding, _)) => Health::Unhealthy(finding.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_mins(1);
    const FINE: Seen = Seen {
        uncorrected_ecc_errors: Some(0),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn counted(errors: u64) -> Seen {
        Seen {
            uncorrected_ecc_errors: Some(errors),
        }
    }

    #[test]
    fn errors_of_programs_leave_a_gpu_healthy() {
        let mut tracker = Tracker::new(QUIET);
        for code in [13, 31, 43, 45, 68, 109] {
            tracker.found(Finding::Xid(code), at(1));
        }
        assert_eq!(tracker.health(), Health::Healthy);
    }

    #[test]
    fn a_critical_xid_takes_a_gpu_out_until_it_answered_after_a_quiet_time() {
        let mut tracker = Tracker::new(QUIET);
        tracker.found(Finding::Xid(79), at(10));
        tracker.answered(FINE, at(69));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::Xid(79)));
        tracker.answered(FINE, at(70));
        assert_eq!(tracker.health(), Health::Healthy);
    }

    #[test]
    fn time_alone_heals_nothing() {
        let mut tracker = Tracker::new(QUIET);
        tracker.found(Finding::Lost, at(0));
        tracker.found(Finding::Silent, at(1_000));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::Lost));
        tracker.answered(FINE, at(1_001));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::Lost));
    }

    #[test]
    fn every_new_error_starts_the_quiet_time_again() {
        let mut tracker = Tracker::new(QUIET);
        for second in 0..100 {
            tracker.found(Finding::Xid(48), at(second * 50));
            tracker.answered(FINE, at(second * 50 + 49));
            assert!(!tracker.health().is_healthy());
        }
    }

    #[test]
    fn a_lesser_finding_does_not_hide_a_greater_one_and_a_greater_one_replaces_it() {
        let mut tracker = Tracker::new(QUIET);
        tracker.found(Finding::Unreadable("Unknown Error".to_owned()), at(0));
        tracker.found(Finding::Xid(79), at(1));
        tracker.found(Finding::Silent, at(2));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::Xid(79)));
        tracker.found(Finding::Lost, at(3));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::Lost));
    }

    #[test]
    fn ecc_errors_count_when_they_rise_and_not_for_being_there() {
        let mut tracker = Tracker::new(QUIET);
        tracker.answered(counted(7), at(0));
        tracker.answered(counted(7), at(1));
        assert!(tracker.health().is_healthy());
        tracker.answered(counted(8), at(2));
        assert_eq!(tracker.health(), Health::Unhealthy(Finding::UncorrectedEcc));
        // A reset counts from 0 again, which is no error.
        tracker.answered(counted(0), at(62));
        assert!(tracker.health().is_healthy());
    }

    #[test]
    fn every_finding_says_what_to_do() {
        let lost = Finding::Xid(79).to_string();
        assert_eq!(
            lost,
            "XidError: XID 79, the GPU has fallen off the bus; check seat, power and cooling of the card, then reboot the machine"
        );
        assert!(Finding::Xid(777).to_string().contains("does not know"));
        for finding in [
            Finding::Silent,
            Finding::Unreadable("Unknown Error".to_owned()),
            Finding::UncorrectedEcc,
            Finding::Lost,
            Finding::Missing,
        ] {
            assert!(finding.to_string().starts_with(finding.reason()));
            assert!(finding.to_string().len() < 1_024);
        }
    }
}
