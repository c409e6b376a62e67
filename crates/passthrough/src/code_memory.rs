//! Memory for generated code: written through one mapping, executed through another.

use crate::Error;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::OwnedFd;
use std::ptr;

const SMALLEST: usize = 64 << 10;
const LARGEST: usize = 1 << 30;
/// Entries are aligned to what processors of all kinds fetch at once.
const ENTRY_ALIGNMENT: usize = 16;

/// A memfd mapped twice, so that no mapping is both writable and executable.
///
/// On x86 the instruction fetch sees stores to the same physical memory whatever linear address
/// they used, after a control transfer (SDM 3A 12.1.3 asks for the same address only to catch code
/// already in the pipeline); new code is always reached by an indirect call.
#[derive(Debug)]
pub struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    size: usize,
    used: usize,
    /// Where rare code begins, and ends at present.
    rare: usize,
    rare_used: usize,
}

// SAFETY: the mappings belong to this object alone and are valid in every thread; writing needs
// `&mut self`.
unsafe impl Send for CodeMemory {}

fn create_memfd() -> Result<OwnedFd, Errno> {
    // Hosts whose memfds are not executable by default want to be asked; Linux before 6.3 does not
    // know the question.
    memfd_create("belljar-code", MemfdFlags::CLOEXEC | MemfdFlags::EXEC)
        .or_else(|_| memfd_create("belljar-code", MemfdFlags::CLOEXEC))
}

fn map(fd: &OwnedFd, size: usize, protection: ProtFlags) -> Result<*mut u8, Errno> {
    // SAFETY: a fresh mapping at an address that the kernel chooses; it overlaps nothing.
    let at = unsafe { mmap(ptr::null_mut(), size, protection, MapFlags::SHARED, fd, 0) }?;
    Ok(at.cast())
}

impl CodeMemory {
    /// Room for `size` bytes.
    ///
    /// # Errors
    /// If the size is not a possible one, or the host gives no memory.
    pub fn new(size: usize) -> Result<Self, Error> {
        Self::with_rare(size, 0)
    }

    /// Room for `size` bytes, of which the last `rare` are for code that is rarely executed.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_rare(size: usize, rare: usize) -> Result<Self, Error> {
        if !(SMALLEST..=LARGEST).contains(&size) {
            return Err(Error::BadCapacity(size));
        }
        let rare = rare.min(size);
        let size = size.next_multiple_of(4096);
        let host = |source| Error::CodeMemory { size, source };
        let fd = create_memfd().map_err(host)?;
        ftruncate(&fd, size as u64).map_err(host)?;
        let mut memory = Self {
            writable: ptr::null_mut(),
            executable: ptr::null(),
            size,
            used: 0,
            rare: size - rare,
            rare_used: size - rare,
        };
        memory.writable = map(&fd, size, ProtFlags::READ | ProtFlags::WRITE).map_err(host)?;
        memory.executable = map(&fd, size, ProtFlags::READ | ProtFlags::EXEC).map_err(host)?;
        Ok(memory)
    }

    /// Appends `code`; gives its offset, or nothing if there is no room.
    pub fn append(&mut self, code: &[u8]) -> Option<u32> {
        let start = self.used.next_multiple_of(ENTRY_ALIGNMENT);
        let end = start.checked_add(code.len())?;
        if end > self.rare {
            return None;
        }
        // SAFETY: `start..end` lies within the writable mapping, which nothing else refers to, and
        // no thread runs the bytes: entries are given out only for what was appended, and
        // `truncate` invalidates them.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
        self.used = end;
        u32::try_from(start).ok()
    }

    /// Appends code that is rarely executed; gives its offset, or nothing if there is no room.
    pub fn append_rare(&mut self, code: &[u8]) -> Option<u32> {
        let start = self.rare_used;
        let end = start.checked_add(code.len())?;
        if end > self.size {
            return None;
        }
        // SAFETY: as in `append`.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
        self.rare_used = end;
        u32::try_from(start).ok()
    }

    /// Where the next code that [`append_rare`](Self::append_rare) takes will begin.
    pub fn next_rare(&self) -> u32 {
        self.rare_used as u32
    }

    /// Bytes that [`append`](Self::append) and [`append_rare`](Self::append_rare) can still take,
    /// each.
    pub fn room(&self) -> usize {
        let plain = self.rare.saturating_sub(self.next() as usize);
        plain.min(self.size - self.rare_used)
    }

    /// Where the next code that [`append`](Self::append) takes will begin.
    pub fn next(&self) -> u32 {
        self.used.next_multiple_of(ENTRY_ALIGNMENT) as u32
    }

    /// Changes code that was appended, at `offset`. Nothing happens if the range is not one.
    pub fn patch(&mut self, offset: u32, code: &[u8]) {
        let start = offset as usize;
        if start
            .checked_add(code.len())
            .is_none_or(|end| end > self.used)
        {
            return;
        }
        // SAFETY: the range lies within what was appended. Who holds the only `&mut` runs no code of
        // it meanwhile.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(start), code.len()) };
    }

    /// Forgets everything from `offset` on, and what is rarely executed.
    pub fn truncate(&mut self, offset: u32) {
        self.used = self.used.min(offset as usize);
        self.rare_used = self.rare;
    }

    /// Bytes in use.
    pub fn used(&self) -> u32 {
        self.used as u32
    }

    /// Where the bytes execute.
    #[inline]
    pub fn start(&self) -> *const u8 {
        self.executable
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for at in [self.writable, self.executable.cast_mut()] {
            if !at.is_null() {
                // SAFETY: the mapping was made by `new` with this size, and the owner runs no code
                // in it any more.
                let _ = unsafe { munmap(at.cast(), self.size) };
            }
        }
    }
}
