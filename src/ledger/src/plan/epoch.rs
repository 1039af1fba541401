//! An epoch from its beginning to its settlement.

use creo_market::money::{
    Invalid, amount::MICRO_MAX, epoch::Window, objectives::Faults, settlement,
};

use super::{Returned, change_owner, take_back};
use crate::{
    Account, Cause, EpochState, Kind, Operation, Refusal, SettlementInputs, Stop,
    draft::{Change, Draft},
};

pub(super) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::OpenEpoch { window } => open(draft, window),
        Operation::Seal { epoch, inputs } => seal(draft, *epoch, inputs),
        Operation::Share {
            epoch,
            validators_micro,
            platform_micro,
        } => {
            let mut state = settling(draft, *epoch)?.clone();
            let left_micro = state.validation_micro.saturating_add(*validators_micro);
            state.validators_left_micro = left_micro.max(0);
            draft.change(Change::Epoch(*epoch, state));
            let pool = pool(*epoch);
            let (to, micro) = (Account::single(Kind::Validation), *validators_micro);
            draft.transfer(Cause::ValidatorsPart, &pool, &to, micro)?;
            let (to, micro) = (Account::single(Kind::Platform), *platform_micro);
            draft.transfer(Cause::PlatformPart, &pool, &to, micro)
        }
        Operation::Credit {
            epoch,
            placement,
            node_micro,
            hub_micro,
        } => credit(draft, *epoch, placement, *node_micro, *hub_micro),
        Operation::Pay { .. } => pay(draft, operation),
        Operation::Adjust { epoch, placement } => adjust(draft, *epoch, placement),
        Operation::Settle {
            epoch,
            charges_root,
            payouts_root,
        } => settle(draft, *epoch, charges_root, payouts_root),
        _ => Ok(()),
    }
}

fn pool(epoch: i64) -> Account {
    Account::named(Kind::Pool, epoch)
}

fn open(draft: &mut Draft, window: &Window) -> Result<(), Stop> {
    if let Some(last) = draft.ledger.last_epoch {
        let last_window = draft.epoch(last)?.window;
        let follows =
            |field: &str, value, expected| Invalid::unless_within(field, value, expected, expected);
        follows("epoch", window.epoch, last + 1)?;
        follows("start_ms", window.start_ms, last_window.end_ms)?;
    }
    let state = EpochState {
        window: *window,
        sealed_at_ms: None,
        settled_at_ms: None,
        charges_root: None,
        payouts_root: None,
        open_disputes: 0,
        unadjusted: 0,
        inputs: SettlementInputs::default(),
        validation_micro: 0,
        subsidy_micro: 0,
        validators_left_micro: 0,
    };
    draft.ledger.first_epoch = draft.ledger.first_epoch.or(Some(window.epoch));
    draft.ledger.last_epoch = Some(window.epoch);
    draft.change(Change::Epoch(window.epoch, state));
    Ok(())
}

fn seal(draft: &mut Draft, epoch: i64, inputs: &SettlementInputs) -> Result<(), Stop> {
    let mut state = draft.epoch(epoch)?.clone();
    let next = match draft.ledger.sealed_epoch {
        Some(sealed) => Some(sealed + 1),
        None => draft.ledger.first_epoch,
    };
    if let Some(next) = next {
        Invalid::unless_within("epoch", epoch, next, next)?;
    }
    let from_ms = state.window.cut_off_ms();
    if draft.at_ms < from_ms {
        return Err(Refusal::TooEarly {
            what: "closing the epoch",
            from_ms,
        }
        .into());
    }
    draft.unless_unreconciled()?;
    draft.unless_insolvent()?;
    let pending = Account::named(Kind::ChargesPending, epoch);
    let amount_micro = draft.balance_micro(&pending)?;
    draft.transfer(Cause::Closed, &pending, &pool(epoch), amount_micro)?;
    state.sealed_at_ms = Some(draft.at_ms);
    state.inputs = inputs.clone();
    state.validation_micro = draft.balance_micro(&Account::single(Kind::Validation))?;
    state.subsidy_micro = draft.balance_micro(&Account::single(Kind::Subsidy))?;
    draft.ledger.sealed_epoch = Some(epoch);
    draft.change(Change::Epoch(epoch, state));
    Ok(())
}

/// An epoch that is closed and not settled.
fn settling<'s>(draft: &Draft<'s>, epoch: i64) -> Result<&'s EpochState, Stop> {
    let state = draft.epoch(epoch)?;
    let over = |words| Refusal::Over {
        what: "epoch",
        name: epoch.to_string(),
        state: words,
    };
    match (state.sealed_at_ms, state.settled_at_ms) {
        (None, _) => Err(over("is not closed").into()),
        (_, Some(_)) => Err(over("is settled").into()),
        _ => Ok(state),
    }
}

