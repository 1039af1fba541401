//! The bond: what is withheld of payouts against faults that are found later.

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    amount::{self, WHOLE_BP},
    epoch::DAY_MS,
};

/// How a bond grows and when it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BondParameters {
    /// What is withheld of each payout, in basis points; 0 to 10,000. Default:
    /// 2,000.
    pub withheld_bp: i64,
    /// Over what time the owner's own pay is counted, in milliseconds; a day to
    /// 90 days: the bond grows up to that pay. Default: 7 days, as long as
    /// disputes can be opened, so that a bond that is full covers all that can
    /// still be disputed and is not held otherwise.
    pub pay_ms: i64,
    /// How long after notice the bond is freed, in milliseconds; 7 to 90 days.
    /// Default: 7 days; not less, or an owner could leave before the last
    /// dispute can be opened.
    pub notice_ms: i64,
}

impl Default for BondParameters {
    fn default() -> Self {
        Self {
            withheld_bp: 2_000,
            pay_ms: 7 * DAY_MS,
            notice_ms: 7 * DAY_MS,
        }
    }
}

impl BondParameters {
    /// Refuses values out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("withheld_bp", self.withheld_bp, 0, WHOLE_BP)?;
        Invalid::unless_within("pay_ms", self.pay_ms, DAY_MS, 90 * DAY_MS)?;
        Invalid::unless_within("notice_ms", self.notice_ms, 7 * DAY_MS, 90 * DAY_MS)
    }

    /// What is withheld of a payout of `gross_micro`, rounded down, where the
    /// bond has `bond_micro` and the owner's own pay over the counted time, this
    /// payout included, is `pay_micro`.
    #[must_use]
    pub fn withheld(&self, gross_micro: i64, bond_micro: i64, pay_micro: i64) -> i64 {
        let missing = (pay_micro - bond_micro).max(0);
        amount::part(gross_micro.max(0), self.withheld_bp).min(missing)
    }

    /// Whether a bond of which notice was given at `notice_at_ms` is free at
    /// `now_ms`.
    #[must_use]
    pub fn is_freed(&self, notice_at_ms: i64, now_ms: i64, disputed: bool) -> bool {
        !disputed && now_ms >= notice_at_ms + self.notice_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_is_withheld_until_the_bond_is_the_pay_of_a_week() {
        let parameters = BondParameters::default();
        for (gross, bond, pay, expected) in [
            (1_000, 0, 1_000, 200),
            (1_004, 0, 1_004, 200),
            (1_000, 6_900, 7_000, 100),
            (1_000, 7_000, 7_000, 0),
            (1_000, 9_000, 7_000, 0),
            (0, 0, 7_000, 0),
        ] {
            assert_eq!(
                parameters.withheld(gross, bond, pay),
                expected,
                "{gross} {bond} {pay}"
            );
        }
    }

    #[test]
    fn a_bond_is_free_seven_days_after_notice_and_not_while_a_dispute_is_open() {
        let parameters = BondParameters::default();
        let due = 5 + 7 * DAY_MS;
        assert!(!parameters.is_freed(5, due - 1, false));
        assert!(parameters.is_freed(5, due, false));
        assert!(!parameters.is_freed(5, due, true));
    }

    #[test]
    fn bad_bonds_are_refused_with_the_fields_name() {
        let good = BondParameters::default();
        good.validate().unwrap();
        for (field, parameters) in [
            (
                "withheld_bp",
                BondParameters {
                    withheld_bp: 10_001,
                    ..good
                },
            ),
            ("pay_ms", BondParameters { pay_ms: 0, ..good }),
            (
                "notice_ms",
                BondParameters {
                    notice_ms: 7 * DAY_MS - 1,
                    ..good
                },
            ),
        ] {
            assert_eq!(parameters.validate().unwrap_err().field, field);
        }
    }
}
