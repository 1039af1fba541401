//! What the node says of itself, given what its driver says and what of it is offered.

use std::collections::BTreeSet;

use creo_api::condition::MAX_MESSAGE_CHARS;
use creo_api::creo_node::{
    ClaimedFinding, ClaimedGpu, ClaimedLink, ClaimedPartition, ClaimedPcieLink, Claims, GpuUse,
    LinkOver, MAX_FINDING_CHARS, MAX_FINDINGS, MAX_GPUS, MAX_LINKS, MAX_MEMORY_BYTES,
    MAX_MODEL_CHARS, MAX_PARTITION_REASON_CHARS, MAX_PARTITIONS, MAX_REASON_CHARS, MAX_SHARES,
    MAX_UUID_CHARS, MigMode, NotOffered, OfferedAs, Severity,
};

use crate::driver::{Device, Snapshot};
use crate::health::{self, Health};
use crate::inventory::{Link, LinkKind, Mig, MigDevice, PcieLink};
use crate::processes::{Use, Uses};
use crate::resource::Resource;
use crate::unit::{Offered, Part, Unit, Withheld};

/// What the node says of itself, given what its driver says, what of it is offered and whose
/// processes run on it.
#[must_use]
pub fn claims(snapshot: &Snapshot, offered: &Offered, uses: &Uses, resource: &Resource) -> Claims {
    let versions = snapshot.driver.as_ref().ok();
    let known = |text: &String| (!text.is_empty()).then(|| text.clone());
    Claims {
        driver_version: versions.and_then(|versions| known(&versions.driver)),
        cuda_version: versions.and_then(|versions| known(&versions.cuda)),
        resource: resource.to_string(),
        gpus: snapshot
            .devices
            .iter()
            .take(MAX_GPUS)
            .map(|device| claimed(device, offered, uses))
            .collect(),
        message: message(snapshot),
    }
}

fn claimed(device: &Device, offered: &Offered, uses: &Uses) -> ClaimedGpu {
    let gpu = &device.gpu;
    let offer = Offer::of(&gpu.uuid, offered);
    // A unit may be ill where the device is not: a person took it out of service.
    let health = match offer.units.first() {
        Some((_, unit)) if !matches!(unit.part, Part::Mig(_)) => &unit.health,
        _ => &device.health,
    };
    ClaimedGpu {
        index: number(gpu.index),
        uuid: shortened(&gpu.uuid, MAX_UUID_CHARS),
        model: shortened(&gpu.model, MAX_MODEL_CHARS),
        memory_bytes: memory(gpu.memory_bytes),
        compute_capability: gpu.compute_capability.clone(),
        healthy: health.is_healthy(),
        reason: reason(health, MAX_REASON_CHARS),
        findings: health
            .findings()
            .iter()
            .take(MAX_FINDINGS)
            .map(finding)
            .collect(),
        offered_as: offer.offered_as(),
        resource: offer.resource(),
        shares: offer.shares(),
        not_offered: offer.not_offered(),
        mig_mode: match &gpu.mig {
            Mig::Unsupported => None,
            Mig::Off => Some(MigMode::Off),
            Mig::On(_) => Some(MigMode::On),
        },
        partitions: gpu
            .mig
            .devices()
            .iter()
            .take(MAX_PARTITIONS)
            .map(|partition| claimed_partition(device, partition, &offer))
            .collect(),
        numa_node: gpu.numa_node.map(number),
        pcie: gpu.pcie.map(pcie),
        ecc_enabled: gpu.ecc_enabled,
        power_limit_milliwatts: gpu.power_limit_milliwatts.map(i64::from),
        links: links(&gpu.links),
        in_use: uses.get(&gpu.uuid).map(in_use),
    }
}

fn in_use(seen: &Use) -> GpuUse {
    match seen {
        Use::Idle => GpuUse::Idle,
        Use::Ours => GpuUse::InUse,
        Use::OwnerBusy { .. } => GpuUse::OwnerBusy,
        Use::Intruder { .. } => GpuUse::Intruder,
        Use::Unknown => GpuUse::Unknown,
    }
}

/// What is offered of one card.
struct Offer<'a> {
    units: Vec<(&'a Resource, &'a Unit)>,
    withheld: Vec<&'a Withheld>,
}

