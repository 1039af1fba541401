//! What a card says of itself at a moment.

use std::collections::{BTreeMap, BTreeSet};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

use super::card::{Card, Memory, ask, call, if_known, version};
use super::links::{MAX_NVLINKS, nvlinks_up};
use super::mig::Partitions;
use super::{ReadError, Session, read_error};
use crate::health::Recovery;
use crate::inventory::{Mig, PcieLink};

/// Most processes of a card or partition that are listed, of each kind.
const MAX_PROCESSES: u32 = 4096;
/// Processes that there is room for at the first question.
const SOME_PROCESSES: u32 = 64;
/// Every which look asks for what takes long (the PCI Express throughput is counted for 20 ms)
/// or takes many calls and changes little.
const SLOW_LOOKS: u64 = 10;

/// What a card says of itself at the moment; what it does not know is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reading {
    /// The memory.
    pub memory: Option<Memory>,
    /// Processes that use the card, by the host's numbers, in order and each once: those that
    /// compute, those that draw and those of MPS.
    pub processes: Option<Vec<u32>>,
    /// Temperature of the die, in degrees Celsius.
    pub temperature_celsius: Option<u32>,
    /// Power drawn, in milliwatts.
    pub power_milliwatts: Option<u32>,
    /// The power limit that is enforced, in milliwatts.
    pub power_limit_milliwatts: Option<u32>,
    /// Energy drawn since the driver was loaded, in millijoules.
    pub energy_millijoules: Option<u64>,
    /// Share of the last moments in which a kernel ran, in percent.
    pub utilization_percent: Option<u32>,
    /// Share of the last moments in which memory was read or written, in percent.
    pub memory_utilization_percent: Option<u32>,
    /// The clocks of now.
    pub clocks: Clocks,
    /// Why the clocks are not higher, as NVML's bits.
    pub throttle_reasons: Option<u64>,
    /// Whether error correction is on.
    pub ecc_enabled: Option<bool>,
    /// Memory errors since the driver was loaded or the card was reset.
    pub ecc_volatile: EccErrors,
    /// Memory errors of the card's life.
    pub ecc_aggregate: EccErrors,
    /// Rows of memory that were remapped.
    pub remapped_rows: Option<RemappedRows>,
    /// Whether pages of memory are retired at the next reset.
    pub retired_pages_pending: Option<bool>,
    /// Whether the SRAM has had more uncorrectable errors than NVIDIA tolerates.
    pub sram_threshold_exceeded: Option<bool>,
    /// What the driver says must be done with the card; nothing where it cannot say.
    pub recovery: Option<RecoveryAsked>,
    /// The PCI Express link of now.
    pub pcie: Option<PcieLink>,
    /// The NVLink connections that are up, a bit for each; nothing where the card has none.
    pub nvlinks_up: Option<u32>,
    /// How the card is partitioned.
    pub mig: Mig,
    /// What the partitions say of themselves, by their UUID.
    pub partitions: BTreeMap<String, PartitionReading>,
    /// What changes little and is looked at less often.
    pub slow: SlowReading,
}

/// What a partition says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PartitionReading {
    /// The memory.
    pub memory: Option<Memory>,
    /// Processes that use the partition, by the host's numbers, in order and each once.
    pub processes: Option<Vec<u32>>,
}

/// Clocks in megahertz.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Clocks {
    /// Of the graphics engine.
    pub graphics_megahertz: Option<u32>,
    /// Of the streaming multiprocessors.
    pub sm_megahertz: Option<u32>,
    /// Of the memory.
    pub memory_megahertz: Option<u32>,
    /// Of the video engines.
    pub video_megahertz: Option<u32>,
}

/// Counts of memory errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EccErrors {
    /// That were corrected.
    pub corrected: Option<u64>,
    /// That could not be.
    pub uncorrected: Option<u64>,
}

/// Rows of memory that were remapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RemappedRows {
    /// After errors that were corrected.
    pub after_corrected: u32,
    /// After errors that could not be.
    pub after_uncorrected: u32,
    /// Whether one more is remapped at the next reset.
    pub pending: bool,
    /// Whether one could not be.
    pub failed: bool,
}

/// What the driver says must be done with a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryAsked {
    /// Nothing.
    Nothing,
    /// This.
    Something(Recovery),
}

