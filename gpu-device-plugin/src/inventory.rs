//! What is in the machine: the GPUs and their driver.

use std::fmt::Write as _;

use serde::Serialize;

/// Widest table that is printed, in columns.
const TABLE_COLUMNS: usize = 100;
/// Longest name of a model in a table, in characters.
const MODEL_COLUMNS: usize = 24;

/// The driver's versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Version of the kernel driver, such as `570.133.20`; empty when the library does not say.
    pub driver: String,
    /// CUDA version that the driver supports, such as `12.8`; empty when it does not say.
    pub cuda: String,
}

/// One GPU: what does not change while the driver is loaded, but for its partitions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gpu {
    /// The driver's number of the GPU.
    pub index: u32,
    /// The GPU's name everywhere: `GPU-` and a UUID.
    pub uuid: String,
    /// The product's name.
    pub model: String,
    /// Memory of the card, in bytes.
    pub memory_bytes: u64,
    /// CUDA compute capability, such as `8.9`.
    pub compute_capability: String,
    /// PCI address, such as `00000000:01:00.0`; empty when the driver does not say.
    pub pci_address: String,
    /// N of `/dev/nvidiaN`.
    pub minor: u32,
    /// The NUMA node that the card is attached to, where the machine says so.
    pub numa_node: Option<u32>,
    /// The card's PCI Express link, where the driver says.
    pub pcie: Option<PcieLink>,
    /// Whether error correction is on; nothing where the card has none.
    pub ecc_enabled: Option<bool>,
    /// The power limit that is enforced, in milliwatts, where the driver says.
    pub power_limit_milliwatts: Option<u32>,
    /// Whether and how the card is partitioned.
    pub mig: Mig,
    /// How the card reaches the others, by their UUID; those that it reaches over the
    /// machine's processors alone are left out.
    pub links: Vec<Link>,
}

/// A PCI Express link, at its best since the plugin started and as card and slot could have
/// it: a card that rests slows its link down, so that the link of this moment says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PcieLink {
    /// Generation that was seen.
    pub generation: u32,
    /// Generation that card and slot can do.
    pub generation_max: u32,
    /// Lanes that were seen.
    pub width: u32,
    /// Lanes that card and slot can do.
    pub width_max: u32,
}

impl PcieLink {
    /// The better of what is seen now and what was seen before; what is possible is as now.
    #[must_use]
    pub fn or_better(self, before: Option<Self>) -> Self {
        match before {
            Some(before) => Self {
                generation: self.generation.max(before.generation),
                width: self.width.max(before.width),
                ..self
            },
            None => self,
        }
    }
}

/// Whether and how a card is partitioned (Multi-Instance GPU).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "mode", content = "devices")]
pub enum Mig {
    /// The card cannot be partitioned.
    #[default]
    Unsupported,
    /// It can be and is not.
    Off,
    /// It is, into these, by GPU instance and compute instance. While it is, the card as a
    /// whole cannot be used.
    On(Vec<MigDevice>),
}

impl Mig {
    /// The partitions; none where the card is not partitioned.
    #[must_use]
    pub fn devices(&self) -> &[MigDevice] {
        match self {
            Self::On(devices) => devices,
            Self::Unsupported | Self::Off => &[],
        }
    }
}

/// One partition of a card.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigDevice {
    /// The partition's name everywhere: `MIG-` and a UUID.
    pub uuid: String,
    /// NVIDIA's name of its size, such as `1g.10gb` or `1c.3g.20gb`.
    pub profile: String,
    /// Number of the GPU instance on the card.
    pub gpu_instance: u32,
    /// Number of the compute instance in the GPU instance.
    pub compute_instance: u32,
    /// Memory of the GPU instance, in bytes.
    pub memory_bytes: u64,
}

/// A way from one card to another that is shorter than the one over the processors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// UUID of the other card.
    pub peer: String,
    /// What the way goes over.
    pub kind: LinkKind,
}

/// What a way between two cards goes over; the greater one is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase", tag = "over", content = "lanes")]
pub enum LinkKind {
    /// One or more PCI Express switches, without the host bridge.
    PcieSwitches,
    /// One PCI Express switch.
    PcieSwitch,
    /// Both are on one board.
    Board,
    /// This many NVLink connections, directly or over NVSwitches.
    NvLink(u32),
}

/// A GPU that the driver counts and cannot describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unreadable {
    /// The driver's number of the GPU.
    pub index: u32,
    /// What the driver answered.
    pub why: String,
}

/// Everything that the driver counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// The driver's versions.
    pub versions: Versions,
    /// The GPUs that answer, by index.
    pub gpus: Vec<Gpu>,
    /// The GPUs that do not.
    pub unreadable: Vec<Unreadable>,
}

