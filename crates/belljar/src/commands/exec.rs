//! `belljar exec`: runs a command in the guest, through the agent there.

use crate::terminal::{RawTerminal, message};
use crate::{signals, terminal};
use anyhow::{Context, Result, bail};
use belljar_agent::{PORT, Start, TerminalSize, ToGuest, ToHost, WINDOW, read, write};
use belljar_api::{Action, Answer, ApiError, Place, Runtime};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};
use signal_hook::iterator::Signals;
use std::ffi::OsString;
use std::io::{ErrorKind, Read, Write, stderr, stdin, stdout};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How long the guest may take to accept a connection.
const ANSWERING: Duration = Duration::from_secs(10);
/// The pause between two tries while the agent has not started yet.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes of input that are sent at once.
const CHUNK: usize = 16 << 10;
/// Signals that are passed on to the command.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];
/// As many of these, and the command is left to itself: it, or its guest, may not react.
const ENOUGH: u32 = 3;
/// What is added to the number of a signal that ended a command, as shells do.
const SIGNALLED: u8 = 128;

/// The flags of `belljar exec`.
#[derive(Debug, Args)]
pub struct ExecOptions {
    /// Name of the machine
    #[arg(value_name = "NAME")]
    name: String,
    /// Give the command a terminal, of the size of this one
    #[arg(long, short)]
    tty: bool,
    /// Give the command no input; else standard input is the command's
    #[arg(long, short)]
    no_input: bool,
    /// Variable of the command's environment (repeatable)
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<OsString>,
    /// Directory that the command starts in [default: /root]
    #[arg(long, short, value_name = "DIRECTORY")]
    workdir: Option<OsString>,
    /// Seconds that the guest may take until its agent has started
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// The connection with the agent, as threads that send use it.
struct Agent {
    stream: Mutex<UnixStream>,
    /// Bytes of input that the agent has room for.
    window: Mutex<usize>,
    opened: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agent {
    fn say(&self, message: &ToGuest) -> std::io::Result<()> {
        write(&mut *lock(&self.stream), message)
    }

    /// Waits for room for input, and takes at most `most` bytes of it.
    fn take_window(&self, most: usize) -> usize {
        let closed = |window: &mut usize| *window == 0;
        let mut window = self
            .opened
            .wait_while(lock(&self.window), closed)
            .unwrap_or_else(PoisonError::into_inner);
        let taken = most.min(*window);
        *window -= taken;
        taken
    }

    fn give_window(&self, count: usize) {
        *lock(&self.window) += count;
        self.opened.notify_all();
    }
}

/// `belljar exec`; the command's exit status.
pub fn exec(options: ExecOptions) -> Result<u8> {
    let size = match (options.tty, terminal::input_size()) {
        (false, _) => None,
        (true, Some((rows, columns))) => Some(TerminalSize { rows, columns }),
        (true, None) => bail!("--tty needs a terminal as standard input"),
    };
    let place = Runtime::of_user()?.place(&options.name)?;
    let (stream, ahead) = connect(&place, Duration::from_secs(options.wait))?;
    stream
        .set_nonblocking(false)
        .context("cannot set up the connection")?;
    let sending = stream.try_clone().context("cannot set up the connection")?;
    let agent = Arc::new(Agent {
        stream: Mutex::new(sending),
        window: Mutex::new(WINDOW),
        opened: Condvar::new(),
    });
    let has_input = !options.no_input;
    agent
        .say(&ToGuest::Start(start(options, size)))
        .context("cannot start the command")?;
    pass_signals_on(Arc::clone(&agent)).context("cannot catch signals")?;
    let raw = match size {
        Some(_) => RawTerminal::enter().context("cannot set up the terminal")?,
        None => None,
    };
    if has_input {
        let agent = Arc::clone(&agent);
        Builder::new()
            .name("input".to_owned())
            .spawn(move || send_input(&agent))
            .context("cannot start the thread of the input")?;
    } else {
        agent
            .say(&ToGuest::InputEnd)
            .context("cannot start the command")?;
    }
    let status = hear(ahead.chain(stream), &agent);
    drop(raw);
    status
}

/// Connects with the agent, which may take up to `limit` until it is there.
fn connect(place: &Place, limit: Duration) -> Result<(UnixStream, std::io::Cursor<Vec<u8>>)> {
    let end = Instant::now() + limit;
    loop {
        let mut client = place.connect()?;
        client.ask(Action::Connect { port: PORT })?;
        let left = end.saturating_duration_since(Instant::now());
        match client.answer(Some(left.max(ANSWERING))) {
            Ok(Answer::Connected) => {
                let (stream, ahead) = client.into_connection().into_stream();
                return Ok((stream, std::io::Cursor::new(ahead)));
            }
            Ok(_) => return Err(ApiError::WrongAnswer.into()),
            Err(ApiError::Refused(_) | ApiError::Closed) if !left.is_zero() => {
                std::thread::sleep(PAUSE);
            }
            Err(error) => return Err(error).context("the guest's agent cannot be reached"),
        }
    }
}

fn start(options: ExecOptions, terminal: Option<TerminalSize>) -> Start {
    let mut environment: Vec<Vec<u8>> = Vec::new();
    if let (Some(_), Some(kind)) = (terminal, std::env::var_os("TERM")) {
        environment.push([b"TERM=".to_vec(), kind.into_vec()].concat());
    }
    environment.extend(options.env.into_iter().map(OsString::into_vec));
    Start {
        arguments: options
            .command
            .into_iter()
            .map(OsString::into_vec)
            .collect(),
        environment,
        directory: options.workdir.map(OsString::into_vec).unwrap_or_default(),
        terminal,
    }
}

/// Sends signals that this process gets to the command, and tells it of the terminal's size.
fn pass_signals_on(agent: Arc<Agent>) -> std::io::Result<()> {
    let mut caught = Signals::new(PASSED_ON)?;
    caught.add_signal(SIGWINCH)?;
    Builder::new().name("signals".to_owned()).spawn(move || {
        let mut count = 0;
        for signal in caught.forever() {
            if signal == SIGWINCH {
                if let Some((rows, columns)) = terminal::input_size() {
                    // The end of the connection is told by the thread that reads it.
                    let _ = agent.say(&ToGuest::Resize(TerminalSize { rows, columns }));
                }
                continue;
            }
            count += 1;
            if count >= ENOUGH {
                signals::die_of(signal);
            }
            let _ = agent.say(&ToGuest::Signal(signal as u8));
        }
    })?;
    Ok(())
}

/// Sends standard input to the command, as far as it takes it.
fn send_input(agent: &Agent) {
    let mut bytes = vec![0; CHUNK];
    loop {
        let room = agent.take_window(CHUNK);
        let count = match stdin().lock().read(&mut bytes[..room]) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                agent.give_window(room);
                continue;
            }
            Err(_) => 0,
        };
        let message = if count == 0 {
            ToGuest::InputEnd
        } else {
            ToGuest::Input(bytes[..count].to_vec())
        };
        agent.give_window(room - count);
        if agent.say(&message).is_err() || count == 0 {
            return;
        }
    }
}

/// Shows what the command prints, until it has ended: its exit status.
fn hear(mut from: impl Read, agent: &Agent) -> Result<u8> {
    loop {
        let said = read(&mut from).context("cannot hear from the guest's agent")?;
        match said.context("the connection with the guest is gone")? {
            ToHost::Started => {}
            ToHost::Output(bytes) => show(stdout().lock(), &bytes)?,
            ToHost::Errors(bytes) => show(stderr().lock(), &bytes)?,
            ToHost::Taken(count) => agent.give_window(count as usize),
            ToHost::Exited(status) => return Ok(status),
            ToHost::Killed(signal) => return Ok(SIGNALLED.saturating_add(signal)),
            ToHost::Failed(status, why) => {
                terminal::restore();
                message(&why);
                return Ok(status);
            }
        }
    }
}

fn show(mut to: impl Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)
        .and_then(|()| to.flush())
        .context("cannot write what the command prints")
}
