//! Random histories: what must hold whatever happens.

#![cfg(test)]

use std::path::Path;

use creo_ledger::simulation::{Model, Report, history, run};

fn model() -> Model {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/model.py");
    Model::start(&program).expect("python3 is there")
}

#[test]
fn the_naive_model_agrees_with_every_worked_example() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = std::process::Command::new("python3")
        .arg("-B")
        .arg(folder.join("tests/model.py"))
        .arg("--document")
        .arg(folder.join("../../docs/money.md"))
        .output()
        .expect("python3 is there");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let count: u32 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(count >= 40, "{told}");
}

#[test]
fn no_random_history_breaks_a_rule_and_the_naive_model_comes_to_the_same() {
    let mut report = Report::default();
    let mut model = model();
    for seed in 0..200 {
        let one = run(seed, 60, |text, transcript| model.compare(text, transcript))
            .unwrap_or_else(|violation| panic!("{violation}"));
        report.add(&one);
    }
    // Histories in which money never moved for some cause have tested nothing of it.
    assert_eq!(report.never(), Vec::<&str>::new(), "{report:?}");
    assert!(report.refused > 1_000, "{report:?}");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(history(7, 40), history(7, 40));
    assert_ne!(history(7, 40), history(8, 40));
}
