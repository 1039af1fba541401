//! Which cards a rule is about.

use std::fmt;

use crate::inventory::{Gpu, MigDevice};

/// Chooses cards or partitions: all that is given has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// UUID of a card or of a partition.
    pub uuid: Option<String>,
    /// The driver's number of the card.
    pub index: Option<u32>,
    /// The product's name.
    pub model: Option<Pattern>,
}

impl Selector {
    /// Whether the whole card is meant.
    #[must_use]
    pub fn fits(&self, gpu: &Gpu) -> bool {
        self.uuid.as_ref().is_none_or(|uuid| *uuid == gpu.uuid) && self.fits_the_rest(gpu)
    }

    /// Whether this partition of the card is meant, and not all of the card.
    #[must_use]
    pub fn fits_partition(&self, gpu: &Gpu, partition: &MigDevice) -> bool {
        self.uuid.as_ref() == Some(&partition.uuid) && self.fits_the_rest(gpu)
    }

    fn fits_the_rest(&self, gpu: &Gpu) -> bool {
        self.index.is_none_or(|index| index == gpu.index)
            && self
                .model
                .as_ref()
                .is_none_or(|model| model.fits(&gpu.model))
    }
}

/// A text in which `*` stands for any characters and `?` for one; letters of either case are
/// the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// This pattern.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether it describes the whole text.
    #[must_use]
    pub fn fits(&self, text: &str) -> bool {
        let lower = |text: &str| text.to_lowercase().chars().collect::<Vec<char>>();
        let (pattern, text) = (lower(&self.0), lower(text));
        let (mut at, mut place) = (0, 0);
        // Where to go on when what followed the last star does not fit: the star takes one
        // character more.
        let mut star: Option<(usize, usize)> = None;
        while place < text.len() {
            match pattern.get(at) {
                Some('*') => {
                    star = Some((at, place));
                    at += 1;
                }
                Some(wanted) if *wanted == '?' || *wanted == text[place] => {
                    at += 1;
                    place += 1;
                }
                _ => match &mut star {
                    Some((star_at, taken)) => {
                        *taken += 1;
                        (at, place) = (*star_at + 1, *taken);
                    }
                    None => return false,
                },
            }
        }
        pattern[at..].iter().all(|rest| *rest == '*')
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gpu() -> Gpu {
        Gpu {
            index: 3,
            uuid: "GPU-3".to_owned(),
            model: "NVIDIA A100-SXM4-80GB".to_owned(),
            ..Gpu::default()
        }
    }

    #[test]
    fn a_pattern_describes_the_whole_name_in_either_case() {
        for (pattern, fits) in [
            ("*", true),
            ("*a100*", true),
            ("NVIDIA A100-SXM4-80GB", true),
            ("nvidia a100-*-??gb", true),
            ("**80GB*", true),
            ("*A100", false),
            ("A100*", false),
            ("*?80GB?", false),
            ("", false),
        ] {
            assert_eq!(Pattern::new(pattern).fits(&gpu().model), fits, "{pattern}");
        }
        assert!(Pattern::new("").fits("") && Pattern::new("*").fits(""));
    }

    #[test]
    fn all_that_is_given_has_to_fit() {
        let selector = Selector {
            uuid: Some("GPU-3".to_owned()),
            index: Some(3),
            model: Some(Pattern::new("*A100*")),
        };
        assert!(selector.fits(&gpu()));
        for other in [
            Gpu { index: 4, ..gpu() },
            Gpu {
                uuid: "GPU-4".to_owned(),
                ..gpu()
            },
            Gpu {
                model: "H100".to_owned(),
                ..gpu()
            },
        ] {
            assert!(!selector.fits(&other));
        }
    }

    #[test]
    fn a_partition_is_meant_by_its_own_uuid_alone() {
        let partition = MigDevice {
            uuid: "MIG-1".to_owned(),
            ..MigDevice::default()
        };
        let by = |uuid: &str| Selector {
            uuid: Some(uuid.to_owned()),
            ..Selector::default()
        };
        assert!(by("MIG-1").fits_partition(&gpu(), &partition) && !by("MIG-1").fits(&gpu()));
        assert!(!by("GPU-3").fits_partition(&gpu(), &partition));
        assert!(!Selector::default().fits_partition(&gpu(), &partition));
    }

    proptest! {
        #[test]
        fn a_text_fits_itself_and_any_part_of_it_between_stars(text in "[a-cA-C ]{0,12}", from in 0..12_usize) {
            prop_assert!(Pattern::new(&text).fits(&text));
            let part: String = text.chars().skip(from).take(3).collect();
            let pattern = Pattern::new(&format!("*{part}*"));
            prop_assert!(pattern.fits(&text));
        }
    }
}
