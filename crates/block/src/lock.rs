//! Image files are opened once for writing or any number of times for reading.

use crate::BlockError;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Opens the image file at `path` and locks it (flock(2): the lock ends with the process): alone for
/// writing, shared for reading.
pub(crate) fn open_locked(path: &Path, write: bool) -> Result<File, BlockError> {
    let failed = |source| BlockError::Open {
        file: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        // A named pipe would have us wait for its other end.
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(failed(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a file nor a block device",
        )));
    }
    lock(&file, path, write)?;
    Ok(file)
}

/// How long a lock is waited for. A machine that ends lets go of its own within this time; and a
/// program that its process starts has the file open, too, until it has begun to run.
const PATIENCE: Duration = Duration::from_millis(500);

/// Locks an open image file.
pub(crate) fn lock(file: &File, path: &Path, write: bool) -> Result<(), BlockError> {
    let start = Instant::now();
    loop {
        let locked = if write {
            file.try_lock()
        } else {
            file.try_lock_shared()
        };
        match locked {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                std::thread::sleep(PATIENCE / 20);
            }
            Err(TryLockError::WouldBlock) => return Err(BlockError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => {
                return Err(BlockError::Open {
                    file: path.to_owned(),
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_alone_and_readers_share() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let writer = open_locked(&path, true).unwrap();
        for write in [true, false] {
            let error = open_locked(&path, write).unwrap_err();
            assert!(matches!(&error, BlockError::InUse(file) if *file == path));
            assert!(error.to_string().contains(path.to_str().unwrap()));
        }
        drop(writer);
        let readers = [(); 2].map(|()| open_locked(&path, false).unwrap());
        assert!(open_locked(&path, true).is_err());
        drop(readers);
        open_locked(&path, true).unwrap();
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        assert!(open_locked(directory.path(), false).is_err());
        assert!(open_locked(Path::new("/dev/zero"), true).is_err());
    }
}
