//! `make bench`: figures as ratios of two things measured in one run.

mod apply_to_ready;
mod device_plugin;
mod gpu_events;

use std::{fs, path::PathBuf};

use comfy_table::{Table, presets::NOTHING};
use serde::Serialize;

use crate::{
    cluster::{Cluster, ClusterSpec, GpuLayout, Gpus, ImageSet, Tuning},
    error::{Error, Result},
    installation, paths,
    progress::Progress,
};

/// The arguments of `creo-e2e bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
    /// How many interleaved pairs a comparison has.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Measure only this; without it, everything.
    #[arg(long, value_enum)]
    only: Option<Part>,
}

/// Something that can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From apply to Ready, on a cluster.
    ApplyToReady,
    /// From what a driver reports to the kubelet and the hub, on a cluster.
    GpuEvents,
    /// The device plugin beside a kubelet that this process plays.
    DevicePlugin,
}

impl Arguments {
    fn measures(&self, part: Part) -> bool {
        self.only.is_none_or(|only| only == part)
    }
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Creo's figure.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same of what it is compared with, in the same run.
    pub baseline: f64,
    /// `value` divided by `baseline`.
    pub ratio: f64,
    /// The ratio that must not be exceeded.
    pub goal: f64,
    /// Whether it was not.
    pub holds: bool,
}

impl Row {
    /// A figure whose ratio to a baseline has an upper goal.
    #[must_use]
    pub fn at_most(name: &str, unit: &'static str, value: f64, baseline: f64, goal: f64) -> Self {
        let ratio = value / baseline;
        Self {
            name: name.to_owned(),
            value,
            unit,
            baseline,
            ratio,
            goal,
            holds: ratio <= goal,
        }
    }

    /// A figure with an upper limit of its own, which stands in the place of the baseline.
    #[must_use]
    pub fn within(name: &str, unit: &'static str, value: f64, limit: f64) -> Self {
        Self::at_most(name, unit, value, limit, 1.0)
    }
}

/// Measures what was asked for, the most of it on a cluster of its own, prints a table and writes the report.
///
/// # Errors
///
/// Something cannot be measured, or a goal does not hold.
pub async fn run(arguments: &Arguments, program: PathBuf) -> Result<()> {
    let progress = Progress::stderr();
    let mut rows = Vec::new();
    if arguments.measures(Part::DevicePlugin) {
        rows.extend(Box::pin(device_plugin::measure(&progress, arguments.pairs)).await?);
    }
    if arguments.measures(Part::ApplyToReady) || arguments.measures(Part::GpuEvents) {
        rows.extend(Box::pin(on_a_cluster(arguments, program, &progress)).await?);
    }
    println!("{}", table(&rows));
    write_report(&arguments.report, &rows)?;
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| !row.holds)
        .map(|row| row.name.as_str())
        .collect();
    if missed.is_empty() {
        return Ok(());
    }
    Err(Error::malformed(
        "bench",
        format!("these goals do not hold: {}", missed.join(", ")),
    ))
}

async fn on_a_cluster(
    arguments: &Arguments,
    program: PathBuf,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let images = ImageSet::build(progress)?;
    let spec = ClusterSpec {
        name: format!("bench-{}", std::process::id()),
        nodes: 2,
        gpus_per_node: 8,
        gpu_profile: "rtx-4090".to_owned(),
        gpu_layout: GpuLayout::Flat,
        gpus: Gpus::StandIn,
        api_port: 0,
        program,
        detached: false,
        tuning: Tuning::default(),
    };
    let mut cluster = Cluster::start(&spec, progress).await?;
    progress.run("import the images", || cluster.import_images(&images))?;
    progress.run("install the chart", || {
        installation::install(&cluster, &installation::chart(), &images, &[])
    })?;
    let mut rows = Vec::new();
    if arguments.measures(Part::GpuEvents) {
        rows.extend(Box::pin(gpu_events::measure(&cluster, progress, arguments.pairs)).await?);
    }
    if arguments.measures(Part::ApplyToReady) {
        rows.extend(Box::pin(apply_to_ready::measure(&cluster, progress, arguments.pairs)).await?);
    }
    progress.run("end the cluster", || cluster.down())?;
    Ok(rows)
}

/// The value below which `share` (0 to 1) of the values lie: the nearest rank.
#[must_use]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "a handful of values")]
    let rank = (share * sorted.len() as f64).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to the length"
    )]
    let index = (rank as usize)
        .saturating_sub(1)
        .min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "NAME", "VALUE", "UNIT", "BASELINE", "RATIO", "GOAL", "HOLDS",
    ]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            format!("{:.3}", row.value),
            row.unit.to_owned(),
            format!("{:.3}", row.baseline),
            format!("{:.3}", row.ratio),
            format!("<= {}", row.goal),
            if row.holds { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table
}

fn write_report(path: &PathBuf, rows: &[Row]) -> Result<()> {
    if let Some(dir) = path.parent() {
        paths::make_dir(dir)?;
    }
    let text = serde_json::to_string_pretty(rows)
        .map_err(|error| Error::malformed("the report", error))?;
    paths::write_file(path, text + "\n")?;
    let shown = fs::canonicalize(path).unwrap_or_else(|_| path.clone());
    eprintln!("report: {}", shown.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        for (share, expected) in [(0.0, 1.0), (0.5, 3.0), (0.9, 5.0), (1.0, 5.0)] {
            assert!(
                (percentile(&values, share) - expected).abs() < f64::EPSILON,
                "share {share}"
            );
        }
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_row_holds_up_to_its_goal() {
        assert!(Row::at_most("a", "s", 1.3, 1.0, 1.3).holds);
        assert!(!Row::at_most("a", "s", 1.31, 1.0, 1.3).holds);
        assert!(!Row::at_most("a", "s", f64::NAN, 1.0, 1.3).holds);
    }
}
