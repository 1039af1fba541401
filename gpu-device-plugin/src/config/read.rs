//! From a file to the configuration in effect on a node.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::{Field, Keys, Problem, Problems};
use super::select::{Pattern, Selector};
use super::tree::{Node, Value};
use super::{
    Allocation, Cdi, CdiSource, Config, DeviceNodes, HealthConfig, MigStrategy, SharedCards,
    Sharing, Unlike,
};
use crate::arguments::time;
use crate::resource::Resource;

/// Largest file that is read, in bytes: what a ConfigMap can hold.
const FILE_MOST: u64 = 1 << 20;
/// How many containers can share a card.
const REPLICAS: std::ops::RangeInclusive<u32> = 2..=64;
/// Largest number of a card, and of an XID.
const INDEX_MOST: u32 = 1_023;
const XID_MOST: u64 = 9_999;

/// The words of the configuration.
pub(super) const UNLIKE: [(&str, Unlike); 2] =
    [("byModel", Unlike::ByModel), ("refuse", Unlike::Refuse)];
pub(super) const MIG: [(&str, MigStrategy); 3] = [
    ("none", MigStrategy::None),
    ("single", MigStrategy::Single),
    ("mixed", MigStrategy::Mixed),
];
pub(super) const ALLOCATION: [(&str, Allocation); 2] =
    [("pack", Allocation::Pack), ("spread", Allocation::Spread)];
pub(super) const SOURCE: [(&str, CdiSource); 2] = [
    ("generated", CdiSource::Generated),
    ("existing", CdiSource::Existing),
];
pub(super) const DEVICE_NODES: [(&str, DeviceNodes); 2] = [
    ("withoutCdi", DeviceNodes::WithoutCdi),
    ("always", DeviceNodes::Always),
];

/// What the command line says, whatever the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The resource of whole cards.
    pub resource: Option<Resource>,
    /// What becomes of partitioned cards.
    pub mig: Option<MigStrategy>,
    /// How long a GPU must be without a fault before it is offered again.
    pub healthy_after: Option<Duration>,
    /// Whose CDI specification is used.
    pub cdi_source: Option<CdiSource>,
}

/// The configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The file says something that has no meaning.
    #[error("{}: {}", path.display(), joined(problems))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
}

fn joined(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n  ")
}

/// The configuration of the node of this name by this file; without a file, what is usual.
pub fn load(
    file: Option<&Path>,
    node_name: Option<&str>,
    overrides: &Overrides,
) -> Result<Config, ConfigError> {
    let Some(path) = file else {
        return Ok(overrides.over(Config::default()));
    };
    let text = contents(path).map_err(|error| ConfigError::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    })?;
    match parse(&text, node_name) {
        Ok(config) => Ok(overrides.over(config)),
        Err(problems) => Err(ConfigError::Wrong {
            path: path.to_owned(),
            problems,
        }),
    }
}

/// The text of a file, as far as a configuration can reach.
pub(super) fn contents(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = fs::File::open(path)?
        .take(FILE_MOST + 1)
        .read_to_string(&mut text)?;
    if length as u64 > FILE_MOST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

impl Overrides {
    fn over(&self, mut config: Config) -> Config {
        if let Some(resource) = &self.resource {
            config.resource = resource.clone();
        }
        if let Some(mig) = self.mig {
            config.mig = mig;
        }
        if let Some(healthy_after) = self.healthy_after {
            config.health.healthy_after = healthy_after;
        }
        if let Some(source) = self.cdi_source {
            config.cdi.source = source;
        }
        config
    }
}

/// The configuration of the node of this name, by this text.
pub(super) fn parse(text: &str, node_name: Option<&str>) -> Result<Config, Vec<Problem>> {
    let node = document(text)?;
    let problems = Problems::default();
    let config = effective(&node, node_name, &problems);
    let problems = problems.into_list();
    if problems.is_empty() {
        Ok(config)
    } else {
        Err(problems)
    }
}

fn document(text: &str) -> Result<Node, Vec<Problem>> {
    // Nothing but comments.
    let lines = text.lines().map(str::trim);
    if lines
        .clone()
        .all(|line| line.is_empty() || line.starts_with('#'))
    {
        return Ok(Node {
            line: 1,
            value: Value::Map(Vec::new()),
        });
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = error.without_snippet().to_string();
        vec![Problem {
            line,
            path: String::new(),
            message: format!("this is no YAML that can be read: {message}"),
        }]
    })
}

