//! Guest memory as the `vm-memory` crate sees it: what devices do DMA through.
//!
//! The view shares the mapping of [`GuestMemory`]. Its bitmap is where a write by a device becomes
//! a change of code, as [`GuestMemory::write`] makes it.

use crate::ram::MemoryError;
use crate::{GuestMemory, PAGE_SHIFT, RamRegion};
use std::sync::Arc;
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::mmap::{GuestRegionMmap, MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestRegionCollection};

/// Guest memory for devices: RAM alone, bounds checked at each access, and aware of code.
pub type DmaMemory = GuestRegionCollection<GuestRegionMmap<WrittenPages>>;

/// Tells [`CodePages`](crate::CodePages) what was written through a [`DmaMemory`]. It keeps the
/// mapping alive.
#[derive(Clone, Debug)]
pub struct WrittenPages {
    memory: GuestMemory,
    /// Where in the memfd offset 0 lies.
    offset: usize,
}

/// A part of [`WrittenPages`], as long as an access lasts.
#[derive(Clone, Copy, Debug)]
pub struct WrittenSlice<'a> {
    memory: &'a GuestMemory,
    offset: usize,
}

impl WrittenSlice<'_> {
    fn mark(&self, offset: usize, len: usize) {
        let Some(last) = len.checked_sub(1) else {
            return;
        };
        // Offsets beyond the RAM cannot come from an access that was checked; they have no page.
        let first = self.offset.saturating_add(offset);
        let end = (self.memory.size() as usize).saturating_sub(1);
        let last = first.saturating_add(last).min(end);
        for page in (first >> PAGE_SHIFT)..=(last >> PAGE_SHIFT) {
            self.memory.code().changed(page);
        }
    }
}

impl WithBitmapSlice<'_> for WrittenSlice<'_> {
    type S = Self;
}

impl BitmapSlice for WrittenSlice<'_> {}

impl Bitmap for WrittenSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.mark(offset, len);
    }

    /// Always: only changes of code are remembered.
    fn dirty_at(&self, _: usize) -> bool {
        true
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            memory: self.memory,
            offset: self.offset.saturating_add(offset),
        }
    }
}

impl<'a> WithBitmapSlice<'a> for WrittenPages {
    type S = WrittenSlice<'a>;
}

impl Bitmap for WrittenPages {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark(offset, len);
    }

    /// Always: only changes of code are remembered.
    fn dirty_at(&self, _: usize) -> bool {
        true
    }

    fn slice_at(&self, offset: usize) -> WrittenSlice<'_> {
        WrittenSlice {
            memory: &self.memory,
            offset: self.offset.saturating_add(offset),
        }
    }
}

impl GuestMemory {
    /// The RAM as devices reach it by DMA.
    ///
    /// # Errors
    /// [`MemoryError::View`] if the RAM's regions cannot be described; this does not happen for
    /// regions that [`GuestMemory::new`] lays out.
    pub fn dma(&self) -> Result<Arc<DmaMemory>, MemoryError> {
        let regions: Result<Vec<_>, _> = self.regions().iter().map(|r| self.region(r)).collect();
        DmaMemory::from_regions(regions?)
            .map(Arc::new)
            .map_err(|_| MemoryError::View)
    }

    fn region(&self, region: &RamRegion) -> Result<GuestRegionMmap<WrittenPages>, MemoryError> {
        let bitmap = WrittenPages {
            memory: self.clone(),
            offset: region.offset as usize,
        };
        let address = self.host(region.start).ok_or(MemoryError::View)?;
        let builder: MmapRegionBuilder<WrittenPages> =
            MmapRegionBuilder::new_with_bitmap(region.len as usize, bitmap);
        // SAFETY: the region's `len` bytes at `address` are part of the mapping, which lives as
        // long as the bitmap, which the region owns. The region does not unmap what it was given.
        let builder = unsafe { builder.with_raw_mmap_pointer(address.as_ptr()) };
        let mapping: MmapRegion<WrittenPages> = builder.build().map_err(|_| MemoryError::View)?;
        GuestRegionMmap::new(mapping, GuestAddress(region.start.0)).ok_or(MemoryError::View)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestPhysAddr;
    use std::sync::atomic::Ordering;
    use vm_memory::{Bytes, GuestMemory as _};

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_a_device_writes_is_in_guest_memory_and_changes_code() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        let dma = memory.dma().unwrap();
        let page = memory.page_index(GuestPhysAddr(0x10_1000)).unwrap();
        let (generation, _) = memory.code().mark(page);
        dma.write_slice(&[1, 2, 3, 4], GuestAddress(0x10_0ffe))
            .unwrap();
        let mut out = [0; 4];
        memory.read(GuestPhysAddr(0x10_0ffe), &mut out).unwrap();
        assert_eq!(out, [1, 2, 3, 4]);
        assert_ne!(memory.code().generation(page), generation);
    }

    #[test]
    fn a_store_of_one_word_changes_code_of_its_page_alone() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        let dma = memory.dma().unwrap();
        let marks: Vec<_> = (0..3).map(|page| memory.code().mark(page).0).collect();
        dma.store(7_u16, GuestAddress(0x1ffe), Ordering::Release)
            .unwrap();
        let now: Vec<_> = (0..3).map(|p| memory.code().generation(p)).collect();
        assert_eq!((now[0], now[2]), (marks[0], marks[2]));
        assert_ne!(now[1], marks[1]);
    }

    #[test]
    fn the_holes_and_what_lies_beyond_are_not_reached() {
        let memory = GuestMemory::new(2 * MIB).unwrap();
        let dma = memory.dma().unwrap();
        for at in [0xa_0000, 0x9_ffff, 2 * MIB - 1, u64::MAX] {
            let word = dma.write_slice(&[0; 2], GuestAddress(at));
            assert!(word.is_err(), "{at:#x}");
        }
        assert!(!dma.check_range(
            GuestAddress(0x9_f000),
            0x2000,
            vm_memory::Permissions::Write
        ));
    }

    #[test]
    fn the_mapping_outlives_its_memory_while_a_device_holds_the_view() {
        let dma = GuestMemory::new(2 * MIB).unwrap().dma().unwrap();
        dma.write_obj(0x55_u8, GuestAddress(0)).unwrap();
        assert_eq!(dma.read_obj::<u8>(GuestAddress(0)).unwrap(), 0x55);
    }
}
