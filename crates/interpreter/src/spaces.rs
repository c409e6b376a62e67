//! The second level of the TLB: translations of many address spaces at once, by PCID.
//!
//! The first level, which generated code looks into, holds one address space and is emptied when
//! another is loaded. What was walked stays here until the guest invalidates it, as in a processor's
//! TLB with PCIDs (SDM 3A, 4.10.1), and a miss of the first level need not walk again.
//!
//! Whole address spaces are invalidated by giving them another number. Parts of large pages have a
//! number of their own: INVLPG invalidates a page whole, and where all its parts lie is not known.

use crate::large::LargeRanges;
use crate::mix::mix;
use crate::tlb::{Nature, Set};
use belljar_memory::PAGE_SIZE;
use belljar_x86::Access;
use belljar_x86::paging::{Flush, Translation};

/// Entries of the table.
const SIZE: usize = 1 << 14;
/// Number of PCIDs. SDM 3A, 4.10.1.
const PCIDS: usize = 1 << 12;

/// Reads are allowed.
const READ: usize = 1;
/// Writes are allowed, and the dirty bit is set.
const WRITE: usize = 2;
/// Fetches are allowed.
const FETCH: usize = 4;
/// The translation is global.
const GLOBAL: usize = 8;
/// The page is part of one of 2 or 4 MiB.
const LARGE: usize = 16;
/// The page is part of one of 1 GiB.
const HUGE: usize = 32;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// The page's address, and the set in the bits below.
    page: u64,
    /// The number of its address space when it was entered; 0 is none.
    number: u64,
    /// Host address of the page, and what it allows in the bits below.
    host: usize,
}

/// The numbers of an address space.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    small: u64,
    large: u64,
}

impl Numbers {
    const fn of(self, host: usize) -> u64 {
        if host & (LARGE | HUGE) == 0 {
            self.small
        } else {
            self.large
        }
    }
}

/// What the table knows about a page.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Host address of the page.
    pub host: *mut u8,
    /// Whether writes are allowed without a walk.
    pub writable: bool,
    /// What the translation is like; pages of 4 MiB count as such of 2 MiB.
    pub nature: Nature,
}

/// The second level of one vCPU's TLB.
#[derive(Debug)]
pub struct Spaces {
    entries: Box<[Entry]>,
    global: Numbers,
    by_pcid: Box<[Numbers]>,
    /// The last number that was given.
    last: u64,
    /// Numbers of address spaces up to this one have ended.
    ended: u64,
    large: LargeRanges,
}

impl Spaces {
    /// An empty table.
    pub fn new() -> Self {
        let mut spaces = Self {
            entries: vec![Entry::default(); SIZE].into(),
            global: Numbers::default(),
            by_pcid: vec![Numbers::default(); PCIDS].into(),
            last: 0,
            ended: 0,
            large: LargeRanges::default(),
        };
        spaces.global = spaces.fresh();
        spaces
    }

    fn fresh(&mut self) -> Numbers {
        self.last += 2;
        Numbers {
            small: self.last - 1,
            large: self.last,
        }
    }

    fn numbers(&mut self, pcid: u16) -> Numbers {
        let index = usize::from(pcid) % PCIDS;
        if self.by_pcid[index].small <= self.ended {
            self.by_pcid[index] = self.fresh();
        }
        self.by_pcid[index]
    }

    const fn key(set: Set, linear: u64) -> u64 {
        linear & !(PAGE_SIZE - 1) | set as u64
    }

    /// Whether an address lies in the upper half. What is global there has one slot for all spaces;
    /// what is global elsewhere, as no kernel has it, is not entered.
    const fn is_high(linear: u64) -> bool {
        (linear as i64) < 0
    }

    /// The slot of a page of the address space `pcid`.
    const fn slot(key: u64, pcid: u16) -> usize {
        let space = if Self::is_high(key) { 0 } else { pcid as u64 };
        mix(key ^ space << 40, SIZE.trailing_zeros())
    }

    /// What is known about the page of `linear` for an access that needs the rights of `set`.
    pub fn find(&mut self, set: Set, linear: u64, access: Access, pcid: u16) -> Option<Known> {
        let key = Self::key(set, linear);
        let entry = self.entries[Self::slot(key, pcid)];
        let needed = match access {
            Access::Read | Access::SystemRead => READ,
            Access::Write | Access::SystemWrite => WRITE,
            Access::Fetch => FETCH,
        };
        if entry.page != key || entry.host & needed == 0 {
            return None;
        }
        let numbers = if entry.host & GLOBAL == 0 {
            self.numbers(pcid)
        } else {
            self.global
        };
        (entry.number == numbers.of(entry.host)).then(|| Known {
            host: (entry.host & !(PAGE_SIZE as usize - 1)) as *mut u8,
            writable: entry.host & WRITE != 0,
            nature: Nature {
                global: entry.host & GLOBAL != 0,
                page_size: match entry.host & (LARGE | HUGE) {
                    0 => PAGE_SIZE,
                    LARGE => 2 << 20,
                    _ => 1 << 30,
                },
            },
        })
    }

