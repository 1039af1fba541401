use std::collections::BTreeMap;

use creo_market::money::{
    Invalid,
    amount::MICRO_MAX,
    export::{ChargeLeaf, PayoutLeaf, PublicExport},
    objectives::Faults,
    pseudonym::Secret,
    settlement::{BondState, EpochCharge, Settlement, SettlementParameters, Surroundings, Tally},
    split::{SubsidyParameters, Weight},
};
use serde::{Deserialize, Serialize};

use crate::{ChargeState, EpochState, LedgerParameters, Operation, PlacementState, State};

/// What a settlement depends on beside the charges. It is fixed when the epoch
/// is closed, so that whoever settles, and again after a crash, comes to the
/// same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SettlementInputs {
    /// What each Placement's service deserves; a Placement that is not listed
    /// was without fault.
    pub faults: BTreeMap<String, Faults>,
    /// The validators, by their accepted reports.
    pub validators: Vec<Weight>,
    /// What owners should get for standing by, in micro-credits.
    pub standby: Vec<Weight>,
}

impl SettlementInputs {
    /// Refuses inputs that no settlement could be computed from.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (placement, faults) in &self.faults {
            Invalid::unless_label("faults", placement)?;
            faults.validate()?;
        }
        for (field, weights) in [("validators", &self.validators), ("standby", &self.standby)] {
            let mut accounts: Vec<&str> = Vec::with_capacity(weights.len());
            for weight in weights {
                Invalid::unless_label(field, &weight.account)?;
                Invalid::unless_within(field, weight.weight, 0, MICRO_MAX)?;
                accounts.push(&weight.account);
            }
            accounts.sort_unstable();
            let count = accounts.len();
            accounts.dedup();
            if accounts.len() < count {
                let why = "must list each account once";
                return Err(Invalid::new(field, why));
            }
        }
        Ok(())
    }
}

/// How an epoch is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What is to be posted, in this order. What was posted before is posted
    /// again without effect.
    pub operations: Vec<Operation>,
    /// What everyone gets.
    pub settlement: Settlement,
    /// What everyone may see.
    pub export: PublicExport,
}

/// Settles an epoch, charge by charge.
pub struct Settler<'s> {
    epoch: i64,
    state: &'s EpochState,
    secret: &'s Secret,
    tally: Tally,
    credits: Vec<Operation>,
    adjustments: Vec<Operation>,
    leaves: Vec<ChargeLeaf>,
}

impl<'s> Settler<'s> {
    /// Begins to settle an epoch that is closed.
    #[must_use]
    pub fn new(state: &'s EpochState, secret: &'s Secret) -> Self {
        Self {
            epoch: state.window.epoch,
            state,
            secret,
            tally: Tally::default(),
            credits: Vec::new(),
            adjustments: Vec::new(),
            leaves: Vec::new(),
        }
    }

    /// Takes up what was charged for a Placement.
    ///
    /// # Errors
    ///
    /// The credits are more than the charge.
    pub fn add(&mut self, placement: &PlacementState, charge: &ChargeState) -> Result<(), Invalid> {
        let terms = &placement.terms;
        let faults = self.state.inputs.faults.get(&terms.placement);
        let charge = EpochCharge {
            placement: terms.placement.clone(),
            customer: terms.customer.clone(),
            owner: terms.owner.clone(),
            charge: charge.charge,
            shares: terms.shares,
            faults: faults.copied().unwrap_or_default(),
        };
        let settled = self.tally.add(&charge)?;
        if charge.charge.debit_micro() < 0 {
            self.adjustments.push(Operation::Adjust {
                epoch: self.epoch,
                placement: charge.placement.clone(),
            });
        }
        if settled.node_credit_micro > 0 || settled.hub_credit_micro > 0 {
            self.credits.push(Operation::Credit {
                epoch: self.epoch,
                placement: charge.placement.clone(),
                node_micro: settled.node_credit_micro,
                hub_micro: settled.hub_credit_micro,
            });
        }
        let leaf = ChargeLeaf::new(self.secret, self.epoch, &charge, &placement.digest);
        self.leaves.push(leaf);
        Ok(())
    }

    /// The plan, where bonds and their owners' earlier pay are these.
    ///
    /// # Errors
    ///
    /// A sum is beyond the range of amounts.
    pub fn plan(
        self,
        bonds: BTreeMap<String, BondState>,
        parameters: &LedgerParameters,
    ) -> Result<Plan, Invalid> {
        let around = Surroundings {
            validators: self.state.inputs.validators.clone(),
            validation_micro: self.state.validation_micro,
            standby: self.state.inputs.standby.clone(),
            subsidy_micro: self.state.subsidy_micro,
            bonds,
        };
        let parameters = SettlementParameters {
            subsidy: SubsidyParameters::default(),
            bond: parameters.bond,
        };
        let settlement = self.tally.settle(&around, &parameters)?;
        let payouts = settlement
            .pays
            .iter()
            .map(|pay| PayoutLeaf::new(self.secret, self.epoch, pay))
            .collect();
        let validation_micro = self.state.validation_micro;
        let export = PublicExport::new(self.epoch, self.leaves, payouts, validation_micro);
        let epoch = self.epoch;
        let mut operations = vec![Operation::Share {
            epoch,
            validators_micro: settlement.validators_micro,
            platform_micro: settlement.platform_micro,
        }];
        operations.extend(self.credits);
        operations.extend(settlement.pays.iter().map(|pay| Operation::Pay {
            epoch,
            account: pay.account.clone(),
            node_micro: pay.node_micro,
            validator_micro: pay.validator_micro,
            standby_micro: pay.standby_micro,
            withheld_micro: pay.withheld_micro,
        }));
        operations.extend(self.adjustments);
        operations.push(Operation::Settle {
            epoch,
            charges_root: export.charges_root.clone(),
            payouts_root: export.payouts_root.clone(),
        });
        Ok(Plan {
            operations,
            settlement,
            export,
        })
    }
}

impl State {
    /// How a closed epoch is settled, where the whole state is loaded; none
    /// where the epoch is not closed.
    ///
    /// # Errors
    ///
    /// A sum is beyond the range of amounts.
    pub fn settlement(&self, epoch: i64, secret: &Secret) -> Result<Option<Plan>, Invalid> {
        let Some(state) = self.epochs.get(&epoch) else {
            return Ok(None);
        };
        let Some(sealed_at_ms) = state.sealed_at_ms else {
            return Ok(None);
        };
        let mut settler = Settler::new(state, secret);
        for (placement, charge) in self.charges_of(epoch) {
            if let Some(placement) = self.placements.get(placement) {
                settler.add(placement, charge)?;
            }
        }
        let mut plan = settler.plan(self.bonds(sealed_at_ms), &self.parameters)?;
        // A payout that was posted before stays as it was: what is withheld of
        // it was right then.
        plan.operations.retain(|operation| {
            !matches!(operation, Operation::Pay { .. })
                || !self.requests.contains_key(&operation.key())
        });
        Ok(Some(plan))
    }
}
