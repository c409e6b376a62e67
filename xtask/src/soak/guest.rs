//! The guest under load: its machine, and commands in it.

use super::network;
use crate::console::Console;
use crate::debian::{file, free_port};
use crate::wait_while;
use anyhow::{Context, Result, bail, ensure};
use belljar_image::Image;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The longest time to the login prompt, and for anything in the guest.
const LIMIT: Duration = Duration::from_mins(10);
/// The directory in the guest where all happens.
pub const HOME: &str = "/root/soak";
/// Guest RAM.
const MEMORY: &str = "1G";
/// The serial number of the disk without a file system.
const SERIAL: &str = "soaked";
/// That disk in the guest: the first of a controller's names that end with the serial number.
const FIND_DISK: &str =
    "set -- /dev/disk/by-id/nvme-*soaked && [ -b \"$1\" ] && readlink -f \"$1\"";
/// The port at which the guest is a server.
pub const GUEST_PORT: u16 = 7000;

/// What a machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// The Belljar.
    pub program: &'a Path,
    pub engine: &'a str,
    pub cpus: u32,
    pub image: &'a Image,
    /// The disk with the root.
    pub root: &'a Path,
    /// The disk without a file system.
    pub disk: &'a Path,
    /// Where Belljar's messages go.
    pub messages: PathBuf,
}

/// Runs commands in the guest.
#[derive(Clone, Debug)]
pub struct Shell {
    program: PathBuf,
    name: String,
    /// The directory in the guest where all happens.
    home: String,
    /// Set when nothing has a point any more; commands that run end then.
    pub given_up: Arc<AtomicBool>,
}

impl Shell {
    /// One for the machine `name`, which the Belljar `program` reaches.
    pub fn new(program: &Path, name: &str, home: &str) -> Self {
        Self {
            program: program.to_owned(),
            name: name.to_owned(),
            home: home.to_owned(),
            given_up: Arc::default(),
        }
    }

    /// A file in the directory where all happens.
    pub fn path(&self, file: &str) -> String {
        format!("{}/{file}", self.home)
    }

    fn command(&self, options: &[&str], words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("exec").args(options).arg(&self.name).arg("--");
        command.args(words);
        command
    }

