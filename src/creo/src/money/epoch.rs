use std::path::{Path, PathBuf};

use clap::Subcommand;
use creo_ledger::{Operation, SettlementInputs};
use creo_market::money::{
    epoch::Window,
    export::{ChargeProof, PublicExport},
};

use super::{Answer, MoneyArgs, MoneyError, post, read};

#[derive(Debug, Subcommand)]
pub(crate) enum EpochCommand {
    /// Open the next epoch.
    Open {
        /// Its number; one more than the last.
        epoch: i64,
        /// Its first millisecond since 1970; where the last one ended.
        #[arg(long)]
        start_ms: i64,
        /// The millisecond after its last.
        #[arg(long)]
        end_ms: i64,
        /// How long after its end observations still count for it.
        #[arg(long, default_value_t = 900_000)]
        grace_ms: i64,
    },
    /// Close an epoch after its cut-off and give what it has to give. Where that
    /// was begun before, it goes on.
    Settle {
        /// The epoch.
        epoch: i64,
        /// A file of JSON with what it depends on beside the charges: `faults`,
        /// `validators`, `standby`.
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// What everyone may see of an epoch, as JSON: all charges and payouts under
    /// pseudonyms, and their roots.
    Export {
        /// The epoch.
        epoch: i64,
    },
    /// What proves to anyone that a charge is in an epoch, as JSON.
    Proof {
        /// The epoch.
        epoch: i64,
        /// The Placement that was charged for.
        #[arg(long)]
        placement: String,
    },
    /// Add an export up again, or follow a proof to its root; needs no ledger.
    Verify {
        /// The file of the export, or of the proof.
        file: PathBuf,
        /// The file is a proof.
        #[arg(long)]
        proof: bool,
    },
}

pub(super) async fn run(args: &MoneyArgs, command: EpochCommand) -> Result<Answer, MoneyError> {
    match command {
        EpochCommand::Open {
            epoch,
            start_ms,
            end_ms,
            grace_ms,
        } => {
            let window = Window {
                epoch,
                start_ms,
                end_ms,
                grace_ms,
            };
            args.post(Operation::OpenEpoch { window }).await
        }
        EpochCommand::Settle { epoch, file } => {
            let inputs: SettlementInputs = match file {
                Some(file) => read(&file)?,
                None => SettlementInputs::default(),
            };
            settle(args, epoch, inputs).await
        }
        EpochCommand::Export { epoch } => {
            let plan = args.open().await?.settlement(epoch).await?;
            let plan = plan.ok_or_else(|| not_closed(epoch))?;
            let row = vec![
                plan.export.charges.len().to_string(),
                plan.export.payouts.len().to_string(),
                plan.export.charges_root.clone(),
                plan.export.payouts_root.clone(),
            ];
            let head = ["charges", "payouts", "root of charges", "root of payouts"];
            Answer::new(&plan.export, &head, vec![row])
        }
        EpochCommand::Proof { epoch, placement } => proof(args, epoch, &placement).await,
        EpochCommand::Verify { file, proof: true } => follow(&file),
        EpochCommand::Verify { file, proof: false } => {
            let export: PublicExport = read(&file)?;
            export
                .verify()
                .map_err(|error| MoneyError::Findings(vec![error.to_string()]))?;
            let row = vec![export.epoch.to_string(), export.charges.len().to_string()];
            let value = serde_json::json!({"epoch": export.epoch, "chargesRoot": export.charges_root, "payoutsRoot": export.payouts_root});
            Answer::new(&value, &["epoch", "charges, all well"], vec![row])
        }
    }
}

async fn proof(args: &MoneyArgs, epoch: i64, placement: &str) -> Result<Answer, MoneyError> {
    let store = args.open().await?;
    let plan = store.settlement(epoch).await?;
    let export = plan.ok_or_else(|| not_closed(epoch))?.export;
    let pseudonym = store
        .secret()
        .await?
        .pseudonym("placement", placement, epoch);
    let proof = export.prove(&pseudonym).ok_or_else(|| {
        MoneyError::Usage(format!(
            "nothing was charged for {placement} in epoch {epoch}"
        ))
    })?;
    let row = vec![pseudonym, proof.charges_root.clone()];
    Answer::new(
        &proof,
        &["the charge's pseudonym", "root of charges"],
        vec![row],
    )
}

fn follow(file: &Path) -> Result<Answer, MoneyError> {
    let proof: ChargeProof = read(file)?;
    proof
        .verify()
        .map_err(|error| MoneyError::Findings(vec![error.to_string()]))?;
    let amount = proof.leaf.charge_micro.to_string();
    let row = vec![amount, proof.charges_root.clone()];
    Answer::new(
        &proof,
        &["charge proved", "compare with the published root"],
        vec![row],
    )
}

fn not_closed(epoch: i64) -> MoneyError {
    MoneyError::Usage(format!("epoch {epoch} is not closed; settle it first"))
}

async fn settle(
    args: &MoneyArgs,
    epoch: i64,
    inputs: SettlementInputs,
) -> Result<Answer, MoneyError> {
    let store = args.open().await?;
    let mut posted = vec![post(&store, Operation::Seal { epoch, inputs }).await?];
    let plan = store.settlement(epoch).await?;
    for operation in plan.ok_or_else(|| not_closed(epoch))?.operations {
        posted.push(post(&store, operation).await?);
    }
    Answer::posted(&posted)
}
