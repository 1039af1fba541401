//! Whether an epoch's service was what was agreed, and what a customer gets back
//! where it was not.

use serde::{Deserialize, Serialize};

use super::{Invalid, amount::WHOLE_BP, terms::Tier};

/// Parts of a million in a whole.
pub const WHOLE_PPM: i64 = 1_000_000;

/// What a tier promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objectives {
    /// How many of a million counted requests may fail; 1 to 500,000.
    pub failures_ppm_max: i64,
    /// Which of the answers, ordered by their time to the first byte, is looked
    /// at, in basis points: 9,500 is the 95th percentile; 5,000 to 9,999.
    pub percentile_bp: i64,
    /// How long that answer may have taken to its first byte, in milliseconds; 1
    /// to 3,600,000.
    pub first_byte_ms_max: i64,
}

/// A step of a table of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// It holds where what was measured is more than so many times what is
    /// promised; at least 1.
    pub above_times: i64,
    /// What the customer gets back, in basis points of the charge; 0 to 10,000.
    pub credit_bp: i64,
}

/// How service is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveParameters {
    /// Fewer counted requests than these give neither breach nor credit; 100 to
    /// 1,000,000. Default: 100, below which a single failure is more than the
    /// loosest promise of a hundredth.
    pub samples_min: i64,
    /// Default: 10,000 ppm of failures, 95th percentile within 5 s.
    pub economy: Objectives,
    /// Default: 5,000 ppm of failures, 95th percentile within 2 s.
    pub standard: Objectives,
    /// Default: 1,000 ppm of failures, 95th percentile within 1 s.
    pub priority: Objectives,
    /// Credits for failures, by how many times the promise they are; rising.
    /// Default: above 1: 1,000; above 5: 2,500; above 20: 10,000.
    pub failures: Vec<Step>,
    /// Credits for slow answers, by how many times the promise they took;
    /// rising. Default: above 1: 500; above 2: 1,000; above 5: 2,500.
    pub slowness: Vec<Step>,
    /// The credit for an interruption with less notice than agreed, in basis
    /// points of the charge; 0 to 10,000. Default: 1,000.
    pub short_notice_credit_bp: i64,
}

impl Default for ObjectiveParameters {
    fn default() -> Self {
        let objectives = |failures_ppm_max, first_byte_ms_max| Objectives {
            failures_ppm_max,
            percentile_bp: 9_500,
            first_byte_ms_max,
        };
        let steps = |steps: [(i64, i64); 3]| {
            steps
                .map(|(above_times, credit_bp)| Step {
                    above_times,
                    credit_bp,
                })
                .to_vec()
        };
        Self {
            samples_min: 100,
            economy: objectives(10_000, 5_000),
            standard: objectives(5_000, 2_000),
            priority: objectives(1_000, 1_000),
            failures: steps([(1, 1_000), (5, 2_500), (20, 10_000)]),
            slowness: steps([(1, 500), (2, 1_000), (5, 2_500)]),
            short_notice_credit_bp: 1_000,
        }
    }
}

impl ObjectiveParameters {
    /// Refuses values out of their bounds, and steps that do not rise.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("samples_min", self.samples_min, 100, 1_000_000)?;
        for objectives in [&self.economy, &self.standard, &self.priority] {
            for (field, value, least, most) in [
                ("failures_ppm_max", objectives.failures_ppm_max, 1, 500_000),
                ("percentile_bp", objectives.percentile_bp, 5_000, 9_999),
                (
                    "first_byte_ms_max",
                    objectives.first_byte_ms_max,
                    1,
                    3_600_000,
                ),
            ] {
                Invalid::unless_within(field, value, least, most)?;
            }
        }
        rising("failures", &self.failures)?;
        rising("slowness", &self.slowness)?;
        let short = self.short_notice_credit_bp;
        Invalid::unless_within("short_notice_credit_bp", short, 0, WHOLE_BP)
    }

    /// What a tier promises.
    #[must_use]
    pub fn of(&self, tier: Tier) -> &Objectives {
        match tier {
            Tier::Economy => &self.economy,
            Tier::Standard => &self.standard,
            Tier::Priority => &self.priority,
        }
    }
}

fn rising(field: &str, steps: &[Step]) -> Result<(), Invalid> {
    if steps.len() > 16 {
        return Err(Invalid::new(field, "must have at most 16 steps"));
    }
    for step in steps {
        Invalid::unless_within(field, step.above_times, 1, 1_000_000)?;
        Invalid::unless_within(field, step.credit_bp, 0, WHOLE_BP)?;
    }
    let rises = |pair: &[Step]| {
        pair[0].above_times < pair[1].above_times && pair[0].credit_bp <= pair[1].credit_bp
    };
    if steps.windows(2).all(rises) {
        Ok(())
    } else {
        Err(Invalid::new(field, "must rise from step to step"))
    }
}

