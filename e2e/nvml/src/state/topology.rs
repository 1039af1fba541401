//! Where the cards of a machine sit, and what lies between them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Gpu, State};

/// Where a card sits: what it shares with another decides how near they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// The NUMA node.
    pub numa_node: u32,
    /// The host bridge, counted over the whole machine.
    pub host_bridge: u32,
    /// The tree of PCIe switches, counted over the whole machine.
    pub switches: Option<u32>,
    /// The PCIe switch, counted over the whole machine.
    pub switch: Option<u32>,
    /// The board, where it carries several GPUs.
    pub board: Option<u32>,
}

/// How near two cards are, as `nvmlDeviceGetTopologyCommonAncestor` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nearness {
    /// On the same board.
    Internal,
    /// Behind the same PCIe switch.
    Single,
    /// Behind several PCIe switches, but no host bridge.
    Multiple,
    /// Behind the same host bridge.
    HostBridge,
    /// On the same NUMA node.
    Node,
    /// Nowhere nearer than in the same machine.
    System,
}

/// One NVLink of a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// Whether it works.
    pub up: bool,
    /// What is at the other end.
    pub remote: Remote,
    /// Packets that were sent again.
    #[serde(default)]
    pub replays: u64,
    /// How often the link recovered.
    #[serde(default)]
    pub recoveries: u64,
    /// Packets whose checksum was wrong.
    #[serde(default)]
    pub crc_errors: u64,
}

/// The other end of an NVLink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Remote {
    /// Another card of this machine, by its UUID.
    Gpu(String),
    /// An NVSwitch, by its number in the machine.
    Switch(u32),
}

/// A built-in machine: where its cards sit and how they are linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// All cards at one host bridge of one NUMA node.
    #[default]
    Flat,
    /// Half of the cards at each of two NUMA nodes, each card at a host bridge of its own.
    Numa,
    /// As `numa`, two cards behind each PCIe switch and two switches behind each host bridge.
    Pcie,
    /// As `numa`, and each two neighbours joined by all their NVLinks.
    Pairs,
    /// As `pcie`, and every card joined to every other over NVSwitches.
    NvSwitch,
}

/// A layout that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// No layout has this name.
    #[error("no layout of GPUs is called `{0}`; there are flat, numa, pcie, pairs, nvswitch")]
    Unknown(String),
    /// The cards have no NVLinks.
    #[error("a {model} has no NVLinks, which the layout `{layout}` needs; use flat, numa or pcie")]
    NoLinks {
        /// The layout's name.
        layout: &'static str,
        /// The card's model.
        model: String,
    },
}

impl Layout {
    /// All layouts.
    pub const ALL: [Self; 5] = [
        Self::Flat,
        Self::Numa,
        Self::Pcie,
        Self::Pairs,
        Self::NvSwitch,
    ];

    /// Its name, as commands take it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Flat => "flat",
            Self::Numa => "numa",
            Self::Pcie => "pcie",
            Self::Pairs => "pairs",
            Self::NvSwitch => "nvswitch",
        }
    }

    fn place(self, index: u32, count: u32) -> Place {
        if self == Self::Flat {
            return Place::default();
        }
        let numa_node = u32::from(index >= count.div_ceil(2));
        if !matches!(self, Self::Pcie | Self::NvSwitch) {
            return Place {
                numa_node,
                host_bridge: index,
                ..Place::default()
            };
        }
        // A pair that would reach over two NUMA nodes has a switch on each of them.
        let switch = index / 2 + numa_node * count;
        let tree = index / 4 + numa_node * count;
        Place {
            numa_node,
            host_bridge: tree,
            switches: Some(tree),
            switch: Some(switch),
            board: None,
        }
    }

    /// What is at the other end of the links of this card.
    fn remotes(self, gpus: &[Gpu], index: usize) -> Vec<Remote> {
        let links = gpus[index].profile.nvlinks;
        match self {
            Self::Flat | Self::Numa | Self::Pcie => Vec::new(),
            Self::Pairs => {
                let peer = gpus.get(index ^ 1);
                let remote = peer.map(|peer| Remote::Gpu(peer.uuid.clone()));
                (0..links).filter_map(|_| remote.clone()).collect()
            }
            Self::NvSwitch => (0..links)
                .map(|number| Remote::Switch(number % switches_for(links)))
                .collect(),
        }
    }
}

