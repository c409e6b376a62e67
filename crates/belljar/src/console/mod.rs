//! Where a guest's console goes: the terminal or pipes, a pseudo-terminal, a file, a Unix
//! socket.
//!
//! Every console has a bounded [`Outlet`] that the vCPUs fill and a writer thread empties, and
//! those with input a reader thread, which waits while the guest takes nothing. With standard
//! output or a file the guest waits for a slow reader and loses nothing; a pseudo-terminal or a
//! socket may have no reader at all, so there only the newest 64 KiB are kept.
//!
//! Whatever the console is, what the guest prints also goes to a log of bounded size, if there is
//! one, and to those who attach by the control socket ([`Scrollback`]).

mod attached;
mod descriptor;
mod hub;
mod outlet;
mod pty;
mod scrollback;
mod stdio;
mod stop;
mod unix;

use crate::log::RotatingLog;
use anyhow::{Context, Result};
pub use attached::Attachable;
use belljar_machine::{ConsoleChoice, ConsoleInput, ConsoleOutput};
pub use hub::Hub;
use outlet::{Outlet, WhenFull};
pub use scrollback::Scrollback;
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use stop::Stop;

/// What the user asks for at the console.
pub trait Requests: Send + Sync {
    /// Ctrl-A x.
    fn quit(&self);

    /// Nobody can read the console any more.
    fn console_lost(&self, error: std::io::Error);
}

/// The kinds of console, opened but without threads.
#[derive(Debug)]
enum Kind {
    Stdio,
    Pty(pty::Pty),
    File(Option<File>),
    Unix(unix::Socket),
    None,
}

/// A guest's console. See the [module](self).
#[derive(Debug)]
pub struct Console {
    kind: Kind,
    outlet: Arc<Outlet>,
    log: Option<Log>,
    hub: Arc<Hub>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

/// The log of a console, and what waits to be written to it.
#[derive(Debug)]
struct Log {
    outlet: Arc<Outlet>,
    file: Option<RotatingLog>,
}

impl Console {
    /// Opens what `choice` names. What is printed also goes to `log`.
    pub fn open(choice: &ConsoleChoice, log: Option<RotatingLog>) -> Result<Self> {
        let (kind, when_full) = match choice {
            ConsoleChoice::Stdio => (Kind::Stdio, WhenFull::Wait),
            ConsoleChoice::Pty => (Kind::Pty(pty::Pty::open()?), WhenFull::DropOldest),
            ConsoleChoice::File(path) => {
                let file = File::create(path).with_context(|| {
                    format!("cannot write the console's file {}", path.display())
                })?;
                (Kind::File(Some(file)), WhenFull::Wait)
            }
            ConsoleChoice::Unix(path) => {
                (Kind::Unix(unix::Socket::bind(path)?), WhenFull::DropOldest)
            }
            ConsoleChoice::None => (Kind::None, WhenFull::DropOldest),
        };
        let outlet = Arc::new(Outlet::new(when_full));
        if matches!(kind, Kind::None) {
            outlet.break_off();
        }
        let log = log.map(|file| Log {
            outlet: Arc::new(Outlet::new(WhenFull::Wait)),
            file: Some(file),
        });
        let outlets = [Some(&outlet), log.as_ref().map(|log| &log.outlet)];
        let hub = Hub::new(outlets.into_iter().flatten().cloned().collect());
        Ok(Self {
            kind,
            outlet,
            log,
            hub: Arc::new(hub),
            stop: Arc::new(Stop::new().context("cannot make an event file descriptor")?),
            threads: Vec::new(),
        })
    }

    /// What the machine writes to.
    pub fn output(&self) -> Arc<dyn ConsoleOutput> {
        Arc::<Hub>::clone(&self.hub)
    }

