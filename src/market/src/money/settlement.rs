//! What an epoch's settlement gives to whom.
//!
//! Charges are added one by one to a [`Tally`], which keeps a sum an account and
//! not the charges, so that a million of them need no more room than their
//! accounts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    amount::{self, fitting},
    bond::BondParameters,
    objectives::Faults,
    price::Charge,
    split::{self, Parts, SubsidyParameters, Weight},
    terms::Shares,
};

/// What was charged for one Placement in one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochCharge {
    /// The Placement.
    pub placement: String,
    /// The account that pays.
    pub customer: String,
    /// The account that is paid for the node.
    pub owner: String,
    /// Charge and fee. Both are below 0 where corrections took more back than
    /// was used in the epoch.
    pub charge: Charge,
    /// Who gets what, by the Placement's terms.
    pub shares: Shares,
    /// What the customer gets back.
    pub faults: Faults,
}

/// What became of one charge. Charge = node's credit + parts; the hub's credit
/// comes from the platform.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Settled {
    /// What the customer gets back of the charge for the node's faults, in
    /// micro-credits, rounded down. Node, validators and platform each get their
    /// part of what is left alone.
    pub node_credit_micro: i64,
    /// What the customer gets back for the hub's faults, in micro-credits,
    /// rounded down. It is the platform's to pay; the node keeps its part.
    pub hub_credit_micro: i64,
    /// The parts of the charge less the node's credit.
    pub parts: Parts,
}

/// Settles one charge. A charge below 0 has no credit.
#[must_use]
pub fn settle(charge_micro: i64, shares: &Shares, faults: &Faults) -> Settled {
    let creditable = charge_micro.max(0);
    let node_credit_micro = amount::part(creditable, faults.node_bp);
    Settled {
        node_credit_micro,
        hub_credit_micro: amount::part(creditable, faults.hub_bp),
        parts: split::divide(charge_micro - node_credit_micro, shares),
    }
}

/// What is known of an account's bond before a settlement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BondState {
    /// What the bond has, in micro-credits.
    pub bond_micro: i64,
    /// The account's own pay over the counted time before this settlement, in
    /// micro-credits.
    pub pay_micro: i64,
}

/// What a settlement needs beside the charges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The validators, by their accepted reports of the epoch.
    pub validators: Vec<Weight>,
    /// What earlier epochs left for validators, in micro-credits; below 0 where
    /// validators have to return something.
    pub validation_micro: i64,
    /// What nodes' owners should get for standing by, in micro-credits.
    pub standby: Vec<Weight>,
    /// What there is for that, in micro-credits.
    pub subsidy_micro: i64,
    /// Bonds by account; who is not listed has none and no pay yet.
    pub bonds: BTreeMap<String, BondState>,
}

/// One account's payout of an epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pay {
    /// The account's name.
    pub account: String,
    /// The nodes' part of its own charges, in micro-credits.
    pub node_micro: i64,
    /// Its share of the validators' part, in micro-credits.
    pub validator_micro: i64,
    /// What it gets for standing by, in micro-credits.
    pub standby_micro: i64,
    /// What of all that goes to its bond, in micro-credits.
    pub withheld_micro: i64,
}

impl Pay {
    /// All that it gets, in micro-credits, what is withheld included.
    #[must_use]
    pub fn gross_micro(&self) -> i64 {
        self.node_micro + self.validator_micro + self.standby_micro
    }
}

/// What a settlement gives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settlement {
    /// Customers' debits, charges and fees, of the charges above 0.
    pub charged: Charge,
    /// What customers get back for nodes' faults, in micro-credits.
    pub node_credits_micro: i64,
    /// What customers get back for the hub's faults, in micro-credits.
    pub hub_credits_micro: i64,
    /// The validators' part, in micro-credits.
    pub validators_micro: i64,
    /// The platform's part with the customers' fees, in micro-credits.
    pub platform_micro: i64,
    /// Payouts by account; who gets nothing is not listed.
    pub pays: Vec<Pay>,
    /// What is left for validators of later epochs, in micro-credits: all of it
    /// where no report was accepted; below 0 where they still have to return
    /// something.
    pub validation_left_micro: i64,
}

/// How a settlement is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettlementParameters {
    /// Standby pay and subsidies.
    pub subsidy: SubsidyParameters,
    /// Bonds.
    pub bond: BondParameters,
}

impl SettlementParameters {
    /// Refuses values out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.subsidy.validate()?;
        self.bond.validate()
    }
}

