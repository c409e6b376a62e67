//! The console's log: a file of bounded size, and the one before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Bytes of one file; both together have at most twice as many.
const LONGEST: u64 = 1 << 20;

/// A log that is written to. When its file is full, it takes the place of the one before.
#[derive(Debug)]
pub struct RotatingLog {
    file: File,
    length: u64,
    path: PathBuf,
    old: PathBuf,
}

impl RotatingLog {
    /// A new log at `path`, whose filled files move to `old`.
    pub fn create(path: PathBuf, old: PathBuf) -> io::Result<Self> {
        Ok(Self {
            file: new_file(&path)?,
            length: 0,
            path,
            old,
        })
    }
}

fn new_file(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

impl Write for RotatingLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length >= LONGEST {
            std::fs::rename(&self.path, &self.old)?;
            self.file = new_file(&self.path)?;
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
