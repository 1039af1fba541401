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

#[cfg(test)]
mod tests {
    use super::*;

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
}
