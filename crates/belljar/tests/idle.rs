//! What a guest that does nothing costs the host: processor time and memory.

mod command;
mod debian;

use debian::{Guest, PROMPT};
use std::fs::read_to_string;
use std::thread::sleep;
use std::time::Duration;

/// What a guest's services may still do after the first prompt.
const SETTLING: Duration = Duration::from_secs(2);
/// How long it is then watched.
const WATCHED: Duration = Duration::from_secs(10);
/// How often it is watched until it has kept to its share: what else the host does makes everything
/// slower, an idle guest too.
const TRIES: u32 = 3;
/// The share of a core, in percent, that an idle machine may use.
const SHARE: u64 = 1;
/// Memory, in KiB, that Belljar may use for each vCPU.
const OVERHEAD: u64 = 64 << 10;
/// What `/proc` counts processor time in, on every x86 host.
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that a process has used, in ticks. proc(5), /proc/pid/stat: utime and stime.
fn ticks(process: u32) -> u64 {
    let text = read_to_string(format!("/proc/{process}/stat")).unwrap();
    let (_, after_name) = text.rsplit_once(") ").unwrap();
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
    ticks(14) + ticks(15)
}

/// Memory of a process, in KiB: what the guest has touched of its RAM, and what is Belljar's own:
/// anonymous memory and the code cache. proc(5), /proc/pid/smaps.
fn memory(process: u32) -> (u64, u64) {
    let text = read_to_string(format!("/proc/{process}/smaps")).unwrap();
    let (mut ram, mut own) = (0, 0);
    let mut mapping = "";
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let size = |index: usize| words[index].parse::<u64>().unwrap();
        match words[0] {
            "Rss:" if mapping.contains("memfd:belljar-ram") => ram += size(1),
            // It is mapped twice, and each time half of it counts.
            "Pss:" if mapping.contains("memfd:belljar-code") => own += size(1),
            "Anonymous:" if !mapping.contains("memfd:") => own += size(1),
            word if !word.ends_with(':') => mapping = line,
            _ => {}
        }
    }
    (ram, own)
}

/// Watches, once or more; gives the ticks that the process has used each time, of which only the
/// last can be within `limit`.
fn watch_until(process: u32, limit: u64) -> Vec<u64> {
    let mut used = Vec::new();
    for _ in 0..TRIES {
        let before = ticks(process);
        sleep(WATCHED);
        used.push(ticks(process) - before);
        if used.last() <= Some(&limit) {
            break;
        }
    }
    used
}

#[test]
fn an_idle_guest_costs_next_to_nothing() {
    for cpus in [1, 2] {
        let mut guest = Guest::start(&["--suite", "bookworm", "--cpus", &cpus.to_string()]);
        guest.wait_for(PROMPT);
        sleep(SETTLING);

        let limit = WATCHED.as_secs() * TICKS_PER_SECOND * SHARE / 100;
        let used = watch_until(guest.process(), limit);
        assert!(
            used.last() <= Some(&limit),
            "{used:?} ticks, not {limit}, with {cpus} vCPUs"
        );
        let (ram, own) = memory(guest.process());
        println!("{cpus} vCPUs: {used:?} ticks, {own} KiB beside {ram} KiB of RAM");
        assert!(ram > 0, "the guest's RAM was not found");
        assert!(own <= OVERHEAD * cpus, "{own} KiB with {cpus} vCPUs");

        assert_eq!(guest.power_off().code(), Some(0));
    }
}
