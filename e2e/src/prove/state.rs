//! What of a run is finished, on disk, so that an interrupted run goes on where
//! it was.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Context as _, Error, Result};

/// A finished case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// Its name.
    pub case: String,
    /// How long it took.
    pub duration_ms: u64,
    /// What was wrong; `None` where all was well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The file of one plan, seed and state of the sources: a line for each
/// finished case, written through to the disk before the next case begins. A
/// line that a crash tore off is dropped, and its case run again.
#[derive(Debug)]
pub(super) struct StateFile {
    file: File,
    path: PathBuf,
    finished: BTreeMap<String, Finished>,
}

impl StateFile {
    /// Opens the file, with what it has when `resume` is set and empty otherwise.
    pub(super) fn open(path: PathBuf, resume: bool) -> Result<Self> {
        let reading = || format!("opening {}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).doing(reading)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .doing(reading)?;
        if file.try_lock().is_err() {
            return Err(Error::Usage(format!(
                "{} belongs to another run that is not finished: wait for it or end it",
                path.display()
            )));
        }
        let mut text = String::new();
        if resume {
            file.read_to_string(&mut text).doing(reading)?;
        }
        let (finished, valid) = parse(&text);
        file.set_len(valid).doing(reading)?;
        file.seek(SeekFrom::End(0)).doing(reading)?;
        Ok(Self {
            file,
            path,
            finished,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn finished(&self, case: &str) -> Option<&Finished> {
        self.finished.get(case)
    }

    pub(super) fn record(&mut self, finished: Finished) -> Result<()> {
        let writing = || format!("writing {}", self.path.display());
        let mut line =
            serde_json::to_string(&finished).map_err(|error| Error::malformed(writing(), error))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).doing(writing)?;
        self.file.sync_data().doing(writing)?;
        self.finished.insert(finished.case.clone(), finished);
        Ok(())
    }
}

/// The finished cases of the whole lines, and how many bytes those have.
fn parse(text: &str) -> (BTreeMap<String, Finished>, u64) {
    let mut finished = BTreeMap::new();
    let mut valid = 0;
    for line in text.split_inclusive('\n') {
        let Some(Ok(entry)) = line
            .strip_suffix('\n')
            .map(serde_json::from_str::<Finished>)
        else {
            break;
        };
        finished.insert(entry.case.clone(), entry);
        valid += line.len() as u64;
    }
    (finished, valid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(case: &str) -> Finished {
        Finished {
            case: case.to_owned(),
            duration_ms: 5,
            failure: None,
        }
    }

    #[test]
    fn finished_cases_are_found_again_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("deep/state.jsonl");
        let mut state = StateFile::open(path.clone(), true).expect("a new file");
        state.record(finished("a")).expect("a record");
        let failed = Finished {
            failure: Some("two\nlines".into()),
            ..finished("b")
        };
        state.record(failed.clone()).expect("a record");
        drop(state);
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("the file");
        file.write_all(br#"{"case":"c","dura"#)
            .expect("half a line");

        let mut state = StateFile::open(path.clone(), true).expect("the file");
        assert_eq!(state.finished("a"), Some(&finished("a")));
        assert_eq!(state.finished("b"), Some(&failed));
        assert_eq!(state.finished("c"), None);
        state.record(finished("c")).expect("a record");
        drop(state);
        let state = StateFile::open(path, true).expect("the file");
        assert_eq!(state.finished("c"), Some(&finished("c")));
    }

    #[test]
    fn a_run_that_does_not_resume_begins_with_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.jsonl");
        StateFile::open(path.clone(), true)
            .expect("a file")
            .record(finished("a"))
            .expect("a record");
        let state = StateFile::open(path.clone(), false).expect("the file");
        assert_eq!(state.finished("a"), None);
        assert_eq!(fs::read_to_string(state.path()).expect("the file"), "");
    }

    #[test]
    fn two_runs_at_a_time_do_not_share_a_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("state.jsonl");
        let _first = StateFile::open(path.clone(), true).expect("a file");
        let second = StateFile::open(path, true).expect_err("a second run");
        assert!(second.to_string().contains("another run"), "{second}");
    }
}