/// What was measured of one Placement in one epoch, by the gateway. Whatever is
/// not the node's to answer for is counted apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Samples {
    /// Time to the first byte of each answer that succeeded, in milliseconds, in
    /// any order.
    pub first_byte_ms: Vec<i64>,
    /// Requests that the node failed.
    pub node_failures: i64,
    /// Requests that the hub itself failed.
    pub hub_failures: i64,
    /// Requests that were wrong; they do not count.
    pub client_errors: i64,
    /// Requests that the client gave up; they do not count.
    pub client_cancelled: i64,
    /// Requests beyond the agreed parallelism; they do not count.
    pub beyond_parallelism: i64,
    /// Whether the owner took the GPUs back with less notice than agreed.
    pub short_notice: bool,
}

/// What an epoch's service deserves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// What the customer gets back for the node's faults, in basis points of
    /// the charge.
    pub node_bp: i64,
    /// What the customer gets back for the hub's own faults, in basis points of
    /// the charge. With the node's it is at most 10,000.
    pub hub_bp: i64,
}

impl Faults {
    /// Refuses credits of more than the charge.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_within("node_bp", self.node_bp, 0, WHOLE_BP)?;
        Invalid::unless_within("hub_bp", self.hub_bp, 0, WHOLE_BP - self.node_bp)
    }
}

/// A judgement with its measurements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// Requests that counted: answered, failed by the node, failed by the hub.
    pub counted: i64,
    /// What the percentile took to its first byte, in milliseconds; absent where
    /// nothing was answered or too few requests counted.
    pub percentile_ms: Option<i64>,
    /// What the customer gets back.
    pub faults: Faults,
}

/// Judges what was measured of a Placement of this tier in one epoch.
///
/// The percentile is by nearest rank: of n answers, that at rank
/// ceiling(n x `percentile_bp` / 10,000) when they are ordered.
///
/// # Errors
///
/// A count is below 0; the error names the field.
pub fn judge(
    tier: Tier,
    samples: &Samples,
    parameters: &ObjectiveParameters,
) -> Result<Judgement, Invalid> {
    for (field, value) in [
        ("node_failures", samples.node_failures),
        ("hub_failures", samples.hub_failures),
        ("client_errors", samples.client_errors),
        ("client_cancelled", samples.client_cancelled),
        ("beyond_parallelism", samples.beyond_parallelism),
        (
            "first_byte_ms",
            samples.first_byte_ms.iter().copied().min().unwrap_or(0),
        ),
    ] {
        Invalid::unless_within(field, value, 0, i64::from(u32::MAX))?;
    }
    let objectives = parameters.of(tier);
    let answered = i64::try_from(samples.first_byte_ms.len()).unwrap_or(i64::MAX);
    let counted = answered
        .saturating_add(samples.node_failures)
        .saturating_add(samples.hub_failures);
    let mut judgement = Judgement {
        counted,
        ..Judgement::default()
    };
    let notice_bp = if samples.short_notice {
        parameters.short_notice_credit_bp
    } else {
        0
    };
    if counted < parameters.samples_min {
        judgement.faults.node_bp = notice_bp;
        return Ok(judgement);
    }
    judgement.percentile_ms = percentile(&samples.first_byte_ms, objectives.percentile_bp);
    let failed = |failures: i64| {
        let measured = i128::from(failures) * i128::from(WHOLE_PPM);
        let promised = i128::from(objectives.failures_ppm_max) * i128::from(counted);
        credit_bp(&parameters.failures, measured, promised)
    };
    let slow_bp = judgement.percentile_ms.map_or(0, |measured_ms| {
        let promised_ms = i128::from(objectives.first_byte_ms_max);
        credit_bp(&parameters.slowness, i128::from(measured_ms), promised_ms)
    });
    let node_bp = (failed(samples.node_failures) + slow_bp + notice_bp).min(WHOLE_BP);
    judgement.faults = Faults {
        node_bp,
        hub_bp: failed(samples.hub_failures).min(WHOLE_BP - node_bp),
    };
    Ok(judgement)
}

/// The credit of the highest step that `measured` is above.
fn credit_bp(steps: &[Step], measured: i128, promised: i128) -> i64 {
    steps
        .iter()
        .rev()
        .find(|step| measured > promised * i128::from(step.above_times))
        .map_or(0, |step| step.credit_bp)
}

