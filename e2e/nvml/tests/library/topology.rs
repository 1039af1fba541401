//! Where cards sit, and what joins them.

use nvidia_ml::state::Layout;
use nvml_wrapper::enum_wrappers::device::TopologyLevel;
use nvml_wrapper::enum_wrappers::nv_link::{Capability, ErrorCounter};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

use crate::codes::*;
use crate::machine::{card, laid_out, machine};

#[test]
fn how_near_two_cards_are_follows_from_what_they_share() {
    let machine = laid_out("h100-80gb", 8, Layout::NvSwitch);
    let nvml = machine.open();
    let card = |index| nvml.device_by_index(index).unwrap();
    let level = |one, two| card(one).topology_common_ancestor(card(two)).unwrap();
    assert_eq!(level(0, 0), TopologyLevel::Internal);
    assert_eq!(level(0, 1), TopologyLevel::Single);
    assert_eq!(level(0, 3), TopologyLevel::Multiple);
    assert_eq!(level(3, 4), TopologyLevel::System);
    let near = card(5)
        .topology_nearest_gpus(TopologyLevel::Multiple)
        .unwrap();
    let near: Vec<_> = near.iter().map(|other| other.index().unwrap()).collect();
    assert_eq!(near, [6, 7]);
    let flat = laid_out("t4", 2, Layout::Flat);
    let nvml = flat.open();
    let [one, two] = [0, 1].map(|index| nvml.device_by_index(index).unwrap());
    assert_eq!(
        one.topology_common_ancestor(two).unwrap(),
        TopologyLevel::HostBridge
    );
}

#[test]
fn a_link_tells_its_other_end_while_it_works() {
    let machine = laid_out("a100-80gb", 2, Layout::Pairs);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    let link = device.link_wrapper_for(3);
    assert!(link.is_active().unwrap());
    assert_eq!(link.version().unwrap(), 4);
    assert!(link.has_capability(Capability::P2p).unwrap());
    assert_eq!(link.remote_pci_info().unwrap().bus_id, "00000000:02:00.0");
    machine.inject(0, "nvlink-errors 3 5");
    assert_eq!(link.error_counter(ErrorCounter::DlReplay).unwrap(), 5);
    machine.inject(0, "nvlink 3 down");
    assert!(!link.is_active().unwrap());
    assert!(matches!(
        link.remote_pci_info(),
        Err(NvmlError::NotSupported)
    ));
    assert!(matches!(
        device.link_wrapper_for(12).is_active(),
        Err(NvmlError::InvalidArg)
    ));
    assert!(matches!(
        device.link_wrapper_for(18).is_active(),
        Err(NvmlError::InvalidArg)
    ));
}

#[test]
fn links_of_a_machine_with_switches_end_at_switches() {
    let machine = laid_out("h100-80gb", 2, Layout::NvSwitch);
    let nvml = machine.begin();
    let device = card(&nvml, 1);
    let mut buses = std::collections::BTreeSet::new();
    for link in 0..18 {
        let mut kind = 99;
        // SAFETY: an all-zero structure is a valid one; the pointers are to local variables.
        unsafe {
            // The wrapper of 0.13 throws this answer away.
            let code = nvml.nvmlDeviceGetNvLinkRemoteDeviceType(device, link, &raw mut kind);
            assert_eq!(
                (code, kind),
                (
                    OK,
                    sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH
                )
            );
            let mut pci: sys::nvmlPciInfo_t = std::mem::zeroed();
            let code = nvml.nvmlDeviceGetNvLinkRemotePciInfo_v2(device, link, &raw mut pci);
            assert_eq!(code, OK);
            buses.insert(pci.bus);
        }
    }
    assert_eq!(buses.len(), 4);
}

#[test]
fn a_card_without_links_has_none() {
    let machine = machine("t4", 1);
    let nvml = machine.open();
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.link_wrapper_for(0).is_active(),
        Err(NvmlError::NotSupported)
    ));
}

