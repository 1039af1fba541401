//! What the library remembers between calls: sessions, handles and event sets.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, OsStr, c_void};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nvml_wrapper_sys::bindings as sys;

use crate::state::{
    Code as Named, ComputeInstance, EventKind, FILE_NAME, Gpu, GpuInstance, MigProfile,
    Misbehaviour, Partition, State,
};

/// NVML's return code where it is not success.
pub(crate) type Code = sys::nvmlReturn_t;
/// What a call gives.
pub(crate) type Answer<T> = Result<T, Code>;

pub(crate) const UNINITIALIZED: Code = sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;
pub(crate) const INVALID_ARGUMENT: Code = sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
pub(crate) const NOT_SUPPORTED: Code = sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
pub(crate) const NOT_FOUND: Code = sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
pub(crate) const INSUFFICIENT_SIZE: Code = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
pub(crate) const UNKNOWN: Code = sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN;
pub(crate) const VERSION_MISMATCH: Code = sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
const GPU_IS_LOST: Code = sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST;
const DRIVER_NOT_LOADED: Code = sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED;
const TIMEOUT: Code = sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT;
const RESOURCES: Code = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES;

/// Most event sets at a time; more are a leak of the caller's.
const MAX_EVENT_SETS: usize = 1024;
/// How long a wait sleeps at most before it looks at the state by itself, in case
/// the kernel's notice is lost or cannot be had.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// As above where the kernel gives no notices at all.
const LOOK_AGAIN_WITHOUT_NOTICE: Duration = Duration::from_millis(5);

/// The one library of this process (one for each copy of the file that is loaded).
pub(crate) static LIBRARY: LazyLock<Library> = LazyLock::new(Library::new);

pub(crate) struct Library {
    directory: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// How often the library was initialised and not yet shut down.
    references: usize,
    /// Rises with every session, so that a handle of an older one is recognised.
    session: usize,
    /// How often the driver had been loaded when the session began.
    driver_loads: u64,
    /// UUIDs of the cards that the session began with, in NVML's order.
    devices: Vec<String>,
    event_sets: HashMap<usize, EventSet>,
    next_event_set: usize,
    read: Option<(Stamp, Arc<State>)>,
}

/// Tells one content of the state file from another.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp {
    inode: u64,
    changed_s: i64,
    changed_ns: i64,
    size_bytes: u64,
}

#[derive(Default)]
struct EventSet {
    registered: Vec<Registration>,
    /// Number of the next event that was not given out yet.
    next: u64,
}

struct Registration {
    uuid: String,
    types: u64,
    /// Events before this one happened before the registration.
    since: u64,
}

/// An event as `nvmlEventSetWait_v2` gives it out.
pub(crate) struct Happened {
    pub(crate) device: sys::nvmlDevice_t,
    pub(crate) kind: u64,
    pub(crate) data: u64,
    pub(crate) gpu_instance: Option<u32>,
    pub(crate) compute_instance: Option<u32>,
}

/// What a handle stands for. NVML's device handles are those of cards and partitions; GPU
/// instances and compute instances have types of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handle {
    /// A card.
    Card,
    /// A partition as a device.
    Partition(Partition),
    /// A GPU instance.
    GpuInstance(u32),
    /// A compute instance.
    ComputeInstance(Partition),
}

/// A handle is a number that points nowhere. From its lowest bit: 12 of the index plus one,
/// 6 of the compute instance, 6 of the GPU instance, 2 of the kind, and the session.
mod bits {
    pub(super) const COMPUTE: u32 = 12;
    pub(super) const INSTANCE: u32 = 18;
    pub(super) const KIND: u32 = 24;
    pub(super) const SESSION: u32 = 26;
    pub(super) const INDEX_MASK: usize = 0xfff;
    pub(super) const INSTANCE_MASK: usize = 0x3f;
    pub(super) const KIND_MASK: usize = 0x3;
}

impl Handle {
    fn to_bits(self) -> usize {
        // Numbers of instances are checked when the state is read.
        let of = |instance: u32| usize::try_from(instance).unwrap_or(0);
        let both = |partition: Partition| {
            of(partition.gpu_instance) << bits::INSTANCE
                | of(partition.compute_instance) << bits::COMPUTE
        };
        match self {
            Self::Card => 0,
            Self::Partition(partition) => 1 << bits::KIND | both(partition),
            Self::GpuInstance(id) => 2 << bits::KIND | of(id) << bits::INSTANCE,
            Self::ComputeInstance(partition) => 3 << bits::KIND | both(partition),
        }
    }

