//! An address space that has windows: what is mapped in them, and what that has cost.

use belljar_memory::PAGE_SIZE;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use std::collections::HashMap;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;

/// Bits of an address within its slot.
pub const SLOT_SHIFT: u32 = 32;
pub(super) const SLOT: usize = 1 << SLOT_SHIFT;
/// What lies before and behind a window, for operands that leave their base's slot: a displacement is less
/// than half of it.
pub const GUARD: usize = 4 << 30;

/// What an address space has in its account when it gets windows, in tenths of a microsecond.
const CAPITAL: i64 = 500_000;
/// What a tick gives: a tenth of the time that it usually stands for.
const INCOME: i64 = 4_000;
/// What mapping a run of pages costs, and each page of it.
const MAP: i64 = 120;
const MAP_PAGE: i64 = 10;
/// What unmapping a page costs.
const UNMAP: i64 = 50;
/// What taking back the right to write to one costs.
const PROTECT: i64 = 20;
/// What comparing one with the page tables costs.
pub(super) const COMPARE: i64 = 1;
/// What it costs to look for new slots.
pub(super) const LOOK: i64 = 500;
/// So many times longer must one that was ruined be seen running until it gets windows again.
const SETBACK: u32 = 4;

/// A range of the host's addresses, in which nothing can be accessed that is not mapped.
#[derive(Debug)]
pub(super) struct Reserve {
    start: *mut c_void,
}

impl Reserve {
    const SIZE: usize = GUARD + SLOT + GUARD;

    pub(super) fn new() -> rustix::io::Result<Self> {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh mapping at an address that the host chooses.
        let whole =
            unsafe { mmap_anonymous(std::ptr::null_mut(), Self::SIZE, ProtFlags::empty(), flags) }?;
        let start = whole.wrapping_byte_add(GUARD);
        Ok(Self { start })
    }

    /// What leads from `slot` into the range.
    pub(super) fn lead_from(&self, slot: usize) -> usize {
        (self.start as usize).wrapping_sub(slot << SLOT_SHIFT)
    }

    /// Where it begins.
    pub(super) fn start(&self) -> usize {
        self.start as usize
    }

    /// Whether the address lies in it or beside it.
    pub(super) fn surrounds(&self, address: usize) -> bool {
        address.wrapping_sub(self.start as usize - GUARD) < Self::SIZE
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        // SAFETY: `new` mapped as much, and generated code no longer reaches it.
        let _ = unsafe { munmap(self.start.wrapping_byte_sub(GUARD), Self::SIZE) };
    }
}

/// A slot of an address space.
#[derive(Debug)]
pub(super) struct Window {
    pub(super) slot: usize,
    pub(super) reserve: Reserve,
}

/// A mapped page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    /// Its number in RAM.
    pub(super) ram: usize,
    pub(super) writable: bool,
}

/// An address space.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// Where its page tables begin.
    pub(super) root: u64,
    /// Its PCID when it last ran.
    pub(super) pcid: u16,
    /// How often it was seen running, of late.
    pub(super) ticks: u32,
    /// How often it must be, until it gets windows.
    pub(super) patience: u32,
    /// When it was last seen.
    pub(super) seen: u64,
    /// Whether it has windows.
    pub(super) open: bool,
    /// Its translations were invalidated as a whole.
    pub(super) stale: bool,
    pub(super) account: i64,
    pub(super) windows: Vec<Window>,
    pub(super) pages: HashMap<u64, Page>,
    /// Mappings that the pages may consist of.
    pub(super) mappings: usize,
}

impl Space {
    /// Gets windows, and means to pay for them, unless they are for nothing.
    pub(super) fn get_windows(&mut self, for_nothing: bool) {
        self.open = true;
        // It may have pages of before.
        self.stale = true;
        self.account = if for_nothing { i64::MAX / 2 } else { CAPITAL };
    }

    /// Was seen running.
    pub(super) fn earn(&mut self) {
        self.account = self.account.max((self.account + INCOME).min(CAPITAL));
    }

    /// Goes on without windows. Those that it has stay until the table shows them no more.
    pub(super) fn give_up(&mut self) {
        self.open = false;
        self.stale = true;
        self.ticks = 0;
    }

