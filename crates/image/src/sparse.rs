//! Copies of files with holes: shared blocks where the file system can, else only what is there.

use crate::ImageError;
use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The most bytes that are copied at once.
const CHUNK: u64 = 64 << 20;

/// Copies `from` to the new file `to`, which appears whole.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), ImageError> {
    let partial = to.with_added_extension("partial");
    let source = File::open(from).map_err(ImageError::io("open", from))?;
    let target = File::create(&partial).map_err(ImageError::io("create", &partial))?;
    let copied = match ioctl_ficlone(&target, &source) {
        Ok(()) => Ok(()),
        // Another file system, or one that shares no blocks.
        Err(_) => copy_data(&source, &target),
    };
    copied
        .and_then(|()| target.sync_all())
        .and_then(|()| fs::rename(&partial, to))
        .map_err(ImageError::io("copy the disk to", to))
}

fn copy_data(source: &File, target: &File) -> io::Result<()> {
    let len = source.metadata()?.len();
    ftruncate(target, len)?;
    let mut at = 0;
    while at < len {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(source, SeekFrom::Hole(start))?;
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let len = (end - from).min(CHUNK) as usize;
        let count = copy_file_range(source, Some(&mut from), target, Some(&mut to), len)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn data_is_copied_and_holes_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        let file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        for at in [0, 10 << 20, (64 << 20) - 4096] {
            file.write_all_at(&[7; 4096], at).unwrap();
        }
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 32 << 20);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
