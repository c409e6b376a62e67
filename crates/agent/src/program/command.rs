//! Starting a session's command.

use crate::signals;
use belljar_agent::{Start, TerminalSize};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{ioctl_tiocsctty, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};

/// The argument with which the agent starts itself as a process that becomes a command with a
/// terminal.
pub const CHILD: &str = "become-command";
/// The agent's own program.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The environment where neither the agent nor the host has another.
const ENVIRONMENT: [(&str, &str); 2] = [
    (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ),
    ("HOME", "/root"),
];
/// Where commands start, if it is there.
const HOME: &str = "/root";

/// Exit status of shells for a program that does not exist.
const NOT_FOUND: u8 = 127;
/// Exit status of shells for a program that cannot be executed.
const NOT_EXECUTABLE: u8 = 126;

/// A command that was started.
pub struct Started {
    pub child: Child,
    /// What its standard input is written to.
    pub input: Option<OwnedFd>,
    /// What its standard output, or its terminal, is read from.
    pub output: Option<OwnedFd>,
    /// What its standard error is read from.
    pub errors: Option<OwnedFd>,
    /// The master side of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// Why a command was not started, and the status that shells give for that.
pub struct Failure {
    pub status: u8,
    pub why: String,
}

impl Failure {
    fn of(program: &OsStr, error: &io::Error) -> Self {
        let status = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => NOT_EXECUTABLE,
        };
        let why = format!("cannot run {}: {error}", program.to_string_lossy());
        Self { status, why }
    }
}

/// Starts the command of a session.
pub fn start(start: Start) -> Result<Started, Failure> {
    let mut words = start.arguments.into_iter().map(OsString::from_vec);
    let program = words.next().unwrap_or_default();
    let failed = |error: io::Error| Failure::of(&program, &error);
    signals::hand_down_defaults().map_err(failed)?;
    let mut command = if start.terminal.is_none() {
        Command::new(&program)
    } else {
        let mut command = Command::new(THIS_PROGRAM);
        command.arg(CHILD).arg(&program);
        command
    };
    command.args(words);
    for (name, value) in ENVIRONMENT {
        if std::env::var_os(name).is_none() {
            command.env(name, value);
        }
    }
    for variable in &start.environment {
        let mut halves = variable.splitn(2, |byte| *byte == b'=');
        if let (Some(name), Some(value)) = (halves.next(), halves.next()) {
            command.env(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
    }
    if !start.directory.is_empty() {
        command.current_dir(OsStr::from_bytes(&start.directory));
    } else if Path::new(HOME).is_dir() {
        command.current_dir(HOME);
    }
    match start.terminal {
        None => with_pipes(&mut command).map_err(failed),
        Some(size) => {
            find(&program, command.get_envs()).map_err(failed)?;
            with_terminal(&mut command, size).map_err(failed)
        }
    }
}

fn with_pipes(command: &mut Command) -> io::Result<Started> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    Ok(Started {
        input: child.stdin.take().map(OwnedFd::from),
        output: child.stdout.take().map(OwnedFd::from),
        errors: child.stderr.take().map(OwnedFd::from),
        terminal: None,
        child,
    })
}

fn with_terminal(command: &mut Command, size: TerminalSize) -> io::Result<Started> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let terminal = File::from(open(path.as_c_str(), flags, Mode::empty())?);
    resize(&master, size)?;
    let child = command
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal)
        .spawn()?;
    // The copies of the terminal in `command` must go, or its end would never be seen.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Started {
        child,
        input: Some(master.try_clone()?),
        output: Some(master.try_clone()?),
        errors: None,
        terminal: Some(master),
    })
}

/// Gives a terminal another size.
pub fn resize(terminal: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Looks for a program as the process that becomes it will, so that a missing one is told as such.
fn find<'a>(
    program: &OsStr,
    changed: impl Iterator<Item = (&'a OsStr, Option<&'a OsStr>)>,
) -> io::Result<()> {
    if program.as_bytes().contains(&b'/') {
        return std::fs::metadata(program).map(drop);
    }
    let own = std::env::var_os("PATH");
    let path = changed
        .filter(|(name, _)| *name == "PATH")
        .find_map(|(_, value)| value.map(OsStr::to_owned))
        .or(own)
        .unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    if found {
        Ok(())
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Makes a session whose terminal is the standard input, and becomes the command of `arguments`.
pub fn become_command(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let program = arguments.next().unwrap_or_default();
    let error = setsid()
        .and_then(|_| ioctl_tiocsctty(io::stdin()))
        .map_or_else(io::Error::from, |()| {
            Command::new(&program).args(arguments).exec()
        });
    let failure = Failure::of(&program, &error);
    eprintln!("belljar-agent: {}", failure.why);
    ExitCode::from(failure.status)
}
