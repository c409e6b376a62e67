//! What the TLB consists of, as generated code finds it.

use super::{OFFSET_MASK, SETS, SIZE, invalid, is_invalid};
use crate::host::Word;

/// One translation.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct Entry {
    /// Linear address of the page if reads are allowed.
    pub read: u64,
    /// Linear address of the page if writes are allowed and need no notice.
    pub write: u64,
    /// Linear address of the page if fetches are allowed.
    pub fetch: u64,
    /// Host address of the page.
    pub host: usize,
}

impl Entry {
    /// The entry of index `index` while it holds nothing.
    pub(super) const fn empty(index: usize) -> Self {
        let tag = invalid(index);
        Self {
            read: tag,
            write: tag,
            fetch: tag,
            host: 0,
        }
    }

    /// The tag that matches if a `T` at `linear` lies within the page: that of its last byte.
    #[inline(always)]
    pub const fn tag_of_last<T: Word>(linear: u64) -> u64 {
        linear.wrapping_add(T::BYTES - 1) & !OFFSET_MASK
    }

    /// Host address of `linear`, which must lie in the page.
    #[inline(always)]
    pub const fn host(&self, linear: u64) -> *mut u8 {
        self.host.wrapping_add((linear & OFFSET_MASK) as usize) as *mut u8
    }

    /// Host address of the page if the fast path may have written to it.
    #[inline]
    pub fn written(&self) -> Option<*mut u8> {
        (!is_invalid(self.write)).then_some(self.host as *mut u8)
    }

    pub(super) fn holds(&self, page: u64) -> bool {
        self.read == page || self.write == page || self.fetch == page
    }
}

/// Near copies of each set, beside the stack's.
pub const NEAR: usize = 31;

/// A right to one page that generated code has copied from its set, to find it without a look at the
/// page number. Generated code fills it; the TLB empties it before the entry that it comes from changes.
///
/// An empty one has a tag that is no canonical address, and a host address that is none either: who
/// finds it, by an address that is as wrong, gets the host's exception.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Near {
    /// Linear address of the page.
    pub tag: u64,
    /// Host address of the page.
    pub host: usize,
}

impl Near {
    pub(super) const EMPTY: Self = Self {
        tag: 1 << 63,
        host: 1 << 63,
    };
}

/// A near copy of the right to read and one of the right to write.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(32))]
pub struct NearPair {
    /// The page that may be read.
    pub read: Near,
    /// The page that may be written without notice.
    pub write: Near,
}

impl NearPair {
    pub(super) const EMPTY: Self = Self {
        read: Near::EMPTY,
        write: Near::EMPTY,
    };
}

/// What the TLB consists of, where generated code finds it.
#[derive(Debug)]
#[repr(C)]
pub struct Entries {
    /// The near copies of each set for the stack.
    pub stack: [NearPair; SETS],
    /// The others.
    pub near: [[NearPair; NEAR]; SETS],
    /// Not 0 if any of the others of the set may hold something. Generated code says so.
    pub used: [u32; SETS],
    /// The entries of all sets: those of set `s` begin at index `s * SIZE`.
    pub all: [Entry; SIZE * SETS],
}

impl Entries {
    /// Entries that hold nothing.
    pub(super) fn new() -> Box<Self> {
        let mut entries = Box::<Self>::new_uninit();
        let start = entries.as_mut_ptr();
        // SAFETY: all fields of the new object are written, and none is read before.
        unsafe {
            for index in 0..SIZE * SETS {
                (&raw mut (*start).all[index]).write(Entry::empty(index));
            }
            (&raw mut (*start).stack).write([NearPair::EMPTY; SETS]);
            (&raw mut (*start).near).write([[NearPair::EMPTY; NEAR]; SETS]);
            (&raw mut (*start).used).write([0; SETS]);
            entries.assume_init()
        }
    }
}
