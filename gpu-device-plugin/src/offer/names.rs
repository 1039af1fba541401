//! Names of resources for cards of different kinds.

use std::collections::{BTreeMap, BTreeSet};

/// Longest class of a resource, in characters: that of a label.
pub const CLASS_MAX: usize = 63;
/// What a shortened or ambiguous name ends with, in characters.
const DIGEST: usize = 8;
const GIB: u64 = 1 << 30;

/// What makes a card, or a part of one, unlike another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// The product's name.
    pub model: String,
    /// The size of the partition, by NVIDIA's name; empty for a card.
    pub profile: String,
    /// CUDA compute capability.
    pub compute_capability: String,
    /// Memory in bytes, the same for all that count as having the same.
    pub memory_bytes: u64,
    /// How many shares a card has.
    pub shares: u32,
}

impl Kind {
    /// The kind in words.
    #[must_use]
    pub fn describe(&self) -> String {
        let profile = match self.profile.as_str() {
            "" => String::new(),
            profile => format!("{profile} of "),
        };
        let shares = match self.shares {
            1 => String::new(),
            shares => format!(" in {shares} shares"),
        };
        let memory = gibibytes(self.memory_bytes);
        format!("{profile}{:?} with {memory} GiB{shares}", self.model)
    }

    /// A word for the kind, the longer the more exact.
    fn word(&self, exactness: usize) -> String {
        let mut word = slug(&self.model);
        if exactness >= 1 {
            word = format!("{word}-{}gib", gibibytes(self.memory_bytes));
        }
        if exactness >= 2 {
            word = format!("{word}-x{}", self.shares);
        }
        if exactness >= MOST_EXACT {
            word = format!("{word}-{}", digest(&format!("{self:?}")));
        }
        word
    }
}

const MOST_EXACT: usize = 3;

/// The classes `PREFIX-KIND SUFFIX` of all these kinds, each valid and no two the same.
#[must_use]
pub fn classes(prefix: &str, kinds: &BTreeSet<Kind>, suffix: &str) -> BTreeMap<Kind, String> {
    let mut exactness: BTreeMap<&Kind, usize> = kinds.iter().map(|kind| (kind, 0)).collect();
    loop {
        let named: BTreeMap<Kind, String> = exactness
            .iter()
            .map(|(kind, exactness)| {
                (
                    (*kind).clone(),
                    class(prefix, &kind.word(*exactness), suffix),
                )
            })
            .collect();
        let mut again = false;
        for (kind, exactness) in &mut exactness {
            let same = named.values().filter(|name| *name == &named[*kind]).count();
            if same > 1 && *exactness < MOST_EXACT {
                *exactness += 1;
                again = true;
            }
        }
        if !again {
            return named;
        }
    }
}

/// The class made of these three, shortened where it would be too long.
fn class(prefix: &str, word: &str, suffix: &str) -> String {
    let room = CLASS_MAX.saturating_sub(prefix.len() + 1 + suffix.len());
    if word.len() <= room {
        return format!("{prefix}-{word}{suffix}");
    }
    // Words are ASCII.
    let kept = word[..room.saturating_sub(DIGEST + 1)].trim_end_matches('-');
    let word = [kept, &digest(word)].join(if kept.is_empty() { "" } else { "-" });
    format!("{prefix}-{word}{suffix}")
}

/// The name of a product as a part of a resource's name: small letters, digits and dashes.
#[must_use]
pub fn slug(model: &str) -> String {
    let words: Vec<String> = model
        .split(|letter: char| !letter.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    let words = match words.as_slice() {
        // Every card is NVIDIA's.
        [first, rest @ ..] if first == "nvidia" && !rest.is_empty() => rest,
        all => all,
    };
    if words.is_empty() {
        return "unknown".to_owned();
    }
    words.join("-")
}

fn gibibytes(bytes: u64) -> u64 {
    bytes.saturating_add(GIB / 2) / GIB
}

/// Eight digits that stay the same over versions and machines (FNV-1a, folded): those of the
/// standard library's hasher may change.
#[must_use]
pub fn digest(text: &str) -> String {
    let whole = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{:08x}", (whole >> 32) ^ (whole & 0xffff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind(model: &str, gib: u64) -> Kind {
        Kind {
            model: model.to_owned(),
            profile: String::new(),
            compute_capability: "8.0".to_owned(),
            memory_bytes: gib * GIB,
            shares: 1,
        }
    }

    fn named(kinds: &[Kind]) -> Vec<String> {
        let named = classes("gpu", &kinds.iter().cloned().collect(), "");
        kinds.iter().map(|kind| named[kind].clone()).collect()
    }

    #[test]
    fn a_product_becomes_a_word() {
        for (model, word) in [
            ("NVIDIA A100-SXM4-80GB", "a100-sxm4-80gb"),
            ("Tesla T4", "tesla-t4"),
            ("NVIDIA GeForce RTX 4090", "geforce-rtx-4090"),
            ("NVIDIA", "nvidia"),
            ("--", "unknown"),
            ("", "unknown"),
            ("NVIDIA Tëst (R) 1", "t-st-r-1"),
        ] {
            assert_eq!(slug(model), word, "{model}");
        }
    }

    #[test]
    fn a_name_is_as_exact_as_it_has_to_be() {
        assert_eq!(
            named(&[kind("Tesla T4", 15), kind("NVIDIA L4", 22)]),
            ["gpu-tesla-t4", "gpu-l4"]
        );
        assert_eq!(
            named(&[kind("A100", 40), kind("A100", 80), kind("L4", 22)]),
            ["gpu-a100-40gib", "gpu-a100-80gib", "gpu-l4"]
        );
        // The same word for products of different names.
        let same = named(&[kind("A 100", 40), kind("A-100", 40)]);
        assert!(
            same.iter()
                .all(|name| name.starts_with("gpu-a-100-40gib-x1-")),
            "{same:?}"
        );
        assert_ne!(same[0], same[1]);
    }

    #[test]
    fn a_long_name_is_cut_and_stays_different_from_its_like() {
        let long = "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition of the very long name";
        let names = named(&[kind(long, 96), kind(&format!("{long} 2"), 96)]);
        assert_ne!(names[0], names[1]);
        assert!(
            names.iter().all(|name| name.len() <= CLASS_MAX),
            "{names:?}"
        );
    }

    proptest! {
        #[test]
        fn names_are_different_valid_and_no_longer_than_a_label(
            models in prop::collection::btree_set(("[ -~]{0,80}|[a-b] ?-?[a-b]", 0..3_u64, 1..3_u32), 1..8),
        ) {
            let kinds: BTreeSet<Kind> = models
                .into_iter()
                .map(|(model, gib, shares)| Kind { shares, ..kind(&model, gib) })
                .collect();
            let named = classes("gpu", &kinds, ".shared");
            let distinct: BTreeSet<_> = named.values().collect();
            prop_assert_eq!(distinct.len(), kinds.len());
            for name in named.values() {
                prop_assert!(name.len() <= CLASS_MAX);
                prop_assert!(name.starts_with("gpu-") && name.ends_with(".shared"));
                prop_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase()
                    || byte.is_ascii_digit() || byte == b'-' || byte == b'.'));
                prop_assert!(!name.contains("-."));
            }
        }
    }
}
