//! Starting processes and collecting their ends, as the first process of a
//! namespace must: every orphan of the namespace is its child.

use std::{
    collections::HashMap,
    io,
    process::{Child, Command},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};

/// The ends of the processes that were started here.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    /// `None` while it runs, else its exit status.
    own: Mutex<HashMap<i32, Option<i32>>>,
    changed: Condvar,
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Option<i32>>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process. The lock is held meanwhile, so that neither its end
    /// nor a failed start is collected before it is known here.
    pub(super) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let mut own = self.lock();
        let child = command.spawn()?;
        own.insert(child.id().cast_signed(), None);
        Ok(child)
    }

    /// How the process ended, if it did.
    pub(super) fn exit_status(&self, pid: i32) -> Option<i32> {
        self.lock().get(&pid).copied().flatten()
    }

    /// Waits for the end of a process.
    pub(super) fn wait(&self, pid: i32, patience: Duration) -> Option<i32> {
        let deadline = Instant::now() + patience;
        let mut own = self.lock();
        loop {
            if let Some(status) = own.get(&pid).copied().flatten() {
                return Some(status);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            own = self
                .changed
                .wait_timeout(own, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Forgets a process that has ended.
    pub(super) fn forget(&self, pid: i32) {
        self.lock().remove(&pid);
    }

    /// Collects children for ever.
    pub(super) fn collect(&self) {
        loop {
            // Peek first, then take it under the lock: see `spawn`.
            match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        self.take(pid);
                    }
                }
                Err(Errno::ECHILD) => thread::sleep(Duration::from_millis(10)),
                Err(_) => {}
            }
        }
    }

    fn take(&self, pid: Pid) {
        let mut own = self.lock();
        let code = match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            _ => return,
        };
        // An orphan that was not started here has no entry and needs none.
        if let Some(entry) = own.get_mut(&pid.as_raw()) {
            *entry = Some(code);
            self.changed.notify_all();
        }
    }
}