fn credit(
    draft: &mut Draft,
    epoch: i64,
    placement: &str,
    node_micro: i64,
    hub_micro: i64,
) -> Result<(), Stop> {
    settling(draft, epoch)?;
    let customer = &draft.placement(placement)?.terms.customer;
    let mut record = draft.charge(epoch, placement)?;
    let needed_micro = node_micro.saturating_add(hub_micro);
    if needed_micro > record.charge.charge_micro {
        return Err(Refusal::Insufficient {
            account: format!("the charge for {placement} in epoch {epoch}"),
            has_micro: record.charge.charge_micro,
            needed_micro,
        }
        .into());
    }
    record.credited_micro = needed_micro;
    draft.change(Change::Charge(epoch, placement.to_owned(), record));
    let to = Account::named(Kind::Customer, customer);
    draft.transfer(Cause::NodeCredit, &pool(epoch), &to, node_micro)?;
    let platform = Account::single(Kind::Platform);
    let there_micro = hub_micro.min(draft.balance_micro(&platform)?);
    draft.transfer(Cause::HubCredit, &platform, &to, there_micro)?;
    let reserve = Account::single(Kind::Reserve);
    draft.transfer(Cause::HubCredit, &reserve, &to, hub_micro - there_micro)?;
    super::recover(draft, customer)
}

fn pay(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    let Operation::Pay {
        epoch,
        account,
        node_micro,
        validator_micro,
        standby_micro,
        withheld_micro,
    } = operation
    else {
        return Ok(());
    };
    let mut state = settling(draft, *epoch)?.clone();
    let sealed_at_ms = state.sealed_at_ms;
    let validation = Account::single(Kind::Validation);
    // The account's own sign allows any balance, so the epoch counts.
    if *validator_micro > state.validators_left_micro {
        return Err(Refusal::Insufficient {
            account: validation.to_string(),
            has_micro: state.validators_left_micro,
            needed_micro: *validator_micro,
        }
        .into());
    }
    if *validator_micro > 0 {
        state.validators_left_micro -= validator_micro;
        draft.change(Change::Epoch(*epoch, state));
    }
    let payout = Account::payout(account, epoch);
    draft.transfer(Cause::Paid, &pool(*epoch), &payout, *node_micro)?;
    draft.transfer(Cause::Paid, &validation, &payout, *validator_micro)?;
    let subsidy = Account::single(Kind::Subsidy);
    draft.transfer(Cause::Standby, &subsidy, &payout, *standby_micro)?;
    let bond = Account::named(Kind::Bond, account);
    let gross_micro = draft.balance_micro(&payout)?;
    Invalid::unless_within(
        "withheld_micro",
        *withheld_micro,
        0,
        gross_micro.min(MICRO_MAX),
    )?;
    draft.transfer(Cause::Withheld, &payout, &bond, *withheld_micro)?;
    let at_ms = draft.at_ms;
    let free_at_ms = draft.parameters().epoch.free_at_ms(at_ms);
    draft.account_mut(&payout)?.free_at_ms = Some(free_at_ms);
    // Later epochs are closed later, and count no pay from before this.
    let sealed_at_ms = sealed_at_ms.unwrap_or(at_ms);
    let since_ms = sealed_at_ms - draft.parameters().bond.pay_ms;
    change_owner(draft, account, |owner| {
        owner
            .pays
            .retain(|_, (paid_at_ms, _)| *paid_at_ms > since_ms);
        owner.pays.insert(*epoch, (at_ms, gross_micro));
    })
}

fn adjust(draft: &mut Draft, epoch: i64, placement: &str) -> Result<(), Stop> {
    let mut state = settling(draft, epoch)?.clone();
    state.unadjusted -= 1;
    draft.change(Change::Epoch(epoch, state));
    let terms = &draft.placement(placement)?.terms;
    let charge = draft.charge(epoch, placement)?.charge;
    if charge.debit_micro() >= 0 {
        return Err(Refusal::Unknown {
            what: "charge below 0 for",
            name: placement.to_owned(),
        }
        .into());
    }
    let parts = settlement::settle(charge.charge_micro, &terms.shares, &Faults::default()).parts;
    take_back(
        draft,
        &Returned {
            customer: &terms.customer,
            owner: &terms.owner,
            node_micro: -parts.node_micro,
            validators_micro: -parts.validators_micro,
            platform_micro: -parts.platform_micro - charge.fee_micro,
        },
    )
}

fn settle(
    draft: &mut Draft,
    epoch: i64,
    charges_root: &str,
    payouts_root: &str,
) -> Result<(), Stop> {
    let mut state = settling(draft, epoch)?.clone();
    if state.unadjusted > 0 {
        return Err(Refusal::Unadjusted {
            epoch,
            charges: state.unadjusted,
        }
        .into());
    }
    let left_micro = draft.balance_micro(&pool(epoch))?;
    let most_micro = draft.parameters().dust_micro_max;
    if left_micro > most_micro {
        return Err(Refusal::NotGiven {
            epoch,
            left_micro,
            most_micro,
        }
        .into());
    }
    let rounding = Account::single(Kind::Rounding);
    draft.transfer(Cause::Dust, &pool(epoch), &rounding, left_micro)?;
    state.settled_at_ms = Some(draft.at_ms);
    state.charges_root = Some(charges_root.to_owned());
    state.payouts_root = Some(payouts_root.to_owned());
    draft.change(Change::Epoch(epoch, state));
    Ok(())
}
