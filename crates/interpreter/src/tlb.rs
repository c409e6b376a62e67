//! The software TLB: a direct-mapped table of page translations per set of rights.
//!
//! Translations made with different rights live in different sets, so a change of privilege level
//! or of AC flushes nothing. Large pages are entered by their 4 KiB parts.
//!
//! The layout of [`Entry`] and the place of a page's entry are fixed: an engine that generates code
//! looks into the table by itself.

mod entries;

use crate::large::LargeRanges;
use crate::mix::mix;
use belljar_memory::PAGE_SIZE;
use belljar_x86::Access;
use std::ptr::NonNull;

pub use entries::{Entries, Entry, NEAR, Near, NearPair};

/// Entries of each set.
pub const SIZE: usize = 2048;
/// The fewest that a table can be made to use: with fewer, a page could lie in the slot of its own
/// `invalid` tag.
pub const LEAST_SIZE: usize = 8;
/// Sets of the table.
pub const SETS: usize = 4;
const OFFSET_MASK: u64 = PAGE_SIZE - 1;

/// The tag of what is not there. It is no page's address, and lies more than a page away from every
/// address whose slot is that of `index`, so that neither a comparison nor a difference of
/// addresses finds it.
const fn invalid(index: usize) -> u64 {
    let page = if index % SIZE < 2 { 4 } else { 0 };
    (1 << 63) | (page * PAGE_SIZE) | (PAGE_SIZE / 2)
}

/// Whether a tag is that of what is not there.
const fn is_invalid(tag: u64) -> bool {
    tag & OFFSET_MASK != 0
}

/// Which rights translations were made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// User.
    User,
    /// Supervisor with AC clear, and implicit supervisor accesses.
    Supervisor,
    /// Supervisor with AC set: SMAP does not apply.
    SupervisorAc,
    /// Never filled: every access takes the slow path.
    Never,
}

/// Where the entries lie.
#[derive(Debug)]
enum Table {
    Own(Box<Entries>),
    /// In the memory of an engine; see [`Tlb::within`].
    Lent(NonNull<Entries>),
}

impl std::ops::Deref for Table {
    type Target = Entries;

    #[inline(always)]
    fn deref(&self) -> &Entries {
        match self {
            Self::Own(entries) => entries,
            // SAFETY: who called `Tlb::within` keeps the entries alive and lets nothing else touch
            // them while a method of the TLB runs.
            Self::Lent(entries) => unsafe { entries.as_ref() },
        }
    }
}

impl std::ops::DerefMut for Table {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Entries {
        match self {
            Self::Own(entries) => entries,
            // SAFETY: as in `deref`.
            Self::Lent(entries) => unsafe { entries.as_mut() },
        }
    }
}

// SAFETY: lent entries belong to one vCPU, which one thread runs at a time.
unsafe impl Send for Table {}

/// What a translation is like, beside where it leads.
#[derive(Clone, Copy, Debug)]
pub struct Nature {
    /// Whether it is global.
    pub global: bool,
    /// Size of the page.
    pub page_size: u64,
}

/// A bit for each entry.
#[derive(Debug)]
struct Bits(Box<[u64; SIZE * SETS / 64]>);

impl Bits {
    fn new() -> Self {
        Self(Box::new([0; SIZE * SETS / 64]))
    }

    fn get(&self, index: usize) -> bool {
        self.0[index / 64] & 1 << (index % 64) != 0
    }

    fn set(&mut self, index: usize, to: bool) {
        let bit = 1 << (index % 64);
        if to {
            self.0[index / 64] |= bit;
        } else {
            self.0[index / 64] &= !bit;
        }
    }

    fn clear(&mut self) {
        self.0.fill(0);
    }
}

/// Bits of [`Writers`].
const WRITERS: usize = 1 << 16;

/// Which host pages the fast path may write to: surely none that is not among them. A bit stands for many
/// pages, and stays when the entry goes that it was set for, until the bits are made anew.
#[derive(Debug)]
struct Writers {
    bits: Box<[u64; WRITERS / 64]>,
    /// How many pages were added.
    added: usize,
}

impl Writers {
    fn new() -> Self {
        Self {
            bits: Box::new([0; WRITERS / 64]),
            added: 0,
        }
    }