impl<'a> Offer<'a> {
    fn of(uuid: &str, offered: &'a Offered) -> Self {
        let all = offered.units.iter();
        let units =
            all.flat_map(|(resource, units)| units.iter().map(move |unit| (resource, unit)));
        Self {
            units: units.filter(|(_, unit)| unit.gpu == uuid).collect(),
            withheld: offered
                .withheld
                .iter()
                .filter(|one| one.gpu == uuid)
                .collect(),
        }
    }

    fn offered_as(&self) -> Option<OfferedAs> {
        let (_, first) = self.units.first()?;
        Some(match first.part {
            Part::Whole => OfferedAs::Whole,
            Part::Mig(_) => OfferedAs::Partitions,
            Part::Share { .. } => OfferedAs::Shares,
        })
    }

    /// The resource of the card itself; partitions may be of several.
    fn resource(&self) -> Option<String> {
        let (resource, first) = self.units.first()?;
        (!matches!(first.part, Part::Mig(_))).then(|| resource.to_string())
    }

    fn shares(&self) -> Option<i32> {
        match self.units.first()?.1.part {
            Part::Share { of, .. } => i32::try_from(of).ok().map(|of| of.clamp(1, MAX_SHARES)),
            Part::Whole | Part::Mig(_) => None,
        }
    }

    /// Why nothing of the card is offered.
    fn not_offered(&self) -> Option<NotOffered> {
        if !self.units.is_empty() {
            return None;
        }
        let whole = self
            .withheld
            .iter()
            .find(|one| !matches!(one.part, Part::Mig(_)));
        Some(whole.or(self.withheld.first()).map_or_else(
            || NotOffered {
                reason: "NotDecided".to_owned(),
                message: "the device plugin has not decided yet how to offer it".to_owned(),
            },
            |withheld| not_offered(withheld),
        ))
    }

    /// Why this partition is not offered.
    fn partition_not_offered(&self, uuid: &str) -> Option<NotOffered> {
        let is_it = |one: &&&Withheld| matches!(&one.part, Part::Mig(own) if own == uuid);
        self.withheld.iter().find(is_it).map(|one| not_offered(one))
    }

    fn partition(&self, uuid: &str) -> Option<&(&'a Resource, &'a Unit)> {
        let is_it = |unit: &Unit| matches!(&unit.part, Part::Mig(own) if own == uuid);
        self.units.iter().find(|(_, unit)| is_it(unit))
    }
}

fn not_offered(withheld: &Withheld) -> NotOffered {
    NotOffered {
        reason: withheld.reason.to_owned(),
        message: shortened(&withheld.message, MAX_FINDING_CHARS),
    }
}

fn claimed_partition(
    device: &Device,
    partition: &MigDevice,
    offer: &Offer<'_>,
) -> ClaimedPartition {
    let unit = offer.partition(&partition.uuid);
    let health = unit.map_or_else(
        || device.partition_health(&partition.uuid),
        |(_, unit)| &unit.health,
    );
    ClaimedPartition {
        uuid: shortened(&partition.uuid, MAX_UUID_CHARS),
        profile: shortened(&partition.profile, 64),
        gpu_instance: number(partition.gpu_instance),
        compute_instance: number(partition.compute_instance),
        memory_bytes: memory(partition.memory_bytes),
        healthy: health.is_healthy(),
        reason: reason(health, MAX_PARTITION_REASON_CHARS),
        resource: unit.map(|(resource, _)| resource.to_string()),
        not_offered: offer.partition_not_offered(&partition.uuid),
    }
}

fn finding(finding: &health::Finding) -> ClaimedFinding {
    ClaimedFinding {
        reason: finding.reason().to_owned(),
        severity: match finding.severity() {
            health::Severity::Note => Severity::Note,
            health::Severity::Drain => Severity::Drain,
            health::Severity::Out => Severity::Out,
        },
        message: shortened(&finding.to_string(), MAX_FINDING_CHARS),
    }
}

/// What is wrong with something that is not healthy: the worst finding.
fn reason(health: &Health, limit: usize) -> Option<String> {
    let worst = health.worst().filter(|_| !health.is_healthy())?;
    Some(shortened(&worst.to_string(), limit))
}

