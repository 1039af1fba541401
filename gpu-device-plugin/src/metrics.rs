//! What Prometheus sees of the GPUs and of the plugin. Every label has bounded values: GPUs,
//! known XIDs, and words of this program.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::driver::Snapshot;
use crate::driver::session::Reading;
use crate::health::xid;
use crate::inventory::Gpu;

const GPU_LABELS: [&str; 3] = ["gpu", "model", "uuid"];

/// The metrics of the process. Cloning shares them.
#[derive(Debug, Clone)]
pub struct Metrics {
    driver_up: IntGauge,
    healthy: IntGaugeVec,
    memory_total: IntGaugeVec,
    memory_used: IntGaugeVec,
    temperature: IntGaugeVec,
    power: GaugeVec,
    utilization: GaugeVec,
    xids: IntCounterVec,
    registrations: IntCounterVec,
    allocations: IntCounterVec,
    claims_writes: IntCounterVec,
    /// The labels under which each GPU is shown, by UUID.
    shown: Arc<Mutex<BTreeMap<String, [String; 3]>>>,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let xid_labels = ["gpu", "model", "uuid", "xid"];
        Ok(Self {
            driver_up: {
                let up = IntGauge::new("creo_gpu_driver_up", "Whether the NVIDIA driver answers.")?;
                registry.register(Box::new(up.clone()))?;
                up
            },
            healthy: gauges(
                registry,
                "healthy",
                "Whether the GPU may be given to new containers.",
            )?,
            memory_total: gauges(registry, "memory_total_bytes", "Memory of the GPU.")?,
            memory_used: gauges(registry, "memory_used_bytes", "Memory of the GPU in use.")?,
            temperature: gauges(
                registry,
                "temperature_celsius",
                "Temperature of the GPU's die.",
            )?,
            power: fractions(registry, "power_watts", "Power that the GPU draws.")?,
            utilization: fractions(
                registry,
                "utilization_ratio",
                "Share of the last moments in which a kernel ran, from 0 to 1.",
            )?,
            xids: counters(
                registry,
                "creo_gpu_xids_total",
                "XIDs that the driver reported, by code; `other` where this plugin does not know it.",
                &xid_labels,
            )?,
            registrations: counters(
                registry,
                "creo_gpu_plugin_registrations_total",
                "Registrations with the kubelet, by outcome.",
                &["outcome"],
            )?,
            allocations: counters(
                registry,
                "creo_gpu_plugin_allocations_total",
                "Containers that the kubelet asked devices for, by outcome.",
                &["outcome"],
            )?,
            claims_writes: counters(
                registry,
                "creo_gpu_plugin_claims_writes_total",
                "Writes of this node's claims, by outcome.",
                &["outcome"],
            )?,
            shown: Arc::default(),
        })
    }

    /// Shows what is known of the GPUs, and nothing of those that are not known any more.
    pub fn snapshot(&self, snapshot: &Snapshot) {
        self.driver_up.set(i64::from(snapshot.driver.is_ok()));
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let now: BTreeMap<String, [String; 3]> = snapshot
            .devices
            .iter()
            .map(|device| (device.gpu.uuid.clone(), labels(&device.gpu)))
            .collect();
        for (uuid, old) in shown.iter() {
            if now.get(uuid) != Some(old) {
                self.forget(old);
            }
        }
        for device in &snapshot.devices {
            let labels = labels(&device.gpu);
            self.healthy
                .with_label_values(&labels)
                .set(i64::from(device.health.is_healthy()));
            self.memory_total
                .with_label_values(&labels)
                .set(whole(device.gpu.memory_bytes));
        }
        *shown = now;
    }

    fn forget(&self, labels: &[String; 3]) {
        for family in [
            &self.healthy,
            &self.memory_total,
            &self.memory_used,
            &self.temperature,
        ] {
            // It is gone already where the GPU never had a value.
            let _ = family.remove_label_values(labels);
        }
        for family in [&self.power, &self.utilization] {
            let _ = family.remove_label_values(labels);
        }
    }

    /// Shows what a GPU says of itself.
    pub fn reading(&self, gpu: &Gpu, reading: &Reading) {
        let labels = labels(gpu);
        if let Some(bytes) = reading.memory.map(|memory| memory.used) {
            self.memory_used
                .with_label_values(&labels)
                .set(whole(bytes));
        }
        if let Some(celsius) = reading.temperature_celsius {
            self.temperature
                .with_label_values(&labels)
                .set(i64::from(celsius));
        }
        if let Some(milliwatts) = reading.power_milliwatts {
            self.power
                .with_label_values(&labels)
                .set(f64::from(milliwatts) / 1_000.0);
        }
        if let Some(percent) = reading.utilization_percent {
            self.utilization
                .with_label_values(&labels)
                .set(f64::from(percent) / 100.0);
        }
    }

    /// Counts an XID.
    pub fn xid(&self, uuid: &str, code: u64) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some([gpu, model, uuid]) = shown.get(uuid) {
            self.xids
                .with_label_values(&[gpu, model, uuid, &xid::label(code)])
                .inc();
        }
    }

    /// Counts an attempt to register with the kubelet.
    pub fn registration(&self, succeeded: bool) {
        self.registrations
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }

    /// Counts a container that the kubelet asked devices for.
    pub fn allocation(&self, succeeded: bool) {
        self.allocations
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }

    /// Counts an attempt to write the claims.
    pub fn claims_write(&self, succeeded: bool) {
        self.claims_writes
            .with_label_values(&[outcome(succeeded)])
            .inc();
    }
}

