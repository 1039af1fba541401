use clap::{ArgGroup, Args, Subcommand};
use creo_ledger::store::StoreOptions;
use creo_ledger::{Account, Operation, Source, store::Store};

use super::{Answer, MoneyArgs, MoneyError, post};

#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Make a customer known; makes the ledger too, if there is none.
    Open {
        /// Its name.
        customer: String,
    },
    /// Book money that came in.
    Deposit {
        /// Whose it is.
        customer: String,
        /// The rail that it came by.
        #[arg(long)]
        rail: String,
        /// The rail's own name for the payment.
        #[arg(long)]
        reference: String,
        /// How much, in micro-credits.
        #[arg(long)]
        amount_micro: i64,
    },
    /// Ask for money to be sent out.
    Withdraw(WithdrawArgs),
    /// Tell what became of a withdrawal.
    Withdrawn {
        /// The withdrawal's name.
        id: String,
        /// It could not be sent; without this, it was.
        #[arg(long)]
        failed: bool,
    },
    /// The entries of an account, newest first, with the balance after each.
    Statement {
        /// The account, such as customer:acme or platform.
        account: String,
        /// Only entries before this one.
        #[arg(long)]
        before: Option<i64>,
        /// At most so many; 1,000 at most.
        #[arg(long, default_value_t = 50)]
        lines: u32,
    },
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("from").required(true)))]
pub(crate) struct WithdrawArgs {
    /// A name for the withdrawal.
    #[arg(long)]
    id: String,
    /// Out of this owner's or validator's free payouts.
    #[arg(long, group = "from")]
    owner: Option<String>,
    /// Out of what this customer has not spent.
    #[arg(long, group = "from")]
    customer: Option<String>,
    /// Out of what the platform has earned.
    #[arg(long, group = "from")]
    platform: bool,
    /// The rail that it goes by.
    #[arg(long)]
    rail: String,
    /// How much, in micro-credits.
    #[arg(long)]
    amount_micro: i64,
}

pub(super) async fn run(args: &MoneyArgs, command: AccountCommand) -> Result<Answer, MoneyError> {
    match command {
        AccountCommand::Open { customer } => {
            let store = Store::open(StoreOptions::file(&args.database).create()).await?;
            let posted = post(&store, Operation::Open { customer }).await?;
            Answer::posted(&[posted])
        }
        AccountCommand::Deposit {
            customer,
            rail,
            reference,
            amount_micro,
        } => {
            args.post(Operation::Deposit {
                rail,
                reference,
                customer,
                amount_micro,
            })
            .await
        }
        AccountCommand::Withdraw(withdraw) => {
            let from = match (withdraw.owner, withdraw.customer) {
                (Some(owner), _) => Source::Owner(owner),
                (_, Some(customer)) => Source::Customer(customer),
                _ => Source::Platform,
            };
            args.post(Operation::Withdraw {
                id: withdraw.id,
                from,
                rail: withdraw.rail,
                amount_micro: withdraw.amount_micro,
            })
            .await
        }
        AccountCommand::Withdrawn { id, failed } => {
            args.post(if failed {
                Operation::Failed { id }
            } else {
                Operation::Sent { id }
            })
            .await
        }
        AccountCommand::Statement {
            account,
            before,
            lines,
        } => statement(args, &account, before, lines).await,
    }
}

async fn statement(
    args: &MoneyArgs,
    account: &str,
    before: Option<i64>,
    lines: u32,
) -> Result<Answer, MoneyError> {
    let account: Account = account
        .parse()
        .map_err(|error| MoneyError::Usage(format!("{error}")))?;
    let store = args.open().await?;
    let statement = store.statement(&account, before, lines).await?;
    let rows = statement
        .iter()
        .map(|line| {
            let other = if line.entry.debit.as_ref() == Some(&account) {
                &line.entry.credit
            } else {
                &line.entry.debit
            };
            vec![
                line.entry.sequence.to_string(),
                line.entry.at_ms.to_string(),
                line.entry.cause.clone(),
                other.as_ref().map(ToString::to_string).unwrap_or_default(),
                line.change_micro.to_string(),
                line.balance_micro.to_string(),
            ]
        })
        .collect();
    let head = ["entry", "time (ms)", "cause", "with", "change", "balance"];
    Answer::new(&statement, &head, rows)
}
