//! The operator's process, started again when it ends, as a kubelet would.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::plan::Failure;
use crate::fault_proxy::KillSwitch;

/// The operator may end this often on its own in a case: its lease may have
/// been lost while the API server was away.
const EXITS_MAX: usize = 10;
/// An operator that is told to end has to do so within this.
const END_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// An operator that runs until it is stopped.
pub(in super::super) struct Operator {
    state: Arc<Mutex<State>>,
    keeper: tokio::task::JoinHandle<()>,
    log: PathBuf,
}

struct State {
    command: Command,
    log: File,
    child: Option<Child>,
    stopping: bool,
    /// Ends that nobody asked for, in words.
    exits: Vec<String>,
}

impl Operator {
    /// Starts the operator; what it says goes into the file `log`.
    pub(super) fn start(command: Command, log: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let mut state = State {
            command,
            log: file,
            child: None,
            stopping: false,
            exits: Vec::new(),
        };
        state.spawn()?;
        let state = Arc::new(Mutex::new(state));
        let keeper = tokio::spawn(keep(Arc::clone(&state)));
        Ok(Self {
            state,
            keeper,
            log: log.to_owned(),
        })
    }

    /// Kills the operator; it is started again at once.
    pub(super) fn kill_switch(&self) -> KillSwitch {
        let state = Arc::clone(&self.state);
        Arc::new(move || locked(&state).kill())
    }

    /// Kills the operator if it runs; it is started again at once.
    pub(in super::super) fn kill(&self) {
        // It may just be on its way up: then the next kill meets it.
        let _ = (self.kill_switch())();
    }

    /// Fails when the operator has ended more often than it may.
    pub(super) fn check_exits(&self) -> Result<(), Failure> {
        let exits = self.exits();
        if exits.len() > EXITS_MAX {
            return Err(Failure::new(format!(
                "the operator keeps ending: {}",
                exits.join(", ")
            )));
        }
        Ok(())
    }

    /// Fails when the operator's log tells of a panic.
    pub(super) fn check_log(&self) -> Result<(), Failure> {
        let log = std::fs::read_to_string(&self.log)?;
        match log.lines().find(|line| line.contains("panicked at")) {
            Some(line) => Err(Failure::new(format!("the operator panicked: {line}"))),
            None => Ok(()),
        }
    }

    /// How often the operator has ended without being told to.
    pub(in super::super) fn exits(&self) -> Vec<String> {
        locked(&self.state).exits.clone()
    }

    /// Tells the operator to end, and fails when it does not.
    pub(super) async fn stop(&self) -> Result<(), Failure> {
        locked(&self.state).terminate()?;
        let began = Instant::now();
        loop {
            if let Some(status) = locked(&self.state).try_wait()? {
                return if status.success() {
                    self.check_log()
                } else {
                    Err(Failure::new(format!(
                        "the operator ended with {status} when told to end"
                    )))
                };
            }
            if began.elapsed() > END_LIMIT {
                return Err(Failure::new(format!(
                    "the operator had not ended {} s after SIGTERM",
                    END_LIMIT.as_secs()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.keeper.abort();
        let mut state = locked(&self.state);
        state.stopping = true;
        // It may have ended already.
        let _ = state.kill();
    }
}

impl State {
    fn spawn(&mut self) -> io::Result<()> {
        self.command
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?);
        self.child = Some(self.command.spawn()?);
        Ok(())
    }

    fn kill(&mut self) -> io::Result<()> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "the operator does not run");
        let mut child = self.child.take().ok_or_else(missing)?;
        child.kill()?;
        child.wait().map(drop)
    }

    /// SIGTERM. The child is not waited for yet, so its id is still its own.
    fn terminate(&mut self) -> io::Result<()> {
        self.stopping = true;
        if self.child.is_none() {
            self.spawn()?;
        }
        let Some(child) = &self.child else {
            return Ok(());
        };
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(io::Error::from)
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }
}

/// Starts the operator again whenever it has ended.
async fn keep(state: Arc<Mutex<State>>) {
    loop {
        tokio::time::sleep(POLL).await;
        let mut state = locked(&state);
        if state.stopping {
            return;
        }
        match state.try_wait() {
            Ok(Some(status)) => state.exits.push(status.to_string()),
            Ok(None) => {}
            Err(error) => state.exits.push(error.to_string()),
        }
        if state.child.is_none()
            && state.exits.len() <= EXITS_MAX
            && let Err(error) = state.spawn()
        {
            state.exits.push(error.to_string());
        }
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    async fn until(what: &str, mut reached: impl FnMut() -> bool) {
        let began = Instant::now();
        while !reached() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            tokio::time::sleep(POLL).await;
        }
    }

    #[tokio::test]
    async fn a_killed_operator_is_started_again_and_ends_when_told_to() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let script = "trap 'exit 0' TERM; echo started; while :; do sleep 0.02; done";
        let operator = Operator::start(shell(script), &log).expect("a start");
        let starts = || {
            std::fs::read_to_string(&log)
                .expect("a log")
                .lines()
                .count()
        };
        until("the first start", || starts() == 1).await;
        operator.kill_switch()().expect("a kill");
        until("the second start", || starts() == 2).await;
        operator.stop().await.expect("an end");
        assert_eq!(
            operator.exits(),
            Vec::<String>::new(),
            "a kill is no exit of its own"
        );
    }

    #[tokio::test]
    async fn a_panic_and_an_operator_that_keeps_ending_are_findings() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let panics = shell("echo \"thread 'main' panicked at src/x.rs\"; sleep 60");
        let operator = Operator::start(panics, &log).expect("a start");
        until("the panic", || operator.check_log().is_err()).await;
        let failure = operator.check_log().expect_err("a finding");
        assert!(failure.message().contains("src/x.rs"), "{failure:?}");
        let ends = Operator::start(shell("exit 3"), &folder.path().join("other")).expect("a start");
        until("the ends", || ends.check_exits().is_err()).await;
        let failure = ends.check_exits().expect_err("a finding");
        assert!(
            failure.message().contains("keeps ending: exit status: 3"),
            "{failure:?}"
        );
    }

    #[tokio::test]
    async fn an_operator_dies_with_its_handle() {
        let folder = tempfile::tempdir().expect("a folder");
        let operator =
            Operator::start(shell("exec sleep 600"), &folder.path().join("log")).expect("a start");
        let id = locked(&operator.state)
            .child
            .as_ref()
            .expect("a child")
            .id();
        drop(operator);
        let pid = Pid::from_raw(i32::try_from(id).expect("a pid"));
        assert!(kill(pid, None).is_err(), "it is gone and was waited for");
    }
}
