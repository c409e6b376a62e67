//! A guest at its serial console, which is the standard streams of the program that runs it.

use crate::wait_while;
use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// What is shown of the console when something did not come, in bytes.
const TAIL: usize = 4096;

/// A running guest. It ends when this is dropped.
#[derive(Debug)]
pub struct Console {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// What was read and not yet given.
    seen: String,
}

impl Console {
    /// Starts the program; what it writes to standard error is not shown.
    pub fn start(command: &mut Command) -> Result<Self> {
        Self::start_with(command, Stdio::null())
    }

    /// Starts the program, whose messages go to `errors`.
    pub fn start_with(command: &mut Command, errors: Stdio) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("{command:?} did not start"))?;
        let input = child.stdin.take().context("the guest has no input")?;
        let mut console = child.stdout.take().context("the guest has no output")?;
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = console.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            child,
            input,
            output,
            seen: String::new(),
        })
    }

    /// The process of the program.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the program's end, at most for `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        let ended = wait_while(&mut self.child, || Instant::now() < deadline)?;
        ended.with_context(|| format!("the machine has not ended; its console: {}", self.tail()))
    }

    /// The end of what was printed and not yet given.
    pub fn tail(&mut self) -> &str {
        for bytes in self.output.try_iter() {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        let from = self.seen.len().saturating_sub(TAIL);
        &self.seen[self.seen.floor_char_boundary(from)..]
    }

    /// Reads until `text` appears, at most for `limit`; gives what came before it.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + text.len());
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(bytes) = self.output.recv_timeout(left) else {
                bail!("no {text:?} on the console; its end: {}", self.tail());
            };
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("the console takes no input")
    }

    /// What a command prints, in a shell that edits no lines; it must succeed within `limit`.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        // The echo of what is typed does not have the word.
        self.type_line(&format!("{command}; echo en''d:$?"))?;
        self.wait_for("\r\n", limit)?;
        let printed = self.wait_for("end:", limit)?;
        let status = self.wait_for("\r\n", limit)?;
        // Typed before the prompt, the next line's echo would not be what comes first.
        self.wait_for("# ", limit)?;
        let printed = printed.replace('\r', "").trim_end().to_owned();
        ensure!(status == "0", "{command} ended with {status}: {printed}");
        Ok(printed)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
