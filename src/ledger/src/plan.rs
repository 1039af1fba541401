//! What each operation does, one file a family.

mod dispute;
mod epoch;
mod outflow;
mod rails;
mod usage;

use creo_market::money::Invalid;

use crate::{
    Account, Cause, Kind, Operation, Stop,
    draft::{Change, Draft},
};

/// Thinks an operation through.
pub(crate) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::Open { .. }
        | Operation::Deposit { .. }
        | Operation::Fund { .. }
        | Operation::Chargeback { .. }
        | Operation::WriteOff { .. }
        | Operation::Unfreeze { .. }
        | Operation::Attest { .. } => rails::plan(draft, operation),
        Operation::Agree { .. }
        | Operation::Hold { .. }
        | Operation::Release { .. }
        | Operation::Usage { .. } => usage::plan(draft, operation),
        Operation::OpenEpoch { .. }
        | Operation::Seal { .. }
        | Operation::Share { .. }
        | Operation::Credit { .. }
        | Operation::Pay { .. }
        | Operation::Adjust { .. }
        | Operation::Settle { .. } => epoch::plan(draft, operation),
        Operation::Dispute { .. } | Operation::Resolve { .. } => dispute::plan(draft, operation),
        Operation::Withdraw { .. }
        | Operation::Sent { .. }
        | Operation::Failed { .. }
        | Operation::Donate { .. }
        | Operation::Notice { .. }
        | Operation::FreeBond { .. } => outflow::plan(draft, operation),
    }
}

/// A customer that owes something pays it out of what it has.
fn recover(draft: &mut Draft, customer: &str) -> Result<(), Stop> {
    let has = Account::named(Kind::Customer, customer);
    let owes = Account::named(Kind::Receivable, customer);
    let owed_micro = -draft.balance_micro(&owes)?;
    let amount_micro = owed_micro.min(draft.balance_micro(&has)?);
    draft.transfer(Cause::Recovered, &has, &owes, amount_micro)
}

/// What each has to return of a charge.
struct Returned<'r> {
    customer: &'r str,
    owner: &'r str,
    node_micro: i64,
    validators_micro: i64,
    platform_micro: i64,
}

/// Gives a customer back what it was charged. The node's owner returns its part
/// out of payouts that are not free yet, the last first, then out of its bond;
/// validators out of what is for them now or later; the platform out of what it
/// has. What they do not have, the reserve covers, or owes.
fn take_back(draft: &mut Draft, returned: &Returned) -> Result<(), Stop> {
    let customer = Account::named(Kind::Customer, returned.customer);
    let mut missing_micro = returned.node_micro;
    let mut payouts = draft.payouts(returned.owner)?;
    payouts.retain(|(_, state)| state.free_at_ms.is_some_and(|free| free > draft.at_ms));
    payouts.sort_by_key(|(account, state)| std::cmp::Reverse((state.free_at_ms, account.clone())));
    let bond = Account::named(Kind::Bond, returned.owner);
    let sources = payouts
        .into_iter()
        .map(|(account, _)| account)
        .chain([bond]);
    for source in sources {
        let amount_micro = missing_micro.min(draft.balance_micro(&source)?);
        draft.transfer(Cause::TakenBack, &source, &customer, amount_micro)?;
        missing_micro -= amount_micro;
    }
    let validation = Account::single(Kind::Validation);
    let platform = Account::single(Kind::Platform);
    let reserve = Account::single(Kind::Reserve);
    let validators_micro = returned.validators_micro;
    draft.transfer(Cause::TakenBack, &validation, &customer, validators_micro)?;
    let platform_micro = returned.platform_micro.min(draft.balance_micro(&platform)?);
    draft.transfer(Cause::TakenBack, &platform, &customer, platform_micro)?;
    let uncovered_micro = missing_micro
        .checked_add(returned.platform_micro - platform_micro)
        .ok_or_else(|| Invalid::new("amount_micro", "is too large"))?;
    draft.transfer(Cause::TakenBack, &reserve, &customer, uncovered_micro)?;
    recover(draft, returned.customer)
}

/// Notes how an owner's or validator's state is from now on.
fn change_owner(
    draft: &mut Draft,
    name: &str,
    change: impl FnOnce(&mut crate::OwnerState),
) -> Result<(), Stop> {
    let mut owner = draft.owner(name)?;
    change(&mut owner);
    draft.change(Change::Owner(name.to_owned(), owner));
    Ok(())
}
