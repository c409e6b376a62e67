//! SIGUSR1: statistics on standard error, while the guest goes on.

mod command;
mod kernel;
mod program;

use kernel::{CHATTY, echoing, printing, spinning, spinning_until_typed};
use program::{LIMIT, Run, Terminal, wait_until};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use rustix::termios::{Winsize, tcsetwinsize};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};

/// An engine that counts every instruction.
const COUNTING: [&str; 2] = ["--engine", "interpreter"];
/// What a table begins with.
const HEAD: &str = "belljar: up ";

/// Prints `text`, and halts for good with interrupts off; woken it would print: cli; hlt.
fn halting(text: &str) -> Vec<u8> {
    let mut code = printing(text);
    code.extend([0xfa, 0xf4]);
    code.extend(spinning("woken"));
    code
}

/// The rows of a table.
#[derive(Debug)]
struct Table(Vec<Vec<String>>);

impl Table {
    fn parse(text: &str) -> Self {
        let cells = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        Self(text.lines().map(cells).collect())
    }

    /// The cells after the name.
    fn row(&self, name: &str) -> &[String] {
        let row = self.0.iter().find(|row| row[0] == name);
        &row.unwrap_or_else(|| panic!("no {name} in {self:?}"))[1..]
    }

    /// The numbers after the name.
    fn numbers(&self, name: &str) -> Vec<u64> {
        let number = |cell: &String| cell.replace(',', "").parse().unwrap();
        self.row(name).iter().map(number).collect()
    }
}

/// A `belljar run` whose standard output and standard error are pipes.
struct Observed {
    run: Run,
    output: ChildStdout,
    errors: Receiver<String>,
}

impl Observed {
    fn of(mut run: Run) -> Self {
        let output = run.child.stdout.take().unwrap();
        let mut stderr = run.child.stderr.take().unwrap();
        let (sender, errors) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        Self {
            run,
            output,
            errors,
        }
    }

    fn start(code: &[u8], arguments: &[&str]) -> Self {
        Self::of(Run::start(code, arguments, piped))
    }

