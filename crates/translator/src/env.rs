//! What generated code reaches through GS: the environment of one vCPU.

use crate::asm::{Mem, env};
use belljar_interpreter::InterpreterVcpu;
use belljar_interpreter::tlb::{Entries, Entry, NEAR, NearPair};
use belljar_x86::CpuState;
use belljar_x86::state::VectorState;
use std::mem::offset_of;

/// Entries of each jump cache.
pub const JUMPS: usize = 1 << 16;
/// Jump caches: one for each [`Space`](crate::mode::Space).
pub const JUMP_CACHES: usize = 6;
/// Cells for jumps to other pages.
pub const CELLS: usize = 1 << 16;

/// The slot of an address in the jump caches. Generated code computes it likewise. Jumps to two
/// addresses that differ in the last bit alone are rare.
pub const fn jump_slot(rip: u64) -> usize {
    (rip ^ (rip >> 12)) as u32 as usize / 2 % JUMPS
}

/// An entry of a jump cache, which does not cross a line of the host's cache.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Jump {
    /// Guest address.
    pub key: u64,
    /// Host address of its block.
    pub target: u64,
}

/// FXSAVE's image.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub struct Image(pub [u8; crate::x87::IMAGE]);

/// [`Env::switched`]: the privilege level did not change.
pub const NOTHING: u32 = 0;
/// [`Env::switched`]: SYSCALL.
pub const SYSCALL: u32 = 1;
/// [`Env::switched`]: SYSRET.
pub const SYSRET: u32 = 2;

/// The environment of one vCPU. GS holds its address while the vCPU runs.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Env {
    /// General-purpose registers: three of them always, all of them outside generated code.
    pub gpr: [u64; 16],
    /// The status flags as `lahf; seto al` leaves them in AX, while they are not in the host's.
    pub flags: u64,
    /// IF, at its place in RFLAGS.
    pub interrupts: u32,
    /// The other flags of RFLAGS, without RF and VM.
    pub system: u32,
    /// What is heeded while IF is clear.
    pub heeded_off: u32,
    /// What is heeded while IF is set.
    pub heeded_on: u32,
    /// KERNEL_GS_BASE.
    pub kernel_gs: u64,
    /// The current privilege level.
    pub cpl: u32,
    /// What changed the privilege level without the interpreter, last: [`NOTHING`], [`SYSCALL`] or
    /// [`SYSRET`]. CS and SS are still those of before.
    pub switched: u32,
    /// Where SYSCALL leads; 0 if SYSCALL and SYSRET are the interpreter's.
    pub system_calls: u64,
    /// The flags that SYSCALL keeps.
    pub kept_flags: u32,
    /// The last access that missed the TLB raises a page fault, which the processor holds.
    pub page_fault: u32,
    /// The selectors of CS and, in the upper half, SS.
    pub selectors: u64,
    /// Those that SYSCALL and SYSRET load.
    pub switched_selectors: [u64; 2],
    /// What the host's time-stamp counter is ahead of the guest's.
    pub ahead: u64,
    /// Whether generated code may read the time-stamp counter.
    pub may_read_time: u32,
    /// The processor's registers, of which those that generated code does not hold are valid.
    pub cpu: *const CpuState,
    /// Bases of FS and GS.
    pub bases: [u64; 2],
    /// The vCPU's attention word.
    pub attention: *const u32,
    /// Reasons of the attention word that are heeded now.
    pub heeded: u32,
    /// Guest-virtual address of the page whose relative code runs.
    pub page: u64,
    /// Why generated code was left; see [`Exit`](crate::exit::Exit).
    pub exit: u32,
    /// The site whose access missed the TLB.
    pub site: u32,
    /// Whether the vector registers of the host are the guest's.
    pub vector_live: u32,
    /// Whether the x87 state of the host is the guest's.
    pub x87_live: u32,
    /// The opcode of the last x87 instruction, 11 bits.
    pub x87_opcode: u32,
    /// Its address.
    pub x87_code: u64,
    /// The address of the last operand of x87 in memory, within its segment.
    pub x87_data: u64,
    /// Target of an indirect jump that missed the jump cache.
    pub target: u64,
    /// Where in generated code a fault of the host happened.
    pub fault: u64,
    /// Values on their way.
    pub temp: [u64; 4],
    /// The host's addresses that groups of accesses share.
    pub shared: [u64; crate::groups::MOST],
    /// Whether the last miss was an access to two pages.
    pub straddles: u64,
    /// Instructions that may still be executed, in counting code.
    pub budget: u64,
    /// Misses of the TLB's first level.
    pub misses: u64,
    /// The vector state while it is not in the host's registers.
    pub vector: *mut VectorState,
    /// The environment itself.
    pub own: *mut Self,
    /// The processor.
    pub processor: *mut InterpreterVcpu,
    /// Where FXSAVE and FXRSTOR store and find their image.
    pub x87_image: Image,
    /// Where jumps to other pages lead.
    pub cells: [u64; CELLS],
    /// Jump caches.
    pub jumps: [[Jump; JUMPS]; JUMP_CACHES],
    /// The TLB's first level.
    pub tlb: Entries,
}

