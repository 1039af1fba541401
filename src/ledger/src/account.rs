use std::{fmt, str::FromStr};

use creo_market::money::Invalid;
use serde::{Deserialize, Serialize};

/// What an account is for; it decides what balance it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `external:RAIL`: money outside, reached by one rail. What the rail holds
    /// for us is below 0.
    External,
    /// `customer:CUSTOMER`: what a customer can spend.
    Customer,
    /// `hold:PLACEMENT` or `hold:dispute/ID`: money set aside.
    Hold,
    /// `charges-pending:EPOCH`: what was taken for usage of an epoch that is not
    /// closed.
    ChargesPending,
    /// `pool:EPOCH`: what a closed epoch has to give; 0 when it is settled.
    Pool,
    /// `payout:OWNER/EPOCH`: one payout. It is maturing, and from its own time
    /// on free.
    Payout,
    /// `bond:OWNER`: what is withheld against faults found later.
    Bond,
    /// `withdrawal-pending:ID`: what was asked to be sent out and is not sent.
    WithdrawalPending,
    /// `platform`: what the platform has earned.
    Platform,
    /// `validation`: what is for validators and no validator's yet; below 0
    /// where they still have to return something.
    Validation,
    /// `subsidy`: what was paid in to be given for standing by.
    Subsidy,
    /// `reserve`: what covers claims that nothing else covers; what is below 0
    /// are claims that it does not cover yet.
    Reserve,
    /// `receivable:CUSTOMER`: what a customer owes.
    Receivable,
    /// `bad-debt`: what will never be paid.
    BadDebt,
    /// `rounding`: dust that closed epochs left.
    Rounding,
}

/// What balance an account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// 0 or above.
    NotBelowZero,
    /// 0 or below.
    NotAboveZero,
    /// Any.
    Any,
}

impl Kind {
    /// Every kind, in the order of documents.
    pub const ALL: [Self; 15] = [
        Self::External,
        Self::Customer,
        Self::Hold,
        Self::ChargesPending,
        Self::Pool,
        Self::Payout,
        Self::Bond,
        Self::WithdrawalPending,
        Self::Platform,
        Self::Validation,
        Self::Subsidy,
        Self::Reserve,
        Self::Receivable,
        Self::BadDebt,
        Self::Rounding,
    ];

    /// The kind's word, as in an account's name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::External => "external",
            Self::Customer => "customer",
            Self::Hold => "hold",
            Self::ChargesPending => "charges-pending",
            Self::Pool => "pool",
            Self::Payout => "payout",
            Self::Bond => "bond",
            Self::WithdrawalPending => "withdrawal-pending",
            Self::Platform => "platform",
            Self::Validation => "validation",
            Self::Subsidy => "subsidy",
            Self::Reserve => "reserve",
            Self::Receivable => "receivable",
            Self::BadDebt => "bad-debt",
            Self::Rounding => "rounding",
        }
    }

    /// What balance accounts of this kind may have.
    #[must_use]
    pub fn sign(self) -> Sign {
        match self {
            Self::External | Self::Validation | Self::Reserve => Sign::Any,
            Self::Receivable | Self::BadDebt => Sign::NotAboveZero,
            _ => Sign::NotBelowZero,
        }
    }

    /// Whether there is only one account of this kind.
    #[must_use]
    pub fn is_single(self) -> bool {
        matches!(
            self,
            Self::Platform
                | Self::Validation
                | Self::Subsidy
                | Self::Reserve
                | Self::BadDebt
                | Self::Rounding
        )
    }

    /// Whether what these accounts have is owed to others, so that the rails
    /// must hold it.
    #[must_use]
    pub fn is_liability(self) -> bool {
        matches!(
            self,
            Self::Customer
                | Self::Hold
                | Self::ChargesPending
                | Self::Pool
                | Self::Payout
                | Self::Bond
                | Self::WithdrawalPending
        )
    }
}

impl Sign {
    /// Whether a balance is allowed.
    #[must_use]
    pub fn allows(self, balance_micro: i64) -> bool {
        match self {
            Self::NotBelowZero => balance_micro >= 0,
            Self::NotAboveZero => balance_micro <= 0,
            Self::Any => true,
        }
    }
}

/// An account: its kind and, where there are several of the kind, its name.
/// Written `kind:name`, or `kind`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Account {
    kind: Kind,
    name: String,
}

impl Account {
    /// The account of a kind of which there is one.
    pub(crate) fn single(kind: Kind) -> Self {
        Self {
            kind,
            name: String::new(),
        }
    }

    /// An account of a kind of which there are several.
    pub(crate) fn named(kind: Kind, name: impl fmt::Display) -> Self {
        Self {
            kind,
            name: name.to_string(),
        }
    }

    /// A payout of an epoch, or what came back to an owner otherwise.
    pub(crate) fn payout(owner: &str, of: impl fmt::Display) -> Self {
        Self::named(Kind::Payout, format_args!("{owner}/{of}"))
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name among those of its kind; empty where there is only one.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The two accounts between which all payouts of an owner lie, the second
    /// not included.
    pub(crate) fn payouts_of(owner: &str) -> std::ops::Range<Self> {
        // No name of an owner holds '/', and '0' follows it.
        Self::named(Kind::Payout, format_args!("{owner}/"))
            ..Self::named(Kind::Payout, format_args!("{owner}0"))
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.word())?;
        if self.name.is_empty() {
            return Ok(());
        }
        write!(f, ":{}", self.name)
    }
}

impl FromStr for Account {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (word, name) = text.split_once(':').unwrap_or((text, ""));
        let wrong = |why: &str| Invalid::new("account", format!("{why}: '{text}'"));
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.word() == word)
            .ok_or_else(|| wrong("must begin with the word of a kind of account"))?;
        if kind.is_single() == name.is_empty() && kind.is_single() != text.contains(':') {
            Ok(Self::named(kind, name))
        } else if kind.is_single() {
            Err(wrong("must be the kind's word alone"))
        } else {
            Err(wrong("must be the kind's word, ':' and a name"))
        }
    }
}

impl From<Account> for String {
    fn from(account: Account) -> Self {
        account.to_string()
    }
}

impl TryFrom<String> for Account {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_as_it_is_written() {
        for text in [
            "customer:acme",
            "payout:olga/7",
            "reserve",
            "hold:dispute/d-1",
        ] {
            assert_eq!(text.parse::<Account>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "custom:acme",
            "customer",
            "customer:",
            "reserve:a",
            "reserve:",
            "Customer:a",
        ] {
            assert!(bad.parse::<Account>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_owners_payouts_and_no_others_lie_in_their_range() {
        let range = Account::payouts_of("olga");
        for (owner, inside) in [
            ("olga", true),
            ("olga-2", false),
            ("olg", false),
            ("olga0", false),
            ("olgb", false),
        ] {
            assert_eq!(
                range.contains(&Account::payout(owner, 12)),
                inside,
                "{owner}"
            );
        }
        assert!(range.contains(&Account::payout("olga", "returned-w-1")));
    }

    #[test]
    fn signs_allow_their_side_of_zero() {
        for (sign, allowed) in [
            (Sign::NotBelowZero, [false, true, true]),
            (Sign::NotAboveZero, [true, true, false]),
            (Sign::Any, [true, true, true]),
        ] {
            assert_eq!(
                [-1, 0, 1].map(|balance| sign.allows(balance)),
                allowed,
                "{sign:?}"
            );
        }
    }
}
