//! Default guests that run detached, and commands in them.

#![allow(dead_code, reason = "each test program uses a part")]

use crate::command::belljar_in;
use std::process::{Command, Output};
use tempfile::TempDir;

/// A started default guest, which is ended with the test.
pub struct Guest {
    directory: TempDir,
}

impl Guest {
    /// Starts the guest of `suite` with further flags, and waits for its agent.
    pub fn start(suite: &str, flags: &[&str]) -> Self {
        let guest = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        let started = guest
            .command(&["start", "--name", "g", "--suite", suite, "--memory", "256M"])
            .args(flags)
            .output()
            .unwrap();
        assert_eq!(started.status.code(), Some(0), "{started:?}");
        let ready = guest.exec(&["--wait", "120", "g", "--", "true"]);
        assert_eq!(ready.status.code(), Some(0), "{ready:?}: {}", guest.log());
        guest
    }

    /// Belljar with `arguments`, in the guest's runtime directory.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = belljar_in(&self.directory.path().join("run"));
        command.args(arguments);
        command
    }

    /// The end of the console.
    fn log(&self) -> String {
        let output = self.command(&["logs", "-n", "30", "g"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `belljar exec` to its end.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        self.command(&["exec"]).args(arguments).output().unwrap()
    }

    /// Runs a shell command; its status, standard output and standard error.
    pub fn shell(&self, script: &str) -> (Option<i32>, String, String) {
        let output = self.exec(&["g", "--", "sh", "-c", script]);
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.command(&["stop", "--force", "g"]).output();
    }
}
