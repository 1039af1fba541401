use std::collections::BTreeMap;

use super::script::{Transcript, allowed};
use crate::{Account, Cause, Entry, Head, Kind};

/// Checks what must hold of every history, from its entries alone and against
/// the balances that were kept.
///
/// # Errors
///
/// The text says what does not hold.
pub fn check(transcript: &Transcript) -> Result<(), String> {
    chain(&transcript.entries, &transcript.state.ledger().head)?;
    balances(transcript)?;
    holds(transcript)?;
    epochs(transcript)
}

/// Sequences have no gap, and every entry is linked to the one before.
fn chain(entries: &[Entry], head: &Head) -> Result<(), String> {
    let mut last = Head::default();
    for entry in entries {
        if entry.sequence != last.sequence + 1 || entry.hash != entry.link(&last.hash) {
            return Err(format!(
                "entry {} is not linked to {}",
                entry.sequence, last.sequence
            ));
        }
        last = entry.head();
    }
    if last == *head {
        Ok(())
    } else {
        Err(format!("the head is {head:?} and should be {last:?}"))
    }
}

/// Balances are those of a replay, within their signs, and sum to 0.
fn balances(transcript: &Transcript) -> Result<(), String> {
    let mut replayed: BTreeMap<&Account, i128> = BTreeMap::new();
    for entry in &transcript.entries {
        if entry.amount_micro < 0 {
            return Err(format!(
                "entry {} moves {}",
                entry.sequence, entry.amount_micro
            ));
        }
        for (account, sign) in [(&entry.debit, -1), (&entry.credit, 1)] {
            if let Some(account) = account {
                *replayed.entry(account).or_default() += sign * i128::from(entry.amount_micro);
            }
        }
    }
    let mut totals = [0_i128; Kind::ALL.len()];
    for (account, state) in transcript.state.accounts() {
        let expected = replayed.remove(account).unwrap_or(0);
        if i128::from(state.balance_micro) != expected {
            return Err(format!(
                "{account} has {} and should have {expected}",
                state.balance_micro
            ));
        }
        if !allowed(account, state.balance_micro) {
            return Err(format!(
                "{account} has {}, beyond its sign",
                state.balance_micro
            ));
        }
        totals[account.kind() as usize] += expected;
    }
    if !replayed.is_empty() {
        return Err(format!("{:?} have entries and no balance", replayed.keys()));
    }
    if totals != transcript.state.ledger().totals_micro || totals.iter().sum::<i128>() != 0 {
        return Err(format!(
            "the totals {totals:?} are not those that were kept, or not 0 in all"
        ));
    }
    Ok(())
}

fn sum(entries: &[Entry], chosen: impl Fn(&Entry) -> bool) -> i128 {
    entries
        .iter()
        .filter(|entry| chosen(entry))
        .map(|entry| i128::from(entry.amount_micro))
        .sum()
}

fn is(entry: &Entry, causes: &[Cause]) -> bool {
    causes.iter().any(|cause| cause.word() == entry.cause)
}

fn of_kind(account: Option<&Account>, kind: Kind) -> bool {
    account.is_some_and(|account| account.kind() == kind)
}

/// What was set aside was drawn, was given back, or is still there.
fn holds(transcript: &Transcript) -> Result<(), String> {
    for (account, state) in transcript.state.accounts() {
        if account.kind() != Kind::Hold {
            continue;
        }
        let entries = &transcript.entries;
        let taken = sum(entries, |entry| entry.credit.as_ref() == Some(account));
        let drawn = sum(entries, |entry| {
            entry.debit.as_ref() == Some(account)
                && is(entry, &[Cause::Usage, Cause::DisputeUpheld])
        });
        let released = sum(entries, |entry| {
            let back = [
                Cause::HoldReleased,
                Cause::HoldExpired,
                Cause::DisputeRejected,
            ];
            entry.debit.as_ref() == Some(account) && is(entry, &back)
        });
        if taken != drawn + released + i128::from(state.balance_micro) {
            return Err(format!(
                "{account}: {taken} taken, {drawn} drawn, {released} released"
            ));
        }
    }
    Ok(())
}

/// What an epoch charged is what it gave, kind by kind.
fn epochs(transcript: &Transcript) -> Result<(), String> {
    for (epoch, state) in transcript.state.epochs() {
        let entries = &transcript.entries;
        let pending = Account::named(Kind::ChargesPending, epoch);
        let pool = Account::named(Kind::Pool, epoch);
        let debits = sum(entries, |entry| entry.credit.as_ref() == Some(&pending))
            - sum(entries, |entry| {
                entry.debit.as_ref() == Some(&pending) && is(entry, &[Cause::UsageReversed])
            });
        let charged: i128 = transcript
            .state
            .charges_of(*epoch)
            .map(|(_, charge)| i128::from(charge.charge.debit_micro().max(0)))
            .sum();
        if debits != charged {
            return Err(format!(
                "epoch {epoch}: {debits} taken for charges of {charged}"
            ));
        }
        let given: i128 = [
            Kind::Customer,
            Kind::Payout,
            Kind::Validation,
            Kind::Platform,
            Kind::Rounding,
        ]
        .into_iter()
        .map(|kind| {
            sum(entries, |entry| {
                entry.debit.as_ref() == Some(&pool) && of_kind(entry.credit.as_ref(), kind)
            })
        })
        .sum();
        if state.settled_at_ms.is_some() && debits != given {
            return Err(format!("epoch {epoch}: {debits} charged, {given} given"));
        }
        let dust = sum(entries, |entry| {
            entry.debit.as_ref() == Some(&pool) && is(entry, &[Cause::Dust])
        });
        if dust != 0 {
            return Err(format!(
                "epoch {epoch} left {dust}, and the rules leave nothing"
            ));
        }
    }
    Ok(())
}
