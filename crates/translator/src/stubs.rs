//! The code that all translations share: entry, exits, TLB refills, vector state.

use crate::asm::{self, Alu, Asm, Cond, R10, RAX, RSP, Reg, at};
use crate::env::{Env, LATER, NEVER};
use crate::exit::Exit;
use crate::far;
use crate::registers::{GUEST_GPRS, Place};
use crate::{vectors, x87};
use belljar_interpreter::windows::Opened;
use belljar_memory::PAGE_SIZE;
use belljar_passthrough::code_memory::CodeMemory;
use belljar_passthrough::fault::{PAGE_RECOVERY, RECOVERY};
use belljar_x86::Access;

/// Registers of the guest that Rust code may change.
const VOLATILE: [Reg; 8] = [
    asm::RCX,
    asm::RDX,
    asm::RSI,
    asm::RDI,
    asm::R8,
    asm::R9,
    R10,
    asm::R11,
];
/// Registers that Rust code expects back.
const PRESERVED: [Reg; 6] = [asm::RBX, asm::RBP, 12, 13, 14, 15];

/// Offsets of the shared code in code memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stubs {
    /// Called by Rust with the address to go to: loads the guest's registers.
    pub enter: u32,
    /// Leaves with the flags in the host's.
    pub exit_host: u32,
    /// Leaves with the flags in the environment.
    pub exit_saved: u32,
    /// Fills the TLB for a read of as many bytes as EAX says at the address in R10.
    pub refill_read: u32,
    /// The same for a write.
    pub refill_write: u32,
    /// Loads the vector state. Changes RAX and the flags.
    pub load_vector: u32,
    /// Loads the x87 state. Changes RAX, not the flags.
    pub load_x87: u32,
    /// Looks into the TLB for what is not where its near copy is.
    pub far: far::Stubs,
}

/// Fills the TLB's first level; tells whether it could.
extern "sysv64" fn refill(env: *mut Env, linear: u64, size: u64, write: u64) -> u64 {
    // SAFETY: generated code passes its environment, which the vCPU that runs the code owns; nothing
    // else refers to it, nor to the processor, while generated code runs.
    let core = unsafe {
        (*env).misses += 1;
        (*env).page_fault = 0;
        (*env).straddles = u64::from(linear % PAGE_SIZE + size > PAGE_SIZE);
        if (*env).straddles != 0 {
            return 0;
        }
        let core = &mut (*(*env).processor).core;
        core.set_access((*env).system);
        core.cpu.cpl = (*env).cpl as u8;
        core
    };
    if core.mmu.must_settle() {
        return 0;
    }
    let access = if write != 0 {
        Access::Write
    } else {
        Access::Read
    };
    match core.mmu.make_fast(&core.cpu, linear, access) {
        Ok(fast) => u64::from(fast),
        Err(exception) => {
            core.exception = exception;
            // SAFETY: as above.
            unsafe { (*env).page_fault = 1 };
            0
        }
    }
}

/// Maps the page at `host` of a window, at which generated code had a page fault; tells whether it can try
/// again.
extern "sysv64" fn open_window(env: *mut Env, host: u64, write: u64) -> u64 {
    // SAFETY: as in `refill`.
    let core = unsafe {
        let core = &mut (*(*env).processor).core;
        core.set_access((*env).system);
        core.cpu.cpl = (*env).cpl as u8;
        core
    };
    let opened = core.mmu.open_window(&core.cpu, host as usize, write != 0);
    // SAFETY: as above.
    let unmended = unsafe { &mut (*env).unmended };
    *unmended = match opened {
        Opened::Now => return 1,
        Opened::Later => LATER,
        Opened::Never => NEVER,
    };
    0
}

/// Writes the shared code, the first in `memory`, for a TLB of `tlb_entries` entries.
pub fn write(memory: &mut CodeMemory, tlb_entries: usize) -> Option<Stubs> {
    let mut asm = Asm::new();
    asm.restart(memory.next(), memory.next_rare());
    let mut stubs = Stubs::default();
    // Faults of the host continue at the start of code memory.
    let fault = asm.label();
    asm.jmp(fault);
    while asm.here() < RECOVERY as u32 {
        asm.byte(0x90);
    }
    asm.jmp(fault);
    while asm.here() < PAGE_RECOVERY as u32 {
        asm.byte(0x90);
    }
    let page_fault = asm.label();
    asm.jmp(page_fault);
    let spill = asm.here();
    vectors::spill(&mut asm);
    stubs.load_vector = asm.here();
    vectors::load(&mut asm);
    let spill_x87 = asm.here();
    x87::spill(&mut asm);
    stubs.load_x87 = asm.here();
    x87::load(&mut asm);
    asm.bind(page_fault);
    recover_page(&mut asm, &stubs, spill, fault);
    asm.bind(fault);
    asm.store(Env::fault(), R10);
    asm.flags_to_ax();
    asm.store(Env::temp(0), RAX);
    asm.store_imm32(Env::exit(), Exit::Fault.encode());
    let leave = asm.label();
    asm.jmp(leave);
    stubs.exit_host = asm.here();
    asm.flags_to_ax();
    asm.store32(Env::flags(), RAX);
    asm.jmp(leave);
    stubs.exit_saved = asm.here();
    asm.bind(leave);
    exit(&mut asm, spill, spill_x87);
    stubs.enter = asm.here();
    enter(&mut asm);
    stubs.refill_read = asm.here();
    refill_stub(&mut asm, &stubs, spill, false);
    stubs.refill_write = asm.here();
    refill_stub(&mut asm, &stubs, spill, true);
    stubs.far = far::write(&mut asm, tlb_entries);
    memory.append(asm.finish()?.code)?;
    Some(stubs)
}

