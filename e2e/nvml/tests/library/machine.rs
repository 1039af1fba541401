//! A machine with the stand-in library and its state in a temporary folder.

use std::path::{Path, PathBuf};

use nvidia_ml::install::{LIBRARY_NAME, install_built};
use nvidia_ml::state::{Fault, Layout, State};
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::{self as sys, NvmlLib};
use tempfile::TempDir;

use crate::codes::OK;

pub struct Machine {
    pub directory: TempDir,
    pub state: State,
}

pub fn machine(profile: &str, count: usize) -> Machine {
    laid_out(profile, count, Layout::Flat)
}

pub fn laid_out(profile: &str, count: usize, layout: Layout) -> Machine {
    let directory = tempfile::tempdir().unwrap();
    let state = State::from_profile(profile, count, "node-1")
        .unwrap()
        .with_layout(layout)
        .unwrap();
    install_built(directory.path(), &state).unwrap();
    Machine { directory, state }
}

impl Machine {
    pub fn library(&self) -> PathBuf {
        self.directory.path().join(LIBRARY_NAME)
    }

    pub fn state_path(&self) -> PathBuf {
        State::path_in(self.directory.path())
    }

    pub fn try_open(&self) -> Result<Nvml, NvmlError> {
        Nvml::builder().lib_path(self.library().as_os_str()).init()
    }

    pub fn open(&self) -> Nvml {
        self.try_open().unwrap()
    }

    /// The functions themselves, not initialised.
    pub fn load(&self) -> NvmlLib {
        // SAFETY: loading runs no code of the library but the runtime's own.
        unsafe { NvmlLib::new(self.library()) }.unwrap()
    }

    /// The functions themselves, in a session.
    pub fn begin(&self) -> NvmlLib {
        let library = self.load();
        // SAFETY: it takes no pointers.
        assert_eq!(unsafe { library.nvmlInit_v2() }, OK);
        library
    }

    pub fn inject(&self, index: usize, fault: &str) {
        inject(&self.state_path(), index, fault);
    }

    /// The state as it is now.
    pub fn now(&self) -> State {
        State::load(&self.state_path()).unwrap()
    }
}

pub fn inject(path: &Path, index: usize, fault: &str) {
    State::inject_into(path, index, &fault.parse::<Fault>().unwrap()).unwrap();
}

/// Handle of the card of this index.
pub fn card(nvml: &NvmlLib, index: u32) -> sys::nvmlDevice_t {
    let mut device = std::ptr::null_mut();
    // SAFETY: the pointer is to a local variable.
    assert_eq!(
        unsafe { nvml.nvmlDeviceGetHandleByIndex_v2(index, &raw mut device) },
        OK
    );
    device
}
