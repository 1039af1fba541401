//! Money out: withdrawals, donations, bonds.

use creo_market::money::epoch;

use super::change_owner;
use crate::{
    Account, Cause, Kind, Operation, Refusal, Source, Stop, WithdrawalState,
    draft::{Change, Draft},
};

pub(super) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::Withdraw {
            id,
            from,
            rail,
            amount_micro,
        } => {
            withdraw(draft, id, from, *amount_micro)?;
            let state = WithdrawalState {
                from: from.clone(),
                rail: rail.clone(),
                amount_micro: *amount_micro,
                sent: None,
            };
            draft.change(Change::Withdrawal(id.clone(), state));
            Ok(())
        }
        Operation::Sent { id } => {
            draft.unless_unreconciled()?;
            let state = end(draft, id, true)?;
            let to = Account::named(Kind::External, state.rail);
            draft.transfer(Cause::WithdrawalSent, &pending(id), &to, state.amount_micro)
        }
        Operation::Failed { id } => failed(draft, id),
        Operation::Donate {
            owner,
            amount_micro,
            ..
        } => {
            let to = Account::single(Kind::Reserve);
            take_free(draft, owner, *amount_micro, Cause::Donated, &to)
        }
        Operation::Notice { id, owner } => {
            let notice = (id.clone(), draft.at_ms);
            change_owner(draft, owner, |owner| owner.notice = Some(notice))
        }
        Operation::FreeBond { id, owner } => free_bond(draft, id, owner),
        _ => Ok(()),
    }
}

fn pending(id: &str) -> Account {
    Account::named(Kind::WithdrawalPending, id)
}

fn withdraw(draft: &mut Draft, id: &str, from: &Source, amount_micro: i64) -> Result<(), Stop> {
    draft.unless_unreconciled()?;
    let to = pending(id);
    let cause = Cause::WithdrawalRequested;
    match from {
        Source::Owner(owner) => take_free(draft, owner, amount_micro, cause, &to),
        Source::Customer(customer) => {
            if draft.customer(customer)?.frozen {
                let customer = customer.clone();
                return Err(Refusal::Frozen { customer }.into());
            }
            let from = Account::named(Kind::Customer, customer);
            draft.transfer(cause, &from, &to, amount_micro)
        }
        Source::Platform => {
            let from = Account::single(Kind::Platform);
            draft.transfer(cause, &from, &to, amount_micro)?;
            // What it has earned may stand for what others do not have.
            draft.unless_insolvent()
        }
    }
}

/// Takes out of an owner's free payouts, the longest free first.
fn take_free(
    draft: &mut Draft,
    owner: &str,
    amount_micro: i64,
    cause: Cause,
    to: &Account,
) -> Result<(), Stop> {
    let mut payouts = draft.payouts(owner)?;
    payouts.retain(|(_, state)| {
        state
            .free_at_ms
            .is_some_and(|free_at_ms| epoch::is_free(free_at_ms, draft.at_ms))
    });
    payouts.sort_by(|(a, a_state), (b, b_state)| {
        (a_state.free_at_ms, a).cmp(&(b_state.free_at_ms, b))
    });
    let most = usize::try_from(draft.parameters().withdrawal_payouts_max).unwrap_or(1);
    payouts.truncate(most);
    let mut missing_micro = amount_micro;
    for (payout, state) in payouts {
        let there_micro = missing_micro.min(state.balance_micro);
        draft.transfer(cause, &payout, to, there_micro)?;
        missing_micro -= there_micro;
    }
    if missing_micro > 0 {
        return Err(Refusal::Insufficient {
            account: format!("the free payouts of {owner}"),
            has_micro: amount_micro - missing_micro,
            needed_micro: amount_micro,
        }
        .into());
    }
    Ok(())
}

/// A withdrawal of which nothing is known yet, and is from now on.
fn end(draft: &mut Draft, id: &str, sent: bool) -> Result<WithdrawalState, Stop> {
    let mut state = draft.withdrawal(id)?.clone();
    if let Some(sent) = state.sent {
        return Err(Refusal::Over {
            what: "withdrawal",
            name: id.to_owned(),
            state: if sent { "was sent" } else { "failed" },
        }
        .into());
    }
    state.sent = Some(sent);
    draft.change(Change::Withdrawal(id.to_owned(), state.clone()));
    Ok(state)
}

fn failed(draft: &mut Draft, id: &str) -> Result<(), Stop> {
    let state = end(draft, id, false)?;
    let cause = Cause::WithdrawalFailed;
    match &state.from {
        Source::Owner(owner) => {
            // It was free, and is so again at once.
            let to = Account::payout(owner, format_args!("returned-{id}"));
            draft.transfer(cause, &pending(id), &to, state.amount_micro)?;
            let at_ms = draft.at_ms;
            draft.account_mut(&to)?.free_at_ms = Some(at_ms);
            Ok(())
        }
        Source::Customer(customer) => {
            let to = Account::named(Kind::Customer, customer);
            draft.transfer(cause, &pending(id), &to, state.amount_micro)?;
            super::recover(draft, customer)
        }
        Source::Platform => {
            let to = Account::single(Kind::Platform);
            draft.transfer(cause, &pending(id), &to, state.amount_micro)
        }
    }
}

fn free_bond(draft: &mut Draft, id: &str, owner: &str) -> Result<(), Stop> {
    let state = draft.owner(owner)?;
    let Some((_, notice_at_ms)) = state.notice.filter(|(notice, _)| notice == id) else {
        return Err(Refusal::Unknown {
            what: "notice",
            name: id.to_owned(),
        }
        .into());
    };
    if state.open_disputes > 0 {
        return Err(Refusal::Disputed {
            owner: owner.to_owned(),
        }
        .into());
    }
    let bond = draft.parameters().bond;
    if !bond.is_freed(notice_at_ms, draft.at_ms, false) {
        return Err(Refusal::TooEarly {
            what: "freeing the bond",
            from_ms: notice_at_ms + bond.notice_ms,
        }
        .into());
    }
    let from = Account::named(Kind::Bond, owner);
    let to = Account::payout(owner, format_args!("bond-{id}"));
    let amount_micro = draft.balance_micro(&from)?;
    draft.transfer(Cause::BondFreed, &from, &to, amount_micro)?;
    let at_ms = draft.at_ms;
    draft.account_mut(&to)?.free_at_ms = Some(at_ms);
    change_owner(draft, owner, |owner| owner.notice = None)
}