    const fn bit(host: usize) -> usize {
        mix(host as u64 / PAGE_SIZE, WRITERS.trailing_zeros())
    }

    fn may_have(&self, host: usize) -> bool {
        let bit = Self::bit(host);
        self.bits[bit / 64] & 1 << (bit % 64) != 0
    }

    fn add(&mut self, host: usize) {
        let bit = Self::bit(host);
        self.bits[bit / 64] |= 1 << (bit % 64);
        self.added += 1;
    }

    /// Begins anew with the pages of `entries`.
    fn renew(&mut self, entries: &[Entry]) {
        self.bits.fill(0);
        for entry in entries.iter().filter(|entry| entry.written().is_some()) {
            self.add(entry.host);
        }
        self.added = 0;
    }
}

/// The software TLB of one vCPU.
#[derive(Debug)]
pub struct Tlb {
    entries: Table,
    /// The slots of a set that are used, less one: they are a power of two.
    mask: usize,
    /// Where the chosen set begins.
    chosen: usize,
    /// Filled since they were last dropped, by kind: flushes touch these alone.
    global: Vec<u16>,
    non_global: Vec<u16>,
    /// Which entries are in these lists.
    listed_global: Bits,
    listed_non_global: Bits,
    /// Which entries are of global translations.
    globals: Bits,
    /// Where the entries allow writes to.
    writers: Writers,
    /// Where pages lie of which parts are cached.
    large: LargeRanges,
}

impl Tlb {
    /// An empty TLB.
    pub(crate) fn new() -> Self {
        Self::with(Table::Own(Entries::new()), SIZE)
    }

    /// An empty TLB whose entries lie in memory that generated code looks into, and which uses
    /// `size` of each set: a power of two from [`LEAST_SIZE`] to [`SIZE`], else [`SIZE`].
    ///
    /// # Safety
    /// `entries` outlives the TLB, and nothing writes to it, nor reads it while a method of the TLB
    /// runs.
    pub unsafe fn within(entries: NonNull<Entries>, size: usize) -> Self {
        let usable = size.is_power_of_two() && (LEAST_SIZE..=SIZE).contains(&size);
        let mut tlb = Self::with(Table::Lent(entries), if usable { size } else { SIZE });
        for (index, entry) in tlb.entries.all.iter_mut().enumerate() {
            *entry = Entry::empty(index);
        }
        tlb.entries.used = [1; SETS];
        tlb.empty_near();
        tlb
    }

    fn with(entries: Table, size: usize) -> Self {
        Self {
            entries,
            mask: size - 1,
            chosen: Set::Supervisor as usize * SIZE,
            global: Vec::new(),
            non_global: Vec::new(),
            globals: Bits::new(),
            writers: Writers::new(),
            listed_global: Bits::new(),
            listed_non_global: Bits::new(),
            large: LargeRanges::default(),
        }
    }

    /// Chooses the set that [`entry`](Self::entry) looks into.
    pub fn select(&mut self, set: Set) {
        self.chosen = set as usize * SIZE;
    }

    #[inline(always)]
    const fn slot(&self, linear: u64) -> usize {
        (linear / PAGE_SIZE) as usize & self.mask
    }

    /// The only entry of the chosen set that may hold `linear`.
    #[inline(always)]
    pub fn entry(&self, linear: u64) -> &Entry {
        &self.entries.all[(self.chosen + self.slot(linear)) % (SIZE * SETS)]
    }

    /// The only entry of `set` that may hold `linear`.
    #[inline]
    pub fn entry_in(&self, set: Set, linear: u64) -> &Entry {
        &self.entries.all[set as usize * SIZE + self.slot(linear)]
    }

