//! What came out: figures, and what was wrong.

use super::clock::{Drift, Reading};
use super::loads::Counter;
use super::memory::{Course, Sample};
use anyhow::{Result, ensure};
use std::fmt::{self, Display, Formatter};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Lines in the order in which they were found.
#[derive(Debug, Default)]
pub struct Report {
    lines: Vec<String>,
    wrong: usize,
}

impl Report {
    /// Something to know.
    pub fn note(&mut self, line: String) {
        self.lines.push(line);
    }

    /// A check and how it went.
    pub fn result(&mut self, what: &str, result: Result<()>) {
        self.line(what, String::new(), result);
    }

    fn line(&mut self, what: &str, figures: String, result: Result<()>) {
        let verdict = match result {
            Ok(()) => "ok".to_owned(),
            Err(error) => {
                self.wrong += 1;
                format!("WRONG: {error:#}")
            }
        };
        let between = if figures.is_empty() { "" } else { ": " };
        self.lines
            .push(format!("{what:<24} {figures}{between}{verdict}"));
    }

    /// What is to be as before.
    pub fn same(&mut self, what: &str, before: &str, after: &str) {
        let result = match after {
            after if after == before => Ok(()),
            _ => Err(anyhow::anyhow!("{after:?}, not {before:?}")),
        };
        self.result(what, result);
    }

    /// What a load has done in `took`.
    pub fn load(&mut self, name: &str, counter: &Counter, took: Duration) {
        let rounds = counter.rounds.load(Ordering::Relaxed);
        let mib = counter.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 20);
        let figures = format!(
            "{rounds} rounds, {mib:.0} MiB, {:.1} MiB/s",
            mib / took.as_secs_f64()
        );
        let result = match rounds {
            0 => Err(anyhow::anyhow!("it was not done once")),
            _ => Ok(()),
        };
        self.line(name, figures, result);
    }

    /// The clock at `when`.
    pub fn reading(&mut self, when: &str, reading: &Reading) {
        self.note(format!(
            "{when:<24} the guest is {:+.2} ms ahead (known to {:.2} ms)",
            reading.ahead * 1e3,
            reading.uncertainty * 1e3
        ));
    }

    pub fn clock(&mut self, drift: &Drift) {
        let figures = format!(
            "the guest is {:+.2} ms ahead (known to {:.2} ms); its steady clock has won {:+.2} ms in {:.0} s",
            drift.end.ahead * 1e3,
            drift.end.uncertainty * 1e3,
            drift.won * 1e3,
            drift.length.as_secs_f64()
        );
        self.line("clock at the end", figures, drift.check());
    }

    pub fn memory(&mut self, course: &Course, cpus: u32) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let figures = format!(
            "{:.1} MiB after the warm-up, {:.1} MiB at the end, {:.1} MiB at most; code at most {:.1} MiB",
            mib(course.warm),
            mib(course.late),
            mib(course.most),
            mib(course.most_code)
        );
        self.line("memory beside the RAM", figures, course.check(cpus));
    }

    /// An error if anything was wrong.
    pub fn verdict(&self) -> Result<()> {
        ensure!(self.wrong == 0, "{} of the checks failed", self.wrong);
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// A line for the user who waits.
pub fn progress(sample: &Sample, counters: &[Counter], ahead: f64) -> String {
    let rounds = |counter: &Counter| counter.rounds.load(Ordering::Relaxed).to_string();
    let rounds: Vec<String> = counters.iter().map(rounds).collect();
    format!(
        "{:>5.0} s: rounds {}; memory {} MiB, code {} MiB, RAM {} MiB; {} descriptors, {} threads; \
         the guest's clock is {:+.1} ms ahead",
        sample.at.as_secs_f64(),
        rounds.join("/"),
        sample.own >> 20,
        sample.code >> 20,
        sample.ram >> 20,
        sample.descriptors,
        sample.threads,
        ahead * 1e3
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wrong_thing_is_enough() {
        let mut report = Report::default();
        report.result("power-off", Ok(()));
        report.same("clock source", "tsc", "tsc");
        report.verdict().unwrap();
        report.same("clock source", "tsc", "hpet");
        assert!(report.verdict().is_err());
        let text = report.to_string();
        assert!(text.contains("power-off                ok\n"), "{text}");
        assert!(text.contains("WRONG: \"hpet\", not \"tsc\""), "{text}");
    }

    #[test]
    fn a_load_that_was_never_done_is_wrong() {
        let (mut report, counter) = (Report::default(), Counter::default());
        counter.rounds.store(1, Ordering::Relaxed);
        report.load("compiler", &counter, Duration::from_secs(1));
        report.verdict().unwrap();
        report.load("compiler", &Counter::default(), Duration::from_secs(1));
        assert!(report.verdict().is_err());
    }
}
