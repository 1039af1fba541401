//! The first process of a cluster's, and of each node's, namespaces.
//!
//! It starts and ends the components by name as it is told over a unix socket,
//! reaps every process of its namespace, and ends the namespace with itself:
//! where its standard input is the keeper's pipe, the end of the keeper is its
//! end as well, however the keeper died.

mod client;
mod protocol;
mod reaper;
mod server;

pub use client::Control;
pub use protocol::{Finished, ProcessState, StartRequest};
pub use server::{Arguments, run};
