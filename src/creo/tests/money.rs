//! The commands about money, from outside as a person runs them.

#![cfg(test)]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

fn creo(folder: &Path, arguments: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_creo"))
        .current_dir(folder)
        .env_clear()
        .args(arguments.split_whitespace())
        .output()
        .expect("creo runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a command answers that must do what it is asked.
fn done(folder: &Path, arguments: &str) -> String {
    let output = creo(folder, arguments);
    assert!(
        output.status.success(),
        "{arguments}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

fn json(folder: &Path, arguments: &str) -> serde_json::Value {
    serde_json::from_str(&done(folder, &format!("{arguments} -o json"))).expect("JSON")
}

const TERMS: &str = r#"{"placement": "p-1", "customer": "acme", "node": "node-1", "owner": "olga", "gpu_model": "NVIDIA L4", "gpu_count": 2, "prices": {"price_micro_per_gpu_hour": 1200000}, "since_ms": 0}"#;

fn ledger() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), "account open acme");
    done(
        folder.path(),
        "account deposit acme --rail bank --reference d-1 --amount-micro 5000000",
    );
    folder
}

#[test]
fn a_deposit_a_statement_and_a_refund() {
    let folder = ledger();
    let folder = folder.path();
    let again = done(
        folder,
        "account deposit acme --rail bank --reference d-1 --amount-micro 5000000",
    );
    assert!(again.contains("as before"), "{again}");
    done(
        folder,
        "account withdraw --id r-1 --customer acme --rail bank --amount-micro 1000000",
    );
    done(folder, "account withdrawn r-1");
    let statement = json(folder, "account statement customer:acme");
    let lines: Vec<_> = statement
        .as_array()
        .unwrap()
        .iter()
        .map(|line| {
            (
                line["change_micro"].as_str().unwrap(),
                line["balance_micro"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(lines, [("-1000000", "4000000"), ("5000000", "5000000")]);
    assert!(done(folder, "account statement customer:acme").contains("withdrawal-requested"));
}

#[test]
fn a_quote_needs_no_ledger() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("terms.json"),
        format!(r#"{{"terms": {TERMS}, "at_most": {{"duration_ms": 1}}}}"#),
    )
    .unwrap();
    let quotes = json(folder.path(), "quote -f terms.json");
    assert_eq!(quotes["hour"]["charge_micro"], 2_400_000);
    assert_eq!(quotes["at_most"]["charge_micro"], 1);
    assert!(!folder.path().join("creo-ledger.db").exists());
}

#[test]
fn a_ledger_is_verified_reconciled_and_held_against_a_head_that_was_kept() {
    let folder = ledger();
    let folder = folder.path();
    fs::write(
        folder.join("head.json"),
        json(folder, "ledger head").to_string(),
    )
    .unwrap();
    done(folder, "ledger verify --head head.json");
    fs::write(
        folder.join("statement.json"),
        r#"{"rail": "bank", "reference": "s-1", "balance_micro": "4999999"}"#,
    )
    .unwrap();
    let reconciled = json(folder, "ledger reconcile --statement statement.json");
    assert_eq!(reconciled["differenceMicro"], "-1");
    assert_eq!(reconciled["shortfallMicro"], "1");
    fs::write(
        folder.join("head.json"),
        format!(r#"{{"sequence": 2, "hash": "{}"}}"#, "0".repeat(64)),
    )
    .unwrap();
    let output = creo(folder, "ledger verify --head head.json");
    assert_eq!(output.status.code(), Some(4));
    assert!(
        text(&output.stderr).contains("computed anew"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_epoch_is_opened_settled_exported_and_verified_without_the_ledger() {
    let folder = ledger();
    let folder = folder.path();
    fs::write(
        folder.join("statement.json"),
        r#"{"rail": "bank", "reference": "s-1", "balance_micro": "5000000"}"#,
    )
    .unwrap();
    done(folder, "ledger reconcile --statement statement.json");
    done(folder, "epoch open 0 --start-ms 0 --end-ms 3600000");
    done(folder, "epoch settle 0");
    // Again: everything is as before.
    let again = done(folder, "epoch settle 0");
    assert!(!again.contains("done"), "{again}");
    fs::write(
        folder.join("export.json"),
        json(folder, "epoch export 0").to_string(),
    )
    .unwrap();
    fs::remove_file(folder.join("creo-ledger.db")).unwrap();
    done(folder, "epoch verify export.json");
    let tampered = fs::read_to_string(folder.join("export.json"))
        .unwrap()
        .replace("\"validation_micro\":0", "\"validation_micro\":-1");
    fs::write(folder.join("export.json"), tampered.replace("e3b0", "e3b1")).unwrap();
    assert_eq!(
        creo(folder, "epoch verify export.json").status.code(),
        Some(4)
    );
}

/// What is run, its exit code, and what it must say.
const BAD: &[(&str, i32, &str)] = &[
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro=-1",
        3,
        "amount_micro must be 1 to",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro 0",
        3,
        "amount_micro must be 1 to",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro 1000000000000000001",
        3,
        "amount_micro must be 1 to",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro 9223372036854775808",
        2,
        "too large",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro 1.5",
        2,
        "invalid",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro NaN",
        2,
        "invalid",
    ),
    (
        "account deposit acme --rail bank --reference d-1 --amount-micro 5000001",
        3,
        "posted before with other content",
    ),
    (
        "account deposit nobody --rail bank --reference d-2 --amount-micro 1",
        3,
        "there is no customer nobody",
    ),
    (
        "account deposit Acme --rail bank --reference d-2 --amount-micro 1",
        3,
        "customer must be 1 to 63",
    ),
    (
        "account deposit acme --rail Bank --reference d-2 --amount-micro 1",
        3,
        "rail must be 1 to 63",
    ),
    (
        "account deposit acme --rail bank --reference a/b --amount-micro 1",
        3,
        "reference must be",
    ),
    (
        "account deposit acme --reference d-2 --amount-micro 1",
        2,
        "--rail",
    ),
    ("account open -acme", 2, "unexpected"),
    ("account open acme/x", 3, "customer must be"),
    (
        "account withdraw --id w --customer acme --rail bank --amount-micro 5000001",
        3,
        "customer:acme has 5000000",
    ),
    (
        "account withdraw --id w --customer nobody --rail bank --amount-micro 1",
        3,
        "there is no customer",
    ),
    (
        "account withdraw --id w --owner olga --rail bank --amount-micro 1",
        3,
        "the free payouts of olga has 0",
    ),
    (
        "account withdraw --id w --platform --rail bank --amount-micro 1",
        3,
        "platform has 0",
    ),
    (
        "account withdraw --id w --rail bank --amount-micro 1",
        2,
        "required",
    ),
    (
        "account withdraw --id w --platform --customer acme --rail bank --amount-micro 1",
        2,
        "cannot be used",
    ),
    (
        "account withdrawn nothing",
        3,
        "there is no withdrawal nothing",
    ),
    ("account statement acme", 2, "begin with the word of a kind"),
    ("account statement customer:", 2, "a name"),
    ("account statement reserve:x", 2, "the kind's word alone"),
    (
        "account statement customer:acme --lines -1",
        2,
        "unexpected",
    ),
    ("quote -f none.json", 2, "No such file"),
    ("quote -f nan.json", 2, "nan.json: expected value"),
    ("quote -f shares.json", 2, "must sum to 10000"),
    (
        "quote -f below.json",
        2,
        "price_micro_per_gpu_hour must be 0 to",
    ),
    ("quote -f unknown.json", 2, "unknown field `until_ms`"),
    ("quote -f huge.json", 2, "must be at most"),
    ("quote -f .", 2, "directory"),
    ("epoch open 0 --start-ms 1 --end-ms 1", 3, "end_ms must be"),
    (
        "epoch open 0 --start-ms=-1 --end-ms 1",
        3,
        "start_ms must be",
    ),
    (
        "epoch open 0 --start-ms 0 --end-ms 1 --grace-ms 1",
        3,
        "grace_ms must be",
    ),
    ("epoch open=x", 2, "unrecognized"),
    ("epoch settle 7", 3, "there is no epoch 7"),
    (
        "epoch settle 0 -f twice.json",
        3,
        "validators must list each account once",
    ),
    (
        "epoch settle 0 -f credit.json",
        3,
        "hub_bp must be 0 to 4000",
    ),
    ("epoch settle 0 -f cut.json", 2, "cut.json"),
    ("epoch export 0", 2, "epoch 0 is not closed"),
    ("epoch verify cut.json", 2, "EOF"),
    ("epoch proof 0 --placement p-1", 2, "epoch 0 is not closed"),
    ("epoch verify --proof cut.json", 2, "cut.json"),
    ("epoch verify empty.json", 2, "EOF"),
    ("epoch verify none.json", 2, "No such file"),
    (
        "dispute open x --epoch 0 --placement p-1 --amount-micro 1",
        3,
        "there is no epoch 0",
    ),
    (
        "dispute open x --epoch 0 --placement p-1 --amount-micro 0",
        3,
        "amount_micro must be 1",
    ),
    (
        "dispute resolve x --upheld-micro 0",
        3,
        "there is no dispute x",
    ),
    (
        "dispute resolve x --upheld-micro=-1",
        3,
        "upheld_micro must be 0",
    ),
    (
        "ledger reconcile --statement balance.json",
        2,
        "balance_micro",
    ),
    (
        "ledger reconcile --statement huge.json",
        2,
        "must be at most",
    ),
    ("ledger reconcile --statement cut.json", 2, "cut.json"),
    ("ledger verify --head cut.json", 2, "cut.json"),
    (
        "ledger verify --database none.db",
        1,
        "there is no ledger at none.db",
    ),
    (
        "account deposit acme --rail bank --reference d-2 --amount-micro 1 --database none.db",
        1,
        "there is no ledger",
    ),
    ("ledger verify --database huge.json", 1, "not a database"),
    ("ledger verify -o xml", 2, "invalid value"),
];

fn bad_files(folder: &Path) {
    fs::write(
        folder.join("nan.json"),
        format!(r#"{{"terms": {}}}"#, TERMS.replace("1200000", "NaN")),
    )
    .unwrap();
    fs::write(
        folder.join("shares.json"),
        format!(
            r#"{{"terms": {}}}"#,
            TERMS.replace(
                r#""since_ms""#,
                r#""shares": {"node_bp": 9000}, "since_ms""#
            )
        ),
    )
    .unwrap();
    fs::write(
        folder.join("below.json"),
        format!(r#"{{"terms": {}}}"#, TERMS.replace("1200000", "-1")),
    )
    .unwrap();
    fs::write(
        folder.join("unknown.json"),
        format!(r#"{{"terms": {}}}"#, TERMS.replace("since_ms", "until_ms")),
    )
    .unwrap();
    fs::write(folder.join("cut.json"), r#"{"epoch": 0, "charges": ["#).unwrap();
    fs::write(folder.join("empty.json"), "").unwrap();
    fs::write(
        folder.join("twice.json"),
        r#"{"validators": [{"account": "vera", "weight": 1}, {"account": "vera", "weight": 2}]}"#,
    )
    .unwrap();
    fs::write(
        folder.join("credit.json"),
        r#"{"faults": {"p-1": {"node_bp": 6000, "hub_bp": 5000}}}"#,
    )
    .unwrap();
    fs::write(
        folder.join("balance.json"),
        r#"{"rail": "bank", "reference": "s", "balance_micro": "1.5"}"#,
    )
    .unwrap();
    let huge = fs::File::create(folder.join("huge.json")).unwrap();
    huge.set_len(1 << 30).unwrap();
}

#[test]
fn bad_input_is_a_clear_error_and_changes_nothing() {
    let folder = ledger();
    let folder = folder.path();
    bad_files(folder);
    let before = json(folder, "ledger head");
    for (arguments, code, named) in BAD {
        let output = creo(folder, arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{arguments}: {told}");
        assert!(told.contains(named), "{arguments}: {told}");
    }
    assert_eq!(json(folder, "ledger head"), before);
    done(folder, "ledger verify");
}