/// What changes little, or takes long to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SlowReading {
    /// The highest clocks.
    pub clocks_max: Clocks,
    /// Temperature at which the card slows itself down, in degrees Celsius.
    pub slowdown_celsius: Option<u32>,
    /// Temperature at which the card switches itself off, in degrees Celsius.
    pub shutdown_celsius: Option<u32>,
    /// PCI Express packets that were sent again, since the card was initialised.
    pub pcie_replays: Option<u32>,
    /// Traffic from the card over PCI Express, in kilobytes a second.
    pub pcie_sent_kilobytes_per_second: Option<u32>,
    /// Traffic to the card over PCI Express, in kilobytes a second.
    pub pcie_received_kilobytes_per_second: Option<u32>,
    /// NVLink errors of all connections since they were set up, by [`NVLINK_ERRORS`].
    pub nvlink_errors: [Option<u64>; NVLINK_ERRORS.len()],
}

/// The kinds of NVLink errors that are counted.
pub const NVLINK_ERRORS: [(&str, u32); 4] = [
    (
        "replay",
        sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_REPLAY,
    ),
    (
        "recovery",
        sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_RECOVERY,
    ),
    (
        "crc_flit",
        sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_FLIT,
    ),
    (
        "crc_data",
        sys::nvmlNvLinkErrorCounter_enum_NVML_NVLINK_ERROR_DL_CRC_DATA,
    ),
];

/// Reads one card again and again.
#[derive(Debug)]
pub struct Reader {
    uuid: String,
    partitions: Partitions,
    looks: u64,
    slow: SlowReading,
}

impl Reader {
    /// Of the card of this UUID.
    #[must_use]
    pub fn new(uuid: &str) -> Self {
        Self {
            uuid: uuid.to_owned(),
            partitions: Partitions::default(),
            looks: 0,
            slow: SlowReading::default(),
        }
    }

    /// What the card says of itself now.
    pub fn read(&mut self, session: &Session) -> Result<Reading, ReadError> {
        let card = session.card(&self.uuid).map_err(read_error)?;
        self.ask(&card).map_err(read_error)
    }

    fn ask(&mut self, card: &Card<'_>) -> Result<Reading, NvmlError> {
        // Every card answers this one: it tells whether the card is there at all.
        let memory = card.memory()?;
        let mig = self.partitions.look(card)?;
        if self.looks.is_multiple_of(SLOW_LOOKS) {
            self.slow = slow(card)?;
        }
        self.looks += 1;
        let utilization = if_known(utilization(card))?;
        Ok(Reading {
            memory: Some(memory),
            processes: processes(card)?,
            temperature_celsius: if_known(
                ask!(card, nvmlDeviceGetTemperature(sys::nvmlTemperatureSensors_enum_NVML_TEMPERATURE_GPU) -> u32),
            )?,
            power_milliwatts: if_known(ask!(card, nvmlDeviceGetPowerUsage() -> u32))?,
            power_limit_milliwatts: if_known(card.power_limit_milliwatts())?,
            energy_millijoules: if_known(ask!(card, nvmlDeviceGetTotalEnergyConsumption() -> u64))?,
            utilization_percent: utilization.map(|rates| rates.gpu),
            memory_utilization_percent: utilization.map(|rates| rates.memory),
            clocks: clocks(|kind| ask!(card, nvmlDeviceGetClockInfo(kind) -> u32))?,
            throttle_reasons: throttle_reasons(card)?,
            ecc_enabled: if_known(card.ecc_enabled())?,
            ecc_volatile: ecc(card, sys::nvmlEccCounterType_enum_NVML_VOLATILE_ECC)?,
            ecc_aggregate: ecc(card, sys::nvmlEccCounterType_enum_NVML_AGGREGATE_ECC)?,
            remapped_rows: if_known(remapped_rows(card))?,
            retired_pages_pending: if_known(
                ask!(card, nvmlDeviceGetRetiredPagesPendingStatus() -> u32),
            )?
            .map(|pending| pending == sys::nvmlEnableState_enum_NVML_FEATURE_ENABLED),
            sram_threshold_exceeded: if_known(sram_threshold_exceeded(card))?,
            recovery: recovery(card)?,
            pcie: card.pcie()?,
            nvlinks_up: nvlinks_up(card)?,
            mig,
            partitions: self.partitions(card)?,
            slow: self.slow,
        })
    }

