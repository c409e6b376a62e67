//! Directories for a run's large files, which do not stay behind: not even a killed run's.

use crate::root as workspace;
use anyhow::{Context, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// A directory that is removed when this is dropped, or by the next run with the same name if its
/// process is killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// The directory's lock says that its process lives: the kernel drops it however that ends.
    _lock: File,
}

impl Scratch {
    /// A new directory for this process's run of the chore `name`, in the workspace's `target`.
    pub fn new(name: &str) -> Result<Self> {
        let parent = workspace().join("target");
        fs::create_dir_all(&parent)?;
        Self::new_in(&parent, name)
    }

    fn new_in(parent: &Path, name: &str) -> Result<Self> {
        // Nobody takes a directory for a dead process's between its making and its locking.
        let between = File::open(parent)?;
        between.lock()?;
        remove_stale(parent, name).context("cannot remove what a killed run has left")?;
        let path = parent.join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let lock = File::open(&path)?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("xtask: {} is left: {error}", self.path.display());
        }
    }
}

/// Removes the directories `name-PID` that no process has locked.
fn remove_stale(parent: &Path, name: &str) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        let is_ours = path
            .file_name()
            .and_then(|found| found.to_str()?.strip_prefix(name)?.strip_prefix('-'))
            .is_some_and(|process| process.parse::<u32>().is_ok());
        if !is_ours || !path.is_dir() {
            continue;
        }
        match File::open(&path)?.try_lock() {
            Ok(()) => {
                eprintln!("xtask: removing {}, left by a killed run", path.display());
                fs::remove_dir_all(&path)?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_runs_left_goes_and_what_others_have_stays() {
        let parent = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("disk.raw"), "large").unwrap();
            path
        };
        let (stale, other) = (make("bench-1"), make("bench-io-2"));
        let (alive, no_number) = (make("bench-3"), make("bench-x"));
        let lock = File::open(&alive).unwrap();
        lock.lock().unwrap();
        let scratch = Scratch::new_in(parent.path(), "bench").unwrap();
        assert!(!stale.exists());
        assert!(other.exists() && alive.exists() && no_number.exists());
        let own = scratch.path().to_owned();
        fs::write(own.join("disk.raw"), "large").unwrap();
        remove_stale(parent.path(), "bench").unwrap();
        assert!(own.exists());
        drop(scratch);
        assert!(!own.exists());
    }
}
