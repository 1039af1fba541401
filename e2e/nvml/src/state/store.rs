use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{FILE_NAME, Fault, FaultError, Gpu, MAX_GPUS, MAX_PROCESSES, State};

/// Longest text in the state: NVML's smallest buffer for a name, without its end.
const MAX_TEXT_BYTES: usize = 63;
/// Highest number of an instance. The driver's own end at 14.
const MAX_INSTANCE_ID: u32 = 63;
/// Largest file that is read: a full state has about 20 MiB.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// The state could not be read, changed or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no state.
    #[error("{} is not a state of the stand-in library: {why}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The fault does not fit.
    #[error(transparent)]
    Fault(#[from] FaultError),
}

impl State {
    /// Where the state of a library in this directory lies.
    #[must_use]
    pub fn path_in(directory: &Path) -> PathBuf {
        directory.join(FILE_NAME)
    }

    /// Reads the state.
    pub fn load(path: &Path) -> Result<Self, StoreError> {
        let size = fs::metadata(path).map_err(failed("read", path))?.len();
        let content = |why: String| StoreError::Content {
            path: path.to_owned(),
            why,
        };
        if size > MAX_FILE_BYTES {
            return Err(content(format!("{size} bytes are too many")));
        }
        let text = fs::read(path).map_err(failed("read", path))?;
        let state: Self =
            serde_json::from_slice(&text).map_err(|error| content(error.to_string()))?;
        state.validate().map_err(content)?;
        Ok(state)
    }

    /// Writes the state. Whoever reads at the same time sees the old one or the new
    /// one, never a part.
    pub fn store(&self, path: &Path) -> Result<(), StoreError> {
        self.validate().map_err(|why| StoreError::Content {
            path: path.to_owned(),
            why,
        })?;
        let text = serde_json::to_vec_pretty(self).map_err(|error| StoreError::Content {
            path: path.to_owned(),
            why: error.to_string(),
        })?;
        // The process id keeps two writers apart. No fsync: the state describes a
        // machine that does not outlive a power cut either.
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        fs::write(&temporary, text).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, path).map_err(failed("replace", path))
    }

    /// Reads, changes and writes the state while no other process does.
    ///
    /// Nothing is written when `change` refuses.
    pub fn change<T, E: From<StoreError>>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let lock_path = path.with_extension("lock");
        let lock = File::options()
            .create(true)
            .append(true)
            .open(&lock_path)
            .map_err(failed("open", &lock_path))?;
        // Held until the file is closed at the end of this function.
        lock.lock().map_err(failed("lock", &lock_path))?;
        let mut state = Self::load(path)?;
        let result = change(&mut state)?;
        state.store(path)?;
        Ok(result)
    }

    /// Does this to one card of a library that may be in use.
    pub fn inject_into(path: &Path, index: usize, fault: &Fault) -> Result<(), StoreError> {
        Self::change(path, |state| Ok(state.inject(index, fault)?))
    }

    fn validate(&self) -> Result<(), String> {
        if self.gpus.len() > MAX_GPUS {
            return Err(format!(
                "gpus: {} are too many, at most {MAX_GPUS} are allowed",
                self.gpus.len()
            ));
        }
        text("driver.version", &self.driver.version)?;
        text("driver.nvmlVersion", &self.driver.nvml_version)?;
        for (index, gpu) in self.gpus.iter().enumerate() {
            text(&format!("gpus[{index}].uuid"), &gpu.uuid)?;
            text(&format!("gpus[{index}].profile.model"), &gpu.profile.model)?;
            // NVML's buffer for a serial number is half as long.
            if gpu.serial.len() > 29 {
                return Err(format!("gpus[{index}].serial: longer than 29 bytes"));
            }
            text(&format!("gpus[{index}].serial"), &gpu.serial)?;
            if gpu.used_bytes(None) > gpu.profile.usable_bytes() {
                return Err(format!(
                    "gpus[{index}].memoryUsedBytes: more than the card has"
                ));
            }
            if gpu.processes.len() > MAX_PROCESSES {
                return Err(format!(
                    "gpus[{index}].processes: at most {MAX_PROCESSES} are allowed"
                ));
            }
            partitions(gpu).map_err(|why| format!("gpus[{index}].mig: {why}"))?;
            if self.gpus[..index]
                .iter()
                .any(|other| other.uuid == gpu.uuid)
            {
                return Err(format!("gpus[{index}].uuid: {} is there twice", gpu.uuid));
            }
        }
        Ok(())
    }
}