    /// The buffers of the output: whoever stops the machine hurries them first, so that no vCPU
    /// waits for a reader.
    pub fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.hub)
    }

    /// Where the user finds the console, if that has to be said.
    pub fn location(&self) -> Option<String> {
        match &self.kind {
            Kind::Stdio | Kind::File(_) | Kind::None => None,
            Kind::Pty(pty) => Some(pty.path().to_owned()),
            Kind::Unix(socket) => Some(socket.path().display().to_string()),
        }
    }

    /// Starts the console's threads. What is read goes to `input`.
    pub fn start(&mut self, input: ConsoleInput, requests: Arc<dyn Requests>) -> Result<()> {
        self.start_log()?;
        let (outlet, stop) = (Arc::clone(&self.outlet), Arc::clone(&self.stop));
        match &mut self.kind {
            Kind::None => Ok(()),
            Kind::Stdio => {
                let lost = Arc::clone(&requests);
                self.spawn("console output", move || {
                    write_to(&outlet, std::io::stdout(), |error| lost.console_lost(error));
                })?;
                self.spawn("console input", move || {
                    stdio::read(&stop, &input, &*requests);
                })
            }
            Kind::File(file) => {
                let Some(file) = file.take() else {
                    return Ok(());
                };
                self.spawn("console output", move || {
                    write_to(&outlet, file, |error| requests.console_lost(error));
                })
            }
            Kind::Pty(pty) => {
                let (writer, reader) = (pty.master(), pty.master());
                let writer_stop = Arc::clone(&stop);
                self.spawn("console output", move || {
                    descriptor::write(&outlet, &writer_stop, |failed| {
                        failed.is_none().then(|| Arc::clone(&writer))
                    });
                })?;
                self.spawn("console input", move || {
                    descriptor::read(&stop, &*reader, &input);
                })
            }
            Kind::Unix(socket) => {
                let clients = socket.clients();
                let reader = socket.listener();
                let (writer_clients, writer_stop) = (Arc::clone(&clients), Arc::clone(&stop));
                self.spawn("console output", move || {
                    descriptor::write(&outlet, &writer_stop, |failed| {
                        writer_clients.wait_for_one(failed)
                    });
                })?;
                self.spawn("console input", move || {
                    unix::serve(&reader, &clients, &stop, &input);
                })
            }
        }
    }

    fn start_log(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else {
            return Ok(());
        };
        let outlet = Arc::clone(&log.outlet);
        let Some(file) = log.file.take() else {
            return Ok(());
        };
        self.spawn("console log", move || {
            write_to(&outlet, file, |error| {
                tracing::warn!(%error, "the console's log cannot be written; it ends here");
            });
        })
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = Builder::new()
            .name(name.to_owned())
            .spawn(body)
            .with_context(|| format!("cannot start the thread of the {name}"))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Ends the console when no vCPU runs any more. What the guest printed is written out first:
    /// all of it if `patient`, however slow the reader, unless the user is in a hurry.
    pub fn finish(self, patient: bool) {
        self.hub.close();
        let lossless = matches!(self.kind, Kind::Stdio | Kind::File(_));
        let written = self.outlet.wait_until_written(patient && lossless);
        let logged = self
            .log
            .as_ref()
            .is_none_or(|log| log.outlet.wait_until_written(false));
        self.stop.give();
        if let Kind::Unix(socket) = &self.kind {
            socket.clients().close();
        }
        if (lossless && !(patient && written)) || !logged {
            // The writer may hang in a write that nobody reads; the process ends without it.
            return;
        }
        for thread in self.threads {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// Writes everything from `outlet` to `sink`, which may block.
fn write_to(outlet: &Outlet, mut sink: impl Write, lost: impl FnOnce(std::io::Error)) {
    let mut bytes = Vec::new();
    while outlet.take(&mut bytes) {
        if let Err(error) = sink.write_all(&bytes).and_then(|()| sink.flush()) {
            outlet.break_off();
            lost(error);
            return;
        }
    }
}

/// Locks a mutex whose data is whole at every moment, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
