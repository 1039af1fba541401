//! The other end of the control socket.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::Signal,
    socket::{getsockopt, sockopt::PeerCredentials},
};

use super::protocol::{Answer, Finished, ProcessState, Request, StartRequest};
use crate::error::{Context as _, Error, Result};

/// How long a command run in a namespace may take unless said otherwise.
const RUN_PATIENCE: Duration = Duration::from_mins(2);

/// Controls one supervisor.
#[derive(Debug, Clone)]
pub struct Control {
    socket: PathBuf,
}

impl Control {
    /// Controls the supervisor that listens, or will listen, on `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Waits until the supervisor listens.
    ///
    /// # Errors
    ///
    /// It does not within `patience`.
    pub fn wait(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(_) => return Ok(()),
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Err(error) => {
                    return Err(Error::Timeout {
                        what: format!("listening on {}", self.socket.display()),
                        within: patience,
                        last: error.to_string(),
                    });
                }
            }
        }
    }

    /// Whether a supervisor listens.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// The supervisor's process id as seen from the caller's namespace: the
    /// kernel translates the credentials of a socket's peer.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub fn pid(&self) -> Result<i32> {
        let stream = self.connect()?;
        let peer = getsockopt(&stream, PeerCredentials)
            .doing(|| format!("asking who listens on {}", self.socket.display()))?;
        Ok(peer.pid())
    }

    /// Starts a long-running process.
    ///
    /// # Errors
    ///
    /// It is running already or cannot be started.
    pub fn start(&self, start: StartRequest) -> Result<()> {
        self.ask(&Request::Start(start)).map(drop)
    }

    /// Ends a process by a signal, and by SIGKILL where that takes longer than
    /// `patience`.
    ///
    /// # Errors
    ///
    /// It was never started, or does not end.
    pub fn stop(&self, name: &str, signal: Signal, patience: Duration) -> Result<()> {
        let request = Request::Stop {
            name: name.to_owned(),
            signal: signal as i32,
            patience_ms: millis(patience),
        };
        self.ask(&request).map(drop)
    }

    /// Runs a command to its end, whatever the end.
    ///
    /// # Errors
    ///
    /// It cannot be started or does not end in time.
    pub fn run<S: AsRef<str>>(&self, argv: &[S]) -> Result<Finished> {
        let argv: Vec<String> = argv.iter().map(|word| word.as_ref().to_owned()).collect();
        let request = Request::Run {
            argv,
            patience_ms: millis(RUN_PATIENCE),
        };
        match self.ask(&request)? {
            Answer::Finished(finished) => Ok(finished),
            other => Err(Error::malformed(
                "an answer of a supervisor",
                format!("{other:?}"),
            )),
        }
    }

    /// Runs a shell script that must succeed; gives its output.
    ///
    /// # Errors
    ///
    /// It fails; the error has what it said.
    pub fn script(&self, script: &str) -> Result<String> {
        let finished = self.run(&["sh", "-ec", script])?;
        if finished.status == 0 {
            return Ok(finished.output);
        }
        Err(Error::Command {
            command: script.to_owned(),
            status: format!("status {}", finished.status),
            output: finished.output,
        })
    }

    /// What the supervisor started, and how it is.
    ///
    /// # Errors
    ///
    /// Nobody listens.
    pub fn status(&self) -> Result<BTreeMap<String, ProcessState>> {
        match self.ask(&Request::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(Error::malformed(
                "an answer of a supervisor",
                format!("{other:?}"),
            )),
        }
    }

    /// Ends the namespace with all in it; does not wait for it.
    pub fn shutdown(&self) {
        // It ends without an answer, and one that is gone already is no fault.
        let _ = self.ask(&Request::Shutdown);
    }

    /// The folder that the socket lies in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }

    fn connect(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.socket)
            .doing(|| format!("connecting to {}", self.socket.display()))
    }

    fn ask(&self, request: &Request) -> Result<Answer> {
        let talk = || format!("talking over {}", self.socket.display());
        let mut stream = self.connect()?;
        let text =
            serde_json::to_string(request).map_err(|error| Error::malformed("a request", error))?;
        writeln!(stream, "{text}").doing(talk)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).doing(talk)?;
        match serde_json::from_str(&line)
            .map_err(|error| Error::malformed("an answer of a supervisor", error))?
        {
            Answer::Refused(reason) => Err(Error::Supervisor(reason)),
            answer => Ok(answer),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
