//! The environment of one vCPU: what generated code reaches besides the guest's memory.
//!
//! GS holds its address, and so does the host's stack pointer while a block runs: what is used most lies
//! in the first 128 bytes, which a displacement of one byte reaches. The stack lies below it.
//!
//! Its address is 32 more than a multiple of 64. So a shift by the stack pointer, whose lowest six bits
//! count, is one by 32: it turns an address of the guest into its slot, and no register has to hold the
//! count. Behind the environment, which ends with the table of slots, nothing can be accessed as far as a
//! slot may lead.

use crate::asm::{Mem, env};
use crate::registers::{Place, UNPINNED, place};
use belljar_interpreter::InterpreterVcpu;
use belljar_interpreter::tlb::{Entries, Entry, NEAR, NearPair, Set};
use belljar_interpreter::windows::{REACH, Table};
use belljar_memory::PAGE_SIZE;
use belljar_x86::CpuState;
use belljar_x86::state::VectorState;
use std::io;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

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

/// [`Env::unmended`]: the page may be mapped the next time.
pub const LATER: u32 = 1;
/// [`Env::unmended`]: the page will not be mapped.
pub const NEVER: u32 = 2;

/// The environment.
#[derive(Debug)]
#[repr(C, align(32))]
pub struct Env {
    /// The status flags as `lahf; seto al` leaves them in AX, while they are not in the host's.
    pub flags: u32,
    /// Reasons of the attention word that are heeded now.
    pub heeded: u32,
    /// The vCPU's attention word.
    pub attention: *const u32,
    /// Guest-virtual address of the page whose relative code runs.
    pub page: u64,
    /// The site whose access missed the TLB.
    pub site: u32,
    /// Why generated code was left; see [`Exit`](crate::exit::Exit).
    pub exit: u32,
    /// Whether the vector registers of the host are the guest's.
    pub vector_live: u32,
    /// Whether the x87 state of the host is the guest's.
    pub x87_live: u32,
    /// The general-purpose registers that no register of the host holds.
    pub unpinned: [u64; 3],
    /// The TLB's first level. It begins with the near copies of the stack.
    pub tlb: Entries,
    /// All general-purpose registers outside generated code, in it none.
    pub gpr: [u64; 16],
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
    /// The last page fault in a window could not be mended: [`LATER`] or [`NEVER`].
    pub unmended: u32,
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
    /// The stack pointer of who entered generated code.
    pub host_stack: u64,
    /// The processor.
    pub processor: *mut InterpreterVcpu,
    /// Nothing: it makes the size what the address asks for.
    pub padding: [u64; 4],
    /// Where FXSAVE and FXRSTOR store and find their image.
    pub x87_image: Image,
    /// Where jumps to other pages lead.
    pub cells: [u64; CELLS],
    /// Jump caches.
    pub jumps: [[Jump; JUMPS]; JUMP_CACHES],
    /// What leads from addresses of programs into windows.
    pub windows: Table,
}

// The environment ends with a page.
const _: () = assert!(size_of::<Env>() % 64 == 32);
const _: () = assert!(offset_of!(Env, windows) + size_of::<Table>() == size_of::<Env>());

// The near copies of the stack, but with AC, are reached by a displacement of one byte.
const _: () = assert!(Env::near(Set::Supervisor as usize, 0, true) + size_of::<usize>() < 128);

/// An environment in memory of its own, with the stack of generated code below it.
#[derive(Debug)]
pub struct Room {
    env: NonNull<Env>,
    /// Bytes of the host's addresses in which nothing can be accessed behind it.
    behind: usize,
}

/// The stack: what is called back needs a fraction of it.
const STACK: usize = 256 << 10;
/// No access to what lies below the stack.
const GUARD: usize = 64 << 10;
/// Stack and environment.
const USED: usize = (STACK + size_of::<Env>()).next_multiple_of(PAGE_SIZE as usize);
/// What generated code may try to read behind the table of slots.
const BEHIND: usize = REACH - size_of::<Table>();

