//! Lists of ranges of RAM that data of a device goes to or comes from.

use crate::{GuestMemory, GuestPhysAddr, MemoryError, PAGE_SHIFT};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Ranges that one call of the host takes at most (IOV_MAX).
const MOST_AT_ONCE: usize = 1024;

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From a file into RAM.
    Read,
    /// From RAM into a file.
    Write,
}

/// A list of ranges of the guest's RAM, in the order of the data. That all of it is RAM was checked
/// when it was made; the guest may change what lies there at any time.
#[derive(Clone, Debug)]
pub struct Segments {
    memory: GuestMemory,
    /// Offsets in the mapping, and lengths, none of them 0.
    parts: Vec<(u64, u64)>,
    len: u64,
}

impl Segments {
    /// The list of `ranges` of `memory`. Empty ones are left out.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if a range is not RAM from end to end, or all together are longer
    /// than an address can count.
    pub fn new(
        memory: &GuestMemory,
        ranges: impl IntoIterator<Item = (GuestPhysAddr, u64)>,
    ) -> Result<Self, MemoryError> {
        let mut segments = Self {
            memory: memory.clone(),
            parts: Vec::new(),
            len: 0,
        };
        for (start, len) in ranges {
            let (_, offset) = memory.range(start, len)?;
            segments.len = segments.len.checked_add(len).ok_or(MemoryError::NotRam {
                start: start.0,
                len,
            })?;
            if len != 0 {
                segments.parts.push((offset, len));
            }
        }
        Ok(segments)
    }

    /// Bytes of all ranges together.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is not a byte.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The `len` bytes from byte `start` on; fewer if the list ends before.
    #[must_use]
    pub fn slice(&self, start: u64, len: u64) -> Self {
        let mut parts = Vec::new();
        let (mut skip, mut left) = (start, len);
        for &(offset, len) in &self.parts {
            let skipped = skip.min(len);
            skip -= skipped;
            let taken = (len - skipped).min(left);
            left -= taken;
            if taken != 0 {
                parts.push((offset + skipped, taken));
            }
        }
        Self {
            memory: self.memory.clone(),
            parts,
            len: len - left,
        }
    }

    /// Reads from `file` at `offset` until the list is full or the file ends; gives the number of
    /// bytes. Code cached from where it read to is dropped.
    ///
    /// # Errors
    /// What the host says. Some of the list may have been filled then.
    pub fn read_from(&self, file: impl AsFd, offset: u64) -> io::Result<u64> {
        let result = self.transfer(file.as_fd(), offset, Way::Read);
        self.changed();
        result
    }