    /// What a command prints; it must succeed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        self.run_with(&[], words, &[])
    }

    /// What a script prints; it must succeed.
    pub fn script(&self, script: &str) -> Result<String> {
        self.run(&["sh", "-ec", script])
    }

    /// Writes a file of the guest.
    pub fn put(&self, path: &str, content: &[u8]) -> Result<()> {
        let words = ["sh", "-ec", "mkdir -p \"${0%/*}\"; cat > \"$0\"", path];
        self.run_with(&[], &words, content).map(drop)
    }

    /// Starts a command that is asked and answers.
    pub fn talk(&self, words: &[&str]) -> Result<Child> {
        let mut command = self.command(&[], words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().context("belljar exec did not start")
    }

    fn run_with(&self, options: &[&str], words: &[&str], input: &[u8]) -> Result<String> {
        let child = self
            .command(options, words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("belljar exec did not start")?;
        let output = finish(child, input, &self.given_up)
            .with_context(|| format!("in the guest: {}", words.join(" ")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        ensure!(
            output.status.success(),
            "in the guest, {} ended with {}: {} {}",
            words.join(" "),
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
        Ok(text(&output.stdout))
    }
}

/// Hands `input` to a child, and waits for its end. It is killed after too long a time.
fn finish(mut child: Child, input: &[u8], given_up: &AtomicBool) -> Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let deadline = Instant::now() + LIMIT;
    thread::scope(|scope| {
        scope.spawn(move || {
            // A command that does not want it has its status to tell why.
            stdin.map(|mut stdin| stdin.write_all(input))
        });
        let stdout = scope.spawn(move || all(stdout));
        let stderr = scope.spawn(move || all(stderr));
        let go_on = || !given_up.load(Ordering::Acquire) && Instant::now() <= deadline;
        let Some(status) = wait_while(&mut child, go_on)? else {
            child.kill()?;
            child.wait()?;
            bail!("it was given up");
        };
        let text = |read: thread::ScopedJoinHandle<'_, _>| read.join().unwrap_or_default();
        let (stdout, stderr) = (text(stdout), text(stderr));
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    })
}

fn all(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What was read before an error is of use.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// A running guest. Its machine is killed when this is dropped.
#[derive(Debug)]
pub struct Guest {
    console: Console,
    shell: Shell,
    messages: PathBuf,
    /// The port of the host's loopback that leads to [`GUEST_PORT`].
    pub port: u16,
}

impl Guest {
    /// Boots a machine until all services run.
    pub fn boot(machine: &Machine<'_>) -> Result<Self> {
        let (name, port) = (format!("soak-{}", std::process::id()), free_port()?);
        let mut command = Command::new(machine.program);
        command
            .args(["run", "--name", &name, "--engine", machine.engine])
            .args(["--cpus", &machine.cpus.to_string(), "--memory", MEMORY])
            .args(["--no-reboot", "--cmdline", &machine.image.metadata.cmdline])
            .arg("--kernel")
            .arg(machine.image.kernel())
            .arg("--initrd")
            .arg(machine.image.initrd())
            .args(["--disk", &format!("{},format=raw", file(machine.root))])
            .arg("--disk")
            .arg(format!(
                "{},format=raw,interface=nvme,serial={SERIAL}",
                file(machine.disk)
            ))
            .arg("--net")
            .arg(format!("user,loopback=on,forward={port}:{GUEST_PORT}"));
        let messages = File::create(&machine.messages)?;
        let mut guest = Self {
            console: Console::start_with(&mut command, messages.into())?,
            shell: Shell::new(machine.program, &name, HOME),
            messages: machine.messages.clone(),
            port,
        };
        guest.start_up().map_err(|error| guest.explain(error))?;
        Ok(guest)
    }

    fn start_up(&mut self) -> Result<()> {
        self.console.wait_for("login: ", LIMIT)?;
        // Whatever is still starting would count as load; what has failed is seen later.
        let words = ["sh", "-c", "systemctl is-system-running --wait; true"];
        self.shell.run_with(&["--wait", "300"], &words, &[])?;
        Ok(())
    }

    /// An error with what the console and Belljar said last.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let said = std::fs::read_to_string(&self.messages).unwrap_or_default();
        let console = self.console.tail();
        error.context(format!(
            "the console's end:\n{console}\nBelljar's messages:\n{said}"
        ))
    }

    pub fn shell(&self) -> &Shell {
        &self.shell
    }

    /// The machine's process.
    pub fn process(&self) -> u32 {
        self.console.process()
    }

    /// The disk without a file system, as the guest knows it.
    pub fn disk(&self) -> Result<String> {
        self.shell.script(FIND_DISK)
    }

    /// Makes the guest a server, `load serve`, and waits until it answers.
    pub fn serve(&self) -> Result<Server> {
        let load = self.shell.path("load");
        let mut child = self
            .shell
            .talk(&[&load, "serve", &GUEST_PORT.to_string()])?;
        // It says its port when it listens.
        let mut first = [0];
        let said = child
            .stdout
            .as_mut()
            .map(|output| output.read_exact(&mut first));
        let server = Server(child);
        ensure!(
            matches!(said, Some(Ok(()))),
            "the guest's server has not started"
        );
        network::send(self.port, 0, 8)?;
        Ok(server)
    }

    /// Shuts it down; the machine must end with status 0.
    pub fn power_off(mut self) -> Result<()> {
        let asked = self.shell.run(&["systemctl", "poweroff"]);
        let status = match self.console.wait(LIMIT) {
            Ok(status) => status,
            Err(error) => return Err(self.explain(error)),
        };
        // The connection may have gone before its answer came.
        if !status.success() {
            let error = anyhow::anyhow!("the machine ended with {status} ({asked:?})");
            return Err(self.explain(error));
        }
        Ok(())
    }
}

/// The guest's server, while it lives.
#[derive(Debug)]
pub struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn child(script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_command_gets_its_input_and_what_it_prints_is_kept() {
        let input = vec![b'a'; 1 << 20];
        let output = finish(
            child("wc -c; echo no >&2; exit 3"),
            &input,
            &AtomicBool::new(false),
        );
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.stdout.trim_ascii(), b"1048576");
        assert_eq!(output.stderr, b"no\n");
    }

    #[test]
    fn a_command_is_ended_when_all_is_given_up() {
        let error = finish(child("exec sleep 1000"), &[], &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.to_string(), "it was given up");
    }
}
