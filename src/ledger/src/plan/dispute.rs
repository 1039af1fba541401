//! Disputes of charges of settled epochs.

use creo_market::money::{Invalid, split};

use super::{Returned, change_owner, take_back};
use crate::{
    Account, Cause, DisputeState, Kind, Operation, Refusal, Stop,
    draft::{Change, Draft},
};

pub(super) fn plan(draft: &mut Draft, operation: &Operation) -> Result<(), Stop> {
    match operation {
        Operation::Dispute {
            id,
            epoch,
            placement,
            amount_micro,
        } => open(draft, id, *epoch, placement, *amount_micro),
        Operation::Resolve { id, upheld_micro } => resolve(draft, id, *upheld_micro),
        _ => Ok(()),
    }
}

fn set_aside(id: &str) -> Account {
    Account::named(Kind::Hold, format_args!("dispute/{id}"))
}

fn open(
    draft: &mut Draft,
    id: &str,
    epoch: i64,
    placement: &str,
    amount_micro: i64,
) -> Result<(), Stop> {
    let mut epoch_state = draft.epoch(epoch)?.clone();
    let Some(settled_at_ms) = epoch_state.settled_at_ms else {
        return Err(Refusal::Over {
            what: "epoch",
            name: epoch.to_string(),
            state: "is not settled",
        }
        .into());
    };
    let until_ms = draft.parameters().epoch.disputes_end_ms(settled_at_ms);
    if draft.at_ms >= until_ms {
        return Err(Refusal::TooLate {
            what: "disputing the epoch",
            until_ms,
        }
        .into());
    }
    let terms = &draft.placement(placement)?.terms;
    let mut record = draft.charge(epoch, placement)?;
    let left_micro = record.charge.charge_micro - record.credited_micro - record.disputed_micro;
    if amount_micro > left_micro {
        return Err(Refusal::Insufficient {
            account: format!("the charge for {placement} in epoch {epoch}"),
            has_micro: left_micro,
            needed_micro: amount_micro,
        }
        .into());
    }
    record.disputed_micro += amount_micro;
    epoch_state.open_disputes += 1;
    draft.change(Change::Charge(epoch, placement.to_owned(), record));
    draft.change(Change::Epoch(epoch, epoch_state));
    change_owner(draft, &terms.owner, |owner| owner.open_disputes += 1)?;
    let state = DisputeState {
        epoch,
        placement: placement.to_owned(),
        amount_micro,
        upheld_micro: None,
    };
    draft.change(Change::Dispute(id.to_owned(), state));
    // The node's part is set aside as far as the epoch's payout is not free.
    let payout = Account::payout(&terms.owner, epoch);
    let maturing = draft
        .find_account(&payout)?
        .filter(|state| state.free_at_ms.is_some_and(|free| free > draft.at_ms))
        .map_or(0, |state| state.balance_micro);
    let node_micro = split::divide(amount_micro, &terms.shares).node_micro;
    let amount_micro = node_micro.min(maturing);
    draft.transfer(Cause::DisputeOpened, &payout, &set_aside(id), amount_micro)
}

fn resolve(draft: &mut Draft, id: &str, upheld_micro: i64) -> Result<(), Stop> {
    let mut state = draft.dispute(id)?.clone();
    if state.upheld_micro.is_some() {
        return Err(Refusal::Over {
            what: "dispute",
            name: id.to_owned(),
            state: "is decided",
        }
        .into());
    }
    Invalid::unless_within("upheld_micro", upheld_micro, 0, state.amount_micro)?;
    let terms = &draft.placement(&state.placement)?.terms;
    let mut record = draft.charge(state.epoch, &state.placement)?;
    record.disputed_micro -= state.amount_micro - upheld_micro;
    let mut epoch_state = draft.epoch(state.epoch)?.clone();
    epoch_state.open_disputes -= 1;
    draft.change(Change::Charge(state.epoch, state.placement.clone(), record));
    draft.change(Change::Epoch(state.epoch, epoch_state));
    change_owner(draft, &terms.owner, |owner| owner.open_disputes -= 1)?;

    let parts = split::divide(upheld_micro, &terms.shares);
    let aside = set_aside(id);
    let aside_micro = draft.balance_micro(&aside)?;
    let customer = Account::named(Kind::Customer, &terms.customer);
    let from_aside_micro = aside_micro.min(parts.node_micro);
    draft.transfer(Cause::DisputeUpheld, &aside, &customer, from_aside_micro)?;
    let payout = Account::payout(&terms.owner, state.epoch);
    let back_micro = aside_micro - from_aside_micro;
    draft.transfer(Cause::DisputeRejected, &aside, &payout, back_micro)?;
    state.upheld_micro = Some(upheld_micro);
    draft.change(Change::Dispute(id.to_owned(), state));
    take_back(
        draft,
        &Returned {
            customer: &terms.customer,
            owner: &terms.owner,
            node_micro: parts.node_micro - from_aside_micro,
            validators_micro: parts.validators_micro,
            platform_micro: parts.platform_micro,
        },
    )
}
