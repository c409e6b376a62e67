//! Progress for the person who waits: a line for each step, and on a terminal a bar below them.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Duration;

const TICK: Duration = Duration::from_millis(120);

/// What is shown on standard error while a guest is made.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar if standard error is a terminal.
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TICK);
            bar
        });
        Self { bar }
    }

    /// Says what is being done from now on.
    pub(crate) fn step(&self, message: &str) {
        let line = format!("belljar: {message}");
        if let Some(bar) = &self.bar {
            bar.println(line);
            bar.set_style(ProgressStyle::default_spinner());
            bar.set_position(0);
        } else {
            // A closed standard error is no reason to fail.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    /// Says how much of the step is done, in percent.
    pub(crate) fn percent(&self, percent: f64) {
        if let Some(bar) = &self.bar {
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_bar} {percent:>3}%") {
                bar.set_style(style);
            }
            bar.set_position(percent.clamp(0.0, 100.0) as u64);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
