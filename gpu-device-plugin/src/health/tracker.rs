//! The health of one card and its partitions over time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::finding::{Finding, Recovery, Slowdown};
use super::{Health, MAX_FINDINGS, xid};
use crate::inventory::PcieLink;

/// Most GPU instances with faults of their own that are followed: seven instances with seven
/// compute instances each, and the instances themselves.
const MAX_INSTANCES: usize = 56;
/// Looks at a working card before its PCI Express link is judged: the link of a card that
/// rests is slowed down, and it takes a moment to speed up.
const BUSY_LOOKS: u32 = 10;
/// Longest time between two looks that counts as all of it having been as at both.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// Counters that only ever rise, until the card is initialised anew.
///
/// When one of them falls, the card was reset, its driver was loaded anew, or a person cleared
/// the counter (`nvidia-smi --reset-ecc-errors`), who then knows of the errors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Uncorrected ECC errors since the driver was loaded or the card was reset.
    pub uncorrected_ecc_errors: Option<u64>,
    /// Corrected ECC errors since then.
    pub corrected_ecc_errors: Option<u64>,
    /// Energy drawn since the driver was loaded, in millijoules.
    pub energy_millijoules: Option<u64>,
    /// PCI Express packets that were sent again.
    pub pcie_replays: Option<u64>,
    /// Errors of all NVLink connections.
    pub nvlink_errors: Option<u64>,
}

impl Counters {
    fn fell_since(&self, before: &Self) -> bool {
        let pairs = [
            (before.uncorrected_ecc_errors, self.uncorrected_ecc_errors),
            (before.corrected_ecc_errors, self.corrected_ecc_errors),
            (before.energy_millijoules, self.energy_millijoules),
            (before.pcie_replays, self.pcie_replays),
            (before.nvlink_errors, self.nvlink_errors),
        ];
        pairs
            .iter()
            .any(|(before, now)| matches!((before, now), (Some(before), Some(now)) if now < before))
    }

    /// What is known now, and what was known before of the rest.
    fn or(self, before: Self) -> Self {
        Self {
            uncorrected_ecc_errors: self
                .uncorrected_ecc_errors
                .or(before.uncorrected_ecc_errors),
            corrected_ecc_errors: self.corrected_ecc_errors.or(before.corrected_ecc_errors),
            energy_millijoules: self.energy_millijoules.or(before.energy_millijoules),
            pcie_replays: self.pcie_replays.or(before.pcie_replays),
            nvlink_errors: self.nvlink_errors.or(before.nvlink_errors),
        }
    }
}

/// What the driver says of the card's state; what it does not know is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// A faulty row of memory is remapped at the next reset.
    pub row_remap_pending: Option<bool>,
    /// A faulty row of memory could not be remapped.
    pub row_remap_failed: Option<bool>,
    /// Faulty pages of memory are retired at the next reset.
    pub retired_pages_pending: Option<bool>,
    /// The SRAM has had more uncorrectable errors than NVIDIA tolerates.
    pub sram_threshold_exceeded: Option<bool>,
    /// Whether the driver says what must be done with the card.
    pub recovery_known: bool,
    /// What it says must be done.
    pub recovery: Option<Recovery>,
    /// Why the clocks are held down.
    pub slowdowns: Vec<Slowdown>,
    /// The NVLink connections that are up, a bit for each.
    pub nvlinks_up: Option<u32>,
    /// The PCI Express link of this moment.
    pub pcie: Option<PcieLink>,
    /// Whether the card works.
    pub busy: bool,
    /// The GPU instances and compute instances that there are.
    pub instances: Vec<(u32, u32)>,
}

/// What one look at a GPU gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it counts.
    pub counters: Counters,
    /// How it is.
    pub state: State,
}

/// The part of a partitioned card that something happened to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instance {
    /// Number of the GPU instance.
    pub gpu_instance: u32,
    /// Number of the compute instance in it; nothing where all of them are meant.
    pub compute_instance: Option<u32>,
}

