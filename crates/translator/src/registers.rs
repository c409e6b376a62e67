//! Where the guest's registers live.

use crate::asm::{self, Reg};
use iced_x86::{Instruction, OpKind, Register};

/// Where a general-purpose register of the guest lives while translated code runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a register of the host.
    Host(Reg),
    /// In the environment: the rarest three.
    Memory,
}

/// By the guest's numbers. RAX and R10 are scratch, RSP is the host's stack.
pub const GUEST_GPRS: [Place; 16] = [
    Place::Host(asm::R9),
    Place::Host(asm::RCX),
    Place::Host(asm::RDX),
    Place::Host(asm::RBX),
    Place::Host(asm::R11),
    Place::Host(asm::RBP),
    Place::Host(asm::RSI),
    Place::Host(asm::RDI),
    Place::Host(asm::R8),
    Place::Memory,
    Place::Memory,
    Place::Memory,
    Place::Host(12),
    Place::Host(13),
    Place::Host(14),
    Place::Host(15),
];

/// The numbers of those that live in the environment.
pub const UNPINNED: std::ops::Range<usize> = 9..12;

/// The host's register of the guest's RAX.
pub const GUEST_RAX: Reg = asm::R9;
/// The host's register of the guest's RSP.
pub const GUEST_RSP: Reg = asm::R11;
/// The guest's number of RSP.
pub const RSP_NUMBER: u8 = 4;

/// Where the register of number `number` lives.
pub const fn place(number: u8) -> Place {
    GUEST_GPRS[(number & 15) as usize]
}

/// The number of a general-purpose register of any size; AH, CH, DH and BH have those of RAX, RCX,
/// RDX and RBX.
pub fn number(register: Register) -> u8 {
    let number = register.number() as u8;
    if !register.is_gpr8() {
        return number;
    }
    match number {
        0..4 => number,
        4..8 => number - 4,
        _ => number - 4,
    }
}

/// Whether it is AH, CH, DH or BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The general-purpose registers that an instruction names, those of an address with them.
fn named(ins: &Instruction) -> impl Iterator<Item = Register> {
    let operands = (0..ins.op_count())
        .filter(|&n| ins.op_kind(n) == OpKind::Register)
        .map(|n| ins.op_register(n));
    operands
        .chain([ins.memory_base(), ins.memory_index()])
        .filter(|register| register.is_gpr())
}

/// Whether an instruction names a register that lives in the environment.
pub fn names_environment(ins: &Instruction) -> bool {
    named(ins).any(|register| place(number(register)) == Place::Memory)
}

/// Whether an instruction names AH, CH, DH or BH.
pub fn names_high_byte(ins: &Instruction) -> bool {
    named(ins).any(is_high_byte)
}

/// Whether an instruction names the stack pointer.
pub fn names_stack_pointer(ins: &Instruction) -> bool {
    named(ins).any(|register| number(register) == RSP_NUMBER)
}
