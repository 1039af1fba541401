//! Logs: one line or one JSON object an event, on standard error.

use clap::{Args, ValueEnum};
use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged when nobody says otherwise. The HTTP client's own lines are off because every
/// failed call is logged once, by the caller, with what it was for.
const DEFAULT_FILTER: &str = "info,kube_client=off,hyper_util=warn";

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// One readable line an event.
    #[default]
    Text,
    /// One JSON object an event, for log collectors.
    Json,
}

/// The flags of logging, the same for every process.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// How log lines are written.
    #[arg(long, env = "CREO_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// What is logged: a level (error, warn, info, debug, trace), or rules such as
    /// `info,creo_operator=debug`.
    #[arg(long, env = "CREO_LOG", default_value = DEFAULT_FILTER)]
    pub log: String,
}

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// The filter of `--log` cannot be parsed.
    #[error(
        "--log {filter:?} is not a log filter: {reason}; use a level such as `info`, or rules such as `info,creo_operator=debug`"
    )]
    Filter {
        /// The filter as it was given.
        filter: String,
        /// What the parser says.
        reason: String,
    },
    /// A subscriber was set before.
    #[error("logging was set up twice: {0}")]
    AlreadySet(String),
}

/// Starts logging for the whole process; call it once, before anything else.
pub fn init(args: &LogArgs) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&args.log).map_err(|error| TelemetryError::Filter {
        filter: args.log.clone(),
        reason: error.to_string(),
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(false).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .map_err(|error| TelemetryError::AlreadySet(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_named_with_what_to_write_instead() {
        let args = LogArgs {
            log_format: LogFormat::Text,
            log: "creo=loud".to_owned(),
        };
        let message = init(&args).unwrap_err().to_string();
        assert!(message.contains("creo=loud"), "{message}");
        assert!(message.contains("info"), "{message}");
    }

    #[test]
    fn the_default_filter_can_be_parsed() {
        EnvFilter::try_new(DEFAULT_FILTER).unwrap();
    }
}
