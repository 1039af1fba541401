//! What is said over the control socket: one JSON object a line, a request and
//! its answer.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

/// What a supervisor is asked to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Start a long-running process.
    Start(StartRequest),
    /// End a process: a signal first, SIGKILL after `patience_ms`.
    Stop {
        name: String,
        signal: i32,
        patience_ms: u64,
    },
    /// Run a command to its end.
    Run { argv: Vec<String>, patience_ms: u64 },
    /// Say what is running.
    Status,
    /// End everything and the supervisor.
    Shutdown,
}

/// A long-running process: its name, what to run and where its output goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRequest {
    /// Its name in this namespace, such as `kubelet`.
    pub name: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment variables beside the supervisor's own.
    pub env: BTreeMap<String, String>,
    /// The file that its output is appended to.
    pub log: PathBuf,
}

/// The answer to a request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    Finished(Finished),
    Status(BTreeMap<String, ProcessState>),
    Refused(String),
}

/// How a command ended that was run to its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finished {
    /// Its exit status; 128 and the signal's number where a signal ended it.
    pub status: i32,
    /// What it wrote to its standard output and standard error.
    pub output: String,
}

/// What a supervisor knows of a process that it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProcessState {
    /// Its id within the supervisor's namespace.
    pub pid: i32,
    /// How it ended, where it did.
    pub exit_status: Option<i32>,
    /// Its log.
    pub log: PathBuf,
}
