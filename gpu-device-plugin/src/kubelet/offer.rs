//! What one resource's server offers, and its answers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::api::{
    CdiDevice, ContainerAllocateResponse, Device, DeviceSpec, ListAndWatchResponse, NumaNode,
    TopologyInfo,
};
use super::preference::{Choice, Closeness};
use crate::cdi::Node;
use crate::config::Allocation;
use crate::inventory::Link;
use crate::resource::Resource;
use crate::unit::Unit;

/// Names the GPUs of a container, for the programs in it.
const UUIDS_VARIABLE: &str = "CREO_GPU_UUIDS";
/// The memory of each of them that is the container's, in bytes, in the same order.
const MEMORY_VARIABLE: &str = "CREO_GPU_MEMORY_BYTES";
/// Names GPUs for a host whose default runtime is NVIDIA's.
const VISIBLE_VARIABLE: &str = "NVIDIA_VISIBLE_DEVICES";

/// What is offered, by resource.
pub type Offers = BTreeMap<Resource, Offer>;

/// The units of one resource, and how they are given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    units: Vec<Unit>,
    places: BTreeMap<String, usize>,
    closeness: Closeness,
    giving: Arc<Giving>,
}

/// What a container is given for a unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Giving {
    /// Full names of the CDI devices, by the UUID of card or partition; nothing where the
    /// container runtime knows no CDI.
    pub cdi_names: Option<BTreeMap<String, String>>,
    /// Device nodes by the UUID of card or partition, where containers are given them one by
    /// one.
    pub nodes: BTreeMap<String, Vec<Node>>,
    /// On which cards shares are.
    pub allocation: Allocation,
}

/// The kubelet asks for a unit that is not offered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no {id:?} among the {known} that are offered here; delete the pod so that it is made anew, and look at the node's CreoNode or the plugin's log for why it is not offered"
)]
pub struct Unknown {
    id: String,
    known: usize,
}

impl Offer {
    /// Offers these units of cards that are linked like this.
    #[must_use]
    pub fn new(units: Vec<Unit>, links: &BTreeMap<String, Vec<Link>>, giving: Arc<Giving>) -> Self {
        let ids = units.iter().map(|unit| unit.id.clone());
        Self {
            places: ids.zip(0..).collect(),
            closeness: Closeness::new(&units, links),
            units,
            giving,
        }
    }

    /// The list for the kubelet.
    #[must_use]
    pub fn list(&self) -> ListAndWatchResponse {
        ListAndWatchResponse {
            devices: self.units.iter().map(listed).collect(),
        }
    }

    /// The units that a container best gets; see [`Choice::choose`].
    #[must_use]
    pub fn choose(&self, available: &[String], required: &[String], size: usize) -> Vec<String> {
        Choice {
            units: &self.units,
            places: &self.places,
            closeness: &self.closeness,
            allocation: self.giving.allocation,
        }
        .choose(available, required, size)
    }

    /// What one container with these units needs: the same for the same units, whatever their
    /// order.
    pub fn container(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Unknown> {
        let mut places = Vec::with_capacity(ids.len());
        for id in ids {
            // Its health is no matter: a container that restarts keeps its GPU, and the
            // kubelet gives none that is ill to a new one.
            places.push(*self.places.get(id).ok_or_else(|| Unknown {
                id: id.clone(),
                known: self.units.len(),
            })?);
        }
        places.sort_unstable();
        places.dedup();
        // Shares of one card are one device for the container.
        let mut devices: Vec<(&str, u64)> = Vec::with_capacity(places.len());
        for unit in places.into_iter().map(|place| &self.units[place]) {
            match devices.last_mut() {
                Some((uuid, memory)) if *uuid == unit.uuid() => *memory += unit.memory_bytes,
                _ => devices.push((unit.uuid(), unit.memory_bytes)),
            }
        }
        Ok(self.answer(&devices))
    }

    fn answer(&self, devices: &[(&str, u64)]) -> ContainerAllocateResponse {
        let uuids: Vec<&str> = devices.iter().map(|(uuid, _)| *uuid).collect();
        let memory: Vec<String> = devices.iter().map(|(_, bytes)| bytes.to_string()).collect();
        let mut answer = ContainerAllocateResponse {
            envs: [
                (UUIDS_VARIABLE.to_owned(), uuids.join(",")),
                (MEMORY_VARIABLE.to_owned(), memory.join(",")),
            ]
            .into(),
            ..ContainerAllocateResponse::default()
        };
        if let Some(names) = &self.giving.cdi_names {
            let names = uuids.iter().filter_map(|uuid| names.get(*uuid));
            answer
                .cdi_devices
                .extend(names.map(|name| CdiDevice { name: name.clone() }));
        } else {
            // Only NVIDIA's runtime can add the driver's libraries then.
            let visible = if uuids.is_empty() {
                "void".to_owned()
            } else {
                uuids.join(",")
            };
            answer.envs.insert(VISIBLE_VARIABLE.to_owned(), visible);
        }
        let nodes = uuids.iter().filter_map(|uuid| self.giving.nodes.get(*uuid));
        for node in nodes.flatten() {
            let mut given = answer.devices.iter();
            if given.all(|given| given.container_path != node.path) {
                answer.devices.push(DeviceSpec {
                    container_path: node.path.clone(),
                    host_path: node.host_path.display().to_string(),
                    permissions: node.permissions.to_owned(),
                });
            }
        }
        answer
    }
}

fn listed(unit: &Unit) -> Device {
    Device {
        id: unit.id.clone(),
        health: if unit.health.is_healthy() {
            "Healthy".to_owned()
        } else {
            "Unhealthy".to_owned()
        },
        topology: unit.numa_node.map(|node| TopologyInfo {
            nodes: vec![NumaNode { id: node.into() }],
        }),
    }
}