    fn from_bits(handle: usize) -> Self {
        let part = |shift: u32| u32::try_from(handle >> shift & bits::INSTANCE_MASK).unwrap_or(0);
        let partition = Partition {
            gpu_instance: part(bits::INSTANCE),
            compute_instance: part(bits::COMPUTE),
        };
        match handle >> bits::KIND & bits::KIND_MASK {
            0 => Self::Card,
            1 => Self::Partition(partition),
            2 => Self::GpuInstance(partition.gpu_instance),
            _ => Self::ComputeInstance(partition),
        }
    }
}

/// One card, as the state was when the question came.
pub(crate) struct Device {
    state: Arc<State>,
    position: usize,
    /// Index in NVML's order.
    pub(crate) index: usize,
    /// What the handle stood for.
    pub(crate) handle: Handle,
    session: usize,
}

impl Device {
    /// A handle of something on the same card.
    pub(crate) fn handle_of<T>(&self, what: Handle) -> *mut T {
        handle(self.session, self.index, what)
    }

    /// The whole machine, as the state was when the question came.
    pub(crate) fn machine(&self) -> &State {
        &self.state
    }

    /// The partition that the handle stands for; nothing where it stands for a card.
    pub(crate) fn partition(&self) -> Option<Partition> {
        match self.handle {
            Handle::Partition(partition) => Some(partition),
            _ => None,
        }
    }

