//! An epoch's phases, when a payout is free, and until when one may dispute.

use serde::{Deserialize, Serialize};

use super::{Invalid, price::HOUR_MS, terms::TIME_MS_MAX};

/// Milliseconds of a day.
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// The times of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EpochParameters {
    /// How long after an epoch's end observations still count for it, in
    /// milliseconds; a minute to a day. Default: 15 minutes, as long as a hub
    /// that was away is bridged, so that what it has to tell still counts.
    pub grace_ms: i64,
    /// How long after settlement a payout is free, in milliseconds; 6 hours to
    /// 30 days. Default: 24 hours.
    ///
    /// At least the time in which a fault is found: checks come hourly (1 h), a
    /// small committee's suspicion and a large one's conviction take at most an
    /// hour each, and a person has 3 h to stop a wave of them.
    pub maturity_ms: i64,
    /// How long after settlement a dispute may be opened, in milliseconds; a day
    /// to 90 days. Default: 7 days, as long as a bond is kept after notice.
    pub dispute_ms: i64,
}

impl Default for EpochParameters {
    fn default() -> Self {
        Self {
            grace_ms: HOUR_MS / 4,
            maturity_ms: DAY_MS,
            dispute_ms: 7 * DAY_MS,
        }
    }
}

impl EpochParameters {
    /// Refuses values out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("grace_ms", self.grace_ms, HOUR_MS / 60, DAY_MS)?;
        Invalid::unless_within("maturity_ms", self.maturity_ms, 6 * HOUR_MS, 30 * DAY_MS)?;
        Invalid::unless_within("dispute_ms", self.dispute_ms, DAY_MS, 90 * DAY_MS)
    }

    /// The moment from which a payout is free, in milliseconds since 1970.
    #[must_use]
    pub fn free_at_ms(&self, settled_at_ms: i64) -> i64 {
        settled_at_ms + self.maturity_ms
    }

    /// The moment from which no dispute can be opened.
    #[must_use]
    pub fn disputes_end_ms(&self, settled_at_ms: i64) -> i64 {
        settled_at_ms + self.dispute_ms
    }
}

/// Whether what is free from `free_at_ms` on is free at `now_ms`: in that very
/// millisecond it is, in the one before it is not.
#[must_use]
pub fn is_free(free_at_ms: i64, now_ms: i64) -> bool {
    now_ms >= free_at_ms
}

/// A closed span of time over which charges are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// Its number; epochs follow one another by 1.
    pub epoch: i64,
    /// Its first millisecond, since 1970.
    pub start_ms: i64,
    /// The millisecond after its last.
    pub end_ms: i64,
    /// How long after its end observations still count for it.
    pub grace_ms: i64,
}

/// How far an epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What is used now counts for it.
    Open,
    /// It is over; what is told late still counts until the cut-off, and then it
    /// waits for its settlement.
    Closing,
    /// Its payouts are fixed; they may still be disputed.
    Settled,
    /// Nothing changes it any more.
    Final,
}

impl Window {
    /// Refuses a window that is empty or before 1970.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("epoch", self.epoch, 0, 1_000_000_000)?;
        Invalid::unless_within("start_ms", self.start_ms, 0, TIME_MS_MAX)?;
        Invalid::unless_within("end_ms", self.end_ms, self.start_ms + 1, TIME_MS_MAX)?;
        Invalid::unless_within("grace_ms", self.grace_ms, HOUR_MS / 60, DAY_MS)
    }

    /// From this moment on, what is told does not count for the epoch any more.
    #[must_use]
    pub fn cut_off_ms(&self) -> i64 {
        self.end_ms + self.grace_ms
    }

    /// The phase at `now_ms` of an epoch that was settled at `settled_at_ms`, if
    /// it was, and of which disputes are open or not.
    #[must_use]
    pub fn phase(
        &self,
        now_ms: i64,
        settled_at_ms: Option<i64>,
        disputed: bool,
        parameters: &EpochParameters,
    ) -> Phase {
        match settled_at_ms {
            Some(settled_at_ms)
                if !disputed && now_ms >= parameters.disputes_end_ms(settled_at_ms) =>
            {
                Phase::Final
            }
            Some(_) => Phase::Settled,
            None if now_ms >= self.end_ms => Phase::Closing,
            None => Phase::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_goes_through_its_phases_at_their_very_milliseconds() {
        let window = Window {
            epoch: 1,
            start_ms: 0,
            end_ms: 1_000,
            grace_ms: HOUR_MS / 60,
        };
        let parameters = EpochParameters::default();
        let over = 5_000 + parameters.dispute_ms;
        for (now_ms, settled_at_ms, disputed, expected) in [
            (999, None, false, Phase::Open),
            (1_000, None, false, Phase::Closing),
            (i64::MAX, None, false, Phase::Closing),
            (5_000, Some(5_000), false, Phase::Settled),
            (over - 1, Some(5_000), false, Phase::Settled),
            (over, Some(5_000), false, Phase::Final),
            (over, Some(5_000), true, Phase::Settled),
        ] {
            assert_eq!(
                window.phase(now_ms, settled_at_ms, disputed, &parameters),
                expected,
                "{now_ms} {settled_at_ms:?}"
            );
        }
        assert_eq!(window.cut_off_ms(), 61_000);
    }

    #[test]
    fn bad_times_are_refused_with_the_fields_name() {
        let good = EpochParameters::default();
        good.validate().unwrap();
        for (field, parameters) in [
            (
                "grace_ms",
                EpochParameters {
                    grace_ms: 59_999,
                    ..good
                },
            ),
            (
                "maturity_ms",
                EpochParameters {
                    maturity_ms: 6 * HOUR_MS - 1,
                    ..good
                },
            ),
            (
                "dispute_ms",
                EpochParameters {
                    dispute_ms: 90 * DAY_MS + 1,
                    ..good
                },
            ),
        ] {
            assert_eq!(parameters.validate().unwrap_err().field, field);
        }
        let good = Window {
            epoch: 0,
            start_ms: 0,
            end_ms: 1,
            grace_ms: DAY_MS,
        };
        good.validate().unwrap();
        for (field, window) in [
            ("epoch", Window { epoch: -1, ..good }),
            (
                "start_ms",
                Window {
                    start_ms: -1,
                    ..good
                },
            ),
            (
                "end_ms",
                Window {
                    start_ms: 1,
                    ..good
                },
            ),
            (
                "grace_ms",
                Window {
                    grace_ms: DAY_MS + 1,
                    ..good
                },
            ),
        ] {
            assert_eq!(window.validate().unwrap_err().field, field);
        }
    }
}
