//! How a card is partitioned.

use std::collections::BTreeMap;

use nvml_wrapper::error::{NvmlError, nvml_sym, nvml_try};
use nvml_wrapper_sys::bindings as sys;

use super::card::{Card, Handle, ask, call, if_known};
use crate::inventory::{Mig, MigDevice};

/// Most partitions of a card that are looked at.
const MAX_PARTITIONS: u32 = 64;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The partitions that were named already, so that a layout which does not change costs a few
/// calls to look at.
#[derive(Debug, Default)]
pub(super) struct Partitions {
    known: BTreeMap<String, (Handle, MigDevice)>,
}

impl Partitions {
    /// How the card is partitioned now.
    pub(super) fn look(&mut self, card: &Card<'_>) -> Result<Mig, NvmlError> {
        let (mut now, mut pending) = (0, 0);
        let asked = call!(card, nvmlDeviceGetMigMode(&raw mut now, &raw mut pending));
        if if_known(asked)?.is_none() {
            self.known.clear();
            return Ok(Mig::Unsupported);
        }
        if now != sys::NVML_DEVICE_MIG_ENABLE {
            self.known.clear();
            return Ok(Mig::Off);
        }
        // A library that cannot count them has none that could be given away.
        let most = if_known(ask!(card, nvmlDeviceGetMaxMigDeviceCount() -> u32))?.unwrap_or(0);
        let mut known = BTreeMap::new();
        for index in 0..most.min(MAX_PARTITIONS) {
            let mut handle = std::ptr::null_mut();
            let asked = call!(
                card,
                nvmlDeviceGetMigDeviceHandleByIndex(index, &raw mut handle)
            );
            // There is a number for each partition that there could be.
            if if_known(asked)?.is_none() {
                continue;
            }
            // One that is taken away while it is looked at is not there.
            if let Some((uuid, found)) = if_known(self.identify(card, &card.with(handle)))? {
                known.insert(uuid, found);
            }
        }
        self.known = known;
        let mut devices: Vec<MigDevice> = self
            .known
            .values()
            .map(|(_, device)| device.clone())
            .collect();
        devices.sort_by_key(|device| (device.gpu_instance, device.compute_instance));
        Ok(Mig::On(devices))
    }

    /// The partitions as they were looked at last, with their handles.
    pub(super) fn handles(&self) -> impl Iterator<Item = (&str, Handle)> {
        self.known
            .iter()
            .map(|(uuid, (handle, _))| (uuid.as_str(), *handle))
    }

    fn identify(
        &self,
        card: &Card<'_>,
        partition: &Card<'_>,
    ) -> Result<(String, (Handle, MigDevice)), NvmlError> {
        let uuid = partition.uuid()?;
        let gpu_instance = ask!(partition, nvmlDeviceGetGpuInstanceId() -> u32)?;
        let compute_instance = ask!(partition, nvmlDeviceGetComputeInstanceId() -> u32)?;
        if let Some((_, known)) = self.known.get(&uuid)
            && (known.gpu_instance, known.compute_instance) == (gpu_instance, compute_instance)
        {
            return Ok((uuid, (partition.handle, known.clone())));
        }
        let size = Size::of(partition)?;
        let device = MigDevice {
            uuid: uuid.clone(),
            profile: profile(card, partition, gpu_instance, compute_instance, &size)?,
            gpu_instance,
            compute_instance,
            memory_bytes: size.memory_mib * MIB,
        };
        Ok((uuid, (partition.handle, device)))
    }
}

/// How large a partition is.
struct Size {
    gpu_slices: u32,
    compute_slices: u32,
    memory_mib: u64,
}

impl Size {
    fn of(partition: &Card<'_>) -> Result<Self, NvmlError> {
        // SAFETY: all zeros are a valid value.
        let mut attributes: sys::nvmlDeviceAttributes_t = unsafe { std::mem::zeroed() };
        call!(partition, nvmlDeviceGetAttributes_v2(&raw mut attributes))?;
        Ok(Self {
            gpu_slices: attributes.gpuInstanceSliceCount,
            compute_slices: attributes.computeInstanceSliceCount,
            memory_mib: attributes.memorySizeMB,
        })
    }
}

