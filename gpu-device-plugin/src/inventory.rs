//! What is in the machine: the GPUs and their driver.

use std::fmt::Write as _;

use serde::Serialize;

/// Widest table that is printed, in columns.
const TABLE_COLUMNS: usize = 100;
/// Longest name of a model in a table, in characters.
const MODEL_COLUMNS: usize = 32;

/// The driver's versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Version of the kernel driver, such as `570.133.20`; empty when the library does not say.
    pub driver: String,
    /// CUDA version that the driver supports, such as `12.8`; empty when it does not say.
    pub cuda: String,
}

/// One GPU: what does not change while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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
        table.set_header(["GPU", "MODEL", "MEMORY", "COMPUTE", "UUID"]);
        for gpu in &self.gpus {
            table.add_row([
                gpu.index.to_string(),
                shortened(&gpu.model, MODEL_COLUMNS),
                gibibytes(gpu.memory_bytes),
                gpu.compute_capability.clone(),
                gpu.uuid.clone(),
            ]);
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
                .map(|index| gpu(index, &"NVIDIA ".repeat(13)))
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
