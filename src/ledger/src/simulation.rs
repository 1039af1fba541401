//! Histories as text, and long random ones of them.
//!
//! A history is what the examples of `docs/money.md` are written in, so that
//! the same text runs here and in a model in another language. The page states
//! the grammar.

mod check;
mod model;
mod random;
mod script;

pub use check::check;
pub use model::Model;
pub use random::{Report, history, run, secret};
pub use script::{Script, ScriptError, Transcript};