    /// Writes all of the list to `file` at `offset`.
    ///
    /// # Errors
    /// What the host says; [`io::ErrorKind::WriteZero`] if the file takes no more.
    pub fn write_to(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        let done = self.transfer(file.as_fd(), offset, Way::Write)?;
        if done < self.len {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Moves data until the list or the file ends.
    fn transfer(&self, file: BorrowedFd<'_>, offset: u64, way: Way) -> io::Result<u64> {
        let mut done = 0;
        while done < self.len {
            let at = offset
                .checked_add(done)
                .and_then(|at| i64::try_from(at).ok())
                .ok_or(io::ErrorKind::InvalidInput)?;
            match self.transfer_some(file, at, way, done) {
                Ok(0) => break,
                Ok(now) => done += now,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// One call of the host for what follows the first `done` bytes.
    fn transfer_some(&self, file: BorrowedFd<'_>, at: i64, way: Way, done: u64) -> io::Result<u64> {
        let (base, _) = self.memory.mapping();
        let mut skip = done;
        let mut vectors = Vec::with_capacity(self.parts.len().min(MOST_AT_ONCE));
        for &(offset, len) in &self.parts {
            let skipped = skip.min(len);
            skip -= skipped;
            if skipped < len && vectors.len() < MOST_AT_ONCE {
                vectors.push(libc::iovec {
                    // Within the mapping: `new` checked the range.
                    iov_base: base
                        .as_ptr()
                        .wrapping_add((offset + skipped) as usize)
                        .cast(),
                    iov_len: (len - skipped) as usize,
                });
            }
        }
        let (fd, first, count) = (
            file.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len() as libc::c_int,
        );
        // SAFETY: each vector is a range of the mapping of guest RAM, which `self.memory` keeps
        // alive and in which no Rust object lives; what races with the guest is bytes only.
        let moved = unsafe {
            match way {
                Way::Read => libc::preadv(fd, first, count, at),
                Way::Write => libc::pwritev(fd, first, count, at),
            }
        };
        u64::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    /// Copies `bytes` into the list from its byte `at` on, as far as both reach, and drops code
    /// cached from there. Gives the number of bytes.
    pub fn fill(&self, at: u64, bytes: &[u8]) -> usize {
        let part = self.slice(at, bytes.len() as u64);
        let (base, _) = self.memory.mapping();
        let mut rest = bytes;
        for &(offset, len) in &part.parts {
            let (now, later) = rest.split_at(len as usize);
            rest = later;
            // SAFETY: the range lies within the mapping, as `new` checked; no Rust object lives
            // there.
            unsafe {
                let to = base.as_ptr().add(offset as usize);
                std::ptr::copy_nonoverlapping(now.as_ptr(), to, now.len());
            }
        }
        part.changed();
        part.len as usize
    }

    /// Copies the list from its byte `at` on into `bytes`, as far as both reach. Gives the number of
    /// bytes.
    pub fn copy_to(&self, at: u64, bytes: &mut [u8]) -> usize {
        let part = self.slice(at, bytes.len() as u64);
        let (base, _) = self.memory.mapping();
        let mut done = 0;
        for &(offset, len) in &part.parts {
            let now = &mut bytes[done..done + len as usize];
            // SAFETY: as in `fill`, in the other direction.
            unsafe {
                let from = base.as_ptr().add(offset as usize);
                std::ptr::copy_nonoverlapping(from, now.as_mut_ptr(), now.len());
            }
            done += now.len();
        }
        done
    }

    /// Fills the list from its byte `at` on with zeroes.
    pub fn zero(&self, at: u64) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut at = at;
        while at < self.len {
            at += self.fill(at, &ZEROES) as u64;
        }
    }

    /// Where the ranges lie in this process, in their order, for transfers that the host does by itself.
    /// The addresses hold as long as this list or its memory. The guest changes what lies there at any
    /// time. Whoever has something written there calls [`changed`](Self::changed) afterwards.
    pub fn host_ranges(&self) -> impl Iterator<Item = (*mut u8, usize)> + '_ {
        let (base, _) = self.memory.mapping();
        // Within the mapping: `new` checked the ranges.
        let address = move |offset: u64| base.as_ptr().wrapping_add(offset as usize);
        self.parts
            .iter()
            .map(move |&(offset, len)| (address(offset), len as usize))
    }

    /// Says that the list was written to from outside: drops code cached from there.
    pub fn changed(&self) {
        for &(offset, len) in &self.parts {
            for page in offset >> PAGE_SHIFT..=(offset + len - 1) >> PAGE_SHIFT {
                self.memory.code().changed(page as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn memory() -> GuestMemory {
        GuestMemory::new(4 << 20).unwrap()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn segments(memory: &GuestMemory, ranges: &[(u64, u64)]) -> Result<Segments, MemoryError> {
        let ranges = ranges.iter().map(|&(at, len)| (GuestPhysAddr(at), len));
        Segments::new(memory, ranges)
    }

    #[test]
    fn ranges_outside_ram_are_refused() {
        let memory = memory();
        for range in [
            (4 << 20, 1),
            ((4 << 20) - 1, 2),
            (u64::MAX, 2),
            (0x9ffff, 2),
        ] {
            assert!(segments(&memory, &[(0, 1), range]).is_err(), "{range:x?}");
        }
    }

    #[test]
    fn data_goes_through_the_ranges_in_their_order() {
        let memory = memory();
        let list = segments(&memory, &[(0x5000, 3), (0x1000, 0), (0x2000, 4)]).unwrap();
        assert_eq!(list.read_from(file(b"abcdefghij"), 1).unwrap(), 7);
        let mut bytes = [0; 4];
        memory.read(GuestPhysAddr(0x2000), &mut bytes).unwrap();
        assert_eq!(&bytes, b"efgh");
        let mut all = [0; 9];
        assert_eq!(list.copy_to(2, &mut all), 5);
        assert_eq!(&all[..5], b"defgh");
        let copy = file(b"");
        list.slice(1, 4).write_to(&copy, 2).unwrap();
        let back = segments(&memory, &[(0x8000, 6)]).unwrap();
        assert_eq!(back.read_from(&copy, 0).unwrap(), 6);
        let mut bytes = [0; 6];
        memory.read(GuestPhysAddr(0x8000), &mut bytes).unwrap();
        assert_eq!(&bytes, b"\0\0cdef");
    }

    #[test]
    fn reading_ends_with_the_file() {
        let memory = memory();
        let list = segments(&memory, &[(0x5000, 100)]).unwrap();
        assert_eq!(list.read_from(file(b"abc"), 1).unwrap(), 2);
        list.zero(1);
        let mut bytes = [1; 4];
        list.copy_to(0, &mut bytes);
        assert_eq!(&bytes, b"b\0\0\0");
    }

    #[test]
    fn more_ranges_than_the_host_takes_at_once() {
        let memory = memory();
        let ranges: Vec<(u64, u64)> = (0..3000).map(|n| (0x10_0000 + n * 16, 1)).collect();
        let list = segments(&memory, &ranges).unwrap();
        let bytes: Vec<u8> = (0..3000).map(|n| n as u8).collect();
        assert_eq!(list.read_from(file(&bytes), 0).unwrap(), 3000);
        let mut back = vec![0; 3000];
        list.copy_to(0, &mut back);
        assert_eq!(back, bytes);
    }

    #[test]
    fn code_where_data_arrived_is_dropped() {
        let memory = memory();
        let (generation, _) = memory.code().mark(5);
        let list = segments(&memory, &[(0x4fff, 2)]).unwrap();
        list.read_from(file(b"ab"), 0).unwrap();
        assert_ne!(memory.code().generation(5), generation);
        let (generation, _) = memory.code().mark(5);
        list.fill(1, b"x");
        assert_ne!(memory.code().generation(5), generation);
    }
}
