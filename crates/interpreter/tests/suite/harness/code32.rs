//! Machines that run 32-bit code: in protected mode with and without paging, and in compatibility
//! mode under a 64-bit kernel.
//!
//! All of them have the first GiB of addresses mapped to itself, and, if they have paging, the page
//! below 4 GiB at [`TOP`].

use super::{CODE, GDT, HANDLERS, Machine, STACK, TABLES, state64, write_u64};
use belljar_engine::Engine;
use belljar_memory::GuestPhysAddr;
use belljar_x86::bits::{cr0, cr4};
use belljar_x86::{CpuState, Seg, Segment};
use iced_x86::code_asm::CodeAssembler;

/// Where the last page below 4 GiB lies.
pub const TOP: u64 = 0x23f_f000;
/// The stack of exceptions that change the privilege level.
pub const KERNEL_STACK: u64 = 0x38_0000;
/// A selector of 32-bit code at CPL 0.
pub const CODE32: u16 = 0x18;

const IDT32: u64 = 0xc000;
const DIRECTORY: u64 = 0x1_8000;
const TASK: u64 = 0xb000;
const PRESENT_LARGE_USER: u64 = 0x87;

/// Where 32-bit code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// Protected mode without paging.
    Unpaged,
    /// Protected mode with 32-bit paging.
    Paged,
    /// A program there.
    PagedProgram,
    /// Compatibility mode, in the kernel.
    Compatible,
    /// A program in compatibility mode.
    CompatibleProgram,
}

impl World {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Unpaged,
        Self::Paged,
        Self::PagedProgram,
        Self::Compatible,
        Self::CompatibleProgram,
    ];

    /// Whether there are programs' rights alone.
    pub const fn is_program(self) -> bool {
        matches!(self, Self::PagedProgram | Self::CompatibleProgram)
    }

    /// Whether the last page below 4 GiB is mapped.
    pub const fn has_top(self) -> bool {
        !matches!(self, Self::Unpaged)
    }

    const fn is_long(self) -> bool {
        matches!(self, Self::Compatible | Self::CompatibleProgram)
    }

    /// The processor's state at [`CODE`], with flat segments.
    pub fn state(self) -> CpuState {
        let mut cpu = state64();
        let code = &mut cpu.segments[Seg::Cs as usize];
        code.selector = CODE32;
        code.rights = code.rights & !Segment::LONG | Segment::BIG | Segment::WRITABLE;
        if !self.is_long() {
            cpu.efer = 0;
            cpu.cr4 = cpu.cr4 & !cr4::PAE | cr4::PSE;
            cpu.cr3 = DIRECTORY;
            cpu.idtr.base = IDT32;
            cpu.idtr.limit = 0x7ff;
        }
        if self == Self::Unpaged {
            cpu.cr0 &= !cr0::PG;
        }
        if self.is_program() {
            for segment in &mut cpu.segments {
                segment.rights |= 3 << 5;
                segment.selector |= 3;
            }
            cpu.cpl = 3;
            cpu.tr = Segment {
                selector: 0x20,
                rights: Segment::PRESENT | 0b1011,
                limit: 0x67,
                base: TASK,
                usable: true,
            };
        }
        cpu
    }

    /// A machine that will run `code` in the state `cpu`, which comes of [`state`](Self::state).
    pub fn machine(self, engine: &dyn Engine, code: &[u8], cpu: CpuState) -> Machine {
        let machine = Machine::with_engine(engine, code, cpu);
        let memory = &machine.memory;
        write_u64(memory, GDT + u64::from(CODE32), 0x00cf_9b00_0000_ffff);
        for vector in 0..256 {
            let handler = HANDLERS + vector * 16;
            let gate =
                handler & 0xffff | u64::from(CODE32) << 16 | 0xee00 << 32 | handler >> 16 << 48;
            write_u64(memory, IDT32 + vector * 8, gate);
        }
        for n in 0..256 {
            let entry = (n << 22 | PRESENT_LARGE_USER) as u32;
            machine.write(DIRECTORY + n * 4, &entry.to_le_bytes());
        }
        let top = ((TOP & !0x3f_ffff) | PRESENT_LARGE_USER) as u32;
        machine.write(DIRECTORY + 1023 * 4, &top.to_le_bytes());
        write_u64(memory, TABLES + 0x1018, (TABLES + 0x5000) | 7);
        let top = (TOP & !0x1f_ffff) | PRESENT_LARGE_USER;
        write_u64(memory, TABLES + 0x5ff8, top);
        machine.write(TASK + 4, &KERNEL_STACK.to_le_bytes());
        if !self.is_long() {
            machine.write(TASK + 8, &[0x10, 0]);
        }
        machine.write(TASK + 0x66, &[0x68, 0]);
        machine
    }

    /// Runs `code` to UD2 or another fault.
    pub fn run(
        self,
        engine: &dyn Engine,
        code: &[u8],
        change: impl FnOnce(&mut CpuState),
    ) -> Machine {
        let mut cpu = self.state();
        change(&mut cpu);
        let mut machine = self.machine(engine, code, cpu);
        machine.run();
        machine
    }
}

impl Machine {
    /// A 32-bit word of memory.
    pub fn word32(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }
}

/// Assembles 32-bit code at [`CODE`], with UD2 at its end.
pub fn assemble32(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble32_at(CODE, write)
}

/// Assembles 32-bit code at an address, with UD2 at its end.
pub fn assemble32_at(at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(32).unwrap();
    write(&mut assembler);
    assembler.ud2().unwrap();
    assembler.assemble(at).unwrap()
}

const _: () = assert!(KERNEL_STACK > STACK);