fn pcie(link: PcieLink) -> ClaimedPcieLink {
    let small = |figure: u32| number(figure.min(255));
    ClaimedPcieLink {
        generation: small(link.generation),
        generation_max: small(link.generation_max),
        width: small(link.width),
        width_max: small(link.width_max),
    }
}

/// The best ways first, and ways that are alike in the order of the other cards' identities, so
/// that the same links are always told alike.
fn links(links: &[Link]) -> Vec<ClaimedLink> {
    let mut links: Vec<&Link> = links.iter().collect();
    links.sort_by(|a, b| b.kind.cmp(&a.kind).then_with(|| a.peer.cmp(&b.peer)));
    let mut peers = BTreeSet::new();
    links.retain(|link| peers.insert(&link.peer));
    let told = |link: &Link| {
        let (over, lanes) = match link.kind {
            LinkKind::NvLink(lanes) => (LinkOver::NvLink, Some(number(lanes.clamp(1, 255)))),
            LinkKind::Board => (LinkOver::Board, None),
            LinkKind::PcieSwitch => (LinkOver::PcieSwitch, None),
            LinkKind::PcieSwitches => (LinkOver::PcieSwitches, None),
        };
        ClaimedLink {
            peer: shortened(&link.peer, MAX_UUID_CHARS),
            over,
            lanes,
        }
    };
    links.into_iter().take(MAX_LINKS).map(told).collect()
}

/// Why there are no GPUs, or fewer than there could be.
fn message(snapshot: &Snapshot) -> Option<String> {
    let mut parts = Vec::new();
    match &snapshot.driver {
        Err(why) => parts.push(why.clone()),
        Ok(_) if snapshot.devices.is_empty() && snapshot.unreadable.is_empty() => {
            parts.push(
                "the NVIDIA driver counts no GPUs; look at lspci and the kernel's log".to_owned(),
            );
        }
        Ok(_) => {}
    }
    parts.extend(snapshot.deaf.clone());
    for gpu in &snapshot.unreadable {
        parts.push(format!("GPU {} cannot be read: {}", gpu.index, gpu.why));
    }
    (!parts.is_empty()).then(|| shortened(&parts.join("; "), MAX_MESSAGE_CHARS))
}

/// The message with this before it.
pub fn with_first(first: Option<&str>, message: Option<String>) -> Option<String> {
    match (first, message) {
        (None, message) => message,
        (Some(first), None) => Some(shortened(first, MAX_MESSAGE_CHARS)),
        (Some(first), Some(message)) => {
            Some(shortened(&format!("{first}; {message}"), MAX_MESSAGE_CHARS))
        }
    }
}

/// A number of the driver's as the schema takes it.
fn number(number: u32) -> i32 {
    i32::try_from(number.min(4095)).unwrap_or(4095)
}

fn memory(bytes: u64) -> i64 {
    i64::try_from(bytes).map_or(MAX_MEMORY_BYTES, |bytes| bytes.min(MAX_MEMORY_BYTES))
}