impl Instance {
    fn holds(&self, gpu_instance: u32, compute_instance: u32) -> bool {
        self.gpu_instance == gpu_instance
            && self
                .compute_instance
                .is_none_or(|own| own == compute_instance)
    }
}

/// What must be known of a card after this process started again: what the driver reported
/// once and says nowhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// The counters as they were.
    pub counters: Counters,
    /// The XIDs that need a reset, with the part that they were reported for.
    pub xids: Vec<(Option<Instance>, u64)>,
    /// The NVLink connections that were up, a bit for each.
    pub nvlinks: u32,
}

impl Kept {
    /// Whether there is nothing to keep.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.xids.is_empty() && self.nvlinks == 0
    }

    /// Whether it says the same, whatever was counted since.
    #[must_use]
    pub fn says_as(&self, other: &Self) -> bool {
        self.xids == other.xids && self.nvlinks == other.nvlinks
    }
}

/// Something that is wrong.
#[derive(Debug, Clone)]
struct Fault {
    finding: Finding,
    /// When it was last seen to be.
    seen: Duration,
    needs_reset: bool,
}

/// Things that are wrong with one card or partition.
#[derive(Debug, Clone, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn found(&mut self, finding: Finding, needs_reset: bool, now: Duration) {
        let known = self
            .0
            .iter_mut()
            .find(|known| known.finding.is_same_kind(&finding));
        let fault = Fault {
            finding,
            seen: now,
            needs_reset,
        };
        if let Some(known) = known {
            *known = fault;
        } else if self.0.len() < MAX_FINDINGS {
            self.0.push(fault);
        } else if let Some(least) = self.0.iter_mut().min_by_key(|old| old.finding.severity())
            && least.finding.severity() < fault.finding.severity()
        {
            *least = fault;
        }
    }

    fn was_reset(&mut self, now: Duration) {
        for fault in &mut self.0 {
            if std::mem::take(&mut fault.needs_reset) {
                // The quiet time begins with the reset.
                fault.seen = now;
            }
        }
    }

    /// The card was away until now, however long ago it was looked for.
    fn returned(&mut self, now: Duration) {
        for fault in &mut self.0 {
            if matches!(fault.finding, Finding::Lost | Finding::Missing) {
                fault.seen = now;
            }
        }
    }

    fn forgive(&mut self, quiet: Duration, now: Duration) {
        self.0
            .retain(|fault| fault.needs_reset || now.saturating_sub(fault.seen) < quiet);
    }

    fn findings(&self) -> impl Iterator<Item = Finding> + '_ {
        self.0.iter().map(|fault| fault.finding.clone())
    }

    fn xids_for_a_reset(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.iter().filter_map(|fault| match fault.finding {
            Finding::Xid(code) if fault.needs_reset => Some(code),
            _ => None,
        })
    }
}

/// A time in which the clocks were held down for one reason, with short breaks.
#[derive(Debug, Clone, Copy)]
struct Spell {
    /// How long it was so, breaks left out.
    lasted: Duration,
    /// When it was last so.
    last: Duration,
}

/// Follows the health of one card and its partitions.
///
/// Times are spans since any fixed moment, the same for all calls.
///
/// A finding goes when it was not seen for a quiet time. One that needs a reset goes when a
/// reset was recognised and a quiet time has passed since. These are the signs of a reset, or
/// of a reboot or a load of the driver, which are as good: a counter fell ([`Counters`]); the
/// driver asked for one and does not any more; a card that was lost or missing answers; the
/// driver was away ([`Tracker::was_reset`]); a driver that says what must be done with a card
/// asks for nothing after this process started again. Without any of them, as on an old driver
/// where nothing was counted before, a reset is not seen and a reboot is needed: NVML has no
/// count of resets.
#[derive(Debug, Clone)]
pub struct Tracker {
    /// How long a GPU must be without a finding before it is healthy again.
    quiet: Duration,
    counters: Counters,
    recovery: Option<Recovery>,
    card: Faults,
    instances: BTreeMap<Instance, Faults>,
    spells: BTreeMap<Slowdown, Spell>,
    looked: Option<Duration>,
    nvlinks: u32,
    pcie: Option<PcieLink>,
    busy_looks: u32,
    /// It was lost or missing and has not answered since.
    gone: bool,
    /// What is known of it is from before this process started, and it has not answered since.
    restored: bool,
}