    /// Enters a translation: `host` is the address of `linear` itself.
    pub fn fill(
        &mut self,
        set: Set,
        linear: u64,
        host: *mut u8,
        access: Access,
        writable: bool,
        nature: Nature,
    ) {
        let page = linear & !OFFSET_MASK;
        let host = host as usize & !(OFFSET_MASK as usize);
        let index = set as usize * SIZE + self.slot(linear);
        let entry = self.entries.all[index];
        if !entry.holds(page) || entry.host != host {
            self.drop_near(set, &entry);
            self.entries.all[index] = Entry {
                host,
                ..Entry::empty(index)
            };
        }
        let entry = &mut self.entries.all[index];
        if access == Access::Fetch {
            entry.fetch = page;
        } else {
            entry.read = page;
            if writable {
                entry.write = page;
                self.writers.add(host);
            }
        }
        if self.writers.added == SIZE * SETS {
            self.writers.renew(&self.entries.all);
        }
        self.globals.set(index, nature.global);
        let (list, listed) = if nature.global {
            (&mut self.global, &mut self.listed_global)
        } else {
            (&mut self.non_global, &mut self.listed_non_global)
        };
        if !listed.get(index) {
            listed.set(index, true);
            list.push(index as u16);
        }
        if nature.page_size > PAGE_SIZE {
            self.large.add(linear, nature.page_size);
        }
    }

    /// Empties all near copies.
    fn empty_near(&mut self) {
        let Entries {
            stack, near, used, ..
        } = &mut *self.entries;
        *stack = [NearPair::EMPTY; SETS];
        for (near, used) in near.iter_mut().zip(used) {
            if std::mem::take(used) != 0 {
                *near = [NearPair::EMPTY; NEAR];
            }
        }
    }

    /// The near copies of `set` that may hold something.
    fn near(&mut self, set: usize) -> impl Iterator<Item = &mut NearPair> {
        let entries = &mut *self.entries;
        let used = entries.used[set] != 0;
        let others = if used { NEAR } else { 0 };
        let others = &mut entries.near[set][..others];
        std::iter::once(&mut entries.stack[set]).chain(others)
    }

    /// Empties the near copies of an entry of `set`.
    fn drop_near(&mut self, set: Set, entry: &Entry) {
        for pair in self.near(set as usize) {
            if pair.read.tag == entry.read {
                pair.read = Near::EMPTY;
            }
            if pair.write.tag == entry.write {
                pair.write = Near::EMPTY;
            }
        }
    }

    /// Empties the near copies of rights to write to the page at `host`, or to any.
    fn drop_near_writes(&mut self, host: Option<*mut u8>) {
        for set in 0..SETS {
            for pair in self.near(set) {
                if host.is_none_or(|host| pair.write.host == host as usize) {
                    pair.write = Near::EMPTY;
                }
            }
        }
    }

    /// Whether the translation of `linear` that `set` holds is global.
    pub fn is_global(&self, set: Set, linear: u64) -> bool {
        let index = set as usize * SIZE + self.slot(linear);
        self.globals.get(index)
    }

    /// The size of the range around `linear` in which a large page may lie of which parts are cached.
    pub fn large_range(&self, linear: u64) -> Option<u64> {
        self.large.range(linear)
    }

    /// Whether `linear` may lie in a large page of which parts are cached.
    pub fn may_be_large(&self, linear: u64) -> bool {
        self.large.may_hold(linear)
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        for index in self.global.drain(..) {
            self.entries.all[usize::from(index)] = Entry::empty(usize::from(index));
        }
        self.listed_global.clear();
        self.flush_non_global();
        self.large = LargeRanges::default();
    }

    /// Drops everything but global translations.
    pub fn flush_non_global(&mut self) {
        self.empty_near();
        for index in self.non_global.drain(..) {
            let index = usize::from(index);
            self.entries.all[index] = Entry::empty(index);
            self.listed_non_global.set(index, false);
        }
    }

    /// Drops the translation of one address; of a large page, that of every part. SDM 3A, 4.10.4.1.
    pub fn flush_address(&mut self, linear: u64) {
        if let Some(size) = self.large.range(linear) {
            self.flush_range(linear & !(size - 1), size);
        }
        let page = linear & !OFFSET_MASK;
        for set in [Set::Supervisor, Set::SupervisorAc, Set::User] {
            let index = set as usize * SIZE + self.slot(linear);
            let entry = self.entries.all[index];
            if entry.holds(page) {
                self.drop_near(set, &entry);
                self.entries.all[index] = Entry::empty(index);
            }
        }
    }