impl Inventory {
    /// The inventory as a table for people, at most 100 columns wide.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
        table.set_header(["GPU", "MODEL", "MEMORY", "CC", "NUMA", "PCIE", "UUID"]);
        for gpu in &self.gpus {
            table.add_row([
                gpu.index.to_string(),
                shortened(&gpu.model, MODEL_COLUMNS),
                gibibytes(gpu.memory_bytes),
                gpu.compute_capability.clone(),
                gpu.numa_node.map_or_else(unknown, |node| node.to_string()),
                gpu.pcie.map_or_else(unknown, |link| {
                    format!("{}x{}", link.generation, link.width)
                }),
                gpu.uuid.clone(),
            ]);
            for partition in gpu.mig.devices() {
                table.add_row(partition_row(gpu.index, partition));
            }
        }
        for column in table.column_iter_mut() {
            // One space between columns is all that there is room for.
            column.set_padding((0, 1));
        }
        let mut text = format!(
            "driver {}, CUDA {}, {} GPU{}\n",
            or_unknown(&self.versions.driver),
            or_unknown(&self.versions.cuda),
            self.gpus.len(),
            if self.gpus.len() == 1 { "" } else { "s" },
        );
        if !self.gpus.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", table.trim_fmt());
        }
        for gpu in &self.unreadable {
            let line = format!("GPU {} does not answer: {}", gpu.index, gpu.why);
            let _ = writeln!(text, "{}", shortened(&line, TABLE_COLUMNS));
        }
        text
    }
}

/// A partition, below its card: `0/1/0` is compute instance 0 of GPU instance 1 of card 0.
fn partition_row(index: u32, partition: &MigDevice) -> [String; 7] {
    [
        format!(
            "{index}/{}/{}",
            partition.gpu_instance, partition.compute_instance
        ),
        shortened(&format!("MIG {}", partition.profile), MODEL_COLUMNS),
        gibibytes(partition.memory_bytes),
        String::new(),
        String::new(),
        String::new(),
        partition.uuid.clone(),
    ]
}

fn unknown() -> String {
    "-".to_owned()
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "unknown" } else { text }
}

/// Bytes as GiB with one digit after the point, rounded to the nearest tenth.
fn gibibytes(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + (1 << 29)) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

fn shortened(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(limit.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(index: u32, model: &str) -> Gpu {
        Gpu {
            index,
            uuid: format!("GPU-00000000-0000-0000-0000-{index:012}"),
            model: model.to_owned(),
            memory_bytes: 85_520_809_984,
            compute_capability: "12.10".to_owned(),
            pci_address: "00000000:01:00.0".to_owned(),
            minor: index,
            ..Gpu::default()
        }
    }

    fn partition(index: u32) -> MigDevice {
        MigDevice {
            uuid: format!("MIG-00000000-0000-0000-0000-{index:012}"),
            profile: "1c.3g.20gb+me.all".to_owned(),
            gpu_instance: 11,
            compute_instance: 6,
            memory_bytes: 20 << 30,
        }
    }

    #[test]
    fn the_table_fits_in_100_columns_whatever_the_cards_are_called() {
        let inventory = Inventory {
            versions: Versions {
                driver: "570.133.20".to_owned(),
                cuda: "12.8".to_owned(),
            },
            gpus: (0..128)
                .map(|index| Gpu {
                    numa_node: Some(7),
                    pcie: Some(PcieLink {
                        generation: 5,
                        generation_max: 5,
                        width: 16,
                        width_max: 16,
                    }),
                    mig: Mig::On(vec![partition(index)]),
                    ..gpu(index, &"NVIDIA ".repeat(13))
                })
                .collect(),
            unreadable: vec![Unreadable {
                index: 127,
                why: "x".repeat(200),
            }],
        };
        let table = inventory.table();
        let widest = table.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{widest:?} columns");
        assert!(table.contains("79.6 GiB"));
        assert!(table.contains("127/11/6"), "{table}");
        assert!(table.contains("MIG 1c.3g.20gb+me.all"));
        assert!(table.contains(&partition(127).uuid));
        assert!(table.contains(&inventory.gpus[127].uuid));
    }

    #[test]
    fn a_machine_without_gpus_says_so() {
        let inventory = Inventory {
            versions: Versions {
                driver: "570.1".to_owned(),
                cuda: String::new(),
            },
            gpus: Vec::new(),
            unreadable: Vec::new(),
        };
        assert_eq!(inventory.table(), "driver 570.1, CUDA unknown, 0 GPUs\n");
    }
}
