//! What differs between 64-bit and 32-bit code: the width of addresses and of what the stack holds.
//!
//! The registers of 32-bit code are the lower halves of those that 64-bit code has. Its addresses
//! are computed with 32 bits, which wrap at 4 GiB and leave the upper half clear.

use crate::asm::{Mem, Reg, at};
use crate::block::Block;
use crate::registers::GUEST_RSP;
use iced_x86::{Code, CodeSize, Instruction, OpKind, Register};

/// Bytes of what the stack holds.
pub fn word(ins: &Instruction) -> i64 {
    if is_code32(ins) { 4 } else { 8 }
}

/// Whether the instruction is one of 32-bit code.
pub fn is_code32(ins: &Instruction) -> bool {
    ins.code_size() == CodeSize::Code32
}

/// Whether the instruction has a memory operand that is addressed by 16 bits.
pub fn has_address16(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|n| match ins.op_kind(n) {
        OpKind::Memory => {
            let (base, index) = (ins.memory_base(), ins.memory_index());
            let none = base == Register::None && index == Register::None;
            base.is_gpr16() || index.is_gpr16() || none && ins.memory_displ_size() == 2
        }
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => true,
        _ => false,
    })
}

/// Whether the instruction has a memory operand by ModRM that is addressed by 32 bits.
pub fn has_address32(ins: &Instruction) -> bool {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let none = base == Register::None && index == Register::None;
    base.is_gpr32()
        || index.is_gpr32()
        || base == Register::EIP
        || none && ins.memory_displ_size() == 4
}

/// MOV between AL or EAX and an address in the instruction.
pub fn is_absolute_move(ins: &Instruction) -> bool {
    matches!(
        ins.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}

impl Block<'_> {
    /// Whether it is 64-bit code.
    pub const fn wide(&self) -> bool {
        !self.mode.is_code32()
    }

    /// Bytes of what the stack holds.
    pub const fn word(&self) -> i32 {
        if self.wide() { 8 } else { 4 }
    }

    /// An address as wide as they are.
    pub const fn wrap(&self, address: u64) -> u64 {
        if self.wide() {
            address
        } else {
            address & 0xffff_ffff
        }
    }

    /// Loads a word.
    pub fn load_word(&mut self, to: Reg, from: Mem) {
        self.asm.mem(self.wide(), &[0x8b], to, from);
    }

    /// Stores a word.
    pub fn store_word(&mut self, to: Mem, from: Reg) {
        self.asm.mem(self.wide(), &[0x89], from, to);
    }

    /// Computes an address.
    pub fn lea_word(&mut self, to: Reg, address: Mem) {
        self.asm.lea(self.wide(), to, address);
    }

    /// Copies a register, as much of it as a word has.
    pub fn move_word(&mut self, to: Reg, from: Reg) {
        self.asm.reg(self.wide(), &[0x8b], to, from);
    }

    /// Adds to the stack pointer, at the latest before something asks for it. The flags stay.
    pub fn add_to_stack(&mut self, bytes: i32) {
        self.owed += bytes;
    }

    /// Brings the stack pointer up to date. The flags stay.
    pub fn settle_stack(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        if owed != 0 {
            self.lea_word(GUEST_RSP, at(GUEST_RSP, owed));
        }
    }
}
