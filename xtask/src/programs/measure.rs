//! One run of all programs, natively or in a guest: starts it, reads what the runner prints.

use crate::wait_while;
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine may take to end after its last program.
const TIME_TO_END: Duration = Duration::from_mins(1);
/// Lines of the console that are shown when a run fails.
const SHOWN: usize = 25;
/// What a guest's clock may differ from the host's over a run: a part, and seconds.
const CLOCK_TOLERANCE: (f64, f64) = (0.02, 1.0);

/// How one program went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measurement {
    /// Seconds of the clock where it ran; `None` if it failed.
    pub seconds: Option<f64>,
    /// The hash of its output, or why it failed.
    pub result: String,
    /// The lines of its output.
    pub output: Vec<String>,
}

/// One run of all programs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Seconds from the guest kernel's start to the first process; `None` natively.
    pub boot: Option<f64>,
    /// By the program's name.
    pub programs: BTreeMap<String, Measurement>,
    /// Seconds from the kernel's start to the end of the last program, if the runner came there.
    pub done: Option<f64>,
}

impl Run {
    /// Takes in a line that the runner printed; ignores all others.
    fn read(&mut self, line: &str) {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default();
        match (word(), word(), word()) {
            ("BOOT", seconds, "") => self.boot = seconds.parse().ok(),
            ("DONE", seconds, "") => self.done = seconds.parse().ok(),
            ("OUTPUT", program, text) => self.program(program).output.push(text.to_owned()),
            ("FAILED", program, status) => {
                self.program(program).result = format!("failed with status {status}");
            }
            ("PROGRAM", program, rest) => {
                let Some((seconds, hash)) = rest.split_once(' ') else {
                    return;
                };
                let measurement = self.program(program);
                measurement.seconds = seconds.parse().ok();
                hash.clone_into(&mut measurement.result);
            }
            _ => {}
        }
    }

    fn program(&mut self, name: &str) -> &mut Measurement {
        self.programs.entry(name.to_owned()).or_default()
    }
}

/// Starts `command` and waits for its end, at most `limit`. What its programs printed is in `run`
/// even if it fails.
///
/// # Errors
/// If it does not start, end within the limit or end well, or if its clock goes wrong; with the end
/// of what it printed.
pub fn measure(mut command: Command, limit: Duration, run: &mut Run) -> Result<()> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = io::pipe().context("no pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("no second end of the pipe")?)
        .stderr(writer);
    let mut child = command
        .spawn()
        .with_context(|| format!("{command:?} did not start"))?;
    // It holds the pipe's ends, which must be closed for the output to end.
    drop(command);
    let mut seen = Vec::new();
    let result = follow(&mut child, &lines_of(reader), deadline, (run, &mut seen));
    if result.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    }
    result.map_err(|error| {
        let last = seen[seen.len().saturating_sub(SHOWN)..].join("\n");
        anyhow!("{error:#}; the last lines that it printed:\n{last}")
    })
}

/// The lines of `output` as they come.
fn lines_of(output: io::PipeReader) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    receiver
}

fn follow(
    child: &mut Child,
    lines: &Receiver<String>,
    mut deadline: Instant,
    (run, seen): (&mut Run, &mut Vec<String>),
) -> Result<()> {
    let (mut started, mut clock) = (None, None);
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                run.read(&line);
                seen.push(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("it did not end in time"),
        }
        if started.is_none() && run.boot.is_some() {
            started = Some(Instant::now());
        }
        if clock.is_none() && run.done.is_some() {
            clock = started.map(|start| start.elapsed());
            deadline = deadline.min(Instant::now() + TIME_TO_END);
        }
    }
    let ended = wait_while(child, || Instant::now() < deadline)?;
    let status = ended.context("it did not end in time")?;
    ensure!(status.success(), "it ended with {status}");
    let done = run.done.context("it ended before its last program")?;
    if let (Some(boot), Some(host)) = (run.boot, clock) {
        check_clock(done - boot, host.as_secs_f64())?;
    }
    Ok(())
}

/// A guest whose clock goes wrong tells times that mean nothing.
fn check_clock(guest: f64, host: f64) -> Result<()> {
    let (part, seconds) = CLOCK_TOLERANCE;
    ensure!(
        (guest - host).abs() <= host * part + seconds,
        "{guest:.2} s passed for the guest while {host:.2} s passed for the host"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_runners_lines_are_read_and_others_are_not() {
        let script = "echo BOOT 1.25; echo '[    1.0] BOOT x'; echo 'OUTPUT a two words'; \
                      echo PROGRAM a 0.5 00ff; echo FAILED b 256; echo DONE 1.30";
        let mut run = Run::default();
        measure(shell(script), 10 * SECOND, &mut run).unwrap();
        assert_eq!(run.boot, Some(1.25));
        let a = &run.programs["a"];
        assert_eq!((a.seconds, a.result.as_str()), (Some(0.5), "00ff"));
        assert_eq!(a.output, ["two words"]);
        let b = &run.programs["b"];
        assert_eq!(
            (b.seconds, b.result.as_str()),
            (None, "failed with status 256")
        );
    }

    #[test]
    fn a_run_that_does_not_end_is_stopped_and_what_it_printed_is_kept() {
        let start = Instant::now();
        let mut run = Run::default();
        let script = "echo PROGRAM a 1.0 1; echo Kernel panic >&2; exec sleep 600";
        let error = measure(shell(script), SECOND, &mut run).unwrap_err();
        assert_eq!(run.programs["a"].seconds, Some(1.0));
        assert!(start.elapsed() < 30 * SECOND);
        let text = format!("{error:#}");
        assert!(text.contains("Kernel panic"), "{text}");
        assert!(text.contains("did not end in time"), "{text}");
    }

    #[test]
    fn a_bad_status_and_a_missing_end_are_errors() {
        for (script, reason) in [
            ("echo DONE 1; exit 3", "exit status: 3"),
            ("echo BOOT 1", "before its last program"),
            ("echo BOOT 1; echo DONE 9", "8.00 s passed for the guest"),
        ] {
            let error = measure(shell(script), 10 * SECOND, &mut Run::default()).unwrap_err();
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
