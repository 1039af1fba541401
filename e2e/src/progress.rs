//! One line of progress a step, with its time.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Says which step is going on, and how long it took.
///
/// On a terminal a running step has a spinner; elsewhere each step is one line
/// at its end, so that a log stays readable.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    shown: Shown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    Lines,
    Spinner,
    Nothing,
}

/// A step that is going on.
#[derive(Debug)]
pub struct Step {
    name: String,
    since: Instant,
    bar: Option<ProgressBar>,
    shown: Shown,
}

impl Progress {
    /// Progress on the standard error, in the form that fits it.
    #[must_use]
    pub fn stderr() -> Self {
        let shown = if std::io::stderr().is_terminal() {
            Shown::Spinner
        } else {
            Shown::Lines
        };
        Self { shown }
    }

    /// No progress at all.
    #[must_use]
    pub fn silent() -> Self {
        Self {
            shown: Shown::Nothing,
        }
    }

    /// Begins a step. It counts as failed until [`Step::done`].
    #[must_use]
    pub fn step(&self, name: impl Into<String>) -> Step {
        let name = name.into();
        let bar = (self.shown == Shown::Spinner).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.set_message(name.clone());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Step {
            name,
            since: Instant::now(),
            bar,
            shown: self.shown,
        }
    }

    /// Runs a step that may fail.
    ///
    /// # Errors
    ///
    /// What the step fails with.
    pub fn run<T, E>(&self, name: &str, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let step = self.step(name);
        let result = work()?;
        step.done("");
        Ok(result)
    }

    /// Runs an asynchronous step that may fail.
    ///
    /// # Errors
    ///
    /// What the step fails with.
    pub async fn run_async<T, E>(
        &self,
        name: &str,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let step = self.step(name);
        let result = work.await?;
        step.done("");
        Ok(result)
    }
}

impl Step {
    /// Shows a line of what goes on within the step.
    pub fn line(&self, text: &str) {
        let text = format!("{:>19}{text}", "");
        match (&self.bar, self.shown) {
            (Some(bar), _) => bar.println(text),
            (None, Shown::Nothing) => {}
            (None, _) => eprintln!("{text}"),
        }
    }

    /// Ends the step well, with a remark where one helps.
    pub fn done(mut self, remark: &str) {
        self.end("ok", remark);
    }

    fn end(&mut self, mark: &str, remark: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        if self.shown == Shown::Nothing {
            return;
        }
        let seconds = self.since.elapsed().as_secs_f64();
        let remark = if remark.is_empty() {
            String::new()
        } else {
            format!("  {remark}")
        };
        eprintln!("{mark:>6} {seconds:7.1} s  {}{remark}", self.name);
        self.shown = Shown::Nothing;
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.end("FAILED", "");
    }
}
