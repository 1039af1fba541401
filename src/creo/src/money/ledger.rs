use std::path::PathBuf;

use clap::Subcommand;
use creo_ledger::{Head, Operation};
use serde::Deserialize;

use super::{Answer, MoneyArgs, MoneyError, post, read};

#[derive(Debug, Subcommand)]
pub(crate) enum LedgerCommand {
    /// Compute the ledger again from its operations and compare every row.
    Verify {
        /// A file with a head that was kept elsewhere: then an old copy, a tail
        /// that was cut and a chain computed anew show too.
        #[arg(long, value_name = "FILE")]
        head: Option<PathBuf>,
    },
    /// The last entry's number and hash, to be kept elsewhere.
    Head,
    /// Compare the ledger with a rail's statement, and say by how much they
    /// differ.
    Reconcile {
        /// A file of JSON: `rail`, `reference` (the statement's name), and
        /// `balance_micro` (what the rail holds, as a string).
        #[arg(long, value_name = "FILE")]
        statement: PathBuf,
    },
}

/// A rail's statement.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    rail: String,
    reference: String,
    balance_micro: String,
}

pub(super) async fn run(args: &MoneyArgs, command: LedgerCommand) -> Result<Answer, MoneyError> {
    match command {
        LedgerCommand::Verify { head } => {
            let head: Option<Head> = head.as_deref().map(read).transpose()?;
            let verified = args.open().await?.verify(head.as_ref()).await?;
            if !verified.findings.is_empty() {
                return Err(MoneyError::Findings(verified.findings));
            }
            let value = serde_json::json!({"entries": verified.entries, "head": verified.head});
            let row = vec![verified.entries.to_string(), verified.head.hash];
            Answer::new(
                &value,
                &["entries, all well", "hash of the last"],
                vec![row],
            )
        }
        LedgerCommand::Head => {
            let head = args.open().await?.ledger().await?.head;
            let row = vec![head.sequence.to_string(), head.hash.clone()];
            Answer::new(&head, &["entry", "hash"], vec![row])
        }
        LedgerCommand::Reconcile { statement } => {
            let path = statement.display().to_string();
            let statement: Statement = read(&statement)?;
            let balance_micro = statement.balance_micro.parse().map_err(|error| {
                let what = format!("balance_micro: {error}");
                MoneyError::File { path, what }
            })?;
            reconcile(args, statement, balance_micro).await
        }
    }
}

async fn reconcile(
    args: &MoneyArgs,
    statement: Statement,
    balance_micro: i64,
) -> Result<Answer, MoneyError> {
    let store = args.open().await?;
    let rail = statement.rail.clone();
    post(
        &store,
        Operation::Attest {
            rail: statement.rail,
            reference: statement.reference,
            balance_micro,
        },
    )
    .await?;
    let ledger = store.ledger().await?;
    let known = ledger.rails.get(&rail).copied().unwrap_or_default();
    let difference = known.difference_micro.unwrap_or_default();
    let shortfall = ledger.shortfall_micro();
    let value = serde_json::json!({
        "rail": rail,
        "booksMicro": known.held_micro.to_string(),
        "differenceMicro": difference.to_string(),
        "shortfallMicro": shortfall.to_string(),
    });
    let numbers = [
        i128::from(known.held_micro),
        i128::from(difference),
        shortfall,
    ];
    let mut row = vec![rail];
    row.extend(numbers.map(|number| number.to_string()));
    let head = [
        "rail",
        "by our books",
        "the statement has more",
        "owed beyond all rails (below 0: solvent)",
    ];
    Answer::new(&value, &head, vec![row])
}
