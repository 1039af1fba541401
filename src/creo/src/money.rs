//! The commands about money: accounts, quotes, epochs, disputes, the ledger.
//!
//! Each opens the ledger, does one thing, and says what it did: as a table or, with
//! `-o json`, as one JSON value. Files are read up to a bound.

mod account;
mod dispute;
mod epoch;
mod ledger;
mod quote;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use creo_ledger::{
    Operation,
    store::{PostError, Posted, Store, StoreError, StoreOptions},
};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// The most of a file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// Where the ledger is, and how to answer.
#[derive(Debug, Args)]
pub(crate) struct MoneyArgs {
    /// The file of the ledger.
    #[arg(
        long,
        env = "CREO_DATABASE",
        value_name = "FILE",
        global = true,
        default_value = "creo-ledger.db"
    )]
    database: PathBuf,
    /// How to answer.
    #[arg(short, long, env = "CREO_OUTPUT", global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A table for people.
    Table,
    /// One JSON value for programs.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum MoneyCommand {
    /// Open accounts, book deposits and withdrawals, show statements.
    Account {
        #[command(subcommand)]
        command: account::AccountCommand,
        #[command(flatten)]
        money: MoneyArgs,
    },
    /// What terms cost for an hour, a day, and at most: never exceeded.
    Quote {
        #[command(flatten)]
        quote: quote::QuoteArgs,
        #[command(flatten)]
        money: MoneyArgs,
    },
    /// Verify the ledger, and compare it with the rails' statements.
    Ledger {
        #[command(subcommand)]
        command: ledger::LedgerCommand,
        #[command(flatten)]
        money: MoneyArgs,
    },
    /// Open, settle, export and verify epochs.
    Epoch {
        #[command(subcommand)]
        command: epoch::EpochCommand,
        #[command(flatten)]
        money: MoneyArgs,
    },
    /// Open and decide disputes.
    Dispute {
        #[command(subcommand)]
        command: dispute::DisputeCommand,
        #[command(flatten)]
        money: MoneyArgs,
    },
}

/// Why a command did not do what it was asked.
#[derive(Debug, Error)]
pub(crate) enum MoneyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Post(#[from] PostError),
    #[error("{path}: {what}")]
    File { path: String, what: String },
    #[error("{0}")]
    Usage(String),
    #[error("{} of what was checked is not as it must be:\n{}", .0.len(), .0.join("\n"))]
    Findings(Vec<String>),
    #[error("the answer cannot be written: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the process cannot be set up: {0}")]
    Runtime(std::io::Error),
}

impl MoneyError {
    /// 2: what was given is wrong; 3: a rule refused; 4: a check found something;
    /// 1: anything else.
    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::File { .. } | Self::Usage(_) | Self::Store(StoreError::Invalid(_)) => {
                ExitCode::from(2)
            }
            Self::Post(PostError::Refused(_)) => ExitCode::from(3),
            Self::Findings(_) => ExitCode::from(4),
            _ => ExitCode::FAILURE,
        }
    }
}

/// An answer: a value for programs, rows for people.
struct Answer {
    value: serde_json::Value,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Answer {
    fn new<T: Serialize>(
        value: &T,
        head: &[&'static str],
        rows: Vec<Vec<String>>,
    ) -> Result<Self, MoneyError> {
        Ok(Self {
            value: serde_json::to_value(value)?,
            head: head.to_vec(),
            rows,
        })
    }

    /// What became of operations.
    fn posted(posted: &[(String, Posted)]) -> Result<Self, MoneyError> {
        let rows = posted
            .iter()
            .map(|(key, posted)| {
                let word = if posted.repeated { "as before" } else { "done" };
                let entry = posted.first_sequence.to_string();
                vec![
                    key.clone(),
                    word.to_owned(),
                    entry,
                    posted.entries.to_string(),
                ]
            })
            .collect();
        let values: Vec<_> = posted
            .iter()
            .map(|(key, posted)| {
                serde_json::json!({"key": key, "repeated": posted.repeated, "firstSequence": posted.first_sequence, "entries": posted.entries})
            })
            .collect();
        Self::new(
            &values,
            &["operation", "outcome", "first entry", "entries"],
            rows,
        )
    }

    fn print(&self, output: Output) -> Result<(), MoneyError> {
        match output {
            Output::Json => println!("{}", serde_json::to_string_pretty(&self.value)?),
            Output::Table => {
                let mut table = Table::new();
                table.load_style(presets::NOTHING).set_header(&self.head);
                table.add_rows(&self.rows);
                println!("{table}");
            }
        }
        Ok(())
    }
}

/// Runs a command.
pub(crate) fn run(command: MoneyCommand) -> Result<(), MoneyError> {
    let runtime = tokio::runtime::Runtime::new().map_err(MoneyError::Runtime)?;
    let (answer, output) = runtime.block_on(async {
        let (answer, money) = match command {
            MoneyCommand::Account { command, money } => {
                (account::run(&money, command).await?, money)
            }
            MoneyCommand::Quote { quote, money } => (quote::run(&quote)?, money),
            MoneyCommand::Ledger { command, money } => (ledger::run(&money, command).await?, money),
            MoneyCommand::Epoch { command, money } => (epoch::run(&money, command).await?, money),
            MoneyCommand::Dispute { command, money } => {
                (dispute::run(&money, command).await?, money)
            }
        };
        Ok::<_, MoneyError>((answer, money.output))
    })?;
    answer.print(output)
}

impl MoneyArgs {
    async fn open(&self) -> Result<Store, MoneyError> {
        Ok(Store::open(StoreOptions::file(&self.database)).await?)
    }

    /// Posts one operation now, and says what became of it.
    async fn post(&self, operation: Operation) -> Result<Answer, MoneyError> {
        let store = self.open().await?;
        let posted = post(&store, operation).await?;
        Answer::posted(&[posted])
    }
}

async fn post(store: &Store, operation: Operation) -> Result<(String, Posted), MoneyError> {
    let key = operation.key();
    let fence = store.join_role(operation.role()).await?;
    Ok((key, store.post(fence, now_ms(), operation).await?))
}

/// Milliseconds since 1970; 0 where the clock is before that.
fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// Reads a file of JSON.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T, MoneyError> {
    let wrong = |what: String| MoneyError::File {
        path: path.display().to_string(),
        what,
    };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mut text = String::new();
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| wrong(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong(format!("must be at most {FILE_BYTES_MAX} bytes")));
    }
    serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))
}
