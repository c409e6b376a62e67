//! Statistics of a running machine, as a table: on standard error when a signal asks, or for
//! `belljar stats`.

use crate::terminal;
use belljar_api::{MemoryStatistics, Statistics, VcpuStatistics};
use belljar_machine::{Activity, BalloonStatistics, MachineHandle};
use std::fmt::Write;
use std::io;
use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;

/// How long the vCPUs are waited for.
const LIMIT: Duration = Duration::from_secs(1);
/// What stands between two columns.
const GAP: usize = 2;
/// A cell without a figure.
const UNKNOWN: &str = "-";

/// Starts the thread that prints the statistics of `machine`, which `engine` runs. What is given
/// asks for a table and does not wait for it; who asks while one is being printed gets another.
pub fn printer(
    machine: MachineHandle,
    engine: &'static str,
) -> io::Result<impl Fn() + Send + 'static> {
    let (ask, asked) = mpsc::sync_channel(1);
    Builder::new()
        .name("statistics".to_owned())
        .spawn(move || {
            for () in asked {
                let statistics = collect(&machine, engine);
                let width = terminal::width().unwrap_or(usize::MAX);
                terminal::passage(&format!("belljar: {}", render(&statistics, width)));
            }
        })?;
    Ok(move || {
        // If a request waits already, its table is this one's.
        let _ = ask.try_send(());
    })
}

/// Asks the vCPUs of `machine`, which `engine` runs.
pub fn collect(machine: &MachineHandle, engine: &str) -> Statistics {
    let statistics = machine.statistics(LIMIT);
    let vcpus = statistics.vcpus.into_iter().map(|vcpu| VcpuStatistics {
        current: vcpu.current,
        state: activity(vcpu.activity).to_owned(),
        cpu_us: micros(vcpu.cpu_time),
        order: vcpu.counters.iter().map(|(n, _)| (*n).to_owned()).collect(),
        counters: vcpu
            .counters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect(),
    });
    Statistics {
        engine: engine.to_owned(),
        uptime_ms: millis(statistics.uptime),
        vcpus: vcpus.collect(),
        memory: statistics.balloon.map(memory),
    }
}

