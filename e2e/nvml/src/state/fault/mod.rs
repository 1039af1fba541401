//! What can be done to a card, or to the driver under all of them.

mod words;

use nvml_wrapper_sys::bindings as sys;

use super::code::UnknownCode;
use super::{
    Code, DEFAULT_PROFILE, EventKind, Gpu, LayoutError, MAX_GPUS, MAX_PROCESSES, Mig, Misbehaviour,
    Process, Profile, RetiredPage, State, UnknownProfile,
};

pub use words::FAULTS;

/// XID of an uncorrected ECC error.
const XID_DOUBLE_BIT_ECC: u64 = 48;
/// XID of a row of memory that is remapped with the next reset.
const XID_ROW_REMAP: u64 = 63;
/// XID of a row of memory that cannot be remapped.
const XID_ROW_REMAP_FAILURE: u64 = 64;
/// XID of an NVLink that failed.
const XID_NVLINK: u64 = 74;
/// XID of a card that has fallen off the bus.
const XID_FALLEN_OFF_THE_BUS: u64 = 79;
/// Longest wait that can be asked for: an hour.
const MAX_HANG_MS: u64 = 3_600_000;
/// How often an XID can be reported at once: as often as the events are kept.
const MAX_TIMES: u64 = super::MAX_EVENTS as u64;

/// Names of what can hold the clocks down, and NVML's bits.
const REASONS: &[(&str, u32)] = &[
    (
        "app-clocks",
        sys::nvmlClocksEventReasonApplicationsClocksSetting,
    ),
    ("power-cap", sys::nvmlClocksEventReasonSwPowerCap),
    ("hw-slowdown", sys::nvmlClocksThrottleReasonHwSlowdown),
    ("sync-boost", sys::nvmlClocksEventReasonSyncBoost),
    ("thermal", sys::nvmlClocksEventReasonSwThermalSlowdown),
    ("hw-thermal", sys::nvmlClocksThrottleReasonHwThermalSlowdown),
    (
        "power-brake",
        sys::nvmlClocksThrottleReasonHwPowerBrakeSlowdown,
    ),
    (
        "display-clocks",
        sys::nvmlClocksEventReasonDisplayClockSetting,
    ),
];

/// Something that is done to a card, or to the driver under all of them.
///
/// Written and read as words; [`FAULTS`] lists them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The driver reports this XID for the card, so many times, in a partition or not.
    Xid {
        /// The XID.
        code: u64,
        /// How often.
        times: u64,
        /// The GPU instance.
        gpu_instance: Option<u32>,
        /// The compute instance in it.
        compute_instance: Option<u32>,
    },
    /// The card falls off the bus: XID 79, then no answer but "lost".
    Lost,
    /// So many uncorrected ECC errors more, with their event and XID 48.
    Ecc(u64),
    /// So many corrected ECC errors more.
    EccCorrected(u64),
    /// A row of memory is remapped with the next reset; XID 63.
    RemapPending,
    /// A row of memory cannot be remapped; XID 64.
    RemapFailed,
    /// No row of memory waits or failed any more.
    RemapDone,
    /// So many pages of memory are retired with the next reset.
    Retire(u64),
    /// These of NVML's reasons hold the clocks down.
    Throttle(u64),
    /// The die has this temperature, in degrees Celsius.
    Temperature(u32),
    /// The card draws this power, in milliwatts.
    Power(u32),
    /// Kernels run, and memory is read, for these shares of the time, in percent.
    Use(u32, u32),
    /// The PCI Express link has this generation and width.
    Pcie(u32, u32),
    /// So many packets more were sent again over PCI Express.
    PcieReplays(u32),
    /// An NVLink works, or does not (XID 74).
    NvLink(LinkChoice, bool),
    /// So many errors more of each kind on an NVLink.
    NvLinkErrors(LinkChoice, u64),
    /// A process uses the card.
    Process(Process),
    /// The process of this id has ended.
    ProcessGone(u32),
    /// The card is partitioned like this, or not at all.
    Mig(Option<Vec<String>>),
    /// Whether the card can be partitioned after the next reset.
    MigPending(bool),
    /// The driver reports this event with this data for the card.
    Event(EventKind, u64),
    /// Every question about the card takes so many milliseconds from now on.
    Hang(u64),
    /// This function takes so many milliseconds; of this card, where it is about one.
    HangFunction(String, u64),
    /// This function returns this code, or answers again; of this card, where it is about one.
    Error(String, Option<Code>),
    /// Initialisation is refused with this code, or not any more, whatever the index.
    Init(Option<Code>),
    /// The card answers again: not lost, not slow, no wrong answers, no ECC errors counted,
    /// clocks and links as they should be.
    Heal,
    /// The card is reset: see [`Gpu::resets`].
    Reset,
    /// The machine is booted again, whatever the index.
    Reboot,
    /// The card changes places with the one of this index. Seen at the next initialisation.
    Swap(u32),
    /// The card is taken out of the machine. A library that is already initialised
    /// calls it lost; one that is initialised afterwards does not see it.
    Remove,
    /// The card is put back; or, with the first free index, a card of the named (or
    /// the default) profile is put in. Seen at the next initialisation.
    Add(Option<String>),
    /// The driver is unloaded, whatever the index.
    Unload,
    /// The driver is loaded again, whatever the index.
    Load,
}

