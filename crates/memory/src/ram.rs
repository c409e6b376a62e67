//! RAM in a memfd and its place in the guest-physical address space.

use crate::{CodePages, GuestPhysAddr, PAGE_SHIFT, PAGE_SIZE};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use thiserror::Error;

/// End of conventional memory and start of the legacy video hole.
const VIDEO_HOLE_START: u64 = 0xa_0000;
/// End of the legacy video hole.
const VIDEO_HOLE_END: u64 = 0xc_0000;
/// RAM below 4 GiB ends here at the latest; devices live between this and 4 GiB.
const DEVICE_HOLE_START: u64 = 0xc000_0000;
const FOUR_GIB: u64 = 1 << 32;
/// The least memory that a machine can have, in bytes.
const SMALLEST: u64 = 1 << 20;
/// The most memory that a machine can have, in bytes.
const LARGEST: u64 = 1 << 40;

/// Why guest memory could not be made or reached.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size asked for is not one that a machine can have.
    #[error("a memory of {0} bytes is not possible (1 MiB to 1 TiB, in whole pages)")]
    BadSize(u64),
    /// The host refused the memory.
    #[error("the host gave no memory of {size} bytes")]
    Host {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The range is not RAM from end to end.
    #[error("guest-physical range {start:#x}+{len:#x} is not RAM")]
    NotRam {
        /// First address of the range.
        start: u64,
        /// Length of the range in bytes.
        len: u64,
    },
    /// The host did not take memory back.
    #[error("the host does not take {len} bytes of the guest's memory at {start:#x} back")]
    Discard {
        /// First address of the range.
        start: u64,
        /// Length of the range in bytes.
        len: u64,
        /// What the host said.
        #[source]
        source: rustix::io::Errno,
    },
    /// The RAM cannot be shown to devices.
    #[error("the guest's memory cannot be described to devices")]
    View,
}

/// A run of guest-physical addresses that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest-physical address.
    pub start: GuestPhysAddr,
    /// Length in bytes, whole pages.
    pub len: u64,
    /// Where the region begins in the memfd and in the host's mapping of it.
    pub offset: u64,
}

impl RamRegion {
    /// First guest-physical address after the region.
    pub const fn end(&self) -> GuestPhysAddr {
        GuestPhysAddr(self.start.0 + self.len)
    }
}

/// The machine's RAM. Cloning it clones a handle.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    base: NonNull<u8>,
    size: u64,
    regions: Vec<RamRegion>,
    code: CodePages,
    fd: OwnedFd,
}

// SAFETY: `base` points to a shared mapping that lives as long as `Inner`; all access to it is
// through raw copies and atomics, and the guest may change it at any time, which the API allows
// for.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `GuestMemory::new` with this size and nothing refers to
        // it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

/// Guest-physical layout of `size` bytes of RAM. The bytes of the video hole are lost, as on a PC.
fn layout(size: u64) -> Vec<RamRegion> {
    let region = |start, end, offset| RamRegion {
        start: GuestPhysAddr(start),
        len: end - start,
        offset,
    };
    let low_end = size.min(DEVICE_HOLE_START);
    let mut regions = vec![
        region(0, VIDEO_HOLE_START, 0),
        region(VIDEO_HOLE_END, low_end, VIDEO_HOLE_END),
    ];
    if size > DEVICE_HOLE_START {
        regions.push(region(
            FOUR_GIB,
            FOUR_GIB + (size - DEVICE_HOLE_START),
            DEVICE_HOLE_START,
        ));
    }
    regions
}

