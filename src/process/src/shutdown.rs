//! The end of a process: a signal becomes a token, and the work that is left gets a bounded time.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A token that is cancelled by the first SIGTERM or SIGINT.
///
/// Must be called inside a tokio runtime. The handlers stay for the life of the process, so a
/// second signal does not kill it while it drains; SIGKILL does.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down");
        cancel.cancel();
    });
    Ok(token)
}

/// Waits for the tracked tasks, at most `limit`; true when all of them ended in time.
pub async fn drain(tasks: &TaskTracker, limit: Duration) -> bool {
    tasks.close();
    let ended = tokio::time::timeout(limit, tasks.wait()).await.is_ok();
    if !ended {
        tracing::warn!(
            tasks = tasks.len(),
            limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            "tasks did not end in time and are left behind"
        );
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn draining_waits_for_a_task_that_ends() {
        let tasks = TaskTracker::new();
        tasks.spawn(tokio::time::sleep(Duration::from_millis(10)));
        assert!(drain(&tasks, Duration::from_secs(5)).await);
    }

    #[tokio::test]
    async fn draining_gives_up_on_a_task_that_hangs() {
        let tasks = TaskTracker::new();
        tasks.spawn(std::future::pending::<()>());
        assert!(!drain(&tasks, Duration::from_millis(20)).await);
    }
}
