//! `docs/money.md` is true: its tables are those of the code, and its examples
//! happen as it says.

#![cfg(test)]

use std::{collections::BTreeMap, fs, path::Path};

use creo_ledger::{
    FLOWS, Kind, Sign,
    simulation::{Script, check},
};
use creo_market::money::{
    bond::BondParameters,
    merkle,
    objectives::{Faults, ObjectiveParameters, Samples, judge},
    price::{Usage, charged, quote, receipt},
    pseudonym::Secret,
    settlement::settle,
    split::{SubsidyParameters, Weight, apportion, divide},
    terms::{Shares, Terms, Tier, hexadecimal},
    usage::{Observation, Received, TokenRecord, UsageParameters, billable, judged, tokens},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn document() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/money.md");
    fs::read_to_string(path).expect("docs/money.md is there")
}

/// The fenced blocks whose information begins with a word, as (the rest of it,
/// the lines).
fn blocks(document: &str, word: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
        .into_iter()
        .filter_map(|(info, text)| Some((info.strip_prefix(word)?.trim().to_owned(), text)))
        .collect()
}

/// The cells of the rows of the table with this head.
fn table(document: &str, head: &str) -> Vec<Vec<String>> {
    document
        .lines()
        .skip_while(|line| *line != head)
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split(" | ");
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect()
}

#[test]
fn the_table_of_flows_is_that_of_the_ledger() {
    let mut written = Vec::new();
    for row in table(
        &document(),
        "| cause | from (debit) | to (credit) | posted by |",
    ) {
        for by in row[3].split(", ") {
            written.push([
                row[0].clone(),
                row[1].clone(),
                row[2].clone(),
                by.to_owned(),
            ]);
        }
    }
    let mut allowed: Vec<_> = FLOWS
        .iter()
        .map(|flow| {
            [
                flow.cause.word(),
                flow.debit.word(),
                flow.credit.word(),
                flow.by.word(),
            ]
            .map(str::to_owned)
        })
        .collect();
    written.sort();
    allowed.sort();
    assert_eq!(written, allowed);
}

#[test]
fn the_table_of_accounts_is_that_of_the_ledger() {
    let rows = table(&document(), "| account | what it has | balance |");
    assert_eq!(rows.len(), Kind::ALL.len());
    for (row, kind) in rows.iter().zip(Kind::ALL) {
        let word = row[0].trim_matches('`').split([':', '`']).next().unwrap();
        assert_eq!(word, kind.word());
        let sign = match kind.sign() {
            Sign::Any => "any",
            Sign::NotBelowZero => "0 or above",
            Sign::NotAboveZero => "0 or below",
        };
        assert_eq!(row[2], sign, "{word}");
    }
}

