//! The command line of the local cluster.

fn main() {}
