//! Gathers and scatters, element after element.
//!
//! They are not run by the host: each element has an address of its own in the guest. A fault
//! leaves the elements before it done and their mask bits clear, so that the instruction can be
//! restarted. SDM 2, VGATHERDPS and VPSCATTERDD.

use crate::OperandMemory;
use belljar_x86::{CpuState, Exception};
use iced_x86::{EncodingKind, Instruction, Register};

/// A gather or scatter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elements {
    /// The vector register of the data.
    data: u8,
    /// The vector register of the indices.
    index: u8,
    /// Shift of an index to an offset.
    shift: u8,
    /// Bytes of an index.
    index_size: u8,
    /// Bytes of an element.
    pub(crate) size: u8,
    /// Number of elements.
    count: u8,
    /// Bytes of the longer of the two vectors, 16 to 64.
    length: u8,
    mask: Mask,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mask {
    /// An opmask register, a bit for each element.
    Opmask(u8),
    /// A vector register, the sign of each element.
    Sign(u8),
}

impl Elements {
    /// The gather or scatter that `instruction` is, if it is one.
    pub(crate) fn of(instruction: &Instruction) -> Option<Self> {
        let index_size = if instruction.vsib()? { 8 } else { 4 };
        let index = instruction.memory_index();
        let data = if instruction.op0_register() == Register::None {
            instruction.op1_register()
        } else {
            instruction.op0_register()
        };
        let size = instruction.memory_size().size() as u8;
        let mask = match instruction.encoding() {
            EncodingKind::VEX => Mask::Sign(instruction.op2_register().number() as u8),
            _ => Mask::Opmask(instruction.op_mask().number() as u8),
        };
        let count = (index.size() / usize::from(index_size))
            .min(data.size() / usize::from(size.max(1)))
            .min(16);
        let is_vector = data.is_vector_register() && index.is_vector_register();
        (is_vector && matches!(size, 4 | 8)).then_some(Self {
            data: data.number() as u8,
            index: index.number() as u8,
            shift: instruction.memory_index_scale().trailing_zeros() as u8,
            index_size,
            size,
            count: count as u8,
            length: index.size().max(data.size()) as u8,
            mask,
        })
    }

    /// The offset of element `each` from the operand's base.
    fn offset(&self, cpu: &CpuState, each: usize) -> u64 {
        let index = element(cpu, self.index, each, self.index_size);
        let index = match self.index_size {
            4 => i64::from(index as i32),
            _ => index as i64,
        };
        (index as u64).wrapping_shl(u32::from(self.shift))
    }

    fn enabled(&self, cpu: &CpuState, each: usize) -> bool {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[usize::from(k) & 7] >> each & 1 != 0,
            Mask::Sign(register) => {
                let sign = u32::from(self.size) * 8 - 1;
                element(cpu, register, each, self.size) >> sign & 1 != 0
            }
        }
    }

    /// Clears the mask of element `each`, which is done.
    fn done(&self, cpu: &mut CpuState, each: usize) {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[usize::from(k) & 7] &= !(1 << each),
            Mask::Sign(register) => set_element(cpu, register, each, self.size, 0),
        }
    }

    fn finish_mask(&self, cpu: &mut CpuState) {
        match self.mask {
            Mask::Opmask(k) => cpu.vector.k[usize::from(k) & 7] = 0,
            Mask::Sign(register) => cpu.vector.zmm[usize::from(register) & 31] = [0; 8],
        }
    }

    /// What a gather that is interrupted by a fault, after an element or more, has done of clearing
    /// what lies above the elements: with EVEX, what lies above the vector's length.
    fn clear_above_vector(&self, cpu: &mut CpuState) {
        if matches!(self.mask, Mask::Opmask(_)) {
            let words = usize::from(self.length / 8);
            cpu.vector.zmm[usize::from(self.data) & 31][words..].fill(0);
        }
    }

    /// Gathers.
    pub(crate) fn gather<M: OperandMemory>(
        &self,
        cpu: &mut CpuState,
        memory: &mut M,
    ) -> Result<(), Exception> {
        let mut any = false;
        for each in 0..usize::from(self.count) {
            if !self.enabled(cpu, each) {
                // Of a vector that is the mask, processors clear more than the sign.
                self.done(cpu, each);
                continue;
            }
            let mut bytes = [0; 8];
            let offset = self.offset(cpu, each);
            let read = memory.read(cpu, offset, &mut bytes[..usize::from(self.size)]);
            if read.is_err() && any {
                self.clear_above_vector(cpu);
            }
            read?;
            let value = u64::from_le_bytes(bytes);
            set_element(cpu, self.data, each, self.size, value);
            self.done(cpu, each);
            any = true;
        }
        // What lies above the elements becomes 0.
        let words = usize::from(self.count) * usize::from(self.size) / 8;
        cpu.vector.zmm[usize::from(self.data) & 31][words..].fill(0);
        self.finish_mask(cpu);
        Ok(())
    }

    /// Scatters.
    pub(crate) fn scatter<M: OperandMemory>(
        &self,
        cpu: &mut CpuState,
        memory: &mut M,
    ) -> Result<(), Exception> {
        for each in 0..usize::from(self.count) {
            if !self.enabled(cpu, each) {
                continue;
            }
            let bytes = element(cpu, self.data, each, self.size).to_le_bytes();
            let offset = self.offset(cpu, each);
            memory.write(cpu, offset, &bytes[..usize::from(self.size)])?;
            self.done(cpu, each);
        }
        self.finish_mask(cpu);
        Ok(())
    }
}

/// Element `each` of a vector register whose elements have `size` bytes, 4 or 8.
fn element(cpu: &CpuState, register: u8, each: usize, size: u8) -> u64 {
    let words = &cpu.vector.zmm[usize::from(register) & 31];
    match size {
        4 => (words[(each / 2) & 7] >> (each % 2 * 32)) & 0xffff_ffff,
        _ => words[each & 7],
    }
}

fn set_element(cpu: &mut CpuState, register: u8, each: usize, size: u8, value: u64) {
    let words = &mut cpu.vector.zmm[usize::from(register) & 31];
    if size == 8 {
        words[each & 7] = value;
        return;
    }
    let shift = each % 2 * 32;
    let word = &mut words[(each / 2) & 7];
    *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
}