/// Which NVLinks of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkChoice {
    /// All of them.
    All,
    /// The one of this number.
    One(u32),
}

/// A fault that cannot be understood or does not fit the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The words are no fault.
    #[error("`{0}` is no fault; there are {names}", names = names(FAULTS))]
    Unknown(String),
    /// The number is missing or out of range.
    #[error("`{verb}` needs a number from {min} to {max}, not `{given}`")]
    Number {
        /// The fault's first word.
        verb: &'static str,
        /// What stands where the number should be.
        given: String,
        /// Lowest number allowed.
        min: u64,
        /// Highest number allowed.
        max: u64,
    },
    /// Nothing of this name holds clocks down.
    #[error("`{0}` does not hold clocks down; use {names}", names = names(REASONS))]
    Reason(String),
    /// The code is not known.
    #[error(transparent)]
    Code(#[from] UnknownCode),
    /// The library has no such function.
    #[error("the stand-in library has no function `{0}`")]
    NoSuchFunction(String),
    /// There is no card of this index.
    #[error("there is no GPU {index}; this node has {count}, counted from 0")]
    NoSuchGpu {
        /// The index that was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The card is not in the machine.
    #[error("GPU {0} was removed; add it first")]
    Removed(usize),
    /// The card is in the machine already, or the machine is full.
    #[error("GPU {index} cannot be added: {why}")]
    CannotAdd {
        /// The index that was asked for.
        index: usize,
        /// Why not.
        why: String,
    },
    /// The card cannot have this fault.
    #[error("GPU {index} ({model}) {why}")]
    DoesNotApply {
        /// The card's index.
        index: usize,
        /// The card's model.
        model: String,
        /// Why not.
        why: &'static str,
    },
    /// The card cannot be partitioned like this.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The profile to add is not known.
    #[error(transparent)]
    Profile(#[from] UnknownProfile),
}

/// The names in the first column of a table.
fn names<T>(table: &[(&str, T)]) -> String {
    let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    names.join("; ")
}

impl State {
    /// Does this to the card of this index (counted over all cards of the state,
    /// removed ones included).
    pub fn inject(&mut self, index: usize, fault: &Fault) -> Result<(), FaultError> {
        match fault {
            Fault::Add(profile) => self.add(index, profile.as_deref()),
            Fault::Unload => {
                self.driver.loaded = false;
                Ok(())
            }
            Fault::Load => {
                self.driver.loads += u64::from(!self.driver.loaded);
                self.driver.loaded = true;
                Ok(())
            }
            Fault::Init(code) => {
                self.driver.init_error = *code;
                Ok(())
            }
            Fault::Reboot => {
                self.reboot();
                Ok(())
            }
            Fault::HangFunction(function, time_ms) => {
                self.misbehave(index, function, |now| now.hang_ms = *time_ms)
            }
            Fault::Error(function, code) => self.misbehave(index, function, |now| now.code = *code),
            Fault::Swap(other) => self.swap(index, *other),
            _ => self.change_card(index, fault),
        }
    }

    fn reboot(&mut self) {
        for gpu in &mut self.gpus {
            gpu.lost = false;
            gpu.hang_ms = 0;
            gpu.functions.clear();
            gpu.energy_millijoules = 0;
            gpu.reset();
        }
        self.driver.loaded = true;
        self.driver.loads += 1;
        self.driver.init_error = None;
        self.driver.functions.clear();
        self.events.clear();
    }

    fn misbehave(
        &mut self,
        index: usize,
        function: &str,
        change: impl FnOnce(&mut Misbehaviour),
    ) -> Result<(), FaultError> {
        if !crate::exports::functions().any(|known| known == function) {
            return Err(FaultError::NoSuchFunction(function.to_owned()));
        }
        let all = if is_about_one_card(function) {
            &mut self.card(index)?.functions
        } else {
            &mut self.driver.functions
        };
        let known = all.entry(function.to_owned()).or_default();
        change(known);
        if *known == Misbehaviour::default() {
            all.remove(function);
        }
        Ok(())
    }

    /// The card of this index, where it is in the machine.
    fn card(&mut self, index: usize) -> Result<&mut Gpu, FaultError> {
        let count = self.gpus.len();
        let gpu = self
            .gpus
            .get_mut(index)
            .ok_or(FaultError::NoSuchGpu { index, count })?;
        if gpu.present {
            Ok(gpu)
        } else {
            Err(FaultError::Removed(index))
        }
    }

    fn swap(&mut self, index: usize, other: u32) -> Result<(), FaultError> {
        let other = usize::try_from(other).unwrap_or(usize::MAX);
        let count = self.gpus.len();
        for index in [index, other] {
            if index >= count {
                return Err(FaultError::NoSuchGpu { index, count });
            }
        }
        // The slots stay where they are: address and minor number go with them.
        let [one, two] = [index, other].map(|index| {
            let gpu = &self.gpus[index];
            (gpu.pci_bus, gpu.minor, gpu.place)
        });
        self.gpus.swap(index, other);
        for (index, (bus, minor, place)) in [(index, one), (other, two)] {
            let gpu = &mut self.gpus[index];
            (gpu.pci_bus, gpu.minor, gpu.place) = (bus, minor, place);
        }
        Ok(())
    }

    fn change_card(&mut self, index: usize, fault: &Fault) -> Result<(), FaultError> {
        let gpu = self.card(index)?;
        let uuid = gpu.uuid.clone();
        let events = change(index, gpu, fault)?;
        for (kind, data) in events {
            self.record(&uuid, kind, data);
        }
        if let Fault::Xid {
            code,
            times,
            gpu_instance,
            compute_instance,
        } = fault
        {
            for _ in 0..*times {
                self.record_in(
                    &uuid,
                    EventKind::Xid,
                    *code,
                    *gpu_instance,
                    *compute_instance,
                );
            }
        }
        Ok(())
    }

    fn add(&mut self, index: usize, profile: Option<&str>) -> Result<(), FaultError> {
        let count = self.gpus.len();
        let refused = |why: String| Err(FaultError::CannotAdd { index, why });
        if let Some(gpu) = self.gpus.get_mut(index) {
            if gpu.present {
                return refused("it is in the machine".to_owned());
            }
            if let Some(profile) = profile {
                gpu.profile = Profile::named(profile)?;
            }
            gpu.present = true;
            gpu.lost = false;
            return Ok(());
        }
        if count >= MAX_GPUS {
            return refused(format!("a machine holds at most {MAX_GPUS}"));
        }
        if index > count {
            return refused(format!("the next free index is {count}"));
        }
        self.plug_in(Profile::named(profile.unwrap_or(DEFAULT_PROFILE))?);
        Ok(())
    }
}

/// Whether a function takes a card, by its name.
fn is_about_one_card(function: &str) -> bool {
    const OTHERS: [&str; 5] = [
        "nvmlInit",
        "nvmlShutdown",
        "nvmlSystem",
        "nvmlEventSet",
        "nvmlDeviceGetCount",
    ];
    !OTHERS.iter().any(|start| function.starts_with(start))
}

type Events = Vec<(EventKind, u64)>;

/// Changes a card, and gives the events that come with it.
fn change(index: usize, gpu: &mut Gpu, fault: &Fault) -> Result<Events, FaultError> {
    let xid = |code| vec![(EventKind::Xid, code)];
    let events = match fault {
        Fault::Lost => {
            gpu.lost = true;
            xid(XID_FALLEN_OFF_THE_BUS)
        }
        Fault::Ecc(_)
        | Fault::EccCorrected(_)
        | Fault::RemapPending
        | Fault::RemapFailed
        | Fault::RemapDone
        | Fault::Retire(_) => change_memory(index, gpu, fault)?,
        Fault::NvLink(choice, up) => {
            for link in links(index, gpu, *choice)? {
                link.up = *up;
            }
            if *up { Vec::new() } else { xid(XID_NVLINK) }
        }
        Fault::NvLinkErrors(choice, count) => {
            for link in links(index, gpu, *choice)? {
                link.replays = link.replays.saturating_add(*count);
                link.recoveries = link.recoveries.saturating_add(*count);
                link.crc_errors = link.crc_errors.saturating_add(*count);
            }
            Vec::new()
        }
        Fault::Mig(layout) => {
            gpu.mig = match layout {
                Some(words) => Mig::layout(gpu, words)?,
                None => Mig::default(),
            };
            // What ran in a partition ended with it.
            gpu.processes.retain(|process| process.partition.is_none());
            vec![(EventKind::MigConfig, 0)]
        }
        Fault::MigPending(_) if gpu.profile.mig.is_none() => {
            return Err(does_not_apply(index, gpu, "cannot be partitioned"));
        }
        Fault::Process(process) => {
            add_process(index, gpu, process)?;
            Vec::new()
        }
        Fault::Event(kind, data) => vec![(*kind, *data)],
        _ => {
            change_figure(gpu, fault);
            Vec::new()
        }
    };
    Ok(events)
}

fn change_memory(index: usize, gpu: &mut Gpu, fault: &Fault) -> Result<Events, FaultError> {
    if !gpu.profile.ecc_enabled {
        let why = "has error correction switched off, so it counts no memory errors";
        return Err(does_not_apply(index, gpu, why));
    }
    let remaps = gpu.profile.remaps_rows();
    let events = match fault {
        Fault::Ecc(errors) => {
            for counts in [&mut gpu.ecc.volatile, &mut gpu.ecc.aggregate] {
                counts.uncorrected = counts.uncorrected.saturating_add(*errors);
            }
            vec![
                (EventKind::DoubleBitEcc, 0),
                (EventKind::Xid, XID_DOUBLE_BIT_ECC),
            ]
        }
        Fault::EccCorrected(errors) => {
            for counts in [&mut gpu.ecc.volatile, &mut gpu.ecc.aggregate] {
                counts.corrected = counts.corrected.saturating_add(*errors);
            }
            vec![(EventKind::SingleBitEcc, 0)]
        }
        Fault::Retire(_) if remaps => {
            return Err(does_not_apply(
                index,
                gpu,
                "remaps rows and retires no pages",
            ));
        }
        Fault::Retire(count) => {
            let known = u64::try_from(gpu.retired_pages.len()).unwrap_or(u64::MAX);
            gpu.retired_pages
                .extend((known..known + count).map(|number| RetiredPage {
                    address: 0x10_0000 + number * 0x1000,
                    double_bit: true,
                    pending: true,
                }));
            xid_of(XID_ROW_REMAP)
        }
        _ if !remaps => {
            return Err(does_not_apply(
                index,
                gpu,
                "retires pages and remaps no rows",
            ));
        }
        Fault::RemapPending => {
            gpu.remapped_rows.uncorrectable += 1;
            gpu.remapped_rows.pending = true;
            xid_of(XID_ROW_REMAP)
        }
        Fault::RemapFailed => {
            gpu.remapped_rows.failed = true;
            xid_of(XID_ROW_REMAP_FAILURE)
        }
        _ => {
            gpu.remapped_rows.pending = false;
            gpu.remapped_rows.failed = false;
            Vec::new()
        }
    };
    Ok(events)
}

fn xid_of(code: u64) -> Events {
    vec![(EventKind::Xid, code)]
}

fn links(
    index: usize,
    gpu: &mut Gpu,
    choice: LinkChoice,
) -> Result<&mut [super::Link], FaultError> {
    let wanted = match choice {
        LinkChoice::All => 0..gpu.links.len(),
        LinkChoice::One(number) => {
            let number = usize::try_from(number).unwrap_or(usize::MAX - 1);
            number..number.saturating_add(1)
        }
    };
    if gpu.links.is_empty() || wanted.end > gpu.links.len() {
        return Err(does_not_apply(index, gpu, "has no such NVLink"));
    }
    Ok(&mut gpu.links[wanted])
}

fn add_process(index: usize, gpu: &mut Gpu, process: &Process) -> Result<(), FaultError> {
    let place = process.partition;
    if place.is_some_and(|place| gpu.mig.partition(place).is_none()) {
        return Err(does_not_apply(index, gpu, "has no such partition"));
    }
    if place.is_none() && gpu.mig.enabled {
        return Err(does_not_apply(
            index,
            gpu,
            "is partitioned; say in which partition the process runs (in GI/CI)",
        ));
    }
    let same = |known: &Process| known.pid == process.pid && known.kind == process.kind;
    gpu.processes.retain(|known| !same(known));
    if gpu.processes.len() >= MAX_PROCESSES {
        return Err(does_not_apply(
            index,
            gpu,
            "has as many processes as it can have",
        ));
    }
    gpu.processes.push(process.clone());
    if gpu.used_bytes(None) > gpu.profile.usable_bytes() {
        gpu.processes.pop();
        return Err(does_not_apply(index, gpu, "has not so much memory left"));
    }
    Ok(())
}

/// What only puts a figure into the state.
fn change_figure(gpu: &mut Gpu, fault: &Fault) {
    match fault {
        Fault::Throttle(bits) => gpu.clocks_event_reasons = *bits,
        Fault::Temperature(degrees) => gpu.temperature_celsius = *degrees,
        Fault::Power(milliwatts) => gpu.power_milliwatts = *milliwatts,
        Fault::Use(percent, memory) => {
            gpu.utilization_percent = *percent;
            gpu.memory_utilization_percent = *memory;
        }
        Fault::Pcie(generation, width) => {
            gpu.pcie.generation = Some(*generation);
            gpu.pcie.width = Some(*width);
        }
        Fault::PcieReplays(count) => gpu.pcie.replays = gpu.pcie.replays.saturating_add(*count),
        Fault::ProcessGone(pid) => gpu.processes.retain(|process| process.pid != *pid),
        Fault::MigPending(on) => gpu.mig.pending = *on,
        Fault::Hang(time_ms) => gpu.hang_ms = *time_ms,
        Fault::Heal => heal(gpu),
        Fault::Reset => gpu.reset(),
        Fault::Remove => gpu.present = false,
        // Done elsewhere: they are no figures of a card.
        _ => {}
    }
}

fn heal(gpu: &mut Gpu) {
    gpu.lost = false;
    gpu.hang_ms = 0;
    gpu.functions.clear();
    gpu.ecc.volatile = super::ErrorCounts::default();
    gpu.remapped_rows.pending = false;
    gpu.remapped_rows.failed = false;
    for page in &mut gpu.retired_pages {
        page.pending = false;
    }
    gpu.clocks_event_reasons = 0;
    gpu.pcie.generation = None;
    gpu.pcie.width = None;
    for link in &mut gpu.links {
        link.up = true;
    }
}

fn does_not_apply(index: usize, gpu: &Gpu, why: &'static str) -> FaultError {
    FaultError::DoesNotApply {
        index,
        model: gpu.profile.model.clone(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Layout;

    fn machine() -> State {
        State::from_profile("t4", 2, "node").unwrap()
    }

    fn card(profile: &str) -> State {
        State::from_profile(profile, 1, "node").unwrap()
    }

    fn inject(state: &mut State, index: usize, words: &str) -> Result<(), FaultError> {
        state.inject(index, &words.parse()?)
    }

    fn xids(state: &State) -> Vec<u64> {
        let xids = state.events.iter();
        xids.filter(|event| event.kind == EventKind::Xid)
            .map(|event| event.data)
            .collect()
    }

    #[test]
    fn a_lost_card_has_its_xid_and_heals() {
        let mut state = machine();
        inject(&mut state, 1, "lost").unwrap();
        assert!(state.gpus[1].lost && !state.gpus[0].lost);
        assert_eq!(xids(&state), [79]);
        assert_eq!(state.events[0].uuid, state.gpus[1].uuid);
        inject(&mut state, 1, "heal").unwrap();
        assert!(!state.gpus[1].lost);
    }

    #[test]
    fn a_card_can_be_removed_put_back_and_joined_by_another() {
        let mut state = machine();
        let uuid = state.gpus[0].uuid.clone();
        inject(&mut state, 0, "remove").unwrap();
        assert_eq!(inject(&mut state, 0, "lost"), Err(FaultError::Removed(0)));
        inject(&mut state, 0, "add").unwrap();
        assert_eq!(state.gpus[0].uuid, uuid);
        inject(&mut state, 2, "add h100-80gb").unwrap();
        assert_eq!(state.gpus[2].profile.name, "h100-80gb");
        assert_eq!(state.gpus[2].minor, 2);
        let refused = inject(&mut state, 9, "add").unwrap_err().to_string();
        assert_eq!(refused, "GPU 9 cannot be added: the next free index is 3");
    }

    #[test]
    fn swapped_cards_change_their_slots_and_stay_themselves() {
        let mut state = machine();
        let uuids: Vec<_> = state.gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
        inject(&mut state, 0, "swap 1").unwrap();
        assert_eq!(
            [&state.gpus[1].uuid, &state.gpus[0].uuid],
            [&uuids[0], &uuids[1]]
        );
        let slots: Vec<_> = state
            .gpus
            .iter()
            .map(|gpu| (gpu.pci_bus, gpu.minor))
            .collect();
        assert_eq!(slots, [(1, 0), (2, 1)]);
        assert!(inject(&mut state, 0, "swap 7").is_err());
    }

    #[test]
    fn a_fault_that_a_card_cannot_have_is_refused_with_the_reason() {
        let why = |profile: &str, words: &str| {
            inject(&mut card(profile), 0, words)
                .unwrap_err()
                .to_string()
        };
        assert!(why("rtx-4090", "ecc 1").contains("error correction switched off"));
        assert!(why("h100-80gb", "retire 1").contains("remaps rows"));
        assert!(why("t4", "remap pending").contains("retires pages"));
        assert!(why("t4", "nvlink 0 down").contains("no such NVLink"));
        assert!(why("t4", "mig 1g.5gb").contains("cannot be partitioned"));
        assert!(why("t4", "mig-pending on").contains("cannot be partitioned"));
        assert!(why("t4", "process 1 compute 99999").contains("not so much memory"));
        assert!(why("t4", "process 1 compute 1 in 3/0").contains("no such partition"));
        assert!(why("t4", "error nvmlNothing UNKNOWN").contains("no function `nvmlNothing`"));
    }

    #[test]
    fn errors_of_memory_are_counted_for_now_and_for_ever_and_a_reset_ends_the_former() {
        let mut state = card("h100-80gb");
        inject(&mut state, 0, "ecc 2").unwrap();
        inject(&mut state, 0, "remap pending").unwrap();
        assert_eq!(xids(&state), [48, 63]);
        inject(&mut state, 0, "reset").unwrap();
        let gpu = &state.gpus[0];
        assert_eq!(
            (gpu.ecc.volatile.uncorrected, gpu.ecc.aggregate.uncorrected),
            (0, 2)
        );
        assert!(!gpu.remapped_rows.pending);
        assert_eq!((gpu.remapped_rows.uncorrectable, gpu.resets), (1, 1));
    }

    #[test]
    fn one_xid_many_times_is_as_many_events_in_their_order() {
        let mut state = card("t4");
        inject(&mut state, 0, "xid 31 times 1000").unwrap();
        assert_eq!(xids(&state).len(), 1_000);
        assert!(state.events.iter().map(|event| event.sequence).eq(0..1_000));
    }

    #[test]
    fn partitions_go_with_a_reset_and_the_waiting_mode_comes() {
        let mut state = card("a100-40gb");
        inject(&mut state, 0, "mig 3g.20gb,2g.10gb").unwrap();
        inject(&mut state, 0, "process 7 compute 100 in 1/0").unwrap();
        assert!(inject(&mut state, 0, "process 8 compute 100").is_err());
        inject(&mut state, 0, "mig-pending off").unwrap();
        assert!(state.gpus[0].mig.enabled);
        inject(&mut state, 0, "reset").unwrap();
        assert_eq!(state.gpus[0].mig, Mig::default());
        assert!(state.gpus[0].processes.is_empty());
    }

    #[test]
    fn links_go_down_with_their_xid_and_come_up_without() {
        let mut state = State::from_profile("h100-80gb", 2, "node")
            .unwrap()
            .with_layout(Layout::Pairs)
            .unwrap();
        inject(&mut state, 0, "nvlink 3 down").unwrap();
        let down = |state: &State| state.gpus[0].links.iter().filter(|link| !link.up).count();
        assert_eq!((down(&state), xids(&state)), (1, vec![74]));
        inject(&mut state, 0, "nvlink all down").unwrap();
        assert_eq!(down(&state), 18);
        inject(&mut state, 0, "nvlink all up").unwrap();
        assert_eq!((down(&state), xids(&state)), (0, vec![74, 74]));
        assert!(inject(&mut state, 0, "nvlink 18 down").is_err());
    }

    #[test]
    fn misbehaviour_of_a_function_belongs_to_the_card_or_to_the_machine_and_can_be_ended() {
        let mut state = machine();
        inject(&mut state, 1, "error nvmlDeviceGetTemperature UNKNOWN").unwrap();
        inject(&mut state, 1, "hang nvmlInit_v2 50").unwrap();
        assert_eq!(state.gpus[1].functions.len(), 1);
        assert_eq!(state.driver.functions.len(), 1);
        inject(&mut state, 1, "error nvmlDeviceGetTemperature none").unwrap();
        inject(&mut state, 0, "hang nvmlInit_v2 0").unwrap();
        assert_eq!(state, machine());
    }

    #[test]
    fn a_reboot_leaves_what_is_the_cards_own() {
        let mut state = card("h100-80gb");
        for words in ["ecc 1", "lost", "init UNKNOWN", "hang nvmlInit_v2"] {
            inject(&mut state, 0, words).unwrap();
        }
        inject(&mut state, 0, "reboot").unwrap();
        assert!(!state.gpus[0].lost);
        assert_eq!(state.gpus[0].ecc.aggregate.uncorrected, 1);
        assert_eq!((state.driver.loads, state.driver.init_error), (2, None));
        assert!(state.driver.functions.is_empty() && state.events.is_empty());
    }

    #[test]
    fn loading_a_loaded_driver_changes_nothing() {
        let mut state = machine();
        inject(&mut state, 0, "load").unwrap();
        assert_eq!(state, machine());
        inject(&mut state, 0, "unload").unwrap();
        inject(&mut state, 0, "load").unwrap();
        assert_eq!(state.driver.loads, 2);
    }
}
