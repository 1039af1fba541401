use std::collections::{BTreeMap, BTreeSet};

use creo_market::money::{
    Invalid,
    epoch::Window,
    price::{Charge, Usage},
    settlement::BondState,
    terms::{TIME_MS_MAX, Terms, hexadecimal},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    Account, Change, Entry, Head, Kind, LedgerParameters, Operation, Refusal, Role,
    SettlementInputs, Source, draft::Draft, operation::as_text, plan,
};

/// What is known of an account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountState {
    /// Credits less debits, in micro-credits.
    #[serde(with = "as_text")]
    pub balance_micro: i64,
    /// Whether a chargeback froze it: customers alone.
    pub frozen: bool,
    /// From when on it is free, in milliseconds since 1970: payouts alone.
    pub free_at_ms: Option<i64>,
    /// When it is given back unless it was used: holds of Placements alone.
    pub expires_at_ms: Option<i64>,
}

/// What is known of a Placement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacementState {
    /// What was agreed.
    pub terms: Terms,
    /// The terms' digest.
    pub digest: String,
    /// What was used in epochs that are closed.
    pub sealed: Usage,
    /// What was used in each epoch that is not, or was not when this was last
    /// written.
    pub open: BTreeMap<i64, Usage>,
}

/// What was charged for a Placement in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChargeState {
    /// Charge and fee; both below 0 where corrections took back more than was
    /// used.
    pub charge: Charge,
    /// What was credited at settlement, in micro-credits.
    pub credited_micro: i64,
    /// What is disputed or was given back by disputes, in micro-credits.
    pub disputed_micro: i64,
}

/// What is known of an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochState {
    /// Its times.
    pub window: Window,
    /// When it was closed.
    pub sealed_at_ms: Option<i64>,
    /// When it was settled.
    pub settled_at_ms: Option<i64>,
    /// The Merkle root over its charges, when it is settled.
    pub charges_root: Option<String>,
    /// The Merkle root over its payouts, when it is settled.
    pub payouts_root: Option<String>,
    /// Disputes of it that are open.
    pub open_disputes: i64,
    /// Charges below 0 that did not go back to their customers yet.
    pub unadjusted: i64,
    /// What its settlement depends on beside the charges, when it is closed.
    pub inputs: SettlementInputs,
    /// What earlier epochs had left for validators when it was closed, in
    /// micro-credits.
    pub validation_micro: i64,
    /// What there was for standing by when it was closed, in micro-credits.
    pub subsidy_micro: i64,
    /// What validators can still be paid of it, in micro-credits.
    pub validators_left_micro: i64,
}

/// What is known of a dispute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisputeState {
    /// The epoch.
    pub epoch: i64,
    /// The Placement that was charged for.
    pub placement: String,
    /// How much of the charge is disputed, in micro-credits.
    pub amount_micro: i64,
    /// How much went back, in micro-credits, when it is decided.
    pub upheld_micro: Option<i64>,
}

/// What is known of a withdrawal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawalState {
    /// Whose money.
    pub from: Source,
    /// The rail that it goes by.
    pub rail: String,
    /// How much, in micro-credits.
    pub amount_micro: i64,
    /// Whether it went out (`true`) or failed (`false`), when that is known.
    pub sent: Option<bool>,
}

/// What is known of an owner or validator.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerState {
    /// The notice under which its bond will be freed: name and time.
    pub notice: Option<(String, i64)>,
    /// Disputes of its charges that are open.
    pub open_disputes: i64,
    /// Its pay by epoch, as time and micro-credits, as far back as its bond
    /// counts it.
    pub pays: BTreeMap<i64, (i64, i64)>,
}

/// What is known of a rail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RailState {
    /// What it holds for us by our books, in micro-credits.
    pub held_micro: i64,
    /// What its last statement said more than our books, in micro-credits;
    /// absent where there was none.
    pub difference_micro: Option<i64>,
}

/// An operation that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestState {
    /// The SHA-256 of its JSON, in hexadecimal.
    pub digest: String,
    /// Its first entry.
    pub first_sequence: i64,
    /// How many entries it has.
    pub entries: i64,
}

