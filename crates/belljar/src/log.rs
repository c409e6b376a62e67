//! Logs of bounded size: a file, and the one before it. What the guest prints goes to one, and a detached
//! machine's messages to another.

use rustix::fs::{fstat, ftruncate};
use rustix::stdio::{dup2_stderr, stderr};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Bytes of one file; both together have at most twice as many.
const LONGEST: u64 = 1 << 20;

/// Where the two files are.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    old: PathBuf,
}

impl Files {
    /// A new file.
    fn create(&self) -> io::Result<File> {
        OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)
    }

    /// A new file; the one that is full takes the place of the one before.
    fn rotate(&self) -> io::Result<File> {
        std::fs::rename(&self.path, &self.old)?;
        self.create()
    }
}

/// A log that is written to. When its file is full, it takes the place of the one before.
#[derive(Debug)]
pub struct RotatingLog {
    file: File,
    length: u64,
    files: Files,
}

impl RotatingLog {
    /// A new log at `path`, whose filled files move to `old`.
    pub fn create(path: PathBuf, old: PathBuf) -> io::Result<Self> {
        let files = Files { path, old };
        Ok(Self {
            file: files.create()?,
            length: 0,
            files,
        })
    }
}

impl Write for RotatingLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= LONGEST {
            self.file = self.files.rotate()?;
            self.length = 0;
        }
        let room = usize::try_from(LONGEST - self.length).unwrap_or(usize::MAX);
        let now = bytes.get(..room).unwrap_or(bytes);
        let written = self.file.write(now)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The files of standard error, when it is a log.
static MESSAGES: Mutex<Option<Files>> = Mutex::new(None);

/// Makes standard error a log at `path`, whose filled files move to `old`: whatever prints there, also a
/// panic, is in it at once.
pub fn take_standard_error(path: PathBuf, old: PathBuf) -> io::Result<()> {
    let files = Files { path, old };
    dup2_stderr(files.create()?)?;
    *MESSAGES.lock().unwrap_or_else(PoisonError::into_inner) = Some(files);
    Ok(())
}

/// Begins a new file of standard error if it is a log that is full. Whoever prints a message calls this
/// before, so a file has at most one message more than [`LONGEST`] bytes.
pub fn make_room_on_standard_error() {
    let messages = MESSAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(files) = messages.as_ref() else {
        return;
    };
    if fstat(stderr()).is_ok_and(|found| found.st_size as u64 >= LONGEST) {
        let renewed = files.rotate().and_then(|file| Ok(dup2_stderr(file)?));
        if renewed.is_err() {
            // Its directory is gone, or the host has no room: the newest messages count most.
            let _ = ftruncate(stderr(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_files_have_the_newest_and_no_more_than_their_size() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("log"), directory.path().join("log.1"));
        let mut log = RotatingLog::create(path.clone(), old.clone()).unwrap();
        let line = |n: u32| format!("{n:0>99}\n");
        let lines = 3 * LONGEST as u32 / 100;
        for number in 0..lines {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        let text =
            std::fs::read_to_string(&old).unwrap() + &std::fs::read_to_string(&path).unwrap();
        assert!(text.len() as u64 <= 2 * LONGEST, "{}", text.len());
        assert!(text.len() as u64 >= LONGEST, "{}", text.len());
        let all: String = (0..lines).map(line).collect();
        assert!(all.ends_with(&text));
    }
}
