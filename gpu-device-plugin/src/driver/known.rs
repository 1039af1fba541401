//! One card that was seen since the process started, and what is known of it.

use std::collections::BTreeMap;
use std::time::Duration;

use nvml_wrapper_sys::bindings as sys;

use super::Device;
use super::session::{Happened, Reading, RecoveryAsked};
use crate::health::{Counters, Instance, Seen, Slowdown, State, Tracker};
use crate::inventory::{Gpu, Mig, MigDevice};

/// A card and its health over time.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) gpu: Gpu,
    pub(super) tracker: Tracker,
}

impl Known {
    /// The card was described anew. Its links are told later.
    pub(super) fn described(&mut self, gpu: Gpu) {
        let pcie = gpu.pcie.map(|now| now.or_better(self.gpu.pcie));
        let links = std::mem::take(&mut self.gpu.links);
        self.gpu = Gpu { pcie, links, ..gpu };
    }

    /// The driver reported something of the card.
    pub(super) fn heard(&mut self, event: &Happened, now: Duration) {
        // Without partitions the numbers mean nothing, whatever they are.
        let part = match (&self.gpu.mig, event.instance) {
            (Mig::On(_), (Some(gpu_instance), compute_instance)) => Some(Instance {
                gpu_instance,
                compute_instance,
            }),
            _ => None,
        };
        self.tracker.reported(event.xid, part, now);
    }

    /// The card said this of itself.
    pub(super) fn read(&mut self, reading: &Reading, now: Duration) {
        self.tracker.answered(&seen(reading), now);
        self.gpu.mig = reading.mig.clone();
        self.gpu.ecc_enabled = reading.ecc_enabled;
        self.gpu.power_limit_milliwatts = reading.power_limit_milliwatts;
        self.gpu.pcie = (reading.pcie)
            .map(|now| now.or_better(self.gpu.pcie))
            .or(self.gpu.pcie);
    }

    /// The card as it is told to others.
    pub(super) fn device(&self) -> Device {
        let own = |partition: &MigDevice| {
            let health = self
                .tracker
                .instance_health(partition.gpu_instance, partition.compute_instance);
            (!health.findings().is_empty()).then(|| (partition.uuid.clone(), health))
        };
        let partitions: BTreeMap<_, _> = self.gpu.mig.devices().iter().filter_map(own).collect();
        Device {
            gpu: self.gpu.clone(),
            health: self.tracker.health(),
            partitions,
        }
    }
}

fn seen(reading: &Reading) -> Seen {
    let rows = reading.remapped_rows;
    Seen {
        counters: Counters {
            uncorrected_ecc_errors: reading.ecc_volatile.uncorrected,
            corrected_ecc_errors: reading.ecc_volatile.corrected,
            energy_millijoules: reading.energy_millijoules,
            pcie_replays: reading.slow.pcie_replays.map(u64::from),
            nvlink_errors: (reading.slow.nvlink_errors.into_iter().flatten())
                .reduce(u64::saturating_add),
        },
        state: State {
            row_remap_pending: rows.map(|rows| rows.pending),
            row_remap_failed: rows.map(|rows| rows.failed),
            retired_pages_pending: reading.retired_pages_pending,
            sram_threshold_exceeded: reading.sram_threshold_exceeded,
            recovery_known: reading.recovery.is_some(),
            recovery: match reading.recovery {
                Some(RecoveryAsked::Something(what)) => Some(what),
                Some(RecoveryAsked::Nothing) | None => None,
            },
            slowdowns: slowdowns(reading.throttle_reasons.unwrap_or(0)),
            nvlinks_up: reading.nvlinks_up,
            pcie: reading.pcie,
            busy: reading.utilization_percent > Some(0),
            instances: reading
                .mig
                .devices()
                .iter()
                .map(|partition| (partition.gpu_instance, partition.compute_instance))
                .collect(),
        },
    }
}

/// What NVML's bits say of heat and power supply; that a card rests or keeps to its power limit
/// is nothing to tell.
fn slowdowns(reasons: u64) -> Vec<Slowdown> {
    [
        (
            sys::nvmlClocksEventReasonSwThermalSlowdown,
            Slowdown::Thermal,
        ),
        (
            sys::nvmlClocksThrottleReasonHwThermalSlowdown,
            Slowdown::HardwareThermal,
        ),
        (
            sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
            Slowdown::PowerBrake,
        ),
    ]
    .into_iter()
    .filter(|(bit, _)| reasons & u64::from(*bit) != 0)
    .map(|(_, why)| why)
    .collect()
}
