//! Money in, and what a rail takes back.

use super::recover;
use crate::{Account, Cause, Funded, Kind, Operation, Refusal, Stop, draft::Draft};

pub(super) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::Open { customer } => {
            draft.account_mut(&Account::named(Kind::Customer, customer))?;
            Ok(())
        }
        Operation::Deposit {
            rail,
            customer,
            amount_micro,
            ..
        } => {
            draft.customer(customer)?;
            let from = Account::named(Kind::External, rail);
            let to = Account::named(Kind::Customer, customer);
            draft.transfer(Cause::Deposit, &from, &to, *amount_micro)?;
            recover(draft, customer)
        }
        Operation::Fund {
            rail,
            to,
            amount_micro,
            ..
        } => {
            let from = Account::named(Kind::External, rail);
            let to = match to {
                Funded::Subsidy => Account::single(Kind::Subsidy),
                Funded::Reserve => Account::single(Kind::Reserve),
                Funded::Bond(owner) => Account::named(Kind::Bond, owner),
            };
            draft.transfer(Cause::Funded, &from, &to, *amount_micro)
        }
        Operation::Chargeback {
            rail,
            customer,
            amount_micro,
            ..
        } => chargeback(draft, rail, customer, *amount_micro),
        Operation::WriteOff { customer, .. } => write_off(draft, customer),
        Operation::Unfreeze { customer, .. } => unfreeze(draft, customer),
        Operation::Attest {
            rail,
            balance_micro,
            ..
        } => {
            let held = -draft.balance_micro(&Account::named(Kind::External, rail))?;
            let state = draft.ledger.rails.entry(rail.clone()).or_default();
            state.held_micro = held;
            state.difference_micro = Some(balance_micro - held);
            Ok(())
        }
        _ => Ok(()),
    }
}

fn chargeback(
    draft: &mut Draft,
    rail: &str,
    customer: &str,
    amount_micro: i64,
) -> Result<(), Stop> {
    let has_micro = draft.customer(customer)?.balance_micro;
    let from = Account::named(Kind::Customer, customer);
    let owes = Account::named(Kind::Receivable, customer);
    let to = Account::named(Kind::External, rail);
    let there_micro = amount_micro.min(has_micro);
    draft.transfer(Cause::Chargeback, &from, &to, there_micro)?;
    draft.transfer(Cause::Chargeback, &owes, &to, amount_micro - there_micro)?;
    draft.account_mut(&from)?.frozen = true;
    Ok(())
}

fn write_off(draft: &mut Draft, customer: &str) -> Result<(), Stop> {
    let owes = Account::named(Kind::Receivable, customer);
    let owed_micro = -draft.balance_micro(&owes)?;
    if owed_micro == 0 {
        return Err(Refusal::Unknown {
            what: "debt of",
            name: customer.to_owned(),
        }
        .into());
    }
    let lost = Account::single(Kind::BadDebt);
    draft.transfer(Cause::WrittenOff, &lost, &owes, owed_micro)
}

fn unfreeze(draft: &mut Draft, customer: &str) -> Result<(), Stop> {
    draft.customer(customer)?;
    let owed_micro = -draft.balance_micro(&Account::named(Kind::Receivable, customer))?;
    if owed_micro > 0 {
        return Err(Refusal::Owes {
            customer: customer.to_owned(),
            owed_micro,
        }
        .into());
    }
    let account = Account::named(Kind::Customer, customer);
    draft.account_mut(&account)?.frozen = false;
    Ok(())
}
