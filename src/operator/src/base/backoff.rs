//! How long an object waits after it failed.

use std::time::Duration;

/// A delay that doubles with each failure in a row, up to a ceiling, with jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The delay after the first failure, before jitter.
    pub first: Duration,
    /// The longest delay.
    pub ceiling: Duration,
}

impl Backoff {
    /// The delay after `failures` failures in a row (1 for the first). `seed` spreads objects that
    /// failed together: the delay lies between half of the full delay and the full delay.
    #[must_use]
    pub fn delay(&self, failures: u32, seed: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let full = self.first.saturating_mul(1 << doublings).min(self.ceiling);
        let full_ms = u64::try_from(full.as_millis()).unwrap_or(u64::MAX);
        let half_ms = full_ms / 2;
        // A splitmix64 step, so that seeds that differ by one still spread.
        let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let jitter_ms = mixed % (full_ms - half_ms + 1);
        Duration::from_millis(half_ms + jitter_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(200),
        ceiling: Duration::from_mins(1),
    };

    proptest! {
        #[test]
        fn a_delay_lies_between_half_and_all_of_the_doubled_delay(failures in 1_u32.., seed: u64) {
            let full = Duration::from_millis(200).saturating_mul(1 << (failures - 1).min(31)).min(BACKOFF.ceiling);
            let delay = BACKOFF.delay(failures, seed);
            prop_assert!(delay <= full);
            prop_assert!(delay + Duration::from_millis(1) >= full / 2);
        }

        #[test]
        fn objects_that_failed_together_do_not_all_come_back_together(first: u64) {
            let delays: std::collections::BTreeSet<_> =
                (0..64).map(|n| BACKOFF.delay(9, first.wrapping_add(n))).collect();
            prop_assert!(delays.len() > 48);
        }
    }

    #[test]
    fn no_number_of_failures_passes_the_ceiling() {
        assert!(BACKOFF.delay(u32::MAX, 7) <= BACKOFF.ceiling);
    }
}
