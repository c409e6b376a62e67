//! Boots of Debian's stock kernels, as a user sees them: through the program's standard streams.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// The end of the default guest's prompt, and busybox's question for the cursor's place.
const PROMPT: &str = "# \u{1b}[6n";
/// The longest that any step of a boot may take.
const LIMIT: Duration = Duration::from_mins(4);

/// Kernel messages of level "warning" and above that the same kernel prints on a real PC.
const EXPECTED_WARNINGS: &[&str] = &[
    // A recent AMD processor whose firmware offers no collaborative frequency control.
    "amd_pstate: The CPPC feature is supported but currently disabled by the BIOS",
    "Please enable it if your BIOS has the CPPC option",
    "amd_pstate: the _CPC object is not present in SBIOS or ACPI disabled",
];

/// A running guest and its console.
struct Guest {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Guest {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_belljar"))
            .args(["run", "--engine", "interpreter"])
            .args(arguments)
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

    /// Reads the console until `text` appears; gives what came before it.
    fn wait_for(&mut self, text: &str) -> String {
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

    /// Types a command at the prompt; gives what it printed.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.input, "{command}").expect("the console takes input");
        let printed = self.wait_for(PROMPT);
        // The terminal echoes the command before, and the prompt begins after, what it printed.
        let printed = printed.replace('\r', "");
        let lines: Vec<&str> = printed.lines().skip(1).collect();
        lines[..lines.len().saturating_sub(1)].join("\n")
    }

    /// Types `poweroff` and waits for the end.
    fn power_off(mut self) -> ExitStatus {
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

/// Boots a suite's kernel and checks it as a user would.
fn boots(suite: &str, release: &str, cpus: u32) {
    let mut guest = Guest::start(&["--suite", suite, "--cpus", &cpus.to_string()]);
    guest.wait_for(PROMPT);

    assert!(
        guest.run("uname -r").starts_with(release),
        "not the kernel of {suite}"
    );
    assert_eq!(guest.run("nproc").trim(), cpus.to_string());
    let warnings = guest.run("dmesg -r | grep '^<[0-4]>'");
    let unexpected: Vec<&str> = warnings
        .lines()
        .filter(|line| {
            !EXPECTED_WARNINGS
                .iter()
                .any(|expected| line.contains(expected))
        })
        .collect();
    assert!(
        unexpected.is_empty(),
        "warnings of the kernel: {unexpected:#?}"
    );
    // The clock is a good one, not a fallback.
    guest.run("cd /sys/devices/system/clocksource/clocksource0");
    let source = guest.run("cat current_clocksource");
    assert!(
        ["tsc", "kvm-clock"].contains(&source.as_str()),
        "clock source {source:?}"
    );
    // The processes of the guest compute.
    assert_eq!(
        guest.run("seq 1 1000 | md5sum").trim(),
        "53d025127ae99ab79e8502aae2d9bea6  -"
    );

    assert_eq!(guest.power_off().code(), Some(0));
}

#[test]
fn debian_12_boots_with_one_cpu() {
    boots("bookworm", "6.1.", 1);
}

#[test]
fn debian_12_boots_with_two_cpus() {
    boots("bookworm", "6.1.", 2);
}

#[test]
fn debian_13_boots_with_one_cpu() {
    boots("trixie", "6.12.", 1);
}

#[test]
fn debian_13_boots_with_two_cpus() {
    boots("trixie", "6.12.", 2);
}
