//! What is logged of the driver and its GPUs: each change, once.

use super::{Device, Snapshot};
use crate::health::{Health, Severity};

/// Logs what changed.
pub(super) fn report(before: &Snapshot, after: &Snapshot) {
    if before.driver != after.driver {
        match &after.driver {
            Ok(versions) => tracing::info!(
                driver = versions.driver,
                cuda = versions.cuda,
                gpus = after.devices.len(),
                "the NVIDIA driver answers"
            ),
            Err(why) => tracing::warn!("{why}"),
        }
    }
    if before.deaf != after.deaf
        && let Some(why) = &after.deaf
    {
        tracing::error!("{why}");
    }
    if before.unreadable != after.unreadable {
        for gpu in &after.unreadable {
            tracing::error!(gpu = gpu.index, "the GPU cannot be read: {}", gpu.why);
        }
    }
    for device in &after.devices {
        let old = before
            .devices
            .iter()
            .find(|old| old.gpu.uuid == device.gpu.uuid);
        report_device(old, device);
    }
}

fn report_device(old: Option<&Device>, device: &Device) {
    let (gpu, uuid) = (device.gpu.index, &device.gpu.uuid);
    report_health(gpu, uuid, old.map(|old| &old.health), &device.health);
    let fine = Health::healthy();
    for partition in device.gpu.mig.devices() {
        let own = |device: &Device| device.partitions.get(&partition.uuid).cloned();
        let before = old.map(|old| own(old).unwrap_or_default());
        let now = device.partitions.get(&partition.uuid).unwrap_or(&fine);
        report_health(gpu, &partition.uuid, before.as_ref(), now);
    }
    if let Some(old) = old
        && old.gpu.mig != device.gpu.mig
    {
        tracing::info!(
            gpu,
            uuid,
            partitions = device.gpu.mig.devices().len(),
            "the GPU is partitioned in another way"
        );
    }
}

fn report_health(gpu: u32, uuid: &str, before: Option<&Health>, now: &Health) {
    let known = before.map_or(&[][..], Health::findings);
    for finding in now.findings() {
        if known.contains(finding) {
            continue;
        }
        match finding.severity() {
            Severity::Note => tracing::warn!(gpu, uuid, "{finding}"),
            Severity::Drain | Severity::Out => tracing::error!(gpu, uuid, "{finding}"),
        }
    }
    if now.is_healthy() && before.is_some_and(|before| !before.is_healthy()) {
        tracing::info!(gpu, uuid, "healthy again");
    }
}