fn memory(balloon: BalloonStatistics) -> MemoryStatistics {
    let told = balloon.guest.iter();
    MemoryStatistics {
        size: balloon.size.most,
        balloon: balloon.size.actual,
        balloon_target: balloon.size.target,
        guest: told.map(|(name, value)| (name.to_owned(), value)).collect(),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The whole text: the uptime and the table, no wider than `width` where that is possible.
pub fn render(statistics: &Statistics, width: usize) -> String {
    let mut text = format!(
        "up {} s, engine {}\n",
        seconds(Duration::from_millis(statistics.uptime_ms)),
        statistics.engine
    );
    if let Some(memory) = &statistics.memory {
        write_memory(memory, &mut text);
    }
    Table::of(&statistics.vcpus).write(width, &mut text);
    if statistics.vcpus.iter().any(|vcpu| !vcpu.current) {
        let _ = writeln!(
            text,
            "* no answer within {} s: the figures are those of the last answer",
            LIMIT.as_secs()
        );
    }
    text
}

/// Writes a line about the memory, in MiB: the balloon, and what of the rest the guest uses.
fn write_memory(memory: &MemoryStatistics, text: &mut String) {
    let mib = |bytes: u64| thousands(bytes >> 20);
    // Writing to a string does not fail.
    let _ = write!(text, "memory {} MiB", mib(memory.size));
    let _ = write!(text, ", balloon {} MiB", mib(memory.balloon));
    if memory.balloon_target != memory.balloon {
        let _ = write!(text, " (to be {})", mib(memory.balloon_target));
    }
    for name in ["available", "free", "caches"] {
        if let Some(bytes) = memory.guest.get(name) {
            let _ = write!(text, ", {name} {} MiB", mib(*bytes));
        }
    }
    text.push('\n');
}

/// A table: a column of names, and columns of figures.
struct Table {
    names: Vec<String>,
    columns: Vec<Vec<String>>,
}

impl Table {
    /// A column for each vCPU and one for their total; the first row heads the columns.
    fn of(vcpus: &[VcpuStatistics]) -> Self {
        let counters = counter_names(vcpus);
        let mut names = vec![String::new(), "state".to_owned(), "cpu_seconds".to_owned()];
        names.extend(counters.iter().map(|name| (*name).to_owned()));
        let mut columns: Vec<_> = vcpus
            .iter()
            .enumerate()
            .map(|(id, vcpu)| vcpu_column(id, vcpu, &counters))
            .collect();
        columns.push(total_column(vcpus, &counters));
        Self { names, columns }
    }

    /// Writes the table; columns that find no room beside the others come below them.
    fn write(&self, width: usize, text: &mut String) {
        let name_width = widest(&self.names);
        let mut rest = self.columns.as_slice();
        while !rest.is_empty() {
            let fitting = rest
                .iter()
                .scan(name_width, |used, column| {
                    *used += GAP + widest(column);
                    Some(*used)
                })
                .take_while(|used| *used <= width)
                .count();
            let (now, later) = rest.split_at(fitting.max(1));
            self.write_columns(now, name_width, text);
            rest = later;
        }
    }

    fn write_columns(&self, columns: &[Vec<String>], name_width: usize, text: &mut String) {
        for (row, name) in self.names.iter().enumerate() {
            let mut line = format!("{name:name_width$}");
            for column in columns {
                let width = GAP + widest(column);
                let cell = column.get(row).map_or("", String::as_str);
                // Writing to a string does not fail.
                let _ = write!(line, "{cell:>width$}");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
    }
}

fn widest(cells: &[String]) -> usize {
    cells.iter().map(String::len).max().unwrap_or(0)
}

/// The names of all counters, in the engine's order.
fn counter_names(vcpus: &[VcpuStatistics]) -> Vec<&str> {
    let mut names = Vec::new();
    for name in vcpus.iter().flat_map(|vcpu| &vcpu.order) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn counter(vcpu: &VcpuStatistics, name: &str) -> Option<u64> {
    vcpu.counters.get(name).copied()
}

fn vcpu_column(id: usize, vcpu: &VcpuStatistics, counters: &[&str]) -> Vec<String> {
    let mark = if vcpu.current { "" } else { "*" };
    let mut cells = vec![
        format!("vcpu {id}{mark}"),
        vcpu.state.clone(),
        seconds(Duration::from_micros(vcpu.cpu_us)),
    ];
    cells.extend(
        counters
            .iter()
            .map(|name| counter(vcpu, name).map_or_else(|| UNKNOWN.to_owned(), thousands)),
    );
    cells
}

fn total_column(vcpus: &[VcpuStatistics], counters: &[&str]) -> Vec<String> {
    let cpu_us = vcpus.iter().map(|vcpu| vcpu.cpu_us);
    let cpu_time = Duration::from_micros(cpu_us.fold(0, u64::saturating_add));
    let mut cells = vec!["total".to_owned(), String::new(), seconds(cpu_time)];
    cells.extend(counters.iter().map(|name| {
        let values = vcpus.iter().filter_map(|vcpu| counter(vcpu, name));
        thousands(values.fold(0, u64::saturating_add))
    }));
    cells
}

fn activity(activity: Activity) -> &'static str {
    match activity {
        Activity::Running => "running",
        Activity::Halted => "halted",
        Activity::WaitForSipi => "wait-for-SIPI",
        Activity::Shutdown => "shutdown",
    }
}

/// Seconds with three decimals.
fn seconds(time: Duration) -> String {
    format!("{}.{:03}", thousands(time.as_secs()), time.subsec_millis())
}

/// A number with a comma before every third digit from the end.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn vcpu(activity_of: Activity, cpu_us: u64, counted: [u64; 2]) -> VcpuStatistics {
        let names = ["instructions", "tlb_misses"].map(str::to_owned);
        VcpuStatistics {
            current: true,
            state: activity(activity_of).to_owned(),
            cpu_us,
            order: names.to_vec(),
            counters: names.into_iter().zip(counted).collect(),
        }
    }

    fn two() -> Statistics {
        Statistics {
            engine: "swift".to_owned(),
            uptime_ms: 1_234_567,
            vcpus: vec![
                vcpu(Activity::Halted, 2_500_000, [1_234_567_890, 999]),
                vcpu(Activity::WaitForSipi, 1_001, [10, 1]),
            ],
            memory: None,
        }
    }

    #[test]
    fn the_memory_has_a_line() {
        let mut statistics = two();
        statistics.memory = Some(MemoryStatistics {
            size: 2 << 30,
            balloon: 256 << 20,
            balloon_target: 512 << 20,
            guest: BTreeMap::from([("free".to_owned(), 3 << 20), ("total".to_owned(), 1)]),
        });
        let text = render(&statistics, usize::MAX);
        let line = "memory 2,048 MiB, balloon 256 MiB (to be 512), free 3 MiB";
        assert_eq!(text.lines().nth(1), Some(line));
    }

    #[test]
    fn a_table_has_a_column_for_each_vcpu_and_the_total() {
        let text = "\
up 1,234.567 s, engine swift
                     vcpu 0         vcpu 1          total
state                halted  wait-for-SIPI
cpu_seconds           2.500          0.001          2.501
instructions  1,234,567,890             10  1,234,567,900
tlb_misses              999              1          1,000
";
        assert_eq!(render(&two(), usize::MAX), text);
    }

    #[test]
    fn columns_that_find_no_room_come_below() {
        for width in [0, 42, 57] {
            let text = render(&two(), width);
            let widest = text.lines().skip(1).map(str::len).max();
            assert!(widest <= Some(width.max(27)), "{text}");
            for cell in ["vcpu 0", "vcpu 1", "total", "1,234,567,900"] {
                assert_eq!(text.matches(cell).count(), 1, "{text}");
            }
        }
    }

    #[test]
    fn a_vcpu_that_did_not_answer_is_marked() {
        let mut statistics = two();
        assert!(!render(&statistics, usize::MAX).contains('*'));
        statistics.vcpus[1].current = false;
        statistics.vcpus[1].counters.clear();
        let text = render(&statistics, usize::MAX);
        assert!(text.contains("vcpu 1*"), "{text}");
        assert!(text.contains("\n* no answer within 1 s"), "{text}");
        let row = text.lines().find(|line| line.starts_with("tlb_misses"));
        let cells: Vec<_> = row.unwrap().split_whitespace().collect();
        assert_eq!(cells, ["tlb_misses", "999", "-", "999"]);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        let texts = [0, 999, 1_000, 123_456, u64::MAX].map(thousands);
        let expected = ["0", "999", "1,000", "123,456", "18,446,744,073,709,551,615"];
        assert_eq!(texts, expected);
    }
}
