use crate::{Kind, Role};

/// Why money moves. Each cause has its list of kinds of accounts that it may
/// move money between, see [`FLOWS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A customer's money came in.
    Deposit,
    /// What came in pays what is owed.
    Recovered,
    /// A rail took a deposit back.
    Chargeback,
    /// What is owed will never be paid.
    WrittenOff,
    /// Money came in for something else than a customer's spending.
    Funded,
    /// Set aside for a Placement's next interval.
    HoldTaken,
    /// A Placement is over.
    HoldReleased,
    /// A hold was not used in its time.
    HoldExpired,
    /// Something was used.
    Usage,
    /// Less was used than was told, in an epoch that is not closed.
    UsageReversed,
    /// An epoch is closed: it has this to give.
    Closed,
    /// The validators' part of an epoch's charges.
    ValidatorsPart,
    /// The platform's part of an epoch's charges, and the fees.
    PlatformPart,
    /// A credit for a node's fault.
    NodeCredit,
    /// A credit for the hub's own fault.
    HubCredit,
    /// A payout.
    Paid,
    /// Pay for standing by.
    Standby,
    /// A part of a payout goes to the bond.
    Withheld,
    /// Something of a settled epoch goes back to the customer.
    TakenBack,
    /// What a closed epoch left over.
    Dust,
    /// A payout is set aside while it is disputed.
    DisputeOpened,
    /// A dispute was decided for the customer: what was set aside.
    DisputeUpheld,
    /// A dispute was decided for the node.
    DisputeRejected,
    /// Someone wants money out.
    WithdrawalRequested,
    /// It went out.
    WithdrawalSent,
    /// It could not go out.
    WithdrawalFailed,
    /// An owner gives its pay away.
    Donated,
    /// A bond is given back.
    BondFreed,
    /// Something was noted and no money moved.
    Noted,
}

impl Cause {
    /// Every cause that moves money, and [`Cause::Noted`].
    pub const ALL: [Self; 29] = [
        Self::Deposit,
        Self::Recovered,
        Self::Chargeback,
        Self::WrittenOff,
        Self::Funded,
        Self::HoldTaken,
        Self::HoldReleased,
        Self::HoldExpired,
        Self::Usage,
        Self::UsageReversed,
        Self::Closed,
        Self::ValidatorsPart,
        Self::PlatformPart,
        Self::NodeCredit,
        Self::HubCredit,
        Self::Paid,
        Self::Standby,
        Self::Withheld,
        Self::TakenBack,
        Self::Dust,
        Self::DisputeOpened,
        Self::DisputeUpheld,
        Self::DisputeRejected,
        Self::WithdrawalRequested,
        Self::WithdrawalSent,
        Self::WithdrawalFailed,
        Self::Donated,
        Self::BondFreed,
        Self::Noted,
    ];

    /// The cause's word, as in entries.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Deposit => "deposit",
            Self::Recovered => "recovered",
            Self::Chargeback => "chargeback",
            Self::WrittenOff => "written-off",
            Self::Funded => "funded",
            Self::HoldTaken => "hold-taken",
            Self::HoldReleased => "hold-released",
            Self::HoldExpired => "hold-expired",
            Self::Usage => "usage",
            Self::UsageReversed => "usage-reversed",
            Self::Closed => "closed",
            Self::ValidatorsPart => "validators-part",
            Self::PlatformPart => "platform-part",
            Self::NodeCredit => "node-credit",
            Self::HubCredit => "hub-credit",
            Self::Paid => "paid",
            Self::Standby => "standby",
            Self::Withheld => "withheld",
            Self::TakenBack => "taken-back",
            Self::Dust => "dust",
            Self::DisputeOpened => "dispute-opened",
            Self::DisputeUpheld => "dispute-upheld",
            Self::DisputeRejected => "dispute-rejected",
            Self::WithdrawalRequested => "withdrawal-requested",
            Self::WithdrawalSent => "withdrawal-sent",
            Self::WithdrawalFailed => "withdrawal-failed",
            Self::Donated => "donated",
            Self::BondFreed => "bond-freed",
            Self::Noted => "noted",
        }
    }

    /// The cause of this word.
    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.word() == word)
    }
}

/// One way that money may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Why.
    pub cause: Cause,
    /// From accounts of this kind.
    pub debit: Kind,
    /// To accounts of this kind.
    pub credit: Kind,
    /// Who may post it.
    pub by: Role,
}

const fn flow(cause: Cause, debit: Kind, credit: Kind, by: Role) -> Flow {
    Flow {
        cause,
        debit,
        credit,
        by,
    }
}