fn percentile(values_ms: &[i64], percentile_bp: i64) -> Option<i64> {
    let mut values_ms = values_ms.to_vec();
    values_ms.sort_unstable();
    let whole = usize::try_from(WHOLE_BP).ok()?;
    let bp = usize::try_from(percentile_bp).ok()?;
    let rank = values_ms.len().checked_mul(bp)?.div_ceil(whole);
    values_ms.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    type Edit = fn(&mut ObjectiveParameters);

    fn fast(count: usize) -> Samples {
        Samples {
            first_byte_ms: vec![10; count],
            ..Samples::default()
        }
    }

    fn faults(tier: Tier, samples: &Samples) -> (i64, i64) {
        let faults = judge(tier, samples, &ObjectiveParameters::default())
            .unwrap()
            .faults;
        (faults.node_bp, faults.hub_bp)
    }

    #[test]
    fn fewer_than_a_hundred_samples_give_no_credit_and_a_hundred_do() {
        let failing = |answered: usize| Samples {
            node_failures: 50,
            ..fast(answered)
        };
        assert_eq!(faults(Tier::Standard, &failing(49)), (0, 0));
        assert_eq!(faults(Tier::Standard, &failing(50)), (10_000, 0));
    }

    #[test]
    fn a_promise_that_is_just_kept_costs_nothing() {
        // 5,000 ppm of 1,000 requests are 5.
        for (failures, expected) in [
            (5, 0),
            (6, 1_000),
            (25, 1_000),
            (26, 2_500),
            (100, 2_500),
            (101, 10_000),
        ] {
            let samples = Samples {
                node_failures: failures,
                ..fast(1_000 - usize::try_from(failures).unwrap())
            };
            assert_eq!(
                faults(Tier::Standard, &samples),
                (expected, 0),
                "{failures}"
            );
        }
        for (slow_ms, expected) in [(2_000, 0), (2_001, 500), (4_001, 1_000), (10_001, 2_500)] {
            let samples = Samples {
                first_byte_ms: [vec![10; 94], vec![slow_ms; 6]].concat(),
                ..Samples::default()
            };
            assert_eq!(
                faults(Tier::Standard, &samples),
                (expected, 0),
                "{slow_ms} ms"
            );
        }
    }

    #[test]
    fn the_percentile_is_that_of_the_nearest_rank() {
        let values: Vec<i64> = (1..=100).rev().collect();
        assert_eq!(percentile(&values, 9_500), Some(95));
        assert_eq!(percentile(&values, 9_501), Some(96));
        assert_eq!(percentile(&[7], 5_000), Some(7));
        assert_eq!(percentile(&[], 9_500), None);
    }

    #[test]
    fn what_is_not_the_nodes_to_answer_for_does_not_count_against_it() {
        let samples = Samples {
            client_errors: 1_000,
            client_cancelled: 1_000,
            beyond_parallelism: 1_000,
            ..fast(200)
        };
        assert_eq!(faults(Tier::Priority, &samples), (0, 0));
        let hub = Samples {
            hub_failures: 200,
            ..fast(200)
        };
        assert_eq!(faults(Tier::Priority, &hub), (0, 10_000));
    }

    #[test]
    fn both_credits_together_are_at_most_the_charge() {
        let samples = Samples {
            node_failures: 4,
            hub_failures: 200,
            short_notice: true,
            ..fast(200)
        };
        // 4 of 404 are 9,901 ppm: above 5,000.
        assert_eq!(faults(Tier::Standard, &samples), (2_000, 8_000));
    }

    #[test]
    fn bad_parameters_and_counts_are_refused_with_the_fields_name() {
        let cases: [(&str, Edit); 7] = [
            ("samples_min", |p| p.samples_min = 99),
            ("failures_ppm_max", |p| p.economy.failures_ppm_max = 0),
            ("percentile_bp", |p| p.standard.percentile_bp = 10_000),
            ("first_byte_ms_max", |p| p.priority.first_byte_ms_max = 0),
            ("failures", |p| p.failures.reverse()),
            ("slowness", |p| p.slowness[0].credit_bp = 10_001),
            ("short_notice_credit_bp", |p| p.short_notice_credit_bp = -1),
        ];
        for (field, change) in cases {
            let mut parameters = ObjectiveParameters::default();
            parameters.validate().unwrap();
            change(&mut parameters);
            assert_eq!(parameters.validate().unwrap_err().field, field);
        }
        let samples = Samples {
            hub_failures: -1,
            ..fast(1)
        };
        let refused = judge(Tier::Economy, &samples, &ObjectiveParameters::default());
        assert_eq!(refused.unwrap_err().field, "hub_failures");
        let beyond = Faults {
            node_bp: 6_000,
            hub_bp: 4_001,
        };
        assert_eq!(beyond.validate().unwrap_err().field, "hub_bp");
    }
}