/// How many NVSwitches a machine has whose cards have so many links: six in the A100's, four
/// in the H100's.
fn switches_for(links: u32) -> u32 {
    if links == 12 { 6 } else { 4 }
}

impl FromStr for Layout {
    type Err = MachineError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|layout| layout.name() == name)
            .ok_or_else(|| MachineError::Unknown(name.to_owned()))
    }
}

impl Place {
    /// How near two places are.
    #[must_use]
    pub fn nearness(&self, other: &Self) -> Nearness {
        let same = |one: Option<u32>, two: Option<u32>| one.is_some() && one == two;
        if same(self.board, other.board) {
            Nearness::Internal
        } else if same(self.switch, other.switch) {
            Nearness::Single
        } else if same(self.switches, other.switches) {
            Nearness::Multiple
        } else if self.host_bridge == other.host_bridge {
            Nearness::HostBridge
        } else if self.numa_node == other.numa_node {
            Nearness::Node
        } else {
            Nearness::System
        }
    }
}

impl State {
    /// The same machine, its cards placed and linked in this way.
    pub fn with_layout(mut self, layout: Layout) -> Result<Self, MachineError> {
        let linked = matches!(layout, Layout::Pairs | Layout::NvSwitch);
        if let Some(gpu) = self.gpus.iter().find(|gpu| gpu.profile.nvlinks == 0)
            && linked
        {
            return Err(MachineError::NoLinks {
                layout: layout.name(),
                model: gpu.profile.model.clone(),
            });
        }
        // At most MAX_GPUS, so that it always fits.
        let count = u32::try_from(self.gpus.len()).unwrap_or(u32::MAX);
        let links: Vec<Vec<Remote>> = (0..self.gpus.len())
            .map(|index| layout.remotes(&self.gpus, index))
            .collect();
        for ((index, gpu), remotes) in (0..count).zip(&mut self.gpus).zip(links) {
            gpu.place = layout.place(index, count);
            gpu.links = remotes
                .into_iter()
                .map(|remote| Link {
                    up: true,
                    remote,
                    replays: 0,
                    recoveries: 0,
                    crc_errors: 0,
                })
                .collect();
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(profile: &str, count: usize, layout: Layout) -> State {
        State::from_profile(profile, count, "node")
            .unwrap()
            .with_layout(layout)
            .unwrap()
    }

    fn nearness(state: &State, one: usize, two: usize) -> Nearness {
        state.gpus[one].place.nearness(&state.gpus[two].place)
    }

    #[test]
    fn a_machine_with_nvswitches_has_the_tree_of_a_dgx() {
        let state = machine("h100-80gb", 8, Layout::NvSwitch);
        assert_eq!(nearness(&state, 0, 1), Nearness::Single);
        assert_eq!(nearness(&state, 0, 2), Nearness::Multiple);
        assert_eq!(nearness(&state, 0, 7), Nearness::System);
        assert!(state.gpus.iter().all(|gpu| gpu.links.len() == 18));
        assert!(
            state.gpus[0]
                .links
                .iter()
                .all(|link| matches!(link.remote, Remote::Switch(0..4)))
        );
    }

    #[test]
    fn pairs_are_linked_with_each_other_and_an_odd_one_with_nobody() {
        let state = machine("a100-80gb", 5, Layout::Pairs);
        assert_eq!(state.gpus[3].links.len(), 12);
        assert_eq!(
            state.gpus[3].links[0].remote,
            Remote::Gpu(state.gpus[2].uuid.clone())
        );
        assert!(state.gpus[4].links.is_empty());
        assert_eq!(nearness(&state, 0, 1), Nearness::Node);
    }

    #[test]
    fn no_layout_puts_a_switch_at_two_numa_nodes() {
        for count in 1..=16 {
            for layout in [Layout::Pcie, Layout::Numa] {
                let state = machine("t4", count, layout);
                for one in &state.gpus {
                    for two in &state.gpus {
                        if one.place.nearness(&two.place) < Nearness::Node {
                            assert_eq!(one.place.numa_node, two.place.numa_node);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn cards_without_links_are_not_linked() {
        let state = State::from_profile("t4", 2, "node").unwrap();
        let why = state.with_layout(Layout::NvSwitch).unwrap_err().to_string();
        assert!(why.contains("Tesla T4 has no NVLinks"));
        assert!("ring".parse::<Layout>().is_err());
        for layout in Layout::ALL {
            assert_eq!(layout.name().parse(), Ok(layout));
        }
    }
}
