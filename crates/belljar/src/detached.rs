//! `belljar start`: a machine without a terminal, in a process of its own.
//!
//! The process that the user starts hands the configuration to another one by its standard input,
//! and waits until that says on its standard output that the machine runs, or ends. Messages and
//! Ctrl-C reach it until then as if it were one process; afterwards it belongs to a session of its
//! own and its messages go to a file.

use crate::run::{self, Ending, Mode};
use anyhow::{Context, Result, bail};
use belljar_machine::{ConsoleChoice, MachineConfig};
use rustix::process::setsid;
use rustix::stdio::{dup2_stdin, dup2_stdout};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write, stdin, stdout};
use std::process::{Command, ExitCode, Stdio};

/// The command, for this program alone, that runs a machine whose configuration is on its standard
/// input.
pub const COMMAND: &str = "detached-machine";
/// This program, even if its file was replaced meanwhile.
const THIS_PROGRAM: &str = "/proc/self/exe";
/// The most bytes of what the started process says.
const LONGEST_WORD: u64 = 4096;

/// What the started process says when the machine runs.
#[derive(Debug, Serialize, Deserialize)]
struct Running {
    name: String,
}

/// Starts the machine of `config`, and comes back when it runs, or with the exit status of its
/// process, which has said why.
pub fn start(mut config: MachineConfig) -> Result<ExitCode> {
    if config.console == ConsoleChoice::Stdio {
        config.console = ConsoleChoice::None;
    }
    let mut child = Command::new(THIS_PROGRAM)
        .arg(COMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the machine's process")?;
    if let Some(mut input) = child.stdin.take() {
        serde_json::to_writer(&mut input, &config)
            .context("cannot hand the configuration to the machine's process")?;
    }
    let mut word = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output.take(LONGEST_WORD))
            .read_line(&mut word)
            .context("cannot hear from the machine's process")?;
    }
    if word.is_empty() {
        let status = child.wait().context("cannot wait for the machine")?;
        return match status.code().map(u8::try_from) {
            Some(Ok(code)) if code != 0 => Ok(ExitCode::from(code)),
            _ => bail!("the machine's process ended unexpectedly ({status})"),
        };
    }
    let running: Running =
        serde_json::from_str(&word).context("cannot understand the machine's process")?;
    writeln!(stdout(), "{}", running.name).context("cannot print the machine's name")?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the machine whose configuration is on standard input.
pub fn run() -> Result<Ending> {
    let config = serde_json::from_reader(stdin()).context("cannot read the configuration")?;
    run::run(config, Mode::Detached)
}

/// Leaves the user's session and standard input.
pub fn leave_session() -> Result<()> {
    setsid().context("cannot make a session for the machine")?;
    dup2_stdin(&nothing()?).context("cannot leave standard input")
}

/// Tells `belljar start` that the machine `name` runs, and leaves standard output.
pub fn tell(name: &str) -> Result<()> {
    let running = Running {
        name: name.to_owned(),
    };
    let mut word = serde_json::to_string(&running).context("cannot tell the machine's name")?;
    word.push('\n');
    let nothing = nothing()?;
    let mut output = stdout();
    output
        .write_all(word.as_bytes())
        .and_then(|()| output.flush())
        .and_then(|()| Ok(dup2_stdout(&nothing)?))
        .context("cannot detach from belljar start")
}

fn nothing() -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")
}