fn partitions(gpu: &Gpu) -> Result<(), String> {
    let mig = &gpu.mig;
    let Some(family) = gpu.profile.mig else {
        return if mig.enabled || mig.pending || !mig.instances.is_empty() {
            Err("this card cannot be partitioned".to_owned())
        } else {
            Ok(())
        };
    };
    for (number, instance) in mig.instances.iter().enumerate() {
        if !mig.enabled {
            return Err("there are instances although it is not enabled".to_owned());
        }
        if family.named(&instance.profile).is_none() {
            return Err(format!("{} is no partition of this card", instance.profile));
        }
        if instance.id > MAX_INSTANCE_ID
            || mig.instances[..number]
                .iter()
                .any(|other| other.id == instance.id)
        {
            return Err(format!(
                "instance {}: its id is taken or too high",
                instance.id
            ));
        }
        for compute in &instance.compute_instances {
            if compute.id > MAX_INSTANCE_ID {
                return Err(format!(
                    "compute instance {}: its id is too high",
                    compute.id
                ));
            }
            text("compute instance's uuid", &compute.uuid)?;
        }
    }
    Ok(())
}

fn text(field: &str, value: &str) -> Result<(), String> {
    if value.is_empty() || value.len() > MAX_TEXT_BYTES || value.contains('\0') {
        return Err(format!(
            "{field}: needs 1 to {MAX_TEXT_BYTES} bytes without a zero byte"
        ));
    }
    Ok(())
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::EventKind;

    #[test]
    fn what_is_stored_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = State::path_in(directory.path());
        let state = State::from_profile("l40s", 3, "node").unwrap();
        state.store(&path).unwrap();
        assert_eq!(State::load(&path).unwrap(), state);
    }

    #[test]
    fn two_writers_lose_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let path = State::path_in(directory.path());
        State::from_profile("t4", 2, "node")
            .unwrap()
            .store(&path)
            .unwrap();
        std::thread::scope(|scope| {
            for index in 0..2 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..50 {
                        State::inject_into(path, index, &Fault::Event(EventKind::Xid, 13)).unwrap();
                    }
                });
            }
        });
        assert_eq!(State::load(&path).unwrap().events.len(), 100);
    }

    #[test]
    fn a_refused_fault_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = State::path_in(directory.path());
        let state = State::from_profile("t4", 1, "node").unwrap();
        state.store(&path).unwrap();
        assert!(State::inject_into(&path, 4, &Fault::Lost).is_err());
        assert_eq!(State::load(&path).unwrap(), state);
    }

    #[test]
    fn a_wrong_state_is_refused_with_the_field_that_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let path = State::path_in(directory.path());
        let good = State::from_profile("t4", 2, "node").unwrap();
        let refused = |change: &dyn Fn(&mut State)| {
            let mut state = good.clone();
            change(&mut state);
            state.store(&path).unwrap_err().to_string()
        };
        assert!(
            refused(&|state| state.gpus[1].uuid = state.gpus[0].uuid.clone())
                .contains("gpus[1].uuid")
        );
        assert!(refused(&|state| state.gpus[0].serial = "9".repeat(30)).contains("gpus[0].serial"));
        assert!(
            refused(&|state| state.gpus[1].memory_used_bytes = u64::MAX)
                .contains("memoryUsedBytes")
        );
        assert!(
            refused(&|state| {
                let gpu = state.gpus[0].clone();
                state.gpus = (0..129)
                    .map(|index| Gpu::new(gpu.profile.clone(), "x", index))
                    .collect();
            })
            .contains("at most 128")
        );
        fs::write(&path, "{\"gpus\": 7}").unwrap();
        assert!(
            State::load(&path)
                .unwrap_err()
                .to_string()
                .contains("nvml-stand-in.json is not")
        );
    }
}