macro_rules! field {
    ($name:ident) => {
        pub const fn $name() -> Mem {
            env(offset_of!(Env, $name))
        }
    };
}

impl Env {
    /// A zeroed environment.
    pub fn new() -> Box<Self> {
        // SAFETY: every field is an integer, an array of integers or a raw pointer, for all of which
        // zero is a value.
        let mut env = unsafe { Box::<Self>::new_zeroed().assume_init() };
        for cache in 0..JUMP_CACHES {
            // Of the others zero is empty.
            env.empty_jump(cache, 0);
        }
        env
    }

    /// Empties a slot of a jump cache: it gets an address that belongs to another slot.
    pub fn empty_jump(&mut self, cache: usize, slot: usize) {
        self.jumps[cache][slot].key = Self::no_jump(slot);
    }

    /// Whether a slot of a jump cache is empty.
    pub fn is_empty_jump(&self, cache: usize, slot: usize) -> bool {
        self.jumps[cache][slot].key == Self::no_jump(slot)
    }

    /// What an empty slot holds.
    const fn no_jump(slot: usize) -> u64 {
        if slot == 0 { 2 } else { 0 }
    }

    /// The place of a general-purpose register.
    pub const fn gpr(number: u8) -> Mem {
        env(offset_of!(Env, gpr) + 8 * number as usize)
    }

    /// The base of FS or GS.
    pub const fn base(gs: bool) -> Mem {
        env(offset_of!(Env, bases) + 8 * gs as usize)
    }

    /// The selectors that `by`, SYSCALL or SYSRET, loads.
    pub const fn switched_selectors(by: u32) -> Mem {
        env(offset_of!(Env, switched_selectors) + 8 * (by - SYSCALL) as usize)
    }

    /// The selector of SS.
    pub const fn stack_selector() -> Mem {
        env(offset_of!(Env, selectors) + 4)
    }

    /// A value on its way.
    pub const fn temp(number: usize) -> Mem {
        env(offset_of!(Env, temp) + 8 * number)
    }

    /// Offset of field `offset` of the entry 0 of the TLB's set `set`.
    pub const fn tlb_field(set: usize, offset: usize) -> usize {
        offset_of!(Env, tlb.all)
            + set * belljar_interpreter::tlb::SIZE * size_of::<Entry>()
            + offset
    }

    /// Offset of a near copy of the TLB's set `set`, of the right to write or to read.
    pub const fn near(set: usize, number: usize, write: bool) -> usize {
        let right = if write {
            offset_of!(NearPair, write)
        } else {
            offset_of!(NearPair, read)
        };
        offset_of!(Env, tlb.near) + (set * NEAR + number) * size_of::<NearPair>() + right
    }

    /// The host's address that the accesses of a group share.
    pub const fn shared(group: u8) -> Mem {
        env(offset_of!(Env, shared) + 8 * group as usize)
    }

    /// A cell.
    pub const fn cell(number: u32) -> Mem {
        env(offset_of!(Env, cells) + 8 * number as usize)
    }

    /// Offset of field `field` of the entry 0 of a jump cache.
    pub const fn jump_field(cache: usize, field: usize) -> usize {
        offset_of!(Env, jumps) + cache * JUMPS * size_of::<Jump>() + field
    }

    /// A word of FXSAVE's image.
    pub const fn x87_image(offset: usize) -> Mem {
        env(offset_of!(Env, x87_image) + offset)
    }

    field!(flags);
    field!(attention);
    field!(heeded);
    field!(interrupts);
    field!(system);
    field!(heeded_off);
    field!(heeded_on);
    field!(kernel_gs);
    field!(cpl);
    field!(switched);
    field!(system_calls);
    field!(kept_flags);
    field!(selectors);
    field!(ahead);
    field!(may_read_time);
    field!(cpu);
    field!(page);
    field!(exit);
    field!(site);
    field!(vector_live);
    field!(x87_live);
    field!(x87_opcode);
    field!(x87_code);
    field!(x87_data);
    field!(target);
    field!(fault);
    field!(budget);
    field!(vector);
    field!(own);
}
