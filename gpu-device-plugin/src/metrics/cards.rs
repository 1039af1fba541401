//! What is said of the cards, put together for one scrape.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use nvml_wrapper_sys::bindings as sys;
use prometheus::Opts;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use super::family::{Family, Kind};
use super::{Metrics, Shown, Told};
use crate::driver::session::{Clocks, NVLINK_ERRORS, Reading};
use crate::health::Health;
use crate::inventory::{Gpu, Mig, MigDevice};
use crate::processes::Use;

const CARD: [&str; 3] = ["gpu", "model", "uuid"];
const PARTITION: [&str; 5] = ["gpu", "model", "uuid", "partition", "profile"];
/// Longest text of a label that comes from outside, in characters.
const MAX_LABEL: usize = 128;

/// NVML's reasons for lower clocks, by their words.
const THROTTLE_REASONS: [(&str, u32); 9] = [
    ("idle", sys::nvmlClocksEventReasonGpuIdle),
    (
        "application_clocks",
        sys::nvmlClocksEventReasonApplicationsClocksSetting,
    ),
    ("power_cap", sys::nvmlClocksEventReasonSwPowerCap),
    ("hardware_slowdown", sys::nvmlClocksThrottleReasonHwSlowdown),
    ("sync_boost", sys::nvmlClocksEventReasonSyncBoost),
    ("thermal", sys::nvmlClocksEventReasonSwThermalSlowdown),
    (
        "hardware_thermal",
        sys::nvmlClocksThrottleReasonHwThermalSlowdown,
    ),
    (
        "power_brake",
        sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    ),
    (
        "display_clocks",
        sys::nvmlClocksEventReasonDisplayClockSetting,
    ),
];

/// Puts the families together whenever they are asked for.
pub(super) struct Cards {
    shown: Arc<Mutex<Shown>>,
    told: Arc<Told>,
    /// The registry wants to know one name before.
    first: Desc,
}

impl Cards {
    pub(super) fn new(metrics: &Metrics) -> Result<Self, prometheus::Error> {
        use prometheus::core::Describer as _;
        Ok(Self {
            shown: Arc::clone(&metrics.shown),
            told: Arc::clone(&metrics.told),
            first: Opts::new(DRIVER_UP.0, DRIVER_UP.1).describe()?,
        })
    }
}

const DRIVER_UP: (&str, &str) = ("creo_gpu_driver_up", "Whether the NVIDIA driver answers.");

impl Collector for Cards {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.first]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut families = driver(&shown);
        families.extend(states(&shown));
        families.extend(figures(&shown));
        families.extend(clocks(&shown));
        families.extend(errors(&shown));
        families.extend(pcie(&shown));
        families.extend(partitions(&shown));
        families.extend(uses(&shown, &self.told));
        let cards = shown
            .snapshot
            .devices
            .iter()
            .map(|device| (device.gpu.uuid.clone(), labels(&device.gpu)))
            .collect();
        drop(shown);
        families.extend(units(&self.told));
        families.extend(holders(&self.told, &cards));
        families
            .into_iter()
            .filter_map(|family| {
                // Names and labels are constants, which a test puts together.
                family.collect().ok()
            })
            .flatten()
            .collect()
    }
}

