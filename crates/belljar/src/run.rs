//! `belljar run`: a machine in the foreground.

use crate::console::{Console, Outlet, Requests};
use crate::terminal::{RawTerminal, message};
use crate::{guest, signals, statistics};
use anyhow::{Context, Result};
use belljar_machine::{
    ConsoleChoice, EngineChoice, Machine, MachineConfig, MachineHandle, Outcome,
};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Exit status of a machine whose guest crashed.
const CRASHED: u8 = 3;

/// How the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Status(u8),
    /// As this signal ends a process.
    Signal(i32),
}

/// Why the machine was stopped from outside.
#[derive(Debug)]
enum StoppedBy {
    Keys,
    Signal(i32),
    LostConsole(io::Error),
}

/// Stops the machine, whoever asks for it.
#[derive(Debug)]
struct Stopper {
    machine: MachineHandle,
    outlet: Arc<Outlet>,
    reason: Mutex<Option<StoppedBy>>,
}

impl Stopper {
    fn stop(&self, reason: StoppedBy) {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(reason);
        // No vCPU may wait for a reader of the console while it is to stop, nor the end of a machine
        // that has stopped by itself.
        self.outlet.close();
        self.outlet.hurry();
        self.machine.stop();
    }

    fn take_reason(&self) -> Option<StoppedBy> {
        self.reason
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Requests for Stopper {
    fn quit(&self) {
        self.stop(StoppedBy::Keys);
    }

    fn console_lost(&self, error: io::Error) {
        self.stop(StoppedBy::LostConsole(error));
    }
}

/// Runs the machine of `config` to its end.
pub fn run(mut config: MachineConfig) -> Result<Ending> {
    let caught = signals::catch().context("cannot catch signals")?;
    if config.kernel.is_none() {
        guest::provide(&mut config)?;
    }
    let mut console = Console::open(&config.console)?;
    let machine = Machine::new(&config, console.output())?;
    if config.engine == EngineChoice::Auto {
        message(&format!("engine: {} (auto)", machine.engine()));
    }
    if let Some(location) = console.location() {
        message(&format!("console: {location}"));
    }
    let stopper = Arc::new(Stopper {
        machine: machine.handle(),
        outlet: console.outlet(),
        reason: Mutex::new(None),
    });
    let on_end = {
        let stopper = Arc::clone(&stopper);
        move |signal| stopper.stop(StoppedBy::Signal(signal))
    };
    let on_statistics = statistics::printer(machine.handle(), machine.engine())
        .context("cannot start the thread of the statistics")?;
    caught
        .watch(on_end, on_statistics)
        .context("cannot watch for signals")?;
    let terminal = match config.console {
        ConsoleChoice::Stdio => RawTerminal::enter().context("cannot set up the terminal")?,
        _ => None,
    };
    console.start(machine.console_input(), Arc::<Stopper>::clone(&stopper))?;
    machine.handle().resume();
    let outcome = machine.wait();
    console.finish(!matches!(outcome, Outcome::Stopped));
    drop(terminal);
    conclude(outcome, stopper.take_reason())
}

/// What the end of the machine means for the process.
fn conclude(outcome: Outcome, stopped_by: Option<StoppedBy>) -> Result<Ending> {
    match (outcome, stopped_by) {
        (Outcome::DebugExit(status), _) => Ok(Ending::Status(status)),
        (Outcome::Crashed(crash), _) => {
            message(&format!("the guest crashed: {crash}"));
            Ok(Ending::Status(CRASHED))
        }
        (Outcome::Failed(error), _) => Err(error.into()),
        (Outcome::Stopped, Some(StoppedBy::Signal(signal))) => Ok(Ending::Signal(signal)),
        (Outcome::Stopped, Some(StoppedBy::LostConsole(error))) => {
            Err(error).context("cannot write the guest's console, so the machine was ended")
        }
        (Outcome::Stopped, Some(StoppedBy::Keys) | None)
        | (Outcome::PoweredOff | Outcome::Reset, _) => Ok(Ending::Status(0)),
    }
}
