//! The plain instructions of a block: those that go on to the next one and write to nothing that the block relies on.

use super::{RDI, RSI};
use crate::catalogue::{Catalogue, is_branch};
use crate::encode::{Addressing, Encoded, encode};
use crate::flags::Defined;
use crate::generate::{fits_in_sequence, leaves_alone, patch};
use crate::random::Random;
use crate::report::NOP;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};

/// How often an instruction is looked for.
const ATTEMPTS: u32 = 64;

/// Finds plain instructions.
#[derive(Debug)]
pub struct Plain<'a> {
    catalogue: &'a Catalogue,
    /// Registers that must not be written.
    pinned: Vec<usize>,
    /// The same, and what string instructions move.
    still: Vec<usize>,
    /// Whether the stack may be used and changed.
    stack: bool,
    /// The flags that all may rely on.
    defined: Defined,
}

impl<'a> Plain<'a> {
    /// Instructions of `catalogue` that leave the registers `pinned` alone, and the stack, unless `stack`, and rely on the flags
    /// `defined`.
    pub fn new(
        catalogue: &'a Catalogue,
        pinned: Vec<usize>,
        stack: bool,
        defined: Defined,
    ) -> Self {
        let still = [&pinned[..], &[RSI, RDI]].concat();
        Self {
            catalogue,
            pinned,
            still,
            stack,
            defined,
        }
    }

    /// One of them, if there is one with the encoding `code`, else mostly one that does not fault.
    pub fn instruction(&self, random: &mut Random, code: Option<Code>) -> Option<Encoded> {
        let attempts = if code.is_some() { 1 } else { ATTEMPTS };
        let found = (0..attempts).find_map(|_| {
            let codes = if random.one_in(4) {
                self.catalogue.codes()
            } else {
                self.catalogue.calm()
            };
            let code = code.unwrap_or_else(|| random.pick(codes));
            let accept = &mut |instruction: &Instruction| self.accepts(instruction);
            let fits = fits(code) && self.defined.allows_code(code);
            fits.then(|| encode(code, random, Addressing::Pinned, accept))?
        });
        let mut encoded = found?;
        tame(&mut encoded, random);
        Some(encoded)
    }

    /// The bytes of some of them, exactly `length`.
    pub fn of_length(&self, random: &mut Random, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        if length >= 2 && random.one_in(8) {
            // A branch over the rest.
            bytes.extend([0xeb, (length - 2) as u8]);
            bytes.resize(length, NOP);
            return bytes;
        }
        for _ in 0..8 {
            let room = length - bytes.len();
            if room > 0
                && let Some(encoded) = self.instruction(random, None)
                && encoded.bytes.len() <= room
            {
                bytes.extend(encoded.bytes);
            }
        }
        bytes.resize(length, NOP);
        bytes
    }

    fn accepts(&self, instruction: &Instruction) -> bool {
        let string = instruction.is_string_instruction();
        let stack = instruction.is_stack_instruction();
        let pinned = if string { &self.pinned } else { &self.still };
        let loads_stack_pointer = instruction.op0_register().full_register() == Register::RSP;
        leaves_alone(instruction, pinned)
            && self.defined.allows(instruction)
            && (self.stack || !(string || stack))
            && !(stack && loads_stack_pointer)
            && !strays(instruction)
    }
}

/// Whether an instruction with `code` can be a plain one.
fn fits(code: Code) -> bool {
    let implicit = matches!(
        code.mnemonic(),
        Mnemonic::Clzero | Mnemonic::Movdir64b | Mnemonic::Enqcmd | Mnemonic::Enqcmds
    );
    fits_in_sequence(code) && !is_branch(code) && !implicit
}

/// Whether a store of `instruction` could go far from its base register.
fn strays(instruction: &Instruction) -> bool {
    let bit_string = matches!(
        instruction.mnemonic(),
        Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && instruction.op1_kind() == OpKind::Register;
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    let absolute = (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory)
        && instruction.memory_base() == Register::None;
    (to_memory && (bit_string || instruction.is_vsib())) || absolute
}

/// Keeps memory operands near their base registers, and mostly aligned.
fn tame(encoded: &mut Encoded, random: &mut Random) {
    let offsets = encoded.offsets;
    let compressed = encoded.instruction.op_code().encoding() == EncodingKind::EVEX;
    let value = match offsets.displacement_size() {
        1 if compressed => random.below(3) as i64,
        1 => i64::from(random.byte() & 0x70),
        4 if random.one_in(8) => random.below(2048) as i64 - 1024,
        4 => 64 * (random.below(32) as i64 - 16),
        _ => return,
    };
    let (at, size) = (offsets.displacement_offset(), offsets.displacement_size());
    patch(&mut encoded.bytes, at, size, value);
}
