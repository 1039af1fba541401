use std::path::PathBuf;

use clap::Args;
use creo_market::money::{
    price::{Charge, Usage, quotes},
    terms::Terms,
};
use serde::Deserialize;

use super::{Answer, MoneyError, read};

#[derive(Debug, Args)]
pub(crate) struct QuoteArgs {
    /// A file of JSON: `terms`, and as `at_most` the usage that is asked for.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    terms: Terms,
    #[serde(default)]
    at_most: Usage,
}

pub(super) fn run(args: &QuoteArgs) -> Result<Answer, MoneyError> {
    let asked: Asked = read(&args.file)?;
    let quotes = quotes(&asked.terms, &asked.at_most)
        .map_err(|error| MoneyError::Usage(error.to_string()))?;
    let row = |what: &str, charge: &Charge| {
        let amounts = [charge.charge_micro, charge.fee_micro, charge.debit_micro()];
        let mut row = vec![what.to_owned()];
        row.extend(amounts.map(|micro| micro.to_string()));
        row
    };
    let rows = vec![
        row("an hour", &quotes.hour),
        row("a day", &quotes.day),
        row("at most", &quotes.at_most),
    ];
    let head = ["for", "charge", "fee", "together (micro-credits)"];
    Answer::new(&quotes, &head, rows)
}
