//! `belljar logs`: what the guest printed on its console, also after the machine's end.

use anyhow::{Context, Result};
use belljar_api::{ApiError, Condition, Place, Runtime};
use clap::Args;
use std::fs::File;
use std::io::{ErrorKind, Read, Write, stdout};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
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
    #[arg(long, conflicts_with = "follow")]
    messages: bool,
}

/// `belljar logs`.
pub fn logs(options: &LogsOptions) -> Result<()> {
    let place = Runtime::of_user()?.place(&options.name)?;
    // So that a name that does not exist is told.
    place.condition()?;
    if options.messages {
        let text = read_all(open(&place.messages())?)?;
        return write(tail(&text, options.tail));
    }
    let old = read_all(open(&place.old_console_log())?)?;
    let mut current = open(&place.console_log())?;
    let mut text = old;
    read_more(current.as_mut(), &mut text)?;
    write(tail(&text, options.tail))?;
    if options.follow {
        follow(&place, &mut current)?;
    }
    Ok(())
}

/// Prints what is added to the log until the machine has ended.
fn follow(place: &Place, current: &mut Option<File>) -> Result<()> {
    loop {
        // Whatever was printed before the end is in the file by now.
        let ended = matches!(
            place.condition(),
            Ok(Condition::Ended(_)) | Err(ApiError::NoMachine(_))
        );
        let mut text = Vec::new();
        read_more(current.as_mut(), &mut text)?;
        if let Some(next) = successor(current.as_ref(), &place.console_log())? {
            // The file was full: its last bytes first.
            read_more(current.as_mut(), &mut text)?;
            *current = Some(next);
            read_more(current.as_mut(), &mut text)?;
        }
        write(&text)?;
        if ended {
            return Ok(());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The file at `path`, if it is another than `current`.
fn successor(current: Option<&File>, path: &Path) -> Result<Option<File>> {
    let Some(found) = open(path)? else {
        return Ok(None);
    };
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    let is_same = current.and_then(identity) == identity(&found);
    Ok((!is_same).then_some(found))
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

fn read_all(mut file: Option<File>) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    read_more(file.as_mut(), &mut text)?;
    Ok(text)
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
}
