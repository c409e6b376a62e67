//! Which bytes of memory a masked instruction touches.

use crate::{Memory, OperandMemory};
use belljar_x86::{CpuState, Exception};
use iced_x86::{Instruction, Mnemonic, Mnemonic as M, OpKind, Register};

/// How a masked instruction's elements in memory are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mask {
    /// Each by its bit of an opmask register.
    Opmask { k: u8 },
    /// One element, or a tuple of `tuple` elements, is used again and again for the first `count`
    /// bits of an opmask register.
    Repeated { k: u8, tuple: u8, count: u8 },
    /// As many as the opmask register has bits, next to each other: compress and expand.
    Packed { k: u8 },
    /// Each by the sign of its element in a vector register.
    Sign { register: u8 },
}

/// The bytes of memory that a masked instruction touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Masking {
    pub(crate) mask: Mask,
    /// Bytes of an element in memory.
    pub(crate) element: u8,
    /// Whether all bytes must be writable all the same.
    pub(crate) checks_all: bool,
}

/// Instructions that shuffle the elements of their memory operand: they read all of it whatever the
/// mask says. SDM 2A, 2.8, exception classes E4NF, E5NF and E6NF.
#[rustfmt::skip]
const READS_ALL: &[Mnemonic] = &[
    M::Valignd, M::Valignq, M::Vdbpsadbw, M::Vmovddup, M::Vmovshdup, M::Vmovsldup, M::Vpackssdw,
    M::Vpacksswb, M::Vpackusdw, M::Vpackuswb, M::Vpalignr, M::Vpconflictd, M::Vpconflictq,
    M::Vpermb, M::Vpermd, M::Vpermi2b, M::Vpermi2d, M::Vpermi2pd, M::Vpermi2ps, M::Vpermi2q,
    M::Vpermi2w, M::Vpermilpd, M::Vpermilps, M::Vpermpd, M::Vpermps, M::Vpermq, M::Vpermt2b,
    M::Vpermt2d, M::Vpermt2pd, M::Vpermt2ps, M::Vpermt2q, M::Vpermt2w, M::Vpermw,
    M::Vpmultishiftqb, M::Vpshufb, M::Vpshufd, M::Vpshufhw, M::Vpshuflw, M::Vpunpckhbw,
    M::Vpunpckhdq, M::Vpunpckhqdq, M::Vpunpckhwd, M::Vpunpcklbw, M::Vpunpckldq, M::Vpunpcklqdq,
    M::Vpunpcklwd, M::Vshuff32x4, M::Vshuff64x2, M::Vshufi32x4, M::Vshufi64x2, M::Vshufpd,
    M::Vshufps, M::Vunpckhpd, M::Vunpckhps, M::Vunpcklpd, M::Vunpcklps, M::Vinsertf32x4,
    M::Vinsertf32x8, M::Vinsertf64x2, M::Vinsertf64x4, M::Vinserti32x4, M::Vinserti32x8,
    M::Vinserti64x2, M::Vinserti64x4, M::Vgf2p8affineinvqb, M::Vgf2p8affineqb,
    M::Vcvtne2ps2bf16, M::Vpmaddubsw, M::Vpmaddwd,
];

/// Stores of parts of a vector: they need all of their memory operand whatever the mask says. SDM
/// 2A, 2.8, exception class E6NF.
const CHECKS_ALL: &[Mnemonic] = &[
    M::Vextractf32x4,
    M::Vextractf32x8,
    M::Vextractf64x2,
    M::Vextractf64x4,
    M::Vextracti32x4,
    M::Vextracti32x8,
    M::Vextracti64x2,
    M::Vextracti64x4,
];

/// Bytes of memory for each bit of the mask, for instructions that combine several numbers in
/// memory to one in the result.
fn combined(mnemonic: Mnemonic) -> Option<usize> {
    Some(match mnemonic {
        M::Vpdpbusd | M::Vpdpbusds | M::Vpdpwssd | M::Vpdpwssds | M::Vdpbf16ps => 4,
        M::Vpmuldq | M::Vpmuludq => 8,
        _ => return None,
    })
}