impl GuestMemory {
    /// Makes `size` bytes of zeroed RAM.
    ///
    /// # Errors
    /// [`MemoryError::BadSize`] unless `size` is whole pages from 1 MiB to 1 TiB;
    /// [`MemoryError::Host`] if the host refuses.
    pub fn new(size: u64) -> Result<Self, MemoryError> {
        if !(SMALLEST..=LARGEST).contains(&size) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(MemoryError::BadSize(size));
        }
        let host = |source| MemoryError::Host { size, source };
        let fd = memfd_create("belljar-ram", MemfdFlags::CLOEXEC).map_err(host)?;
        ftruncate(&fd, size).map_err(host)?;
        // SAFETY: a fresh mapping at an address that the kernel chooses; it overlaps nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                size as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &fd,
                0,
            )
        }
        .map_err(host)?;
        let base = NonNull::new(base.cast()).ok_or(MemoryError::BadSize(size))?;
        let code = CodePages::new((size >> PAGE_SHIFT) as usize);
        Ok(Self {
            inner: Arc::new(Inner {
                base,
                size,
                regions: layout(size),
                code,
                fd,
            }),
        })
    }

    /// Bytes of RAM asked for at creation.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// The runs of guest-physical addresses that are RAM, in ascending order.
    pub fn regions(&self) -> &[RamRegion] {
        &self.inner.regions
    }

    /// The memfd that holds the RAM.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.inner.fd.as_fd()
    }

    /// Where `gpa` lies in the memfd, or `None` if it is not RAM. Shifted right by [`PAGE_SHIFT`]
    /// it is the page's index in [`CodePages`].
    #[inline]
    pub fn offset(&self, gpa: GuestPhysAddr) -> Option<u64> {
        self.inner
            .regions
            .iter()
            .find(|r| gpa.0.wrapping_sub(r.start.0) < r.len)
            .map(|r| gpa.0 - r.start.0 + r.offset)
    }

    /// Index of the page of RAM that holds `gpa`, or `None` if it is not RAM.
    #[inline]
    pub fn page_index(&self, gpa: GuestPhysAddr) -> Option<usize> {
        self.offset(gpa)
            .map(|offset| (offset >> PAGE_SHIFT) as usize)
    }

    /// Host address of `gpa`, valid to the end of its page, or `None` if it is not RAM.
    ///
    /// The guest and other threads change what lies there at any time: use volatile or atomic
    /// accesses only.
    #[inline]
    pub fn host(&self, gpa: GuestPhysAddr) -> Option<NonNull<u8>> {
        let offset = self.offset(gpa)?;
        // SAFETY: `offset` lies within a region, and so within the mapping of `size` bytes at
        // `base`.
        Some(unsafe { self.inner.base.add(offset as usize) })
    }

    /// Host address of the start of the mapping, and its length in bytes.
    pub fn mapping(&self) -> (NonNull<u8>, u64) {
        (self.inner.base, self.inner.size)
    }

    /// The record of pages that hold cached code.
    #[inline]
    pub fn code(&self) -> &CodePages {
        &self.inner.code
    }

    /// Host address of a range that is RAM from end to end and contiguous.
    pub(crate) fn range(
        &self,
        gpa: GuestPhysAddr,
        len: u64,
    ) -> Result<(NonNull<u8>, u64), MemoryError> {
        let fail = || MemoryError::NotRam { start: gpa.0, len };
        let end = gpa.checked_add(len).ok_or_else(fail)?;
        let r = self
            .inner
            .regions
            .iter()
            .find(|r| r.start <= gpa && end <= r.end())
            .ok_or_else(fail)?;
        let offset = gpa.0 - r.start.0 + r.offset;
        // SAFETY: the range lies within a region, and so within the mapping.
        Ok((unsafe { self.inner.base.add(offset as usize) }, offset))
    }

    /// Copies RAM at `gpa` into `out`.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte of the range is not RAM; then nothing was copied.
    pub fn read(&self, gpa: GuestPhysAddr, out: &mut [u8]) -> Result<(), MemoryError> {
        let (from, _) = self.range(gpa, out.len() as u64)?;
        // SAFETY: `range` checked that `out.len()` bytes at `from` lie within the mapping, which
        // never overlaps `out` (no Rust object lives in guest RAM). A racing guest can only change
        // the bytes that we copy.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// Copies `data` into RAM at `gpa` and drops code cached from there.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] if any byte of the range is not RAM; then nothing was written.
    pub fn write(&self, gpa: GuestPhysAddr, data: &[u8]) -> Result<(), MemoryError> {
        if data.is_empty() {
            return Ok(());
        }
        let (to, offset) = self.range(gpa, data.len() as u64)?;
        // SAFETY: as in `read`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.as_ptr(), data.len()) };
        let last = (offset + data.len() as u64 - 1) >> PAGE_SHIFT;
        for page in (offset >> PAGE_SHIFT)..=last {
            self.inner.code.changed(page as usize);
        }
        Ok(())
    }

    /// Fills `len` bytes of RAM at `gpa` with zeros and drops code cached from there.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] as for [`write`](Self::write).
    pub fn zero(&self, gpa: GuestPhysAddr, len: u64) -> Result<(), MemoryError> {
        self.range(gpa, len)?;
        let zeros = [0; PAGE_SIZE as usize];
        let mut done = 0;
        while done < len {
            let now = (len - done).min(PAGE_SIZE);
            self.write(gpa.wrapping_add(done), &zeros[..now as usize])?;
            done += now;
        }
        Ok(())
    }

    /// Gives the pages that lie wholly in a range of RAM back to the host, and drops code cached
    /// from there. They read as zeros until they are written to again.
    ///
    /// # Errors
    /// [`MemoryError::NotRam`] as for [`write`](Self::write); [`MemoryError::Discard`] if the host
    /// refuses, and then the range is as it was.
    pub fn discard(&self, gpa: GuestPhysAddr, len: u64) -> Result<(), MemoryError> {
        let (_, offset) = self.range(gpa, len)?;
        let first = offset.div_ceil(PAGE_SIZE);
        let end = (offset + len) >> PAGE_SHIFT;
        if first >= end {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (start, bytes) = (first << PAGE_SHIFT, (end - first) << PAGE_SHIFT);
        fallocate(&self.inner.fd, punch, start, bytes).map_err(|source| MemoryError::Discard {
            start: gpa.0,
            len,
            source,
        })?;
        self.inner.code.changed_range(first as usize..end as usize);
        Ok(())
    }

    fn aligned<T>(&self, gpa: GuestPhysAddr) -> Option<NonNull<T>> {
        (gpa.0.is_multiple_of(size_of::<T>() as u64))
            .then(|| self.host(gpa))?
            .map(NonNull::cast)
    }

    /// Loads the aligned 64-bit word at `gpa` in one piece, or `None` if it is not RAM or not
    /// aligned.
    #[inline]
    pub fn load_u64(&self, gpa: GuestPhysAddr) -> Option<u64> {
        // SAFETY: `aligned` gives an aligned address within the mapping, which lives as long as
        // `self`; atomics allow for every racing access.
        self.aligned::<AtomicU64>(gpa)
            .map(|p| unsafe { p.as_ref() }.load(Ordering::Acquire))
    }

    /// Loads the aligned 32-bit word at `gpa` in one piece, or `None` if it is not RAM or not
    /// aligned.
    #[inline]
    pub fn load_u32(&self, gpa: GuestPhysAddr) -> Option<u32> {
        // SAFETY: as in `load_u64`.
        self.aligned::<AtomicU32>(gpa)
            .map(|p| unsafe { p.as_ref() }.load(Ordering::Acquire))
    }

    /// Loads the aligned 16-bit word at `gpa` in one piece, or `None` if it is not RAM or not
    /// aligned.
    #[inline]
    pub fn load_u16(&self, gpa: GuestPhysAddr) -> Option<u16> {
        // SAFETY: as in `load_u64`.
        self.aligned::<AtomicU16>(gpa)
            .map(|p| unsafe { p.as_ref() }.load(Ordering::Acquire))
    }

    /// Loads the byte at `gpa`, or `None` if it is not RAM.
    #[inline]
    pub fn load_u8(&self, gpa: GuestPhysAddr) -> Option<u8> {
        // SAFETY: as in `load_u64`.
        self.aligned::<AtomicU8>(gpa)
            .map(|p| unsafe { p.as_ref() }.load(Ordering::Acquire))
    }

    /// Replaces the aligned 64-bit word at `gpa` by `new` if it is `old`. `None` if it is not RAM
    /// or not aligned, else whether it was replaced. For page-table bits: it does not count as a
    /// change of code.
    pub fn compare_exchange_u64(&self, gpa: GuestPhysAddr, old: u64, new: u64) -> Option<bool> {
        self.aligned::<AtomicU64>(gpa).map(|p| {
            // SAFETY: as in `load_u64`.
            unsafe { p.as_ref() }
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
    }

    /// Replaces the aligned 32-bit word at `gpa` by `new` if it is `old`; see
    /// [`compare_exchange_u64`](Self::compare_exchange_u64).
    pub fn compare_exchange_u32(&self, gpa: GuestPhysAddr, old: u32, new: u32) -> Option<bool> {
        self.aligned::<AtomicU32>(gpa).map(|p| {
            // SAFETY: as in `load_u64`.
            unsafe { p.as_ref() }
                .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn sizes_that_no_machine_can_have_are_refused() {
        for size in [0, 4096, MIB + 1, LARGEST + PAGE_SIZE, u64::MAX] {
            assert!(
                matches!(GuestMemory::new(size), Err(MemoryError::BadSize(_))),
                "{size}"
            );
        }
    }

    #[test]
    fn memory_beyond_three_gib_lies_above_four() {
        let regions = layout(4 << 30);
        assert_eq!(regions[1].end(), GuestPhysAddr(DEVICE_HOLE_START));
        assert_eq!(regions[2].start, GuestPhysAddr(FOUR_GIB));
        assert_eq!(regions[2].len, 1 << 30);
        assert_eq!(regions[2].offset, DEVICE_HOLE_START);
    }

    #[test]
    fn what_is_written_is_read_back_and_counts_as_a_change_of_code() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        let page = memory.page_index(GuestPhysAddr(0x10_1000)).unwrap();
        let (generation, _) = memory.code().mark(page);
        memory
            .write(GuestPhysAddr(0x10_0ffe), &[1, 2, 3, 4])
            .unwrap();
        let mut out = [0; 4];
        memory.read(GuestPhysAddr(0x10_0ffe), &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert_ne!(memory.code().generation(page), generation);
    }

    /// Bytes that the memfd takes up in the host.
    fn host_bytes(memory: &GuestMemory) -> u64 {
        rustix::fs::fstat(memory.fd()).unwrap().st_blocks as u64 * 512
    }

    #[test]
    fn whole_pages_that_are_discarded_are_the_hosts_and_read_as_zeros() {
        let memory = GuestMemory::new(4 * MIB).unwrap();
        let start = GuestPhysAddr(MIB);
        memory.write(start, &vec![7; MIB as usize]).unwrap();
        let before = host_bytes(&memory);
        memory.discard(GuestPhysAddr(MIB + 1), MIB - 2).unwrap();
        assert_eq!(before - host_bytes(&memory), MIB - 2 * PAGE_SIZE);
        let mut out = vec![1; MIB as usize];
        memory.read(start, &mut out).unwrap();
        let page = PAGE_SIZE as usize;
        let (first, rest) = out.split_at(page);
        let (middle, last) = rest.split_at(rest.len() - page);
        assert!(first.iter().chain(last).all(|byte| *byte == 7));
        assert!(middle.iter().all(|byte| *byte == 0));
        memory.write(GuestPhysAddr(MIB + 0x8000), &[9]).unwrap();
        assert_eq!(memory.load_u8(GuestPhysAddr(MIB + 0x8000)), Some(9));
    }

    #[test]
    fn discarding_drops_code_of_these_pages_alone() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        let marks: Vec<_> = (0..4).map(|page| memory.code().mark(page).0).collect();
        memory.discard(GuestPhysAddr(0x1000), 0x2000).unwrap();
        memory.discard(GuestPhysAddr(0x3001), 0xfff).unwrap();
        memory.discard(GuestPhysAddr(0x4000), 0).unwrap();
        let now: Vec<_> = (0..4).map(|page| memory.code().generation(page)).collect();
        let same: Vec<_> = marks.iter().zip(&now).map(|(a, b)| a == b).collect();
        assert_eq!(same, [true, false, false, true]);
    }

    #[test]
    fn ranges_that_leave_ram_are_refused() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        for (start, len) in [
            (0x9_ffff, 2),
            (0xa_0000, 1),
            (2 * MIB - 1, 2),
            (u64::MAX, 2),
        ] {
            let mut out = vec![0; len];
            assert!(
                memory.read(GuestPhysAddr(start), &mut out).is_err(),
                "{start:#x}"
            );
            assert!(
                memory.write(GuestPhysAddr(start), &out).is_err(),
                "{start:#x}"
            );
            let discarded = memory.discard(GuestPhysAddr(start), len as u64);
            assert!(discarded.is_err(), "{start:#x}");
        }
        assert_eq!(memory.load_u64(GuestPhysAddr(0xb_0000)), None);
        assert_eq!(memory.load_u64(GuestPhysAddr(1)), None);
        assert_eq!(memory.load_u64(GuestPhysAddr(0xc_0000)), Some(0));
    }
}