/// What there is once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerState {
    /// The last entry.
    pub head: Head,
    /// The last entry's time, in milliseconds since 1970.
    pub last_at_ms: i64,
    /// The first epoch that was opened.
    pub first_epoch: Option<i64>,
    /// The last epoch that was opened.
    pub last_epoch: Option<i64>,
    /// The last epoch that was closed.
    pub sealed_epoch: Option<i64>,
    /// Which copy of the ledger this is: one more each time it was restored.
    pub incarnation: i64,
    /// Whether it was restored and not compared with the rails since.
    pub unreconciled: bool,
    /// The rails.
    pub rails: BTreeMap<String, RailState>,
    /// The sum of balances a kind of account, by [`Kind::ALL`], in
    /// micro-credits.
    #[serde(with = "totals_text")]
    pub totals_micro: [i128; 15],
}

impl LedgerState {
    /// The sum of the balances of a kind of account.
    #[must_use]
    pub fn total_micro(&self, kind: Kind) -> i128 {
        self.totals_micro[kind as usize]
    }

    /// By how much more is owed to others than the rails hold by their own
    /// statements, in micro-credits; 0 or below where the ledger is solvent. A
    /// rail without a statement counts as empty, and what came and went since a
    /// statement is added to it.
    #[must_use]
    pub fn shortfall_micro(&self) -> i128 {
        let owed: i128 = Kind::ALL
            .into_iter()
            .filter(|kind| kind.is_liability())
            .map(|kind| self.total_micro(kind))
            .sum();
        let validators = self.total_micro(Kind::Validation).max(0);
        let held: i128 = self
            .rails
            .values()
            .filter_map(|rail| Some((rail.held_micro, rail.difference_micro?)))
            .map(|(held, difference)| i128::from(held) + i128::from(difference))
            .sum();
        owed + validators - held
    }
}

/// Something that the core has to know before it can decide.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// An account.
    Account(Account),
    /// All payouts of an owner that are not 0.
    Payouts(String),
    /// A Placement.
    Placement(String),
    /// What was charged for a Placement in an epoch.
    Charge(i64, String),
    /// An epoch.
    Epoch(i64),
    /// A dispute.
    Dispute(String),
    /// An owner or validator.
    Owner(String),
    /// A withdrawal.
    Withdrawal(String),
    /// An operation, by its key.
    Request(String),
}

/// Why an operation did not happen.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Stop {
    /// It is refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This part of the state was not loaded. Only partial states say so: load
    /// it with [`State::learn`] and apply the operation again.
    #[error("{0:?} is not loaded")]
    Missing(Need),
}

impl From<Invalid> for Stop {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(invalid.into())
    }
}

/// What an operation that was accepted did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The entries that follow from it; none where it had happened before.
    pub entries: Vec<Entry>,
    /// What changed, for whoever keeps the state elsewhere.
    pub changes: Vec<Change>,
}

impl Applied {
    /// Whether the same operation had been accepted before, so that nothing
    /// happened now.
    #[must_use]
    pub fn is_repetition(&self) -> bool {
        self.entries.is_empty()
    }
}

/// All that the ledger knows, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub(crate) parameters: LedgerParameters,
    pub(crate) ledger: LedgerState,
    pub(crate) accounts: BTreeMap<Account, AccountState>,
    pub(crate) placements: BTreeMap<String, PlacementState>,
    pub(crate) charges: BTreeMap<(i64, String), ChargeState>,
    pub(crate) epochs: BTreeMap<i64, EpochState>,
    pub(crate) disputes: BTreeMap<String, DisputeState>,
    pub(crate) owners: BTreeMap<String, OwnerState>,
    pub(crate) withdrawals: BTreeMap<String, WithdrawalState>,
    pub(crate) requests: BTreeMap<String, RequestState>,
    /// What is loaded, where not everything is.
    known: Option<BTreeSet<Need>>,
}

