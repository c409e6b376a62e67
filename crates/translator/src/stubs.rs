//! The code that all translations share: entry, exits, TLB refills, vector state.

use crate::asm::{self, Alu, Asm, Cond, R10, RAX, RSP, Reg, at};
use crate::env::{Env, LATER, NEVER};
use crate::exit::Exit;
use crate::far;
use crate::registers::{GUEST_GPRS, Place};
use crate::x87;
use belljar_interpreter::windows::Opened;
use belljar_memory::PAGE_SIZE;
use belljar_passthrough::code_memory::CodeMemory;
use belljar_passthrough::fault::{PAGE_RECOVERY, RECOVERY};
use belljar_passthrough::{has_avx, has_avx512};
use belljar_x86::Access;
use belljar_x86::state::{VectorState, X87};
use std::mem::offset_of;

/// MXCSR as Rust code expects it.
const HOST_MXCSR: u32 = 0x1f80;
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
    /// Loads the vector state. Changes RAX, not the flags.
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
    spill_vector(&mut asm);
    stubs.load_vector = asm.here();
    load_vector(&mut asm);
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

const ZMM: usize = offset_of!(VectorState, zmm);
const K: usize = offset_of!(VectorState, k);
const MXCSR: usize = offset_of!(VectorState, x87) + offset_of!(X87, mxcsr);

/// Stores the vector registers where RAX says, or loads them from there.
fn move_vectors(asm: &mut Asm, store: bool) {
    let place = |number: u8| at(RAX, (ZMM + 64 * usize::from(number)) as i32);
    if has_avx512() {
        for number in 0..32 {
            // VMOVDQU64: R and R' are inverted in the prefix.
            let first = 0x61 | u8::from(number & 8 == 0) << 7 | u8::from(number & 16 == 0) << 4;
            asm.bytes(&[0x62, first, 0xfe, 0x48, if store { 0x7f } else { 0x6f }]);
            // A displacement of 8 bits would count in units of 64.
            asm.bytes(&[0x80 | (number & 7) << 3]);
            asm.bytes(&place(number).disp.to_le_bytes());
        }
        for number in 0..8 {
            // KMOVQ
            asm.bytes(&[0xc4, 0xe1, 0xf8, if store { 0x91 } else { 0x90 }]);
            asm.mem_operand(number, at(RAX, (K + 8 * usize::from(number)) as i32));
        }
        return;
    }
    for number in 0..16 {
        if has_avx() {
            // VMOVDQU
            let prefix = if number < 8 { 0xfe } else { 0x7e };
            asm.bytes(&[0xc5, prefix, if store { 0x7f } else { 0x6f }]);
            asm.mem_operand(number, place(number));
        } else {
            // MOVUPS
            asm.mem(
                false,
                &[0x0f, if store { 0x11 } else { 0x10 }],
                number,
                place(number),
            );
        }
    }
}

fn spill_vector(asm: &mut Asm) {
    asm.load(RAX, Env::vector());
    move_vectors(asm, true);
    asm.mem(false, &[0x0f, 0xae], 3, at(RAX, MXCSR as i32)); // stmxcsr
    asm.store_imm32(Env::temp(3), HOST_MXCSR);
    asm.mem(false, &[0x0f, 0xae], 2, Env::temp(3)); // ldmxcsr
    asm.store_imm32(Env::vector_live(), 0);
    if has_avx() {
        asm.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    asm.ret();
}

fn load_vector(asm: &mut Asm) {
    asm.load(RAX, Env::vector());
    move_vectors(asm, false);
    asm.mem(false, &[0x0f, 0xae], 2, at(RAX, MXCSR as i32));
    asm.store_imm32(Env::vector_live(), 1);
    asm.ret();
}
