//! Windows: pages of programs that the host's own MMU checks.
//!
//! An address space that has run for a while gets windows: for each slot of 4 GiB that it uses a range
//! of the host's addresses, in which pages of guest RAM are mapped where the guest's page tables have
//! them. Generated code adds the difference between slot and window to an address, and needs neither a
//! comparison nor flags. What is not mapped, or must not be written, faults, and the page is looked for.
//!
//! ```text
//! address of the guest   63..32: slot   31..0: within the slot
//!                            │
//!                      table[slot]         window - slot * 4 GiB
//!                            │
//! address of the host    = address + table[slot]       within the window
//! ```
//!
//! The table has the slots of the lower half. One without a window leads into a range that is empty. Of all
//! other addresses the slot lies behind the table, where nothing may be accessed: looking there faults. So no
//! address of a guest leads anywhere but into windows.
//!
//! A mapped page is a translation that is cached, as in a TLB: it was found with its accessed bit, and is
//! writable only if it was found dirty. What the guest invalidates is unmapped. What it invalidates as a
//! whole is compared with the page tables when the address space runs again (SDM 3A, 4.10.4.2 asks for no
//! more): after a fork, nearly all is as it was.
//!
//! Mapping costs the host a hundred times what a walk does. Each address space has an account in which
//! running gives and mapping takes; one that has overdrawn it does without windows.

mod space;

use crate::large::LargeRanges;
use belljar_memory::{GuestMemory, PAGE_SIZE};
use belljar_x86::paging::{Flush, Translation};
use space::{COMPARE, LOOK, Reserve, SLOT, Space, Window};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

pub use space::{GUARD, SLOT_SHIFT};

/// Slots of programs: those of the lower half of 48-bit addresses.
pub const SLOTS: usize = 1 << (47 - SLOT_SHIFT);
/// What generated code adds to an address, by slot.
pub type Table = [usize; SLOTS];
/// Bytes from the beginning of a table on that generated code may try to read, as it counts 2^32 slots.
pub const REACH: usize = size_of::<usize>() << (64 - SLOT_SHIFT);

/// Pages that lie in one range of so many bytes are mapped together, if they lie likewise in RAM.
const AROUND: u64 = 16 * PAGE_SIZE;
/// The most address spaces that are known.
const MOST_SPACES: usize = 12;
/// The most windows of all address spaces and vCPUs.
const MOST_WINDOWS: usize = 512;
/// The most mappings that all vCPUs have at a time. The host allows a process some 65,000, and each
/// leaves a gap that is one, too.
const MOST_MAPPINGS: usize = 24_000;
/// The most pages that they map at a time.
const MOST_PAGES: usize = 256 << 10;

/// The least time between two ticks.
const TICK: Duration = Duration::from_millis(2);

/// What an address of the host is at which generated code had a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faulted {
    /// This address of the shown address space.
    Page(u64),
    /// One in a slot that has no window.
    NoWindow,
    /// One in no slot, where behind the table generated code looked for it, or an operand that leaves its slot.
    Beyond,
    /// None that a guest's leads to.
    Elsewhere,
}

/// What became of a page fault of the host in a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The page is mapped: the instruction can be tried again.
    Now,
    /// The instruction is the interpreter's, and may find the page mapped the next time.
    Later,
    /// The same, but its page is no RAM, or holds code that is not to be written without notice.
    Never,
}

/// The table that generated code looks into.
#[derive(Debug)]
struct Leads(NonNull<Table>);

impl Leads {
    fn set(&mut self, slot: usize, lead: usize) {
        // SAFETY: who called `Windows::new` keeps the table alive and touches it at no such time.
        unsafe { self.0.as_mut()[slot] = lead };
    }

    /// Whether generated code may have looked for a slot at the address `host`.
    fn reaches(&self, host: usize) -> bool {
        host.wrapping_sub(self.0.addr().get()) < REACH
    }
}