#[derive(Clone, Copy, Default)]
struct OwnerSum {
    node: i128,
    platform_kept: i128,
}

/// The sums of an epoch's charges.
#[derive(Clone, Default)]
pub struct Tally {
    owners: BTreeMap<String, OwnerSum>,
    charge: i128,
    fee: i128,
    node_credits: i128,
    hub_credits: i128,
    validators: i128,
    platform: i128,
}

impl Tally {
    /// Adds a charge, and says what becomes of it. One below 0 is not added: it
    /// is no part of what the epoch has to give, but an adjustment that each
    /// returns its part of.
    ///
    /// # Errors
    ///
    /// The credits are more than the charge, or the shares do not sum.
    pub fn add(&mut self, charge: &EpochCharge) -> Result<Settled, Invalid> {
        charge.faults.validate()?;
        charge.shares.validate()?;
        let settled = settle(charge.charge.charge_micro, &charge.shares, &charge.faults);
        if charge.charge.debit_micro() <= 0 {
            return Ok(settled);
        }
        let platform = i128::from(settled.parts.platform_micro);
        let hub_credit = i128::from(settled.hub_credit_micro);
        if !self.owners.contains_key(&charge.owner) {
            self.owners
                .insert(charge.owner.clone(), OwnerSum::default());
        }
        if let Some(owner) = self.owners.get_mut(&charge.owner) {
            owner.node += i128::from(settled.parts.node_micro);
            owner.platform_kept += platform - hub_credit;
        }
        self.charge += i128::from(charge.charge.charge_micro);
        self.fee += i128::from(charge.charge.fee_micro);
        self.node_credits += i128::from(settled.node_credit_micro);
        self.hub_credits += hub_credit;
        self.validators += i128::from(settled.parts.validators_micro);
        self.platform += platform + i128::from(charge.charge.fee_micro);
        Ok(settled)
    }

    /// The settlement of what was added.
    ///
    /// # Errors
    ///
    /// A weight is below 0 or listed twice, or a sum is beyond
    /// [`amount::MICRO_MAX`].
    pub fn settle(
        &self,
        around: &Surroundings,
        parameters: &SettlementParameters,
    ) -> Result<Settlement, Invalid> {
        parameters.validate()?;
        let mut pays: BTreeMap<String, Pay> = BTreeMap::new();
        for (account, sum) in &self.owners {
            let pay = pays.entry(account.clone()).or_default();
            pay.node_micro = fitting("node_micro", sum.node)?;
        }
        let pot = self.validators + i128::from(around.validation_micro);
        let pot_micro = fitting("validators_micro", pot)?;
        let shares = split::apportion(pot_micro.max(0), &around.validators)?;
        let given: i64 = shares.iter().map(|(_, micro)| micro).sum();
        for (account, micro) in shares {
            pays.entry(account).or_default().validator_micro = micro;
        }
        for (account, micro) in self.standby(around, parameters.subsidy)? {
            pays.entry(account).or_default().standby_micro = micro;
        }
        for (account, pay) in &mut pays {
            pay.account.clone_from(account);
            let gross_micro = pay.gross_micro();
            let bond = around.bonds.get(account).copied().unwrap_or_default();
            let pay_micro = bond.pay_micro.saturating_add(gross_micro);
            pay.withheld_micro = parameters
                .bond
                .withheld(gross_micro, bond.bond_micro, pay_micro);
        }
        Ok(Settlement {
            charged: Charge {
                charge_micro: fitting("charge_micro", self.charge)?,
                fee_micro: fitting("fee_micro", self.fee)?,
            },
            node_credits_micro: fitting("node_credits_micro", self.node_credits)?,
            hub_credits_micro: fitting("hub_credits_micro", self.hub_credits)?,
            validators_micro: fitting("validators_micro", self.validators)?,
            platform_micro: fitting("platform_micro", self.platform)?,
            pays: pays
                .into_values()
                .filter(|pay| pay.gross_micro() > 0)
                .collect(),
            validation_left_micro: pot_micro - given,
        })
    }

