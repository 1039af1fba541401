//! Many random histories on the ledger's core, compared with the naive model:
//!
//! `cargo run --release -p creo-ledger --example histories -- COUNT SEED [STEPS]`
//!
//! The history of number N follows from SEED + N, so that any of them runs again
//! alone with a COUNT of 1.

use std::{path::Path, process::ExitCode};

use creo_ledger::simulation::{Model, Report, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<u64>());
    let mut next = |default| arguments.next().unwrap_or(Ok(default));
    let (Ok(count), Ok(seed), Ok(steps)) = (next(1_000), next(1), next(60)) else {
        eprintln!("histories: COUNT SEED [STEPS], all whole numbers");
        return ExitCode::from(2);
    };
    match many(count, seed, steps) {
        Ok(report) => {
            println!("{count} histories, {} operations refused", report.refused);
            for (cause, times) in &report.causes {
                println!("{times:>12} {cause}");
            }
            ExitCode::SUCCESS
        }
        Err(what) => {
            eprintln!("histories: {what}");
            ExitCode::FAILURE
        }
    }
}

fn many(count: u64, seed: u64, steps: u64) -> Result<Report, String> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model.py");
    let mut model = Model::start(&program)?;
    let mut report = Report::default();
    for number in 0..count {
        let seed = seed.wrapping_add(number);
        let one = run(seed, steps, |text, transcript| {
            model.compare(text, transcript)
        });
        report.add(&one.map_err(|violation| violation.to_string())?);
    }
    Ok(report)
}