    /// Reads `count` bytes of the guest's console.
    fn printed(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        self.output.read_exact(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads standard error up to and with the next table. Belljar writes it at once and it is
    /// smaller than a pipe's buffer, so that it is read at once too.
    fn next_table(&self) -> Table {
        loop {
            let text = self.errors.recv_timeout(LIMIT).expect("a table");
            if let Some(at) = text.find(HEAD) {
                assert!(text.ends_with('\n'), "{text}");
                return Table::parse(&text[at..]);
            }
        }
    }

    fn table(&self) -> Table {
        self.run.signal(Signal::USR1);
        self.next_table()
    }

    /// Waits for the end; gives what the guest had printed that was not yet read.
    fn end(mut self) -> (String, ExitStatus) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (rest, self.run.end())
    }

    /// The same of a guest that powers off.
    fn power_off(self) -> String {
        let (rest, status) = self.end();
        assert_eq!(status.code(), Some(0));
        rest
    }

    /// The same of one that does not end by itself.
    fn terminate(self) -> String {
        self.run.signal(Signal::TERM);
        let (rest, status) = self.end();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
        rest
    }
}

fn piped(command: &mut Command) {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
}

#[test]
fn a_running_guest_goes_on_after_each_of_several_tables() {
    let mut observed = Observed::start(&echoing(), &COUNTING);
    let mut input = observed.run.child.stdin.take().unwrap();
    let mut before = 0;
    for _ in 0..5 {
        input.write_all(b"a").unwrap();
        assert_eq!(observed.printed(1), "a");
        let table = observed.table();
        assert_eq!(table.row("vcpu"), ["0", "total"]);
        assert_eq!(table.row("state"), ["running"]);
        let instructions = table.numbers("instructions");
        assert!(instructions[0] > before, "{table:?}");
        assert_eq!(instructions[0], instructions[1]);
        before = instructions[0];
    }
    input.write_all(b".").unwrap();
    assert_eq!(observed.power_off(), ".");
}

#[test]
fn a_guest_that_spins_with_interrupts_off_goes_on_spinning() {
    let mut observed = Observed::start(&spinning_until_typed("spins"), &[]);
    assert_eq!(observed.printed(5), "spins");
    for _ in 0..5 {
        assert_eq!(observed.table().row("state"), ["running"]);
    }
    let mut input = observed.run.child.stdin.take().unwrap();
    input.write_all(b"k").unwrap();
    assert_eq!(observed.power_off(), "on");
}

#[test]
fn a_halted_guest_stays_halted() {
    let mut observed = Observed::start(&halting("h"), &[]);
    assert_eq!(observed.printed(1), "h");
    wait_until(|| observed.table().row("state") == ["halted"]);
    let before = observed.table();
    for _ in 0..5 {
        let now = observed.table();
        assert_eq!(now.row("state"), ["halted"]);
        assert_eq!(now.row("instructions"), before.row("instructions"));
    }
    assert_eq!(observed.terminate(), "");
}

#[test]
fn a_vcpu_that_waits_for_its_start_has_a_column() {
    let arguments = [&COUNTING[..], &["--cpus", "2"]].concat();
    let mut observed = Observed::start(&spinning("spins"), &arguments);
    assert_eq!(observed.printed(5), "spins");
    for _ in 0..3 {
        let table = observed.table();
        assert_eq!(table.row("vcpu"), ["0", "vcpu", "1", "total"]);
        assert_eq!(table.row("state"), ["running", "wait-for-SIPI"]);
        assert_eq!(table.row("cpu_seconds").len(), 3);
        let instructions = table.numbers("instructions");
        assert!(instructions[0] > 0);
        assert_eq!(instructions[1..], [0, instructions[0]]);
    }
    assert_eq!(observed.terminate(), "");
}

#[test]
fn a_vcpu_that_waits_for_a_reader_is_marked() {
    let mut observed = Observed::start(&CHATTY, &[]);
    observed.printed(16);
    // It does not answer once the pipe and the console's buffer are full.
    wait_until(|| observed.table().row("vcpu") == ["0*", "total"]);
    // The guest goes on when it is read.
    observed.printed(1 << 18);
    observed.terminate();
}

#[test]
fn a_signal_that_comes_before_the_machine_is_answered_when_it_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("kernel");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut observed = Observed::of(Run::start_file(&fifo, &[], piped));
    let status = format!("/proc/{}/status", observed.run.child.id());
    let catches = || {
        let text = std::fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        caught & (1 << (Signal::USR1.as_raw() - 1)) != 0
    };
    wait_until(catches);
    observed.run.signal(Signal::USR1);
    let kernel = kernel::kernel(&spinning("spins"));
    std::fs::write(&fifo, std::fs::read(kernel.path()).unwrap()).unwrap();
    observed.next_table();
    assert_eq!(observed.printed(5), "spins");
    assert_eq!(observed.terminate(), "");
}

#[test]
fn above_a_raw_terminal_lines_begin_on_the_left_and_fit() {
    let mut terminal = Terminal::new();
    let size = Winsize {
        ws_row: 24,
        ws_col: 50,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal.user, size).unwrap();
    let run = Run::start(&spinning("spins"), &["--cpus", "3"], |command| {
        command
            .stdin(terminal.for_program())
            .stdout(terminal.for_program())
            .stderr(terminal.for_program());
    });
    terminal.wait_for("spins");
    run.signal(Signal::USR1);
    let mut text = terminal.wait_for("total");
    // Below the head of the last column.
    text += &terminal.wait_for("instructions");
    text += &terminal.wait_for("\n");
    assert!(text.starts_with("\r\nbelljar: up "), "{text:?}");
    assert_eq!(text.matches("\r\n").count(), text.matches('\n').count());
    assert_eq!(text.matches("vcpu").count(), 3, "{text:?}");
    assert!(text.lines().all(|line| line.len() <= 50), "{text:?}");
    assert!(terminal.is_raw());
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(run.end().code(), Some(0));
}
