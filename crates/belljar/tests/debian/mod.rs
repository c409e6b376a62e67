//! Debian's stock kernel with a shell, used as a user does: through the program's standard streams.

#![allow(dead_code, reason = "each test program uses a part")]

use crate::command::belljar;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The end of the default guest's prompt, and busybox's question for the cursor's place.
pub const PROMPT: &str = "# \u{1b}[6n";
/// The longest that any step of a boot may take.
const LIMIT: Duration = Duration::from_mins(4);

/// A running guest and its console.
pub struct Guest {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Guest {
    /// Starts `belljar run` with `arguments`.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// Starts `belljar run` with `arguments` and environment variables.
    pub fn start_with(arguments: &[&str], variables: &[(&str, String)]) -> Self {
        let mut child = belljar()
            .arg("run")
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("belljar starts");
        let input = child.stdin.take().expect("standard input is a pipe");
        let mut console = child.stdout.take().expect("standard output is a pipe");
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = console.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            input,
            output,
            seen: String::new(),
        }
    }

    /// The process that runs it.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Reads the console until `text` appears; gives what came before it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.find(text) {
                let before = self.seen[..at].to_owned();
                self.seen.drain(..at + text.len());
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(why) => panic!(
                    "no {text:?} on the console ({why}); its end:\n{}",
                    self.seen
                ),
            }
        }
    }

    /// Types a line.
    pub fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("the console takes input");
    }

    /// Types a command at the prompt; gives what it printed.
    pub fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("the console takes input");
        let printed = self.wait_for(PROMPT);
        // The terminal echoes the command before, and the prompt begins after, what it printed.
        let printed = printed.replace('\r', "");
        let lines: Vec<&str> = printed.lines().skip(1).collect();
        lines[..lines.len().saturating_sub(1)].join("\n")
    }

    /// Types `poweroff` and waits for the end.
    pub fn power_off(mut self) -> ExitStatus {
        writeln!(self.input, "poweroff").expect("the console takes input");
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            let _ = self.output.recv_timeout(Duration::from_millis(100));
        }
        panic!("the guest did not power off");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
