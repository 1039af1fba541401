//! Families of series that are put together for one scrape.

use prometheus::core::Collector as _;
use prometheus::proto::MetricFamily;
use prometheus::{CounterVec, GaugeVec, Opts};

/// A value with its own labels and those of what it is about.
pub(super) struct Sample {
    labels: Vec<String>,
    value: f64,
}

/// What kind of values a family holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// They go up and down.
    Gauge,
    /// They go up, and begin at 0 again.
    Counter,
}

/// Series of one name.
pub(super) struct Family {
    kind: Kind,
    name: &'static str,
    help: &'static str,
    labels: Vec<&'static str>,
    samples: Vec<Sample>,
}

impl Family {
    pub(super) fn new(
        kind: Kind,
        name: &'static str,
        help: &'static str,
        subject: &[&'static str],
        own: &[&'static str],
    ) -> Self {
        Self {
            kind,
            name,
            help,
            labels: [subject, own].concat(),
            samples: Vec::new(),
        }
    }

    /// Adds a value where it is known.
    pub(super) fn add(&mut self, subject: &[String], own: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            let own = own.iter().map(|label| (*label).to_owned());
            self.samples.push(Sample {
                labels: subject.iter().cloned().chain(own).collect(),
                value,
            });
        }
    }

    /// The family as Prometheus' library wants it; nothing where it has no values.
    pub(super) fn collect(self) -> Result<Vec<MetricFamily>, prometheus::Error> {
        if self.samples.is_empty() {
            return Ok(Vec::new());
        }
        let options = Opts::new(self.name, self.help);
        match self.kind {
            Kind::Gauge => {
                let family = GaugeVec::new(options, &self.labels)?;
                for sample in &self.samples {
                    family
                        .get_metric_with_label_values(&sample.labels)?
                        .set(sample.value);
                }
                Ok(family.collect())
            }
            Kind::Counter => {
                let family = CounterVec::new(options, &self.labels)?;
                for sample in &self.samples {
                    // Two values of the same labels would be added up, and there are none.
                    family
                        .get_metric_with_label_values(&sample.labels)?
                        .inc_by(sample.value.max(0.0));
                }
                Ok(family.collect())
            }
        }
    }
}