/// Whether the instruction reads all of its memory operand whatever the mask says.
fn reads_all(instruction: &Instruction) -> bool {
    // Shifts have their count in memory or an immediate count and their data in memory.
    let is_shift_count = instruction.op2_kind() == OpKind::Memory
        && matches!(
            instruction.mnemonic(),
            M::Vpslld
                | M::Vpsllq
                | M::Vpsllw
                | M::Vpsrad
                | M::Vpsraq
                | M::Vpsraw
                | M::Vpsrld
                | M::Vpsrlq
                | M::Vpsrlw
        );
    is_shift_count || READS_ALL.contains(&instruction.mnemonic())
}

/// Instructions that use their memory operand, of fewer elements than the result, again and again.
#[rustfmt::skip]
const BROADCASTS: &[Mnemonic] = &[
    M::Vbroadcastf32x2, M::Vbroadcastf32x4, M::Vbroadcastf32x8, M::Vbroadcastf64x2,
    M::Vbroadcastf64x4, M::Vbroadcasti32x2, M::Vbroadcasti32x4, M::Vbroadcasti32x8,
    M::Vbroadcasti64x2, M::Vbroadcasti64x4, M::Vbroadcastsd, M::Vbroadcastss, M::Vpbroadcastb,
    M::Vpbroadcastd, M::Vpbroadcastq, M::Vpbroadcastw,
];

/// Instructions that pick the elements of the mask out of a vector, or put them there.
#[rustfmt::skip]
const PACKED: &[Mnemonic] = &[
    M::Vcompresspd, M::Vcompressps, M::Vexpandpd, M::Vexpandps, M::Vpcompressb, M::Vpcompressd,
    M::Vpcompressq, M::Vpcompressw, M::Vpexpandb, M::Vpexpandd, M::Vpexpandq, M::Vpexpandw,
];

impl Masking {
    /// Whether the signs of a vector's elements are the mask: that of VEX-encoded masked moves.
    pub(crate) const fn is_of_signs(self) -> bool {
        matches!(self.mask, Mask::Sign { .. })
    }

    /// How `instruction` masks its memory operand, if it does.
    pub(crate) fn of(instruction: &Instruction) -> Option<Self> {
        let mnemonic = instruction.mnemonic();
        let size = instruction.memory_size();
        let element = match (combined(mnemonic), size.element_size()) {
            (Some(bytes), _) => bytes,
            (None, 0) => size.size(),
            (None, element) => element,
        } as u8;
        let k = instruction.op_mask().number() as u8;
        let (element, mask) = match mnemonic {
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => {
                // A load's mask is the second operand; a store's too, behind the memory operand.
                let register = instruction.op1_register().number() as u8;
                let element = match mnemonic {
                    M::Vmaskmovps | M::Vpmaskmovd => 4,
                    _ => 8,
                };
                (element, Mask::Sign { register })
            }
            _ if instruction.op_mask() == Register::None || reads_all(instruction) => return None,
            _ if PACKED.contains(&mnemonic) => (element, Mask::Packed { k }),
            _ if instruction.is_broadcast() || BROADCASTS.contains(&mnemonic) => {
                let tuple = (size.size() as u8) / element.max(1);
                let count = if instruction.is_broadcast() {
                    // As many elements as there would be in memory without the broadcast.
                    (instruction.code().op_code().memory_size().size() as u8) / element.max(1)
                } else {
                    (instruction.op0_register().size() as u8) / element.max(1)
                };
                (element, Mask::Repeated { k, tuple, count })
            }
            _ => (element, Mask::Opmask { k }),
        };
        Some(Self {
            mask,
            element,
            checks_all: CHECKS_ALL.contains(&mnemonic),
        })
    }

    /// What the operand's address must be a multiple of when alignment is checked: elements are
    /// reached one by one, and those of the older instructions are not checked.
    pub(crate) fn natural_alignment(&self) -> u8 {
        match self.mask {
            Mask::Sign { .. } => 1,
            Mask::Opmask { .. } | Mask::Repeated { .. } | Mask::Packed { .. } => self.element,
        }
    }

