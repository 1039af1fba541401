//! Which of a plan's cases are run.

use std::str::FromStr;

use super::seed::Seed;
use crate::error::{Error, Result};

/// One hundred per cent, in basis points.
const ALL_BASIS_POINTS: u64 = 10_000;

/// How many of a plan's cases are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sample {
    /// This many, or all where there are fewer.
    Count(u64),
    /// This part of them in basis points, rounded up.
    Share {
        /// From 1 to 10,000.
        basis_points: u64,
    },
}

impl FromStr for Sample {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text}: give a number of cases (12) or a share of them (2.5%)");
        let nothing = || format!("{text}: a sample of 0 cases tests nothing, ask for at least 1");
        let Some(share) = text.strip_suffix('%') else {
            return match text.parse::<u64>() {
                Ok(0) => Err(nothing()),
                Ok(count) => Ok(Self::Count(count)),
                Err(_) => Err(malformed()),
            };
        };
        let (whole, part) = share.split_once('.').unwrap_or((share, ""));
        if part.len() > 2 || !part.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(malformed());
        }
        let whole: u64 = whole.parse().map_err(|_| malformed())?;
        let part: u64 = format!("{part:0<2}").parse().map_err(|_| malformed())?;
        match whole
            .checked_mul(100)
            .and_then(|whole| whole.checked_add(part))
        {
            Some(0) => Err(nothing()),
            Some(basis_points) if basis_points <= ALL_BASIS_POINTS => {
                Ok(Self::Share { basis_points })
            }
            _ => Err(format!("{text}: a share is at most 100%")),
        }
    }
}

impl Sample {
    /// How many of `total` cases that is: at least one where there is one.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Count(count) => count.min(total),
            Self::Share { basis_points } => {
                let product = u128::from(total) * u128::from(basis_points);
                let share = product.div_ceil(u128::from(ALL_BASIS_POINTS));
                u64::try_from(share).unwrap_or(total).min(total)
            }
        }
    }
}

/// What of a plan is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Every case.
    All,
    /// A part, drawn by the seed.
    Sample(Sample),
    /// These cases.
    Only(Vec<String>),
}

/// The wanted ones of a plan's cases, in the plan's order.
///
/// A case's rank depends on nothing but the seed and its name, so that a case
/// more or less does not change which others are drawn.
pub(super) fn choose(
    plan: &str,
    cases: &[String],
    wanted: &Wanted,
    seed: Seed,
) -> Result<Vec<String>> {
    match wanted {
        Wanted::All => Ok(cases.to_vec()),
        Wanted::Only(names) => {
            if let Some(missing) = names.iter().find(|name| !cases.contains(name)) {
                return Err(Error::Usage(format!(
                    "--only {missing}: the plan {plan} has no such case; see `creo-e2e prove --plan {plan} --list`"
                )));
            }
            Ok(cases
                .iter()
                .filter(|case| names.contains(case))
                .cloned()
                .collect())
        }
        Wanted::Sample(sample) => {
            let count = usize::try_from(sample.of(cases.len() as u64)).unwrap_or(usize::MAX);
            let mut ranked: Vec<(u64, usize)> = cases
                .iter()
                .enumerate()
                .map(|(index, case)| (seed.derive(&["rank", plan, case]), index))
                .collect();
            ranked.sort_unstable();
            let mut chosen: Vec<usize> = ranked
                .into_iter()
                .take(count)
                .map(|(_, index)| index)
                .collect();
            chosen.sort_unstable();
            Ok(chosen
                .into_iter()
                .filter_map(|index| cases.get(index).cloned())
                .collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("case-{number}")).collect()
    }

    #[test]
    fn a_sample_is_a_count_or_a_share() {
        assert_eq!("12".parse(), Ok(Sample::Count(12)));
        assert_eq!("5%".parse(), Ok(Sample::Share { basis_points: 500 }));
        assert_eq!("2.5%".parse(), Ok(Sample::Share { basis_points: 250 }));
        assert_eq!("0.01%".parse(), Ok(Sample::Share { basis_points: 1 }));
        assert_eq!(
            "100%".parse(),
            Ok(Sample::Share {
                basis_points: 10_000
            })
        );
    }

    #[test]
    fn a_sample_of_nothing_or_of_rubbish_is_refused_with_a_reason() {
        for (text, reason) in [
            ("0", "at least 1"),
            ("0%", "at least 1"),
            ("0.00%", "at least 1"),
            ("101%", "at most 100%"),
            ("100.01%", "at most 100%"),
            ("99999999999999999999%", "give a number"),
            ("184467440737095517%", "at most 100%"),
            ("0.001%", "give a number"),
            ("1.-1%", "give a number"),
            ("-1", "give a number"),
            ("many", "give a number"),
            ("", "give a number"),
        ] {
            let refused = text.parse::<Sample>().expect_err(text);
            assert!(refused.contains(reason), "{text}: {refused}");
        }
    }

    #[test]
    fn a_case_that_does_not_exist_is_refused_by_name() {
        let wanted = Wanted::Only(vec!["case-9".into()]);
        let refused = choose("p", &names(3), &wanted, Seed(1)).expect_err("no such case");
        assert!(refused.to_string().contains("case-9"), "{refused}");
    }

    proptest! {
        #[test]
        fn a_sample_has_the_asked_size_and_keeps_the_order(total in 1usize..60, count in 1u64..80, seed: u64) {
            let cases = names(total);
            let wanted = Wanted::Sample(Sample::Count(count));
            let chosen = choose("p", &cases, &wanted, Seed(seed)).expect("a sample");
            prop_assert_eq!(chosen.len() as u64, count.min(total as u64));
            let mut at = cases.iter();
            prop_assert!(chosen.iter().all(|case| at.any(|other| other == case)));
        }

        #[test]
        fn a_share_is_never_nothing_and_never_more_than_all(total in 1u64..10_000, basis_points in 1u64..=10_000) {
            let count = Sample::Share { basis_points }.of(total);
            prop_assert!((1..=total).contains(&count));
            prop_assert!(u128::from(count) * 10_000 >= u128::from(total) * u128::from(basis_points));
        }

        #[test]
        fn one_more_case_replaces_at_most_one_of_a_sample(total in 2usize..60, seed: u64) {
            let wanted = Wanted::Sample(Sample::Count(5));
            let fewer = choose("p", &names(total), &wanted, Seed(seed)).expect("a sample");
            let more = choose("p", &names(total + 1), &wanted, Seed(seed)).expect("a sample");
            let kept = fewer.iter().filter(|case| more.contains(case)).count();
            prop_assert!(kept + 1 >= fewer.len());
        }
    }
}
