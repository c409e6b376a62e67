//! The guest's clocks beside the host's.

use super::guest::Shell;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout};
use std::time::{Duration, Instant, SystemTime};

/// Questions of which the quickest counts.
const TRIES: u32 = 100;
/// The most that the guest's clock may be off the host's, and may lose or win in a run.
const TOLERANCE: f64 = 0.05;
/// The most that is not known of that.
const UNCERTAINTY: f64 = 0.01;

/// Both clocks at about the same moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// Seconds that the guest's wall clock is ahead.
    pub ahead: f64,
    /// How far `ahead` may be wrong: half of the time of question and answer.
    pub uncertainty: f64,
    /// Seconds of the guest's steady clock.
    guest: f64,
    /// The host's steady clock.
    host: Instant,
}

/// A program in the guest that tells its clocks.
#[derive(Debug)]
pub struct Clock {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Clock {
    pub fn start(shell: &Shell) -> Result<Self> {
        let mut child = shell.talk(&[&shell.path("load"), "clock"])?;
        let input = child.stdin.take().context("the clock has no input")?;
        let output = child.stdout.take().context("the clock has no output")?;
        Ok(Self {
            child,
            input,
            output: BufReader::new(output),
        })
    }

    /// Sets the guest's wall clock to the host's; gives how far it was ahead.
    ///
    /// Linux sets it at boot by a clock whose resolution is a second, and adds half of one (`rtc_hctosys`),
    /// so it is up to half a second off.
    pub fn set(&mut self) -> Result<Reading> {
        let found = self.read()?;
        self.ask(&format!("{:.0}", -found.ahead * 1e9))?;
        Ok(found)
    }

    /// The best of many questions.
    pub fn read(&mut self) -> Result<Reading> {
        let mut best = self.ask("")?;
        for _ in 1..TRIES {
            let reading = self.ask("")?;
            if reading.uncertainty < best.uncertainty {
                best = reading;
            }
        }
        Ok(best)
    }

    fn ask(&mut self, question: &str) -> Result<Reading> {
        let (asked, wall) = (Instant::now(), SystemTime::now());
        writeln!(self.input, "{question}").context("the guest's clock takes no question")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let half = asked.elapsed() / 2;
        let (guest_wall, guest) = parse(&line).with_context(|| format!("a clock said {line:?}"))?;
        let wall = (wall + half).duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(Reading {
            ahead: (guest_wall - wall.as_nanos() as i128) as f64 / 1e9,
            uncertainty: half.as_secs_f64(),
            guest: guest as f64 / 1e9,
            host: asked + half,
        })
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Nanoseconds of the wall clock and of the steady clock.
fn parse(line: &str) -> Option<(i128, i128)> {
    let (wall, steady) = line.trim().split_once(' ')?;
    Some((wall.parse().ok()?, steady.parse().ok()?))
}

/// How the guest's time went between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Drift {
    /// The guest's wall clock at the end.
    pub end: Reading,
    /// Seconds that the guest's steady clock has won.
    pub won: f64,
    pub length: Duration,
}

impl Drift {
    pub fn between(start: Reading, end: Reading) -> Self {
        let length = end.host - start.host;
        Self {
            end,
            won: end.guest - start.guest - length.as_secs_f64(),
            length,
        }
    }

    /// An error if it is too much.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.end.uncertainty <= UNCERTAINTY,
            "the guest takes {:.1} ms to tell the time",
            self.end.uncertainty * 2e3
        );
        for (what, seconds) in [("is ahead by", self.end.ahead), ("has won", self.won)] {
            ensure!(
                seconds.abs() <= TOLERANCE,
                "the guest's clock {what} {:.1} ms",
                seconds * 1e3
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(ahead: f64, uncertainty: f64, guest: f64) -> Drift {
        let host = Instant::now();
        let reading = |ahead, guest, host| Reading {
            ahead,
            uncertainty,
            guest,
            host,
        };
        Drift::between(
            reading(0.0, 1.0, host),
            reading(ahead, guest, host + Duration::from_secs(100)),
        )
    }

    #[test]
    fn clocks_that_are_off_are_told() {
        drift(0.01, 0.001, 101.01).check().unwrap();
        for (ahead, uncertainty, guest) in [
            (0.06, 0.001, 101.0),
            (-0.06, 0.001, 101.0),
            (0.0, 0.001, 101.06),
            (0.0, 0.001, 100.94),
            (0.0, 0.02, 101.0),
        ] {
            assert!(drift(ahead, uncertainty, guest).check().is_err());
        }
    }

    #[test]
    fn what_the_guest_prints_is_read() {
        assert_eq!(
            parse("1700000000000000001 5000000002\n"),
            Some((1700000000000000001, 5000000002))
        );
        assert_eq!(parse("17"), None);
    }
}