    /// What each gets for standing by: what it should get, at most a part of
    /// what the platform kept of its own charges; where there is not enough for
    /// all, each the same part of that, by largest remainder.
    fn standby(
        &self,
        around: &Surroundings,
        parameters: SubsidyParameters,
    ) -> Result<Vec<(String, i64)>, Invalid> {
        let mut granted = Vec::new();
        let mut sum = 0_i128;
        for wish in &around.standby {
            Invalid::unless_within("standby", wish.weight, 0, amount::MICRO_MAX)?;
            let kept = self
                .owners
                .get(&wish.account)
                .map_or(0, |owner| owner.platform_kept);
            let kept_micro = fitting("platform_micro", kept)?;
            let weight = parameters.granted(wish.weight, kept_micro);
            sum += i128::from(weight);
            granted.push(Weight {
                account: wish.account.clone(),
                weight,
            });
        }
        let there = i128::from(around.subsidy_micro.max(0));
        split::apportion(fitting("standby", sum.min(there))?, &granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charge(owner: &str, charge_micro: i64, faults: Faults) -> EpochCharge {
        EpochCharge {
            placement: format!("p-{owner}"),
            customer: "acme".to_owned(),
            owner: owner.to_owned(),
            charge: Charge {
                charge_micro,
                fee_micro: charge_micro / 100,
            },
            shares: Shares::default(),
            faults,
        }
    }

    fn weight(account: &str, weight: i64) -> Weight {
        Weight {
            account: account.to_owned(),
            weight,
        }
    }

    fn settled(charges: &[EpochCharge], around: &Surroundings) -> Settlement {
        let mut tally = Tally::default();
        for charge in charges {
            tally.add(charge).unwrap();
        }
        let parameters = SettlementParameters::default();
        tally.settle(around, &parameters).unwrap()
    }

    #[test]
    fn one_nodes_loss_changes_no_other_accounts_payout() {
        let none = Faults::default();
        let bad = Faults {
            node_bp: 2_500,
            hub_bp: 0,
        };
        let before = settled(
            &[charge("olga", 10_000, none), charge("paul", 20_000, none)],
            &Surroundings::default(),
        );
        let after = settled(
            &[charge("olga", 10_000, bad), charge("paul", 20_000, none)],
            &Surroundings::default(),
        );
        assert_eq!(before.pays[1], after.pays[1]);
        assert_eq!(
            (before.pays[0].node_micro, after.pays[0].node_micro),
            (8_500, 6_375)
        );
        assert_eq!(after.node_credits_micro, 2_500);
        assert_eq!(before.platform_micro - after.platform_micro, 250);
        assert_eq!(before.validators_micro - after.validators_micro, 125);
    }

    #[test]
    fn a_validators_part_without_a_recipient_stays_for_later_epochs() {
        let charges = [charge("olga", 10_000, Faults::default())];
        let mut around = Surroundings {
            validation_micro: 7,
            ..Surroundings::default()
        };
        assert_eq!(settled(&charges, &around).validation_left_micro, 507);
        around.validators = vec![weight("vera", 1)];
        let settlement = settled(&charges, &around);
        assert_eq!(
            (
                settlement.validation_left_micro,
                settlement.pays[1].validator_micro
            ),
            (0, 507)
        );
        around.validation_micro = -600;
        let settlement = settled(&charges, &around);
        assert_eq!(
            (settlement.validation_left_micro, settlement.pays.len()),
            (-100, 1)
        );
    }

    #[test]
    fn standby_pay_is_bounded_by_the_platforms_part_and_by_what_there_is() {
        let none = Faults::default();
        let charges = [charge("olga", 10_000, none), charge("paul", 10_000, none)];
        let mut around = Surroundings {
            standby: vec![
                weight("olga", 5_000),
                weight("paul", 100),
                weight("rita", 100),
            ],
            subsidy_micro: 10_000,
            ..Surroundings::default()
        };
        let standby = |settlement: &Settlement| -> Vec<i64> {
            settlement
                .pays
                .iter()
                .map(|pay| pay.standby_micro)
                .collect()
        };
        assert_eq!(standby(&settled(&charges, &around)), [900, 100]);
        around.subsidy_micro = 500;
        assert_eq!(standby(&settled(&charges, &around)), [450, 50]);
        around.subsidy_micro = 0;
        assert_eq!(standby(&settled(&charges, &around)), [0, 0]);
    }

    #[test]
    fn a_charge_below_zero_is_no_part_of_what_the_epoch_gives() {
        let mut tally = Tally::default();
        let back = tally
            .add(&charge(
                "olga",
                -10_000,
                Faults {
                    node_bp: 5_000,
                    hub_bp: 0,
                },
            ))
            .unwrap();
        assert_eq!((back.node_credit_micro, back.parts.node_micro), (0, -8_500));
        let settlement = tally
            .settle(&Surroundings::default(), &SettlementParameters::default())
            .unwrap();
        assert_eq!(settlement, Settlement::default());
    }
}
