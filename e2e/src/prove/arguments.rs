//! What `creo-e2e prove` can be told.

use std::path::PathBuf;

use super::selection::{Sample, Wanted};
use crate::error::{Error, Result};

/// Run the long plans: random runs, crashes after every write, soaks.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Arguments {
    /// This plan alone; may be given several times. All plans otherwise.
    #[arg(long = "plan", value_name = "NAME")]
    pub plans: Vec<String>,
    /// What all random choices follow from; by default it follows from the commit.
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
    /// Leave out the cases that a run of the same sources and seed has finished.
    #[arg(long)]
    pub resume: bool,
    /// Run this case of the one plan alone; may be given several times.
    #[arg(long, value_name = "CASE", conflicts_with_all = ["sample", "resume"])]
    pub only: Vec<String>,
    /// Run a part of each plan, drawn by the seed: a number of cases or a share such as 2.5%.
    #[arg(long, value_name = "NUMBER|SHARE")]
    pub sample: Option<Sample>,
    /// Print the names of the cases and run none.
    #[arg(long, conflicts_with_all = ["sample", "only", "resume"])]
    pub list: bool,
    /// Where the report goes; target/prove/report.json by default.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

impl Arguments {
    /// What of each plan is to be run.
    pub(super) fn wanted(&self) -> Result<Wanted> {
        match (self.only.as_slice(), self.sample) {
            ([], None) => Ok(Wanted::All),
            ([], Some(sample)) => Ok(Wanted::Sample(sample)),
            (_, _) if self.plans.len() != 1 => Err(Error::Usage(
                "--only names a case of one plan: give that plan by --plan".to_owned(),
            )),
            (only, _) => Ok(Wanted::Only(only.to_vec())),
        }
    }

    /// The word for that in the report.
    pub(super) fn mode(&self) -> &'static str {
        match (self.only.is_empty(), self.sample) {
            (false, _) => "only",
            (true, Some(_)) => "sample",
            (true, None) => "full",
        }
    }
}
