//! What can go wrong while a local cluster is built, started or used.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    time::Duration,
};

/// How many last lines of a log an error carries.
const LOG_TAIL_LINES: usize = 12;
/// How much of a log's end is read to find them, in bytes.
const LOG_TAIL_BYTES: u64 = 16 * 1024;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that says what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine cannot run a cluster; nothing was started.
    #[error("{0}")]
    Machine(String),
    /// What was asked for makes no sense, with what to do instead.
    #[error("{0}")]
    Usage(String),
    /// A call to the operating system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("`{command}` ended with {status}{}", after_colon(.output))]
    Command {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// A component of the cluster ended or did not get ready.
    #[error("{component}: {problem}\n  last lines of {}:\n{}", .log.display(), indented(.tail))]
    Component {
        /// The component's name, such as `kube-apiserver`.
        component: String,
        /// What is wrong with it.
        problem: String,
        /// Its log file.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A condition did not come about in time.
    #[error("{what} did not happen within {} s; last seen: {last}", .within.as_secs())]
    Timeout {
        /// The condition.
        what: String,
        /// How long it was waited for.
        within: Duration,
        /// What was seen last.
        last: String,
    },
    /// The supervisor of a namespace refused or could not do something.
    #[error("{0}")]
    Supervisor(String),
    /// A certificate could not be made.
    #[error("making the certificate of {name}: {source}")]
    Certificate {
        /// Whose certificate it is.
        name: String,
        /// The reason.
        source: rcgen::Error,
    },
    /// The API server refused something.
    #[error("{what}: {}", answer(.source))]
    Kubernetes {
        /// What was asked of it.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// A file or an answer does not have the form it should have.
    #[error("{what}: {problem}")]
    Malformed {
        /// The file or the answer.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    /// An error of a component, with the last lines of its log.
    pub fn component(component: &str, problem: impl Into<String>, log: &Path) -> Self {
        Self::Component {
            component: component.to_owned(),
            problem: problem.into(),
            log: log.to_owned(),
            tail: log_tail(log),
        }
    }

    /// Wraps an answer of the API server.
    pub fn kubernetes(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Kubernetes {
            what,
            source: Box::new(source),
        }
    }

    /// Says of a file or an answer that it is not as it should be.
    pub fn malformed(what: impl Into<String>, problem: impl fmt::Display) -> Self {
        Self::Malformed {
            what: what.into(),
            problem: problem.to_string(),
        }
    }
}

/// Adds to an [`io::Result`] what was being done.
pub trait Context<T> {
    /// Names what was being done.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| Error::Io {
            what: what(),
            source,
        })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::Io {
            what: what(),
            source: errno.into(),
        })
    }
}

/// The last lines of a log file; a note in brackets where there are none.
#[must_use]
pub fn log_tail(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) if text.trim().is_empty() => "(the log is empty)".to_owned(),
        Ok(text) => last_lines(&text, LOG_TAIL_LINES),
        Err(error) => format!("(the log cannot be read: {error})"),
    }
}

/// The last `count` lines of `text`.
#[must_use]
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// What the API server said, without the rest of its status object.
fn answer(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn after_colon(output: &str) -> String {
    let output = output.trim();
    if output.is_empty() {
        String::new()
    } else {
        format!(":\n{}", indented(output))
    }
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "    {line}");
        all
    })
}
