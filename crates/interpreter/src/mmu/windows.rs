//! Windows as the memory of one vCPU has them: what is mapped comes from its TLB and page tables.

use super::{Mmu, set_of};
use crate::tlb::Set;
use crate::windows::{Faulted, Opened, SLOT_SHIFT, Table, Windows};
use belljar_memory::GuestPhysAddr;
use belljar_x86::paging::{Flush, translate_known};
use belljar_x86::{Access, CpuState, control};
use std::ptr::NonNull;

/// The address in CR3. SDM 3A, table 4-12.
const ROOT: u64 = 0x000f_ffff_ffff_f000;

impl Mmu {
    /// Gives windows to programs that have been seen running `patience` times; this is one of `vcpus`. A
    /// host that has no addresses for them does without.
    ///
    /// # Safety
    /// As for [`Windows::new`].
    pub unsafe fn allow_windows(&mut self, vcpus: usize, patience: u32, table: NonNull<Table>) {
        let memory = self.memory.clone();
        // SAFETY: the caller's promise.
        self.windows = unsafe { Windows::new(memory, vcpus, patience, table) }.ok();
    }

    /// Whether the 64-bit program that runs has windows; they are shown then.
    #[inline]
    pub fn has_windows(&mut self, cpu: &CpuState) -> bool {
        let Some(windows) = &mut self.windows else {
            return false;
        };
        let (root, pcid) = space_of(cpu);
        if windows.shows(root, pcid) {
            if self.wanted.is_some() {
                self.map_wanted(cpu);
            }
            return true;
        }
        let memory = &self.memory;
        windows.turn_to(root, pcid, |linear| translate_known(cpu, memory, linear))
    }

    /// How many pages were mapped in windows, and how many compared with the page tables.
    pub fn windows_counts(&self) -> [u64; 2] {
        let windows = self.windows.as_ref();
        windows.map_or([0; 2], |windows| [windows.mapped, windows.compared])
    }

    /// The 64-bit program was seen running.
    pub fn note_program(&mut self, cpu: &CpuState) {
        let (root, pcid) = space_of(cpu);
        if let Some(windows) = &mut self.windows {
            windows.tick(root, pcid);
        }
    }

    /// Generated code of a program had a page fault of the host at address `host`: maps what it looked for,
    /// if it can.
    ///
    /// # Panics
    /// If the program cannot have led there.
    pub fn open_window(&mut self, cpu: &CpuState, host: usize, write: bool) -> Opened {
        let place = self.windows.as_ref().map(|windows| windows.place(host));
        let linear = match place {
            Some(Faulted::Page(linear)) => linear,
            Some(Faulted::Beyond) => return Opened::Never,
            Some(Faulted::NoWindow) => {
                return if self.open_slots(cpu) {
                    Opened::Later
                } else {
                    Opened::Never
                };
            }
            Some(Faulted::Elsewhere) | None => panic!("a page fault at {host:#x}"),
        };
        let access = if write { Access::Write } else { Access::Read };
        // Processors differ in whether what reads and writes faults as a read first. Where that would set
        // an accessed bit, the instruction is executed as a whole.
        let known = write || translate_known(cpu, &self.memory, linear).is_some();
        if !known {
            self.wanted = Some((linear, access));
            return Opened::Later;
        }
        let opened = self.map_window(cpu, linear, access);
        if opened == Opened::Later {
            // The guest may see to it, and the program come back to it.
            self.wanted = Some((linear, access));
        }
        opened
    }

    /// Maps the page at `linear` in its window for accesses of kind `access`, if it can.
    fn map_window(&mut self, cpu: &CpuState, linear: u64, access: Access) -> Opened {
        if self.must_settle() {
            return Opened::Later;
        }
        let set = set_of(cpu, access);
        match self.make_fast(cpu, linear, access) {
            Ok(true) if !self.tlb.is_global(set, linear) => {}
            Ok(_) => return Opened::Never,
            Err(_) => return Opened::Later,
        }
        let entry = self.tlb.entry_in(set, linear);
        let page = self.page_of(entry.host(linear));
        let writable = entry.written().is_some();
        let range = self.tlb.large_range(linear);
        let memory = &self.memory;
        let neighbour = |linear| {
            let found = translate_known(cpu, memory, linear)?;
            let page = memory.page_index(found.gpa)?;
            // What lies in one large page is near enough to be in its range.
            (!found.global).then(|| (page, found.writable && !memory.code().is_code(page)))
        };
        let windows = self.windows.as_mut();
        if windows.is_some_and(|windows| windows.map(linear, page, writable, range, neighbour)) {
            Opened::Now
        } else {
            Opened::Later
        }
    }

    /// Maps what the program looked for before a page fault of its own, if it is there now.
    fn map_wanted(&mut self, cpu: &CpuState) {
        let Some((linear, access)) = self.wanted.take() else {
            return;
        };
        // The program may do something else instead: no bit is set for it.
        let known = translate_known(cpu, &self.memory, linear)
            .is_some_and(|found| found.writable || !access.is_write());
        if known && set_of(cpu, access) == Set::User {
            self.map_window(cpu, linear, access);
        }
    }

    /// Makes windows for the slots that the page tables of the present address space have; tells whether it
    /// made any. SDM 3A, tables 4-15 to 4-17.
    fn open_slots(&mut self, cpu: &CpuState) -> bool {
        /// Present, and for programs.
        const USABLE: u64 = 1 << 0 | 1 << 2;
        let memory = &self.memory;
        let below = |table: u64, entries: std::ops::Range<u64>| {
            entries.filter_map(move |number| {
                let entry = memory.load_u64(GuestPhysAddr(table + 8 * number))?;
                (entry & USABLE == USABLE).then_some((number, entry & ROOT))
            })
        };
        let (root, _) = space_of(cpu);
        let gigabytes = below(root, 0..256).flat_map(|(upper, table)| {
            below(table, 0..512).map(move |(lower, _)| upper << 9 | lower)
        });
        let slots = gigabytes.map(|gigabyte| (gigabyte << 30 >> SLOT_SHIFT) as usize);
        let windows = self.windows.as_mut();
        windows.is_some_and(|windows| windows.open_slots(slots))
    }

    /// Drops what the guest invalidates.
    pub(super) fn flush_windows(&mut self, what: Flush) {
        if let Some(windows) = &mut self.windows {
            windows.flush(what);
        }
    }
}

/// Where the page tables of the present address space begin, and its PCID.
fn space_of(cpu: &CpuState) -> (u64, u16) {
    (cpu.cr3 & ROOT, control::current_pcid(cpu))
}
