use std::collections::BTreeMap;

use creo_market::money::{Invalid, amount::MICRO_MAX};

use crate::{
    Account, AccountState, Applied, Cause, ChargeState, DisputeState, Entry, EpochState, FLOWS,
    Kind, LedgerState, Need, OwnerState, PlacementState, Refusal, RequestState, Role, Sign, State,
    Stop, WithdrawalState,
};

/// A part of the state as it is after an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each is the key of a part and the part")]
pub enum Change {
    /// What there is once.
    Ledger(LedgerState),
    /// An account.
    Account(Account, AccountState),
    /// A Placement.
    Placement(String, PlacementState),
    /// What was charged in an epoch for a Placement.
    Charge(i64, String, ChargeState),
    /// An epoch.
    Epoch(i64, EpochState),
    /// A dispute.
    Dispute(String, DisputeState),
    /// An owner or validator.
    Owner(String, OwnerState),
    /// A withdrawal.
    Withdrawal(String, WithdrawalState),
    /// An operation, by its key.
    Request(String, RequestState),
}

impl Change {
    /// What it changes: two changes of the same name replace one another.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Ledger(_) => "ledger".to_owned(),
            Self::Account(account, _) => format!("account {account}"),
            Self::Placement(name, _) => format!("placement {name}"),
            Self::Charge(epoch, placement, _) => format!("charge {epoch} {placement}"),
            Self::Epoch(epoch, _) => format!("epoch {epoch}"),
            Self::Dispute(id, _) => format!("dispute {id}"),
            Self::Owner(name, _) => format!("owner {name}"),
            Self::Withdrawal(id, _) => format!("withdrawal {id}"),
            Self::Request(key, _) => format!("request {key}"),
        }
    }
}

struct Leg {
    cause: Cause,
    debit: Account,
    credit: Account,
    amount_micro: i64,
}

/// An operation that is being thought through: it sees its own transfers, and
/// nobody else does before it is finished.
pub(crate) struct Draft<'s> {
    state: &'s State,
    role: Role,
    /// When it happens, in milliseconds since 1970.
    pub at_ms: i64,
    /// What there is once, as it becomes.
    pub ledger: LedgerState,
    accounts: BTreeMap<Account, AccountState>,
    legs: Vec<Leg>,
    changes: Vec<Change>,
}

impl<'s> Draft<'s> {
    pub fn new(state: &'s State, role: Role, at_ms: i64) -> Self {
        Self {
            state,
            role,
            at_ms,
            ledger: state.ledger.clone(),
            accounts: BTreeMap::new(),
            legs: Vec::new(),
            changes: Vec::new(),
        }
    }

