//! Where cards sit, and what joins them.
// The names are NVML's.
#![allow(non_snake_case)]

use std::ffi::{c_uint, c_ulong, c_ulonglong};

use nvml_wrapper_sys::bindings as sys;
use sys::nvmlDevice_t;

use super::abi::{Array, Call, InOut, Out, array};
use super::identity::pci_info;
use crate::library::{Answer, Device, Handle, INVALID_ARGUMENT, LIBRARY, NOT_SUPPORTED};
use crate::state::{Gpu, Link, Nearness, Remote};

/// PCI device of an NVSwitch, and its vendor.
const SWITCH_PCI_ID: u32 = 0x22a3_10de;
/// First PCI bus of the NVSwitches, behind those of the cards.
const SWITCH_PCI_BUS: u32 = 0xc0;

export! {
    fn nvmlDeviceGetTopologyCommonAncestor(call, one: nvmlDevice_t, two: nvmlDevice_t, level: Out<sys::nvmlGpuTopologyLevel_t>) {
        let (one, two) = (call.card(one)?, call.card(two)?);
        level.put(level_of(nearness(&one, &two)))
    }

    fn nvmlDeviceGetTopologyNearestGpus(call, device: nvmlDevice_t, level: sys::nvmlGpuTopologyLevel_t, count: InOut<c_uint>, nearest: Array<nvmlDevice_t>) {
        let gpu = call.card(device)?;
        if !LEVELS.iter().any(|(_, known)| *known == level) {
            return Err(INVALID_ARGUMENT);
        }
        let found: Vec<nvmlDevice_t> = LIBRARY
            .others(&gpu)
            .iter()
            .filter(|other| level_of(nearness(&gpu, other)) == level)
            .map(|other| other.handle_of(Handle::Card))
            .collect();
        nearest.fill_or_count(&count, &found)
    }

    fn nvmlDeviceGetP2PStatus(call, one: nvmlDevice_t, two: nvmlDevice_t, index: sys::nvmlGpuP2PCapsIndex_t, status: Out<sys::nvmlGpuP2PStatus_t>) {
        let (one, two) = (call.card(one)?, call.card(two)?);
        status.put(p2p(&one, &two, index)?)
    }

    fn nvmlDeviceGetMemoryAffinity(call, device: nvmlDevice_t, size: c_uint, nodes: Array<c_ulong>, scope: sys::nvmlAffinityScope_t) {
        let gpu = call.card(device)?;
        affinity_scope(scope)?;
        nodes.fill_exactly(size, |word| bit_of_word(gpu.place.numa_node, word))
    }

    fn nvmlDeviceGetCpuAffinity(call, device: nvmlDevice_t, size: c_uint, processors: Array<c_ulong>) {
        put_processors(call, device, size, &processors)
    }

    fn nvmlDeviceGetCpuAffinityWithinScope(call, device: nvmlDevice_t, size: c_uint, processors: Array<c_ulong>, scope: sys::nvmlAffinityScope_t) {
        affinity_scope(scope)?;
        put_processors(call, device, size, &processors)
    }

    // Asks for the node that the card's own memory is, which it is beside Grace only.
    fn nvmlDeviceGetNumaNodeId(call, device: nvmlDevice_t, _node: Out<c_uint>) {
        call.card(device)?;
        Err(NOT_SUPPORTED)
    }

    fn nvmlDeviceGetNvLinkState(call, device: nvmlDevice_t, link: c_uint, active: Out<sys::nvmlEnableState_t>) {
        let gpu = call.card(device)?;
        active.put(c_uint::from(one_link(&gpu, link)?.up))
    }

    fn nvmlDeviceGetNvLinkVersion(call, device: nvmlDevice_t, link: c_uint, version: Out<c_uint>) {
        let gpu = call.card(device)?;
        one_link(&gpu, link)?;
        version.put(gpu.profile.nvlink_version)
    }

    fn nvmlDeviceGetNvLinkCapability(call, device: nvmlDevice_t, link: c_uint, capability: sys::nvmlNvLinkCapability_t, can: Out<c_uint>) {
        let gpu = call.card(device)?;
        let link = one_link(&gpu, link)?;
        can.put(match capability {
            sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_P2P_SUPPORTED
            | sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_P2P_ATOMICS
            | sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_SYSMEM_ACCESS
            | sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_SYSMEM_ATOMICS
            | sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_VALID => c_uint::from(link.up),
            sys::nvmlNvLinkCapability_enum_NVML_NVLINK_CAP_SLI_BRIDGE => 0,
            _ => return Err(INVALID_ARGUMENT),
        })
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo_v2(call, device: nvmlDevice_t, link: c_uint, pci: Out<sys::nvmlPciInfo_t>) {
        let gpu = call.card(device)?;
        pci.put(remote_pci(&gpu, working_link(&gpu, link)?)?)
    }

    fn nvmlDeviceGetNvLinkRemotePciInfo(call, device: nvmlDevice_t, link: c_uint, pci: Out<sys::nvmlPciInfo_t>) {
        let gpu = call.card(device)?;
        pci.put(remote_pci(&gpu, working_link(&gpu, link)?)?)
    }

    fn nvmlDeviceGetNvLinkRemoteDeviceType(call, device: nvmlDevice_t, link: c_uint, kind: Out<sys::nvmlIntNvLinkDeviceType_t>) {
        let gpu = call.card(device)?;
        kind.put(match working_link(&gpu, link)?.remote {
            Remote::Gpu(_) => sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU,
            Remote::Switch(_) => sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH,
        })
    }

    fn nvmlDeviceGetNvLinkErrorCounter(call, device: nvmlDevice_t, link: c_uint, counter: sys::nvmlNvLinkErrorCounter_t, count: Out<c_ulonglong>) {
        let gpu = call.card(device)?;
        let link = one_link(&gpu, link)?;
        count.put(match counter {
            sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_REPLAY => link.replays,
            sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_RECOVERY => link.recoveries,
            sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_FLIT
            | sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_DATA => link.crc_errors,
            sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_ECC_DATA => 0,
            _ => return Err(INVALID_ARGUMENT),
        })
    }
}

/// NVML's numbers of how near two cards are.
const LEVELS: [(Nearness, sys::nvmlGpuTopologyLevel_t); 6] = [
    (
        Nearness::Internal,
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL,
    ),
    (
        Nearness::Single,
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SINGLE,
    ),
    (
        Nearness::Multiple,
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_MULTIPLE,
    ),
    (
        Nearness::HostBridge,
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_HOSTBRIDGE,
    ),
    (Nearness::Node, sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_NODE),
    (
        Nearness::System,
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM,
    ),
];

fn level_of(nearness: Nearness) -> sys::nvmlGpuTopologyLevel_t {
    LEVELS
        .iter()
        .find(|(known, _)| *known == nearness)
        .map_or(sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM, |(_, level)| {
            *level
        })
}

fn nearness(one: &Gpu, two: &Gpu) -> Nearness {
    if one.uuid == two.uuid {
        return Nearness::Internal;
    }
    one.place.nearness(&two.place)
}

fn p2p(one: &Gpu, two: &Gpu, index: sys::nvmlGpuP2PCapsIndex_t) -> Answer<sys::nvmlGpuP2PStatus_t> {
    use sys::{
        nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_ATOMICS as ATOMICS,
        nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK as NVLINK,
        nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_PCI as PCI,
        nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_READ as READ,
        nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_WRITE as WRITE,
        nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED as NO_CHIPSET,
        nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_GPU_NOT_SUPPORTED as NO_GPU,
        nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED as NO,
        nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_OK as OK,
    };
    if index > PCI {
        return Err(INVALID_ARGUMENT);
    }
    if one.uuid == two.uuid {
        return Ok(OK);
    }
    let linked = joined(one, two);
    let over_pci = if one.profile.brand == sys::nvmlBrandType_enum_NVML_BRAND_GEFORCE {
        NO_GPU
    } else if nearness(one, two) == Nearness::System {
        NO_CHIPSET
    } else {
        OK
    };
    Ok(match index {
        NVLINK | ATOMICS => {
            if linked {
                OK
            } else {
                NO
            }
        }
        READ | WRITE if linked => OK,
        _ => over_pci,
    })
}

/// Whether a working NVLink of each leads to the other, or to the same kind of switch.
fn joined(one: &Gpu, two: &Gpu) -> bool {
    let leads = |from: &Gpu, to: &Gpu| {
        from.links.iter().any(|link| {
            link.up
                && match &link.remote {
                    Remote::Gpu(uuid) => *uuid == to.uuid,
                    Remote::Switch(number) => to
                        .links
                        .iter()
                        .any(|other| other.up && other.remote == Remote::Switch(*number)),
                }
        })
    };
    leads(one, two) && leads(two, one)
}

fn affinity_scope(scope: sys::nvmlAffinityScope_t) -> Answer<()> {
    if scope > sys::NVML_AFFINITY_SCOPE_SOCKET {
        return Err(INVALID_ARGUMENT);
    }
    Ok(())
}

/// The word of a set of bits in which this bit, if any, is set.
fn bit_of_word(bit: u32, word: usize) -> c_ulong {
    let (own_word, shift) = (bit / c_ulong::BITS, bit % c_ulong::BITS);
    if usize::try_from(own_word) == Ok(word) {
        1 << shift
    } else {
        0
    }
}

/// The processors of the card's NUMA node: the machine has sixteen for each.
fn put_processors(
    call: &Call,
    device: nvmlDevice_t,
    size: c_uint,
    processors: &Array<c_ulong>,
) -> Answer<()> {
    const PER_NODE: u32 = 16;
    let gpu = call.card(device)?;
    let first = gpu.place.numa_node * PER_NODE;
    processors.fill_exactly(size, |word| {
        (first..first + PER_NODE).fold(0, |bits, processor| bits | bit_of_word(processor, word))
    })
}

/// An NVLink of a card, which may be down.
pub(super) fn one_link(gpu: &Gpu, link: c_uint) -> Answer<&Link> {
    if link >= sys::NVML_NVLINK_MAX_LINKS {
        return Err(INVALID_ARGUMENT);
    }
    if gpu.profile.nvlinks == 0 {
        return Err(NOT_SUPPORTED);
    }
    if link >= gpu.profile.nvlinks {
        return Err(INVALID_ARGUMENT);
    }
    let found = usize::try_from(link)
        .ok()
        .and_then(|link| gpu.links.get(link));
    // A card that has links of which nothing is at the other end.
    Ok(found.unwrap_or(&UNCONNECTED))
}

/// A link with nothing at its other end.
static UNCONNECTED: Link = Link {
    up: false,
    remote: Remote::Switch(0),
    replays: 0,
    recoveries: 0,
    crc_errors: 0,
};

/// An NVLink of a card that works: of others NVML does not know the other end.
fn working_link(gpu: &Gpu, link: c_uint) -> Answer<&Link> {
    let found = one_link(gpu, link)?;
    if found.up {
        Ok(found)
    } else {
        Err(NOT_SUPPORTED)
    }
}

fn remote_pci(gpu: &Device, link: &Link) -> Answer<sys::nvmlPciInfo_t> {
    match &link.remote {
        Remote::Gpu(uuid) => {
            let peers = gpu.machine().gpus.iter();
            let peer = peers.into_iter().find(|peer| peer.uuid == *uuid);
            let peer = peer.ok_or(NOT_SUPPORTED)?;
            Ok(pci_info(&peer.pci_address(), peer))
        }
        Remote::Switch(number) => {
            let bus = SWITCH_PCI_BUS + number;
            let address = format!("00000000:{bus:02X}:00.0");
            Ok(sys::nvmlPciInfo_t {
                busIdLegacy: array(address.get(4..).unwrap_or_default()),
                domain: 0,
                bus,
                device: 0,
                pciDeviceId: SWITCH_PCI_ID,
                pciSubSystemId: 0,
                busId: array(&address),
            })
        }
    }
}
