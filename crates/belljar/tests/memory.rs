//! The balloon in a real guest: what it does not use is the host's.

mod command;
mod debian;

use debian::{Guest, PROMPT};
use std::fs::read_to_string;
use std::thread::sleep;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// How long the guest may take for what it does in the background.
const LIMIT: Duration = Duration::from_mins(1);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What the guest's RAM takes of the host's memory, in bytes. proc(5), /proc/pid/smaps.
fn resident(process: u32) -> u64 {
    let text = read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let lines = text
        .lines()
        .skip_while(|l| !l.contains("memfd:belljar-ram"));
    let mut sizes = lines.filter_map(|line| line.strip_prefix("Rss:"));
    let size = sizes.next().expect("the guest's RAM is mapped").trim();
    size.trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits until `value` is what `accept` wants.
fn wait_for(what: &str, mut value: impl FnMut() -> u64, accept: impl Fn(u64) -> bool) {
    let end = Instant::now() + LIMIT;
    loop {
        let now = value();
        if accept(now) {
            return;
        }
        assert!(Instant::now() < end, "{what}: still {now}");
        sleep(PAUSE);
    }
}

/// A field of the guest's /proc/meminfo, in bytes.
fn meminfo(guest: &mut Guest, field: &str) -> u64 {
    let text = guest.run(&format!("grep ^{field}: /proc/meminfo"));
    let number = text.split_whitespace().nth(1);
    let number = number.unwrap_or_else(|| panic!("no {field} in {text:?}"));
    number.parse::<u64>().unwrap() << 10
}

/// Runs `belljar` with `arguments`; what it prints.
fn belljar(arguments: &[&str]) -> String {
    let output = command::belljar().args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A number of `belljar stats --json`, by its name.
fn statistic(name: &str, field: &str) -> u64 {
    let text = belljar(&["stats", "--json", name]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.pointer(&format!("/memory/{field}"))
        .and_then(serde_json::Value::as_u64)
        .unwrap_or_else(|| panic!("no {field} in {text}"))
}

#[test]
fn memory_that_the_guest_has_freed_is_the_hosts_again() {
    for suite in ["bookworm", "trixie"] {
        let mut guest = Guest::start(&["--suite", suite, "--memory", "768M"]);
        guest.wait_for(PROMPT);
        let process = guest.process();
        guest.run("dd if=/dev/zero of=/tmp/file bs=1M count=300");
        let full = resident(process);
        assert!(full >= 300 * MIB, "{full}");
        guest.run("rm /tmp/file");
        let freed = |now| now + 250 * MIB < full;
        wait_for("memory of the process", || resident(process), freed);
        let after = resident(process);
        println!("{suite}: {} MiB, then {} MiB", full / MIB, after / MIB);
        // What was taken away is given back when it is used.
        guest.run("dd if=/dev/urandom of=/tmp/file bs=1M count=150");
        let sums = guest.run("cp /tmp/file /tmp/copy; cmp /tmp/file /tmp/copy && echo same");
        assert_eq!(sums, "same");
        assert_eq!(guest.power_off().code(), Some(0));
    }
}

#[test]
fn a_balloon_takes_memory_from_the_guest_and_gives_it_back() {
    let name = "balloon-test";
    let arguments = ["--suite", "bookworm", "--memory", "512M", "--name", name];
    let mut guest = Guest::start(&arguments);
    guest.wait_for(PROMPT);
    let before = meminfo(&mut guest, "MemAvailable");
    belljar(&["balloon", name, "256M"]);
    let size = || statistic(name, "balloon");
    wait_for("the balloon", size, |now| now == 256 * MIB);
    let inflated = meminfo(&mut guest, "MemAvailable");
    assert!(inflated < before - 240 * MIB, "{before} {inflated}");
    let told = statistic(name, "guest/available");
    assert!(told.abs_diff(inflated) < 32 * MIB, "{told} {inflated}");
    belljar(&["balloon", name, "0"]);
    wait_for("the balloon", size, |now| now == 0);
    let deflated = meminfo(&mut guest, "MemAvailable");
    assert!(deflated > before - 16 * MIB, "{before} {deflated}");
    assert!(belljar(&["stats", name]).contains("memory 512 MiB, balloon 0 MiB, available "));
    assert_eq!(guest.power_off().code(), Some(0));
}
