//! `belljar-lockstep`: runs a guest under two engines side by side and finds the first instruction
//! at which they differ.

#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use belljar_lockstep::{End, Lockstep, Script, Settings, Sides};
use belljar_machine::{EngineChoice, MachineConfig, Size, choose_engine};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// What the shell of the default guest prints when it is ready: the prompt's end and busybox's
/// question for the cursor's place.
const PROMPT: &str = "# \u{1b}[6n";

/// Runs a guest under two engines side by side, compares all registers and RAM as they go, and
/// finds the first instruction at which they differ. Exit status: 0 no difference, 1 a difference.
#[derive(Debug, Parser)]
struct Options {
    /// The engine on the left
    #[arg(long, default_value = "interpreter")]
    left: EngineChoice,
    /// The engine on the right
    #[arg(long, default_value = "interpreter")]
    right: EngineChoice,
    /// Instructions in a slice; interrupts come between slices only, and time moves there
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    slice: u64,
    /// Instructions between comparisons, if they are to be fewer than in a slice
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// The instruction from which on --every holds; before, slices are compared
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Slices between comparisons of all RAM; 0 compares it only after another difference
    #[arg(long, default_value_t = 2000)]
    memory_every: u64,
    /// Count status flags that differ as a difference also while nothing comes of it; the manual
    /// leaves some undefined
    #[arg(long)]
    exact_flags: bool,
    /// End after this many instructions
    #[arg(long, default_value_t = u64::MAX)]
    instructions: u64,
    /// Show the left side's console on standard output
    #[arg(long)]
    console: bool,
    /// What the guest prints when it is ready, instead of the default guest's prompt: the run ends
    /// there, or goes on with --type
    #[arg(long)]
    prompt: Option<String>,
    /// A line to type at the next prompt. May be repeated
    #[arg(long = "type", value_name = "LINE")]
    lines: Vec<String>,
    /// The kernel, instead of the default guest's
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// The initial RAM filesystem of --kernel
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long)]
    cmdline: Option<String>,
    /// The Debian suite of the default guest; the host's own if it is not given
    #[arg(long, conflicts_with = "kernel")]
    suite: Option<String>,
    /// RAM of each side
    #[arg(long, default_value = "256M")]
    memory: Size,
    /// Seconds without progress after which a side counts as hung
    #[arg(long, default_value_t = 120)]
    patience: u64,
}

impl Options {
    fn config(&self) -> Result<MachineConfig> {
        let mut config = MachineConfig {
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            cmdline: self.cmdline.clone(),
            memory: self.memory,
            ..MachineConfig::default()
        };
        if config.kernel.is_none() {
            let guest = belljar_image::default_guest(self.suite.as_deref())
                .context("cannot make the default guest")?;
            config.kernel = Some(guest.kernel);
            config.initrd = Some(guest.initrd);
            config.cmdline.get_or_insert(guest.cmdline);
        }
        Ok(config)
    }

    fn settings(&self) -> Settings {
        Settings {
            slice: self.slice,
            every: self.every.unwrap_or(self.slice),
            from: self.from,
            memory_every: self.memory_every,
            most: self.instructions,
            shown: self.console,
        }
    }
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let sides = Sides {
        exact_flags: options.exact_flags,
        script: Script {
            prompt: options.prompt.clone().or_else(|| Some(PROMPT.to_owned())),
            lines: options.lines.clone(),
        },
        config: options.config()?,
        left: choose_engine(options.left)?,
        right: choose_engine(options.right)?,
    };
    let lockstep = Arc::new(Lockstep::new(sides, options.settings()));
    let start = Instant::now();
    let end = run(&lockstep, Duration::from_secs(options.patience))?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{end} ({} and {}, {seconds:.1} s)",
        options.left, options.right
    );
    Ok(match end {
        End::Differ(_) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Runs `lockstep` on a thread of its own, and gives up if it makes no progress for `patience`: the
/// thread of an engine that hangs cannot be ended, but the process can.
fn run(lockstep: &Arc<Lockstep>, patience: Duration) -> Result<End> {
    let (sender, receiver) = channel();
    let running = Arc::clone(lockstep);
    thread::spawn(move || sender.send(running.run()));
    loop {
        let steps = lockstep.steps();
        match receiver.recv_timeout(patience) {
            Ok(end) => return Ok(end?),
            Err(RecvTimeoutError::Disconnected) => bail!("an engine panicked"),
            Err(RecvTimeoutError::Timeout) if lockstep.steps() == steps => {
                bail!("a side hangs in slice number {steps} of this run")
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}
