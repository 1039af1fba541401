//! The page about the plugin, `docs/gpu-device-plugin.md`, says what the program does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use creo_gpu_device_plugin::health::xid::{self, Effect};

/// Set to write the page's generated parts anew.
const REGENERATE: &str = "CREO_REGENERATE";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page_path() -> PathBuf {
    repository().join("docs/gpu-device-plugin.md")
}

fn page() -> String {
    fs::read_to_string(page_path()).unwrap()
}

/// Holds where the text between two comments of this name is this one; with [`REGENERATE`] it
/// is made so.
fn assert_part(name: &str, expected: &str) {
    let page = page();
    let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
    let (before, rest) = page.split_once(&start).unwrap();
    let (found, after) = rest.split_once(&end).unwrap();
    if found == expected {
        return;
    }
    assert!(
        std::env::var_os(REGENERATE).is_some(),
        "`{name}` of docs/gpu-device-plugin.md is not what the program does; run this test alone with {REGENERATE}=1 to write it anew:\n{expected}"
    );
    fs::write(
        page_path(),
        [before, &start, expected, &end, after].concat(),
    )
    .unwrap();
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let below = directories.iter().flat_map(|directory| sources(directory));
    files.into_iter().chain(below).collect()
}

/// Names and help texts of the metrics, as the sources have them: the help text is the string
/// behind the name.
fn metrics() -> BTreeMap<String, String> {
    let mut metrics = BTreeMap::new();
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let strings: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
        for pair in strings.windows(2) {
            if pair[0].starts_with("creo_gpu_") && !pair[0].contains(char::is_whitespace) {
                metrics
                    .entry(pair[0].to_owned())
                    .or_insert_with(|| pair[1].to_owned());
            }
        }
    }
    metrics
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Harmless => "none",
        Effect::Note => "Note",
        Effect::Drain => "Drain",
        Effect::DrainUntilReset => "Drain until reset",
        Effect::OutUntilReset | Effect::Gone => "Out until reset",
    }
}

#[test]
fn the_page_has_every_xid_with_what_it_means_and_what_to_do() {
    let mut table = "\n| XID | effect | means | do |\n|---|---|---|---|\n".to_owned();
    for known in xid::KNOWN {
        let (code, effect) = (known.code, effect(known.effect));
        writeln!(
            table,
            "| {code} | {effect} | {} | {} |",
            known.meaning, known.remedy
        )
        .unwrap();
    }
    table.push('\n');
    assert_part("xids", &table);
}

#[test]
fn the_page_has_every_metric() {
    let mut table = "\n| metric | means |\n|---|---|\n".to_owned();
    let metrics = metrics();
    assert!(metrics.len() > 30, "{metrics:?}");
    for (name, help) in metrics {
        assert!(
            help.ends_with('.'),
            "{name} has no help text behind it: {help:?}"
        );
        writeln!(table, "| `{name}` | {help} |").unwrap();
    }
    table.push('\n');
    assert_part("metrics", &table);
}

/// The paths of the keys, `a.b`, of an indented YAML file with maps down to this depth.
fn keys(yaml: &str) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut section = String::new();
    let lines = yaml
        .lines()
        .filter(|line| !line.trim_start().starts_with('#') && line.contains(':'));
    for line in lines {
        let (key, value) = line.split_once(':').unwrap();
        if key.starts_with(' ') {
            keys.insert(format!("{section}.{}", key.trim()));
        } else {
            key.clone_into(&mut section);
            if !value.is_empty() {
                keys.insert(section.clone());
            }
        }
    }
    keys
}

#[test]
fn the_page_has_every_key_of_the_configuration() {
    let shipped = repository().join("config/gpu-device-plugin.yaml");
    let shipped = keys(&fs::read_to_string(shipped).unwrap());
    let page = page();
    let (_, rest) = page.split_once("| key | default | means |").unwrap();
    let described: BTreeSet<String> = rest
        .lines()
        .skip(2)
        .map_while(|line| line.strip_prefix("| `"))
        .map(|line| line.split_once('`').unwrap().0.to_owned())
        .collect();
    assert_eq!(described, shipped);
}