/// The windows of one vCPU.
#[derive(Debug)]
pub struct Windows {
    memory: GuestMemory,
    table: Leads,
    /// Where slots without a window lead.
    empty: Reserve,
    spaces: Vec<Space>,
    /// The address space that the table shows.
    shown: Option<usize>,
    /// Where large pages may lie of which parts are mapped.
    large: LargeRanges,
    /// Pages of RAM that may be writable in some window: a bit for each.
    writable: Box<[u64]>,
    /// How often an address space was looked for.
    time: u64,
    /// Times that a running address space is seen until it gets windows.
    patience: u32,
    /// When a program was last seen running.
    last_tick: Instant,
    /// How many vCPUs share what the host allows.
    vcpus: usize,
    /// Pages mapped.
    pub mapped: u64,
    /// Pages compared with the page tables.
    pub compared: u64,
}

// SAFETY: the addresses are those of mappings that the object owns, of the memory that it keeps, and of the
// table, which is its own to write.
unsafe impl Send for Windows {}

impl Windows {
    /// None as yet: an address space gets some when it has been seen running `patience` times. This is one
    /// of `vcpus`, which share what the host allows.
    ///
    /// # Errors
    /// If the host gives no addresses.
    ///
    /// # Safety
    /// `table` outlives this object. Nothing else writes to it, and nothing reads it while a method of this
    /// object runs. In the first [`REACH`] bytes from its beginning on, nothing can be accessed behind it.
    pub unsafe fn new(
        memory: GuestMemory,
        vcpus: usize,
        patience: u32,
        table: NonNull<Table>,
    ) -> rustix::io::Result<Self> {
        let mut windows = Self {
            table: Leads(table),
            writable: vec![0; memory.code().pages().div_ceil(64)].into(),
            memory,
            empty: Reserve::new()?,
            spaces: Vec::new(),
            shown: None,
            large: LargeRanges::default(),
            time: 0,
            patience,
            last_tick: Instant::now(),
            vcpus: vcpus.max(1),
            mapped: 0,
            compared: 0,
        };
        for slot in 0..SLOTS {
            windows.table.set(slot, windows.empty.lead_from(slot));
        }
        Ok(windows)
    }

    /// Lets the table show an address space.
    fn show(&mut self, index: Option<usize>) {
        let before = self.shown.and_then(|index| self.spaces.get(index));
        for window in before.into_iter().flat_map(|space| &space.windows) {
            let nowhere = self.empty.lead_from(window.slot);
            self.table.set(window.slot, nowhere);
        }
        self.shown = index;
        if let Some(space) = index.and_then(|index| self.spaces.get(index)) {
            for window in &space.windows {
                let lead = window.reserve.lead_from(window.slot);
                self.table.set(window.slot, lead);
            }
        }
        // Nothing leads into the windows of these any more.
        for space in self.spaces.iter_mut().filter(|space| !space.open) {
            space.pages.clear();
            space.mappings = 0;
            space.windows.clear();
        }
    }

    /// Whether the address space of `root` and `pcid` is shown, and its pages hold.
    #[inline]
    pub fn shows(&self, root: u64, pcid: u16) -> bool {
        self.shown.is_some_and(|index| {
            let space = &self.spaces[index];
            space.root == root && space.pcid == pcid && !space.stale
        })
    }

    fn find(&self, root: u64) -> Option<usize> {
        self.spaces.iter().position(|space| space.root == root)
    }

    /// Shows the windows of the address space of `root` and `pcid`; tells whether it has any. `walk` looks
    /// for a page in its page tables.
    pub fn turn_to(
        &mut self,
        root: u64,
        pcid: u16,
        walk: impl FnMut(u64) -> Option<Translation>,
    ) -> bool {
        if self.shows(root, pcid) {
            return true;
        }
        if self.patience == 0 {
            self.tick(root, pcid);
        }
        let Some(index) = self.find(root).filter(|&index| self.spaces[index].open) else {
            if self.shown.is_some() {
                self.show(None);
            }
            return false;
        };
        let space = &mut self.spaces[index];
        if space.pcid != pcid || space.stale {
            space.pcid = pcid;
            space.stale = false;
            self.compare(index, walk);
        }
        let open = self.spaces[index].open;
        self.show(open.then_some(index));
        open
    }