    /// The kind of a GPU instance of this card.
    pub(crate) fn profile_of(&self, instance: &GpuInstance) -> Answer<&'static MigProfile> {
        let family = self.profile.mig.ok_or(NOT_SUPPORTED)?;
        // Every instance was checked when the state was read.
        family.named(&instance.profile).ok_or(UNKNOWN)
    }

    /// The GPU instance that the handle stands for.
    pub(crate) fn gpu_instance(&self) -> Answer<&GpuInstance> {
        match self.handle {
            Handle::GpuInstance(id) => self.mig.instance(id).ok_or(INVALID_ARGUMENT),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    /// The compute instance that the handle, or the partition's handle, stands for.
    pub(crate) fn compute_instance(&self) -> Answer<(&GpuInstance, &ComputeInstance)> {
        match self.handle {
            Handle::Partition(partition) | Handle::ComputeInstance(partition) => {
                self.mig.partition(partition).ok_or(INVALID_ARGUMENT)
            }
            _ => Err(INVALID_ARGUMENT),
        }
    }
}

fn handle<T>(session: usize, index: usize, what: Handle) -> *mut T {
    std::ptr::without_provenance_mut(session << bits::SESSION | what.to_bits() | (index + 1))
}

impl std::ops::Deref for Device {
    type Target = Gpu;

    fn deref(&self) -> &Gpu {
        &self.state.gpus[self.position]
    }
}

impl Library {
    fn new() -> Self {
        Self {
            directory: own_directory().unwrap_or_default(),
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // A panic elsewhere was answered by an error; the memory is still whole,
        // because it is changed by single assignments.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn initialise(&self, function: &'static str) -> Answer<()> {
        self.misbehave(|memory| {
            let state = memory.state(&self.directory).ok_or(DRIVER_NOT_LOADED)?;
            Ok(Slow::of(&state.driver.functions, function, 0))
        })?;
        let mut memory = self.memory();
        let state = memory.state(&self.directory).ok_or(DRIVER_NOT_LOADED)?;
        if !state.driver.loaded {
            return Err(DRIVER_NOT_LOADED);
        }
        if let Some(Named(code)) = state.driver.init_error {
            return Err(code);
        }
        if memory.references == 0 {
            memory.begin(&state);
        }
        memory.references += 1;
        Ok(())
    }

    pub(crate) fn shut_down(&self) -> Answer<()> {
        let mut memory = self.memory();
        memory.references = memory.references.checked_sub(1).ok_or(UNINITIALIZED)?;
        if memory.references == 0 {
            memory.event_sets.clear();
            memory.devices.clear();
        }
        Ok(())
    }

    /// Whether the library is initialised. The driver under it may have gone.
    pub(crate) fn is_initialised(&self) -> bool {
        self.memory().references > 0
    }

    /// The state, for a question that needs neither session nor card.
    pub(crate) fn state(&self) -> Answer<Arc<State>> {
        self.memory().state(&self.directory).ok_or(UNKNOWN)
    }

    /// The state, for a question that needs a session.
    pub(crate) fn in_session(&self) -> Answer<Arc<State>> {
        self.memory().in_session(&self.directory)
    }

    /// Does what this function is to do instead of answering, whatever card it is about.
    pub(crate) fn meet(&self, function: &'static str) -> Answer<()> {
        self.misbehave(|memory| {
            let state = memory.state(&self.directory);
            Ok(state.map_or_else(Slow::default, |state| {
                Slow::of(&state.driver.functions, function, 0)
            }))
        })
    }

    /// Waits as long as this says, which is asked again and again, so that what heals answers
    /// at once; then returns what it says.
    fn misbehave(&self, mut now: impl FnMut(&mut Memory) -> Answer<Slow>) -> Answer<()> {
        let began = Instant::now();
        loop {
            let slow = now(&mut self.memory())?;
            let left = slow.time.saturating_sub(began.elapsed());
            if left.is_zero() {
                return slow.code.map_or(Ok(()), Err);
            }
            thread::sleep(left.min(LOOK_AGAIN));
        }
    }

    pub(crate) fn count(&self) -> Answer<usize> {
        let mut memory = self.memory();
        memory.in_session(&self.directory)?;
        Ok(memory.devices.len())
    }

    /// Handle of the first card of the session, or of its partition, for which this gives one.
    pub(crate) fn find(
        &self,
        function: &'static str,
        absent: Code,
        wanted: impl Fn(usize, &Gpu) -> Option<Handle>,
    ) -> Answer<sys::nvmlDevice_t> {
        let found = {
            let mut memory = self.memory();
            let state = memory.in_session(&self.directory)?;
            memory.devices.iter().enumerate().find_map(|(index, uuid)| {
                let gpu = state.gpus.iter().find(|gpu| &gpu.uuid == uuid)?;
                Some(handle(memory.session, index, wanted(index, gpu)?))
            })
        };
        let found = found.ok_or(absent)?;
        self.device(function, found).map(|_card| found)
    }

    /// The card of this handle, after as long as it takes to answer. It is an error that the
    /// handle stands for something that is not there.
    pub(crate) fn device<T>(&self, function: &'static str, handle: *mut T) -> Answer<Device> {
        let handle = handle.addr();
        self.misbehave(|memory| {
            let device = memory.device(&self.directory, handle)?;
            Ok(Slow::of(&device.functions, function, device.hang_ms))
        })?;
        let device = self.memory().device(&self.directory, handle)?;
        if device.lost || !device.present {
            return Err(GPU_IS_LOST);
        }
        let exists = match device.handle {
            Handle::Card => true,
            Handle::GpuInstance(id) => device.mig.instance(id).is_some(),
            Handle::Partition(partition) | Handle::ComputeInstance(partition) => {
                device.mig.partition(partition).is_some()
            }
        };
        exists.then_some(device).ok_or(INVALID_ARGUMENT)
    }

    /// The other cards of the session that are there, in NVML's order.
    pub(crate) fn others(&self, card: &Device) -> Vec<Device> {
        let mut memory = self.memory();
        let count = memory.devices.len();
        (0..count)
            .filter(|index| *index != card.index)
            .filter_map(|index| {
                let handle: sys::nvmlDevice_t = handle(card.session, index, Handle::Card);
                let other = memory.device(&self.directory, handle.addr()).ok()?;
                (other.present && !other.lost).then_some(other)
            })
            .collect()
    }

    pub(crate) fn create_event_set(&self) -> Answer<sys::nvmlEventSet_t> {
        let mut memory = self.memory();
        let state = memory.in_session(&self.directory)?;
        if memory.event_sets.len() >= MAX_EVENT_SETS {
            return Err(RESOURCES);
        }
        memory.next_event_set += 1;
        let number = memory.next_event_set;
        let set = EventSet {
            registered: Vec::new(),
            next: state.next_event,
        };
        memory.event_sets.insert(number, set);
        Ok(std::ptr::without_provenance_mut(number))
    }

    pub(crate) fn free_event_set(&self, set: sys::nvmlEventSet_t) -> Answer<()> {
        let mut memory = self.memory();
        memory.in_session(&self.directory)?;
        memory
            .event_sets
            .remove(&set.addr())
            .map(drop)
            .ok_or(INVALID_ARGUMENT)
    }

    pub(crate) fn register(
        &self,
        device: &Device,
        types: u64,
        set: sys::nvmlEventSet_t,
    ) -> Answer<()> {
        if types & !supported_events(device) != 0 {
            return Err(NOT_SUPPORTED);
        }
        let mut memory = self.memory();
        let since = memory.in_session(&self.directory)?.next_event;
        let set = memory
            .event_sets
            .get_mut(&set.addr())
            .ok_or(INVALID_ARGUMENT)?;
        match set
            .registered
            .iter_mut()
            .find(|known| known.uuid == device.uuid)
        {
            Some(known) => known.types |= types,
            None => set.registered.push(Registration {
                uuid: device.uuid.clone(),
                types,
                since,
            }),
        }
        Ok(())
    }

    /// The next event of this set, waiting for it as long as allowed.
    pub(crate) fn wait(&self, set: sys::nvmlEventSet_t, limit: Duration) -> Answer<Happened> {
        let began = Instant::now();
        // What is there is given at once: to end a watch takes the kernel milliseconds, in
        // which a burst of events would pile up.
        if let Some(event) = self.memory().next_event(&self.directory, set)? {
            return Ok(event);
        }
        // Before the next look, so that no change between look and sleep is missed.
        let notices = watch(&self.directory);
        loop {
            if let Some(event) = self.memory().next_event(&self.directory, set)? {
                return Ok(event);
            }
            let left = limit.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(TIMEOUT);
            }
            match &notices {
                Some(notices) => sleep_until_noticed(notices, left.min(LOOK_AGAIN)),
                None => thread::sleep(left.min(LOOK_AGAIN_WITHOUT_NOTICE)),
            }
        }
    }
}

impl Memory {
    fn begin(&mut self, state: &State) {
        self.session += 1;
        self.driver_loads = state.driver.loads;
        self.devices = state
            .gpus
            .iter()
            .filter(|gpu| gpu.present)
            .map(|gpu| gpu.uuid.clone())
            .collect();
    }

    /// The state as the file has it now; the last good one while the file is
    /// unreadable; nothing where there never was one.
    fn state(&mut self, directory: &Path) -> Option<Arc<State>> {
        let path = directory.join(FILE_NAME);
        let stamp = Stamp::of(&path)?;
        if self.read.as_ref().is_none_or(|(read, _)| *read != stamp) {
            match State::load(&path) {
                Ok(state) => self.read = Some((stamp, Arc::new(state))),
                Err(_) => return self.read.as_ref().map(|(_, state)| Arc::clone(state)),
            }
        }
        self.read.as_ref().map(|(_, state)| Arc::clone(state))
    }

    fn in_session(&mut self, directory: &Path) -> Answer<Arc<State>> {
        if self.references == 0 {
            return Err(UNINITIALIZED);
        }
        let state = self.state(directory).ok_or(UNKNOWN)?;
        // A session does not live through an unloaded or reloaded driver.
        if !state.driver.loaded || state.driver.loads != self.driver_loads {
            return Err(UNKNOWN);
        }
        Ok(state)
    }

    fn device(&mut self, directory: &Path, handle: usize) -> Answer<Device> {
        let state = self.in_session(directory)?;
        let (session, index) = (handle >> bits::SESSION, handle & bits::INDEX_MASK);
        let index = index.checked_sub(1).ok_or(INVALID_ARGUMENT)?;
        let uuid = self.devices.get(index).ok_or(INVALID_ARGUMENT)?;
        if session != self.session {
            return Err(INVALID_ARGUMENT);
        }
        let position = state
            .gpus
            .iter()
            .position(|gpu| &gpu.uuid == uuid)
            .ok_or(GPU_IS_LOST)?;
        Ok(Device {
            state,
            position,
            index,
            handle: Handle::from_bits(handle),
            session,
        })
    }

    fn next_event(
        &mut self,
        directory: &Path,
        set: sys::nvmlEventSet_t,
    ) -> Answer<Option<Happened>> {
        let state = self.in_session(directory)?;
        let set = self
            .event_sets
            .get_mut(&set.addr())
            .ok_or(INVALID_ARGUMENT)?;
        // A state that was put back to an older one starts its numbers again.
        set.next = set.next.min(state.next_event);
        // They are in the order of their numbers.
        let first = state
            .events
            .partition_point(|event| event.sequence < set.next);
        for event in state.events.range(first..) {
            let kind = event_bit(event.kind);
            let wanted = set.registered.iter().any(|known| {
                known.uuid == event.uuid && known.types & kind != 0 && event.sequence >= known.since
            });
            if wanted {
                set.next = event.sequence + 1;
                let index = self.devices.iter().position(|uuid| *uuid == event.uuid);
                return Ok(Some(Happened {
                    device: handle(self.session, index.ok_or(UNKNOWN)?, Handle::Card),
                    kind,
                    data: event.data,
                    gpu_instance: event.gpu_instance,
                    compute_instance: event.compute_instance,
                }));
            }
        }
        set.next = state.next_event;
        // Everything that happened is told; now the set says that it cannot hear one
        // of its cards any more.
        let lost = |known: &Registration| {
            !state
                .gpus
                .iter()
                .any(|gpu| gpu.uuid == known.uuid && gpu.present && !gpu.lost)
        };
        if set.registered.iter().any(lost) {
            return Err(GPU_IS_LOST);
        }
        Ok(None)
    }
}

/// What a function does before it answers, or instead of it.
#[derive(Default)]
struct Slow {
    time: Duration,
    code: Option<Code>,
}

impl Slow {
    fn of(
        functions: &BTreeMap<String, Misbehaviour>,
        function: &'static str,
        at_least_ms: u64,
    ) -> Self {
        let own = functions.get(function).copied().unwrap_or_default();
        Self {
            time: Duration::from_millis(own.hang_ms.max(at_least_ms)),
            code: own.code.map(|Named(code)| code),
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: file.ino(),
            changed_s: file.ctime(),
            changed_ns: file.ctime_nsec(),
            size_bytes: file.size(),
        })
    }
}

