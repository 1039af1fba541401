//! How the cards reach one another.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

use super::Links;
use super::card::{Card, Handle, ask, call, if_known, text_of};
use crate::inventory::{Link, LinkKind};

/// Most NVLink connections of a card.
pub(super) const MAX_NVLINKS: u32 = sys::NVML_NVLINK_MAX_LINKS;

/// Where an NVLink connection that is up ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// At the card of this PCI address.
    Card(String),
    /// At a switch, which reaches every card that has connections to switches.
    Switch,
}

/// A card's NVLink connections that are up; nothing where it has none at all.
pub(super) fn nvlinks_up(card: &Card<'_>) -> Result<Option<u32>, NvmlError> {
    let mut up = None;
    for number in 0..MAX_NVLINKS {
        // A card answers for the connections that it has.
        let Some(state) = if_known(ask!(card, nvmlDeviceGetNvLinkState(number) -> u32))? else {
            continue;
        };
        let active = state == sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED;
        *up.get_or_insert(0) |= u32::from(active) << number;
    }
    Ok(up)
}

/// The ends of a card's NVLink connections that are up.
pub(super) fn ends(card: &Card<'_>) -> Result<Vec<End>, NvmlError> {
    let up = nvlinks_up(card)?.unwrap_or(0);
    let mut ends = Vec::new();
    for number in (0..MAX_NVLINKS).filter(|number| up >> number & 1 == 1) {
        let kind = ask!(card, nvmlDeviceGetNvLinkRemoteDeviceType(number) -> u32);
        if if_known(kind)? == Some(sys::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH)
        {
            ends.push(End::Switch);
            continue;
        }
        // SAFETY: all zeros are a valid value.
        let mut pci: sys::nvmlPciInfo_t = unsafe { std::mem::zeroed() };
        let asked = call!(
            card,
            nvmlDeviceGetNvLinkRemotePciInfo_v2(number, &raw mut pci)
        );
        if if_known(asked)?.is_some() {
            ends.push(End::Card(text_of(&pci.busId)));
        }
    }
    Ok(ends)
}

/// A card, as far as its links are concerned.
#[derive(Debug, Clone)]
pub(super) struct Linked {
    pub(super) index: u32,
    pub(super) uuid: String,
    pub(super) pci_address: String,
    pub(super) handle: Handle,
    pub(super) ends: Vec<End>,
}

/// How the cards reach one another.
pub(super) fn between(cards: &[Linked], nvml: &Nvml) -> Links {
    let links = |own: &Linked| {
        let others = cards.iter().filter(|card| card.uuid != own.uuid);
        others
            .filter_map(|other| {
                let kind = match nvlinks_between(own, other) {
                    0 => switches_between(nvml, own, other)?,
                    links => LinkKind::NvLink(links),
                };
                Some(Link {
                    peer: other.uuid.clone(),
                    kind,
                })
            })
            .collect()
    };
    cards
        .iter()
        .map(|own| (own.uuid.clone(), links(own)))
        .collect()
}

/// How many NVLink connections lead from one card to another.
fn nvlinks_between(one: &Linked, other: &Linked) -> u32 {
    let count = |card: &Linked, wanted: &dyn Fn(&End) -> bool| {
        // At most 18.
        u32::try_from(card.ends.iter().filter(|end| wanted(end)).count()).unwrap_or(0)
    };
    let to = |card: &Linked, address: &str| {
        count(
            card,
            &|end| matches!(end, End::Card(there) if !address.is_empty() && there.eq_ignore_ascii_case(address)),
        )
    };
    let switched = |card: &Linked| count(card, &|end| *end == End::Switch);
    // Each side counts its own; what only one side sees is half a connection.
    let direct = to(one, &other.pci_address).min(to(other, &one.pci_address));
    direct + switched(one).min(switched(other))
}

/// What the PCI Express way between two cards goes over, where it is not over the host.
fn switches_between(nvml: &Nvml, one: &Linked, other: &Linked) -> Option<LinkKind> {
    let card = Card {
        nvml,
        handle: one.handle,
    };
    // What cannot be said is no link: it is of use for choosing alone.
    let level = ask!(card, nvmlDeviceGetTopologyCommonAncestor(other.handle.0) -> u32).ok()?;
    match level {
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_INTERNAL => Some(LinkKind::Board),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_SINGLE => Some(LinkKind::PcieSwitch),
        sys::nvmlGpuLevel_enum_NVML_TOPOLOGY_MULTIPLE => Some(LinkKind::PcieSwitches),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(number: u32, ends: Vec<End>) -> Linked {
        Linked {
            index: number,
            uuid: format!("GPU-{number}"),
            pci_address: format!("00000000:0{number}:00.0"),
            handle: Handle(std::ptr::null_mut()),
            ends,
        }
    }

    fn to(number: u32) -> End {
        End::Card(format!("00000000:0{number}:00.0"))
    }

    #[test]
    fn direct_connections_are_counted_where_both_sides_see_them() {
        let one = card(1, vec![to(2), to(2), to(3)]);
        let two = card(2, vec![to(1), to(1)]);
        let three = card(3, vec![]);
        assert_eq!(nvlinks_between(&one, &two), 2);
        assert_eq!(nvlinks_between(&two, &one), 2);
        assert_eq!(nvlinks_between(&one, &three), 0);
    }

    #[test]
    fn switches_reach_every_card_that_is_connected_to_them() {
        let one = card(1, vec![End::Switch; 18]);
        let two = card(2, vec![End::Switch; 16]);
        let three = card(3, vec![]);
        assert_eq!(nvlinks_between(&one, &two), 16);
        assert_eq!(nvlinks_between(&one, &three), 0);
    }

    #[test]
    fn a_card_without_a_known_address_has_no_direct_connection() {
        let mut one = card(1, vec![End::Card(String::new())]);
        one.pci_address = String::new();
        let mut two = card(2, vec![End::Card(String::new())]);
        two.pci_address = String::new();
        assert_eq!(nvlinks_between(&one, &two), 0);
    }
}
