//! `belljar ps`.

use super::print;
use anyhow::{Context, Result};
use belljar_api::{Action, Answer, Client, Condition, Place, Record, Runtime, State};
use clap::Args;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// How long a machine may take to tell its state.
const PATIENCE: Duration = Duration::from_secs(2);

/// The flags of `belljar ps`.
#[derive(Debug, Args)]
pub struct ListOptions {
    /// Show machines that have ended, too
    #[arg(long, short)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A row of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// running, paused, starting, unresponsive or ended.
    state: &'static str,
    pid: Option<u32>,
    cpus: Option<u32>,
    /// In bytes.
    memory: Option<u64>,
    engine: Option<String>,
    /// Machine time, without pauses.
    uptime_ms: Option<u64>,
    source: String,
    detached: Option<bool>,
    /// Of a machine that has ended, and whose process was not killed.
    exit_status: Option<u8>,
    /// How a machine ended.
    reason: Option<String>,
}

impl Row {
    fn unknown(name: &str, state: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            state,
            pid: None,
            cpus: None,
            memory: None,
            engine: None,
            uptime_ms: None,
            source: String::new(),
            detached: None,
            exit_status: None,
            reason: None,
        }
    }

    fn of_record(name: &str, state: &'static str, record: Option<Record>) -> Self {
        let Some(record) = record else {
            return Self::unknown(name, state);
        };
        let ended = record.ended.map(|(_, ended)| ended);
        Self {
            pid: ended.is_none().then_some(record.pid),
            cpus: Some(record.cpus),
            memory: Some(record.memory),
            source: record.source,
            detached: Some(record.detached),
            exit_status: ended.as_ref().and_then(|ended| ended.status),
            reason: ended.map(|ended| ended.reason),
            ..Self::unknown(name, state)
        }
    }

    /// What is known of the machine at `place`, or `None` if there is none any more.
    fn of(place: &Place) -> Option<Self> {
        match place.condition() {
            Ok(Condition::Running(client)) => Some(Self::of_running(place, client)),
            Ok(Condition::Between) => {
                Some(Self::of_record(place.name(), "starting", place.record()))
            }
            Ok(Condition::Ended(record)) => Some(Self::of_record(place.name(), "ended", record)),
            Err(error) => {
                tracing::debug!(%error, name = place.name(), "a place without a machine");
                None
            }
        }
    }

    fn of_running(place: &Place, mut client: Client) -> Self {
        let answer = client
            .ask(Action::Status)
            .and_then(|()| client.answer(Some(PATIENCE)));
        match answer {
            Ok(Answer::Status(status)) => Self {
                name: status.name,
                state: match status.state {
                    State::Running => "running",
                    State::Paused => "paused",
                    State::Ended => "ended",
                },
                pid: Some(status.pid),
                cpus: Some(status.cpus),
                memory: Some(status.memory),
                engine: Some(status.engine),
                uptime_ms: Some(status.uptime_ms),
                source: status.source,
                detached: Some(status.detached),
                exit_status: None,
                reason: None,
            },
            _ => Self::of_record(place.name(), "unresponsive", place.record()),
        }
    }

    fn cells(&self) -> [String; 7] {
        let text = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let state = match (&self.reason, self.exit_status) {
            (Some(_), Some(status)) => format!("{} ({status})", self.state),
            (Some(_), None) => format!("{} (killed)", self.state),
            (None, _) => self.state.to_owned(),
        };
        [
            self.name.clone(),
            state,
            text(self.pid.map(|pid| pid.to_string())),
            text(self.cpus.map(|cpus| cpus.to_string())),
            text(self.memory.map(size)),
            text(self.uptime_ms.map(|ms| duration(ms / 1000))),
            self.source.clone(),
        ]
    }
}

/// `belljar ps`.
pub fn list(options: &ListOptions) -> Result<()> {
    let runtime = Runtime::of_user()?;
    runtime.sweep()?;
    let places = runtime.places()?;
    // Machines that do not answer must not make the list wait for each in turn.
    let rows: Vec<Option<Row>> = std::thread::scope(|scope| {
        let asked: Vec<_> = places.iter().map(|p| scope.spawn(|| Row::of(p))).collect();
        asked
            .into_iter()
            .map(|thread| thread.join().ok().flatten())
            .collect()
    });
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    rows.retain(|row| options.all || row.state != "ended");
    if options.json {
        let text = serde_json::to_string_pretty(&rows).context("cannot write JSON")?;
        return print(&format!("{text}\n"));
    }
    print(&table(&rows))
}

const HEAD: [&str; 7] = ["NAME", "STATE", "PID", "CPUS", "MEMORY", "UPTIME", "SOURCE"];

fn table(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let mut widths = [0; HEAD.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.len().max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

/// A size in the largest unit that gives a whole number.
fn size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// A time in its two largest units.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if days > 0 {
        format!("{days}d {}h", hours % 24)
    } else if hours > 0 {
        format!("{hours}h {}m", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes}m {}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [1 << 30, 512 << 20, 1536 << 20, 5, 3 << 10].map(size);
        assert_eq!(sizes, ["1G", "512M", "1536M", "5", "3K"]);
        let times = [0, 59, 61, 3_725, 200_000].map(duration);
        assert_eq!(times, ["0s", "59s", "1m 1s", "1h 2m", "2d 7h"]);
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut long = Row::unknown("a-long-name", "ended");
        long.reason = Some("powered off".to_owned());
        long.exit_status = Some(0);
        let rows = [Row::unknown("a", "running"), long];
        assert_eq!(
            table(&rows),
            "\
NAME         STATE      PID  CPUS  MEMORY  UPTIME  SOURCE
a            running    -    -     -       -
a-long-name  ended (0)  -    -     -       -
"
        );
    }
}
