//! Money set aside, and taken for what was used.

use std::collections::BTreeMap;

use creo_market::money::{
    price::{self, Charge, Usage},
    terms::Terms,
};

use super::recover;
use crate::{
    Account, Cause, Kind, Operation, PlacementState, Refusal, Stop,
    draft::{Change, Draft},
};

pub(super) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::Agree { terms } => agree(draft, terms),
        Operation::Hold {
            placement,
            amount_micro,
            expires_at_ms,
            ..
        } => hold(draft, placement, *amount_micro, *expires_at_ms),
        Operation::Release { placement, .. } => release(draft, placement),
        Operation::Usage {
            placement,
            epoch,
            used,
            ..
        } => usage(draft, placement, *epoch, used),
        _ => Ok(()),
    }
}

fn agree(draft: &mut Draft, terms: &Terms) -> Result<(), Stop> {
    draft.customer(&terms.customer)?;
    if draft.find_placement(&terms.placement)?.is_some() {
        // Its key says as much, unless what was loaded is not what was written.
        return Err(Refusal::Conflict {
            key: format!("agree/{}", terms.placement),
        }
        .into());
    }
    let state = PlacementState {
        terms: terms.clone(),
        digest: terms.digest()?,
        sealed: Usage::default(),
        open: BTreeMap::new(),
    };
    draft.change(Change::Placement(terms.placement.clone(), state));
    Ok(())
}

fn hold(
    draft: &mut Draft,
    placement: &str,
    amount_micro: i64,
    expires_at_ms: i64,
) -> Result<(), Stop> {
    let customer = draft.placement(placement)?.terms.customer.clone();
    if draft.customer(&customer)?.frozen {
        return Err(Refusal::Frozen { customer }.into());
    }
    let now_ms = draft.at_ms;
    let latest_ms = now_ms + draft.parameters().hold_ms_max;
    creo_market::money::Invalid::unless_within(
        "expires_at_ms",
        expires_at_ms,
        now_ms + 1,
        latest_ms,
    )?;
    let from = Account::named(Kind::Customer, customer);
    let to = Account::named(Kind::Hold, placement);
    draft.transfer(Cause::HoldTaken, &from, &to, amount_micro)?;
    draft.account_mut(&to)?.expires_at_ms = Some(expires_at_ms);
    Ok(())
}

fn release(draft: &mut Draft, placement: &str) -> Result<(), Stop> {
    let customer = &draft.placement(placement)?.terms.customer;
    let from = Account::named(Kind::Hold, placement);
    let state = draft.find_account(&from)?.cloned().unwrap_or_default();
    let expired = state
        .expires_at_ms
        .is_some_and(|expires_at_ms| expires_at_ms <= draft.at_ms);
    let cause = if expired {
        Cause::HoldExpired
    } else {
        Cause::HoldReleased
    };
    let to = Account::named(Kind::Customer, customer);
    draft.transfer(cause, &from, &to, state.balance_micro)?;
    recover(draft, customer)
}

impl PlacementState {
    /// What is charged for each epoch that is not closed: the total so far, less
    /// what was charged before it.
    fn charges(&self) -> Result<BTreeMap<i64, Charge>, Stop> {
        let mut total = self.sealed;
        let mut before = price::charged(&self.terms, &total)?;
        let mut charges = BTreeMap::new();
        for (epoch, used) in &self.open {
            total = total.plus(used)?;
            let after = price::charged(&self.terms, &total)?;
            charges.insert(*epoch, after.since(&before));
            before = after;
        }
        Ok(charges)
    }

    /// Counts what was used in epochs up to `epoch` as closed.
    fn seal(&mut self, epoch: Option<i64>) -> Result<(), Stop> {
        let Some(epoch) = epoch else { return Ok(()) };
        while let Some(first) = self.open.first_entry() {
            if *first.key() > epoch {
                break;
            }
            self.sealed = self.sealed.plus(&first.remove())?;
        }
        Ok(())
    }
}

/// Usage of an epoch moves the totals of those after it as well, so that what
/// an epoch is charged does not depend on the order in which usage is told.
fn usage(draft: &mut Draft, placement: &str, epoch: i64, used: &Usage) -> Result<(), Stop> {
    if draft.epoch(epoch)?.sealed_at_ms.is_some() {
        return Err(Refusal::Over {
            what: "epoch",
            name: epoch.to_string(),
            state: "is closed; what is told now counts for a later one",
        }
        .into());
    }
    let mut state = draft.placement(placement)?.clone();
    state.seal(draft.ledger.sealed_epoch)?;
    let before = state.charges()?;
    let sum = state.open.entry(epoch).or_default().plus(used)?;
    state.open.insert(epoch, sum);
    let after = state.charges()?;
    let customer = state.terms.customer.clone();
    draft.change(Change::Placement(placement.to_owned(), state));
    let mut draws = Vec::new();
    for (epoch, charge) in after {
        let change = charge.since(&before.get(&epoch).copied().unwrap_or_default());
        let mut record = draft.charge(epoch, placement)?;
        let before_micro = record.charge.debit_micro();
        record.charge = record.charge.plus(&change);
        let after_micro = record.charge.debit_micro();
        if (before_micro < 0) != (after_micro < 0) {
            let mut state = draft.epoch(epoch)?.clone();
            state.unadjusted += if after_micro < 0 { 1 } else { -1 };
            draft.change(Change::Epoch(epoch, state));
        }
        let pending_micro = after_micro.max(0) - before_micro.max(0);
        draft.change(Change::Charge(epoch, placement.to_owned(), record));
        draws.push((epoch, pending_micro));
    }
    // First what comes back, so that it can be drawn again.
    for (epoch, back_micro) in draws.iter().filter(|(_, micro)| *micro < 0) {
        let pending = Account::named(Kind::ChargesPending, epoch);
        let to = Account::named(Kind::Customer, &customer);
        draft.transfer(Cause::UsageReversed, &pending, &to, -back_micro)?;
    }
    for (epoch, drawn_micro) in draws.iter().filter(|(_, micro)| *micro > 0) {
        draw(draft, placement, &customer, *epoch, *drawn_micro)?;
    }
    recover(draft, &customer)
}

/// Takes what was used: out of what is set aside, then of what the customer can
/// spend, and the rest it owes.
fn draw(
    draft: &mut Draft,
    placement: &str,
    customer: &str,
    epoch: i64,
    amount_micro: i64,
) -> Result<(), Stop> {
    let pending = Account::named(Kind::ChargesPending, epoch);
    let mut missing_micro = amount_micro;
    for source in [
        Account::named(Kind::Hold, placement),
        Account::named(Kind::Customer, customer),
    ] {
        let there_micro = missing_micro.min(draft.balance_micro(&source)?);
        draft.transfer(Cause::Usage, &source, &pending, there_micro)?;
        missing_micro -= there_micro;
    }
    let owes = Account::named(Kind::Receivable, customer);
    draft.transfer(Cause::Usage, &owes, &pending, missing_micro)
}