impl State {
    /// A ledger in which nothing has happened.
    #[must_use]
    pub fn new(parameters: LedgerParameters) -> Self {
        Self {
            parameters,
            ledger: LedgerState::default(),
            accounts: BTreeMap::new(),
            placements: BTreeMap::new(),
            charges: BTreeMap::new(),
            epochs: BTreeMap::new(),
            disputes: BTreeMap::new(),
            owners: BTreeMap::new(),
            withdrawals: BTreeMap::new(),
            requests: BTreeMap::new(),
            known: None,
        }
    }

    /// A state of which only this is loaded. What else an operation needs to
    /// know, it says by [`Stop::Missing`].
    #[must_use]
    pub fn partial(parameters: LedgerParameters, ledger: LedgerState) -> Self {
        Self {
            ledger,
            known: Some(BTreeSet::new()),
            ..Self::new(parameters)
        }
    }

    /// Takes up what was loaded for a need: every part of the state that there
    /// is of it, and nothing where there is none. What is known already stays: it
    /// may have changed since it was stored.
    pub fn learn(&mut self, need: Need, loaded: impl IntoIterator<Item = Change>) {
        for change in loaded {
            if !self.knows(&change) {
                self.change(change);
            }
        }
        if let Some(known) = &mut self.known {
            known.insert(need);
        }
    }

    fn knows(&self, change: &Change) -> bool {
        match change {
            Change::Ledger(_) => true,
            Change::Account(account, _) => self.accounts.contains_key(account),
            Change::Placement(name, _) => self.placements.contains_key(name),
            Change::Charge(epoch, placement, _) => {
                self.charges.contains_key(&(*epoch, placement.clone()))
            }
            Change::Epoch(epoch, _) => self.epochs.contains_key(epoch),
            Change::Dispute(id, _) => self.disputes.contains_key(id),
            Change::Owner(name, _) => self.owners.contains_key(name),
            Change::Withdrawal(id, _) => self.withdrawals.contains_key(id),
            Change::Request(key, _) => self.requests.contains_key(key),
        }
    }

    /// Lets an operation happen, at a time in milliseconds since 1970 that is
    /// not before that of the last entry. The same operation again changes
    /// nothing and is no error.
    ///
    /// # Errors
    ///
    /// The operation is refused; nothing was changed.
    pub fn apply(
        &mut self,
        role: Role,
        at_ms: i64,
        operation: &Operation,
    ) -> Result<Applied, Stop> {
        operation.validate().map_err(Stop::from)?;
        let by = operation.role();
        if by != role {
            return Err(Refusal::NotYours { role, by }.into());
        }
        let key = operation.key();
        let digest = digest(operation)?;
        if let Some(request) = self.known(Need::Request(key.clone()), &self.requests, &key)? {
            if request.digest == digest {
                return Ok(Applied::default());
            }
            return Err(Refusal::Conflict { key }.into());
        }
        Invalid::unless_within("at_ms", at_ms, 0, TIME_MS_MAX).map_err(Stop::from)?;
        let last_ms = self.ledger.last_at_ms;
        if at_ms < last_ms {
            return Err(Refusal::TimeWentBack { at_ms, last_ms }.into());
        }
        let mut draft = Draft::new(self, role, at_ms);
        plan::plan(&mut draft, operation)?;
        let applied = draft.finish(key, digest);
        for change in &applied.changes {
            self.change(change.clone());
        }
        Ok(applied)
    }

    /// Takes up parts of the state.
    pub(crate) fn learn_all(&mut self, loaded: impl IntoIterator<Item = Change>) {
        for change in loaded {
            self.change(change);
        }
    }