    /// Drops what lies in the `size` bytes from `start` on.
    fn flush_range(&mut self, start: u64, size: u64) {
        self.empty_near();
        let within = |tag: u64| !is_invalid(tag) && tag.wrapping_sub(start) < size;
        for (index, entry) in self.entries.all.iter_mut().enumerate() {
            if within(entry.read) || within(entry.write) || within(entry.fetch) {
                *entry = Entry::empty(index);
            }
        }
    }

    /// Drops the right to write to the page at `host` through the fast path; tells whether there
    /// was one.
    pub fn drop_writes(&mut self, host: *mut u8) -> bool {
        if !self.writers.may_have(host as usize) {
            return false;
        }
        self.drop_near_writes(Some(host));
        let mut any = false;
        for (index, entry) in self.entries.all.iter_mut().enumerate() {
            if entry.written() == Some(host) {
                entry.write = invalid(index);
                any = true;
            }
        }
        any
    }

    /// Drops the right to write through the fast path to every page; tells where those were.
    pub fn drop_all_writes(&mut self, mut dropped: impl FnMut(*mut u8)) {
        self.drop_near_writes(None);
        for (index, entry) in self.entries.all.iter_mut().enumerate() {
            if let Some(host) = entry.written() {
                entry.write = invalid(index);
                dropped(host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translation(page_size: u64, global: bool) -> Nature {
        Nature { global, page_size }
    }

    fn fill(tlb: &mut Tlb, linear: u64, page_size: u64, global: bool) {
        let host = (0x7f00_0000_0000 + linear) as *mut u8;
        let found = translation(page_size, global);
        tlb.fill(Set::Supervisor, linear, host, Access::Read, true, found);
    }

    fn holds(tlb: &Tlb, linear: u64) -> bool {
        tlb.entry_in(Set::Supervisor, linear).read == linear & !OFFSET_MASK
    }

    #[test]
    fn an_access_that_leaves_the_page_does_not_match() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x5000, PAGE_SIZE, false);
        let entry = tlb.entry(0x5ffd);
        assert_eq!(entry.read, Entry::tag_of_last::<u16>(0x5ffd));
        assert_ne!(entry.read, Entry::tag_of_last::<u32>(0x5ffd));
    }

    #[test]
    fn a_flush_of_the_address_space_keeps_global_pages() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x5000, PAGE_SIZE, false);
        fill(&mut tlb, 0x6000, PAGE_SIZE, true);
        tlb.flush_non_global();
        assert!(!holds(&tlb, 0x5000));
        assert!(holds(&tlb, 0x6000));
        tlb.flush_all();
        assert!(!holds(&tlb, 0x6000));
    }

    #[test]
    fn nothing_matches_what_a_small_table_does_not_hold() {
        let mut entries = Entries::new();
        // SAFETY: the entries outlive the TLB, and nothing else uses them.
        let tlb = unsafe { Tlb::within(NonNull::from(&mut *entries), LEAST_SIZE) };
        for page in 0..64 {
            for linear in [page * PAGE_SIZE, (1 << 63) + page * PAGE_SIZE] {
                let entry = tlb.entry(linear);
                let offsets = (0..PAGE_SIZE).map(|offset| linear + offset);
                let found = offsets.filter(|at| at.wrapping_sub(entry.read) < PAGE_SIZE);
                assert_eq!(found.count(), 0, "{linear:#x}");
            }
        }
    }

    #[test]
    fn an_address_in_a_large_page_drops_all_its_parts() {
        for size in [2 << 20, 4 << 20, 1 << 30] {
            let mut tlb = Tlb::new();
            fill(&mut tlb, 0x4000_0000, size, true);
            fill(&mut tlb, 0x4000_3000, size, true);
            tlb.flush_address(0x4000_3008);
            assert!(!holds(&tlb, 0x4000_0000), "{size:#x}");
            assert!(!holds(&tlb, 0x4000_3000), "{size:#x}");
        }
    }

    #[test]
    fn dropping_all_writes_keeps_reads_and_tells_the_pages() {
        let mut tlb = Tlb::new();
        fill(&mut tlb, 0x5000, PAGE_SIZE, false);
        fill(&mut tlb, 0x6000, PAGE_SIZE, true);
        let mut pages = Vec::new();
        tlb.drop_all_writes(|host| pages.push(host as usize));
        assert_eq!(pages, [0x7f00_0000_5000, 0x7f00_0000_6000]);
        assert!(holds(&tlb, 0x5000));
        tlb.drop_all_writes(|_| panic!("nothing is left"));
    }

