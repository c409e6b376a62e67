//! Blocks that were found lately, for exits that only ask where to go on.
//!
//! A jump that leads nowhere yet comes back to Rust. What it asks is nearly always known: the page
//! of its target is in the TLB, and the block has been found before. Then generated code goes on
//! without any state being moved.

use crate::block::Layout;
use crate::cache::Key;
use belljar_interpreter::mix;
use belljar_memory::PAGE_SIZE;

/// Entries of the table.
const SIZE: usize = 1 << 16;
/// Bits of [`Entry::what`] for the offset in the page and for the mode; the rest is the time.
const OFFSET: u32 = 12;
const MODE: u32 = 11;
/// Times before they repeat.
const STAMPS: u32 = 1 << (32 - OFFSET - MODE);

/// Half a line of the host's cache.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
struct Entry {
    rip: u64,
    page: u32,
    /// Time, mode and offset.
    what: u32,
    layout: Layout,
}

/// The table. What it gives was found since blocks last ended.
#[derive(Debug)]
pub struct Recent {
    entries: Box<[Entry]>,
    /// Never 0, which is the time of what is not there.
    stamp: u32,
}

impl Recent {
    /// An empty table.
    pub fn new() -> Self {
        let nothing = Entry {
            rip: 0,
            page: 0,
            what: 0,
            layout: Layout::default(),
        };
        Self {
            entries: vec![nothing; SIZE].into(),
            stamp: 1,
        }
    }

    const fn what(&self, key: &Key) -> u32 {
        let offset = (key.rip % PAGE_SIZE) as u32;
        (self.stamp << MODE | key.mode.number() as u32) << OFFSET | offset
    }

    const fn slot(key: &Key) -> usize {
        // A kernel's addresses and pages often count alike: one must not take away from the other.
        let place = key.rip ^ (key.page as u64) << 32 ^ (key.mode.number() as u64) << 21;
        mix(place, SIZE.trailing_zeros())
    }

    /// Enters a block.
    pub fn enter(&mut self, key: &Key, layout: Layout) {
        self.entries[Self::slot(key)] = Entry {
            rip: key.rip,
            page: key.page,
            what: self.what(key),
            layout,
        };
    }

    /// The block of `key`.
    #[inline]
    pub fn find(&self, key: &Key) -> Option<Layout> {
        let entry = &self.entries[Self::slot(key)];
        let same = entry.rip == key.rip && entry.page == key.page && entry.what == self.what(key);
        same.then_some(entry.layout)
    }

    /// Blocks ended: forgets all.
    pub fn forget(&mut self) {
        self.stamp += 1;
        if self.stamp == STAMPS {
            *self = Self::new();
        }
    }
}
