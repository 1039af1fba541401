//! The creo binary: parse, telemetry, one match over the subcommand.

mod crds;
mod money;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use creo_operator::{OperatorArgs, OperatorError};
use creo_process::telemetry::{LogArgs, TelemetryError};
use creo_process::{shutdown, telemetry};
use thiserror::Error;

/// Creo: a marketplace of idle GPUs on Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "creo", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn the cluster's GPU nodes into offers, place deployments on them and keep their pods.
    ///
    /// Talks to the cluster of KUBECONFIG or, in a pod, to its own. Several may run: one leads,
    /// the others wait with warm caches.
    Operator {
        // On the heap, as it is many times the size of the other.
        #[command(flatten)]
        operator: Box<OperatorArgs>,
        #[command(flatten)]
        log: LogArgs,
    },
    /// Print the definitions of the kinds (CRDs), ready for `kubectl apply --server-side -f -`.
    Crds(crds::CrdsArgs),
    #[command(flatten)]
    Money(money::MoneyCommand),
}

#[derive(Debug, Error)]
enum Failure {
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Operator(#[from] OperatorError),
    #[error(transparent)]
    Crds(#[from] crds::CrdsError),
    #[error(transparent)]
    Money(#[from] money::MoneyError),
    #[error("the process cannot be set up: {0}")]
    Runtime(std::io::Error),
}

impl Failure {
    /// 2 where starting again changes nothing, as clap does for arguments that it refuses.
    fn code(&self) -> ExitCode {
        match self {
            Self::Telemetry(_) => ExitCode::from(2),
            Self::Operator(error) if error.is_usage() => ExitCode::from(2),
            Self::Money(error) => error.code(),
            Self::Operator(_) | Self::Crds(_) | Self::Runtime(_) => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("creo: {failure}");
            failure.code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Operator { operator, log } => {
            telemetry::init(&log)?;
            let runtime = tokio::runtime::Runtime::new().map_err(Failure::Runtime)?;
            let ended = runtime.block_on(async {
                let stop = shutdown::on_signal().map_err(Failure::Runtime)?;
                Ok(creo_operator::run(*operator, stop).await?)
            });
            // What is left behind must not hold the end up: its time to drain is over.
            runtime.shutdown_background();
            ended
        }
        Command::Crds(args) => Ok(crds::run(&args)?),
        Command::Money(command) => Ok(money::run(command)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_arguments_fit_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_flag_can_be_set_by_an_environment_variable_of_its_name() {
        let command = Arguments::command();
        let operator = command.find_subcommand("operator").unwrap();
        for argument in operator.get_arguments() {
            let Some(long) = argument
                .get_long()
                .filter(|long| !matches!(*long, "help" | "version"))
            else {
                continue;
            };
            let expected = format!("CREO_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(
                argument.get_env().and_then(|env| env.to_str()),
                Some(expected.as_str()),
                "--{long}"
            );
            assert!(argument.get_help().is_some(), "--{long} has no help");
        }
    }

    #[test]
    fn an_operator_without_a_registry_is_told_which_flag_is_missing() {
        let error =
            Arguments::try_parse_from(["creo", "operator", "--engines-dir=x", "--image-tag=1"])
                .unwrap_err();
        assert!(error.to_string().contains("--image-registry"), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
