//! The terminal and the other consoles, as a user meets them.

mod command;
mod kernel;
mod program;

use kernel::{CHATTY, POWER_OFF, echoing, spinning};
use program::{LIMIT, Run, Terminal, wait_until};
use rustix::fs::{Mode, OFlags, open};
use rustix::process::Signal;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

/// Connects to the socket at `path` once it is there.
fn connect(path: &Path) -> UnixStream {
    let limit = Instant::now() + LIMIT;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < limit, "{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn keys_reach_the_guest_and_the_terminal_is_as_it_was() {
    let mut terminal = Terminal::new();
    let run = Run::on(&terminal, &echoing());
    terminal.wait_for("engine");
    while !terminal.is_raw() {
        std::thread::yield_now();
    }
    // Ctrl-C is the guest's, and so is a Ctrl-A that was typed twice.
    terminal.user.write_all(b"a\x03\x01\x01b").unwrap();
    terminal.wait_for("a\x03\x01b");
    terminal.user.write_all(b"\x01h").unwrap();
    terminal.wait_for("Ctrl-A x ends the machine");
    terminal.user.write_all(b".").unwrap();
    assert_eq!(run.end().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn ctrl_a_x_ends_a_guest_that_spins_with_interrupts_off() {
    let mut terminal = Terminal::new();
    let run = Run::on(&terminal, &spinning("spins"));
    terminal.wait_for("spins");
    assert!(terminal.is_raw());
    // A guest that reads nothing does not hide the keys behind others.
    terminal.user.write_all(&[b'k'; 200]).unwrap();
    terminal.user.write_all(b"\x01x").unwrap();
    assert_eq!(run.end().code(), Some(0));
    assert!(!terminal.is_raw());
}

#[test]
fn signals_end_the_process_with_the_terminal_restored() {
    let signals = [
        Signal::TERM,
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::USR2,
        Signal::ALARM,
        Signal::XCPU,
    ];
    for signal in signals {
        let mut terminal = Terminal::new();
        let run = Run::on(&terminal, &spinning("spins"));
        terminal.wait_for("spins");
        assert!(terminal.is_raw());
        run.signal(signal);
        assert_eq!(run.end().signal(), Some(signal.as_raw()));
        assert!(!terminal.is_raw());
    }
}

#[test]
fn input_from_a_pipe_is_passed_as_it_is() {
    let mut run = Run::start(&echoing(), &[], |command| {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
    });
    let text = format!("\x01x {}.", "0123456789".repeat(100));
    let mut input = run.child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    let mut printed = String::new();
    let mut output = run.child.stdout.take().unwrap();
    output.read_to_string(&mut printed).unwrap();
    assert_eq!(printed, text);
    assert_eq!(run.end().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_ends_the_machine() {
    let mut run = Run::start(&CHATTY, &[], |command| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    });
    let mut bytes = [0; 16];
    let mut output = run.child.stdout.take().unwrap();
    output.read_exact(&mut bytes).unwrap();
    drop(output);
    let mut errors = String::new();
    let mut stderr = run.child.stderr.take().unwrap();
    stderr.read_to_string(&mut errors).unwrap();
    assert!(errors.contains("Broken pipe"), "{errors}");
    assert_eq!(run.end().code(), Some(1));
}

#[test]
fn a_reader_that_does_not_read_stops_the_guest_but_not_belljar() {
    let mut run = Run::start(&CHATTY, &[], |command| {
        command.stdout(Stdio::piped());
    });
    let mut output = run.child.stdout.take().unwrap();
    let mut bytes = [0; 16];
    output.read_exact(&mut bytes).unwrap();
    run.signal(Signal::TERM);
    assert_eq!(run.end().signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn a_signal_ends_the_wait_for_a_reader_after_the_guest_has_powered_off() {
    // mov dx, 0x3f8; mov al, '#'; mov ecx, 70000; again: out dx, al; loop again: more than the pipe
    // holds, less than the pipe and the console's buffer.
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb0, b'#', 0xb9];
    code.extend(70_000_u32.to_le_bytes());
    code.extend([0xee, 0xe2, 0xfd]);
    code.extend(POWER_OFF);
    let run = Run::start(&code, &[], |command| {
        command.stdout(Stdio::piped());
    });
    let tasks = format!("/proc/{}/task", run.child.id());
    let is_vcpu = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("vcpu"))
    };
    let vcpu_runs = || std::fs::read_dir(&tasks).unwrap().flatten().any(is_vcpu);
    wait_until(vcpu_runs);
    wait_until(|| !vcpu_runs());
    run.signal(Signal::TERM);
    assert_eq!(run.end().code(), Some(0));
}

#[test]
fn a_pseudo_terminal_is_named_and_works() {
    let mut run = Run::start(&echoing(), &["--console", "pty"], |command| {
        command.stderr(Stdio::piped());
    });
    let errors = BufReader::new(run.child.stderr.take().unwrap());
    let path = errors
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("belljar: console: ").map(str::to_owned))
        .unwrap();
    let mut terminal: File = open(path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty())
        .unwrap()
        .into();
    terminal.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    terminal.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    terminal.write_all(b".").unwrap();
    assert_eq!(run.end().code(), Some(0));
}

#[test]
fn a_socket_serves_one_client_after_the_other_and_goes_away() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let console = format!("unix={}", path.display());
    let run = Run::start(&echoing(), &["--console", &console], |_| ());
    for word in [&b"first"[..], b"second"] {
        let mut client = connect(&path);
        client.write_all(word).unwrap();
        let mut bytes = vec![0; word.len()];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, word);
    }
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    connect(&path).write_all(b".").unwrap();
    assert_eq!(run.end().code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn a_socket_without_a_client_does_not_stop_the_guest_and_keeps_the_newest_output() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("console");
    let console = format!("unix={}", path.display());
    let text = format!("{}the end.", "0123456789".repeat(20));
    let run = Run::start(&spinning(&text), &["--console", &console], |_| ());
    let mut client = connect(&path);
    let mut bytes = vec![0; text.len()];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8(bytes).unwrap(), text);
    run.signal(Signal::TERM);
    assert_eq!(run.end().signal(), Some(Signal::TERM.as_raw()));
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let file = kernel::file_of(b"precious");
    let console = format!("unix={}", file.path().display());
    let run = Run::start(&echoing(), &["--console", &console], |_| ());
    assert_eq!(run.end().code(), Some(1));
    assert_eq!(std::fs::read(file.path()).unwrap(), b"precious");
}
