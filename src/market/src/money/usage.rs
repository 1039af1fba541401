//! What was used: observations become billable stretches.
//!
//! The result depends on the set of observations alone: not on their order, nor
//! on how often one was told. Evidence is what the hub saw and what the gateway
//! was served; what a node claims may shorten a stretch and never lengthen it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    price::{HOUR_MS, Usage},
    terms::TIME_MS_MAX,
};

/// Something that was told about one Placement. All times are milliseconds
/// since 1970 on the clock of the one who tells; `from_ms` is inside, `to_ms`
/// outside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Observation {
    /// The hub watched the replica.
    Hub {
        /// Which incarnation of the hub's leader: a later one knows better.
        incarnation: i64,
        /// Since when.
        from_ms: i64,
        /// Until when.
        to_ms: i64,
        /// Whether it was ready all the time.
        ready: bool,
        /// How often containers of this Placement had been started again by
        /// then, over all its pods.
        restarts: i64,
    },
    /// The gateway had a successful answer from the replica, from the first byte
    /// sent to the last byte received.
    Gateway {
        /// Since when.
        from_ms: i64,
        /// Until when.
        to_ms: i64,
    },
    /// The node says that the replica was not running.
    NodeDown {
        /// Since when.
        from_ms: i64,
        /// Until when.
        to_ms: i64,
    },
}

impl Observation {
    fn span(&self) -> (i64, i64) {
        match self {
            Self::Hub { from_ms, to_ms, .. }
            | Self::Gateway { from_ms, to_ms }
            | Self::NodeDown { from_ms, to_ms } => (*from_ms, *to_ms),
        }
    }

    /// Whether its times make a span. Where a clock went back in between, they
    /// do not, and nothing can be concluded.
    fn is_span(&self) -> bool {
        let (from_ms, to_ms) = self.span();
        0 <= from_ms && from_ms < to_ms && to_ms <= TIME_MS_MAX
    }
}

/// An observation and when the hub got it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Received {
    /// When, in milliseconds since 1970 on the hub's clock.
    pub received_ms: i64,
    /// What.
    pub observation: Observation,
}

/// What a billable stretch rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The hub saw it ready.
    Seen,
    /// The gateway was served.
    Served,
    /// The hub was away, and found the replica ready with as many restarts as
    /// before.
    Bridged,
}

/// A time that is billed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Since when, in milliseconds since 1970.
    pub from_ms: i64,
    /// Until when; the millisecond itself is not billed.
    pub to_ms: i64,
    /// Why it is billed.
    pub evidence: Evidence,
}

/// How observations are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UsageParameters {
    /// How long the hub may have been away for the time to be billed when the
    /// replica is ready before and after with as many restarts; 0 to an hour, in
    /// milliseconds. Default: 15 minutes.
    ///
    /// Failing to measure is not the node's fault, so a change of leaders (30 s)
    /// or a restart of the hub's machine (minutes) must not cost it anything;
    /// beyond that, the customer may have gone without service for long.
    pub bridged_ms_max: i64,
}

impl Default for UsageParameters {
    fn default() -> Self {
        Self {
            bridged_ms_max: HOUR_MS / 4,
        }
    }
}

impl UsageParameters {
    /// Refuses values out of their bounds.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("bridged_ms_max", self.bridged_ms_max, 0, HOUR_MS)
    }
}

/// What is billed of a span of time, and what was not understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Billable {
    /// The stretches, in order, apart from or touching one another with
    /// different evidence.
    pub stretches: Vec<Stretch>,
    /// Observations that nothing was concluded from, because their times are no
    /// span: a clock went back.
    pub ignored: BTreeSet<Observation>,
}

impl Billable {
    /// The billable time in milliseconds.
    #[must_use]
    pub fn duration_ms(&self) -> i64 {
        self.stretches
            .iter()
            .map(|stretch| stretch.to_ms - stretch.from_ms)
            .sum()
    }
}

/// What the hub knows of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    Ready { restarts: i64 },
    NotReady,
}

