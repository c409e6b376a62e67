//! Boot time against QEMU's TCG: A against B in one run.

use crate::belljar;
use crate::console::Console;
use crate::machines::Machine;
use anyhow::{Context, Result};
use clap::Args;
use std::process::Command;
use std::time::{Duration, Instant};

const COMMAND_LINE: &str = "console=ttyS0 quiet";
/// What the shell of the default guest prints when it is ready: the prompt's end and busybox's
/// question for the cursor's place.
const PROMPT: &str = "# \u{1b}[6n";
/// A boot that takes longer has failed.
const LIMIT: Duration = Duration::from_mins(5);

#[derive(Debug, Args)]
pub struct Options {
    /// Boots of each, of which the quickest counts
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// The engine of Belljar
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Virtual CPUs
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// The Debian suite whose kernel is booted; the host's own if it is not given
    #[arg(long)]
    suite: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let program = belljar(None)?;
    let mut guest = belljar_image::default_guest(options.suite.as_deref())?;
    COMMAND_LINE.clone_into(&mut guest.cmdline);
    let machine = Machine {
        guest: &guest,
        memory: 1024,
        cpus: options.cpus,
    };
    let (mut belljar, mut qemu) = (Duration::MAX, Duration::MAX);
    for round in 1..=options.rounds {
        qemu = qemu.min(time_to_prompt(&mut machine.qemu()).context("QEMU")?);
        let mut command = machine.belljar(&program, &options.engine);
        belljar = belljar.min(time_to_prompt(&mut command).context("Belljar")?);
        eprintln!("round {round}: best so far QEMU TCG {qemu:.2?}, Belljar {belljar:.2?}");
    }
    println!(
        "boot to the prompt: QEMU TCG {:.2} s, Belljar {:.2} s, Belljar/TCG {:.2}",
        qemu.as_secs_f64(),
        belljar.as_secs_f64(),
        belljar.as_secs_f64() / qemu.as_secs_f64()
    );
    Ok(())
}

/// Starts a guest and measures the time until its prompt appears on standard output.
fn time_to_prompt(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    Console::start(command)?.wait_for(PROMPT, LIMIT)?;
    Ok(start.elapsed())
}