impl Room {
    /// A new environment, zeroed but for the jump caches, which are empty.
    ///
    /// # Errors
    /// If the host gives no memory.
    pub fn new() -> io::Result<Self> {
        // A limit of addresses may be too low for windows.
        let mut room = Self::with_behind(BEHIND).or_else(|_| Self::with_behind(0))?;
        room.set_up();
        Ok(room)
    }

    fn with_behind(behind: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let (size, none) = (GUARD + USED + behind, libc::PROT_NONE);
        // SAFETY: a fresh mapping at an address that the host chooses.
        let start = unsafe { libc::mmap(ptr::null_mut(), size, none, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // The table of slots, which is the environment's end, ends with the page.
        let env = start.wrapping_byte_add(GUARD + USED - size_of::<Env>());
        let env = NonNull::new(env.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let room = Self { env, behind };
        let used = start.wrapping_byte_add(GUARD);
        // SAFETY: it is a part of the mapping that nothing has used yet.
        if unsafe { libc::mprotect(used, USED, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(room)
    }

    /// The table of slots, if nothing can be accessed behind it.
    pub fn windows(&mut self) -> Option<NonNull<Table>> {
        (self.behind == BEHIND).then(|| NonNull::from(&mut self.windows))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: `with_behind` mapped as much, and nothing refers to it any more.
        unsafe {
            let end = self.env.as_ptr().add(1);
            let start = end.byte_sub(GUARD + USED);
            libc::munmap(start.cast(), GUARD + USED + self.behind);
        }
    }
}

impl Deref for Room {
    type Target = Env;

    fn deref(&self) -> &Env {
        // SAFETY: the mapping is aligned and large enough, and lives as long as this object, which owns
        // it. Every field is an integer, a raw pointer, or arrays and structures of such, for all of which
        // zero is a value.
        unsafe { self.env.as_ref() }
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut Env {
        // SAFETY: as in `deref`.
        unsafe { self.env.as_mut() }
    }
}

macro_rules! field {
    ($name:ident) => {
        pub const fn $name() -> Mem {
            env(offset_of!(Env, $name))
        }
    };
}

impl Env {
    /// Empties what zero does not empty.
    fn set_up(&mut self) {
        for cache in 0..JUMP_CACHES {
            // Of the others zero is empty.
            self.empty_jump(cache, 0);
        }
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

    /// The place of a general-purpose register: of one that is pinned, that which it has outside generated
    /// code.
    pub const fn gpr(number: u8) -> Mem {
        match place(number) {
            Place::Host(_) => env(offset_of!(Env, gpr) + 8 * number as usize),
            Place::Memory => {
                env(offset_of!(Env, unpinned) + 8 * (number as usize - UNPINNED.start))
            }
        }
    }

    /// Takes the guest's general-purpose registers.
    pub fn set_gpr(&mut self, gpr: &[u64; 16]) {
        self.gpr = *gpr;
        self.unpinned.copy_from_slice(&gpr[UNPINNED]);
    }

    /// Gives them back.
    pub fn take_gpr(&self, gpr: &mut [u64; 16]) {
        *gpr = self.gpr;
        gpr[UNPINNED].copy_from_slice(&self.unpinned);
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

    /// Offset of a near copy of the TLB's set `set`, of the right to write or to read. Number 0 is the
    /// stack's.
    pub const fn near(set: usize, number: usize, write: bool) -> usize {
        let right = if write {
            offset_of!(NearPair, write)
        } else {
            offset_of!(NearPair, read)
        };
        let first = match number {
            0 => offset_of!(Env, tlb.stack) + set * size_of::<NearPair>(),
            _ => offset_of!(Env, tlb.near) + (set * NEAR + number - 1) * size_of::<NearPair>(),
        };
        first + right
    }

    /// Where is said that set `set` has near copies beside the stack's.
    pub const fn near_used(set: usize) -> Mem {
        env(offset_of!(Env, tlb.used) + 4 * set)
    }

    /// Offset of the table that leads into windows.
    pub const fn windows() -> usize {
        offset_of!(Env, windows)
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
    field!(host_stack);
}
