//! Machines that other commands control: start, ps, stop, pause, resume, console, logs, stats.

mod command;
mod kernel;
mod program;

use command::belljar_in;
use kernel::{CHATTY, POWER_OFF, echoing, kernel, printing, spinning};
use program::{Terminal, end, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use tempfile::{NamedTempFile, TempDir};

/// A runtime directory, and the kernel of the machines in it; all are ended with the test.
struct Bench {
    directory: TempDir,
    kernel: NamedTempFile,
}

impl Bench {
    fn new(code: &[u8]) -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            kernel: kernel(code),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = belljar_in(&self.directory.path().join("run"));
        command.args(arguments);
        command
    }

    fn machine(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&[verb, "--memory", "16M", "--kernel"]);
        command.arg(self.kernel.path()).args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; gives its standard output.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail; gives its standard error.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    fn start(&self, name: &str) {
        let output = self.machine("start", &["--name", name]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(output.stdout, format!("{name}\n").as_bytes());
    }

    fn row(&self, name: &str) -> Option<serde_json::Value> {
        let text = self.ok(&["ps", "--all", "--json"]);
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        rows.into_iter().find(|row| row["name"] == name)
    }

    fn state(&self, name: &str) -> Option<String> {
        Some(self.row(name)?["state"].as_str().unwrap().to_owned())
    }

    fn console(&self, name: &str, terminal: &Terminal) -> Child {
        self.command(&["console", name])
            .stdin(terminal.for_program())
            .stdout(terminal.for_program())
            .stderr(terminal.for_program())
            .spawn()
            .unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let text = self.output(&["ps", "--json"]).stdout;
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap_or_default();
        for name in rows.iter().filter_map(|row| row["name"].as_str()) {
            let _ = self.output(&["stop", "--force", name]);
        }
    }
}

/// Powers off when the power button is pressed: mov dx, 0x600; again: in ax, dx; test ah, 1; jz
/// again.
fn polite() -> Vec<u8> {
    let mut code = printing("polite\n");
    code.extend([
        0x66, 0xba, 0x00, 0x06, 0x66, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf9,
    ]);
    code.extend(printing("bye\n"));
    code.extend(POWER_OFF);
    code
}

#[test]
fn a_detached_machine_lives_on_and_shuts_down_when_it_is_stopped() {
    let bench = Bench::new(&polite());
    bench.start("web");
    let row = bench.row("web").unwrap();
    assert_eq!(row["state"], "running");
    assert_eq!(row["memory"], 16 << 20);
    assert_eq!(row["detached"], true);
    assert!(bench.ok(&["ps"]).contains("web   running"));
    bench.ok(&["stop", "web"]);
    let row = bench.row("web").unwrap();
    assert_eq!(row["state"], "ended");
    assert_eq!(row["exit_status"], 0);
    assert_eq!(row["reason"], "powered off");
    assert!(!bench.ok(&["ps"]).contains("web"));
    assert_eq!(bench.ok(&["logs", "web"]), "polite\nbye\n");
    assert_eq!(bench.ok(&["logs", "-n", "1", "web"]), "bye\n");
    assert!(bench.refused(&["stop", "web"]).contains("does not run"));
    // The name is free again.
    bench.start("web");
    bench.ok(&["stop", "web"]);
}

#[test]
fn a_guest_that_does_not_listen_is_ended_after_the_timeout() {
    let bench = Bench::new(&spinning("deaf"));
    bench.start("web");
    let output = bench.output(&["stop", "--timeout", "1", "web"]);
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("has not shut down within 1 s"), "{errors}");
    assert_eq!(bench.row("web").unwrap()["reason"], "stopped");
    let messages = bench.ok(&["logs", "--messages", "web"]);
    assert!(messages.contains("ended by belljar stop"), "{messages}");
}