    pub fn parameters(&self) -> &'s crate::LedgerParameters {
        &self.state.parameters
    }

    /// An account as it is by now, if there is one.
    pub fn find_account(&self, account: &Account) -> Result<Option<&AccountState>, Stop> {
        if let Some(state) = self.accounts.get(account) {
            return Ok(Some(state));
        }
        let need = Need::Account(account.clone());
        self.state.known(need, &self.state.accounts, account)
    }

    pub fn balance_micro(&self, account: &Account) -> Result<i64, Stop> {
        Ok(self
            .find_account(account)?
            .map_or(0, |state| state.balance_micro))
    }

    /// An account that may be changed beside its balance; it is made where there
    /// is none.
    pub fn account_mut(&mut self, account: &Account) -> Result<&mut AccountState, Stop> {
        let state = self.find_account(account)?.cloned().unwrap_or_default();
        Ok(self.accounts.entry(account.clone()).or_insert(state))
    }

    /// A customer that was opened.
    pub fn customer(&self, customer: &str) -> Result<&AccountState, Stop> {
        let account = Account::named(Kind::Customer, customer);
        self.find_account(&account)?
            .ok_or_else(|| unknown("customer", customer))
    }

    /// An owner's payouts that are not 0, as they are by now.
    pub fn payouts(&self, owner: &str) -> Result<Vec<(Account, AccountState)>, Stop> {
        self.state.unless_missing(Need::Payouts(owner.to_owned()))?;
        let range = Account::payouts_of(owner);
        let mut payouts: BTreeMap<&Account, &AccountState> =
            self.state.accounts.range(range.clone()).collect();
        payouts.extend(self.accounts.range(range));
        Ok(payouts
            .into_iter()
            .filter(|(_, state)| state.balance_micro != 0)
            .map(|(account, state)| (account.clone(), state.clone()))
            .collect())
    }

    pub fn placement(&self, name: &str) -> Result<&'s PlacementState, Stop> {
        self.find_placement(name)?
            .ok_or_else(|| unknown("placement", name))
    }

    pub fn find_placement(&self, name: &str) -> Result<Option<&'s PlacementState>, Stop> {
        let need = Need::Placement(name.to_owned());
        self.state
            .known(need, &self.state.placements, &name.to_owned())
    }

    pub fn charge(&self, epoch: i64, placement: &str) -> Result<ChargeState, Stop> {
        let key = (epoch, placement.to_owned());
        let need = Need::Charge(epoch, placement.to_owned());
        let found = self.state.known(need, &self.state.charges, &key)?;
        Ok(found.copied().unwrap_or_default())
    }

    pub fn epoch(&self, epoch: i64) -> Result<&'s EpochState, Stop> {
        self.state
            .known(Need::Epoch(epoch), &self.state.epochs, &epoch)?
            .ok_or_else(|| unknown("epoch", &epoch))
    }

    pub fn dispute(&self, id: &str) -> Result<&'s DisputeState, Stop> {
        let need = Need::Dispute(id.to_owned());
        self.state
            .known(need, &self.state.disputes, &id.to_owned())?
            .ok_or_else(|| unknown("dispute", id))
    }

    pub fn withdrawal(&self, id: &str) -> Result<&'s WithdrawalState, Stop> {
        let need = Need::Withdrawal(id.to_owned());
        self.state
            .known(need, &self.state.withdrawals, &id.to_owned())?
            .ok_or_else(|| unknown("withdrawal", id))
    }

    pub fn owner(&self, name: &str) -> Result<OwnerState, Stop> {
        let need = Need::Owner(name.to_owned());
        let found = self
            .state
            .known(need, &self.state.owners, &name.to_owned())?;
        Ok(found.cloned().unwrap_or_default())
    }

    pub fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Moves money, if there is a flow for it and both balances stay within what
    /// their kinds allow. Moving nothing does nothing.
    pub fn transfer(
        &mut self,
        cause: Cause,
        debit: &Account,
        credit: &Account,
        amount_micro: i64,
    ) -> Result<(), Stop> {
        Invalid::unless_within("amount_micro", amount_micro, 0, MICRO_MAX)?;
        if amount_micro == 0 {
            return Ok(());
        }
        let is_flow = FLOWS.iter().any(|flow| {
            flow.cause == cause
                && flow.debit == debit.kind()
                && flow.credit == credit.kind()
                && flow.by == self.role
        });
        if !is_flow {
            return Err(Refusal::NoFlow {
                debit: debit.clone(),
                credit: credit.clone(),
            }
            .into());
        }
        self.move_balance(debit, -amount_micro)?;
        self.move_balance(credit, amount_micro)?;
        self.legs.push(Leg {
            cause,
            debit: debit.clone(),
            credit: credit.clone(),
            amount_micro,
        });
        Ok(())
    }

    fn move_balance(&mut self, account: &Account, by_micro: i64) -> Result<(), Stop> {
        let kind = account.kind();
        let state = self.account_mut(account)?;
        let has_micro = state.balance_micro;
        let balance_micro = has_micro
            .checked_add(by_micro)
            .filter(|micro| (-MICRO_MAX..=MICRO_MAX).contains(micro))
            .ok_or_else(|| Refusal::TooMuch {
                account: account.clone(),
            })?;
        if !kind.sign().allows(balance_micro) {
            let there_micro = match kind.sign() {
                Sign::NotAboveZero => -has_micro,
                _ => has_micro,
            };
            return Err(Refusal::Insufficient {
                account: account.to_string(),
                has_micro: there_micro,
                needed_micro: by_micro.abs(),
            }
            .into());
        }
        state.balance_micro = balance_micro;
        self.ledger.totals_micro[kind as usize] += i128::from(by_micro);
        if kind == Kind::External {
            let rail = self.ledger.rails.entry(account.name().to_owned());
            rail.or_default().held_micro = -balance_micro;
        }
        Ok(())
    }

    /// Refuses while the ledger may not pay.
    pub fn unless_unreconciled(&self) -> Result<(), Stop> {
        if self.ledger.unreconciled {
            return Err(Refusal::NotReconciled.into());
        }
        Ok(())
    }

    /// Refuses while more is owed than the rails hold.
    pub fn unless_insolvent(&self) -> Result<(), Stop> {
        let short_micro = self.ledger.shortfall_micro();
        if short_micro > 0 {
            return Err(Refusal::Insolvent { short_micro }.into());
        }
        Ok(())
    }

    /// What happened, as entries, and what changed.
    pub fn finish(mut self, key: String, digest: String) -> Applied {
        let notes = usize::from(self.legs.is_empty());
        let mut entries = Vec::with_capacity(self.legs.len() + notes);
        let first_sequence = self.ledger.head.sequence + 1;
        let legs = self.legs.drain(..).map(|leg| {
            let accounts = Some((leg.debit, leg.credit));
            (leg.cause, accounts, leg.amount_micro)
        });
        let note = (notes == 1).then_some((Cause::Noted, None, 0));
        for (cause, accounts, amount_micro) in legs.chain(note) {
            let (debit, credit) = accounts.unzip();
            let mut entry = Entry {
                sequence: self.ledger.head.sequence + 1,
                key: key.clone(),
                digest: digest.clone(),
                cause: cause.word().to_owned(),
                debit,
                credit,
                amount_micro,
                at_ms: self.at_ms,
                hash: String::new(),
            };
            entry.hash = entry.link(&self.ledger.head.hash);
            self.ledger.head = entry.head();
            entries.push(entry);
        }
        self.ledger.last_at_ms = self.at_ms;
        let request = RequestState {
            digest,
            first_sequence,
            entries: self.ledger.head.sequence - first_sequence + 1,
        };
        let mut changes = self.changes;
        changes.extend(
            self.accounts
                .into_iter()
                .map(|(account, state)| Change::Account(account, state)),
        );
        changes.push(Change::Request(key, request));
        changes.push(Change::Ledger(self.ledger));
        Applied { entries, changes }
    }
}

fn unknown(what: &'static str, name: &(impl ToString + ?Sized)) -> Stop {
    Refusal::Unknown {
        what,
        name: name.to_string(),
    }
    .into()
}
