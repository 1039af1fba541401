//! What must be known of the GPUs after this process started again.
//!
//! An XID is reported once. What it was about is often seen later as well (lost cards,
//! uncorrected errors, a pending row-remap), but not always: nothing tells a plugin that starts
//! that the GPU's system processor failed an hour ago. So what waits for a reset is written to
//! a file, together with the identifier of the machine's present boot: after a reboot none of
//! it holds.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::session::MAX_GPUS;
use crate::health::{Counters, Instance, Kept, MAX_FINDINGS};

/// Name of the file.
const FILE_NAME: &str = "health.json";
/// Largest file that is read, in bytes: 128 cards with all their partitions are less.
const MAX_BYTES: u64 = 1 << 20;
/// Most XIDs of one card, partitions included.
const MAX_XIDS: usize = 64 * MAX_FINDINGS;

/// Where it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Records {
    path: PathBuf,
    boot: String,
}

/// Why what was kept is not known.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {error}; look at the directory of --state-dir")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is not one of this plugin's.
    #[error("{path} is not understood: {why}; it is written anew")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Content {
    boot: String,
    gpus: BTreeMap<String, Gpu>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gpu {
    #[serde(skip_serializing_if = "Option::is_none")]
    uncorrected_ecc_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    corrected_ecc_errors: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    energy_millijoules: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pcie_replays: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nvlink_errors: Option<u64>,
    xids: Vec<Xid>,
    nvlinks: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Xid {
    code: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_instance: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compute_instance: Option<u32>,
}

impl Records {
    /// In this directory, for the boot of this identifier (`/proc/sys/kernel/random/boot_id`).
    #[must_use]
    pub fn new(directory: &Path, boot: &str) -> Self {
        Self {
            path: directory.join(FILE_NAME),
            boot: boot.trim().to_owned(),
        }
    }

    /// What was kept of each GPU since the machine booted, by UUID. Nothing where there is no
    /// file, or one of another boot.
    pub fn load(&self) -> Result<BTreeMap<String, Kept>, LoadError> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) => return Err(self.unreadable(error)),
        };
        let mut text = Vec::new();
        file.take(MAX_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(|error| self.unreadable(error))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(self.wrong(format!("it has more than {MAX_BYTES} bytes")));
        }
        let content: Content =
            serde_json::from_slice(&text).map_err(|error| self.wrong(error.to_string()))?;
        if content.boot != self.boot {
            return Ok(BTreeMap::new());
        }
        if content.gpus.len() > MAX_GPUS as usize {
            return Err(self.wrong(format!("it names more than {MAX_GPUS} GPUs")));
        }
        if content.gpus.values().any(|gpu| gpu.xids.len() > MAX_XIDS) {
            return Err(self.wrong(format!("a GPU has more than {MAX_XIDS} XIDs")));
        }
        let gpus = content.gpus.into_iter();
        Ok(gpus.map(|(uuid, gpu)| (uuid, gpu.into())).collect())
    }

    /// Replaces the file as a whole.
    pub fn save(&self, kept: &BTreeMap<String, Kept>) -> io::Result<()> {
        let content = Content {
            boot: self.boot.clone(),
            gpus: kept
                .iter()
                .map(|(uuid, kept)| (uuid.clone(), kept.into()))
                .collect(),
        };
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let new = self.path.with_extension("json.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        // A machine that loses its power in this moment has another boot afterwards, so that
        // only whole contents must be seen.
        file.sync_data()?;
        fs::rename(&new, &self.path)
    }

    fn unreadable(&self, error: io::Error) -> LoadError {
        LoadError::Read {
            path: self.path.clone(),
            error,
        }
    }

    fn wrong(&self, why: String) -> LoadError {
        LoadError::Content {
            path: self.path.clone(),
            why,
        }
    }
}

impl From<Gpu> for Kept {
    fn from(gpu: Gpu) -> Self {
        let xid = |xid: Xid| {
            let instance = xid.gpu_instance.map(|gpu_instance| Instance {
                gpu_instance,
                compute_instance: xid.compute_instance,
            });
            (instance, xid.code)
        };
        Self {
            counters: Counters {
                uncorrected_ecc_errors: gpu.uncorrected_ecc_errors,
                corrected_ecc_errors: gpu.corrected_ecc_errors,
                energy_millijoules: gpu.energy_millijoules,
                pcie_replays: gpu.pcie_replays,
                nvlink_errors: gpu.nvlink_errors,
            },
            xids: gpu.xids.into_iter().map(xid).collect(),
            nvlinks: gpu.nvlinks,
        }
    }
}

impl From<&Kept> for Gpu {
    fn from(kept: &Kept) -> Self {
        let xid = |(instance, code): &(Option<Instance>, u64)| Xid {
            code: *code,
            gpu_instance: instance.map(|instance| instance.gpu_instance),
            compute_instance: instance.and_then(|instance| instance.compute_instance),
        };
        Self {
            uncorrected_ecc_errors: kept.counters.uncorrected_ecc_errors,
            corrected_ecc_errors: kept.counters.corrected_ecc_errors,
            energy_millijoules: kept.counters.energy_millijoules,
            pcie_replays: kept.counters.pcie_replays,
            nvlink_errors: kept.counters.nvlink_errors,
            xids: kept.xids.iter().map(xid).collect(),
            nvlinks: kept.nvlinks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> BTreeMap<String, Kept> {
        let instance = Instance {
            gpu_instance: 3,
            compute_instance: None,
        };
        let kept = Kept {
            counters: Counters {
                uncorrected_ecc_errors: Some(1),
                corrected_ecc_errors: None,
                energy_millijoules: Some(u64::MAX),
                pcie_replays: Some(0),
                nvlink_errors: None,
            },
            xids: vec![(None, 119), (Some(instance), 48)],
            nvlinks: 0b11,
        };
        BTreeMap::from([("GPU-1".to_owned(), kept)])
    }

    #[test]
    fn what_is_saved_is_loaded_in_the_same_boot_and_in_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("deep/down");
        let records = Records::new(&directory, "boot-1\n");
        assert_eq!(records.load().unwrap(), BTreeMap::new());
        records.save(&kept()).unwrap();
        records.save(&kept()).unwrap();
        assert_eq!(records.load().unwrap(), kept());
        let later = Records::new(&directory, "boot-2");
        assert_eq!(later.load().unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_file_that_is_not_ours_is_said_to_be_so() {
        let directory = tempfile::tempdir().unwrap();
        let records = Records::new(directory.path(), "boot");
        let gpus: BTreeMap<String, Kept> = (0..200)
            .map(|number| (format!("GPU-{number}"), Kept::default()))
            .collect();
        records.save(&gpus).unwrap();
        let many = fs::read_to_string(&records.path).unwrap();
        for (text, why) in [
            ("", "EOF"),
            ("{}", "boot"),
            (r#"{"boot":"boot","gpus":{},"more":1}"#, "more"),
            (&" ".repeat(2 << 20), "bytes"),
            (&many, "128 GPUs"),
        ] {
            fs::write(&records.path, text).unwrap();
            let refused = records.load().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
            assert!(
                refused.contains("health.json is not understood"),
                "{refused}"
            );
        }
    }
}
