//! Creo's ledger: who has what, and why.
//!
//! The core is a pure state machine. [`State::apply`] takes what happened as an
//! [`Operation`] and gives either the [`Entry`]s that follow from it or a
//! [`Refusal`], and a refused operation changes nothing. What each operation
//! does is drawn in `docs/money.md`, whose table of flows and examples are read
//! by the tests.
//!
//! Amounts are micro-credits in `i64`; sums are formed in `i128`. A balance is
//! credits less debits, so what is owed to someone is above 0 and what the rails
//! hold is below 0, and the sum over all accounts is always 0.

mod account;
mod draft;
mod entry;
mod flow;
mod operation;
mod parameters;
mod plan;
mod refusal;
mod settlement;
pub mod simulation;
mod state;
pub mod store;

pub use account::{Account, Kind, Sign};
pub use draft::Change;
pub use entry::{Entry, Head};
pub use flow::{Cause, FLOWS, Flow};
pub use operation::{Funded, Operation, Role, Source};
pub use parameters::LedgerParameters;
pub use refusal::Refusal;
pub use settlement::{Plan, SettlementInputs, Settler};
pub use state::{
    AccountState, Applied, ChargeState, DisputeState, EpochState, LedgerState, Need, OwnerState,
    PlacementState, RailState, RequestState, State, Stop, WithdrawalState,
};