#[test]
fn peers_reach_each_other_over_links_or_a_bridge_that_they_share() {
    let status = |profile, layout, index| {
        let machine = laid_out(profile, 4, layout);
        let nvml = machine.begin();
        let mut status = 99;
        // SAFETY: the pointer is to a local variable.
        let code = unsafe {
            nvml.nvmlDeviceGetP2PStatus(card(&nvml, 0), card(&nvml, 3), index, &raw mut status)
        };
        (code, status)
    };
    let (read, nvlink) = (
        sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_READ,
        sys::nvmlGpuP2PCapsIndex_enum_NVML_P2P_CAPS_INDEX_NVLINK,
    );
    let not = sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_NOT_SUPPORTED;
    let chipset = sys::nvmlGpuP2PStatus_enum_NVML_P2P_STATUS_CHIPSET_NOT_SUPPORTED;
    assert_eq!(status("h100-80gb", Layout::NvSwitch, nvlink), (OK, 0));
    assert_eq!(status("h100-80gb", Layout::Pairs, nvlink), (OK, not));
    assert_eq!(status("h100-80gb", Layout::Pairs, read), (OK, chipset));
    assert_eq!(status("t4", Layout::Flat, read), (OK, 0));
    assert_eq!(status("t4", Layout::Flat, 5).0, INVALID_ARGUMENT);
}

#[test]
fn the_number_of_near_cards_is_asked_with_room_for_none() {
    let machine = laid_out("h100-80gb", 8, Layout::NvSwitch);
    let nvml = machine.begin();
    let device = card(&nvml, 0);
    let level = sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SYSTEM;
    let mut count = 0;
    let mut near = [std::ptr::null_mut(); 2];
    // SAFETY: the pointers are to local variables with the room that is said.
    unsafe {
        let ask = |count, near| nvml.nvmlDeviceGetTopologyNearestGpus(device, level, count, near);
        assert_eq!((ask(&raw mut count, std::ptr::null_mut()), count), (OK, 4));
        count = 2;
        assert_eq!((ask(&raw mut count, near.as_mut_ptr()), count), (OK, 2));
        assert_eq!(near, [card(&nvml, 4), card(&nvml, 5)]);
        let code = ask(&raw mut count, std::ptr::null_mut());
        assert_eq!(code, INVALID_ARGUMENT);
    }
}

#[test]
fn a_card_names_the_memory_and_processors_of_its_numa_node() {
    let machine = laid_out("l40s", 4, Layout::Numa);
    let nvml = machine.begin();
    let mut nodes = [7; 2];
    let mut processors = [7; 1];
    // SAFETY: the arrays have the sizes that are said.
    unsafe {
        let ask = |index, size, nodes, scope| {
            nvml.nvmlDeviceGetMemoryAffinity(card(&nvml, index), size, nodes, scope)
        };
        assert_eq!(ask(0, 2, nodes.as_mut_ptr(), 0), OK);
        assert_eq!(nodes, [1, 0]);
        assert_eq!(ask(3, 2, nodes.as_mut_ptr(), 1), OK);
        assert_eq!(nodes, [2, 0]);
        assert_eq!(ask(0, 2, nodes.as_mut_ptr(), 2), INVALID_ARGUMENT);
        assert_eq!(ask(0, 0, nodes.as_mut_ptr(), 0), INVALID_ARGUMENT);
        assert_eq!(ask(0, 2, std::ptr::null_mut(), 0), INVALID_ARGUMENT);
        let code = nvml.nvmlDeviceGetCpuAffinity(card(&nvml, 3), 1, processors.as_mut_ptr());
        assert_eq!((code, processors), (OK, [0xffff_0000]));
        // The card's own memory is no node of the machine.
        let mut node = 0;
        let code = nvml.nvmlDeviceGetNumaNodeId(card(&nvml, 3), &raw mut node);
        assert_eq!(code, NOT_SUPPORTED);
    }
}