fn outcome(succeeded: bool) -> &'static str {
    if succeeded { "ok" } else { "error" }
}

fn labels(gpu: &Gpu) -> [String; 3] {
    [gpu.index.to_string(), gpu.model.clone(), gpu.uuid.clone()]
}

/// A count that no machine has is shown as the largest number there is.
fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn gauges(registry: &Registry, name: &str, help: &str) -> Result<IntGaugeVec, prometheus::Error> {
    let family = IntGaugeVec::new(Opts::new(format!("creo_gpu_{name}"), help), &GPU_LABELS)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn fractions(registry: &Registry, name: &str, help: &str) -> Result<GaugeVec, prometheus::Error> {
    let family = GaugeVec::new(Opts::new(format!("creo_gpu_{name}"), help), &GPU_LABELS)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let family = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(family.clone()))?;
    Ok(family)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::Device;
    use crate::health::{Finding, Health};
    use crate::inventory::Versions;

    fn device(index: u32) -> Device {
        Device {
            gpu: Gpu {
                index,
                uuid: format!("GPU-{index}"),
                model: "T4".to_owned(),
                memory_bytes: 1 << 34,
                compute_capability: "7.5".to_owned(),
                pci_address: String::new(),
                minor: index,
                ..Gpu::default()
            },
            health: Health::healthy(),
            partitions: BTreeMap::new(),
        }
    }

    fn snapshot(devices: Vec<Device>) -> Snapshot {
        Snapshot {
            driver: Ok(Versions {
                driver: "1".to_owned(),
                cuda: "12.8".to_owned(),
            }),
            devices,
            ..Snapshot::default()
        }
    }

    fn shown(registry: &Registry) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(&registry.gather())
            .unwrap()
    }

    #[test]
    fn a_gpu_is_shown_with_its_health_and_forgotten_with_its_values() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        let mut ill = device(1);
        ill.health = Health::of([Finding::Lost]);
        metrics.snapshot(&snapshot(vec![device(0), ill]));
        metrics.reading(
            &device(0).gpu,
            &Reading {
                power_milliwatts: Some(70_500),
                temperature_celsius: Some(40),
                ..Reading::default()
            },
        );
        let text = shown(&registry);
        assert!(text.contains("creo_gpu_healthy{gpu=\"0\",model=\"T4\",uuid=\"GPU-0\"} 1"));
        assert!(text.contains("creo_gpu_healthy{gpu=\"1\",model=\"T4\",uuid=\"GPU-1\"} 0"));
        assert!(text.contains("creo_gpu_power_watts{gpu=\"0\",model=\"T4\",uuid=\"GPU-0\"} 70.5"));
        metrics.snapshot(&snapshot(vec![device(1)]));
        let text = shown(&registry);
        assert!(!text.contains("GPU-0"), "{text}");
        assert!(text.contains("creo_gpu_driver_up 1"));
    }

    #[test]
    fn any_number_of_unknown_xids_is_one_series() {
        let registry = Registry::new();
        let metrics = Metrics::register(&registry).unwrap();
        metrics.snapshot(&snapshot(vec![device(0)]));
        for code in 1_000..2_000 {
            metrics.xid("GPU-0", code);
        }
        metrics.xid("GPU-unknown", 79);
        let text = shown(&registry);
        assert!(text.contains("xid=\"other\"} 1000"), "{text}");
        assert_eq!(text.matches("creo_gpu_xids_total{").count(), 1);
    }
}
