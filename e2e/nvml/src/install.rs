//! Puts the library and its state where a driver would have put it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::state::{State, StoreError};

/// Name under which programs load the driver's library.
pub const LIBRARY_NAME: &str = "libnvidia-ml.so.1";

/// Name under which cargo builds the library.
const BUILT_NAME: &str = "libnvidia_ml.so";

/// The library could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Nobody built the library.
    #[error(
        "{BUILT_NAME} is not beside the running program; build it with `cargo build -p creo-nvml-stand-in`"
    )]
    NotBuilt,
    /// The file system refused.
    #[error("cannot install the library in {}: {source}", directory.display())]
    File {
        /// Where it should go.
        directory: PathBuf,
        /// Why it does not.
        source: io::Error,
    },
    /// The state could not be written.
    #[error(transparent)]
    State(#[from] StoreError),
}

/// Path of the library that cargo built together with the running program: in `deps` of the
/// program's folder, or beside a test, which lies in `deps` itself.
#[must_use]
pub fn built_library() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let beside = program.parent()?;
    // The one in `deps` first: cargo makes it anew with every dependent, and the one beside
    // the program only when it is asked for by name.
    [
        beside.join("deps").join(BUILT_NAME),
        beside.join(BUILT_NAME),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

/// Copies this library and its state into a directory, which is made where it is
/// missing, and gives the path of the installed library.
///
/// It is a copy and no link, because the loader takes two links for one library.
pub fn install(library: &Path, directory: &Path, state: &State) -> Result<PathBuf, InstallError> {
    let failed = |source| InstallError::File {
        directory: directory.to_owned(),
        source,
    };
    fs::create_dir_all(directory).map_err(failed)?;
    state.store(&State::path_in(directory))?;
    let installed = directory.join(LIBRARY_NAME);
    // A process may have the old copy mapped: writing into it would crash that
    // process, renaming over it does not.
    let temporary = directory.join(format!("{LIBRARY_NAME}.new"));
    fs::copy(library, &temporary).map_err(failed)?;
    fs::rename(&temporary, &installed).map_err(failed)?;
    Ok(installed)
}

/// As [`install`], with the library that [`built_library`] finds.
pub fn install_built(directory: &Path, state: &State) -> Result<PathBuf, InstallError> {
    install(
        &built_library().ok_or(InstallError::NotBuilt)?,
        directory,
        state,
    )
}