/// The event types that this card can report.
pub(crate) fn supported_events(gpu: &Gpu) -> u64 {
    EventKind::ALL
        .into_iter()
        .filter(|kind| match kind {
            EventKind::Xid | EventKind::PState | EventKind::Clock => true,
            EventKind::SingleBitEcc | EventKind::DoubleBitEcc => gpu.profile.ecc_enabled,
            EventKind::MigConfig => gpu.profile.mig.is_some(),
        })
        .fold(0, |types, kind| types | event_bit(kind))
}

fn event_bit(kind: EventKind) -> u64 {
    u64::from(match kind {
        EventKind::Xid => sys::nvmlEventTypeXidCriticalError,
        EventKind::SingleBitEcc => sys::nvmlEventTypeSingleBitEccError,
        EventKind::DoubleBitEcc => sys::nvmlEventTypeDoubleBitEccError,
        EventKind::PState => sys::nvmlEventTypePState,
        EventKind::Clock => sys::nvmlEventTypeClock,
        EventKind::MigConfig => sys::nvmlEventMigConfigChange,
    })
}

/// Directory of the file that this code was loaded from.
fn own_directory() -> Option<PathBuf> {
    let own_code: fn() -> Option<PathBuf> = own_directory;
    let address = own_code as *const c_void;
    // SAFETY: an all-zero Dl_info is a valid one: null pointers.
    let mut found: nix::libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: `address` lies in this library and `found` lives through the call.
    let known = unsafe { nix::libc::dladdr(address, &raw mut found) };
    if known == 0 || found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr gave a C string that lives as long as the library is loaded.
    let path = unsafe { CStr::from_ptr(found.dli_fname) };
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    // A program may have loaded it through a link, as drivers install one for each name.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.parent().map(Path::to_path_buf)
}

fn watch(directory: &Path) -> Option<Inotify> {
    let notices = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok()?;
    notices
        .add_watch(
            directory,
            AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CLOSE_WRITE,
        )
        .ok()?;
    Some(notices)
}

fn sleep_until_noticed(notices: &Inotify, limit: Duration) {
    let limit_ms = u16::try_from(limit.as_millis().max(1)).unwrap_or(u16::MAX);
    let mut waited = [PollFd::new(notices.as_fd(), PollFlags::POLLIN)];
    // A failure means to look at the state now, which is never wrong.
    if poll(&mut waited, PollTimeout::from(limit_ms)).is_ok_and(|ready| ready > 0) {
        let _what_does_not_matter = notices.read_events();
    }
}
