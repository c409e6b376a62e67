//! `belljar logs`: what the guest printed on its console, and a detached machine's messages, also after
//! the machine's end.

use anyhow::{Context, Result};
use belljar_api::{ApiError, Condition, Place, Runtime};
use clap::Args;
use std::fs::File;
use std::io::{ErrorKind, Read, Write, stdout};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The pause between two looks for more.
const PAUSE: Duration = Duration::from_millis(100);

/// The flags of `belljar logs`.
#[derive(Debug, Args)]
pub struct LogsOptions {
    /// Name of the machine
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with what the guest prints, until the machine ends
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    tail: Option<usize>,
    /// Belljar's own messages about a machine that was started detached
    #[arg(long)]
    messages: bool,
}

/// `belljar logs`.
pub fn logs(options: &LogsOptions) -> Result<()> {
    let place = Runtime::of_user()?.place(&options.name)?;
    // So that a name that does not exist is told.
    place.condition()?;
    let mut log = if options.messages {
        Log::new(place.messages(), place.old_messages())
    } else {
        Log::new(place.console_log(), place.old_console_log())
    };
    write(tail(&log.all()?, options.tail))?;
    if options.follow {
        follow(&place, &mut log)?;
    }
    Ok(())
}

/// Prints what is added to the log until the machine has ended.
fn follow(place: &Place, log: &mut Log) -> Result<()> {
    loop {
        // Whatever was printed before the end is in the file by now.
        let ended = matches!(
            place.condition(),
            Ok(Condition::Ended(_)) | Err(ApiError::NoMachine(_))
        );
        write(&log.added()?)?;
        if ended {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// A log that is read while it is written: two files, of which the newer one takes the place of the
/// older one when it is full.
#[derive(Debug)]
struct Log {
    newer: PathBuf,
    older: PathBuf,
    /// The file that was read last; its offset is where reading goes on.
    current: Option<File>,
}

impl Log {
    fn new(newer: PathBuf, older: PathBuf) -> Self {
        let current = None;
        Self {
            newer,
            older,
            current,
        }
    }

    /// All that there is.
    fn all(&mut self) -> Result<Vec<u8>> {
        self.current = open(&self.older)?;
        let mut text = Vec::new();
        read_more(self.current.as_mut(), &mut text)?;
        text.extend(self.added()?);
        Ok(text)
    }

    /// What was added since the last look. Of a log that has gone on by more than its two files, what
    /// is in between is lost.
    fn added(&mut self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        loop {
            read_more(self.current.as_mut(), &mut text)?;
            let Some(newer) = open(&self.newer)? else {
                return Ok(text);
            };
            if is_same(self.current.as_ref(), Some(&newer)) {
                return Ok(text);
            }
            // The file was full: its last bytes first.
            read_more(self.current.as_mut(), &mut text)?;
            let older = open(&self.older)?;
            let follows = older.is_none()
                || is_same(self.current.as_ref(), older.as_ref())
                || is_same(Some(&newer), older.as_ref());
            self.current = if follows { Some(newer) } else { older };
        }
    }
}

/// Whether both are the same file.
fn is_same(one: Option<&File>, other: Option<&File>) -> bool {
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    one.and_then(identity) == other.and_then(identity)
}

/// The file, if it is there.
fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read the log {}", path.display())),
    }
}

fn read_more(file: Option<&mut File>, into: &mut Vec<u8>) -> Result<()> {
    if let Some(file) = file {
        file.read_to_end(into).context("cannot read the log")?;
    }
    Ok(())
}

/// The last `lines` lines of `text`, or all.
fn tail(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else {
        return text;
    };
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = body.iter().rposition(|_| true).map_or(0, |last| last + 1);
    let starts = (0..ends).rev().filter(|at| body.get(*at) == Some(&b'\n'));
    match (lines, starts.take(lines).nth(lines.saturating_sub(1))) {
        (0, _) => &[],
        (_, Some(before)) => text.get(before + 1..).unwrap_or_default(),
        (_, None) => text,
    }
}

fn write(text: &[u8]) -> Result<()> {
    let mut output = stdout().lock();
    output
        .write_all(text)
        .and_then(|()| output.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::RotatingLog;

    #[test]
    fn a_tail_has_the_last_lines() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(tail(text, None), text);
        assert_eq!(tail(text, Some(0)), b"");
        assert_eq!(tail(text, Some(1)), b"three\n");
        assert_eq!(tail(text, Some(2)), b"two\nthree\n");
        assert_eq!(tail(text, Some(9)), text);
        assert_eq!(tail(b"one\ntw", Some(1)), b"tw");
        assert_eq!(tail(b"", Some(1)), b"");
    }

    #[test]
    fn a_log_is_read_and_followed_while_its_files_change_places() {
        let directory = tempfile::tempdir().unwrap();
        let (newer, older) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut log = RotatingLog::create(newer.clone(), older.clone()).unwrap();
        let mut written = Vec::new();
        let mut go_on = |length: usize| {
            let first = written.len();
            written
                .extend((first / 8..(first + length) / 8).flat_map(|n| (n as u64).to_le_bytes()));
            log.write_all(&written[first..]).unwrap();
            written.clone()
        };
        let mut reader = Log::new(newer, older);
        assert_eq!(reader.all().unwrap(), b"");
        let mut read = Vec::new();
        // Within a file, into the next one, and past a whole one.
        for length in [100_000, 1_000_000, 8, 2_080_000, 8] {
            let all = go_on(length);
            read.extend(reader.added().unwrap());
            assert!(read == all, "after {} bytes", all.len());
        }
        let kept = Log::new(reader.newer.clone(), reader.older.clone())
            .all()
            .unwrap();
        assert!(kept.len() >= 1 << 20 && read.ends_with(&kept));
    }
}
