//! The processor's state at a kernel's first instruction.

use crate::{BootError, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr, PAGE_SIZE};
use belljar_x86::bits::{cr0, cr4, efer};
use belljar_x86::state::TableRegister;
use belljar_x86::{CpuState, Gpr, Seg, Segment};

/// Selector of the code segment: Linux's `__BOOT_CS`.
const CODE: u16 = 0x10;
/// Selector of the data segment: Linux's `__BOOT_DS`.
const DATA: u16 = 0x18;
/// What flat code and data segments have in common.
const FLAT: u16 =
    Segment::PRESENT | Segment::S | Segment::WRITABLE | Segment::ACCESSED | Segment::GRANULARITY;

/// Page-table entry: present and writable.
const TABLE: u64 = 0b11;
/// Page-directory entry: present, writable, of 2 MiB.
const LARGE_PAGE: u64 = 0b1000_0011;
/// Size of a large page in bytes.
const LARGE_PAGE_SIZE: u64 = 2 << 20;
/// The identity map covers 4 GiB: as many page directories of 1 GiB each.
const DIRECTORIES: u64 = 4;
/// Entries of a page table.
const ENTRIES: u64 = 512;

/// The processor's mode at the first instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 32-bit protected mode without paging, flat segments.
    Protected,
    /// 64-bit mode with the first 4 GiB mapped to themselves.
    Long,
}

/// Where and how a kernel starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The mode.
    pub(crate) mode: Mode,
    /// The first instruction.
    pub(crate) address: u64,
    /// General-purpose registers that carry the protocol's arguments; all others are 0.
    pub(crate) registers: Vec<(Gpr, u64)>,
}

impl Start {
    /// The whole state.
    pub(crate) fn into_state(self, signature: u32) -> CpuState {
        let mut cpu = CpuState::reset(signature);
        cpu.gpr = [0; 16];
        for (register, value) in self.registers {
            cpu.gpr[register as usize] = value;
        }
        cpu.rip = self.address;
        cpu.cr0 = cr0::PE | cr0::ET;
        let flat = |selector, rights| Segment {
            selector,
            rights: FLAT | rights,
            limit: u32::MAX,
            base: 0,
            usable: true,
        };
        cpu.segments = [flat(DATA, Segment::BIG); 6];
        cpu.segments[Seg::Cs as usize] = flat(CODE, Segment::CODE | Segment::BIG);
        // A busy 32-bit or 64-bit TSS, whose rights are the same number. Its limit is the least
        // that is valid.
        cpu.tr.limit = 0x67;
        cpu.idtr = TableRegister::default();
        cpu.gdtr = TableRegister::default();
        if self.mode == Mode::Long {
            cpu.segments[Seg::Cs as usize] = flat(CODE, Segment::CODE | Segment::LONG);
            cpu.cr0 |= cr0::PG;
            cpu.cr3 = layout::PAGE_TABLES;
            cpu.cr4 = cr4::PAE;
            cpu.efer = efer::LME | efer::LMA;
            cpu.gdtr = TableRegister {
                base: layout::GDT,
                limit: (size_of_val(&gdt()) - 1) as u16,
            };
        }
        cpu
    }
}

/// The descriptors of [`CODE`] and [`DATA`] in 64-bit mode. SDM 3A, 3.4.5.
fn gdt() -> [u64; 4] {
    let descriptor = |rights: u16| 0x000f_0000_0000_ffff | u64::from(rights) << 40;
    [
        0,
        0,
        descriptor(FLAT | Segment::CODE | Segment::LONG),
        descriptor(FLAT | Segment::BIG),
    ]
}

/// Writes what [`Mode::Long`] needs in memory: the descriptor table, and page tables that map the
/// first 4 GiB to themselves in pages of 2 MiB.
pub(crate) fn write_long_mode_tables(memory: &GuestMemory) -> Result<(), BootError> {
    let table = |index: u64| layout::PAGE_TABLES + index * PAGE_SIZE;
    let write = |address: u64, entries: &mut dyn Iterator<Item = u64>| {
        let bytes: Vec<u8> = entries.flat_map(u64::to_le_bytes).collect();
        memory.write(GuestPhysAddr(address), &bytes)
    };
    write(layout::GDT, &mut gdt().into_iter())?;
    memory.zero(GuestPhysAddr(table(0)), 2 * PAGE_SIZE)?;
    write(table(0), &mut std::iter::once(table(1) | TABLE))?;
    write(
        table(1),
        &mut (0..DIRECTORIES).map(|i| table(2 + i) | TABLE),
    )?;
    write(
        table(2),
        &mut (0..DIRECTORIES * ENTRIES).map(|i| (i * LARGE_PAGE_SIZE) | LARGE_PAGE),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(mode: Mode) -> CpuState {
        Start {
            mode,
            address: 0x10_0200,
            registers: vec![(Gpr::Rsi, 0x1234)],
        }
        .into_state(0x806f8)
    }

    #[test]
    fn protected_mode_starts_flat_without_paging() {
        let cpu = start(Mode::Protected);
        assert!(cpu.protected() && !cpu.long_mode());
        assert_eq!(cpu.cr0 & (cr0::PG | cr0::CD | cr0::NW), 0);
        assert_eq!((cpu.code_bits(), cpu.stack_bits()), (32, 32));
        assert_eq!(cpu.seg(Seg::Ss).limit, u32::MAX);
        assert_eq!(cpu.gpr[Gpr::Rsi as usize], 0x1234);
        assert_eq!(cpu.gpr[Gpr::Rdx as usize], 0);
    }

    #[test]
    fn long_mode_starts_with_the_first_four_gib_mapped_to_themselves() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        write_long_mode_tables(&memory).unwrap();
        let cpu = start(Mode::Long);
        assert!(cpu.code64());
        let load = |address: u64| memory.load_u64(GuestPhysAddr(address)).unwrap();
        let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
        for address in [0, 0x10_0200, 0xbfff_ffff, 0xffff_ffff_u64] {
            let pml4e = load(cpu.cr3);
            let pdpte = load(frame(pml4e) + (address >> 30) * 8);
            let pde = load(frame(pdpte) + (address >> 21 & 511) * 8);
            assert_eq!((pml4e & 0x83, pdpte & 0x83, pde & 0x83), (3, 3, 0x83));
            assert_eq!(frame(pde) | address & 0x1f_ffff, address);
        }
        assert_eq!(load(frame(load(cpu.cr3)) + 4 * 8), 0);
    }

    #[test]
    fn the_tables_stay_in_their_place() {
        let end = layout::PAGE_TABLES + (2 + DIRECTORIES) * PAGE_SIZE;
        assert!(end <= layout::CMDLINE);
        assert_eq!(
            layout::CMDLINE + layout::CMDLINE_SIZE as u64,
            layout::STRUCTURES.end
        );
    }

    #[test]
    fn the_descriptors_in_memory_agree_with_the_hidden_parts() {
        let cpu = start(Mode::Long);
        for seg in [Seg::Cs, Seg::Ds] {
            let segment = cpu.seg(seg);
            let descriptor = gdt()[usize::from(segment.selector / 8)];
            assert_eq!(
                (descriptor >> 40) as u16 & 0xf0ff,
                segment.rights,
                "{seg:?}"
            );
            assert_eq!(descriptor >> 48 & 0xf, 0xf, "{seg:?}");
        }
    }
}
