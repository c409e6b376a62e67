//! The commands for machines that run: each finds the machine in the runtime directory, and asks it
//! by its control socket.

mod attach;
mod balloon;
mod change;
mod exec;
mod list;
mod logs;
mod stats;

pub use attach::{AttachOptions, attach};
pub use balloon::{BalloonOptions, balloon};
pub use change::{Names, StopOptions, pause, resume, stop};
pub use exec::{ExecOptions, exec};
pub use list::{ListOptions, list};
pub use logs::{LogsOptions, logs};
pub use stats::{StatsOptions, stats};

use anyhow::{Context, Result};
use std::io::{Write, stdout};

/// Writes to standard output, to its end.
fn print(text: &str) -> Result<()> {
    let mut output = stdout().lock();
    output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush())
        .context("cannot write to standard output")
}
