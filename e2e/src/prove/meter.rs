//! One line that tells how far a plan has come.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a line is written where it cannot be overwritten.
const LINE_INTERVAL: Duration = Duration::from_secs(15);

/// A line on a terminal that changes in place; elsewhere a line now and then.
pub(super) struct Meter {
    plan: String,
    total: usize,
    done: usize,
    failed: usize,
    bar: Option<ProgressBar>,
    began: Instant,
    line_due: Instant,
}

impl Meter {
    pub(super) fn new(plan: &str, total: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64);
            let template = "{prefix} {pos}/{len} {wide_bar} {elapsed_precise}, {eta} to go {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(plan.to_owned());
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let began = Instant::now();
        Self {
            plan: plan.to_owned(),
            total,
            done: 0,
            failed: 0,
            bar,
            began,
            line_due: began + LINE_INTERVAL,
        }
    }

    /// A case has ended.
    pub(super) fn advance(&mut self, case: &str, failure: Option<&str>) {
        self.done += 1;
        if let Some(failure) = failure {
            self.failed += 1;
            self.say(&format!("plan {}: FAILED {case}: {failure}", self.plan));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            if self.failed > 0 {
                bar.set_message(format!("{} FAILED", self.failed));
            }
        } else if Instant::now() >= self.line_due {
            self.line_due = Instant::now() + LINE_INTERVAL;
            let seconds = self.began.elapsed().as_secs();
            eprintln!(
                "plan {}: {}/{} cases after {seconds} s",
                self.plan, self.done, self.total
            );
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
