//! What came out of all rounds: the best times, their ratios, and whether the results agree.

use super::measure::{Measurement, Run};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Where the programs ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// On the host.
    Native,
    /// In a guest under QEMU's TCG.
    Tcg,
    /// In a guest under Belljar.
    Belljar,
}

impl Place {
    /// Its name in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Tcg => "tcg",
            Self::Belljar => "belljar",
        }
    }
}

/// The row of the time from the kernel's start to the first process.
const BOOT: &str = "boot";

/// The best of all rounds.
#[derive(Debug, Default)]
pub struct Report {
    /// Seconds by program and place.
    best: BTreeMap<(String, Place), f64>,
    /// What the first round's native run computed, by program.
    expected: BTreeMap<String, Measurement>,
    /// What was otherwise than natively, or failed; each once.
    wrong: Vec<String>,
}

impl Report {
    /// Takes in a run. The first one must be native.
    pub fn add(&mut self, place: Place, run: &Run, programs: &[&str]) {
        if let Some(boot) = run.boot {
            self.better(BOOT, place, boot);
        }
        for &name in programs {
            let none = Measurement::default();
            let found = run.programs.get(name).unwrap_or(&none);
            if let Some(problem) = self.problem(name, found) {
                let problem = format!("{name}, {}: {problem}", place.name());
                if !self.wrong.contains(&problem) {
                    self.wrong.push(problem);
                }
            } else if let Some(seconds) = found.seconds {
                self.better(name, place, seconds);
            }
        }
    }

    /// Takes in that a run in `place` failed.
    pub fn fail(&mut self, place: Place, error: &anyhow::Error) {
        self.wrong.push(format!("{}: {error:#}", place.name()));
    }

    fn better(&mut self, name: &str, place: Place, seconds: f64) {
        let best = self.best.entry((name.to_owned(), place)).or_insert(seconds);
        *best = best.min(seconds);
    }

    /// What is wrong with `found`, if anything.
    fn problem(&mut self, name: &str, found: &Measurement) -> Option<String> {
        if found.seconds.is_none() {
            return Some(match (found.result.as_str(), found.output.last()) {
                ("", _) => "it did not run".to_owned(),
                (result, None) => result.to_owned(),
                (result, Some(last)) => format!("{result}: {last}"),
            });
        }
        let expected = self.expected.entry(name.to_owned());
        let expected = expected.or_insert_with(|| found.clone());
        if found.result == expected.result {
            return None;
        }
        let count = expected.output.len().max(found.output.len());
        let line = |m: &Measurement, at: usize| m.output.get(at).cloned().unwrap_or_default();
        let different = (0..count).find(|&at| line(expected, at) != line(found, at));
        Some(different.map_or_else(
            || "its output differs from the native one".to_owned(),
            |at| {
                let (native, here) = (line(expected, at), line(found, at));
                format!("line {} is {here:?}, natively {native:?}", at + 1)
            },
        ))
    }

    /// What was wrong.
    pub fn wrong(&self) -> &[String] {
        &self.wrong
    }

    fn seconds(&self, name: &str, place: Place) -> Option<f64> {
        self.best.get(&(name.to_owned(), place)).copied()
    }

    /// Belljar's time by the native one, and TCG's by Belljar's.
    fn ratios(&self, name: &str) -> [Option<f64>; 2] {
        let [native, tcg, belljar] =
            [Place::Native, Place::Tcg, Place::Belljar].map(|place| self.seconds(name, place));
        let ratio = |a: Option<f64>, b: Option<f64>| Some(a? / b?);
        [ratio(belljar, native), ratio(tcg, belljar)]
    }