    /// Gives up if the account is overdrawn.
    pub(super) fn settle(&mut self) {
        if self.account < 0 {
            self.give_up();
            self.patience = self.patience.saturating_mul(SETBACK);
        }
    }

    fn window(&self, linear: u64) -> Option<&Window> {
        let slot = (linear >> SLOT_SHIFT) as usize;
        self.windows.iter().find(|window| window.slot == slot)
    }

    /// The host's address of `linear`, if its slot has a window.
    fn place(&self, linear: u64) -> Option<*mut c_void> {
        let window = self.window(linear)?;
        Some(
            window
                .reserve
                .start
                .wrapping_byte_add(linear as usize % SLOT),
        )
    }

    /// Maps `pages` pages of `file`, which is RAM, from page `ram` on where the program has `linear`; they
    /// lie in one slot. Tells whether that is done.
    pub(super) fn map(
        &mut self,
        file: BorrowedFd<'_>,
        linear: u64,
        ram: usize,
        pages: usize,
        writable: bool,
    ) -> bool {
        let Some(place) = self.place(linear) else {
            return false;
        };
        let mut rights = ProtFlags::READ;
        if writable {
            rights |= ProtFlags::WRITE;
        }
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        let (size, offset) = (pages * PAGE_SIZE as usize, ram as u64 * PAGE_SIZE);
        // SAFETY: the run lies in a window of the space, which holds nothing else, and does not leave its
        // slot; RAM is a file that outlives the windows.
        let done = unsafe { mmap(place, size, rights, flags, file, offset) };
        if done.is_err() {
            self.account = -1;
            self.settle();
            return false;
        }
        self.mappings += 1;
        self.account -= MAP + pages as i64 * MAP_PAGE;
        for number in 0..pages {
            let page = Page {
                ram: ram + number,
                writable,
            };
            self.pages.insert(linear + number as u64 * PAGE_SIZE, page);
        }
        self.settle();
        true
    }

    /// Unmaps the page at `linear`, if it is mapped.
    pub(super) fn unmap(&mut self, linear: u64) {
        if self.pages.remove(&linear).is_none() {
            return;
        }
        self.account -= UNMAP;
        self.mappings += 1;
        if let Some(place) = self.place(linear)
            && cover(place, PAGE_SIZE as usize).is_err()
        {
            self.unmap_all();
        }
    }

    pub(super) fn unmap_all(&mut self) {
        self.account -= self.pages.len() as i64 * UNMAP / 2;
        self.pages.clear();
        self.mappings = 0;
        for window in &self.windows {
            // The host needs less for a mapping that is whole than for its parts.
            cover(window.reserve.start, SLOT).expect("a window can be emptied");
        }
    }

    /// Drops the right to write to the page at `linear`.
    pub(super) fn protect(&mut self, linear: u64) {
        self.account -= PROTECT;
        self.mappings += 2;
        let place = self.place(linear);
        let page = self.pages.get_mut(&linear);
        if let Some((place, page)) = place.zip(page) {
            page.writable = false;
            // SAFETY: the page lies in a window, which holds nothing else.
            let done = unsafe { mprotect(place, PAGE_SIZE as usize, MprotectFlags::READ) };
            if done.is_err() {
                self.unmap_all();
            }
        }
    }

    /// Drops the rights to write to pages of RAM; tells which they are.
    pub(super) fn drop_writes(
        &mut self,
        which: impl Fn(usize) -> bool,
        mut dropped: impl FnMut(usize),
    ) {
        let chosen = |(linear, page): (&u64, &Page)| {
            (page.writable && which(page.ram)).then_some((*linear, page.ram))
        };
        let chosen: Vec<(u64, usize)> = self.pages.iter().filter_map(chosen).collect();
        for (linear, ram) in chosen {
            self.protect(linear);
            dropped(ram);
        }
    }
}

/// Lets nothing be accessed in `size` bytes of a window from `place` on.
fn cover(place: *mut c_void, size: usize) -> rustix::io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the callers give parts of windows, which hold nothing but pages of RAM.
    unsafe { mmap_anonymous(place, size, ProtFlags::empty(), flags) }?;
    Ok(())
}
