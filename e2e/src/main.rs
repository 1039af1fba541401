//! The command line of the local cluster.

use std::process::ExitCode;

use clap::Parser;

mod cli;

fn main() -> ExitCode {
    match cli::run(cli::Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("creo-e2e: {error}");
            ExitCode::FAILURE
        }
    }
}
