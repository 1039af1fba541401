use std::fmt;

use creo_market::money::{
    Invalid,
    amount::MICRO_MAX,
    epoch::Window,
    price::Usage,
    terms::{TIME_MS_MAX, Terms},
};
use serde::{Deserialize, Serialize};

use crate::SettlementInputs;

/// Who posts. Each operation belongs to one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// What moves money in and out.
    Rails,
    /// What measures usage and sets money aside for it.
    Metering,
    /// What settles epochs.
    Settlement,
    /// A person, by a command.
    Person,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Rails, Self::Metering, Self::Settlement, Self::Person];

    /// The role's word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Rails => "rails",
            Self::Metering => "metering",
            Self::Settlement => "settlement",
            Self::Person => "person",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// What money that comes in is for, when it is not a customer's to spend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Funded {
    /// Pay for standing by.
    Subsidy,
    /// What covers claims that nothing else covers.
    Reserve,
    /// This account's bond, in place of what would be withheld.
    Bond(String),
}

/// Whose money goes out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// An owner's or validator's free payouts.
    Owner(String),
    /// What a customer has not spent: a refund.
    Customer(String),
    /// What the platform has earned.
    Platform,
}

/// Something that happened, or that someone wants. Its key follows from its
/// cause, so that telling it twice is telling it once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Operation {
    /// A customer is known from now on.
    Open {
        /// Its name.
        customer: String,
    },
    /// A customer's money came in by a rail.
    Deposit {
        /// The rail.
        rail: String,
        /// The rail's own name for the payment.
        reference: String,
        /// Whose it is.
        customer: String,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// Money came in for something else.
    Fund {
        /// The rail.
        rail: String,
        /// The rail's own name for the payment.
        reference: String,
        /// What it is for.
        to: Funded,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// A rail took a customer's deposit back: the account is frozen, and what it
    /// does not have any more it owes. Nodes keep their pay.
    Chargeback {
        /// The rail.
        rail: String,
        /// The rail's own name for the chargeback.
        reference: String,
        /// Whose deposit it was.
        customer: String,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// What a customer owes will never be paid.
    WriteOff {
        /// Who owes it.
        customer: String,
        /// A name for this decision.
        reference: String,
    },
    /// A customer that owes nothing may spend again.
    Unfreeze {
        /// Who.
        customer: String,
        /// A name for this decision.
        reference: String,
    },
    /// What a rail holds for us by its own statement.
    Attest {
        /// The rail.
        rail: String,
        /// The statement's name.
        reference: String,
        /// What the rail holds, in micro-credits; below 0 where we owe it.
        #[serde(with = "as_text")]
        balance_micro: i64,
    },
    /// Usage of a Placement will be charged on these terms.
    Agree {
        /// The terms.
        terms: Terms,
    },
    /// Money is set aside for a Placement's next interval; it adds to what is
    /// set aside already.
    Hold {
        /// The Placement.
        placement: String,
        /// A number for this hold, by the one who posts.
        sequence: i64,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
        /// When it is given back, unless it was used; after now.
        expires_at_ms: i64,
    },
    /// All that is set aside for a Placement is given back.
    Release {
        /// The Placement.
        placement: String,
        /// A number for this release, by the one who posts.
        sequence: i64,
    },
    /// A Placement used something more, or less than was told before.
    Usage {
        /// Who measured.
        source: String,
        /// Its number for this.
        sequence: i64,
        /// The Placement.
        placement: String,
        /// The epoch that it counts for; not closed yet.
        epoch: i64,
        /// How much more, or less where it is below 0.
        used: Usage,
    },
    /// An epoch begins.
    OpenEpoch {
        /// Its number and times. It follows the last one without a gap.
        window: Window,
    },
    /// An epoch's cut-off is over: what was charged is what it has to give.
    Seal {
        /// The epoch.
        epoch: i64,
        /// What its settlement depends on beside the charges.
        #[serde(default)]
        inputs: SettlementInputs,
    },
    /// The validators' and the platform's parts of an epoch.
    Share {
        /// The epoch.
        epoch: i64,
        /// The validators' part, in micro-credits.
        #[serde(with = "as_text")]
        validators_micro: i64,
        /// The platform's part and the fees, in micro-credits.
        #[serde(with = "as_text")]
        platform_micro: i64,
    },
    /// Credits for one charge.
    Credit {
        /// The epoch.
        epoch: i64,
        /// The Placement that was charged for.
        placement: String,
        /// For the node's faults, out of the charge itself, in micro-credits.
        #[serde(with = "as_text")]
        node_micro: i64,
        /// For the hub's faults, from the platform, in micro-credits.
        #[serde(with = "as_text")]
        hub_micro: i64,
    },
    /// One account's payout of an epoch.
    Pay {
        /// The epoch.
        epoch: i64,
        /// The account's name.
        account: String,
        /// For its nodes, in micro-credits.
        #[serde(with = "as_text")]
        node_micro: i64,
        /// For its checks, in micro-credits.
        #[serde(with = "as_text")]
        validator_micro: i64,
        /// For standing by, in micro-credits.
        #[serde(with = "as_text")]
        standby_micro: i64,
        /// What of it goes to the bond, in micro-credits.
        #[serde(with = "as_text")]
        withheld_micro: i64,
    },
    /// A charge below 0 goes back to the customer.
    Adjust {
        /// The epoch.
        epoch: i64,
        /// The Placement.
        placement: String,
    },
    /// An epoch has given what it had.
    Settle {
        /// The epoch.
        epoch: i64,
        /// The Merkle root over the charges, in hexadecimal.
        charges_root: String,
        /// The Merkle root over the payouts, in hexadecimal.
        payouts_root: String,
    },
    /// Someone disputes a charge of a settled epoch.
    Dispute {
        /// The dispute's name.
        id: String,
        /// The epoch.
        epoch: i64,
        /// The Placement that was charged for.
        placement: String,
        /// How much of the charge should go back, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// A dispute is decided.
    Resolve {
        /// The dispute's name.
        id: String,
        /// How much of the charge goes back, in micro-credits; 0 rejects it.
        #[serde(with = "as_text")]
        upheld_micro: i64,
    },
    /// Someone wants money out.
    Withdraw {
        /// The withdrawal's name.
        id: String,
        /// Whose money.
        from: Source,
        /// The rail that it goes by.
        rail: String,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// A withdrawal went out.
    Sent {
        /// The withdrawal's name.
        id: String,
    },
    /// A withdrawal could not go out.
    Failed {
        /// The withdrawal's name.
        id: String,
    },
    /// An owner gives free pay to the reserve.
    Donate {
        /// The donation's name.
        id: String,
        /// The owner.
        owner: String,
        /// How much, in micro-credits; above 0.
        #[serde(with = "as_text")]
        amount_micro: i64,
    },
    /// An owner wants its bond back.
    Notice {
        /// A name for this notice.
        id: String,
        /// The owner.
        owner: String,
    },
    /// A bond is given back, after its notice.
    FreeBond {
        /// The name of its notice.
        id: String,
        /// The owner.
        owner: String,
    },
}

impl Operation {
    /// Who may post it.
    #[must_use]
    pub fn role(&self) -> Role {
        match self {
            Self::Deposit { .. }
            | Self::Fund { .. }
            | Self::Chargeback { .. }
            | Self::Attest { .. }
            | Self::Sent { .. }
            | Self::Failed { .. } => Role::Rails,
            Self::Agree { .. } | Self::Hold { .. } | Self::Release { .. } | Self::Usage { .. } => {
                Role::Metering
            }
            Self::OpenEpoch { .. }
            | Self::Seal { .. }
            | Self::Share { .. }
            | Self::Credit { .. }
            | Self::Pay { .. }
            | Self::Adjust { .. }
            | Self::Settle { .. } => Role::Settlement,
            Self::Open { .. }
            | Self::WriteOff { .. }
            | Self::Unfreeze { .. }
            | Self::Dispute { .. }
            | Self::Resolve { .. }
            | Self::Withdraw { .. }
            | Self::Donate { .. }
            | Self::Notice { .. }
            | Self::FreeBond { .. } => Role::Person,
        }
    }

    /// The key that follows from its cause. A deposit and a funding share theirs,
    /// because one payment cannot be both.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Open { customer } => format!("open/{customer}"),
            Self::Deposit {
                rail, reference, ..
            }
            | Self::Fund {
                rail, reference, ..
            } => {
                format!("received/{rail}/{reference}")
            }
            Self::Chargeback {
                rail, reference, ..
            } => format!("chargeback/{rail}/{reference}"),
            Self::Attest {
                rail, reference, ..
            } => format!("attest/{rail}/{reference}"),
            Self::WriteOff {
                customer,
                reference,
            } => format!("write-off/{customer}/{reference}"),
            Self::Unfreeze {
                customer,
                reference,
            } => format!("unfreeze/{customer}/{reference}"),
            Self::Agree { terms } => format!("agree/{}", terms.placement),
            Self::Hold {
                placement,
                sequence,
                ..
            } => format!("hold/{placement}/{sequence}"),
            Self::Release {
                placement,
                sequence,
            } => format!("release/{placement}/{sequence}"),
            Self::Usage {
                source, sequence, ..
            } => format!("usage/{source}/{sequence}"),
            Self::OpenEpoch { window } => format!("open-epoch/{}", window.epoch),
            Self::Seal { epoch, .. } => format!("seal/{epoch}"),
            Self::Share { epoch, .. } => format!("share/{epoch}"),
            Self::Credit {
                epoch, placement, ..
            } => format!("credit/{epoch}/{placement}"),
            Self::Pay { epoch, account, .. } => format!("pay/{epoch}/{account}"),
            Self::Adjust { epoch, placement } => format!("adjust/{epoch}/{placement}"),
            Self::Settle { epoch, .. } => format!("settle/{epoch}"),
            Self::Dispute { id, .. } => format!("dispute/{id}"),
            Self::Resolve { id, .. } => format!("resolve/{id}"),
            Self::Withdraw { id, .. } => format!("withdraw/{id}"),
            Self::Sent { id } => format!("sent/{id}"),
            Self::Failed { id } => format!("failed/{id}"),
            Self::Donate { id, .. } => format!("donate/{id}"),
            Self::Notice { id, owner } => format!("notice/{owner}/{id}"),
            Self::FreeBond { id, owner } => format!("free-bond/{owner}/{id}"),
        }
    }

    /// Refuses names that are none, and amounts out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (field, name) in self.labels() {
            Invalid::unless_label(field, name)?;
        }
        for (field, value, least) in self.amounts() {
            Invalid::unless_within(field, value, least, MICRO_MAX)?;
        }
        match self {
            Self::Deposit { reference, .. }
            | Self::Fund { reference, .. }
            | Self::Chargeback { reference, .. }
            | Self::Attest { reference, .. }
            | Self::WriteOff { reference, .. }
            | Self::Unfreeze { reference, .. } => unless_reference(reference),
            Self::Agree { terms } => terms.validate(),
            Self::OpenEpoch { window } => window.validate(),
            Self::Seal { inputs, .. } => inputs.validate(),
            Self::Hold { expires_at_ms, .. } => {
                Invalid::unless_within("expires_at_ms", *expires_at_ms, 0, TIME_MS_MAX)
            }
            Self::Settle {
                charges_root,
                payouts_root,
                ..
            } => {
                unless_hash("charges_root", charges_root)?;
                unless_hash("payouts_root", payouts_root)
            }
            _ => Ok(()),
        }
    }

    fn labels(&self) -> Vec<(&'static str, &str)> {
        match self {
            Self::Deposit { rail, customer, .. } | Self::Chargeback { rail, customer, .. } => {
                vec![("rail", rail), ("customer", customer)]
            }
            Self::Fund {
                rail,
                to: Funded::Bond(owner),
                ..
            } => {
                vec![("rail", rail), ("to", owner)]
            }
            Self::Fund { rail, .. } | Self::Attest { rail, .. } => vec![("rail", rail)],
            Self::Open { customer }
            | Self::WriteOff { customer, .. }
            | Self::Unfreeze { customer, .. } => {
                vec![("customer", customer)]
            }
            Self::Hold { placement, .. }
            | Self::Release { placement, .. }
            | Self::Credit { placement, .. }
            | Self::Adjust { placement, .. } => vec![("placement", placement)],
            Self::Usage {
                source, placement, ..
            } => {
                vec![("source", source), ("placement", placement)]
            }
            Self::Pay { account, .. } => vec![("account", account)],
            Self::Dispute { id, placement, .. } => vec![("id", id), ("placement", placement)],
            Self::Withdraw { id, from, rail, .. } => {
                let mut labels = vec![("id", id.as_str()), ("rail", rail)];
                if let Source::Owner(name) | Source::Customer(name) = from {
                    labels.push(("from", name));
                }
                labels
            }
            Self::Resolve { id, .. } | Self::Sent { id } | Self::Failed { id } => vec![("id", id)],
            Self::Donate { id, owner, .. }
            | Self::Notice { id, owner }
            | Self::FreeBond { id, owner } => vec![("id", id), ("owner", owner)],
            Self::Agree { .. }
            | Self::OpenEpoch { .. }
            | Self::Seal { .. }
            | Self::Share { .. }
            | Self::Settle { .. } => Vec::new(),
        }
    }

    /// Amounts with the least that each may be.
    fn amounts(&self) -> Vec<(&'static str, i64, i64)> {
        match self {
            Self::Deposit { amount_micro, .. }
            | Self::Fund { amount_micro, .. }
            | Self::Chargeback { amount_micro, .. }
            | Self::Hold { amount_micro, .. }
            | Self::Dispute { amount_micro, .. }
            | Self::Withdraw { amount_micro, .. }
            | Self::Donate { amount_micro, .. } => vec![("amount_micro", *amount_micro, 1)],
            Self::Attest { balance_micro, .. } => {
                vec![("balance_micro", *balance_micro, -MICRO_MAX)]
            }
            Self::Share {
                validators_micro,
                platform_micro,
                ..
            } => vec![
                ("validators_micro", *validators_micro, 0),
                ("platform_micro", *platform_micro, 0),
            ],
            Self::Credit {
                node_micro,
                hub_micro,
                ..
            } => {
                vec![("node_micro", *node_micro, 0), ("hub_micro", *hub_micro, 0)]
            }
            Self::Pay {
                node_micro,
                validator_micro,
                standby_micro,
                withheld_micro,
                ..
            } => vec![
                ("node_micro", *node_micro, 0),
                ("validator_micro", *validator_micro, 0),
                ("standby_micro", *standby_micro, 0),
                ("withheld_micro", *withheld_micro, 0),
            ],
            Self::Resolve { upheld_micro, .. } => vec![("upheld_micro", *upheld_micro, 0)],
            _ => Vec::new(),
        }
    }
}

/// A name that a rail or a person gave: 1 to 128 ASCII letters, digits, `.`, `_`
/// and `-`.
fn unless_reference(reference: &str) -> Result<(), Invalid> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=128).contains(&reference.len()) && reference.bytes().all(allowed) {
        return Ok(());
    }
    Err(Invalid::new(
        "reference",
        "must be 1 to 128 ASCII letters, digits, '.', '_' and '-'",
    ))
}

fn unless_hash(field: &str, text: &str) -> Result<(), Invalid> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() == 64 && text.bytes().all(digit) {
        return Ok(());
    }
    Err(Invalid::new(
        field,
        "must be 64 lower-case hexadecimal digits",
    ))
}

/// Amounts in JSON are strings: many readers of JSON know only doubles.
pub(crate) mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(crate) fn serialize<S: Serializer>(amount: &i64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(amount)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        let amount: i64 = text
            .parse()
            .map_err(|_| D::Error::custom(format!("'{text}' is no amount of micro-credits")))?;
        // One number has one way to be written, or one operation had two digests.
        if amount.to_string() == text {
            Ok(amount)
        } else {
            Err(D::Error::custom(format!(
                "'{text}' must be written '{amount}'"
            )))
        }
    }
}
