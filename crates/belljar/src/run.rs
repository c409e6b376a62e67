//! A machine from its start to its end, in the foreground (`belljar run`) or detached.

use crate::console::{Attachable, Console, Hub, Requests};
use crate::control::{Control, Facts};
use crate::registration::Registration;
use crate::terminal::{RawTerminal, message};
use crate::{detached, guest, images, limits, signals, statistics, terminal};
use anyhow::{Context, Result};
use belljar_api::Ended;
use belljar_machine::{
    ConsoleChoice, EngineChoice, Machine, MachineConfig, MachineHandle, Outcome,
};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Exit status when Belljar failed.
const FAILED: u8 = 1;
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
    Command,
    Signal(i32),
    LostConsole(io::Error),
}

/// How a machine is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With its console where the user is.
    Foreground,
    /// Without a terminal, by a process that `belljar start` has started and waits for.
    Detached,
}

/// Stops the machine, whoever asks for it.
#[derive(Debug)]
struct Stopper {
    machine: MachineHandle,
    hub: Arc<Hub>,
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
        self.hub.hurry();
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
pub fn run(mut config: MachineConfig, mode: Mode) -> Result<Ending> {
    let caught = signals::catch().context("cannot catch signals")?;
    images::machine::name(&mut config);
    let registration = Registration::enter(&config, mode == Mode::Detached)?;
    let source = match &config.kernel {
        Some(kernel) => kernel.display().to_string(),
        None => guest::provide(&mut config)?,
    };
    let log = match &registration {
        Some(registration) => registration.console_log()?,
        None => None,
    };
    let mut console = Console::open(&config.console, log)?;
    limits::raise_descriptors();
    let machine = Machine::new(&config, console.output())?;
    if config.engine == EngineChoice::Auto {
        message(&format!("engine: {} (auto)", machine.engine()));
    }
    if let Some(location) = console.location() {
        message(&format!("console: {location}"));
    }
    let stopper = Arc::new(Stopper {
        machine: machine.handle(),
        hub: console.hub(),
        reason: Mutex::new(None),
    });
    let follows = config.console == ConsoleChoice::Stdio;
    watch_signals(caught, &machine, &stopper, follows)?;
    let mut served = Served::start(registration, &config, source, mode, &machine, &stopper)?;
    let raw = match config.console {
        ConsoleChoice::Stdio => RawTerminal::enter().context("cannot set up the terminal")?,
        _ => None,
    };
    console.start(machine.console_input(), Arc::<Stopper>::clone(&stopper))?;
    machine.handle().resume();
    if mode == Mode::Detached {
        served.detach()?;
    }
    let outcome = machine.wait();
    let patient = !matches!(outcome, Outcome::Stopped);
    let (ending, reason) = conclude(outcome, stopper.take_reason());
    served.set_ended(&ending, reason);
    console.finish(patient);
    served.finish();
    drop(raw);
    ending
}

/// Stops the machine when a signal asks for it, and prints its statistics. A console that is on the
/// terminal `follows` its size.
fn watch_signals(
    caught: signals::Caught,
    machine: &Machine,
    stopper: &Arc<Stopper>,
    follows: bool,
) -> Result<()> {
    let on_end = {
        let stopper = Arc::clone(stopper);
        move |signal| stopper.stop(StoppedBy::Signal(signal))
    };
    let on_statistics = statistics::printer(machine.handle(), machine.engine())
        .context("cannot start the thread of the statistics")?;
    let on_resize = {
        let machine = machine.handle();
        move || {
            if let Some((rows, columns)) = terminal::input_size().filter(|_| follows) {
                machine.set_console_size(columns, rows);
            }
        }
    };
    on_resize();
    caught
        .watch(on_end, on_statistics, on_resize)
        .context("cannot watch for signals")
}

/// The machine's entry in the runtime directory and its control socket, if it has them.
struct Served {
    entry: Option<(Registration, Arc<Control>)>,
    ended: Option<Ended>,
}

impl Served {
    fn start(
        registration: Option<Registration>,
        config: &MachineConfig,
        source: String,
        mode: Mode,
        machine: &Machine,
        stopper: &Arc<Stopper>,
    ) -> Result<Self> {
        let Some(mut registration) = registration else {
            return Ok(Self {
                entry: None,
                ended: None,
            });
        };
        let facts = Facts {
            name: registration.name(),
            cpus: config.cpus,
            memory: config.memory.bytes(),
            source,
            detached: mode == Mode::Detached,
        };
        let stopper = Arc::clone(stopper);
        let control = Arc::new(Control::new(
            facts.clone(),
            machine.engine(),
            machine.handle(),
            Attachable::new(stopper.hub.scrollback(), machine.console_input()),
            Box::new(move || stopper.stop(StoppedBy::Command)),
        ));
        registration.serve(&facts, Arc::clone(&control))?;
        Ok(Self {
            entry: Some((registration, control)),
            ended: None,
        })
    }

    /// Leaves the terminal, and tells `belljar start` that the machine runs.
    fn detach(&mut self) -> Result<()> {
        match &self.entry {
            Some((registration, _)) => {
                detached::leave_session()?;
                registration.take_messages()?;
                detached::tell(&registration.name())
            }
            None => Ok(()),
        }
    }

    fn set_ended(&mut self, ending: &Result<Ending>, reason: String) {
        let status = match ending {
            Ok(Ending::Status(status)) => *status,
            // As shells tell it.
            Ok(Ending::Signal(signal)) => u8::try_from(128 + signal).unwrap_or(FAILED),
            Err(_) => FAILED,
        };
        let ended = Ended {
            status: Some(status),
            reason,
        };
        if let Some((_, control)) = &self.entry {
            control.set_ended(ended.clone());
        }
        self.ended = Some(ended);
    }

    /// Serves nobody any more.
    fn finish(self) {
        if let (Some((registration, _)), Some(ended)) = (self.entry, self.ended)
            && let Err(error) = registration.leave(ended)
        {
            tracing::warn!("the machine's entry is left over: {error:#}");
        }
    }
}

/// What the end of the machine means for the process, and in words.
fn conclude(outcome: Outcome, stopped_by: Option<StoppedBy>) -> (Result<Ending>, String) {
    let status = |status| Ok(Ending::Status(status));
    match (outcome, stopped_by) {
        (Outcome::DebugExit(value), _) => {
            (status(value), "ended by the debug-exit port".to_owned())
        }
        (Outcome::Crashed(crash), _) => {
            message(&format!("the guest crashed: {crash}"));
            (status(CRASHED), "the guest crashed".to_owned())
        }
        (Outcome::Failed(error), _) => {
            let reason = format!("Belljar failed: {error}");
            (Err(error.into()), reason)
        }
        (Outcome::Stopped, Some(StoppedBy::Signal(signal))) => {
            let reason = format!("ended by signal {signal}");
            (Ok(Ending::Signal(signal)), reason)
        }
        (Outcome::Stopped, Some(StoppedBy::LostConsole(error))) => {
            let reason = format!("its console could not be written: {error}");
            let failed =
                Err(error).context("cannot write the guest's console, so the machine was ended");
            (failed, reason)
        }
        (Outcome::Stopped, Some(StoppedBy::Command)) => {
            message("ended by belljar stop");
            (status(0), "stopped".to_owned())
        }
        (Outcome::Stopped, Some(StoppedBy::Keys) | None) => (status(0), "stopped".to_owned()),
        (Outcome::PoweredOff, _) => (status(0), "powered off".to_owned()),
        (Outcome::Reset, _) => (status(0), "reset".to_owned()),
    }
}
