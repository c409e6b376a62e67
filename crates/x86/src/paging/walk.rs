//! The way through the paging structures.

use super::PagingMode;
use crate::bits::{PHYS_BITS, cr4, efer, pte};
use crate::{CpuState, PhysicalMemory};
use belljar_memory::GuestPhysAddr;

/// The bits of an entry or of CR3 that hold a page-aligned physical address.
const ADDRESS: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;

/// What the entries of a walk allow together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rights {
    pub(super) writable: bool,
    pub(super) user: bool,
    pub(super) executable: bool,
}

impl Rights {
    /// Rights before any entry has taken some away.
    const ALL: Self = Self {
        writable: true,
        user: true,
        executable: true,
    };

    /// Keeps what `entry` allows, too. Legacy entries have a zero for NX.
    const fn and(self, entry: u64) -> Self {
        Self {
            writable: self.writable && entry & pte::RW != 0,
            user: self.user && entry & pte::US != 0,
            executable: self.executable && entry & pte::NX == 0,
        }
    }
}

/// Why a walk led nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    NotPresent,
    Reserved,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    at: GuestPhysAddr,
    value: u64,
}

/// A walk that reached a page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// The entries that were read, the one that maps the page last.
    path: [Entry; 4],
    depth: usize,
    /// Whether entries are 64 bits wide.
    wide: bool,
    base: u64,
    pub(super) page_size: u64,
    pub(super) rights: Rights,
    pub(super) global: bool,
}

impl Walk {
    fn new(wide: bool) -> Self {
        Self {
            path: [Entry::default(); 4],
            depth: 0,
            wide,
            base: 0,
            page_size: 0,
            rights: Rights::ALL,
            global: false,
        }
    }

    /// Reads the entry at `at` and takes its rights into account.
    fn step(
        &mut self,
        memory: &impl PhysicalMemory,
        at: u64,
        reserved: impl Fn(u64) -> u64,
    ) -> Result<u64, Stop> {
        let at = GuestPhysAddr(at);
        let value = if self.wide {
            memory.load_u64(at)
        } else {
            u64::from(memory.load_u32(at))
        };
        if value & pte::P == 0 {
            return Err(Stop::NotPresent);
        }
        if value & reserved(value) != 0 {
            return Err(Stop::Reserved);
        }
        self.path[self.depth] = Entry { at, value };
        self.depth += 1;
        self.rights = self.rights.and(value);
        Ok(value)
    }

    /// Ends the walk at the page of `page_size` bytes at `base` that the last entry maps.
    fn end(mut self, cpu: &CpuState, base: u64, page_size: u64) -> Self {
        self.base = base;
        self.page_size = page_size;
        self.global = self.leaf().value & pte::G != 0 && cpu.cr4 & cr4::PGE != 0;
        self
    }

    fn leaf(&self) -> Entry {
        self.path[self.depth - 1]
    }

    /// The guest-physical address of `linear`, which lies in the page.
    pub(super) const fn gpa(&self, linear: u64) -> GuestPhysAddr {
        GuestPhysAddr(self.base | (linear & (self.page_size - 1)))
    }

    /// Whether the page is marked dirty.
    pub(super) fn dirty(&self) -> bool {
        self.leaf().value & pte::D != 0
    }

    /// Whether all entries are marked accessed.
    pub(super) fn accessed(&self) -> bool {
        self.path[..self.depth]
            .iter()
            .all(|entry| entry.value & pte::A != 0)
    }

    /// Sets the accessed bits, and for a `store` the dirty bit; tells whether the entries were
    /// still as they were read.
    pub(super) fn mark(&mut self, memory: &impl PhysicalMemory, store: bool) -> bool {
        let (depth, wide) = (self.depth, self.wide);
        for (level, entry) in self.path.iter_mut().take(depth).enumerate() {
            let mut new = entry.value | pte::A;
            if store && level + 1 == depth {
                new |= pte::D;
            }
            if new == entry.value {
                continue;
            }
            let same = if wide {
                memory.compare_exchange_u64(entry.at, entry.value, new)
            } else {
                memory.compare_exchange_u32(entry.at, entry.value as u32, new as u32)
            };
            if !same {
                return false;
            }
            entry.value = new;
        }
        true
    }
}

/// Walks the structures of `mode` for `linear`.
pub(super) fn walk(
    cpu: &CpuState,
    memory: &impl PhysicalMemory,
    mode: PagingMode,
    linear: u64,
) -> Result<Walk, Stop> {
    if mode == PagingMode::Legacy {
        return walk_legacy(cpu, memory, linear);
    }
    let mut walk = Walk::new(true);
    let (mut table, mut shift) = if mode == PagingMode::Pae {
        // The entries were checked when they were cached, and they have no rights. SDM 3A, 4.4.1.
        let pdpte = cpu.pdpte[(linear >> 30) as usize & 3];
        if pdpte & pte::P == 0 {
            return Err(Stop::NotPresent);
        }
        (pdpte & ADDRESS, 21)
    } else {
        (cpu.cr3 & ADDRESS, 39)
    };
    loop {
        let at = table | ((linear >> shift & 0x1ff) << 3);
        let entry = walk.step(memory, at, |entry| reserved(cpu, mode, shift, entry))?;
        let leaf = shift == 12 || (entry & pte::PS != 0 && shift < 39);
        if leaf {
            let size = 1 << shift;
            return Ok(walk.end(cpu, entry & ADDRESS & !(size - 1), size));
        }
        table = entry & ADDRESS;
        shift -= 9;
    }
}

/// The reserved bits of a 64-bit entry that translates from bit `shift` on. SDM 3A, tables 4-9 to
/// 4-11, 4-14 to 4-20.
const fn reserved(cpu: &CpuState, mode: PagingMode, shift: u32, entry: u64) -> u64 {
    // Bits 52 to 62 are free for software in four-level paging and reserved in PAE paging.
    let top = match mode {
        PagingMode::FourLevel => 52,
        _ => 63,
    };
    let mut reserved = (1 << top) - (1 << PHYS_BITS);
    if cpu.efer & efer::NXE == 0 {
        reserved |= pte::NX;
    }
    if entry & pte::PS != 0 {
        reserved |= match shift {
            39 => pte::PS,
            // The low address bits of a large page, but not its PAT bit.
            30 | 21 => (1 << shift) - (1 << 13),
            _ => 0,
        };
    }
    reserved
}

/// Two levels of 32-bit entries. SDM 3A, 4.3.
fn walk_legacy(cpu: &CpuState, memory: &impl PhysicalMemory, linear: u64) -> Result<Walk, Stop> {
    let large = |entry: u64| entry & pte::PS != 0 && cpu.cr4 & cr4::PSE != 0;
    let mut walk = Walk::new(false);
    let directory = (cpu.cr3 & 0xffff_f000) | ((linear >> 22 & 0x3ff) << 2);
    let entry = walk.step(memory, directory, |e| if large(e) { 1 << 21 } else { 0 })?;
    if large(entry) {
        // PSE-36: bits 13 to 20 are bits 32 to 39 of the address. SDM 3A, table 4-4.
        let base = (entry & 0xffc0_0000) | ((entry >> 13 & 0xff) << 32);
        return Ok(walk.end(cpu, base, 1 << 22));
    }
    let table = (entry & 0xffff_f000) | ((linear >> 12 & 0x3ff) << 2);
    let entry = walk.step(memory, table, |_| 0)?;
    Ok(walk.end(cpu, entry & 0xffff_f000, 1 << 12))
}