/// NVIDIA's name of the partition's size: from what it was made of, as NVIDIA's own tools do;
/// where the library does not tell that, the name that it has for the partition; else from its
/// size.
fn profile(
    card: &Card<'_>,
    partition: &Card<'_>,
    gpu_instance: u32,
    compute_instance: u32,
    size: &Size,
) -> Result<String, NvmlError> {
    let total = card.memory()?.total;
    if let Some(made_of) = if_known(made_of(card, gpu_instance, compute_instance))? {
        let (gpu_slices, compute_slices) = made_of.slices(size);
        let memory = gibibytes(size.memory_mib, total);
        return Ok(name(
            gpu_slices,
            compute_slices,
            memory,
            extras(made_of.gpu_profile),
        ));
    }
    if let Some(own) = if_known(partition.name())?
        && let Some((_, profile)) = own.split_once(" MIG ")
    {
        return Ok(profile.to_owned());
    }
    let memory = gibibytes(size.memory_mib, total);
    Ok(name(size.gpu_slices, size.compute_slices, memory, ""))
}

/// The numbers of the profiles that a partition was made of.
struct MadeOf {
    gpu_profile: u32,
    compute_profile: Option<u32>,
}

impl MadeOf {
    /// Slices of the GPU instance and of the compute instance; as many as the partition says
    /// where a number is newer than this plugin.
    fn slices(&self, size: &Size) -> (u32, u32) {
        let of_gpu = match self.gpu_profile {
            sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE
            | sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1
            | sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV2
            | sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX
            | sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME
            | sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME => 1,
            sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE
            | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1
            | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_GFX
            | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_NO_ME
            | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME => 2,
            sys::NVML_GPU_INSTANCE_PROFILE_3_SLICE => 3,
            sys::NVML_GPU_INSTANCE_PROFILE_4_SLICE | sys::NVML_GPU_INSTANCE_PROFILE_4_SLICE_GFX => {
                4
            }
            sys::NVML_GPU_INSTANCE_PROFILE_6_SLICE => 6,
            sys::NVML_GPU_INSTANCE_PROFILE_7_SLICE => 7,
            sys::NVML_GPU_INSTANCE_PROFILE_8_SLICE => 8,
            _ => size.gpu_slices,
        };
        let of_compute = match self.compute_profile {
            Some(
                sys::NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE
                | sys::NVML_COMPUTE_INSTANCE_PROFILE_1_SLICE_REV1,
            ) => 1,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_2_SLICE) => 2,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_3_SLICE) => 3,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_4_SLICE) => 4,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_6_SLICE) => 6,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_7_SLICE) => 7,
            Some(sys::NVML_COMPUTE_INSTANCE_PROFILE_8_SLICE) => 8,
            _ => size.compute_slices,
        };
        (of_gpu, of_compute)
    }
}

fn made_of(card: &Card<'_>, gpu_instance: u32, compute_instance: u32) -> Result<MadeOf, NvmlError> {
    let mut instance = std::ptr::null_mut();
    call!(
        card,
        nvmlDeviceGetGpuInstanceById(gpu_instance, &raw mut instance)
    )?;
    let lib = card.nvml.lib();
    // SAFETY: all zeros are a valid value.
    let mut info: sys::nvmlGpuInstanceInfo_t = unsafe { std::mem::zeroed() };
    let ask = nvml_sym(lib.nvmlGpuInstanceGetInfo.as_ref())?;
    // SAFETY: the instance is the library's own, and `info` lives through the call.
    nvml_try(unsafe { ask(instance, &raw mut info) })?;
    for number in 0..sys::NVML_GPU_INSTANCE_PROFILE_COUNT {
        // SAFETY: all zeros are a valid value.
        let mut profile: sys::nvmlGpuInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        let asked = call!(
            card,
            nvmlDeviceGetGpuInstanceProfileInfo(number, &raw mut profile)
        );
        if if_known(asked)?.is_some() && profile.id == info.profileId {
            let compute = compute_profile(card, instance, compute_instance);
            return Ok(MadeOf {
                gpu_profile: number,
                compute_profile: if_known(compute)?.flatten(),
            });
        }
    }
    Err(NvmlError::NotFound)
}