    /// The table, with a line for each of `programs` and one for the boot.
    pub fn table(&self, programs: &[&str]) -> String {
        let mut table = format!(
            "{:10} {:>9} {:>9} {:>9} {:>15} {:>12}\n",
            "program", "native s", "tcg s", "belljar s", "belljar/native", "tcg/belljar"
        );
        let number = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        for name in programs.iter().chain([&BOOT]) {
            let [native, tcg, belljar] = [Place::Native, Place::Tcg, Place::Belljar]
                .map(|place| number(self.seconds(name, place), 3));
            let [to_native, to_tcg] = self.ratios(name).map(|ratio| number(ratio, 2));
            // Writing to a string cannot fail.
            let _ = writeln!(
                table,
                "{name:10} {native:>9} {tcg:>9} {belljar:>9} {to_native:>15} {to_tcg:>12}"
            );
        }
        let [to_native, to_tcg] = self.means(programs).map(|mean| number(mean, 2));
        let _ = writeln!(
            table,
            "{:40} {to_native:>15} {to_tcg:>12}",
            "geometric mean"
        );
        table
    }

    /// The geometric means of both ratios over `programs`; `None` where one is missing.
    fn means(&self, programs: &[&str]) -> [Option<f64>; 2] {
        [0, 1].map(|column| {
            let mut sum = 0.0;
            for name in programs {
                sum += self.ratios(name)[column]?.ln();
            }
            Some((sum / programs.len() as f64).exp())
        })
    }

    /// The same for other programs to read.
    pub fn json(&self, programs: &[&str]) -> Value {
        let mut best: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
        for ((name, place), seconds) in &self.best {
            best.entry(name).or_default().insert(place.name(), *seconds);
        }
        let checksums: BTreeMap<_, _> = self
            .expected
            .iter()
            .map(|(name, measurement)| (name, &measurement.result))
            .collect();
        let [to_native, to_tcg] = self.means(programs);
        json!({
            "seconds": best,
            "checksums": checksums,
            "geometric mean": { "belljar/native": to_native, "tcg/belljar": to_tcg },
            "wrong": self.wrong,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seconds: f64, hash: &str, line: &str) -> Run {
        let measurement = Measurement {
            seconds: Some(seconds),
            result: hash.to_owned(),
            output: vec!["same".to_owned(), line.to_owned()],
        };
        Run {
            programs: BTreeMap::from([("a".to_owned(), measurement)]),
            ..Run::default()
        }
    }

    #[test]
    fn the_best_round_counts_and_ratios_are_shown() {
        let mut report = Report::default();
        for (place, seconds) in [
            (Place::Native, 2.0),
            (Place::Tcg, 12.0),
            (Place::Belljar, 3.0),
            (Place::Native, 1.0),
            (Place::Belljar, 4.0),
        ] {
            report.add(place, &run(seconds, "1", "x"), &["a"]);
        }
        let table = report.table(&["a"]);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["a", "1.000", "12.000", "3.000", "3.00", "4.00"]);
        assert!(report.wrong().is_empty());
        assert_eq!(report.json(&["a"])["seconds"]["a"]["belljar"], 3.0);
    }

    #[test]
    fn another_output_is_wrong_and_its_time_does_not_count() {
        let mut report = Report::default();
        report.add(Place::Native, &run(1.0, "1", "x"), &["a"]);
        report.add(Place::Belljar, &run(0.1, "2", "y"), &["a"]);
        report.add(Place::Belljar, &run(0.1, "2", "y"), &["a"]);
        assert_eq!(
            report.wrong(),
            ["a, belljar: line 2 is \"y\", natively \"x\""]
        );
        assert_eq!(report.ratios("a"), [None, None]);
    }

    #[test]
    fn a_program_that_fails_or_does_not_run_is_wrong() {
        let mut report = Report::default();
        let mut failed = run(1.0, "failed with status 256", "x");
        failed.programs.get_mut("a").unwrap().seconds = None;
        report.add(Place::Native, &run(1.0, "1", "x"), &["a"]);
        report.add(Place::Tcg, &failed, &["a"]);
        report.add(Place::Belljar, &Run::default(), &["a"]);
        let expected = [
            "a, tcg: failed with status 256: x",
            "a, belljar: it did not run",
        ];
        assert_eq!(report.wrong(), expected);
    }
}
