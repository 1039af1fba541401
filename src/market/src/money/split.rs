//! Who gets what: one formula for a charge, and the largest remainder where
//! several share a sum.

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    amount::{self, WHOLE_BP},
    terms::Shares,
};

/// The parts of a charge, which sum to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parts {
    /// The node's part, in micro-credits: rounded towards zero.
    pub node_micro: i64,
    /// The validators' part, in micro-credits: rounded towards zero.
    pub validators_micro: i64,
    /// The platform's part, in micro-credits: what is left.
    pub platform_micro: i64,
}

/// Divides a charge by basis points. A charge below 0 is divided as that above
/// 0 and taken back from each.
#[must_use]
pub fn divide(charge_micro: i64, shares: &Shares) -> Parts {
    let node_micro = amount::part(charge_micro, shares.node_bp);
    let validators_micro = amount::part(charge_micro, shares.validator_bp);
    Parts {
        node_micro,
        validators_micro,
        platform_micro: charge_micro - node_micro - validators_micro,
    }
}

/// One of those who share a sum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weight {
    /// The account's name.
    pub account: String,
    /// What it has earned its share by, such as accepted reports; at least 0.
    pub weight: i64,
}

/// Splits `sum_micro` by weight. Each gets its exact share rounded down; the
/// micro-credits that are left go one by one to the largest remainders, ties by
/// account. The shares sum to `sum_micro`, in the order of the accounts; who has
/// a weight of 0 gets none and is not listed.
///
/// Where nobody has a weight, nobody gets anything: the list is empty, and the
/// sum stays where it is.
///
/// # Errors
///
/// The sum or a weight is below 0, or an account is listed twice.
pub fn apportion(sum_micro: i64, weights: &[Weight]) -> Result<Vec<(String, i64)>, Invalid> {
    Invalid::unless_within("sum_micro", sum_micro, 0, amount::MICRO_MAX)?;
    let mut weights: Vec<&Weight> = weights.iter().collect();
    weights.sort_by(|a, b| a.account.cmp(&b.account));
    for pair in weights.windows(2) {
        if pair[0].account == pair[1].account {
            let why = format!(
                "must list each account once, and lists {} twice",
                pair[0].account
            );
            return Err(Invalid::new("account", why));
        }
    }
    let mut total = 0_i128;
    for weight in &weights {
        Invalid::unless_within("weight", weight.weight, 0, amount::MICRO_MAX)?;
        total += i128::from(weight.weight);
    }
    weights.retain(|weight| weight.weight > 0);
    let mut shares = Vec::with_capacity(weights.len());
    let mut left = sum_micro;
    for weight in &weights {
        let exact = i128::from(sum_micro) * i128::from(weight.weight);
        let share = amount::fitting("share_micro", exact / total)?;
        left -= share;
        shares.push((weight.account.clone(), share, exact % total));
    }
    let mut ranking: Vec<usize> = (0..shares.len()).collect();
    // Stable: of equal remainders, the first account comes first.
    ranking.sort_by_key(|index| std::cmp::Reverse(shares[*index].2));
    let extra = usize::try_from(left).unwrap_or_default();
    for index in ranking.into_iter().take(extra) {
        shares[index].1 += 1;
    }
    Ok(shares
        .into_iter()
        .map(|(account, share, _)| (account, share))
        .collect())
}

/// What standby pay or a subsidy may be at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SubsidyParameters {
    /// What a node may get of it in an epoch, in basis points of the platform's
    /// part of its own charges; 0 to 9,000. Default: 9,000.
    ///
    /// Below 10,000, because whoever trades with itself gets back the node's
    /// part, and the validators' part as well where it also validates: what it
    /// cannot get back is the platform's part, and of that at least a tenth must
    /// be lost. So it is a part of the platform's part alone, which is at most
    /// the 9,000 bp of all that is not the node's.
    pub most_bp: i64,
}

impl Default for SubsidyParameters {
    fn default() -> Self {
        Self { most_bp: 9_000 }
    }
}

impl SubsidyParameters {
    /// Refuses what would let trading with oneself pay.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("most_bp", self.most_bp, 0, 9_000)
    }

    /// What a node gets of `wished_micro`, when the platform has kept
    /// `platform_micro` of its charges: rounded down, and nothing where the
    /// platform kept nothing.
    #[must_use]
    pub fn granted(&self, wished_micro: i64, platform_micro: i64) -> i64 {
        wished_micro
            .min(amount::part(
                platform_micro,
                self.most_bp.clamp(0, WHOLE_BP),
            ))
            .max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(weights: &[(&str, i64)]) -> Vec<Weight> {
        weights
            .iter()
            .map(|(account, weight)| Weight {
                account: (*account).to_owned(),
                weight: *weight,
            })
            .collect()
    }

    #[test]
    fn a_charge_is_divided_without_a_rest_on_either_side_of_zero() {
        let shares = Shares::default();
        for charge in [0, 1, 19, 20, 9_999, 1_000_001] {
            let parts = divide(charge, &shares);
            assert_eq!(
                parts.node_micro + parts.validators_micro + parts.platform_micro,
                charge
            );
            assert!(parts.platform_micro >= 0 && parts.node_micro <= charge);
            let back = divide(-charge, &shares);
            assert_eq!(
                (back.node_micro, back.validators_micro, back.platform_micro),
                (
                    -parts.node_micro,
                    -parts.validators_micro,
                    -parts.platform_micro
                )
            );
        }
    }

    #[test]
    fn what_is_left_goes_to_the_largest_remainders_and_ties_to_the_first_account() {
        for (sum, of, expected) in [
            (
                10,
                vec![("b", 1), ("a", 1), ("c", 1)],
                vec![("a", 4), ("b", 3), ("c", 3)],
            ),
            (10, vec![("a", 1), ("b", 2)], vec![("a", 3), ("b", 7)]),
            (1, vec![("a", 1), ("b", 2)], vec![("a", 0), ("b", 1)]),
            (5, vec![("a", 0), ("b", 2)], vec![("b", 5)]),
            (0, vec![("a", 1)], vec![("a", 0)]),
            (5, vec![("a", 0)], vec![]),
            (5, vec![], vec![]),
        ] {
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(a, s)| (a.to_owned(), s))
                .collect();
            assert_eq!(
                apportion(sum, &weights(&of)),
                Ok(expected),
                "{sum} by {of:?}"
            );
        }
    }

    #[test]
    fn bad_weights_are_refused() {
        for (field, sum, of) in [
            ("sum_micro", -1, vec![]),
            ("weight", 1, vec![("a", -1)]),
            ("weight", 1, vec![("a", amount::MICRO_MAX + 1)]),
            ("account", 1, vec![("a", 1), ("a", 2)]),
        ] {
            assert_eq!(apportion(sum, &weights(&of)).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_subsidy_is_at_most_nine_tenths_of_the_platforms_part() {
        let parameters = SubsidyParameters::default();
        assert_eq!(parameters.granted(1_000, 1_000), 900);
        assert_eq!(parameters.granted(899, 1_000), 899);
        assert_eq!(parameters.granted(1_000, -5), 0);
        assert_eq!(parameters.granted(-1, 1_000), 0);
        let refused = SubsidyParameters { most_bp: 9_001 }.validate().unwrap_err();
        assert_eq!(refused.field, "most_bp");
    }
}