    /// Unmaps what the page tables no longer have.
    fn compare(&mut self, index: usize, mut walk: impl FnMut(u64) -> Option<Translation>) {
        let space = &mut self.spaces[index];
        let total = space.pages.len();
        let (mut gone, mut clean) = (Vec::new(), Vec::new());
        for (&linear, page) in &space.pages {
            let found = walk(linear).filter(|found| {
                self.memory.page_index(found.gpa) == Some(page.ram) && !found.global
            });
            let Some(found) = found else {
                gone.push(linear);
                continue;
            };
            if page.writable && !found.writable {
                clean.push(linear);
            }
            if found.page_size > PAGE_SIZE {
                self.large.add(linear, found.page_size);
            }
        }
        self.compared += total as u64;
        space.account -= total as i64 * COMPARE;
        // Page tables of which little is left are another program's.
        if gone.len() > 64 && gone.len() > total / 2 {
            space.give_up();
            space.patience = self.patience;
            return;
        }
        for linear in gone {
            space.unmap(linear);
        }
        for linear in clean {
            space.protect(linear);
        }
        space.settle();
    }

    /// A program of the address space was seen running: it gets windows in the end.
    pub fn tick(&mut self, root: u64, pcid: u16) {
        let now = Instant::now();
        if self.patience != 0 && now.duration_since(self.last_tick) < TICK {
            return;
        }
        self.last_tick = now;
        self.time += 1;
        let index = self.find(root).unwrap_or_else(|| self.newcomer(root));
        let (time, always) = (self.time, self.patience == 0);
        let space = &mut self.spaces[index];
        space.seen = time;
        space.ticks = space.ticks.saturating_add(1);
        if space.open {
            space.earn();
            return;
        }
        if space.stale {
            // Perhaps another program's already.
            space.stale = false;
            space.ticks /= 2;
        }
        space.pcid = pcid;
        if space.ticks >= space.patience {
            space.get_windows(always);
        }
    }

    /// The place of an address space that is not known yet.
    fn newcomer(&mut self, root: u64) -> usize {
        let space = Space {
            root,
            patience: self.patience,
            ..Space::default()
        };
        if self.spaces.len() < MOST_SPACES {
            self.spaces.push(space);
            return self.spaces.len() - 1;
        }
        let oldest = (0..self.spaces.len())
            .filter(|index| Some(*index) != self.shown)
            .min_by_key(|&index| self.spaces[index].seen)
            .unwrap_or(0);
        self.spaces[oldest] = space;
        oldest
    }

    /// What the address `host`, at which generated code had a page fault, is.
    pub fn place(&self, host: usize) -> Faulted {
        if self.table.reaches(host) {
            return Faulted::Beyond;
        }
        if self.empty.surrounds(host) {
            return Faulted::NoWindow;
        }
        let shown = self.shown.and_then(|index| self.spaces.get(index));
        let windows = shown.map_or(&[][..], |space| &space.windows[..]);
        let around = |window: &&Window| window.reserve.surrounds(host);
        let Some(window) = windows.iter().find(around) else {
            return Faulted::Elsewhere;
        };
        let offset = host.wrapping_sub(window.reserve.start());
        if offset < SLOT {
            Faulted::Page(((window.slot << SLOT_SHIFT) + offset) as u64)
        } else {
            Faulted::Beyond
        }
    }

    /// Makes windows for slots of the shown address space that have none; tells whether it made any.
    pub fn open_slots(&mut self, slots: impl Iterator<Item = usize>) -> bool {
        let mut count: usize = self.spaces.iter().map(|space| space.windows.len()).sum();
        let Some(space) = self.shown.and_then(|index| self.spaces.get_mut(index)) else {
            return false;
        };
        let before = count;
        space.account -= LOOK;
        for slot in slots {
            let known = space.windows.iter().any(|window| window.slot == slot);
            if known || slot >= SLOTS || count >= MOST_WINDOWS / self.vcpus {
                continue;
            }
            let Ok(reserve) = Reserve::new() else {
                break;
            };
            self.table.set(slot, reserve.lead_from(slot));
            space.windows.push(Window { slot, reserve });
            count += 1;
        }
        count > before
    }

    /// Whether the shown address space does not have the page at `linear` mapped.
    fn lacks(&self, linear: u64) -> bool {
        let space = self.shown.and_then(|index| self.spaces.get(index));
        space.is_some_and(|space| !space.pages.contains_key(&linear))
    }

