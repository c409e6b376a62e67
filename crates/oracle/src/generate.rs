//! Makes case `index` of a seed.

use crate::aim::Aim;
use crate::block;
use crate::case::{Case, Cells, Shape};
use crate::catalogue::{Catalogue, gpr_number, is_branch};
use crate::encode::{Addressing, Encoded, PINNED, decode, encode, spoil};
use crate::flags::Defined;
use crate::layout::{CODE, CODE_FIRST, CODE_LEN, DATA, PAGE};
use crate::random::Random;
use crate::state::{Contents, clear_absent, registers, vector};
use iced_x86::{
    Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register,
};

/// The most instructions that a case may have: that many of the longest fit into one page behind
/// `CODE_FIRST`.
pub const MOST_INSTRUCTIONS: usize = 64;

/// Makes the cases of a campaign.
#[derive(Debug)]
pub struct Generator {
    seed: u64,
    shape: Shape,
    xcr0: u64,
    catalogue: Catalogue,
    contents: Contents,
}

impl Generator {
    /// Cases of `shape`, of up to [`MOST_INSTRUCTIONS`] instructions from `catalogue`, which begin with the XSAVE components
    /// of `xcr0` at random and the others in their initial state.
    pub fn new(seed: u64, shape: Shape, xcr0: u64, catalogue: Catalogue) -> Self {
        let possible = |length: usize| length.clamp(2, MOST_INSTRUCTIONS);
        Self {
            seed,
            shape: match shape {
                Shape::Single => Shape::Single,
                Shape::Sequence(length) => Shape::Sequence(possible(length)),
                Shape::Block(length) => Shape::Block(possible(length)),
            },
            xcr0,
            catalogue,
            contents: Contents::new(seed),
        }
    }

    /// The instructions that cases are made of.
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The campaign's seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Case `index`, or `None` if no encoding of its instruction suits a sequence of this length.
    pub fn case(&self, index: u64) -> Option<Case> {
        let mut random = Random::new(self.seed, index);
        let mut case = Case {
            seed: self.seed,
            index,
            shape: self.shape,
            instructions: Vec::new(),
            units: Vec::new(),
            defined_flags: Defined::ALL,
            cells: Cells::default(),
            registers: registers(&mut random),
            vector: vector(&mut random, self.xcr0),
            data: self.contents.pick(&mut random),
        };
        match self.shape {
            Shape::Single => self.single(&mut case, &mut random)?,
            Shape::Sequence(most) => self.sequence(&mut case, &mut random, most)?,
            Shape::Block(most) => block::fill(&mut case, &mut random, &self.catalogue, most)?,
        }
        // Aiming may have written to all of a register.
        clear_absent(&mut case.vector, self.xcr0);
        Some(case)
    }

    /// One instruction, whose operands and place are chosen freely.
    fn single(&self, case: &mut Case, random: &mut Random) -> Option<()> {
        let code = self.catalogue.code(case.index);
        let mut encoded = encode(code, random, Addressing::Any, &mut |_| true)?;
        let start = place(random, encoded.bytes.len());
        case.registers.rip = CODE + start as u64;
        Aim { case, random }.instruction(&mut encoded);
        // What ends beyond the code faults before or after it turns out to be none.
        let fits = start + encoded.bytes.len() <= CODE_LEN;
        case.instructions = vec![if fits && random.one_in(50) {
            self.spoiled(&encoded, random)
        } else {
            encoded.bytes
        }];
        Some(())
    }

    /// `encoded` made wrong, unless that makes it an instruction that is not for the oracle.
    fn spoiled(&self, encoded: &Encoded, random: &mut Random) -> Vec<u8> {
        let bytes = spoil(encoded, random);
        let foreign = decode(&bytes).is_some_and(|now| {
            let code = now.instruction.code();
            is_branch(code) || !self.catalogue.codes().contains(&code)
        });
        if foreign {
            encoded.bytes.clone()
        } else {
            bytes
        }
    }

    /// Several instructions, which leave alone the registers that memory operands are based on. Relative branches lead
    /// forward, so that every case ends.
    fn sequence(&self, case: &mut Case, random: &mut Random, most: usize) -> Option<()> {
        for number in PINNED {
            case.registers.gpr[number] = DATA + 512 + random.below(PAGE as u64);
        }
        case.registers.gpr[4] = DATA + 1024 + 8 * random.below(512);
        let defined = Defined::pick(random);
        case.defined_flags = defined;
        let mut accept = |i: &Instruction| leaves_alone(i, &PINNED) && defined.allows(i);
        let length = 2 + random.below(most as u64 - 1) as usize;
        let mut code = self.catalogue.code(case.index);
        let mut sequence: Vec<Encoded> = Vec::with_capacity(length);
        for at in 0..length {
            let last = at + 1 == length;
            let next = (0..64).find_map(|attempt| {
                if at != 0 || attempt != 0 {
                    let codes = self.catalogue.codes();
                    code = random.pick(codes);
                }
                let fits = (last || fits_in_sequence(code)) && defined.allows_code(code);
                fits.then(|| encode(code, random, Addressing::Pinned, &mut accept))?
            });
            sequence.push(next?);
        }
        let total = sequence.iter().map(|e| e.bytes.len()).sum();
        case.registers.rip = CODE + place(random, total) as u64;
        link(&mut sequence, random);
        case.instructions = sequence.into_iter().map(|e| e.bytes).collect();
        Some(())
    }
}