    fn partitions(&self, card: &Card<'_>) -> Result<BTreeMap<String, PartitionReading>, NvmlError> {
        let mut partitions = BTreeMap::new();
        for (uuid, handle) in self.partitions.handles() {
            let partition = card.with(handle.0);
            let reading = PartitionReading {
                memory: if_known(partition.memory())?,
                processes: processes(&partition)?,
            };
            partitions.insert(uuid.to_owned(), reading);
        }
        Ok(partitions)
    }
}

fn utilization(card: &Card<'_>) -> Result<sys::nvmlUtilization_t, NvmlError> {
    let mut rates = sys::nvmlUtilization_t { gpu: 0, memory: 0 };
    call!(card, nvmlDeviceGetUtilizationRates(&raw mut rates)).map(|()| rates)
}

fn clocks(ask: impl Fn(u32) -> Result<u32, NvmlError>) -> Result<Clocks, NvmlError> {
    Ok(Clocks {
        graphics_megahertz: if_known(ask(sys::nvmlClockType_enum_NVML_CLOCK_GRAPHICS))?,
        sm_megahertz: if_known(ask(sys::nvmlClockType_enum_NVML_CLOCK_SM))?,
        memory_megahertz: if_known(ask(sys::nvmlClockType_enum_NVML_CLOCK_MEM))?,
        video_megahertz: if_known(ask(sys::nvmlClockType_enum_NVML_CLOCK_VIDEO))?,
    })
}

/// Asks under the name that every driver knows, and under the new one where it is gone.
fn throttle_reasons(card: &Card<'_>) -> Result<Option<u64>, NvmlError> {
    match ask!(card, nvmlDeviceGetCurrentClocksThrottleReasons() -> u64) {
        Err(NvmlError::FailedToLoadSymbol(_)) => {
            if_known(ask!(card, nvmlDeviceGetCurrentClocksEventReasons() -> u64))
        }
        answer => if_known(answer),
    }
}

fn ecc(card: &Card<'_>, counter: u32) -> Result<EccErrors, NvmlError> {
    let count = |kind| if_known(ask!(card, nvmlDeviceGetTotalEccErrors(kind, counter) -> u64));
    Ok(EccErrors {
        corrected: count(sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_CORRECTED)?,
        uncorrected: count(sys::nvmlMemoryErrorType_enum_NVML_MEMORY_ERROR_TYPE_UNCORRECTED)?,
    })
}

fn remapped_rows(card: &Card<'_>) -> Result<RemappedRows, NvmlError> {
    let (mut corrected, mut uncorrected, mut pending, mut failed) = (0, 0, 0, 0);
    call!(
        card,
        nvmlDeviceGetRemappedRows(
            &raw mut corrected,
            &raw mut uncorrected,
            &raw mut pending,
            &raw mut failed
        )
    )?;
    Ok(RemappedRows {
        after_corrected: corrected,
        after_uncorrected: uncorrected,
        pending: pending != 0,
        failed: failed != 0,
    })
}

fn sram_threshold_exceeded(card: &Card<'_>) -> Result<bool, NvmlError> {
    // SAFETY: all zeros are a valid value.
    let mut status: sys::nvmlEccSramErrorStatus_t = unsafe { std::mem::zeroed() };
    status.version = version::<sys::nvmlEccSramErrorStatus_t>(1);
    call!(card, nvmlDeviceGetSramEccErrorStatus(&raw mut status))?;
    Ok(status.bThresholdExceeded != 0)
}

fn recovery(card: &Card<'_>) -> Result<Option<RecoveryAsked>, NvmlError> {
    // SAFETY: all zeros are a valid value.
    let mut field: sys::nvmlFieldValue_t = unsafe { std::mem::zeroed() };
    field.fieldId = sys::field_id::NVML_FI_DEV_GET_GPU_RECOVERY_ACTION;
    let asked = call!(card, nvmlDeviceGetFieldValues(1, &raw mut field));
    if if_known(asked)?.is_none()
        || field.nvmlReturn != sys::nvmlReturn_enum_NVML_SUCCESS
        || field.valueType != sys::nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT
    {
        return Ok(None);
    }
    // SAFETY: the type of the value says that it is this one.
    let action = unsafe { field.value.uiVal };
    Ok(match action {
        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NONE => {
            Some(RecoveryAsked::Nothing)
        }
        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_GPU_RESET => {
            Some(RecoveryAsked::Something(Recovery::Reset))
        }
        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_NODE_REBOOT => {
            Some(RecoveryAsked::Something(Recovery::Reboot))
        }
        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_P2P => {
            Some(RecoveryAsked::Something(Recovery::DrainPeers))
        }
        sys::nvmlDeviceGpuRecoveryAction_s_NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET => {
            Some(RecoveryAsked::Something(Recovery::DrainAndReset))
        }
        // Newer than this plugin.
        _ => None,
    })
}