/// The configuration of one node: what holds for all nodes, and over it, one after the other,
/// what holds for those of its name. All of it is checked, wherever it holds.
fn effective(document: &Node, node_name: Option<&str>, problems: &Problems) -> Config {
    let Some(mut keys) = Field::document(document, problems).keys() else {
        return Config::default();
    };
    let overlays = keys.get("nodes").map(Field::entries).unwrap_or_default();
    let mut config = read(keys);
    let mut own = document.clone();
    for overlay in overlays {
        let Some((names, set)) = read_overlay(overlay) else {
            continue;
        };
        // `nodes` within is unknown, which is what it should be.
        let checked = document_without_nodes(document).overlaid(set.node());
        if let Some(keys) = (Field::document(&checked, problems)).keys() {
            read(keys);
        }
        if node_name.is_some_and(|name| names.iter().any(|pattern| pattern.fits(name))) {
            own = own.overlaid(set.node());
            let own = document_without_nodes(&own);
            if let Some(keys) = Field::document(&own, problems).keys() {
                config = read(keys);
            }
        }
    }
    config
}

fn document_without_nodes(document: &Node) -> Node {
    let mut document = document.clone();
    if let Value::Map(entries) = &mut document.value {
        entries.retain(|entry| entry.key != "nodes");
    }
    document
}

fn read_overlay(overlay: Field<'_>) -> Option<(Vec<Pattern>, Field<'_>)> {
    let mut keys = overlay.keys()?;
    let names = keys.need("names");
    let set = keys.need("set");
    let names = names?.entries();
    let names = names
        .iter()
        .filter_map(Field::text)
        .map(Pattern::new)
        .collect();
    let set = set?;
    if !matches!(set.node().value, Value::Map(_)) {
        set.needs("a map of keys");
        return None;
    }
    // What is wrong within is told where the whole is checked.
    Some((names, set))
}

/// What one node's keys say.
fn read(mut keys: Keys<'_>) -> Config {
    let usual = Config::default();
    Config {
        resource: keys
            .get("resource")
            .and_then(|field| field.parsed())
            .unwrap_or(usual.resource),
        unlike: keys
            .get("unlike")
            .and_then(|field| field.one_of(&UNLIKE))
            .unwrap_or_default(),
        mig: keys.get("mig").and_then(read_mig).unwrap_or_default(),
        sharing: keys
            .get("sharing")
            .and_then(read_sharing)
            .unwrap_or_default(),
        exclude: keys.get("exclude").map(read_selectors).unwrap_or_default(),
        out_of_service: keys
            .get("outOfService")
            .map(read_selectors)
            .unwrap_or_default(),
        health: keys.get("health").and_then(read_health).unwrap_or_default(),
        cdi: keys.get("cdi").and_then(read_cdi).unwrap_or_default(),
        device_nodes: keys
            .get("deviceNodes")
            .and_then(|field| field.one_of(&DEVICE_NODES))
            .unwrap_or_default(),
    }
}

fn read_mig(field: Field<'_>) -> Option<MigStrategy> {
    field.keys()?.get("strategy")?.one_of(&MIG)
}

fn read_sharing(field: Field<'_>) -> Option<Sharing> {
    let mut keys = field.keys()?;
    let allocation = keys.get("allocation");
    let cards = keys.get("cards").map(Field::entries).unwrap_or_default();
    Some(Sharing {
        allocation: allocation
            .and_then(|field| field.one_of(&ALLOCATION))
            .unwrap_or_default(),
        cards: cards.into_iter().filter_map(read_shared_cards).collect(),
    })
}

fn read_shared_cards(field: Field<'_>) -> Option<SharedCards> {
    let mut keys = field.keys()?;
    let select = read_selector(&mut keys);
    let replicas = keys.need("replicas")?.whole(REPLICAS);
    Some(SharedCards {
        select: select?,
        replicas: replicas?,
    })
}

fn read_selectors(field: Field<'_>) -> Vec<Selector> {
    let entries = field.entries().into_iter();
    entries
        .filter_map(|entry| read_selector(&mut entry.keys()?))
        .collect()
}