/// Offset in the code pages for `len` bytes of code: often across the border of the pages, seldom up to their end or
/// beyond it.
fn place(random: &mut Random, len: usize) -> usize {
    let len64 = len as u64;
    match random.below(64) {
        0..16 => PAGE - random.below(len64 + 1).min((PAGE - CODE_FIRST) as u64) as usize,
        16 => CODE_LEN - 1 - random.below(len64) as usize,
        _ => CODE_FIRST + random.below((CODE_LEN - CODE_FIRST - len - 128) as u64) as usize,
    }
}

/// Whether an instruction with `code` may stand elsewhere than at the end: not if it leads to where a pointer says, nor if
/// it stores the pointers of x87, which are not compared, and which others could load.
pub(crate) fn fits_in_sequence(code: Code) -> bool {
    let stores_pointers = matches!(
        code.mnemonic(),
        Mnemonic::Fnstenv | Mnemonic::Fnsave | Mnemonic::Fxsave | Mnemonic::Fxsave64
    );
    !stores_pointers
        && !matches!(
            code.flow_control(),
            FlowControl::Return | FlowControl::IndirectBranch | FlowControl::IndirectCall
        )
}

/// Whether `instruction` writes none of the registers `pinned`, and the stack pointer only as the stack instructions do.
pub(crate) fn leaves_alone(instruction: &Instruction, pinned: &[usize]) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    let writes = |register: Register| {
        info.used_registers().iter().any(|used| {
            used.register().full_register() == register && !matches!(used.access(), OpAccess::Read)
        })
    };
    let stack = instruction.is_stack_instruction() || !writes(Register::RSP);
    let segment = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
    let narrow = instruction.memory_base().is_gpr32();
    let is_pinned = |register: Register| gpr_number(register).is_some_and(|n| pinned.contains(&n));
    let written = info
        .used_registers()
        .iter()
        .any(|used| is_pinned(used.register()) && !matches!(used.access(), OpAccess::Read));
    // Zen 5 gives vector instructions a stale RSP after a PUSH.
    let vector_of_rsp = instruction.op0_register().is_vector_register()
        && (1..instruction.op_count())
            .any(|n| instruction.op_register(n).full_register() == Register::RSP);
    stack && !segment && !narrow && !written && !vector_of_rsp
}

/// Lets relative branches lead to a later instruction, or behind the last one, and keeps displacements small.
fn link(sequence: &mut [Encoded], random: &mut Random) {
    let ends: Vec<usize> = sequence
        .iter()
        .scan(0, |at, e| {
            *at += e.bytes.len();
            Some(*at)
        })
        .collect();
    for (number, encoded) in sequence.iter_mut().enumerate() {
        let end = ends[number];
        if encoded.instruction.is_jmp_short_or_near()
            || encoded.instruction.is_jcc_short_or_near()
            || encoded.instruction.is_call_near()
            || encoded.instruction.is_loop()
            || encoded.instruction.is_loopcc()
            || encoded.instruction.is_jcx_short()
        {
            let offset = encoded.offsets.immediate_offset();
            let size = encoded.offsets.immediate_size();
            let reach = if size == 1 { 127 } else { usize::MAX };
            let later = &ends[number..];
            let reached = later.iter().take_while(|&&t| t - end <= reach).count();
            let target = random.pick(&later[..reached]);
            patch(&mut encoded.bytes, offset, size, (target - end) as i64);
        } else if encoded.offsets.displacement_size() == 4
            && encoded.instruction.memory_base() != Register::None
        {
            let near = random.below(2048) as i64 - 1024;
            patch(
                &mut encoded.bytes,
                encoded.offsets.displacement_offset(),
                4,
                near,
            );
        }
    }
}

/// Overwrites a constant of `size` bytes at `offset`.
pub(crate) fn patch(bytes: &mut [u8], offset: usize, size: usize, value: i64) {
    bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::host_cpuid;

    fn generator(shape: Shape) -> Generator {
        Generator::new(11, shape, u64::MAX, Catalogue::new(&host_cpuid, &|_| true))
    }

    #[test]
    fn the_same_seed_and_index_make_the_same_case() {
        for shape in [Shape::Single, Shape::Sequence(8), Shape::Block(48)] {
            let (first, second) = (generator(shape), generator(shape));
            for index in 0..200 {
                let (a, b) = (first.case(index), second.case(index));
                let (Some(a), Some(b)) = (a, b) else { continue };
                assert_eq!(a.instructions, b.instructions);
                assert_eq!(a.registers, b.registers);
                assert_eq!((a.units, a.cells), (b.units, b.cells));
                assert!(a.vector == b.vector && a.data == b.data);
            }
        }
    }

    #[test]
    fn relative_branches_of_a_sequence_lead_forward_to_an_instruction() {
        let generator = generator(Shape::Sequence(32));
        for index in 0..300 {
            let Some(case) = generator.case(index) else {
                continue;
            };
            let ends: Vec<u64> = case
                .instructions
                .iter()
                .scan(0, |at, bytes| {
                    *at += bytes.len() as u64;
                    Some(*at)
                })
                .collect();
            for (bytes, end) in case.instructions.iter().zip(&ends) {
                let Some(encoded) = decode(bytes) else {
                    continue;
                };
                if encoded.instruction.is_jcc_short_or_near() {
                    let distance = encoded.instruction.near_branch_target() - bytes.len() as u64;
                    assert!(ends.contains(&(end + distance)));
                }
            }
        }
    }
}