fn shortened(text: &str, limit: usize) -> String {
    text.chars().take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::health::{Finding, Health};
    use crate::inventory::{Gpu, Unreadable, Versions};

    fn resource() -> Resource {
        "creo.cloud/gpu".parse().unwrap()
    }

    fn snapshot(devices: Vec<Device>) -> Snapshot {
        Snapshot {
            driver: Ok(Versions {
                driver: "570.133.20".to_owned(),
                cuda: "12.8".to_owned(),
            }),
            devices,
            ..Snapshot::default()
        }
    }

    fn device(health: Health) -> Device {
        Device {
            gpu: Gpu {
                index: 3,
                uuid: "GPU-3".to_owned(),
                model: "Tesla T4".to_owned(),
                memory_bytes: 16 << 30,
                compute_capability: "7.5".to_owned(),
                pci_address: String::new(),
                minor: 3,
                ..Gpu::default()
            },
            health,
            partitions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_healthy_gpu_is_claimed_without_a_reason_and_an_ill_one_with_one() {
        let claims = claims(
            &snapshot(vec![
                device(Health::healthy()),
                device(Health::of([Finding::Xid(79)])),
            ]),
            &Offered::default(),
            &Uses::from([("GPU-3".to_owned(), Use::Ours)]),
            &resource(),
        );
        assert_eq!(claims.driver_version.as_deref(), Some("570.133.20"));
        assert_eq!(claims.cuda_version.as_deref(), Some("12.8"));
        assert_eq!(claims.resource, "creo.cloud/gpu");
        assert_eq!(claims.message, None);
        assert_eq!(
            claims.gpus[0],
            ClaimedGpu {
                index: 3,
                uuid: "GPU-3".to_owned(),
                model: "Tesla T4".to_owned(),
                memory_bytes: 17_179_869_184,
                compute_capability: "7.5".to_owned(),
                healthy: true,
                not_offered: Some(NotOffered {
                    reason: "NotDecided".to_owned(),
                    message: "the device plugin has not decided yet how to offer it".to_owned(),
                }),
                in_use: Some(GpuUse::InUse),
                ..ClaimedGpu::default()
            }
        );
        assert!(!claims.gpus[1].healthy);
        assert!(
            claims.gpus[1]
                .reason
                .as_ref()
                .unwrap()
                .starts_with("XidError: XID 79")
        );
    }

    #[test]
    fn without_a_driver_the_claims_say_why_and_no_version() {
        let without = Snapshot {
            driver: Err("no NVIDIA driver: install it".to_owned()),
            ..Snapshot::default()
        };
        let claims = claims(&without, &Offered::default(), &Uses::new(), &resource());
        assert_eq!(claims.driver_version, None);
        assert_eq!(
            claims.message.as_deref(),
            Some("no NVIDIA driver: install it")
        );
        assert!(claims.gpus.is_empty());
    }

    #[test]
    fn a_gpu_that_cannot_be_read_is_named_in_the_message() {
        let mut some = snapshot(vec![device(Health::healthy())]);
        some.unreadable.push(Unreadable {
            index: 1,
            why: "GPU is lost".to_owned(),
        });
        let message = claims(&some, &Offered::default(), &Uses::new(), &resource()).message;
        assert_eq!(
            message.as_deref(),
            Some("GPU 1 cannot be read: GPU is lost")
        );
    }

    #[test]
    fn whatever_the_driver_says_fits_the_schema() {
        let mut huge = device(Health::of([Finding::Unreadable("x".repeat(9_000))]));
        huge.gpu.model = "ö".repeat(500);
        huge.gpu.memory_bytes = u64::MAX;
        let mut many = snapshot(vec![huge; 500]);
        many.deaf = Some("y".repeat(9_000));
        let claims = claims(&many, &Offered::default(), &Uses::new(), &resource());
        assert_eq!(claims.gpus.len(), 128);
        assert_eq!(claims.gpus[0].model.chars().count(), 128);
        assert_eq!(claims.gpus[0].memory_bytes, 1 << 50);
        assert_eq!(
            claims.gpus[0].reason.as_ref().unwrap().chars().count(),
            1_024
        );
        assert_eq!(claims.message.unwrap().chars().count(), 4_096);
    }

    fn unit(part: Part, health: Health) -> Unit {
        Unit {
            id: "id".to_owned(),
            gpu: "GPU-3".to_owned(),
            part,
            numa_node: None,
            memory_bytes: 0,
            health,
        }
    }

    fn named(name: &str) -> Resource {
        let class = name.strip_prefix("creo.cloud/").unwrap();
        resource().sibling(class.to_owned())
    }

    /// What is claimed of a healthy card of which this is offered.
    fn claimed_with(gpu: Gpu, units: Vec<(&str, Unit)>, withheld: Vec<Withheld>) -> ClaimedGpu {
        let mut offered = Offered {
            withheld,
            ..Offered::default()
        };
        for (resource, unit) in units {
            let units = offered.units.entry(named(resource)).or_default();
            units.push(unit);
        }
        let mut device = device(Health::healthy());
        device.gpu = Gpu {
            uuid: "GPU-3".to_owned(),
            ..gpu
        };
        let claims = claims(&snapshot(vec![device]), &offered, &Uses::new(), &resource());
        claims.gpus.into_iter().next().unwrap()
    }

    #[test]
    fn how_a_card_is_offered_and_under_which_name_is_claimed() {
        let whole = claimed_with(
            Gpu::default(),
            vec![(
                "creo.cloud/gpu-tesla-t4",
                unit(Part::Whole, Health::healthy()),
            )],
            Vec::new(),
        );
        assert_eq!(whole.offered_as, Some(OfferedAs::Whole));
        assert_eq!(whole.resource.as_deref(), Some("creo.cloud/gpu-tesla-t4"));
        let share = |number| unit(Part::Share { number, of: 2 }, Health::healthy());
        let shared = claimed_with(
            Gpu::default(),
            vec![("creo.cloud/gpu", share(0)), ("creo.cloud/gpu", share(1))],
            Vec::new(),
        );
        assert_eq!(
            (shared.offered_as, shared.shares),
            (Some(OfferedAs::Shares), Some(2))
        );
    }

    #[test]
    fn each_partition_is_claimed_with_its_own_resource_and_health() {
        let partition = |uuid: &str, profile: &str| MigDevice {
            uuid: uuid.to_owned(),
            profile: profile.to_owned(),
            ..MigDevice::default()
        };
        let gpu = Gpu {
            mig: Mig::On(vec![
                partition("MIG-1", "1g.10gb"),
                partition("MIG-2", "3g.40gb"),
                partition("MIG-3", "3g.40gb"),
            ]),
            ..Gpu::default()
        };
        let ill = Health::of([Finding::Xid(94)]);
        let claimed = claimed_with(
            gpu,
            vec![
                (
                    "creo.cloud/mig-1g.10gb",
                    unit(Part::Mig("MIG-1".to_owned()), Health::healthy()),
                ),
                (
                    "creo.cloud/mig-3g.40gb",
                    unit(Part::Mig("MIG-2".to_owned()), ill),
                ),
            ],
            vec![Withheld {
                gpu: "GPU-3".to_owned(),
                part: Part::Mig("MIG-3".to_owned()),
                reason: "Excluded",
                message: "by the configuration".to_owned(),
            }],
        );
        assert_eq!(claimed.offered_as, Some(OfferedAs::Partitions));
        assert_eq!(claimed.resource, None);
        assert_eq!(claimed.mig_mode, Some(MigMode::On));
        assert!(claimed.healthy, "the card itself is in order");
        assert_eq!(claimed.not_offered, None);
        let withheld = claimed.partitions[2].not_offered.as_ref().unwrap();
        assert_eq!(withheld.reason, "Excluded");
        let told: Vec<_> = claimed
            .partitions
            .iter()
            .map(|one| (one.resource.as_deref(), one.healthy, one.reason.is_some()))
            .collect();
        assert_eq!(
            told,
            [
                (Some("creo.cloud/mig-1g.10gb"), true, false),
                (Some("creo.cloud/mig-3g.40gb"), false, true),
                (None, true, false),
            ]
        );
    }

    #[test]
    fn a_card_that_is_withheld_says_why() {
        let withheld = Withheld {
            gpu: "GPU-3".to_owned(),
            part: Part::Whole,
            reason: "DeviceConflict",
            message: "nvidia.com/gpu counts it as well; remove that plugin".to_owned(),
        };
        let claimed = claimed_with(Gpu::default(), Vec::new(), vec![withheld]);
        assert_eq!((claimed.offered_as, claimed.resource), (None, None));
        assert_eq!(claimed.not_offered.unwrap().reason, "DeviceConflict");
    }

    #[test]
    fn links_are_told_best_first_and_each_peer_once() {
        let link = |peer: &str, kind| Link {
            peer: peer.to_owned(),
            kind,
        };
        let told = links(&[
            link("c", LinkKind::PcieSwitch),
            link("b", LinkKind::PcieSwitches),
            link("b", LinkKind::NvLink(900)),
            link("a", LinkKind::PcieSwitch),
        ]);
        let told: Vec<_> = told
            .iter()
            .map(|link| (link.peer.as_str(), link.over, link.lanes))
            .collect();
        assert_eq!(
            told,
            [
                ("b", LinkOver::NvLink, Some(255)),
                ("a", LinkOver::PcieSwitch, None),
                ("c", LinkOver::PcieSwitch, None),
            ]
        );
    }
}
