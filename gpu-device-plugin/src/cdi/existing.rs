//! A specification that somebody else wrote, such as `nvidia-ctk cdi generate`: which of its
//! devices are our GPUs.
//!
//! A device is ours when its name is the UUID. Tools name devices by the driver's number as
//! well, and that number is another card's after a card has gone; so such a name counts only
//! where the device brings the card's own node.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::spec::LeftOut;
use crate::inventory::Gpu;
use crate::resource::Resource;

/// Largest specification that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1_000;

/// The existing specification cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no CDI specification of kind {kind} is in {directories}{damaged}; make one, such as with `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`, or leave out --cdi-source=existing"
)]
pub struct ExistingError {
    kind: String,
    directories: String,
    /// What is wrong with files that were passed over.
    damaged: String,
}

#[derive(Debug, Deserialize)]
struct Spec {
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    device_nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    path: String,
}

/// The full names of the devices of this kind in these directories that are these GPUs and
/// their partitions, by UUID, and which of them have none. As for a runtime, a later directory
/// goes before an earlier one. It waits for the disk.
pub fn names(
    directories: &[&Path],
    kind: &Resource,
    gpus: &[&Gpu],
) -> Result<(BTreeMap<String, String>, Vec<LeftOut>), ExistingError> {
    let mut devices = BTreeMap::new();
    let mut damaged = Vec::new();
    let mut is_there = false;
    for path in directories.iter().flat_map(|directory| files(directory)) {
        match read(&path) {
            Ok(spec) if spec.kind == kind.to_string() => {
                is_there = true;
                devices.extend(spec.devices.into_iter().map(|device| {
                    let nodes = device.container_edits.device_nodes;
                    (device.name, nodes)
                }));
            }
            Ok(_) => {}
            Err(why) => damaged.push(format!(", and {} cannot be read: {why}", path.display())),
        }
    }
    if !is_there {
        let directories: Vec<String> = directories
            .iter()
            .map(|directory| directory.display().to_string())
            .collect();
        return Err(ExistingError {
            kind: kind.to_string(),
            directories: directories.join(" or "),
            damaged: damaged.concat(),
        });
    }
    Ok(matched(&devices, kind, gpus))
}

fn matched(
    devices: &BTreeMap<String, Vec<Node>>,
    kind: &Resource,
    gpus: &[&Gpu],
) -> (BTreeMap<String, String>, Vec<LeftOut>) {
    let (mut names, mut left_out) = (BTreeMap::new(), Vec::new());
    let mut add = |uuid: &str, name: Option<String>| match name {
        Some(name) => {
            let name = kind.cdi_device(&name);
            names.insert(uuid.to_owned(), name);
        }
        None => left_out.push(LeftOut {
            uuid: uuid.to_owned(),
            why: format!(
                "the CDI specification of {kind} has no device for it; write it anew, such as \
                 with `nvidia-ctk cdi generate --device-name-strategy=uuid`"
            ),
        }),
    };
    for gpu in gpus {
        let node = format!("/dev/nvidia{}", gpu.minor);
        let numbered = [gpu.index.to_string(), format!("gpu{}", gpu.index)]
            .into_iter()
            .find(|name| {
                devices
                    .get(name)
                    .is_some_and(|nodes| nodes.iter().any(|has| has.path == node))
            });
        let by_uuid = |uuid: &String| devices.contains_key(uuid).then(|| uuid.clone());
        // A card that is partitioned has no device of its own in what nvidia-ctk writes.
        let is_partitioned = !gpu.mig.devices().is_empty();
        let whole = by_uuid(&gpu.uuid).or(numbered);
        if whole.is_some() || !is_partitioned {
            add(&gpu.uuid, whole);
        }
        for device in gpu.mig.devices() {
            add(&device.uuid, by_uuid(&device.uuid));
        }
    }
    (names, left_out)
}

/// The specifications in this directory, in the order of their names.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let mut files: Vec<PathBuf> = entries
        .take(ENTRIES_MAX)
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "json" || ending == "yaml")
        })
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Spec, String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| {
            if file.metadata()?.len() > FILE_BYTES_MAX {
                return Err(io::Error::other("it is larger than 4 MiB"));
            }
            file.take(FILE_BYTES_MAX).read_to_string(&mut text)
        })
        .map_err(|error| error.to_string())?;
    // JSON is YAML, but the other way round its errors are clearer.
    if path.extension().is_some_and(|ending| ending == "json") {
        serde_json::from_str(&text).map_err(|error| error.to_string())
    } else {
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())
    }
}
