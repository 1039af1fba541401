//! The library where a driver's package puts it, and as an older driver has it.

use std::fs;
use std::path::Path;

use nvidia_ml::install::{
    HideError, InstallError, LIBRARY_DIRECTORY, LIBRARY_NAME, built_library, install_root,
    install_without,
};
use nvidia_ml::state::State;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

fn open(path: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(path.as_os_str()).init()
}

#[test]
fn a_drivers_root_has_libraries_under_their_version_and_links_to_them() {
    let root = tempfile::tempdir().unwrap();
    let state = State::from_profile("t4", 3, "node").unwrap();
    let library = built_library().unwrap();
    let installed = install_root(&library, root.path(), &state).unwrap();
    let directory = root.path().join(LIBRARY_DIRECTORY);
    assert_eq!(installed, directory.join(LIBRARY_NAME));
    for name in ["libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler"] {
        let link = directory.join(format!("{name}.so.1"));
        let version = &state.driver.version;
        assert_eq!(
            link.canonicalize().unwrap(),
            directory
                .canonicalize()
                .unwrap()
                .join(format!("{name}.so.{version}"))
        );
    }
    assert!(directory.join("libcuda.so").is_file());
    let said = std::process::Command::new(root.path().join("usr/bin/nvidia-smi"))
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains("stand-in"));
    // Again, as for a driver that is updated.
    install_root(&library, root.path(), &state).unwrap();
}

#[test]
fn a_library_that_is_loaded_through_links_finds_its_state() {
    let root = tempfile::tempdir().unwrap();
    let state = State::from_profile("t4", 3, "node").unwrap();
    let installed = install_root(&built_library().unwrap(), root.path(), &state).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("libnvidia-ml.so");
    std::os::unix::fs::symlink(&installed, &link).unwrap();
    assert_eq!(open(&link).unwrap().device_count().unwrap(), 3);
}

#[test]
fn a_function_that_was_taken_out_is_not_found_and_the_others_are() {
    let directory = tempfile::tempdir().unwrap();
    let state = State::from_profile("t4", 1, "node").unwrap();
    let missing = ["nvmlDeviceGetMemoryInfo_v2", "nvmlEventSetCreate"];
    let library = built_library().unwrap();
    let path = install_without(&library, directory.path(), &state, &missing).unwrap();
    let nvml = open(&path).unwrap();
    let device = nvml.device_by_index(0).unwrap();
    assert!(matches!(
        device.memory_info(),
        Err(NvmlError::FailedToLoadSymbol(_))
    ));
    assert!(nvml.lib().nvmlDeviceGetMemoryInfo.is_ok());
    assert!(nvml.lib().nvmlEventSetCreate.is_err());
    assert!(device.name().is_ok());
    let refused = install_without(&library, directory.path(), &state, &["nvmlNothing"]);
    assert!(matches!(
        refused,
        Err(InstallError::Hide(HideError::NoSuchFunction(name))) if name == "nvmlNothing"
    ));
    // The library that was there stays.
    assert!(fs::metadata(&path).unwrap().len() > 0);
}