/// The stretches of `from_ms..to_ms` that are billed by the evidence of
/// `observations`.
#[must_use]
pub fn billable<'a>(
    observations: impl IntoIterator<Item = &'a Observation>,
    from_ms: i64,
    to_ms: i64,
    parameters: &UsageParameters,
) -> Billable {
    let mut ignored = BTreeSet::new();
    let mut hub = Vec::new();
    let mut layers = Vec::new();
    for observation in observations {
        if !observation.is_span() {
            ignored.insert(observation.clone());
            continue;
        }
        let (from_ms, to_ms) = observation.span();
        match observation {
            Observation::Hub {
                incarnation,
                ready,
                restarts,
                ..
            } => {
                let state = if *ready {
                    State::Ready {
                        restarts: *restarts,
                    }
                } else {
                    State::NotReady
                };
                hub.push((from_ms, to_ms, (*incarnation, state)));
            }
            Observation::Gateway { .. } => layers.push((from_ms, to_ms, Layer::Served)),
            Observation::NodeDown { .. } => layers.push((from_ms, to_ms, Layer::Down)),
        }
    }
    let seen = segments(hub);
    layers.extend(hub_layers(&seen, parameters.bridged_ms_max));
    Billable {
        stretches: stretches(segments(layers), from_ms, to_ms),
        ignored,
    }
}

/// What a moment is covered by; of several, the last decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Bridged,
    Served,
    Seen,
    Down,
}

/// Where spans begin and end, cut into segments that are covered by the same
/// values throughout; of each, the greatest value.
fn segments<V: Ord + Copy>(spans: Vec<(i64, i64, V)>) -> Vec<(i64, i64, V)> {
    let mut edges: BTreeMap<i64, Vec<(V, bool)>> = BTreeMap::new();
    for (from_ms, to_ms, value) in spans {
        edges.entry(from_ms).or_default().push((value, true));
        edges.entry(to_ms).or_default().push((value, false));
    }
    let mut covering: BTreeMap<V, i64> = BTreeMap::new();
    let mut segments: Vec<(i64, i64, V)> = Vec::new();
    let mut begun: Option<(i64, V)> = None;
    for (at_ms, changes) in edges {
        for (value, begins) in changes {
            *covering.entry(value).or_default() += if begins { 1 } else { -1 };
        }
        // Within one edge a value may end before it begins again: only now do
        // the counts mean something.
        covering.retain(|_, count| *count != 0);
        let winner = covering.last_key_value().map(|(value, _)| *value);
        if begun.map(|(_, value)| value) != winner {
            if let Some((from_ms, value)) = begun {
                segments.push((from_ms, at_ms, value));
            }
            begun = winner.map(|value| (at_ms, value));
        }
    }
    segments
}

/// What the hub's states give: what it saw, and the gaps that are bridged.
fn hub_layers(seen: &[(i64, i64, (i64, State))], bridged_ms_max: i64) -> Vec<(i64, i64, Layer)> {
    let mut layers: Vec<_> = seen
        .iter()
        .filter(|(_, _, (_, state))| matches!(state, State::Ready { .. }))
        .map(|(from_ms, to_ms, _)| (*from_ms, *to_ms, Layer::Seen))
        .collect();
    for pair in seen.windows(2) {
        let ((_, left_ms, (_, before)), (found_ms, _, (_, after))) = (pair[0], pair[1]);
        let same = before == after && matches!(before, State::Ready { .. });
        if same && left_ms < found_ms && found_ms - left_ms <= bridged_ms_max {
            layers.push((left_ms, found_ms, Layer::Bridged));
        }
    }
    layers
}

/// The segments with evidence, inside `from_ms..to_ms`.
fn stretches(segments: Vec<(i64, i64, Layer)>, from_ms: i64, to_ms: i64) -> Vec<Stretch> {
    segments
        .into_iter()
        .filter_map(|(begin_ms, end_ms, layer)| {
            let evidence = match layer {
                Layer::Seen => Evidence::Seen,
                Layer::Served => Evidence::Served,
                Layer::Bridged => Evidence::Bridged,
                Layer::Down => return None,
            };
            let (from_ms, to_ms) = (begin_ms.max(from_ms), end_ms.min(to_ms));
            (from_ms < to_ms).then_some(Stretch {
                from_ms,
                to_ms,
                evidence,
            })
        })
        .collect()
}

/// What an epoch bills, and what later observations make of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Billable milliseconds by the observations that came before the cut-off.
    pub billed_ms: i64,
    /// What all observations would bill more, in milliseconds; below 0 where
    /// they would bill less. It becomes an entry of a later epoch.
    pub correction_ms: i64,
}

/// Judges `from_ms..to_ms` by the observations received before `cut_off_ms`, and
/// by all of them.
#[must_use]
pub fn judged(
    received: &[Received],
    (from_ms, to_ms): (i64, i64),
    cut_off_ms: i64,
    parameters: &UsageParameters,
) -> Judged {
    let in_time = received
        .iter()
        .filter(|received| received.received_ms < cut_off_ms)
        .map(|received| &received.observation);
    let all = received.iter().map(|received| &received.observation);
    let billed_ms = billable(in_time, from_ms, to_ms, parameters).duration_ms();
    let all_ms = billable(all, from_ms, to_ms, parameters).duration_ms();
    Judged {
        billed_ms,
        correction_ms: all_ms - billed_ms,
    }
}

