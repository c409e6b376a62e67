//! Gives the operands of a single instruction values with which it does something: memory operands that point into the
//! data pages, branches that lead somewhere, divisions that do not all overflow.

use crate::case::Case;
use crate::catalogue::gpr_number;
use crate::compare::is_x87_image;
use crate::encode::Encoded;
use crate::generate::patch;
use crate::layout::{ARENA, DATA, DATA_LEN, PAGE, data_offset};
use crate::random::Random;
use crate::state::{code_address, data_address};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind, Register};

/// A case in the making, whose one instruction is to be aimed.
pub struct Aim<'a> {
    /// The case.
    pub case: &'a mut Case,
    /// Its random numbers.
    pub random: &'a mut Random,
}

impl Aim<'_> {
    /// Aims the operands of `encoded`, which lies at the case's RIP; constants in its bytes may change.
    pub fn instruction(&mut self, encoded: &mut Encoded) {
        let instruction = encoded.instruction;
        if (0..instruction.op_count()).any(|n| instruction.op_kind(n) == OpKind::Memory) {
            let target = self.target(&instruction);
            self.memory(encoded, target);
            if matches!(
                instruction.mnemonic(),
                Mnemonic::Fxrstor | Mnemonic::Fxrstor64
            ) && !self.random.one_in(8)
            {
                self.store_mxcsr(target);
            }
            if is_indirect(&instruction) && !self.random.one_in(6) {
                self.store_code_address(target);
            }
        }
        match instruction.flow_control() {
            FlowControl::Return if !self.random.one_in(6) => {
                self.store_code_address(self.case.registers.gpr[4]);
            }
            FlowControl::ConditionalBranch
            | FlowControl::UnconditionalBranch
            | FlowControl::Call => self.branch(encoded),
            FlowControl::IndirectBranch | FlowControl::IndirectCall => {
                if let Some(number) = gpr_number(instruction.op0_register())
                    && !self.random.one_in(6)
                {
                    self.case.registers.gpr[number] = code_address(self.random);
                }
            }
            _ => {}
        }
        if matches!(instruction.mnemonic(), Mnemonic::Div | Mnemonic::Idiv)
            && !self.random.one_in(4)
        {
            self.case.registers.gpr[2] = 0;
            self.case.registers.gpr[0] >>= self.random.below(64);
        }
    }

    /// Where a memory operand is to lie.
    fn target(&mut self, instruction: &Instruction) -> u64 {
        let size = instruction.memory_size().size().max(1) as u64;
        let edge = DATA + PAGE as u64 * self.random.below(1 + (DATA_LEN / PAGE) as u64);
        // Microcode goes through the large operands of x87 in an order of its own, so what it meets
        // first at the border of canonical addresses is no matter.
        let bordering = !is_x87_image(instruction.memory_size());
        match self.random.below(32) {
            0 if bordering => self.random.pick(&[
                0,
                u64::MAX,
                0x8000_0000_0000,
                0x7fff_ffff_fff8,
                0xffff_8000_0000_0000,
                0xffff_7fff_ffff_fff8,
                0x1234_5678_9abc_def0,
            ]),
            1 => self.random.pick(&[ARENA.start, ARENA.end - 1]),
            // Across the border of two pages, or right up to it.
            2..8 => edge.wrapping_sub(self.random.below(size + 1)),
            8..22 => data_address(self.random) & !(size.next_power_of_two() - 1),
            _ => data_address(self.random),
        }
    }

    /// Makes the explicit memory operand lie at `target`, as far as its form allows.
    fn memory(&mut self, encoded: &mut Encoded, target: u64) {
        let instruction = encoded.instruction;
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let segment_base = match instruction.segment_prefix() {
            Register::FS => self.case.registers.fs_base,
            Register::GS => self.case.registers.gs_base,
            _ => 0,
        };
        // AMD's processors want the offset in the segment to be canonical, which the manual knows
        // nothing of: no borders where the two differ.
        let near = (ARENA.start - PAGE as u64..ARENA.end + PAGE as u64).contains(&target);
        let target = if segment_base == 0 || near {
            target
        } else {
            DATA
        };
        let target = target.wrapping_sub(segment_base);
        if instruction.is_ip_rel_memory_operand() {
            let next = self.case.registers.rip + encoded.bytes.len() as u64;
            let distance = target.wrapping_sub(next) as i64;
            patch(
                &mut encoded.bytes,
                encoded.offsets.displacement_offset(),
                4,
                distance,
            );
            return;
        }
        if index.is_vector_register() {
            self.vector_index(&instruction, index);
        }
        let scale = u64::from(instruction.memory_index_scale());
        let left = target.wrapping_sub(instruction.memory_displacement64());
        let gpr = &mut self.case.registers.gpr;
        match (gpr_number(base), gpr_number(index)) {
            (Some(base), Some(index)) if base == index => gpr[base] = left / (scale + 1),
            (Some(base), Some(index)) => {
                // A narrow index keeps the sum within the width of the addresses.
                if instruction.memory_base().is_gpr32() {
                    gpr[index] &= 0xffff_ffff;
                }
                gpr[base] = left.wrapping_sub(gpr[index].wrapping_mul(scale));
            }
            (Some(base), None) => gpr[base] = left,
            (None, Some(index)) => gpr[index] = left / scale,
            (None, None) => {
                let size = encoded.offsets.displacement_size();
                if size >= 4 && base == Register::None {
                    let offset = encoded.offsets.displacement_offset();
                    patch(&mut encoded.bytes, offset, size, target as i64);
                }
            }
        }
    }

    /// Small offsets for the elements of a gather or scatter.
    fn vector_index(&mut self, instruction: &Instruction, index: Register) {
        let Some(register) = self.case.vector.zmm.get_mut(index.number()) else {
            return;
        };
        for word in register {
            let mut offset = || self.random.below(256) as i64 - 128;
            *word = if instruction.is_vsib64() {
                offset() as u64
            } else {
                u64::from(offset() as u32) << 32 | u64::from(offset() as u32)
            };
        }
    }

    /// Leads a relative branch to where nothing of the case lies, or behind the instruction.
    fn branch(&mut self, encoded: &mut Encoded) {
        let len = encoded.bytes.len() as i64;
        let (offset, size) = (
            encoded.offsets.immediate_offset(),
            encoded.offsets.immediate_size(),
        );
        let next = self.case.registers.rip.wrapping_add(len as u64);
        let distance = match self.random.below(8) {
            0 => 0,
            1 | 2 => -len - 1 - self.random.below(100) as i64,
            3 if size == 4 => data_address(self.random).wrapping_sub(next) as i64,
            4 if size == 4 => self.random.word() as i32 as i64,
            5 if size == 4 => code_address(self.random).wrapping_sub(next) as i64,
            _ => self.random.below(100) as i64,
        };
        // Not into the instruction itself: it might never end.
        let distance = if (-len..0).contains(&distance) {
            0
        } else {
            distance
        };
        patch(&mut encoded.bytes, offset, size, distance);
    }

    /// Puts an MXCSR without reserved bits into the image for FXRSTOR at `target`, if that lies there.
    fn store_mxcsr(&mut self, target: u64) {
        if let Some(offset) = data_offset(target.wrapping_add(24), 4) {
            let mxcsr = self.case.vector.x87.mxcsr;
            self.case.data[offset..offset + 4].copy_from_slice(&mxcsr.to_le_bytes());
        }
    }

    /// Puts an address of code into the data at `target`, if that lies there.
    fn store_code_address(&mut self, target: u64) {
        if let Some(offset) = data_offset(target, 8) {
            let address = code_address(self.random);
            self.case.data[offset..offset + 8].copy_from_slice(&address.to_le_bytes());
        }
    }
}

fn is_indirect(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall
    )
}