fn compute_profile(
    card: &Card<'_>,
    gpu_instance: sys::nvmlGpuInstance_t,
    compute_instance: u32,
) -> Result<Option<u32>, NvmlError> {
    let lib = card.nvml.lib();
    let mut instance = std::ptr::null_mut();
    let get = nvml_sym(lib.nvmlGpuInstanceGetComputeInstanceById.as_ref())?;
    // SAFETY: the GPU instance is the library's own, and `instance` lives through the call.
    nvml_try(unsafe { get(gpu_instance, compute_instance, &raw mut instance) })?;
    // SAFETY: all zeros are a valid value.
    let mut info: sys::nvmlComputeInstanceInfo_t = unsafe { std::mem::zeroed() };
    let ask = nvml_sym(lib.nvmlComputeInstanceGetInfo_v2.as_ref())?;
    // SAFETY: the instance is the library's own, and `info` lives through the call.
    nvml_try(unsafe { ask(instance, &raw mut info) })?;
    let ask = nvml_sym(lib.nvmlGpuInstanceGetComputeInstanceProfileInfo.as_ref())?;
    for number in 0..sys::NVML_COMPUTE_INSTANCE_PROFILE_COUNT {
        // SAFETY: all zeros are a valid value.
        let mut profile: sys::nvmlComputeInstanceProfileInfo_t = unsafe { std::mem::zeroed() };
        let shared = sys::NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED;
        // SAFETY: as above.
        let asked = nvml_try(unsafe { ask(gpu_instance, number, shared, &raw mut profile) });
        if if_known(asked)?.is_some() && profile.id == info.profileId {
            return Ok(Some(number));
        }
    }
    Ok(None)
}

/// What a GPU instance has or lacks beside its slices.
fn extras(gpu_profile: u32) -> &'static str {
    match gpu_profile {
        sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_REV1
        | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_REV1 => "+me",
        sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_ALL_ME
        | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_ALL_ME => "+me.all",
        sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_GFX
        | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_GFX
        | sys::NVML_GPU_INSTANCE_PROFILE_4_SLICE_GFX => "+gfx",
        sys::NVML_GPU_INSTANCE_PROFILE_1_SLICE_NO_ME
        | sys::NVML_GPU_INSTANCE_PROFILE_2_SLICE_NO_ME => "-me",
        _ => "",
    }
}

fn name(gpu_slices: u32, compute_slices: u32, gibibytes: u64, extras: &str) -> String {
    if gpu_slices == compute_slices {
        format!("{gpu_slices}g.{gibibytes}gb{extras}")
    } else {
        format!("{compute_slices}c.{gpu_slices}g.{gibibytes}gb{extras}")
    }
}

/// A partition's memory as its name says it: the eighths of the card that it takes, rounded
/// up, of the card's memory in GiB, rounded up; the product rounded to the nearest.
fn gibibytes(partition_mib: u64, card_bytes: u64) -> u64 {
    const EIGHTHS: u128 = 8;
    let (partition, card) = (
        u128::from(partition_mib) * u128::from(MIB),
        u128::from(card_bytes).max(1),
    );
    let eighths = (partition * EIGHTHS).div_ceil(card);
    let card_gib = u128::from(card_bytes.div_ceil(GIB));
    u64::try_from((eighths * card_gib + EIGHTHS / 2) / EIGHTHS).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_named_as_nvidia_names_it() {
        // Partition and card in MiB, as nvidia-smi shows them.
        for (partition, card, named) in [
            (4_864, 40_960, 5),
            (9_856, 40_960, 10),
            (19_968, 40_960, 20),
            (40_192, 40_960, 40),
            (9_728, 81_920, 10),
            (19_968, 81_920, 20),
            (40_192, 81_920, 40),
            (9_984, 81_559, 10),
            (40_448, 81_559, 40),
            (16_384, 143_771, 18),
            (5_836, 24_576, 6),
            (11_968, 24_576, 12),
        ] {
            assert_eq!(
                gibibytes(partition, card * MIB),
                named,
                "{partition} of {card}"
            );
        }
        assert_eq!(gibibytes(1, 0), 0);
    }

    #[test]
    fn profiles_are_named_as_nvidias_tools_name_them() {
        assert_eq!(name(1, 1, 10, ""), "1g.10gb");
        assert_eq!(name(3, 1, 20, ""), "1c.3g.20gb");
        assert_eq!(name(1, 1, 10, extras(7)), "1g.10gb+me");
        assert_eq!(name(1, 1, 24, extras(10)), "1g.24gb+gfx");
        assert_eq!(name(1, 1, 24, extras(13)), "1g.24gb-me");
    }
}
