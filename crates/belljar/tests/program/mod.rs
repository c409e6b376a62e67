//! `belljar run` as a user starts it, with pipes or a pseudo-terminal for its standard streams.

#![allow(dead_code, reason = "each test program uses a part")]

use crate::command::belljar;
use crate::kernel::kernel;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Nothing here takes longer, by far.
pub const LIMIT: Duration = Duration::from_mins(1);

/// A pseudo-terminal: the user's side and the program's.
pub struct Terminal {
    pub user: File,
    unread: Vec<u8>,
    program: OwnedFd,
}

impl Terminal {
    pub fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        let name = ptsname(&user, Vec::new()).unwrap();
        let program = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        Self {
            user: user.into(),
            unread: Vec::new(),
            program,
        }
    }

    pub fn for_program(&self) -> OwnedFd {
        self.program.try_clone().unwrap()
    }

    pub fn settings(&self) -> Termios {
        tcgetattr(&self.program).unwrap()
    }

    pub fn is_raw(&self) -> bool {
        !self.settings().local_modes.contains(LocalModes::ICANON)
    }

    /// Reads until `text` has appeared; gives everything up to and with it.
    pub fn wait_for(&mut self, text: &str) -> String {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = String::from_utf8_lossy(&self.unread);
            if let Some(at) = seen.find(text) {
                let end = at + text.len();
                let (before, after) = (seen[..end].to_owned(), seen[end..].to_owned());
                self.unread = after.into_bytes();
                return before;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap();
            let mut user = [PollFd::new(&self.user, PollFlags::IN)];
            let ready = poll(&mut user, Some(&left)).unwrap();
            assert!(ready > 0, "no {text:?} on the terminal, but {seen:?}");
            let mut bytes = [0; 4096];
            let count = self.user.read(&mut bytes).unwrap();
            self.unread.extend_from_slice(&bytes[..count]);
        }
    }
}

/// A `belljar run` that is killed if the test fails.
pub struct Run {
    pub child: Child,
    /// Kept until the end.
    kernel: Option<NamedTempFile>,
}

impl Run {
    pub fn start(code: &[u8], arguments: &[&str], set_up: impl FnOnce(&mut Command)) -> Self {
        let kernel = kernel(code);
        let mut run = Self::start_file(kernel.path(), arguments, set_up);
        run.kernel = Some(kernel);
        run
    }

    /// One whose kernel is a file.
    pub fn start_file(
        kernel: &Path,
        arguments: &[&str],
        set_up: impl FnOnce(&mut Command),
    ) -> Self {
        let mut command = belljar();
        command
            .args(["run", "--memory", "16M", "--kernel"])
            .arg(kernel)
            .args(arguments);
        set_up(&mut command);
        Self {
            child: command.spawn().unwrap(),
            kernel: None,
        }
    }

    /// One whose standard streams are `terminal`.
    pub fn on(terminal: &Terminal, code: &[u8]) -> Self {
        Self::start(code, &[], |command| {
            command
                .stdin(terminal.for_program())
                .stdout(terminal.for_program())
                .stderr(terminal.for_program());
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn end(mut self) -> ExitStatus {
        end(&mut self.child)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a program of Belljar's has ended.
pub fn end(child: &mut Child) -> ExitStatus {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > limit {
            child.kill().unwrap();
            panic!("belljar did not end");
        }
        std::thread::yield_now();
    }
}

/// Waits for a condition, which must come true soon.
pub fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "the condition did not come true");
        std::thread::yield_now();
    }
}
