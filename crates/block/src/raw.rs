//! Raw images: the bytes of a file, or of a block device of the host, are those of the disk.

use crate::storage::{SECTOR, Storage, check_change, check_range};
use belljar_memory::Segments;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Zeroes that are written at once where the host has no better way.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A raw image. If the file ends within a sector, the rest of that sector reads as zeroes, and the
/// file grows to whole sectors when it is written.
#[derive(Debug)]
pub struct RawFile {
    file: File,
    size: u64,
    read_only: bool,
    /// A flush failed. The kernel tells of lost pages once only (fsync(2)), so this remembers it.
    lost: AtomicBool,
}

impl RawFile {
    /// The image in `file`, which must be open for writing unless `read_only`.
    ///
    /// # Errors
    /// What the host says; a file longer than the host's offsets reach.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        let len = file.seek(SeekFrom::End(0))?;
        let size = len
            .checked_next_multiple_of(SECTOR)
            .filter(|&size| i64::try_from(size).is_ok())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(Self {
            file,
            size,
            read_only,
            lost: AtomicBool::new(false),
        })
    }

    /// Zeroes a range by `flags`, or says that the host cannot.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        loop {
            return match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                // Old file systems and some devices; EINVAL where a device wants larger blocks.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
    }
}

impl Storage for RawFile {
    fn size(&self) -> u64 {
        self.size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn read(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_range(offset, segments.len(), self.size)?;
        let done = segments.read_from(&self.file, offset)?;
        // The end of the file within the last sector, or a file that shrank meanwhile.
        segments.zero(done);
        Ok(())
    }

    fn write(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_change(self, offset, segments.len())?;
        segments.write_to(&self.file, offset)
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        if self.lost.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush of this disk failed"));
        }
        self.file
            .sync_data()
            .inspect_err(|_| self.lost.store(true, Ordering::Release))
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_change(self, offset, len)?;
        self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?;
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()> {
        check_change(self, offset, len)?;
        if may_unmap && self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?
            || self.allocate(FallocateFlags::ZERO_RANGE, offset, len)?
        {
            return Ok(());
        }
        let mut done = 0;
        while done < len {
            let now = (len - done).min(ZEROES.len() as u64);
            self.file
                .write_all_at(&ZEROES[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_memory::{GuestMemory, GuestPhysAddr};
    use std::io::Write;

    fn raw(bytes: &[u8], read_only: bool) -> RawFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        RawFile::new(file, read_only).unwrap()
    }

    fn segments(memory: &GuestMemory, len: u64) -> Segments {
        Segments::new(memory, [(GuestPhysAddr(0x1000), len)]).unwrap()
    }

    #[test]
    fn a_ragged_end_reads_as_zeroes_and_can_be_written() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let raw = raw(&[7; 700], false);
        assert_eq!(raw.size(), 1024);
        let part = segments(&memory, 512);
        part.fill(0, &[9; 512]);
        raw.read(512, &part).unwrap();
        let mut bytes = [1; 512];
        part.copy_to(0, &mut bytes);
        assert!(bytes[..188].iter().all(|&b| b == 7) && bytes[188..].iter().all(|&b| b == 0));
        part.fill(0, &[3; 512]);
        raw.write(512, &part).unwrap();
        raw.flush().unwrap();
        part.zero(0);
        raw.read(512, &part).unwrap();
        part.copy_to(0, &mut bytes);
        assert_eq!(bytes, [3; 512]);
    }

    #[test]
    fn zeroes_are_zeroes_and_leave_the_rest() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        for may_unmap in [false, true] {
            let raw = raw(&vec![7; 65536], false);
            raw.write_zeroes(512, 8192, may_unmap).unwrap();
            let all = segments(&memory, 65536);
            raw.read(0, &all).unwrap();
            let mut bytes = vec![1; 65536];
            all.copy_to(0, &mut bytes);
            for (at, byte) in bytes.iter().enumerate() {
                let want = if (512..8704).contains(&at) { 0 } else { 7 };
                assert_eq!(*byte, want, "{at}");
            }
        }
    }

    #[test]
    fn ranges_beyond_the_end_and_changes_of_read_only_disks_are_errors() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let part = segments(&memory, 1024);
        let disk = raw(&[7; 1024], false);
        for offset in [512, 1024, u64::MAX, u64::MAX - 1023] {
            let kinds = [
                disk.read(offset, &part),
                disk.write(offset, &part),
                disk.discard(offset, 1024),
                disk.write_zeroes(offset, 1024, true),
            ]
            .map(|result| result.unwrap_err().kind());
            assert_eq!(kinds, [io::ErrorKind::InvalidInput; 4], "{offset:#x}");
        }
        let disk = raw(&[7; 1024], true);
        let kinds = [
            disk.write(0, &part),
            disk.discard(0, 512),
            disk.write_zeroes(0, 512, false),
        ]
        .map(|result| result.unwrap_err().kind());
        assert_eq!(kinds, [io::ErrorKind::ReadOnlyFilesystem; 3]);
        disk.flush().unwrap();
    }
}
