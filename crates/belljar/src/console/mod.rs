//! Where a guest's serial console goes: the terminal or pipes, a pseudo-terminal, a file, a Unix
//! socket.
//!
//! Every console has a bounded [`Outlet`] that the vCPUs fill and a writer thread empties, and
//! those with input a reader thread, which waits while the guest takes nothing. With standard
//! output or a file the guest waits for a slow reader and loses nothing; a pseudo-terminal or a
//! socket may have no reader at all, so there only the newest 64 KiB are kept.

mod descriptor;
mod outlet;
mod pty;
mod stdio;
mod stop;
mod unix;

use anyhow::{Context, Result};
use belljar_machine::{ConsoleChoice, ConsoleInput, ConsoleOutput};
pub use outlet::Outlet;
use outlet::WhenFull;
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
}

/// A guest's console. See the [module](self).
#[derive(Debug)]
pub struct Console {
    kind: Kind,
    outlet: Arc<Outlet>,
    stop: Arc<Stop>,
    threads: Vec<JoinHandle<()>>,
}

impl Console {
    /// Opens what `choice` names.
    pub fn open(choice: &ConsoleChoice) -> Result<Self> {
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
        };
        Ok(Self {
            kind,
            outlet: Arc::new(Outlet::new(when_full)),
            stop: Arc::new(Stop::new().context("cannot make an event file descriptor")?),
            threads: Vec::new(),
        })
    }

    /// What the machine writes to.
    pub fn output(&self) -> Arc<dyn ConsoleOutput> {
        Arc::<Outlet>::clone(&self.outlet)
    }

    /// The buffer of the output: whoever stops the machine closes it first, so that no vCPU waits
    /// for a reader.
    pub fn outlet(&self) -> Arc<Outlet> {
        Arc::clone(&self.outlet)
    }

    /// Where the user finds the console, if that has to be said.
    pub fn location(&self) -> Option<String> {
        match &self.kind {
            Kind::Stdio | Kind::File(_) => None,
            Kind::Pty(pty) => Some(pty.path().to_owned()),
            Kind::Unix(socket) => Some(socket.path().display().to_string()),
        }
    }

    /// Starts the console's threads. What is read goes to `input`.
    pub fn start(&mut self, input: ConsoleInput, requests: Arc<dyn Requests>) -> Result<()> {
        let (outlet, stop) = (Arc::clone(&self.outlet), Arc::clone(&self.stop));
        match &mut self.kind {
            Kind::Stdio => {
                let lost = Arc::clone(&requests);
                self.spawn("console output", move || {
                    write_to(&outlet, std::io::stdout(), &*lost);
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
                    write_to(&outlet, file, &*requests);
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
        self.outlet.close();
        let lossless = matches!(self.kind, Kind::Stdio | Kind::File(_));
        let written = self.outlet.wait_until_written(patient && lossless);
        self.stop.give();
        if let Kind::Unix(socket) = &self.kind {
            socket.clients().close();
        }
        if lossless && !(patient && written) {
            // The writer may hang in a write that nobody reads; the process ends without it.
            return;
        }
        for thread in self.threads {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl ConsoleOutput for Outlet {
    fn write(&self, bytes: &[u8]) {
        self.push(bytes);
    }

    fn pace(&self) {
        Self::pace(self);
    }
}

/// Writes everything from `outlet` to `sink`, which may block.
fn write_to(outlet: &Outlet, mut sink: impl Write, requests: &dyn Requests) {
    let mut bytes = Vec::new();
    while outlet.take(&mut bytes) {
        if let Err(error) = sink.write_all(&bytes).and_then(|()| sink.flush()) {
            outlet.break_off();
            requests.console_lost(error);
            return;
        }
    }
}

/// Locks a mutex whose data is whole at every moment, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