    /// Maps page `ram` of RAM where the shown address space has `linear`, and its neighbours that
    /// `neighbour` finds to be like it: it gives pages of RAM by address, and whether they are writable.
    /// `range` is the size of the range in which a large page may lie. Tells whether that is done.
    pub fn map(
        &mut self,
        linear: u64,
        ram: usize,
        writable: bool,
        range: Option<u64>,
        mut neighbour: impl FnMut(u64) -> Option<(usize, bool)>,
    ) -> bool {
        let linear = linear & !(PAGE_SIZE - 1);
        let mut like = |this: &Self, at: u64, ram: usize| {
            this.lacks(at) && neighbour(at) == Some((ram, writable))
        };
        let around = linear & !(AROUND - 1);
        let (mut first, mut end) = (linear, linear + PAGE_SIZE);
        let ram_at =
            |at: u64| (ram as u64).wrapping_add((at.wrapping_sub(linear) as i64 >> 12) as u64);
        while end < around + AROUND && like(self, end, ram_at(end) as usize) {
            end += PAGE_SIZE;
        }
        while first > around && like(self, first - PAGE_SIZE, ram_at(first - PAGE_SIZE) as usize) {
            first -= PAGE_SIZE;
        }
        if let Some(range) = range {
            self.large.add(linear, range);
        }
        self.map_run(
            first,
            ram_at(first) as usize,
            ((end - first) / PAGE_SIZE) as usize,
            writable,
        )
    }

    fn map_run(&mut self, linear: u64, ram: usize, pages: usize, writable: bool) -> bool {
        let Some(index) = self.shown else {
            return false;
        };
        self.make_room(index);
        let space = &mut self.spaces[index];
        if !space.map(self.memory.fd(), linear, ram, pages, writable) {
            return false;
        }
        self.mapped += pages as u64;
        if writable {
            for page in ram..ram + pages {
                self.writable[page / 64] |= 1 << (page % 64);
            }
        }
        true
    }

    /// Sees to it that a page more can be mapped in the address space of that number, which is shown.
    fn make_room(&mut self, index: usize) {
        let sum = |of: fn(&Space) -> usize| self.spaces.iter().map(of).sum::<usize>();
        let few = sum(|space| space.mappings) < MOST_MAPPINGS / self.vcpus
            && sum(|space| space.pages.len()) < MOST_PAGES / self.vcpus;
        if few {
            return;
        }
        let other = (0..self.spaces.len())
            .filter(|other| *other != index && !self.spaces[*other].pages.is_empty())
            .min_by_key(|&other| self.spaces[other].seen);
        self.spaces[other.unwrap_or(index)].unmap_all();
    }

    /// Drops what the guest invalidates.
    pub fn flush(&mut self, what: Flush) {
        match what {
            Flush::None => {}
            Flush::Address { linear, pcid, .. } => {
                for index in 0..self.spaces.len() {
                    if self.spaces[index].pcid == pcid && !self.spaces[index].stale {
                        self.flush_address(index, linear);
                    }
                }
            }
            Flush::Pcid(pcid) => {
                for space in &mut self.spaces {
                    space.stale |= space.pcid == pcid;
                }
            }
            Flush::NonGlobal | Flush::All => {
                for space in &mut self.spaces {
                    space.stale = true;
                }
            }
        }
    }

    /// Unmaps the page of `linear`; of a large page, every part. SDM 3A, 4.10.4.1.
    fn flush_address(&mut self, index: usize, linear: u64) {
        let space = &mut self.spaces[index];
        let Some(size) = self.large.range(linear) else {
            return space.unmap(linear & !(PAGE_SIZE - 1));
        };
        let start = linear & !(size - 1);
        let within = |page: &&u64| page.wrapping_sub(start) < size;
        let pages: Vec<u64> = space.pages.keys().filter(within).copied().collect();
        for page in pages {
            space.unmap(page);
        }
    }

    /// Drops the right to write to page `ram` of RAM; tells whether there was one.
    pub fn protect(&mut self, ram: usize) -> bool {
        let bit = 1 << (ram % 64);
        if self.writable[ram / 64] & bit == 0 {
            return false;
        }
        self.writable[ram / 64] &= !bit;
        let mut any = false;
        for space in &mut self.spaces {
            space.drop_writes(|page| page == ram, |_| any = true);
        }
        any
    }

    /// Drops the right to write to any page; tells whose.
    pub fn protect_all(&mut self, mut dropped: impl FnMut(usize)) {
        self.writable.fill(0);
        for space in &mut self.spaces {
            space.drop_writes(|_| true, &mut dropped);
        }
    }
}
