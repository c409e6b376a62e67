//! `belljar exec` in the default guest, from one end to the other.

mod command;
mod kernel;
mod program;
mod started;

use program::{Terminal, end};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use started::Guest;
use std::io::{Read, Write};
use std::process::{Child, Stdio};

fn runs(suite: &str, release: &str) {
    let guest = Guest::start(suite, &[]);
    let (status, output, errors) = guest.shell("uname -r; echo oops >&2; exit 7");
    assert_eq!(status, Some(7));
    assert!(output.starts_with(release), "{output}");
    assert_eq!(errors, "oops\n");

    // Signals and commands that are not there.
    assert_eq!(guest.shell("kill -9 $$").0, Some(128 + 9));
    let missing = guest.exec(&["g", "--", "no-such-command"]);
    assert_eq!(missing.status.code(), Some(127));
    let variable = guest.exec(&[
        "-e",
        "WORD=x y",
        "-w",
        "/tmp",
        "g",
        "sh",
        "-c",
        "pwd; echo $WORD",
    ]);
    assert_eq!(variable.stdout, b"/tmp\nx y\n");

    // A megabyte there and back, through both windows.
    let mut cat = guest
        .command(&["exec", "g", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let mut input = cat.stdin.take().unwrap();
    let expected = sent.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
    let mut got = Vec::new();
    cat.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    writer.join().unwrap();
    assert!(got == expected, "{} bytes", got.len());
    assert_eq!(end(&mut cat).code(), Some(0));

    // Many at once.
    let many: Vec<Child> = (0..8)
        .map(|number| {
            let script = format!("sleep 0.{number}; exit {number}");
            guest
                .command(&["exec", "g", "--", "sh", "-c", &script])
                .spawn()
                .unwrap()
        })
        .collect();
    for (number, mut child) in (0..).zip(many) {
        assert_eq!(end(&mut child).code(), Some(number));
    }

    a_signal_is_passed_on(&guest);
    a_terminal_has_a_size_and_signals(&guest);
}

fn a_signal_is_passed_on(guest: &Guest) {
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = guest
        .command(&["exec", "g", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 6]).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(end(&mut child).code(), Some(5));
}

fn a_terminal_has_a_size_and_signals(guest: &Guest) {
    let mut terminal = Terminal::new();
    let size = |rows, columns| Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal.user, size(33, 101)).unwrap();
    let mut child = guest
        .command(&["exec", "-t", "g", "--", "sh"])
        .stdin(terminal.for_program())
        .stdout(terminal.for_program())
        .stderr(terminal.for_program())
        .spawn()
        .unwrap();
    terminal.wait_for("# ");
    assert!(terminal.is_raw());
    terminal.user.write_all(b"stty size; tty\n").unwrap();
    terminal.wait_for("33 101\r\n/dev/pts/");
    terminal.wait_for("# ");
    tcsetwinsize(&terminal.user, size(44, 55)).unwrap();
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    terminal
        .user
        .write_all(b"until stty size | grep '44 55'; do :; done\n")
        .unwrap();
    terminal.wait_for("44 55\r\n");
    terminal.wait_for("# ");
    // Ctrl-C is the command's.
    terminal
        .user
        .write_all(b"sh -c 'echo begun; exec sleep 1000'\n")
        .unwrap();
    terminal.wait_for("begun\r\n");
    terminal.user.write_all(b"\x03").unwrap();
    terminal.wait_for("# ");
    terminal.user.write_all(b"exit 9\n").unwrap();
    assert_eq!(end(&mut child).code(), Some(9));
    assert!(!terminal.is_raw());
}

#[test]
fn commands_run_in_debian_12() {
    runs("bookworm", "6.1.");
}

#[test]
fn commands_run_in_debian_13() {
    runs("trixie", "6.12.");
}
