//! The configuration in effect, as a file that says the same.

use std::fmt::{self, Write as _};

use super::Config;
use super::read::{ALLOCATION, DEVICE_NODES, MIG, SOURCE, UNLIKE};
use super::select::Selector;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "resource: {}", self.resource)?;
        writeln!(f, "unlike: {}", word(&UNLIKE, self.unlike))?;
        writeln!(f, "mig:\n  strategy: {}", word(&MIG, self.mig))?;
        let allocation = word(&ALLOCATION, self.sharing.allocation);
        writeln!(f, "sharing:\n  allocation: {allocation}")?;
        let shared = self
            .sharing
            .cards
            .iter()
            .map(|cards| format!("{}, replicas: {}", fields(&cards.select), cards.replicas));
        list(f, "  cards", shared)?;
        list(f, "exclude", self.exclude.iter().map(fields))?;
        list(f, "outOfService", self.out_of_service.iter().map(fields))?;
        let healthy_after = self.health.healthy_after;
        writeln!(f, "health:\n  healthyAfter: {healthy_after:?}")?;
        let ignored: Vec<String> = self
            .health
            .ignored_xids
            .iter()
            .map(u64::to_string)
            .collect();
        writeln!(f, "  ignoredXids: [{}]", ignored.join(", "))?;
        writeln!(f, "cdi:\n  enabled: {}", self.cdi.enabled)?;
        writeln!(f, "  source: {}", word(&SOURCE, self.cdi.source))?;
        writeln!(f, "  kind: {}", self.cdi.kind)?;
        writeln!(f, "deviceNodes: {}", word(&DEVICE_NODES, self.device_nodes))
    }
}

fn word<T: PartialEq + Copy>(words: &[(&'static str, T)], value: T) -> &'static str {
    let found = words.iter().find(|(_, known)| *known == value);
    found.map_or("", |(word, _)| word)
}

fn list(
    f: &mut fmt::Formatter<'_>,
    key: &str,
    entries: impl ExactSizeIterator<Item = String>,
) -> fmt::Result {
    if entries.len() == 0 {
        return writeln!(f, "{key}: []");
    }
    writeln!(f, "{key}:")?;
    let indent = " ".repeat(key.len() - key.trim_start().len() + 2);
    for entry in entries {
        writeln!(f, "{indent}- {{{entry}}}")?;
    }
    Ok(())
}

fn fields(selector: &Selector) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail. JSON's texts are YAML's.
    if let Some(uuid) = &selector.uuid {
        let _ = write!(text, "uuid: {}, ", quoted(uuid));
    }
    if let Some(index) = selector.index {
        let _ = write!(text, "index: {index}, ");
    }
    if let Some(model) = &selector.model {
        let _ = write!(text, "model: {}, ", quoted(&model.to_string()));
    }
    text.trim_end_matches(", ").to_owned()
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