    /// Which of `size` bytes the instruction touches with the present registers: bit 0 is the first
    /// byte.
    pub(crate) fn touched(&self, cpu: &CpuState, size: usize) -> u64 {
        let element = usize::from(self.element).max(1);
        let count = size / element;
        let opmask = |k: u8| cpu.vector.k[usize::from(k) & 7];
        let all = ones(count);
        let elements = match self.mask {
            Mask::Opmask { k } => opmask(k) & all,
            Mask::Repeated { k, tuple, count } => {
                let tuple = usize::from(tuple).max(1);
                let bits = opmask(k) & ones(usize::from(count));
                (0..64)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .fold(0, |all, bit| all | 1 << (bit % tuple))
            }
            Mask::Packed { k } => ones((opmask(k) & all).count_ones() as usize),
            Mask::Sign { register } => {
                let words = &cpu.vector.zmm[usize::from(register) & 31];
                (0..count)
                    .filter(|each| {
                        let sign = (each + 1) * element * 8 - 1;
                        words[(sign / 64) & 7] >> (sign % 64) & 1 != 0
                    })
                    .fold(0, |all, each| all | 1 << each)
            }
        };
        (0..count)
            .filter(|each| elements >> each & 1 != 0)
            .fold(0, |all, each| all | ones(element) << (each * element))
    }

    /// The touched bytes as runs of offset and length.
    pub(crate) fn runs(&self, cpu: &CpuState, size: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut left = self.touched(cpu, size);
        std::iter::from_fn(move || {
            let start = left.trailing_zeros() as usize;
            if start >= 64 {
                return None;
            }
            let length = (left >> start).trailing_ones() as usize;
            left &= !(ones(length) << start);
            Some((start, length))
        })
    }

    /// Does `access` to the touched bytes of an operand of `size` bytes, each run of them at once. If that faults it is done again element by element, for the fault to be that of the
    /// first that is to blame.
    fn each_run(
        &self,
        cpu: &CpuState,
        size: usize,
        mut access: impl FnMut(usize, usize) -> Result<(), Exception>,
    ) -> Result<(), Exception> {
        let element = usize::from(self.element).max(1);
        for (start, length) in self.runs(cpu, size) {
            if let Err(exception) = access(start, length) {
                (start..start + length)
                    .step_by(element)
                    .try_for_each(|at| access(at, element))?;
                return Err(exception);
            }
        }
        Ok(())
    }

    /// Reads the touched bytes of the operand into `bytes`.
    pub(crate) fn read<M: OperandMemory>(
        &self,
        cpu: &CpuState,
        memory: &mut M,
        bytes: &mut [u8],
    ) -> Result<(), Exception> {
        self.each_run(cpu, bytes.len(), |start, length| {
            memory.read(cpu, start as u64, &mut bytes[start..start + length])
        })
    }

    /// Checks that the touched bytes of an operand of `size` bytes can be written.
    pub(crate) fn check_write<M: OperandMemory>(
        &self,
        cpu: &CpuState,
        memory: &mut M,
        size: usize,
    ) -> Result<(), Exception> {
        if self.checks_all {
            return memory.check_write(cpu, 0, size);
        }
        self.each_run(cpu, size, |start, length| {
            memory.check_write(cpu, start as u64, length)
        })
    }

    /// Writes the touched bytes of the operand from `bytes`: all of them or none.
    pub(crate) fn write<M: OperandMemory>(
        &self,
        cpu: &CpuState,
        memory: &mut M,
        bytes: &[u8],
    ) -> Result<(), Exception> {
        self.check_write(cpu, memory, bytes.len())?;
        for (start, length) in self.runs(cpu, bytes.len()) {
            memory.write(cpu, start as u64, &bytes[start..start + length])?;
        }
        Ok(())
    }

    /// The kind of memory operand of `size` bytes that this makes.
    pub(crate) fn memory(size: u16, alignment: u8, read: bool, write: bool) -> Memory {
        Memory::Masked {
            size,
            alignment,
            read,
            write,
        }
    }
}

/// `count` ones; `count` is at most 64.
const fn ones(count: usize) -> u64 {
    if count >= 64 {
        u64::MAX
    } else {
        (1 << count) - 1
    }
}
