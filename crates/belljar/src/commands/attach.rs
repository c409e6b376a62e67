//! `belljar console`: the console of a running machine on the terminal.

use crate::escape::{Escape, Key};
use crate::signals;
use crate::terminal::{self, RawTerminal, message};
use anyhow::{Context, Result};
use belljar_api::{Action, Answer, ApiError, Runtime};
use clap::Args;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io::{IsTerminal, Write, stdin, stdout};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::Builder;

/// Bytes that are read at once.
const CHUNK: usize = 4 << 10;
/// What Ctrl-A h shows.
const KEYS: &str = "Ctrl-A d detaches, Ctrl-A h shows this, Ctrl-A a sends Ctrl-A";

/// The flags of `belljar console`.
#[derive(Debug, Args)]
pub struct AttachOptions {
    /// Name of the machine
    #[arg(value_name = "NAME")]
    name: String,
    /// Only look: leave the keyboard to others
    #[arg(long)]
    read_only: bool,
    /// Do not show what was printed before
    #[arg(long)]
    no_scrollback: bool,
}

/// `belljar console`.
pub fn attach(options: &AttachOptions) -> Result<()> {
    let mut client = Runtime::of_user()?.place(&options.name)?.connect()?;
    let answer = client.call(Action::Console {
        input: !options.read_only,
        scrollback: !options.no_scrollback,
    })?;
    let Answer::Attached { input } = answer else {
        return Err(ApiError::WrongAnswer.into());
    };
    if !input && !options.read_only {
        message("somebody else has the keyboard of this console; this is to look only");
    }
    if stdin().is_terminal() {
        message(&format!("attached to {}; {KEYS}", options.name));
    }
    let (stream, ahead) = client.into_connection().into_stream();
    let tell_size = size_teller(input.then(|| options.name.clone()))?;
    tell_size();
    signals::catch()
        .and_then(|caught| caught.watch(|signal| signals::die_of(signal), || (), tell_size))
        .context("cannot catch signals")?;
    let raw = RawTerminal::enter().context("cannot set up the terminal")?;
    let end = Attached::new(stream, input).serve(&ahead);
    drop(raw);
    match end? {
        End::Detached => message("detached"),
        End::Ended => message("the machine has ended"),
    }
    Ok(())
}

/// What has the machine `name`, if there is one, told of the terminal's size, by a thread of its own.
fn size_teller(name: Option<String>) -> Result<impl Fn() + Send + 'static> {
    let (wish, wishes) = mpsc::sync_channel(1);
    let tell = move |name: &str| -> Result<()> {
        if let Some((rows, columns)) = terminal::input_size() {
            let size = Action::ConsoleSize { columns, rows };
            Runtime::of_user()?.place(name)?.connect()?.call(size)?;
        }
        Ok(())
    };
    Builder::new()
        .name("terminal size".to_owned())
        .spawn(move || {
            for () in wishes {
                if let Some(Err(error)) = name.as_deref().map(tell) {
                    // The machine may be about to end; its console tells.
                    tracing::debug!("the terminal's size was not told: {error:#}");
                }
            }
        })
        .context("cannot start the thread that tells the terminal's size")?;
    Ok(move || {
        // One that waits already will tell what the size is then.
        let _ = wish.try_send(());
    })
}

/// How an attachment ended.
enum End {
    Detached,
    Ended,
}

/// The client's side of an attached console.
struct Attached {
    stream: UnixStream,
    /// Whether what is typed goes to the guest.
    types: bool,
    escape: Option<Escape>,
    /// What the machine has not taken yet.
    waiting: Vec<u8>,
    /// Whether there is more to read from standard input.
    open: bool,
}

impl Attached {
    fn new(stream: UnixStream, types: bool) -> Self {
        let escape = stdin().is_terminal().then(Escape::default);
        Self {
            stream,
            types,
            open: types || escape.is_some(),
            escape,
            waiting: Vec::new(),
        }
    }

    fn serve(mut self, ahead: &[u8]) -> Result<End> {
        show(ahead)?;
        loop {
            // What comes from a pipe waits for the guest; at a terminal the keys must work.
            let listens = self.open && (self.waiting.is_empty() || self.escape.is_some());
            let (typed, printed) = self.wait(listens)?;
            if printed.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
                && !self.receive()?
            {
                return Ok(End::Ended);
            }
            if !typed.is_empty() && self.read_keys()? {
                return Ok(End::Detached);
            }
            self.send();
        }
    }

    /// Waits until something can be done; tells what is ready of standard input and the machine.
    fn wait(&self, listens: bool) -> Result<(PollFlags, PollFlags)> {
        let stdin = stdin();
        let keys = if listens {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let machine = if self.waiting.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let mut files = [
            PollFd::new(&self.stream, machine),
            PollFd::new(&stdin, keys),
        ];
        // Standard input that is at its end would be ready for ever.
        let watched = if listens { 2 } else { 1 };
        match poll(&mut files[..watched], None) {
            Ok(_) | Err(Errno::INTR) => Ok((files[1].revents(), files[0].revents())),
            Err(error) => Err(error).context("cannot wait for the console"),
        }
    }

    /// Shows what the guest prints; false at the end.
    fn receive(&self) -> Result<bool> {
        let mut bytes = [0; CHUNK];
        match recv(&self.stream, &mut bytes[..], RecvFlags::empty()) {
            // It has ended, or its process was killed.
            Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE) => Ok(false),
            Ok((_, count)) => {
                show(bytes.get(..count).unwrap_or_default())?;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(true),
            Err(error) => Err(error).context("cannot read the console"),
        }
    }

    /// Reads standard input; tells whether the user wants to leave.
    fn read_keys(&mut self) -> Result<bool> {
        let mut bytes = [0; CHUNK];
        let count = match rustix::io::read(stdin(), &mut bytes) {
            Ok(count) => count,
            Err(Errno::INTR | Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error).context("cannot read standard input"),
        };
        if count == 0 {
            self.open = false;
            // A terminal that is gone has nobody to look at it.
            return Ok(self.escape.is_some());
        }
        let mut rest = Vec::new();
        let mut leaves = false;
        for byte in bytes.iter().take(count) {
            match self.escape.as_mut().map(|escape| escape.feed(*byte)) {
                None | Some(Key::Byte(_)) => rest.push(*byte),
                Some(Key::Wait) => {}
                Some(Key::Both(byte)) => rest.extend([Escape::PREFIX, byte]),
                Some(Key::Detach) => leaves = true,
                Some(Key::Quit | Key::Help) => message(KEYS),
            }
        }
        // Like a real serial line, this one drops what nobody takes.
        if self.types && (self.escape.is_none() || self.waiting.len() < CHUNK) {
            self.waiting.extend(rest);
        }
        Ok(leaves)
    }

    /// Sends what waits, as far as the machine takes it.
    fn send(&mut self) {
        if !self.waiting.is_empty() {
            match send(&self.stream, &self.waiting, SendFlags::NOSIGNAL) {
                Ok(count) => drop(self.waiting.drain(..count)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // The machine is gone; reading tells.
                Err(_) => self.waiting.clear(),
            }
        }
        if !self.open && self.waiting.is_empty() {
            // Output goes on.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

fn show(bytes: &[u8]) -> Result<()> {
    let mut output = stdout().lock();
    output
        .write_all(bytes)
        .and_then(|()| output.flush())
        .inspect_err(|_| terminal::restore())
        .context("cannot write to standard output")
}