/// Which cards are meant: at least one key, so that no card is meant by mistake.
fn read_selector(keys: &mut Keys<'_>) -> Option<Selector> {
    let (uuid, index, model) = (keys.get("uuid"), keys.get("index"), keys.get("model"));
    if uuid.is_none() && index.is_none() && model.is_none() {
        keys.field()
            .wrong("it says no cards; give uuid, index or model (model: \"*\" for all)");
        return None;
    }
    Some(Selector {
        uuid: uuid.and_then(|field| field.parsed_by(uuid_text)),
        index: index.and_then(|field| field.whole(0..=INDEX_MOST)),
        model: model.and_then(|field| field.text()).map(Pattern::new),
    })
}

fn uuid_text(text: &str) -> Result<String, String> {
    let rest = ["GPU-", "MIG-"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix));
    match rest {
        Some(rest) if !rest.is_empty() && !rest.contains("::") => Ok(text.to_owned()),
        _ => Err(format!(
            "{text:?} is given; the UUID of a card or of a partition is needed, such as GPU-... or MIG-... (nvidia-smi -L)"
        )),
    }
}

fn read_health(field: Field<'_>) -> Option<HealthConfig> {
    let mut keys = field.keys()?;
    let healthy_after = keys.get("healthyAfter");
    let ignored = keys
        .get("ignoredXids")
        .map(Field::entries)
        .unwrap_or_default();
    Some(HealthConfig {
        healthy_after: healthy_after
            .and_then(|field| field.parsed_by(time))
            .unwrap_or(HealthConfig::default().healthy_after),
        ignored_xids: ignored
            .iter()
            .filter_map(|field| field.whole(1..=XID_MOST))
            .collect(),
    })
}