fn slow(card: &Card<'_>) -> Result<SlowReading, NvmlError> {
    let threshold = |kind| if_known(ask!(card, nvmlDeviceGetTemperatureThreshold(kind) -> u32));
    let throughput = |kind| if_known(ask!(card, nvmlDeviceGetPcieThroughput(kind) -> u32));
    let mut nvlink_errors = [None; NVLINK_ERRORS.len()];
    for (sum, (_, counter)) in nvlink_errors.iter_mut().zip(NVLINK_ERRORS) {
        for number in 0..MAX_NVLINKS {
            let asked = ask!(card, nvmlDeviceGetNvLinkErrorCounter(number, counter) -> u64);
            if let Some(errors) = if_known(asked)? {
                let before: u64 = sum.unwrap_or(0);
                *sum = Some(before.saturating_add(errors));
            }
        }
    }
    Ok(SlowReading {
        clocks_max: clocks(|kind| ask!(card, nvmlDeviceGetMaxClockInfo(kind) -> u32))?,
        slowdown_celsius: threshold(
            sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        )?,
        shutdown_celsius: threshold(
            sys::nvmlTemperatureThresholds_enum_NVML_TEMPERATURE_THRESHOLD_SHUTDOWN,
        )?,
        pcie_replays: if_known(ask!(card, nvmlDeviceGetPcieReplayCounter() -> u32))?,
        pcie_sent_kilobytes_per_second: throughput(
            sys::nvmlPcieUtilCounter_enum_NVML_PCIE_UTIL_TX_BYTES,
        )?,
        pcie_received_kilobytes_per_second: throughput(
            sys::nvmlPcieUtilCounter_enum_NVML_PCIE_UTIL_RX_BYTES,
        )?,
        nvlink_errors,
    })
}

/// The processes of every kind. Unknown where those that compute cannot be listed; the other
/// kinds are asked for by newer drivers and some cards only.
fn processes(card: &Card<'_>) -> Result<Option<Vec<u32>>, NvmlError> {
    let computing =
        list(|count, infos| call!(card, nvmlDeviceGetComputeRunningProcesses_v3(count, infos)));
    let Some(mut all) = if_known(computing)? else {
        return Ok(None);
    };
    let drawing =
        list(|count, infos| call!(card, nvmlDeviceGetGraphicsRunningProcesses_v3(count, infos)));
    let shared = list(|count, infos| {
        call!(
            card,
            nvmlDeviceGetMPSComputeRunningProcesses_v3(count, infos)
        )
    });
    all.extend(if_known(drawing)?.unwrap_or_default());
    all.extend(if_known(shared)?.unwrap_or_default());
    Ok(Some(all.into_iter().collect()))
}

fn list(
    ask: impl Fn(*mut u32, *mut sys::nvmlProcessInfo_t) -> Result<(), NvmlError>,
) -> Result<BTreeSet<u32>, NvmlError> {
    // SAFETY: all zeros are a valid value.
    let nothing: sys::nvmlProcessInfo_t = unsafe { std::mem::zeroed() };
    let mut room = SOME_PROCESSES;
    loop {
        let mut infos = vec![nothing; room as usize];
        let mut count = room;
        match ask(&raw mut count, infos.as_mut_ptr()) {
            Ok(()) => {
                infos.truncate(count as usize);
                return Ok(infos.iter().map(|info| info.pid).collect());
            }
            // More came in the meantime, so that twice as much room is made as is needed.
            Err(NvmlError::InsufficientSize(_)) if room < MAX_PROCESSES => {
                room = count.max(room).saturating_mul(2).min(MAX_PROCESSES);
            }
            Err(error) => return Err(error),
        }
    }
}