    #[test]
    fn dropping_writes_finds_every_alias() {
        let mut tlb = Tlb::new();
        let host = 0x7f00_0000_1000 as *mut u8;
        let found = translation(PAGE_SIZE, false);
        assert!(!tlb.drop_writes(host));
        for linear in [0x1000, 0xffff_8000_0000_7000] {
            tlb.fill(Set::User, linear, host, Access::Write, true, found);
        }
        // The record of such pages is made anew meanwhile.
        for n in 0..2 * (SIZE * SETS) {
            let other = (0x7f00_1000_0000 + n * PAGE_SIZE as usize) as *mut u8;
            tlb.fill(Set::User, 0x2000, other, Access::Write, true, found);
        }
        assert!(tlb.drop_writes(host));
        assert!(!tlb.drop_writes(host));
        assert_eq!(tlb.entry_in(Set::User, 0x1000).write, invalid(1));
        assert_eq!(tlb.entry_in(Set::User, 0x1000).read, 0x1000);
    }

    /// Generated code makes near copies of an entry.
    fn approach(tlb: &mut Tlb, linear: u64) {
        let Entry {
            read, write, host, ..
        } = *tlb.entry_in(Set::Supervisor, linear);
        let pair = NearPair {
            read: Near { tag: read, host },
            write: Near { tag: write, host },
        };
        tlb.entries.near[Set::Supervisor as usize][3] = pair;
        tlb.entries.used[Set::Supervisor as usize] = 1;
        tlb.entries.stack[Set::Supervisor as usize] = pair;
    }

    /// Whether the near copies allow reads and writes.
    fn is_near(tlb: &Tlb) -> (bool, bool) {
        let set = Set::Supervisor as usize;
        let [stack, other] = [tlb.entries.stack[set], tlb.entries.near[set][3]];
        let holds =
            |pair: NearPair| [pair.read, pair.write].map(|near| near.host != Near::EMPTY.host);
        assert_eq!(holds(stack), holds(other));
        holds(stack).into()
    }

    #[test]
    fn near_copies_go_with_the_entry_that_they_come_from() {
        let near = || {
            let mut tlb = Tlb::new();
            fill(&mut tlb, 0x5000, PAGE_SIZE, false);
            approach(&mut tlb, 0x5000);
            assert_eq!(is_near(&tlb), (true, true));
            tlb
        };
        let mut tlb = near();
        fill(&mut tlb, 0x5000 + PAGE_SIZE * SIZE as u64, PAGE_SIZE, false);
        assert_eq!(is_near(&tlb), (false, false), "another page took the slot");
        let mut tlb = near();
        fill(&mut tlb, 0x6000, PAGE_SIZE, false);
        assert_eq!(is_near(&tlb), (true, true), "another page has another slot");
        tlb.flush_address(0x5123);
        assert_eq!(is_near(&tlb), (false, false), "its address was flushed");
        let mut tlb = near();
        tlb.flush_non_global();
        assert_eq!(is_near(&tlb), (false, false), "everything was flushed");
        let mut tlb = near();
        assert!(tlb.drop_writes((0x7f00_0000_0000u64 + 0x5000) as *mut u8));
        assert_eq!(is_near(&tlb), (true, false), "its page holds code");
        let mut tlb = near();
        tlb.drop_all_writes(|_| {});
        assert_eq!(is_near(&tlb), (true, false), "every page may hold code");
    }

    #[test]
    fn what_an_empty_near_copy_finds_is_no_address_of_the_host() {
        let found = Near::EMPTY.host as i64;
        assert_ne!(found << 16 >> 16, found);
        assert_ne!((found + 8192) << 16 >> 16, found + 8192);
        // Nor does a canonical address find it.
        let far = |linear: u64| linear.wrapping_sub(Near::EMPTY.tag) >= PAGE_SIZE;
        assert!(far(0) && far((1 << 47) - 1) && far(0xffff_8000_0000_0000) && far(u64::MAX));
    }
}
