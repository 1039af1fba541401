//! What is charged, credited and paid: prices, agreements, usage and epochs.
//!
//! Every rule is a function of values; `docs/money.md` states each of them with
//! worked examples, which the tests read from that page. Amounts are
//! micro-credits in `i64`, sums and products are formed in `i128`, and every
//! division says how it rounds.

pub mod amount;
pub mod bond;
pub mod epoch;
pub mod export;
mod invalid;
pub mod merkle;
pub mod objectives;
pub mod price;
pub mod pseudonym;
pub mod settlement;
pub mod split;
pub mod terms;
pub mod usage;

pub use invalid::Invalid;