fn gauge(name: &'static str, help: &'static str, own: &[&'static str]) -> Family {
    Family::new(Kind::Gauge, name, help, &CARD, own)
}

fn counter(name: &'static str, help: &'static str, own: &[&'static str]) -> Family {
    Family::new(Kind::Counter, name, help, &CARD, own)
}

fn labels(gpu: &Gpu) -> Vec<String> {
    vec![
        gpu.index.to_string(),
        shortened(&gpu.model),
        gpu.uuid.clone(),
    ]
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_LABEL).collect()
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

/// Counts beyond 2^53 are shown rounded, which no card reaches.
#[allow(clippy::cast_precision_loss)]
fn count(count: u64) -> f64 {
    count as f64
}

fn driver(shown: &Shown) -> Vec<Family> {
    let none: [String; 0] = [];
    let snapshot = &shown.snapshot;
    let mut up = Family::new(Kind::Gauge, DRIVER_UP.0, DRIVER_UP.1, &[], &[]);
    up.add(&none, &[], Some(flag(snapshot.driver.is_ok())));
    let mut heard = Family::new(
        Kind::Gauge,
        "creo_gpu_driver_events_up",
        "Whether the driver's events are heard; without them, XIDs are not seen.",
        &[],
        &[],
    );
    let works = snapshot.driver.is_ok() && snapshot.deaf.is_none();
    heard.add(&none, &[], Some(flag(works)));
    let mut unreadable = Family::new(
        Kind::Gauge,
        "creo_gpu_unreadable",
        "GPUs that the driver counts and that cannot be described.",
        &[],
        &[],
    );
    unreadable.add(&none, &[], Some(count(snapshot.unreadable.len() as u64)));
    let mut info = Family::new(
        Kind::Gauge,
        "creo_gpu_driver_info",
        "The driver's version and the CUDA version that it supports; always 1.",
        &["driver", "cuda"],
        &[],
    );
    if let Ok(versions) = &snapshot.driver {
        let versions = [shortened(&versions.driver), shortened(&versions.cuda)];
        info.add(&versions, &[], Some(1.0));
    }
    vec![up, heard, unreadable, info]
}

/// Health, and what the card is.
fn states(shown: &Shown) -> Vec<Family> {
    let mut healthy = gauge(
        "creo_gpu_healthy",
        "Whether the GPU may be given to new containers.",
        &[],
    );
    let mut findings = gauge(
        "creo_gpu_findings",
        "Findings about the GPU, by reason and severity.",
        &["reason", "severity"],
    );
    let mut xids = counter(
        "creo_gpu_xids_total",
        "XIDs that the driver reported, by code; `other` where this plugin does not know it.",
        &["xid"],
    );
    let mut partitioned = gauge(
        "creo_gpu_partitions",
        "Partitions of the GPU (MIG devices).",
        &[],
    );
    for device in &shown.snapshot.devices {
        let card = labels(&device.gpu);
        healthy.add(&card, &[], Some(flag(device.health.is_healthy())));
        for ((reason, severity), number) in by_reason(&device.health) {
            findings.add(&card, &[reason, severity], Some(count(number)));
        }
        for (code, number) in shown.xids.get(&device.gpu.uuid).into_iter().flatten() {
            xids.add(&card, &[code], Some(count(*number)));
        }
        let partitions = device.gpu.mig.devices().len() as u64;
        partitioned.add(&card, &[], Some(count(partitions)));
    }
    vec![healthy, findings, xids, partitioned]
}

fn by_reason(health: &Health) -> BTreeMap<(&'static str, &'static str), u64> {
    let mut numbers = BTreeMap::new();
    for finding in health.findings() {
        *numbers
            .entry((finding.reason(), finding.severity().word()))
            .or_default() += 1;
    }
    numbers
}

/// The cards that answer, with what they say.
fn answering(shown: &Shown) -> impl Iterator<Item = (Vec<String>, &Reading)> {
    shown.snapshot.devices.iter().filter_map(|device| {
        let reading = shown.readings.get(&device.gpu.uuid)?;
        Some((labels(&device.gpu), &**reading))
    })
}

/// A figure of a card without labels of its own: what it is called, and what it is of a
/// reading.
type Figure = (
    Kind,
    &'static str,
    &'static str,
    fn(&Reading) -> Option<f64>,
);

const FIGURES: [Figure; 18] = [
    (
        Kind::Gauge,
        "creo_gpu_memory_total_bytes",
        "Memory of the GPU.",
        |reading| reading.memory.map(|memory| count(memory.total)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_memory_used_bytes",
        "Memory of the GPU in use.",
        |reading| reading.memory.map(|memory| count(memory.used)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_memory_free_bytes",
        "Memory of the GPU that is free.",
        |reading| reading.memory.map(|memory| count(memory.free)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_utilization_ratio",
        "Share of the last moments in which a kernel ran, from 0 to 1.",
        |reading| reading.utilization_percent.map(ratio),
    ),
    (
        Kind::Gauge,
        "creo_gpu_memory_utilization_ratio",
        "Share of the last moments in which memory was read or written, from 0 to 1.",
        |reading| reading.memory_utilization_percent.map(ratio),
    ),
    (
        Kind::Gauge,
        "creo_gpu_processes",
        "Processes that use the GPU.",
        |reading| Some(count(reading.processes.as_ref()?.len() as u64)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_temperature_celsius",
        "Temperature of the GPU's die.",
        |reading| reading.temperature_celsius.map(f64::from),
    ),
    (
        Kind::Gauge,
        "creo_gpu_power_watts",
        "Power that the GPU draws.",
        |reading| reading.power_milliwatts.map(thousandths),
    ),
    (
        Kind::Gauge,
        "creo_gpu_power_limit_watts",
        "Power limit that is enforced.",
        |reading| reading.power_limit_milliwatts.map(thousandths),
    ),
    (
        Kind::Counter,
        "creo_gpu_energy_joules_total",
        "Energy that the GPU drew since the driver was loaded.",
        |reading| reading.energy_millijoules.map(|all| count(all) / 1e3),
    ),
    (
        Kind::Gauge,
        "creo_gpu_ecc_enabled",
        "Whether error correction is on.",
        |reading| reading.ecc_enabled.map(flag),
    ),
    (
        Kind::Gauge,
        "creo_gpu_row_remap_pending",
        "Whether a row of memory is remapped at the next reset.",
        |reading| reading.remapped_rows.map(|rows| flag(rows.pending)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_row_remap_failed",
        "Whether a row of memory could not be remapped.",
        |reading| reading.remapped_rows.map(|rows| flag(rows.failed)),
    ),
    (
        Kind::Gauge,
        "creo_gpu_retired_pages_pending",
        "Whether pages of memory are retired at the next reset.",
        |reading| reading.retired_pages_pending.map(flag),
    ),
    (
        Kind::Gauge,
        "creo_gpu_sram_threshold_exceeded",
        "Whether the SRAM has had more uncorrectable errors than NVIDIA tolerates.",
        |reading| reading.sram_threshold_exceeded.map(flag),
    ),
    (
        Kind::Counter,
        "creo_gpu_pcie_replays_total",
        "PCI Express packets that were sent again.",
        |reading| reading.slow.pcie_replays.map(f64::from),
    ),
    (
        Kind::Gauge,
        "creo_gpu_nvlinks_up",
        "NVLink connections that are up.",
        |reading| Some(f64::from(reading.nvlinks_up?.count_ones())),
    ),
    (
        Kind::Gauge,
        "creo_gpu_partitioned",
        "Whether the GPU is partitioned (MIG); then it cannot be used as a whole.",
        |reading| match reading.mig {
            Mig::Unsupported => None,
            Mig::Off => Some(0.0),
            Mig::On(_) => Some(1.0),
        },
    ),
];

fn figures(shown: &Shown) -> Vec<Family> {
    let family = |(kind, name, help, of): Figure| {
        let mut family = Family::new(kind, name, help, &CARD, &[]);
        for (card, reading) in answering(shown) {
            family.add(&card, &[], of(reading));
        }
        family
    };
    FIGURES.into_iter().map(family).collect()
}

/// Heat, clocks and what holds them down.
fn clocks(shown: &Shown) -> Vec<Family> {
    let mut limits = gauge(
        "creo_gpu_temperature_limit_celsius",
        "Temperature at which the GPU slows itself down or switches itself off.",
        &["limit"],
    );
    let mut now = gauge("creo_gpu_clock_hertz", "Clocks of the GPU.", &["clock"]);
    let mut highest = gauge(
        "creo_gpu_clock_max_hertz",
        "Highest clocks of the GPU.",
        &["clock"],
    );
    let mut throttled = gauge(
        "creo_gpu_throttled",
        "Whether the clocks are held down, by reason.",
        &["reason"],
    );
    for (card, reading) in answering(shown) {
        let slow = &reading.slow;
        limits.add(&card, &["slowdown"], slow.slowdown_celsius.map(f64::from));
        limits.add(&card, &["shutdown"], slow.shutdown_celsius.map(f64::from));
        for (clock, hertz) in by_clock(&reading.clocks) {
            now.add(&card, &[clock], hertz);
        }
        for (clock, hertz) in by_clock(&slow.clocks_max) {
            highest.add(&card, &[clock], hertz);
        }
        for (reason, bit) in THROTTLE_REASONS {
            let holds = |reasons: u64| flag(reasons & u64::from(bit) != 0);
            throttled.add(&card, &[reason], reading.throttle_reasons.map(holds));
        }
    }
    vec![limits, now, highest, throttled]
}

fn ratio(percent: u32) -> f64 {
    f64::from(percent) / 1e2
}

fn thousandths(number: u32) -> f64 {
    f64::from(number) / 1e3
}

fn by_clock(clocks: &Clocks) -> [(&'static str, Option<f64>); 4] {
    [
        ("graphics", clocks.graphics_megahertz),
        ("sm", clocks.sm_megahertz),
        ("memory", clocks.memory_megahertz),
        ("video", clocks.video_megahertz),
    ]
    .map(|(clock, megahertz)| (clock, megahertz.map(|number| f64::from(number) * 1e6)))
}

fn errors(shown: &Shown) -> Vec<Family> {
    let mut ecc = counter(
        "creo_gpu_ecc_errors_total",
        "Memory errors, by kind and since when they are counted: `volatile` since the driver was loaded or the GPU was reset, `aggregate` in the card's life.",
        &["kind", "span"],
    );
    let mut rows = gauge(
        "creo_gpu_remapped_rows",
        "Rows of memory that were remapped, by the kind of error that led to it.",
        &["kind"],
    );
    let mut nvlink = counter(
        "creo_gpu_nvlink_errors_total",
        "Errors of all NVLink connections, by kind.",
        &["kind"],
    );
    for (card, reading) in answering(shown) {
        for (span, all) in [
            ("volatile", reading.ecc_volatile),
            ("aggregate", reading.ecc_aggregate),
        ] {
            ecc.add(&card, &["corrected", span], all.corrected.map(count));
            ecc.add(&card, &["uncorrected", span], all.uncorrected.map(count));
        }
        if let Some(remapped) = reading.remapped_rows {
            for (kind, number) in [
                ("corrected", remapped.after_corrected),
                ("uncorrected", remapped.after_uncorrected),
            ] {
                rows.add(&card, &[kind], Some(f64::from(number)));
            }
        }
        for ((kind, _), errors) in NVLINK_ERRORS.into_iter().zip(reading.slow.nvlink_errors) {
            nvlink.add(&card, &[kind], errors.map(count));
        }
    }
    vec![ecc, rows, nvlink]
}

fn pcie(shown: &Shown) -> Vec<Family> {
    let mut generation = gauge(
        "creo_gpu_pcie_link_generation",
        "Generation of the PCI Express link: of now, and the highest that card and slot can do.",
        &["at"],
    );
    let mut width = gauge(
        "creo_gpu_pcie_link_width",
        "Lanes of the PCI Express link: of now, and the most that card and slot can do.",
        &["at"],
    );
    let mut traffic = gauge(
        "creo_gpu_pcie_bytes_per_second",
        "Traffic over PCI Express in a moment of the last seconds, as the GPU sees it.",
        &["direction"],
    );
    for (card, reading) in answering(shown) {
        if let Some(link) = reading.pcie {
            generation.add(&card, &["now"], Some(f64::from(link.generation)));
            width.add(&card, &["now"], Some(f64::from(link.width)));
            generation.add(&card, &["best"], Some(f64::from(link.generation_max)));
            width.add(&card, &["best"], Some(f64::from(link.width_max)));
        }
        for (direction, kilobytes) in [
            ("sent", reading.slow.pcie_sent_kilobytes_per_second),
            ("received", reading.slow.pcie_received_kilobytes_per_second),
        ] {
            let bytes = kilobytes.map(|number| f64::from(number) * 1e3);
            traffic.add(&card, &[direction], bytes);
        }
    }
    vec![generation, width, traffic]
}

fn partitions(shown: &Shown) -> Vec<Family> {
    let family = |name, help| Family::new(Kind::Gauge, name, help, &PARTITION, &[]);
    let mut healthy = family(
        "creo_gpu_partition_healthy",
        "Whether the partition may be given to new containers.",
    );
    let mut total = family(
        "creo_gpu_partition_memory_total_bytes",
        "Memory of the partition.",
    );
    let mut used = family(
        "creo_gpu_partition_memory_used_bytes",
        "Memory of the partition in use.",
    );
    let mut free = family(
        "creo_gpu_partition_memory_free_bytes",
        "Memory of the partition that is free.",
    );
    let mut processes = family(
        "creo_gpu_partition_processes",
        "Processes that use the partition.",
    );
    for device in &shown.snapshot.devices {
        let readings = shown.readings.get(&device.gpu.uuid);
        for partition in device.gpu.mig.devices() {
            let labels = partition_labels(&device.gpu, partition);
            let health = device.partition_health(&partition.uuid);
            healthy.add(&labels, &[], Some(flag(health.is_healthy())));
            let Some(reading) = readings.and_then(|all| all.partitions.get(&partition.uuid)) else {
                continue;
            };
            let memory = reading.memory;
            total.add(&labels, &[], memory.map(|memory| count(memory.total)));
            used.add(&labels, &[], memory.map(|memory| count(memory.used)));
            free.add(&labels, &[], memory.map(|memory| count(memory.free)));
            let running = reading
                .processes
                .as_ref()
                .map(|all| count(all.len() as u64));
            processes.add(&labels, &[], running);
        }
    }
    vec![healthy, total, used, free, processes]
}

fn partition_labels(gpu: &Gpu, partition: &MigDevice) -> Vec<String> {
    let mut labels = labels(gpu);
    labels.push(partition.uuid.clone());
    labels.push(shortened(&partition.profile));
    labels
}

/// Who uses the cards and the partitions: of each, one of the words has 1 and the others 0.
fn uses(shown: &Shown, told: &Told) -> Vec<Family> {
    let Some(uses) = told.uses.get() else {
        return Vec::new();
    };
    let mut of_cards = gauge("creo_gpu_use", "Who uses the GPU.", &["use"]);
    let mut of_partitions = Family::new(
        Kind::Gauge,
        "creo_gpu_partition_use",
        "Who uses the partition.",
        &PARTITION,
        &["use"],
    );
    let uses = uses.borrow();
    for device in &shown.snapshot.devices {
        let gpu = &device.gpu;
        let partitions = gpu.mig.devices().iter();
        let all = partitions.map(|one| (&one.uuid, partition_labels(gpu, one), true));
        for (uuid, labels, is_partition) in all.chain([(&gpu.uuid, labels(gpu), false)]) {
            let Some(now) = uses.get(uuid) else {
                continue;
            };
            let family = if is_partition {
                &mut of_partitions
            } else {
                &mut of_cards
            };
            for word in Use::WORDS {
                family.add(&labels, &[word], Some(flag(now.word() == word)));
            }
        }
    }
    vec![of_cards, of_partitions]
}

/// What is offered, and what of it is held.
fn units(told: &Told) -> Vec<Family> {
    let Some(offered) = told.offered.get() else {
        return Vec::new();
    };
    let mut units = Family::new(
        Kind::Gauge,
        "creo_gpu_units",
        "Units that the kubelet is offered, by resource and health.",
        &["resource", "healthy"],
        &[],
    );
    let mut allocated = Family::new(
        Kind::Gauge,
        "creo_gpu_units_allocated",
        "Units of a resource that containers hold.",
        &["resource"],
        &[],
    );
    let mut withheld = Family::new(
        Kind::Gauge,
        "creo_gpu_withheld",
        "GPUs that are not offered, by reason.",
        &["reason"],
        &[],
    );
    let pods = told.pods.get().map(tokio::sync::watch::Receiver::borrow);
    let pods = pods.as_ref().and_then(|pods| pods.as_ref());
    let offered = offered.borrow();
    for (resource, offered) in &offered.units {
        let resource = resource.to_string();
        for healthy in [true, false] {
            let number = (offered.iter())
                .filter(|unit| unit.health.is_healthy() == healthy)
                .count();
            let labels = [resource.clone(), healthy.to_string()];
            units.add(&labels, &[], Some(count(number as u64)));
        }
        let held = pods.map(|pods| {
            offered
                .iter()
                .filter(|unit| {
                    pods.holders(&unit.id)
                        .any(|holder| holder.resource == resource)
                })
                .count()
        });
        allocated.add(&[resource], &[], held.map(|held| count(held as u64)));
    }
    let mut reasons: BTreeMap<&str, u64> = BTreeMap::new();
    for gpu in &offered.withheld {
        *reasons.entry(gpu.reason).or_default() += 1;
    }
    for (reason, number) in reasons {
        withheld.add(&[reason.to_owned()], &[], Some(count(number)));
    }
    vec![units, allocated, withheld]
}

/// Which pods hold the cards, or parts or shares of them.
fn holders(told: &Told, cards: &BTreeMap<String, Vec<String>>) -> Vec<Family> {
    let (Some(pods), Some(offered)) = (told.pods.get(), told.offered.get()) else {
        return Vec::new();
    };
    let mut family = gauge(
        "creo_gpu_allocated",
        "Units of the GPU that a container holds.",
        &["namespace", "pod", "container"],
    );
    let (pods, offered) = (pods.borrow(), offered.borrow());
    let Some(pods) = pods.as_ref() else {
        return Vec::new();
    };
    let mut held: BTreeMap<(&str, [&str; 3]), u64> = BTreeMap::new();
    for (resource, units) in &offered.units {
        let resource = resource.to_string();
        for unit in units {
            let holders = pods.holders(&unit.id);
            for holder in holders.filter(|holder| holder.resource == resource) {
                let who = [
                    holder.namespace.as_str(),
                    holder.pod.as_str(),
                    holder.container.as_str(),
                ];
                *held.entry((&unit.gpu, who)).or_default() += 1;
            }
        }
    }
    for ((gpu, who), number) in held {
        if let Some(card) = cards.get(gpu) {
            family.add(card, &who, Some(count(number)));
        }
    }
    vec![family]
}
