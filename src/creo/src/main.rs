//! The creo binary: parse, telemetry, one match over the subcommand.

fn main() {}