fn field<T: DeserializeOwned>(value: &Value, name: &str) -> T {
    serde_json::from_value(value[name].clone()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn usage_or_none(value: &Value, name: &str) -> Usage {
    if value[name].is_null() {
        Usage::default()
    } else {
        field(value, name)
    }
}

fn stretches(given: &Value) -> Value {
    let observations: Vec<Observation> = field(given, "observations");
    let (from_ms, to_ms) = (field(given, "from_ms"), field(given, "to_ms"));
    let billable = billable(&observations, from_ms, to_ms, &UsageParameters::default());
    json!({"stretches": billable.stretches, "duration_ms": billable.duration_ms(), "ignored": billable.ignored.len()})
}

fn judgement(given: &Value) -> Value {
    let mut given = given.clone();
    let pairs: Vec<(i64, usize)> = field(&given["samples"], "first_byte_ms");
    let times: Vec<i64> = pairs
        .into_iter()
        .flat_map(|(ms, count)| vec![ms; count])
        .collect();
    given["samples"]["first_byte_ms"] = json!(times);
    let (tier, samples): (Tier, Samples) = (field(&given, "tier"), field(&given, "samples"));
    json!(judge(tier, &samples, &ObjectiveParameters::default()).unwrap())
}

fn token_tally(given: &Value) -> Value {
    let records: Vec<TokenRecord> = serde_json::from_value(given.clone()).unwrap();
    let tally = tokens(&records).unwrap();
    json!({
        "tokens_in": tally.usage.tokens_in, "tokens_out": tally.usage.tokens_out, "tokens_cached": tally.usage.tokens_cached,
        "missing": tally.missing, "conflicting": tally.conflicting,
    })
}

fn receipt_of(given: &Value) -> Value {
    let terms: Terms = field(given, "terms");
    let receipt = receipt(
        &terms,
        &usage_or_none(given, "before"),
        &usage_or_none(given, "used"),
    )
    .unwrap();
    let lines: Vec<Value> = receipt
        .lines
        .iter()
        .map(|line| json!({"line": line.line, "units": line.units, "exact": line.exact.to_string(), "posted_micro": line.posted_micro}))
        .collect();
    json!({"lines": lines, "posted": receipt.posted})
}

/// What a rule gives.
fn given_by(rule: &str, given: &Value) -> Value {
    match rule {
        "digest" => json!(
            serde_json::from_value::<Terms>(given.clone())
                .unwrap()
                .digest()
                .unwrap()
        ),
        "charge" => json!(charged(&field(given, "terms"), &field(given, "used")).unwrap()),
        "quote" => json!(quote(&field(given, "terms"), &field(given, "used")).unwrap()),
        "receipt" => receipt_of(given),
        "split" => json!(divide(
            field(given, "charge_micro"),
            &field::<Shares>(given, "shares")
        )),
        "settle" => {
            let (shares, faults): (Shares, Faults) =
                (field(given, "shares"), field(given, "faults"));
            json!(settle(field(given, "charge_micro"), &shares, &faults))
        }
        "apportion" => {
            let weights: Vec<Weight> = field(given, "weights");
            json!(apportion(field(given, "sum_micro"), &weights).unwrap())
        }
        "standby" => {
            let parameters = SubsidyParameters::default();
            json!(parameters.granted(field(given, "wished_micro"), field(given, "platform_micro")))
        }
        "usage" => stretches(given),
        "correction" => {
            let received: Vec<Received> = field(given, "received");
            let span = (field(given, "from_ms"), field(given, "to_ms"));
            json!(judged(
                &received,
                span,
                field(given, "cut_off_ms"),
                &UsageParameters::default()
            ))
        }
        "tokens" => token_tally(given),
        "judge" => judgement(given),
        "withheld" => {
            let [gross, bond, pay] =
                ["gross_micro", "bond_micro", "pay_micro"].map(|name| field(given, name));
            json!(BondParameters::default().withheld(gross, bond, pay))
        }
        "root" => {
            let leaves: Vec<String> = serde_json::from_value(given.clone()).unwrap();
            let hashes: Vec<_> = leaves
                .iter()
                .map(|leaf| merkle::leaf_hash(leaf.as_bytes()))
                .collect();
            json!(hexadecimal(&merkle::root(&hashes)))
        }
        "pseudonym" => {
            let secret: Secret = field(given, "secret");
            let (kind, account): (String, String) = (field(given, "kind"), field(given, "account"));
            json!(secret.pseudonym(&kind, &account, field(given, "epoch")))
        }
        _ => panic!("there is no rule {rule}"),
    }
}

#[test]
fn every_rules_worked_examples_are_true() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (rule, text) in blocks(&document(), "rule ") {
        let part = |name: &str| -> Value {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            serde_json::from_str(line.unwrap_or_else(|| panic!("{rule} has no {name}"))).unwrap()
        };
        assert_eq!(
            given_by(&rule, &part("in ")),
            part("out "),
            "{rule}: {text}"
        );
        *seen.entry(rule).or_default() += 1;
    }
    assert!(seen.len() >= 15 && seen["usage"] >= 6, "{seen:?}");
}

#[test]
fn every_worked_history_happens_as_it_is_told() {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    let mut causes: Vec<String> = Vec::new();
    for (info, text) in blocks(&document(), "history ") {
        let (name, before) = info.split_once(" after ").unwrap_or((&info, ""));
        let text = texts.get(before).cloned().unwrap_or_default() + &text;
        for times in [1, 2] {
            let script = Script::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let transcript = script
                .run(&Secret::new([7; 32]), times)
                .unwrap_or_else(|error| {
                    panic!(
                        "{name}: {error}: {}",
                        text.lines().nth(error.line - 1).unwrap_or_default()
                    )
                });
            if name != "dust" {
                check(&transcript).unwrap_or_else(|what| panic!("{name}: {what}"));
            }
            causes.extend(transcript.entries.into_iter().map(|entry| entry.cause));
        }
        texts.insert(name.to_owned(), text);
    }
    // Every flow that the page draws happens in one of its examples.
    let missing: Vec<&str> = FLOWS
        .iter()
        .map(|flow| flow.cause.word())
        .filter(|word| !causes.iter().any(|cause| cause == word))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}
