//! How often the claims are written: at once where somebody has to act on them, and never so
//! often that GPUs that flap keep the API server busy.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest time between two writes.
const APART: Duration = Duration::from_millis(250);
/// Shortest time between a write and one that can wait.
const APART_WHERE_IT_CAN_WAIT: Duration = Duration::from_secs(10);
/// How many writes may follow one another at the shortest time.
const BURST: u32 = 20;
/// How long it takes until one more may.
const REGAINED_AFTER: Duration = Duration::from_secs(6);
/// First and longest pause after a write that failed.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

/// When the next write may be.
#[derive(Debug)]
pub struct Pace {
    last: Option<Instant>,
    /// When all writes of a burst will have been regained: a write moves it on.
    regained: Instant,
    failures: u32,
}

impl Pace {
    /// Nothing was written yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            last: None,
            regained: now,
            failures: 0,
        }
    }

    /// When the next write may be; one that can wait comes later.
    #[must_use]
    pub fn next(&self, can_wait: bool) -> Instant {
        let Some(last) = self.last else {
            return self.regained;
        };
        let apart = match self.failures {
            0 if can_wait => APART_WHERE_IT_CAN_WAIT,
            0 => APART,
            failures => pause(failures),
        };
        let burst = REGAINED_AFTER * (BURST - 1);
        (last + apart).max(self.regained.checked_sub(burst).unwrap_or(last))
    }

    /// A write was tried.
    pub fn wrote(&mut self, now: Instant, succeeded: bool) {
        self.last = Some(now);
        self.regained = self.regained.max(now) + REGAINED_AFTER;
        self.failures = if succeeded {
            0
        } else {
            self.failures.saturating_add(1)
        };
    }
}

fn pause(failures: u32) -> Duration {
    let (first, longest) = RETRY;
    first
        .saturating_mul(2_u32.saturating_pow(failures.min(16)))
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moments, in milliseconds, of so many writes, each as soon as it may be.
    fn writes(number: usize, can_wait: bool) -> Vec<u128> {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        let mut now = began;
        let mut moments = Vec::new();
        for _ in 0..number {
            now = now.max(pace.next(can_wait));
            pace.wrote(now, true);
            moments.push((now - began).as_millis());
        }
        moments
    }

    #[test]
    fn changes_that_matter_follow_one_another_quickly_and_flapping_ones_do_not() {
        let moments = writes(100, false);
        assert_eq!(moments[..4], [0, 250, 500, 750]);
        assert_eq!(moments[19], 19 * 250, "a burst");
        let last = moments[99];
        assert!((470_000..500_000).contains(&last), "{last}: ten a minute");
    }

    #[test]
    fn after_a_rest_the_next_write_is_at_once_again() {
        let began = Instant::now();
        let mut pace = Pace::new(began);
        let mut now = began;
        for _ in 0..50 {
            now = now.max(pace.next(false));
            pace.wrote(now, true);
        }
        let rested = now + REGAINED_AFTER;
        assert!(pace.next(false) <= rested);
    }

    #[test]
    fn what_can_wait_is_written_once_in_ten_seconds() {
        assert_eq!(writes(4, true), [0, 10_000, 20_000, 30_000]);
    }

    #[test]
    fn after_failures_the_pauses_grow_and_are_bounded() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.wrote(now, false);
        assert_eq!(pace.next(false) - now, Duration::from_secs(2));
        pace.wrote(now, false);
        assert_eq!(pace.next(false) - now, Duration::from_secs(4));
        assert_eq!(pause(1_000), Duration::from_mins(1));
        pace.wrote(now, true);
        assert_eq!(pace.next(false) - now, APART);
    }
}
