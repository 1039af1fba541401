//! Everything random in a plan follows from one number.

use sha2::{Digest as _, Sha256};

/// The number that a run of plans is drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The seed of a commit, for runs that name none: each commit tries other
    /// cases, and one commit always the same.
    #[must_use]
    pub fn of_commit(commit: Option<&str>) -> Self {
        // 48 bits, which every reader of JSON holds exactly.
        let digits = commit.and_then(|commit| commit.get(..12)).unwrap_or("1");
        Self(u64::from_str_radix(digits, 16).unwrap_or(1))
    }

    /// A number that depends on this seed and on each of the words, in order.
    #[must_use]
    pub fn derive(self, words: &[&str]) -> u64 {
        let mut hash = Sha256::new();
        hash.update(self.0.to_be_bytes());
        for word in words {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((word.len() as u64).to_be_bytes());
            hash.update(word.as_bytes());
        }
        hash.finalize()
            .iter()
            .take(8)
            .fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }
}

/// A stream of numbers that look random (SplitMix64): the same on every
/// machine, which no library promises between its versions.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream that begins with `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0. The bias, below
    /// `bound` / 2^64, does not matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw().checked_rem(bound).unwrap_or(0)
    }

    /// One of the choices, or `None` when there are none.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> Option<&'a T> {
        let index = self.below(choices.len() as u64);
        choices.get(usize::try_from(index).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_stream_is_the_published_one() {
        // The first outputs of SplitMix64 for the seed 1234567.
        let mut random = Random::new(1_234_567);
        let drawn = [random.draw(), random.draw(), random.draw()];
        assert_eq!(
            drawn,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn a_commit_has_one_seed_and_no_commit_has_one_too() {
        let commit = "6afdfbc0123456789abcdef0123456789abcdef0";
        assert_eq!(Seed::of_commit(Some(commit)), Seed(0x6afd_fbc0_1234));
        assert_eq!(Seed::of_commit(None), Seed(1));
    }

    #[test]
    fn words_are_kept_apart() {
        assert_ne!(Seed(1).derive(&["ab", "c"]), Seed(1).derive(&["a", "bc"]));
        assert_ne!(Seed(1).derive(&["a"]), Seed(2).derive(&["a"]));
    }

    proptest! {
        #[test]
        fn a_draw_below_a_bound_is_below_it(seed: u64, bound in 1u64..1000) {
            prop_assert!(Random::new(seed).below(bound) < bound);
            let choices: Vec<u64> = (0..bound).collect();
            prop_assert!(Random::new(seed).pick(&choices).is_some());
            prop_assert!(Random::new(seed).pick::<u64>(&[]).is_none());
        }
    }
}
