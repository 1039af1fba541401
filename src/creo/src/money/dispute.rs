use clap::Subcommand;
use creo_ledger::Operation;

use super::{Answer, MoneyArgs, MoneyError};

#[derive(Debug, Subcommand)]
pub(crate) enum DisputeCommand {
    /// Dispute a charge of a settled epoch.
    Open {
        /// A name for the dispute.
        id: String,
        /// The epoch.
        #[arg(long)]
        epoch: i64,
        /// The Placement that was charged for.
        #[arg(long)]
        placement: String,
        /// How much of the charge should go back, in micro-credits.
        #[arg(long)]
        amount_micro: i64,
    },
    /// Decide a dispute.
    Resolve {
        /// The dispute's name.
        id: String,
        /// How much of the charge goes back, in micro-credits; 0 rejects it.
        #[arg(long)]
        upheld_micro: i64,
    },
}

pub(super) async fn run(args: &MoneyArgs, command: DisputeCommand) -> Result<Answer, MoneyError> {
    args.post(match command {
        DisputeCommand::Open {
            id,
            epoch,
            placement,
            amount_micro,
        } => Operation::Dispute {
            id,
            epoch,
            placement,
            amount_micro,
        },
        DisputeCommand::Resolve { id, upheld_micro } => Operation::Resolve { id, upheld_micro },
    })
    .await
}
