use creo_market::money::{Invalid, bond::BondParameters, epoch::EpochParameters, price::HOUR_MS};
use serde::{Deserialize, Serialize};

/// How the ledger judges operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LedgerParameters {
    /// Times of epochs, payouts and disputes.
    pub epoch: EpochParameters,
    /// Bonds.
    pub bond: BondParameters,
    /// What may be left of an epoch's pool when all is given, in micro-credits;
    /// 0 to 1,000,000. Default: 1,000. The rules leave nothing; more than a
    /// thousandth of a credit is a charge that was forgotten, and settlement is
    /// refused.
    pub dust_micro_max: i64,
    /// The longest that money may be set aside, in milliseconds; an hour to 31
    /// days. Default: 31 days.
    pub hold_ms_max: i64,
    /// The most payouts that one withdrawal may be taken from; 1 to 1,024.
    /// Default: 256. It bounds one operation; who has more withdraws in parts.
    pub withdrawal_payouts_max: i64,
}

impl Default for LedgerParameters {
    fn default() -> Self {
        Self {
            epoch: EpochParameters::default(),
            bond: BondParameters::default(),
            dust_micro_max: 1_000,
            hold_ms_max: 31 * 24 * HOUR_MS,
            withdrawal_payouts_max: 256,
        }
    }
}

impl LedgerParameters {
    /// Refuses values out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.epoch.validate()?;
        self.bond.validate()?;
        Invalid::unless_within("dust_micro_max", self.dust_micro_max, 0, 1_000_000)?;
        Invalid::unless_within("hold_ms_max", self.hold_ms_max, HOUR_MS, 31 * 24 * HOUR_MS)?;
        let most = self.withdrawal_payouts_max;
        Invalid::unless_within("withdrawal_payouts_max", most, 1, 1_024)
    }
}
