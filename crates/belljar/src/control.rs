//! What the control socket of a machine lets others do with it.

use crate::console::Attachable;
use crate::statistics;
use belljar_api::{Action, Answer, Ended, Performed, State, Status};
use belljar_machine::{Greetings, MachineHandle};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

/// In which the last answer must have been taken.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// What does not change while a machine lives.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// The number of its vCPUs.
    pub cpus: u32,
    /// The size of its RAM in bytes.
    pub memory: u64,
    /// What it was started from.
    pub source: String,
    /// Whether it was started without a terminal.
    pub detached: bool,
}

/// A machine as its control socket sees it.
pub struct Control {
    facts: Facts,
    engine: &'static str,
    machine: MachineHandle,
    console: Attachable,
    stop: Box<dyn Fn() + Send + Sync>,
    /// Held while pausing and resuming: these may wait for a vCPU that waits for a reader.
    changing: Mutex<()>,
    ended: Arc<Mutex<Option<Ended>>>,
}

impl Control {
    /// Controls `machine`, which `engine` runs and `stop` ends.
    pub fn new(
        facts: Facts,
        engine: &'static str,
        machine: MachineHandle,
        console: Attachable,
        stop: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            facts,
            engine,
            machine,
            console,
            stop,
            changing: Mutex::new(()),
            ended: Arc::default(),
        }
    }

    /// Says how the machine has ended; those who wait are told when the server ends.
    pub fn set_ended(&self, ended: Ended) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
    }

    fn status(&self) -> Status {
        let state = if self.machine.is_ended() {
            State::Ended
        } else if self.machine.is_paused() {
            State::Paused
        } else {
            State::Running
        };
        Status {
            name: self.facts.name.clone(),
            state,
            pid: std::process::id(),
            cpus: self.facts.cpus,
            memory: self.facts.memory,
            engine: self.engine.to_owned(),
            uptime_ms: statistics::millis(self.machine.uptime()),
            source: self.facts.source.clone(),
            detached: self.facts.detached,
        }
    }

    /// Lets `change` pause or resume the machine, unless that is being done already.
    fn change(&self, change: impl FnOnce(&MachineHandle)) -> Performed {
        let _changing = match self.changing.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Performed::refused("the machine is being paused or resumed already");
            }
        };
        if self.machine.is_ended() {
            return Performed::refused("the machine has ended");
        }
        change(&self.machine);
        Performed::Answer(Answer::Done)
    }

    /// Hands the client's connection over to the guest's socket device, which answers for itself.
    fn connect(&self, port: u32) -> Performed {
        let reason = format!(
            "nobody listens at port {port} in the guest: it has no agent, or that has not started yet"
        );
        let line = |answer: &Answer| {
            // Answers are plain data, which can always be written.
            let mut line = serde_json::to_vec(answer).unwrap_or_default();
            line.push(b'\n');
            line
        };
        let greetings = Greetings {
            accepted: line(&Answer::Connected),
            refused: line(&Answer::Refused { reason }),
        };
        let machine = self.machine.clone();
        Performed::Stream(
            None,
            Box::new(move |connection, _| {
                let (stream, _) = connection.into_stream();
                if let Err(error) = machine.connect(port, stream, greetings) {
                    tracing::warn!(%error, "a client cannot be connected with the guest");
                }
            }),
        )
    }

    /// Asks the guest for a balloon of `size` bytes.
    fn balloon(&self, size: u64) -> Performed {
        if size > self.facts.memory {
            let memory = self.facts.memory;
            return Performed::refused(format!(
                "the balloon cannot be larger than the machine's memory of {memory} bytes"
            ));
        }
        match self.machine.set_balloon(size) {
            Ok(()) => Performed::Answer(Answer::Done),
            Err(_) => Performed::refused("the machine has no balloon"),
        }
    }

    fn wait(&self) -> Performed {
        let ended = Arc::clone(&self.ended);
        Performed::Stream(
            None,
            Box::new(move |connection, ending| {
                if !ends_before_client_leaves(connection.stream(), ending) {
                    return;
                }
                let ended = ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let answer = ended.map_or_else(
                    || Answer::Refused {
                        reason: "the machine did not tell how it ended".to_owned(),
                    },
                    Answer::Ended,
                );
                // A client that has left needs no answer.
                let _ = connection.send(&answer, LAST_ANSWER);
            }),
        )
    }
}

impl belljar_api::Controlled for Control {
    fn perform(&self, action: Action) -> Performed {
        match action {
            Action::Status => Performed::Answer(Answer::Status(self.status())),
            Action::Pause => self.change(MachineHandle::pause),
            Action::Resume => self.change(MachineHandle::resume),
            Action::PowerButton => self.change(|machine| {
                machine.press_power_button();
                machine.resume();
            }),
            Action::Stop => {
                (self.stop)();
                Performed::Answer(Answer::Done)
            }
            Action::Statistics => {
                let statistics = statistics::collect(&self.machine, self.engine);
                Performed::Answer(Answer::Statistics(statistics))
            }
            Action::Balloon { size } => self.balloon(size),
            Action::Wait => self.wait(),
            Action::Console { input, scrollback } => self.console.attach(input, scrollback),
            Action::ConsoleSize { columns, rows } => {
                self.machine.set_console_size(columns, rows);
                Performed::Answer(Answer::Done)
            }
            Action::Connect { port } => self.connect(port),
        }
    }
}

/// Waits for the end of the server, and tells whether the client is still there then.
fn ends_before_client_leaves(client: impl AsFd, ending: BorrowedFd<'_>) -> bool {
    loop {
        let mut files = [
            PollFd::from_borrowed_fd(ending, PollFlags::IN),
            PollFd::from_borrowed_fd(client.as_fd(), PollFlags::RDHUP),
        ];
        match poll(&mut files, None) {
            Err(Errno::INTR) => {}
            Err(_) => return false,
            Ok(_) if !files[1].revents().is_empty() => return false,
            Ok(_) => return true,
        }
    }
}
