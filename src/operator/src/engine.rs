//! Engine profiles: how an inference server is run, read from `--engines-dir` at the start.
//!
//! A profile is a file NAME.yaml. Unknown fields are errors, so that a typo is found when the
//! operator starts and not when a replica does not answer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use creo_api::image::{Image, PullPolicy};
use creo_api::placement::{EnvVar, Health};
use serde::Deserialize;
use thiserror::Error;

/// The most profiles that one folder may have.
const MAX_PROFILES: usize = 200;

/// The largest profile, in bytes.
const MAX_PROFILE_BYTES: u64 = 64 * 1024;

/// How an inference server is run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineProfile {
    /// The profile's name, which is the file's name without `.yaml`.
    pub name: String,
    /// What it is, for people who choose one.
    pub description: String,
    /// Where it comes from.
    pub image: EngineImage,
    /// The program; empty for the image's own.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its arguments; `$(NAME)` stands for an environment variable.
    #[serde(default)]
    pub args: Vec<String>,
    /// Its environment.
    #[serde(default)]
    pub env: Vec<EngineVariable>,
    /// The port on which it serves HTTP.
    pub port: u16,
    /// How it is asked whether it can answer.
    pub health: EngineHealth,
}

/// Where an engine comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineImage {
    /// The image; without a '/' it is one of Creo's own.
    pub reference: String,
    /// When it is pulled.
    #[serde(default)]
    pub pull_policy: PullPolicy,
}

/// One environment variable of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineVariable {
    /// The variable's name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// How an engine is asked whether it can answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineHealth {
    /// The path that answers 200 when the model is loaded.
    pub path: String,
    /// How often it is asked, in seconds.
    pub period_seconds: u16,
    /// How long loading may take, in seconds.
    pub startup_timeout_seconds: u32,
}

impl EngineProfile {
    /// The image as kinds write it.
    #[must_use]
    pub fn image(&self) -> Image {
        Image {
            reference: self.image.reference.clone(),
            pull_policy: self.image.pull_policy,
        }
    }

    /// The environment as kinds write it.
    #[must_use]
    pub fn env(&self) -> Vec<EnvVar> {
        self.env
            .iter()
            .map(|variable| EnvVar {
                name: variable.name.clone(),
                value: variable.value.clone(),
            })
            .collect()
    }

    /// The health check as kinds write it.
    #[must_use]
    pub fn health(&self) -> Health {
        Health {
            path: self.health.path.clone(),
            period_seconds: i32::from(self.health.period_seconds),
            startup_timeout_seconds: i32::try_from(self.health.startup_timeout_seconds)
                .unwrap_or(i32::MAX),
        }
    }

    /// What is wrong with the values, if anything.
    fn problem(&self, stem: &str) -> Option<String> {
        if self.name != stem {
            return Some(format!(
                "name is {:?}, but the file is {stem}.yaml: make them the same",
                self.name
            ));
        }
        if self.image.reference.is_empty() {
            return Some("image.reference is empty: name the engine's image".to_owned());
        }
        if self.port == 0 {
            return Some("port is 0: write the port that the engine listens on".to_owned());
        }
        if !self.health.path.starts_with('/') {
            return Some("health.path must begin with '/', as in /health".to_owned());
        }
        if !(1..=300).contains(&self.health.period_seconds) {
            return Some("health.periodSeconds must be 1 to 300".to_owned());
        }
        if !(1..=86_400).contains(&self.health.startup_timeout_seconds) {
            return Some("health.startupTimeoutSeconds must be 1 to 86400".to_owned());
        }
        self.env
            .iter()
            .find(|variable| variable.name.starts_with("CREO_"))
            .map(|variable| {
                format!(
                    "env: {} begins with CREO_, which Creo sets itself: choose another name",
                    variable.name
                )
            })
    }
}

/// All profiles by name.
pub type Engines = BTreeMap<String, EngineProfile>;

