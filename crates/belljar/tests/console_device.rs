//! Guests whose console is virtio's: Debian's stock kernels, with hvc0.

mod command;
mod debian;
mod kernel;
mod program;
mod started;

use command::belljar;
use debian::{Guest, PROMPT};
use program::{Terminal, end};
use rustix::process::{Pid, Signal, kill_process};
use rustix::termios::{Winsize, tcsetwinsize};
use std::io::Write;
use std::process::{Child, Command};

/// The flags of a guest of `suite` with the console.
fn flags(suite: &str) -> [&str; 6] {
    let device = ["--console-device", "virtio"];
    [device[0], device[1], "--suite", suite, "--memory", "256M"]
}

fn talks(suite: &str) {
    let mut guest = Guest::start(&flags(suite));
    guest.wait_for(PROMPT);
    assert_eq!(guest.run("tty"), "/dev/hvc0");
    assert_eq!(guest.run("cat /sys/class/tty/console/active"), "hvc0");
    // Nothing is lost or mixed up, however much it is.
    let all: Vec<String> = (1..=20_000).map(|n: u32| n.to_string()).collect();
    assert_eq!(guest.run("seq 1 20000"), all.join("\n"));
    let typed = "0123456789".repeat(60);
    // The shell wraps what it echoes.
    let counted = guest.run(&format!("echo {typed} | wc -c"));
    assert_eq!(counted.lines().last(), Some("601"));
    assert_eq!(guest.run("echo lost > /dev/ttyS0; echo seen"), "seen");
    // Its messages are there, too.
    guest.type_line("echo said by the kernel > /dev/kmsg");
    guest.wait_for("] said by the kernel");
    guest.wait_for(PROMPT);
    assert_eq!(guest.power_off().code(), Some(0));
}

#[test]
fn debian_12_has_its_console_on_virtio() {
    talks("bookworm");
}

#[test]
fn debian_13_has_its_console_on_virtio() {
    talks("trixie");
}

fn resize(terminal: &Terminal, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal.user, size).unwrap();
}

fn on(terminal: &Terminal, mut command: Command) -> Child {
    command
        .stdin(terminal.for_program())
        .stdout(terminal.for_program())
        .stderr(terminal.for_program());
    command.spawn().unwrap()
}

/// Waits until the guest knows the size.
fn guest_sees(terminal: &mut Terminal, rows: u16, columns: u16) {
    let script = "until stty size | grep -qx '{}'; do sleep 0.1; done; echo it knows $((6*7))\n";
    let script = script.replace("{}", &format!("{rows} {columns}"));
    terminal.user.write_all(script.as_bytes()).unwrap();
    terminal.wait_for("it knows 42");
    terminal.wait_for(PROMPT);
}

#[test]
fn a_guest_knows_the_size_of_the_terminal_and_when_it_changes() {
    let mut terminal = Terminal::new();
    resize(&terminal, 33, 101);
    let mut command = belljar();
    command.arg("run").args(flags("bookworm"));
    let mut child = on(&terminal, command);
    terminal.wait_for(PROMPT);
    guest_sees(&mut terminal, 33, 101);
    resize(&terminal, 44, 111);
    // The test's terminal is not the program's controlling one, which would send it.
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    guest_sees(&mut terminal, 44, 111);
    terminal.user.write_all(b"poweroff\n").unwrap();
    terminal.wait_for("poweroff");
    assert_eq!(end(&mut child).code(), Some(0));
}

#[test]
fn who_attaches_gets_the_console_and_gives_it_the_size() {
    let guest = started::Guest::start("trixie", &["--console-device", "virtio"]);
    let mut terminal = Terminal::new();
    resize(&terminal, 30, 90);
    let mut child = on(&terminal, guest.command(&["console", "g"]));
    // What was printed before.
    terminal.wait_for(PROMPT);
    guest_sees(&mut terminal, 30, 90);
    terminal.user.write_all(b"tty\n").unwrap();
    terminal.wait_for("/dev/hvc0");
    resize(&terminal, 40, 120);
    kill_process(Pid::from_child(&child), Signal::WINCH).unwrap();
    terminal.wait_for(PROMPT);
    guest_sees(&mut terminal, 40, 120);
    terminal.user.write_all(b"\x01d").unwrap();
    assert_eq!(end(&mut child).code(), Some(0));
}