#[test]
fn a_name_is_had_by_one_machine_at_a_time() {
    let bench = Bench::new(&spinning("spins"));
    bench.start("web");
    for verb in ["start", "run"] {
        let output = bench.machine(verb, &["--name", "web"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            errors.contains("a machine named \"web\" runs already"),
            "{errors}"
        );
    }
    assert_eq!(bench.state("web").as_deref(), Some("running"));
    let names: Vec<_> = (0..2)
        .map(|_| bench.machine("start", &[]).output().unwrap().stdout)
        .collect();
    assert_ne!(names[0], names[1]);
    assert_eq!(bench.ok(&["ps"]).lines().count(), 4);
}

#[test]
fn a_machine_that_cannot_start_says_why_and_leaves_nothing() {
    let bench = Bench::new(b"");
    let output = bench
        .command(&["start", "--name", "web", "--kernel", "/nowhere/vmlinuz"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("/nowhere/vmlinuz"), "{errors}");
    assert!(bench.row("web").is_none());
    let output = bench.output(&["start", "--console", "stdio", "--kernel", "k"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn machines_that_do_not_exist_are_told() {
    let bench = Bench::new(b"");
    for arguments in [
        &["stop", "web"][..],
        &["pause", "web"],
        &["resume", "web"],
        &["console", "web"],
        &["logs", "web"],
        &["stats", "web"],
        &["stop", "../web"],
    ] {
        let errors = bench.refused(arguments);
        assert!(errors.contains("web"), "{errors}");
    }
    assert_eq!(bench.ok(&["ps", "--json"]), "[]\n");
}

#[test]
fn a_paused_machine_stands_still() {
    let bench = Bench::new(&spinning("spins"));
    bench.start("web");
    bench.ok(&["pause", "web"]);
    bench.ok(&["pause", "web"]);
    assert_eq!(bench.state("web").as_deref(), Some("paused"));
    let uptime = || bench.row("web").unwrap()["uptime_ms"].as_u64().unwrap();
    let before = uptime();
    assert_eq!(uptime(), before);
    bench.ok(&["resume", "web"]);
    assert_eq!(bench.state("web").as_deref(), Some("running"));
    wait_until(|| uptime() > before);
}

#[test]
fn a_paused_machine_shuts_down_when_it_is_stopped() {
    let bench = Bench::new(&polite());
    bench.start("web");
    bench.ok(&["pause", "web"]);
    bench.ok(&["stop", "web"]);
    assert_eq!(bench.row("web").unwrap()["reason"], "powered off");
}

#[test]
fn statistics_are_a_table_or_json() {
    let bench = Bench::new(&spinning("spins"));
    bench.start("web");
    assert!(bench.ok(&["stats", "web"]).contains("cpu_seconds"));
    let text = bench.ok(&["stats", "--json", "web"]);
    let statistics: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(statistics["vcpus"][0]["state"], "running");
    assert!(statistics["vcpus"][0]["counters"].is_object());
    let mut watching = bench
        .command(&["stats", "--json", "--watch=1", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = watching.stdout.take().unwrap();
    output.read_exact(&mut [0; 16]).unwrap();
    bench.ok(&["stop", "--force", "web"]);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(end(&mut watching).code(), Some(0));
}

#[test]
fn a_console_shows_what_was_printed_and_is_left_without_ending_the_machine() {
    let mut code = printing("hello ");
    code.extend(echoing());
    let bench = Bench::new(&code);
    bench.start("web");
    let mut terminal = Terminal::new();
    let mut console = bench.console("web", &terminal);
    terminal.wait_for("hello ");
    while !terminal.is_raw() {
        std::thread::yield_now();
    }
    terminal.user.write_all(b"abc").unwrap();
    terminal.wait_for("abc");
    // A second one looks on.
    let mut onlooker = Terminal::new();
    let looking = bench.console("web", &onlooker);
    onlooker.wait_for("somebody else has the keyboard");
    onlooker.wait_for("hello abc");
    terminal.user.write_all(b"def").unwrap();
    onlooker.wait_for("def");
    terminal.user.write_all(b"\x01d").unwrap();
    assert_eq!(end(&mut console).code(), Some(0));
    assert!(!terminal.is_raw());
    assert_eq!(bench.state("web").as_deref(), Some("running"));
    // The keyboard is free again; the guest ends at a full stop.
    let console = bench.console("web", &terminal);
    terminal.wait_for("hello abcdef");
    terminal.user.write_all(b".").unwrap();
    terminal.wait_for("the machine has ended");
    for mut child in [console, looking] {
        assert_eq!(end(&mut child).code(), Some(0));
    }
    assert!(!terminal.is_raw() && !onlooker.is_raw());
}

#[test]
fn a_console_is_restored_when_the_machine_is_killed_and_the_rest_is_cleaned_up() {
    let bench = Bench::new(&spinning("spins"));
    bench.start("web");
    let mut terminal = Terminal::new();
    let mut console = bench.console("web", &terminal);
    terminal.wait_for("spins");
    while !terminal.is_raw() {
        std::thread::yield_now();
    }
    let pid = bench.row("web").unwrap()["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    assert_eq!(end(&mut console).code(), Some(0));
    assert!(!terminal.is_raw());
    wait_until(|| bench.state("web").as_deref() == Some("ended"));
    assert_eq!(
        bench.row("web").unwrap()["reason"],
        "its process was killed"
    );
    bench.start("web");
}

#[test]
fn a_console_takes_input_from_a_pipe() {
    let bench = Bench::new(&echoing());
    bench.start("web");
    let mut console = bench
        .command(&["console", "web"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = format!("\x01d {}.", "0123456789".repeat(500));
    console
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let mut printed = String::new();
    console
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut printed)
        .unwrap();
    assert_eq!(printed, text);
    assert_eq!(end(&mut console).code(), Some(0));
    assert_eq!(bench.ok(&["logs", "web"]), text);
}

#[test]
fn logs_are_followed_to_the_end_of_the_machine() {
    let bench = Bench::new(&polite());
    bench.start("web");
    let mut following = bench
        .command(&["logs", "--follow", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = following.stdout.take().unwrap();
    output.read_exact(&mut [0; 7]).unwrap();
    bench.ok(&["stop", "web"]);
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "bye\n");
    assert_eq!(end(&mut following).code(), Some(0));
}

#[test]
fn the_messages_of_a_machine_are_bounded_and_their_end_is_shown() {
    let bench = Bench::new(&spinning("spins"));
    bench.start("web");
    let directory = bench.directory.path().join("run/web");
    let (log, old) = (
        directory.join("belljar.log"),
        directory.join("belljar.log.1"),
    );
    let pid = bench.row("web").unwrap()["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let mut following = bench
        .command(&["logs", "--messages", "--follow", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut followed = BufReader::new(following.stdout.take().unwrap());
    let mut line_after = |is_last: &dyn Fn(&str) -> bool| {
        let mut line = String::new();
        while !is_last(&line) {
            line.clear();
            assert_ne!(followed.read_line(&mut line).unwrap(), 0);
        }
    };
    for fill in ["first", "second", "third"] {
        // As if the machine had said all this.
        let lines = (1 << 20) / 100 + 1;
        let mut file = File::options().append(true).open(&log).unwrap();
        for number in 1..=lines {
            writeln!(file, "{number:>99} {fill}").unwrap();
        }
        for number in 1..=lines {
            let said = format!("{number:>99} {fill}\n");
            line_after(&|line| line == said);
        }
        // Statistics are a message, and the next one finds a full log.
        kill_process(pid, Signal::USR1).unwrap();
        line_after(&|line| line.starts_with("cpu_seconds"));
    }
    let length = |path| std::fs::metadata(path).unwrap().len();
    assert!(length(&log) < 1 << 16, "{}", length(&log));
    assert!(length(&old) < (1 << 20) + (1 << 16), "{}", length(&old));
    let messages = bench.ok(&["logs", "--messages", "web"]);
    assert!(messages.contains("third") && !messages.contains("first"));
    let end_of_messages = bench.ok(&["logs", "--messages", "-n", "100", "web"]);
    assert!(end_of_messages.contains("third") && end_of_messages.contains("cpu_seconds"));
    bench.ok(&["stop", "--force", "web"]);
    let mut rest = String::new();
    followed.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("ended by belljar stop\n"), "{rest}");
    assert_eq!(end(&mut following).code(), Some(0));
}

#[test]
fn a_machine_in_the_foreground_can_be_controlled_too_and_leaves_nothing() {
    let bench = Bench::new(&spinning("spins"));
    let mut run = bench
        .machine("run", &["--name", "front"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    run.stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut [0; 5])
        .unwrap();
    assert_eq!(bench.row("front").unwrap()["detached"], false);
    bench.ok(&["stop", "--force", "front"]);
    assert_eq!(end(&mut run).code(), Some(0));
    assert!(bench.row("front").is_none());
}

#[test]
fn clients_that_misbehave_do_not_disturb_a_machine() {
    let bench = Bench::new(&CHATTY);
    bench.start("web");
    let socket = bench.directory.path().join("run/web/control");
    let connect = || UnixStream::connect(&socket).unwrap();
    let silent: Vec<_> = (0..4).map(|_| connect()).collect();
    let mut garbage = connect();
    garbage.write_all(&[b'{'; 4096]).unwrap();
    garbage.write_all(b"\n").unwrap();
    let mut answer = String::new();
    garbage.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("not a message"), "{answer}");
    // Consoles that are attached and not read.
    let attached: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect();
            stream
                .write_all(
                    b"{\"version\":1,\"action\":{\"type\":\"console\",\"input\":true,\"scrollback\":true}}\n",
                )
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(bench.state("web").as_deref(), Some("running"));
    bench.ok(&["pause", "web"]);
    bench.ok(&["resume", "web"]);
    bench.ok(&["stop", "--force", "web"]);
    assert_eq!(bench.state("web").as_deref(), Some("ended"));
    drop((silent, attached));
}
