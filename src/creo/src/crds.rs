//! `creo crds`: the definitions of the kinds, on standard output or as files.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;
use creo_api::manifest::{ManifestError, manifests};
use thiserror::Error;

/// The arguments of `creo crds`.
#[derive(Debug, Args)]
pub struct CrdsArgs {
    /// Write one file for each kind into this folder, instead of printing them.
    #[arg(long, env = "CREO_OUTPUT_DIR", value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Why the definitions were not written.
#[derive(Debug, Error)]
pub enum CrdsError {
    /// They cannot be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be written.
    #[error("--output-dir {path}: {source}", path = path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Nobody reads the output.
    #[error("standard output: {0}")]
    Output(std::io::Error),
}

/// Prints or writes the definitions.
pub fn run(args: &CrdsArgs) -> Result<(), CrdsError> {
    let manifests = manifests()?;
    let Some(folder) = &args.output_dir else {
        let mut output = std::io::stdout().lock();
        for manifest in manifests {
            output
                .write_all(manifest.yaml.as_bytes())
                .map_err(CrdsError::Output)?;
        }
        return Ok(());
    };
    let failed = |path: &PathBuf| {
        let path = path.clone();
        move |source| CrdsError::File { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    for manifest in manifests {
        let path = folder.join(&manifest.file_name);
        std::fs::write(&path, manifest.yaml).map_err(failed(&path))?;
        println!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_is_written_for_each_kind() {
        let folder = tempfile::tempdir().unwrap();
        let output_dir = folder.path().join("crds");
        run(&CrdsArgs {
            output_dir: Some(output_dir.clone()),
        })
        .unwrap();
        let files = std::fs::read_dir(output_dir).unwrap().count();
        assert_eq!(files, creo_api::crds().len());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = run(&CrdsArgs {
            output_dir: Some(file.join("crds")),
        })
        .unwrap_err();
        assert!(error.to_string().contains("--output-dir"), "{error}");
    }
}