    /// An operation that was accepted, by its key, if it is loaded.
    #[must_use]
    pub fn request(&self, key: &str) -> Option<&RequestState> {
        self.requests.get(key)
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Ledger(ledger) => self.ledger = ledger,
            Change::Account(account, state) => {
                self.accounts.insert(account, state);
            }
            Change::Placement(name, state) => {
                self.placements.insert(name, state);
            }
            Change::Charge(epoch, placement, state) => {
                self.charges.insert((epoch, placement), state);
            }
            Change::Epoch(epoch, state) => {
                self.epochs.insert(epoch, state);
            }
            Change::Dispute(id, state) => {
                self.disputes.insert(id, state);
            }
            Change::Owner(name, state) => {
                self.owners.insert(name, state);
            }
            Change::Withdrawal(id, state) => {
                self.withdrawals.insert(id, state);
            }
            Change::Request(key, state) => {
                self.requests.insert(key, state);
            }
        }
    }

    /// What there is of something, if all that there is of it is loaded.
    pub(crate) fn known<'s, K: Ord, V>(
        &'s self,
        need: Need,
        within: &'s BTreeMap<K, V>,
        key: &K,
    ) -> Result<Option<&'s V>, Stop> {
        let found = within.get(key);
        if found.is_none() {
            self.unless_missing(need)?;
        }
        Ok(found)
    }

    pub(crate) fn unless_missing(&self, need: Need) -> Result<(), Stop> {
        match &self.known {
            Some(known) if !known.contains(&need) => Err(Stop::Missing(need)),
            _ => Ok(()),
        }
    }

    /// What there is once.
    #[must_use]
    pub fn ledger(&self) -> &LedgerState {
        &self.ledger
    }

    /// How operations are judged.
    #[must_use]
    pub fn parameters(&self) -> &LedgerParameters {
        &self.parameters
    }

    /// The accounts that are loaded.
    #[must_use]
    pub fn accounts(&self) -> &BTreeMap<Account, AccountState> {
        &self.accounts
    }

    /// The Placements that are loaded.
    #[must_use]
    pub fn placements(&self) -> &BTreeMap<String, PlacementState> {
        &self.placements
    }

    /// The epochs that are loaded.
    #[must_use]
    pub fn epochs(&self) -> &BTreeMap<i64, EpochState> {
        &self.epochs
    }

    /// The disputes that are loaded.
    #[must_use]
    pub fn disputes(&self) -> &BTreeMap<String, DisputeState> {
        &self.disputes
    }

    /// The charges of an epoch that are loaded, by Placement.
    pub fn charges_of(&self, epoch: i64) -> impl Iterator<Item = (&str, &ChargeState)> {
        self.charges
            .range((epoch, String::new())..(epoch + 1, String::new()))
            .map(|((_, placement), charge)| (placement.as_str(), charge))
    }

    /// The bonds of owners and validators, with the pay of the time that a bond
    /// counts, at `now_ms`.
    #[must_use]
    pub fn bonds(&self, now_ms: i64) -> BTreeMap<String, BondState> {
        let mut bonds: BTreeMap<String, BondState> = BTreeMap::new();
        for (owner, state) in &self.owners {
            bonds.entry(owner.clone()).or_default().pay_micro =
                state.pay_micro(now_ms - self.parameters.bond.pay_ms);
        }
        for (account, state) in &self.accounts {
            if account.kind() == Kind::Bond {
                bonds
                    .entry(account.name().to_owned())
                    .or_default()
                    .bond_micro = state.balance_micro;
            }
        }
        bonds
    }
}

impl OwnerState {
    /// Its pay after `since_ms`, in micro-credits.
    #[must_use]
    pub fn pay_micro(&self, since_ms: i64) -> i64 {
        self.pays
            .values()
            .filter(|(at_ms, _)| *at_ms > since_ms)
            .fold(0, |sum, (_, micro)| sum.saturating_add(*micro))
    }
}

/// The SHA-256 of an operation's JSON, in hexadecimal.
fn digest(operation: &Operation) -> Result<String, Refusal> {
    let json = serde_json::to_vec(operation)
        .map_err(|error| Invalid::new("operation", format!("cannot be written: {error}")))?;
    Ok(hexadecimal(&Sha256::digest(json)))
}

/// Sums in JSON are strings, as amounts are.
mod totals_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(totals: &[i128; 15], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(totals.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[i128; 15], D::Error> {
        let texts = Vec::<String>::deserialize(from)?;
        let totals: Result<Vec<i128>, _> = texts.iter().map(|text| text.parse()).collect();
        let totals = totals.map_err(D::Error::custom)?;
        totals
            .try_into()
            .map_err(|_| D::Error::custom("there must be a sum for each kind of account"))
    }
}