    /// Enters what a walk found.
    pub fn enter(
        &mut self,
        set: Set,
        linear: u64,
        host: *mut u8,
        access: Access,
        pcid: u16,
        found: &Translation,
    ) {
        if found.global && !Self::is_high(linear) {
            return;
        }
        let mut flags = host as usize & !(PAGE_SIZE as usize - 1);
        flags |= if access == Access::Fetch { FETCH } else { READ };
        if found.writable || access.is_write() {
            flags |= WRITE;
        }
        if found.global {
            flags |= GLOBAL;
        }
        if found.page_size > PAGE_SIZE {
            self.large.add(linear, found.page_size);
            flags |= if found.page_size < 1 << 30 {
                LARGE
            } else {
                HUGE
            };
        }
        let numbers = if found.global {
            self.global
        } else {
            self.numbers(pcid)
        };
        let number = numbers.of(flags);
        let key = Self::key(set, linear);
        let entry = &mut self.entries[Self::slot(key, pcid)];
        let others = READ | WRITE | FETCH;
        if entry.page == key && entry.number == number && (entry.host ^ flags) & !others == 0 {
            flags |= entry.host & (READ | FETCH);
        }
        *entry = Entry {
            page: key,
            number,
            host: flags,
        };
    }

    /// Drops what the guest invalidates.
    pub fn flush(&mut self, what: Flush) {
        match what {
            Flush::None => {}
            Flush::Address {
                linear,
                pcid,
                global,
            } => {
                for set in [Set::Supervisor, Set::SupervisorAc, Set::User] {
                    let key = Self::key(set, linear);
                    let entry = &mut self.entries[Self::slot(key, pcid)];
                    if entry.page == key && (global || entry.host & GLOBAL == 0) {
                        *entry = Entry::default();
                    }
                }
                if self.large.may_hold(linear) {
                    let fresh = self.fresh();
                    self.numbers(pcid);
                    self.by_pcid[usize::from(pcid) % PCIDS].large = fresh.large;
                    if global {
                        self.global.large = fresh.small;
                    }
                }
            }
            Flush::Pcid(pcid) => self.by_pcid[usize::from(pcid) % PCIDS] = Numbers::default(),
            Flush::NonGlobal => self.ended = self.last,
            Flush::All => {
                self.ended = self.last;
                self.global = self.fresh();
                self.large = LargeRanges::default();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_memory::GuestPhysAddr;

    const HOST: *mut u8 = 0x7f00_0000_0000 as *mut u8;

    fn enter(spaces: &mut Spaces, linear: u64, pcid: u16, page_size: u64, global: bool) {
        let found = Translation {
            gpa: GuestPhysAddr(0),
            page_size,
            writable: false,
            dirty: false,
            user: true,
            executable: true,
            global,
        };
        spaces.enter(Set::User, linear, HOST, Access::Read, pcid, &found);
    }

    fn known(spaces: &mut Spaces, linear: u64, pcid: u16) -> bool {
        let found = spaces.find(Set::User, linear, Access::Read, pcid);
        found.is_some()
    }

    #[test]
    fn an_address_space_sees_its_own_translations_and_the_global_ones() {
        let mut spaces = Spaces::new();
        enter(&mut spaces, 0x5000, 1, PAGE_SIZE, false);
        enter(&mut spaces, 0xffff_8000_0000_6000, 1, PAGE_SIZE, true);
        assert!(known(&mut spaces, 0x5000, 1));
        assert!(!known(&mut spaces, 0x5000, 2));
        assert!(known(&mut spaces, 0xffff_8000_0000_6000, 2));
        spaces.flush(Flush::Pcid(1));
        assert!(!known(&mut spaces, 0x5000, 1));
        assert!(known(&mut spaces, 0xffff_8000_0000_6000, 1));
        spaces.flush(Flush::All);
        assert!(!known(&mut spaces, 0xffff_8000_0000_6000, 1));
    }

    #[test]
    fn rights_are_those_that_were_walked_for() {
        let mut spaces = Spaces::new();
        enter(&mut spaces, 0x5000, 1, PAGE_SIZE, false);
        for access in [Access::Write, Access::Fetch] {
            assert!(spaces.find(Set::User, 0x5000, access, 1).is_none());
        }
        let found = spaces.find(Set::Supervisor, 0x5000, Access::Read, 1);
        assert!(found.is_none());
    }

    #[test]
    fn invlpg_drops_all_parts_of_a_large_page_and_nothing_else_of_the_space() {
        for size in [2 << 20, 4 << 20, 1 << 30] {
            let mut spaces = Spaces::new();
            enter(&mut spaces, 0x4000_0000, 1, size, false);
            enter(&mut spaces, 0x4000_3000, 1, size, false);
            enter(&mut spaces, 0x7fff_0000_0000, 1, PAGE_SIZE, false);
            spaces.flush(Flush::Address {
                linear: 0x4000_3008,
                pcid: 1,
                global: true,
            });
            assert!(!known(&mut spaces, 0x4000_0000, 1), "{size:#x}");
            assert!(!known(&mut spaces, 0x4000_3000, 1), "{size:#x}");
            assert!(known(&mut spaces, 0x7fff_0000_0000, 1), "{size:#x}");
        }
    }

    #[test]
    fn invpcid_of_an_address_spares_global_translations() {
        let mut spaces = Spaces::new();
        let linear = 0xffff_8000_0000_6000;
        enter(&mut spaces, linear, 1, PAGE_SIZE, true);
        let flush = |global| Flush::Address {
            linear,
            pcid: 1,
            global,
        };
        spaces.flush(flush(false));
        assert!(known(&mut spaces, linear, 1));
        spaces.flush(flush(true));
        assert!(!known(&mut spaces, linear, 1));
    }
}
