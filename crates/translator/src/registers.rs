//! Where the guest's registers live.

use crate::asm::{self, Reg};
use iced_x86::{Instruction, Register};

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
/// RDX and RBX. Of others the number in their file.
pub fn number(register: Register) -> u8 {
    const LOW: u32 = Register::AL as u32;
    const WORDS: u32 = Register::AX as u32;
    const LAST: u32 = Register::R15 as u32;
    match register as u32 {
        // AL to BL, AH to BH, SPL to R15L.
        place @ LOW..WORDS => match (place - LOW) as u8 {
            number @ 0..4 => number,
            number => number - 4,
        },
        // AX to R15W, EAX to R15D, RAX to R15.
        place @ WORDS..=LAST => ((place - WORDS) & 15) as u8,
        _ => register.number() as u8,
    }
}

/// The register of that number that has `size` bytes, not one of AH, CH, DH and BH.
pub fn of_size(size: usize, number: u8) -> Register {
    let first = match size {
        8 => Register::RAX,
        4 => Register::EAX,
        2 => Register::AX,
        _ if number < 4 => Register::AL,
        // AH, CH, DH and BH lie between.
        _ => Register::AH,
    };
    first + u32::from(number)
}

/// Whether it is AH, CH, DH or BH.
pub fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

/// The general-purpose registers that an instruction names, those of an address with them: a bit for each
/// number, and [`HIGH_BYTE`].
pub fn named(ins: &Instruction) -> u32 {
    let bit = |register: Register| {
        if !register.is_gpr() {
            return 0;
        }
        let high = if is_high_byte(register) { HIGH_BYTE } else { 0 };
        1 << number(register) | high
    };
    // What is no register of an operand is none at all.
    bit(ins.op0_register())
        | bit(ins.op1_register())
        | bit(ins.op2_register())
        | bit(ins.op3_register())
        | bit(ins.memory_base())
        | bit(ins.memory_index())
}

/// The bit of AH, CH, DH and BH among those that are [`named`].
const HIGH_BYTE: u32 = 1 << 16;
/// The bits of the registers that live in the environment.
const IN_ENVIRONMENT: u32 = (1 << UNPINNED.end) - (1 << UNPINNED.start);

/// Whether an instruction names a register that lives in the environment.
pub fn names_environment(ins: &Instruction) -> bool {
    named(ins) & IN_ENVIRONMENT != 0
}

/// Whether an instruction names AH, CH, DH or BH.
pub fn names_high_byte(ins: &Instruction) -> bool {
    named(ins) & HIGH_BYTE != 0
}

/// Whether an instruction names the stack pointer.
pub fn names_stack_pointer(ins: &Instruction) -> bool {
    named(ins) & 1 << RSP_NUMBER != 0
}
