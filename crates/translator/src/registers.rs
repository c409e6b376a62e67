//! Where the guest's registers live.

use crate::asm::{self, Reg};
use iced_x86::Register;

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