fn read_cdi(field: Field<'_>) -> Option<Cdi> {
    let usual = Cdi::default();
    let mut keys = field.keys()?;
    Some(Cdi {
        enabled: keys
            .get("enabled")
            .and_then(|field| field.truth())
            .unwrap_or(usual.enabled),
        source: keys
            .get("source")
            .and_then(|field| field.one_of(&SOURCE))
            .unwrap_or_default(),
        kind: keys
            .get("kind")
            .and_then(|field| field.parsed())
            .unwrap_or(usual.kind),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHIPPED: &str = include_str!("../../../config/gpu-device-plugin.yaml");

    #[track_caller]
    fn good(text: &str) -> Config {
        for_node(text, None)
    }

    #[track_caller]
    fn for_node(text: &str, node_name: Option<&str>) -> Config {
        parse(text, node_name).unwrap_or_else(|problems| panic!("{}", joined(&problems)))
    }

    fn told(text: &str) -> String {
        parse(text, None).map_or_else(|problems| joined(&problems), |config| config.to_string())
    }

    #[test]
    fn the_shipped_file_has_every_key_and_says_what_is_usual() {
        assert_eq!(good(SHIPPED), Config::default());
        assert_eq!(good(""), Config::default());
        // Every key that is printed is in the file, with the value that is printed.
        let mut keys = 0;
        for line in Config::default().to_string().lines() {
            assert!(SHIPPED.lines().any(|shipped| shipped == line), "{line}");
            keys += 1;
        }
        // What is left is `nodes`, which is not printed.
        let shipped = SHIPPED
            .lines()
            .filter(|line| !line.trim_start().starts_with('#') && !line.is_empty());
        assert_eq!(shipped.count(), keys + 1);
    }

    #[test]
    fn the_examples_in_the_shipped_file_are_good() {
        let mut text = String::new();
        let mut example = None;
        for line in SHIPPED.lines() {
            match (&mut example, line.trim_start().starts_with('#')) {
                (_, true) if line.ends_with("For example:") => example = Some(String::new()),
                (Some(example), true) => {
                    example.extend([&line.replacen('#', " ", 1), "\n"]);
                }
                (None, true) => {}
                (_, false) => {
                    let filled = example.take().map(|example| format!(":\n{example}"));
                    text += &filled.map_or_else(
                        || format!("{line}\n"),
                        |filled| line.replace(": []", &filled),
                    );
                }
            }
        }
        let config = for_node(&text, Some("gpu-t4-1"));
        assert_eq!((config.sharing.cards.len(), config.exclude.len()), (1, 2));
        assert_eq!(
            config.sharing.cards[0].select.model,
            Some(Pattern::new("*"))
        );
        assert_eq!(
            good(&text).sharing.cards[0].select.model,
            Some(Pattern::new("*T4*"))
        );
    }

    #[test]
    fn every_key_has_its_meaning() {
        let config = good(
            r#"
            resource: nvidia.com/gpu
            unlike: refuse
            mig: {strategy: mixed}
            sharing:
              allocation: spread
              cards:
                - {model: "*T4*", replicas: 4}
                - index: 0
                  uuid: GPU-0
                  replicas: 64
            exclude: [{uuid: MIG-1}, {index: 3}]
            outOfService:
              - model: "?"
            health: {healthyAfter: 5m, ignoredXids: [63, 64]}
            cdi: {enabled: false, source: existing, kind: example.com/card}
            deviceNodes: always
            "#,
        );
        assert_eq!(config.resource.to_string(), "nvidia.com/gpu");
        assert_eq!(config.unlike, Unlike::Refuse);
        assert_eq!(config.mig, MigStrategy::Mixed);
        assert_eq!(config.sharing.allocation, Allocation::Spread);
        assert_eq!(config.sharing.cards[0].replicas, 4);
        assert_eq!(config.sharing.cards[1].select.index, Some(0));
        assert_eq!(config.exclude[0].uuid.as_deref(), Some("MIG-1"));
        assert_eq!(config.out_of_service[0].model, Some(Pattern::new("?")));
        assert_eq!(config.health.healthy_after, Duration::from_mins(5));
        assert_eq!(config.health.ignored_xids, [63, 64].into());
        assert!(!config.cdi.enabled && config.cdi.source == CdiSource::Existing);
        assert_eq!(config.cdi.kind.to_string(), "example.com/card");
        assert_eq!(config.device_nodes, DeviceNodes::Always);
        // What is printed says the same.
        assert_eq!(good(&config.to_string()), config);
    }

    #[test]
    fn a_key_without_a_value_says_what_is_usual() {
        assert_eq!(
            good("exclude:\nsharing:\n  # cards: []\nmig:\n"),
            Config::default()
        );
    }

    #[test]
    fn every_mistake_is_told_with_its_line_and_its_place_and_what_is_needed() {
        for (text, expected) in BAD {
            let told = told(text);
            assert_eq!(told, *expected, "\n{text}");
        }
        assert!(BAD.len() >= 30);
    }

    const BAD: &[(&str, &str)] = &[
        (
            "resources: a.b/c",
            "line 1: unknown key \"resources\"; did you mean resource?",
        ),
        (
            "\nversion: v1\n",
            "line 2: unknown key \"version\"; known here are cdi, deviceNodes, exclude, health, mig, nodes, outOfService, resource, sharing, unlike",
        ),
        (
            "migStrategy: single",
            "line 1: unknown key \"migStrategy\"; did you mean mig?",
        ),
        (
            "out_of_service: []",
            "line 1: unknown key \"out_of_service\"; did you mean outOfService?",
        ),
        (
            "resource: gpu",
            "line 1: resource: \"gpu\" is no resource: it needs a domain, a slash and a word; use a name such as creo.cloud/gpu",
        ),
        (
            "resource: 7",
            "line 1: resource: 7 is given; a text, in quotes, is needed",
        ),
        (
            "resource: [a]",
            "line 1: resource: a list is given; a text is needed",
        ),
        (
            "resource: ''",
            "line 1: resource: \"\" is given; a text is needed",
        ),
        (
            "unlike: bymodel",
            "line 1: unlike: \"bymodel\" is given; one of byModel, refuse is needed; did you mean byModel?",
        ),
        (
            "unlike: true",
            "line 1: unlike: true is given; one of byModel, refuse is needed",
        ),
        (
            "mig: mixed",
            "line 1: mig: \"mixed\" is given; a map of keys is needed",
        ),
        (
            "mig:\n  strategy: both",
            "line 2: mig.strategy: \"both\" is given; one of none, single, mixed is needed",
        ),
        (
            "mig:\n  stratgy: none",
            "line 2: mig: unknown key \"stratgy\"; did you mean strategy?",
        ),
        (
            "sharing:\n  cards: 4",
            "line 2: sharing.cards: 4 is given; a list is needed",
        ),
        (
            "sharing:\n  cards:\n    - replicas: 4",
            "line 3: sharing.cards[0]: it says no cards; give uuid, index or model (model: \"*\" for all)",
        ),
        (
            "sharing:\n  cards:\n    - model: '*'",
            "line 3: sharing.cards[0]: replicas is missing",
        ),
        (
            "sharing:\n  cards:\n    - model: '*'\n      replicas: 1",
            "line 4: sharing.cards[0].replicas: 1 is given; a whole number from 2 to 64 is needed",
        ),
        (
            "sharing:\n  cards:\n    - model: '*'\n      replicas: many",
            "line 4: sharing.cards[0].replicas: \"many\" is given; a whole number from 2 to 64 is needed",
        ),
        (
            "sharing:\n  cards:\n    - model: '*'\n      replicas: 2.5",
            "line 4: sharing.cards[0].replicas: 2.5 is given; a whole number from 2 to 64 is needed",
        ),
        (
            "sharing:\n  cards:\n    - models: '*'\n      replicas: 2",
            "line 3: sharing.cards[0]: it says no cards; give uuid, index or model (model: \"*\" for all)\n  line 3: sharing.cards[0]: unknown key \"models\"; did you mean model?",
        ),
        (
            "sharing:\n  allocation: tight",
            "line 2: sharing.allocation: \"tight\" is given; one of pack, spread is needed",
        ),
        (
            "sharing:\n  timeSlicing: {}",
            "line 2: sharing: unknown key \"timeSlicing\"; known here are allocation, cards",
        ),
        (
            "exclude: GPU-1",
            "line 1: exclude: \"GPU-1\" is given; a list is needed",
        ),
        (
            "exclude:\n  - GPU-1",
            "line 2: exclude[0]: \"GPU-1\" is given; a map of keys is needed",
        ),
        (
            "exclude:\n  - {}",
            "line 2: exclude[0]: it says no cards; give uuid, index or model (model: \"*\" for all)",
        ),
        (
            "exclude:\n  - uuid: 0",
            "line 2: exclude[0].uuid: 0 is given; a text, in quotes, is needed",
        ),
        (
            "exclude:\n  - uuid: gpu-1",
            "line 2: exclude[0].uuid: \"gpu-1\" is given; the UUID of a card or of a partition is needed, such as GPU-... or MIG-... (nvidia-smi -L)",
        ),
        (
            "exclude:\n  - uuid: GPU-1::2",
            "line 2: exclude[0].uuid: \"GPU-1::2\" is given; the UUID of a card or of a partition is needed, such as GPU-... or MIG-... (nvidia-smi -L)",
        ),
        (
            "exclude:\n  - index: -1",
            "line 2: exclude[0].index: -1 is given; a whole number from 0 to 1023 is needed",
        ),
        (
            "outOfService:\n  - index: 0\n  - index: '1'",
            "line 3: outOfService[1].index: \"1\" is given; a whole number from 0 to 1023 is needed",
        ),
        (
            "health:\n  healthyAfter: soon",
            "line 2: health.healthyAfter: a time such as 60s or 5m is needed",
        ),
        (
            "health:\n  healthyAfter: 60",
            "line 2: health.healthyAfter: 60 is given; a text, in quotes, is needed",
        ),
        (
            "health:\n  healthyAfter: 48h",
            "line 2: health.healthyAfter: a time from 0s to 24h is needed",
        ),
        (
            "health:\n  ignoredXids: [0]",
            "line 2: health.ignoredXids[0]: 0 is given; a whole number from 1 to 9999 is needed",
        ),
        (
            "health:\n  ignoreXids: [31]",
            "line 2: health: unknown key \"ignoreXids\"; did you mean ignoredXids?",
        ),
        (
            "cdi: true",
            "line 1: cdi: true is given; a map of keys is needed",
        ),
        (
            "cdi:\n  enabled: 'yes'",
            "line 2: cdi.enabled: \"yes\" is given; true or false is needed",
        ),
        (
            "cdi:\n  source: host",
            "line 2: cdi.source: \"host\" is given; one of generated, existing is needed",
        ),
        (
            "cdi:\n  kind: nvidia",
            "line 2: cdi.kind: \"nvidia\" is no resource: it needs a domain, a slash and a word; use a name such as creo.cloud/gpu",
        ),
        (
            "deviceNodes: alway",
            "line 1: deviceNodes: \"alway\" is given; one of withoutCdi, always is needed; did you mean always?",
        ),
        (
            "nodes: {a: b}",
            "line 1: nodes: a map of keys is given; a list is needed",
        ),
        ("nodes:\n  - set: {}", "line 2: nodes[0]: names is missing"),
        (
            "nodes:\n  - names: ['*']",
            "line 2: nodes[0]: set is missing",
        ),
        (
            "nodes:\n  - names: ['*']\n    set: 7",
            "line 3: nodes[0].set: 7 is given; a map of keys is needed",
        ),
        (
            "nodes:\n  - names: [x]\n    set:\n      unlik: refuse",
            "line 4: unknown key \"unlik\"; did you mean unlike?",
        ),
        (
            "nodes:\n  - names: [x]\n    set:\n      nodes: []",
            "line 4: unknown key \"nodes\"; known here are cdi, deviceNodes, exclude, health, mig, outOfService, resource, sharing, unlike",
        ),
        (
            "mig:\n  strategy: 1\nunlike: 2",
            "line 2: mig.strategy: 1 is given; one of none, single, mixed is needed\n  line 3: unlike: 2 is given; one of byModel, refuse is needed",
        ),
        ("- a", "line 1: a list is given; a map of keys is needed"),
        (
            "just words",
            "line 1: \"just words\" is given; a map of keys is needed",
        ),
    ];

    #[test]
    fn what_is_no_yaml_is_told_with_its_line() {
        for (text, line) in [
            ("a: [", "line 1: "),
            ("unlike: refuse\nunlike: byModel", "line 2: "),
            ("mig:\n\tstrategy: none", "line 2: "),
            ("a: b: c", "line 1: "),
        ] {
            let told = told(text);
            assert!(
                told.starts_with(line) && told.contains("no YAML that can be read"),
                "{told}"
            );
            assert!(told.lines().count() == 1 && told.len() < 400, "{told}");
        }
    }

    #[test]
    fn a_list_and_a_text_are_bounded() {
        let many = format!("health: {{ignoredXids: [{}]}}", "1,".repeat(300));
        assert!(told(&many).contains("300 entries are given; at most 256 are possible"));
        let long = format!("exclude: [{{model: {}}}]", "x".repeat(300));
        assert!(told(&long).contains("longer than 256 characters"));
    }

    #[test]
    fn what_is_set_for_a_node_by_its_name_lies_over_what_holds_for_all() {
        let text = r#"
            sharing:
              allocation: spread
              cards: [{model: "*", replicas: 2}]
            nodes:
              - names: [gpu-*]
                set: {sharing: {cards: []}, unlike: refuse}
              - names: [other, gpu-7]
                set: {mig: {strategy: mixed}, unlike: byModel}
        "#;
        assert_eq!(for_node(text, Some("x")), good(text));
        assert_eq!(good(text).sharing.cards.len(), 1);
        let some = for_node(text, Some("gpu-1"));
        assert!(some.sharing.cards.is_empty() && some.unlike == Unlike::Refuse);
        assert_eq!(some.sharing.allocation, Allocation::Spread);
        assert_eq!(some.mig, MigStrategy::None);
        let seventh = for_node(text, Some("gpu-7"));
        assert!(seventh.sharing.cards.is_empty() && seventh.unlike == Unlike::ByModel);
        assert_eq!(seventh.mig, MigStrategy::Mixed);
    }

    #[test]
    fn the_command_line_holds_whatever_the_file_says() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.yaml");
        let overrides = Overrides {
            resource: Some(Resource::nvidia()),
            mig: Some(MigStrategy::Single),
            healthy_after: Some(Duration::from_secs(5)),
            cdi_source: Some(CdiSource::Existing),
        };
        let gone = load(Some(&file), None, &overrides).unwrap_err().to_string();
        assert!(
            gone.contains("config.yaml cannot be read: No such file"),
            "{gone}"
        );
        fs::write(&file, "mig: {strategy: mixed}\nunlike: refuse").unwrap();
        let config = load(Some(&file), None, &overrides).unwrap();
        assert_eq!(config.resource, Resource::nvidia());
        assert_eq!(
            (config.mig, config.unlike),
            (MigStrategy::Single, Unlike::Refuse)
        );
        assert_eq!(config.health.healthy_after, Duration::from_secs(5));
        assert_eq!(config.cdi.source, CdiSource::Existing);
        assert_eq!(
            load(None, None, &Overrides::default()),
            Ok(Config::default())
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\n]{0,200}") {
            let _ = parse(&text, Some("x"));
        }
    }
}