impl Tracker {
    /// A GPU without any finding.
    #[must_use]
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            counters: Counters::default(),
            recovery: None,
            card: Faults::default(),
            instances: BTreeMap::new(),
            spells: BTreeMap::new(),
            looked: None,
            nvlinks: 0,
            pcie: None,
            busy_looks: 0,
            gone: false,
            restored: false,
        }
    }

    /// A GPU of which this was kept before this process started again.
    #[must_use]
    pub fn restored(quiet: Duration, kept: &Kept, now: Duration) -> Self {
        let mut tracker = Self::new(quiet);
        tracker.counters = kept.counters;
        tracker.nvlinks = kept.nvlinks;
        for (instance, code) in &kept.xids {
            tracker.reported(*code, *instance, now);
        }
        tracker.gone = false;
        tracker.restored = true;
        tracker
    }

    /// From now on, a GPU must be without a finding for this long.
    pub fn be_quiet_for(&mut self, quiet: Duration) {
        self.quiet = quiet;
    }

    /// What must be known when this process starts again.
    #[must_use]
    pub fn kept(&self) -> Kept {
        let of_card = self.card.xids_for_a_reset().map(|code| (None, code));
        let of_instances = self.instances.iter().flat_map(|(instance, faults)| {
            faults
                .xids_for_a_reset()
                .map(|code| (Some(*instance), code))
        });
        Kept {
            counters: self.counters,
            xids: of_card.chain(of_instances).collect(),
            nvlinks: self.nvlinks,
        }
    }

    /// The driver reported an XID, for the card or for a part of it.
    pub fn reported(&mut self, code: u64, part: Option<Instance>, now: Duration) {
        let effect = xid::describe(code).effect;
        if effect == xid::Effect::Harmless {
            return;
        }
        self.gone |= effect == xid::Effect::Gone;
        let room = self.instances.len() < MAX_INSTANCES;
        let faults = match part {
            Some(part) if room || self.instances.contains_key(&part) => {
                self.instances.entry(part).or_default()
            }
            // Where parts cannot be told apart any more, all are taken to be ill.
            _ => &mut self.card,
        };
        faults.found(Finding::Xid(code), effect.needs_reset(), now);
    }

    /// Something is wrong with the card now.
    pub fn found(&mut self, finding: Finding, now: Duration) {
        self.gone |= matches!(finding, Finding::Lost | Finding::Missing);
        self.card.found(finding, false, now);
    }

    /// The card was reset, or its driver was loaded anew.
    pub fn was_reset(&mut self, now: Duration) {
        self.card.was_reset(now);
        for faults in self.instances.values_mut() {
            faults.was_reset(now);
        }
    }

    /// The GPU answered. The only way back to healthy: a GPU that does not answer has not
    /// become any better by the time that passed.
    pub fn answered(&mut self, seen: &Seen, now: Duration) {
        let was_asked_for = std::mem::take(&mut self.restored)
            || matches!(
                self.recovery,
                Some(Recovery::Reset | Recovery::Reboot | Recovery::DrainAndReset)
            );
        let recovered = was_asked_for && seen.state.recovery_known && seen.state.recovery.is_none();
        let returned = std::mem::take(&mut self.gone);
        if seen.counters.fell_since(&self.counters) || recovered || returned {
            self.was_reset(now);
        }
        if returned {
            self.card.returned(now);
        }
        self.counters = seen.counters.or(self.counters);
        if seen.state.recovery_known {
            self.recovery = seen.state.recovery;
        }
        let instances = &seen.state.instances;
        self.instances.retain(|own, _| {
            instances
                .iter()
                .any(|(gpu_instance, compute_instance)| own.holds(*gpu_instance, *compute_instance))
        });
        for finding in self.conditions(seen, now) {
            self.card.found(finding, false, now);
        }
        self.looked = Some(now);
        self.card.forgive(self.quiet, now);
        for faults in self.instances.values_mut() {
            faults.forgive(self.quiet, now);
        }
        self.instances.retain(|_, faults| !faults.0.is_empty());
    }

    /// What is wrong as long as the driver says so.
    fn conditions(&mut self, seen: &Seen, now: Duration) -> Vec<Finding> {
        let state = &seen.state;
        let mut found = Vec::new();
        let flags = [
            (state.row_remap_pending, Finding::RowRemapPending),
            (state.row_remap_failed, Finding::RowRemapFailed),
            (state.retired_pages_pending, Finding::RetiredPagesPending),
            (state.sram_threshold_exceeded, Finding::SramThreshold),
            // Counted since the last reset, so that they go with the next one.
            (
                seen.counters
                    .uncorrected_ecc_errors
                    .map(|errors| errors > 0),
                Finding::UncorrectedEcc,
            ),
        ];
        found.extend(
            flags
                .into_iter()
                .filter(|(holds, _)| *holds == Some(true))
                .map(|(_, finding)| finding),
        );
        found.extend(self.recovery.map(Finding::RecoveryNeeded));
        found.extend(self.slowed_down(&state.slowdowns, now));
        if let Some(up) = state.nvlinks_up {
            self.nvlinks |= up;
            let down = self.nvlinks & !up;
            if down != 0 {
                found.push(Finding::NvLinkDown {
                    down: down.count_ones(),
                    of: self.nvlinks.count_ones(),
                });
            }
        }
        found.extend(self.slow_link(state));
        found
    }

    fn slowed_down(&mut self, slowdowns: &[Slowdown], now: Duration) -> Vec<Finding> {
        self.spells
            .retain(|_, spell| now.saturating_sub(spell.last) < self.quiet);
        let step = self
            .looked
            .map_or(Duration::ZERO, |looked| now.saturating_sub(looked))
            .min(LONGEST_STEP);
        let mut found = Vec::new();
        for why in slowdowns {
            let spell = self.spells.entry(*why).or_insert(Spell {
                lasted: Duration::ZERO,
                last: now,
            });
            if self.looked == Some(spell.last) {
                spell.lasted += step;
            }
            spell.last = now;
            // A single look is a blink.
            if spell.lasted > Duration::ZERO {
                found.push(Finding::SlowedDown {
                    why: *why,
                    lasting: spell.lasted >= why.patience(),
                });
            }
        }
        found
    }

    fn slow_link(&mut self, state: &State) -> Option<Finding> {
        let now = state.pcie?;
        let best = now.or_better(self.pcie);
        self.pcie = Some(best);
        if state.busy {
            self.busy_looks = self.busy_looks.saturating_add(1);
        }
        let slow = best.generation < best.generation_max || best.width < best.width_max;
        (slow && self.busy_looks >= BUSY_LOOKS).then_some(Finding::PcieDegraded(best))
    }

    /// The PCI Express link at its best so far.
    #[must_use]
    pub fn pcie(&self) -> Option<PcieLink> {
        self.pcie
    }

    /// The card's health as of the last thing that was seen.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::of(self.card.findings())
    }

    /// The health of one partition, leaving out what is wrong with the card as a whole.
    #[must_use]
    pub fn instance_health(&self, gpu_instance: u32, compute_instance: u32) -> Health {
        Health::of(
            self.instances
                .iter()
                .filter(|(own, _)| own.holds(gpu_instance, compute_instance))
                .flat_map(|(_, faults)| faults.findings()),
        )
    }
}

#[cfg(test)]
mod tests;
