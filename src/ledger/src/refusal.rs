use creo_market::money::Invalid;
use thiserror::Error;

use crate::{Account, Role};

/// Why an operation was refused. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// A value that no operation may have.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// The key was used for something else.
    #[error("{key} was posted before with other content; post this under its own name")]
    Conflict {
        /// The key.
        key: String,
    },
    /// Posted by someone whose operation it is not.
    #[error("{role} does not post this; {by} does")]
    NotYours {
        /// Who posted.
        role: Role,
        /// Who may.
        by: Role,
    },
    /// The clock of the one who posts went back.
    #[error(
        "the time {at_ms} ms is before that of the last entry, {last_ms} ms; set the clock right"
    )]
    TimeWentBack {
        /// The time that was given.
        at_ms: i64,
        /// The last entry's.
        last_ms: i64,
    },
    /// The account has too little.
    #[error("{account} has {has_micro} micro-credits, {needed_micro} needed")]
    Insufficient {
        /// The account, or the owner's payouts as a whole.
        account: String,
        /// What there is to be taken.
        has_micro: i64,
        /// What was asked for.
        needed_micro: i64,
    },
    /// The customer is frozen after a chargeback.
    #[error(
        "{customer} is frozen after a chargeback; it may spend again when it owes nothing and was unfrozen"
    )]
    Frozen {
        /// The customer.
        customer: String,
    },
    /// The customer still owes something.
    #[error("{customer} still owes {owed_micro} micro-credits")]
    Owes {
        /// The customer.
        customer: String,
        /// What it owes, in micro-credits.
        owed_micro: i64,
    },
    /// There is no such thing.
    #[error("there is no {what} {name}")]
    Unknown {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It has happened already, or something else has instead.
    #[error("{what} {name} {state}")]
    Over {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
        /// What became of it, as the end of a sentence.
        state: &'static str,
    },
    /// It cannot be yet.
    #[error("{what} cannot be before {from_ms} ms")]
    TooEarly {
        /// What.
        what: &'static str,
        /// From when on it can be.
        from_ms: i64,
    },
    /// It cannot be any more.
    #[error("{what} could be until {until_ms} ms")]
    TooLate {
        /// What.
        what: &'static str,
        /// Until when it could be.
        until_ms: i64,
    },
    /// A dispute is open.
    #[error("{owner} has open disputes; they are decided first")]
    Disputed {
        /// Whose pay is disputed.
        owner: String,
    },
    /// More is owed than the rails hold.
    #[error(
        "the rails hold {short_micro} micro-credits less than is owed; nothing is paid until that is found"
    )]
    Insolvent {
        /// How much less.
        short_micro: i128,
    },
    /// The ledger was restored from a copy and not compared with the rails since.
    #[error("the ledger was restored and is not reconciled yet; nothing is paid until it is")]
    NotReconciled,
    /// An epoch was not given as it was charged.
    #[error(
        "epoch {epoch} has {left_micro} micro-credits left to give, at most {most_micro} may be left"
    )]
    NotGiven {
        /// The epoch.
        epoch: i64,
        /// What is left in its pool.
        left_micro: i64,
        /// What may be left.
        most_micro: i64,
    },
    /// Charges below 0 did not go back yet.
    #[error("epoch {epoch} has {charges} charges below 0 that did not go back to their customers")]
    Unadjusted {
        /// The epoch.
        epoch: i64,
        /// How many.
        charges: i64,
    },
    /// Money cannot go this way.
    #[error("no flow goes from {debit} to {credit} for this cause")]
    NoFlow {
        /// From.
        debit: Account,
        /// To.
        credit: Account,
    },
    /// A balance would leave the range of amounts.
    #[error("{account} would have more than an amount can be")]
    TooMuch {
        /// The account.
        account: Account,
    },
}

impl Refusal {
    /// A short name of the reason, for programs and tables.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::Conflict { .. } => "conflict",
            Self::NotYours { .. } => "not-yours",
            Self::TimeWentBack { .. } => "time-went-back",
            Self::Insufficient { .. } => "insufficient",
            Self::Frozen { .. } => "frozen",
            Self::Owes { .. } => "owes",
            Self::Unknown { .. } => "unknown",
            Self::Over { .. } => "over",
            Self::TooEarly { .. } => "too-early",
            Self::TooLate { .. } => "too-late",
            Self::Disputed { .. } => "disputed",
            Self::Insolvent { .. } => "insolvent",
            Self::NotReconciled => "not-reconciled",
            Self::NotGiven { .. } => "not-given",
            Self::Unadjusted { .. } => "unadjusted",
            Self::NoFlow { .. } => "no-flow",
            Self::TooMuch { .. } => "too-much",
        }
    }
}