/// Every way that money may go; there is no other.
pub const FLOWS: &[Flow] = {
    use Cause as C;
    use Kind as K;
    use Role as R;
    &[
        flow(C::Deposit, K::External, K::Customer, R::Rails),
        flow(C::Recovered, K::Customer, K::Receivable, R::Rails),
        flow(C::Recovered, K::Customer, K::Receivable, R::Metering),
        flow(C::Recovered, K::Customer, K::Receivable, R::Settlement),
        flow(C::Recovered, K::Customer, K::Receivable, R::Person),
        flow(C::Chargeback, K::Customer, K::External, R::Rails),
        flow(C::Chargeback, K::Receivable, K::External, R::Rails),
        flow(C::WrittenOff, K::BadDebt, K::Receivable, R::Person),
        flow(C::Funded, K::External, K::Subsidy, R::Rails),
        flow(C::Funded, K::External, K::Reserve, R::Rails),
        flow(C::Funded, K::External, K::Bond, R::Rails),
        flow(C::HoldTaken, K::Customer, K::Hold, R::Metering),
        flow(C::HoldReleased, K::Hold, K::Customer, R::Metering),
        flow(C::HoldExpired, K::Hold, K::Customer, R::Metering),
        flow(C::Usage, K::Hold, K::ChargesPending, R::Metering),
        flow(C::Usage, K::Customer, K::ChargesPending, R::Metering),
        flow(C::Usage, K::Receivable, K::ChargesPending, R::Metering),
        flow(
            C::UsageReversed,
            K::ChargesPending,
            K::Customer,
            R::Metering,
        ),
        flow(C::Closed, K::ChargesPending, K::Pool, R::Settlement),
        flow(C::ValidatorsPart, K::Pool, K::Validation, R::Settlement),
        flow(C::PlatformPart, K::Pool, K::Platform, R::Settlement),
        flow(C::NodeCredit, K::Pool, K::Customer, R::Settlement),
        flow(C::HubCredit, K::Platform, K::Customer, R::Settlement),
        flow(C::HubCredit, K::Reserve, K::Customer, R::Settlement),
        flow(C::Paid, K::Pool, K::Payout, R::Settlement),
        flow(C::Paid, K::Validation, K::Payout, R::Settlement),
        flow(C::Standby, K::Subsidy, K::Payout, R::Settlement),
        flow(C::Withheld, K::Payout, K::Bond, R::Settlement),
        flow(C::TakenBack, K::Payout, K::Customer, R::Settlement),
        flow(C::TakenBack, K::Bond, K::Customer, R::Settlement),
        flow(C::TakenBack, K::Validation, K::Customer, R::Settlement),
        flow(C::TakenBack, K::Platform, K::Customer, R::Settlement),
        flow(C::TakenBack, K::Reserve, K::Customer, R::Settlement),
        flow(C::TakenBack, K::Payout, K::Customer, R::Person),
        flow(C::TakenBack, K::Bond, K::Customer, R::Person),
        flow(C::TakenBack, K::Validation, K::Customer, R::Person),
        flow(C::TakenBack, K::Platform, K::Customer, R::Person),
        flow(C::TakenBack, K::Reserve, K::Customer, R::Person),
        flow(C::Dust, K::Pool, K::Rounding, R::Settlement),
        flow(C::DisputeOpened, K::Payout, K::Hold, R::Person),
        flow(C::DisputeUpheld, K::Hold, K::Customer, R::Person),
        flow(C::DisputeRejected, K::Hold, K::Payout, R::Person),
        flow(
            C::WithdrawalRequested,
            K::Payout,
            K::WithdrawalPending,
            R::Person,
        ),
        flow(
            C::WithdrawalRequested,
            K::Customer,
            K::WithdrawalPending,
            R::Person,
        ),
        flow(
            C::WithdrawalRequested,
            K::Platform,
            K::WithdrawalPending,
            R::Person,
        ),
        flow(
            C::WithdrawalSent,
            K::WithdrawalPending,
            K::External,
            R::Rails,
        ),
        flow(
            C::WithdrawalFailed,
            K::WithdrawalPending,
            K::Payout,
            R::Rails,
        ),
        flow(
            C::WithdrawalFailed,
            K::WithdrawalPending,
            K::Customer,
            R::Rails,
        ),
        flow(
            C::WithdrawalFailed,
            K::WithdrawalPending,
            K::Platform,
            R::Rails,
        ),
        flow(C::Donated, K::Payout, K::Reserve, R::Person),
        flow(C::BondFreed, K::Bond, K::Payout, R::Person),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_word_and_every_cause_but_notes_its_flows() {
        for cause in Cause::ALL {
            assert_eq!(Cause::of_word(cause.word()), Some(cause));
            let moves = FLOWS.iter().any(|flow| flow.cause == cause);
            assert_eq!(moves, cause != Cause::Noted, "{cause:?}");
        }
    }

    #[test]
    fn every_kind_of_account_is_both_debited_and_credited_but_for_where_money_ends() {
        for kind in Kind::ALL {
            let debited = FLOWS.iter().any(|flow| flow.debit == kind);
            let credited = FLOWS.iter().any(|flow| flow.credit == kind);
            let expected = match kind {
                Kind::Rounding => (false, true),
                Kind::BadDebt => (true, false),
                _ => (true, true),
            };
            assert_eq!((debited, credited), expected, "{kind:?}");
        }
    }
}