/// The registers of the guest that live in registers of the host.
fn pinned() -> impl Iterator<Item = (u8, Reg)> {
    (0..16).filter_map(|guest| match GUEST_GPRS[guest as usize] {
        Place::Host(host) => Some((guest, host)),
        Place::Memory => None,
    })
}

fn enter(asm: &mut Asm) {
    for register in PRESERVED {
        asm.push(register);
    }
    asm.store(Env::host_stack(), RSP);
    // The environment is aligned as the ABI wants the stack to be where something is called.
    asm.load(RSP, Env::own());
    asm.store(Env::temp(0), asm::RDI);
    for (guest, host) in pinned() {
        asm.load(host, Env::gpr(guest));
    }
    asm.jmp_mem(Env::temp(0));
}

fn exit(asm: &mut Asm, spill: u32, spill_x87: u32) {
    for (guest, host) in pinned() {
        asm.store(Env::gpr(guest), host);
    }
    for (live, spill) in [(Env::x87_live(), spill_x87), (Env::vector_live(), spill)] {
        let spilled = asm.label();
        asm.cmp_byte(live, 0);
        asm.jcc(Cond::E, spilled);
        asm.call_to(spill);
        asm.bind(spilled);
    }
    asm.load(RSP, Env::host_stack());
    for register in PRESERVED.into_iter().rev() {
        asm.pop(register);
    }
    asm.ret();
}

/// Called with the address in R10 and the size in EAX. Keeps all registers but RAX. If the TLB cannot be filled it does
/// not return but leaves for the instruction of the site.
fn refill_stub(asm: &mut Asm, stubs: &Stubs, spill: u32, write: bool) {
    for register in VOLATILE {
        asm.push(register);
    }
    asm.mov(asm::RDX, RAX);
    asm.load32(RAX, Env::vector_live());
    asm.push(RAX);
    call_unless_zero(asm, RAX, spill);
    asm.load(asm::RDI, Env::own());
    asm.mov(asm::RSI, R10);
    asm.mov_imm(asm::RCX, u64::from(write));
    asm.mov_imm(RAX, refill as *const () as u64);
    asm.call_reg(RAX);
    asm.reg(false, &[0x85], RAX, RAX);
    let failed = asm.label();
    asm.jcc(Cond::E, failed);
    asm.pop(RAX);
    call_unless_zero(asm, RAX, stubs.load_vector);
    restore_volatile(asm);
    asm.ret();
    asm.bind(failed);
    asm.pop(RAX);
    restore_volatile(asm);
    asm.alu_imm(Alu::Add, true, RSP, 8);
    asm.load32(RAX, Env::site());
    asm.alu_imm(Alu::Or, false, RAX, Exit::Fallback(0).encode() as i32);
    asm.store32(Env::exit(), RAX);
    asm.jmp_to(stubs.exit_saved);
}

/// A page fault: see [`PAGE_RECOVERY`]. Goes back to the instruction if its page is there now; else the
/// fault is one like others.
fn recover_page(asm: &mut Asm, stubs: &Stubs, spill: u32, fault: asm::Label) {
    asm.byte(0x9c); // pushf
    for register in VOLATILE {
        asm.push(register);
    }
    asm.mov(asm::RDX, RAX);
    asm.load32(RAX, Env::vector_live());
    asm.push(RAX);
    // The fourteenth word: aligned as the ABI wants it.
    asm.push(RAX);
    call_unless_zero(asm, RAX, spill);
    asm.load(asm::RDI, Env::own());
    asm.mov(asm::RSI, R10);
    asm.mov_imm(RAX, open_window as *const () as u64);
    asm.call_reg(RAX);
    asm.pop(asm::RCX);
    asm.store(at(RSP, 0), RAX);
    call_unless_zero(asm, asm::RCX, stubs.load_vector);
    asm.pop(RAX);
    asm.reg(false, &[0x85], RAX, RAX);
    let failed = asm.label();
    asm.jcc(Cond::E, failed);
    restore_volatile(asm);
    asm.byte(0x9d); // popf
    asm.pop(R10);
    asm.pop(RAX);
    asm.ret();
    asm.bind(failed);
    restore_volatile(asm);
    asm.byte(0x9d);
    asm.pop(R10);
    asm.pop(RAX);
    asm.pop(R10);
    asm.jmp(fault);
}

/// Calls `target` if the low half of a register is not 0. Changes the flags.
fn call_unless_zero(asm: &mut Asm, register: Reg, target: u32) {
    asm.reg(false, &[0x85], register, register); // test
    let over = asm.label();
    asm.jcc(Cond::E, over);
    asm.call_to(target);
    asm.bind(over);
}

fn restore_volatile(asm: &mut Asm) {
    for register in VOLATILE.into_iter().rev() {
        asm.pop(register);
    }
}