/// What a gateway tells of one request's tokens. What it does not know is
/// absent, which is never 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// The gateway that tells.
    pub source: String,
    /// Its number for the request; source and sequence are its identity.
    pub sequence: i64,
    /// Tokens read.
    pub tokens_in: Option<i64>,
    /// Tokens written.
    pub tokens_out: Option<i64>,
    /// Tokens read from a cache.
    pub tokens_cached: Option<i64>,
}

/// Tokens of several requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenTally {
    /// The tokens that are known; the duration is 0.
    pub usage: Usage,
    /// Requests, by source and sequence, of which a number is not known.
    pub missing: BTreeSet<(String, i64)>,
    /// Requests of which different numbers were told: the smaller ones count.
    pub conflicting: BTreeSet<(String, i64)>,
}

/// Adds up tokens, each request once.
///
/// # Errors
///
/// A number is below 0, or their sum does not fit.
pub fn tokens<'a>(
    records: impl IntoIterator<Item = &'a TokenRecord>,
) -> Result<TokenTally, Invalid> {
    let mut tally = TokenTally::default();
    let mut requests: BTreeMap<(&str, i64), [Option<i64>; 3]> = BTreeMap::new();
    for record in records {
        let told = [record.tokens_in, record.tokens_out, record.tokens_cached];
        for (field, value) in ["tokens_in", "tokens_out", "tokens_cached"]
            .iter()
            .zip(told)
        {
            Invalid::unless_within(field, value.unwrap_or(0), 0, i64::MAX)?;
        }
        let known = requests
            .entry((&record.source, record.sequence))
            .or_insert(told);
        for (known, told) in known.iter_mut().zip(told) {
            match (*known, told) {
                (Some(a), Some(b)) if a != b => {
                    tally
                        .conflicting
                        .insert((record.source.clone(), record.sequence));
                    *known = Some(a.min(b));
                }
                (None, Some(_)) => *known = told,
                _ => {}
            }
        }
    }
    for ((source, sequence), known) in requests {
        if known.contains(&None) {
            tally.missing.insert((source.to_owned(), sequence));
        }
        let [tokens_in, tokens_out, tokens_cached] = known.map(Option::unwrap_or_default);
        tally.usage = tally.usage.plus(&Usage {
            duration_ms: 0,
            tokens_in,
            tokens_out,
            tokens_cached,
        })?;
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: i64, tokens_in: Option<i64>) -> TokenRecord {
        TokenRecord {
            source: "gateway-1".to_owned(),
            sequence,
            tokens_in,
            tokens_out: Some(0),
            tokens_cached: Some(0),
        }
    }

    #[test]
    fn tokens_count_once_and_an_unknown_number_is_not_an_explicit_zero() {
        let records = [
            record(1, Some(5)),
            record(1, Some(5)),
            record(2, None),
            record(3, Some(0)),
            record(4, None),
            record(4, Some(7)),
        ];
        let tally = tokens(&records).unwrap();
        assert_eq!(tally.usage.tokens_in, 12);
        assert_eq!(tally.missing, [("gateway-1".to_owned(), 2)].into());
        assert!(tally.conflicting.is_empty());
    }

    #[test]
    fn of_two_different_numbers_for_a_request_the_smaller_counts_in_either_order() {
        let mut records = [record(1, Some(5)), record(1, Some(4))];
        let one = tokens(&records).unwrap();
        records.reverse();
        assert_eq!(tokens(&records).unwrap(), one);
        assert_eq!((one.usage.tokens_in, one.conflicting.len()), (4, 1));
    }

    #[test]
    fn tokens_below_zero_or_beyond_the_range_are_refused() {
        assert_eq!(
            tokens(&[record(1, Some(-1))]).unwrap_err().field,
            "tokens_in"
        );
        let most = [record(1, Some(i64::MAX)), record(2, Some(1))];
        assert_eq!(tokens(&most).unwrap_err().field, "tokens_in");
    }

    #[test]
    fn a_gap_longer_than_an_hour_cannot_be_bridged() {
        let parameters = UsageParameters {
            bridged_ms_max: HOUR_MS + 1,
        };
        assert_eq!(parameters.validate().unwrap_err().field, "bridged_ms_max");
    }
}