/// Why the profiles cannot be used.
#[derive(Debug, Error)]
pub enum EngineError {
    /// The folder cannot be read.
    #[error("--engines-dir {path}: {source}", path = path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is nothing in it.
    #[error("--engines-dir {path} has no file NAME.yaml: without an engine profile nothing can be run", path = .0.display())]
    Empty(PathBuf),
    /// There are too many.
    #[error("--engines-dir {path} has more than {MAX_PROFILES} profiles", path = .0.display())]
    TooMany(PathBuf),
    /// A profile is wrong.
    #[error("engine profile {path}: {problem}", path = path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to write.
        problem: String,
    },
}

/// Reads every `NAME.yaml` of a folder; other files and folders are left alone.
pub fn load(folder: &Path) -> Result<Engines, EngineError> {
    let cannot_read = |source| EngineError::Folder {
        path: folder.to_owned(),
        source,
    };
    let mut engines = Engines::new();
    for entry in std::fs::read_dir(folder).map_err(cannot_read)? {
        let path = entry.map_err(cannot_read)?.path();
        let is_profile = path
            .extension()
            .is_some_and(|extension| extension == "yaml")
            && path.is_file();
        let Some(stem) = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .filter(|_| is_profile)
        else {
            continue;
        };
        if engines.len() == MAX_PROFILES {
            return Err(EngineError::TooMany(folder.to_owned()));
        }
        let profile = read(&path, stem).map_err(|problem| EngineError::Profile {
            path: path.clone(),
            problem,
        })?;
        engines.insert(profile.name.clone(), profile);
    }
    if engines.is_empty() {
        return Err(EngineError::Empty(folder.to_owned()));
    }
    Ok(engines)
}

fn read(path: &Path, stem: &str) -> Result<EngineProfile, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    if size > MAX_PROFILE_BYTES {
        return Err(format!("is larger than {MAX_PROFILE_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let profile: EngineProfile =
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
    profile.problem(stem).map_or(Ok(profile), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
name: tiny
description: for tests
image: {reference: creo-engine-tiny}
port: 8000
health: {path: /health, periodSeconds: 1, startupTimeoutSeconds: 60}
";

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn profiles_are_read_and_other_files_left_alone() {
        let folder = folder(&[("tiny.yaml", GOOD), ("README.md", "not yaml: [")]);
        std::fs::create_dir(folder.path().join("tiny")).unwrap();
        let engines = load(folder.path()).unwrap();
        assert_eq!(engines.keys().collect::<Vec<_>>(), ["tiny"]);
        assert_eq!(engines["tiny"].health().startup_timeout_seconds, 60);
    }

    #[test]
    fn the_profiles_of_this_repository_are_good() {
        let engines = load(Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../config/engines"
        )))
        .unwrap();
        assert!(engines.contains_key("llama-cpp"));
        assert!(engines.contains_key("vllm"));
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file_and_the_field() {
        for (name, text, expected) in [
            (
                "tiny.yaml",
                GOOD.replace("port: 8000", "prot: 8000"),
                "prot",
            ),
            ("other.yaml", GOOD.to_owned(), "make them the same"),
            (
                "tiny.yaml",
                GOOD.replace("/health", "health"),
                "health.path",
            ),
            (
                "tiny.yaml",
                GOOD.replace("port: 8000", "port: 0"),
                "port is 0",
            ),
            (
                "tiny.yaml",
                GOOD.replace("startupTimeoutSeconds: 60", "startupTimeoutSeconds: 0"),
                "startupTimeoutSeconds",
            ),
            (
                "tiny.yaml",
                format!("{GOOD}env: [{{name: CREO_PORT, value: x}}]"),
                "CREO_PORT",
            ),
        ] {
            let folder = folder(&[(name, &text)]);
            let error = load(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_folder_that_is_missing_or_empty_names_the_flag() {
        for path in [
            tempfile::tempdir().unwrap().path().join("missing"),
            tempfile::tempdir().unwrap().keep(),
        ] {
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("--engines-dir"), "{error}");
        }
    }
}
