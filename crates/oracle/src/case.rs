//! A case: instructions and the state that they start from; and an outcome: the state that they end in.

use crate::encode::decode;
use crate::flags::Defined;
use crate::layout::{BLOCK, BLOCK_CODE_LEN, BlockPages, CODE, CODE_LEN, Data};
use crate::report::{NOP, relocate};
use belljar_x86::VectorState;
use iced_x86::Instruction;

/// Registers of user mode, apart from the vector registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// General-purpose registers in the order of their encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
}

/// What cases are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One instruction.
    Single,
    /// Up to so many instructions, whose branches lead forward.
    Sequence(usize),
    /// Up to about so many instructions, with loops, calls, and stores into the instructions themselves.
    Block(usize),
}

impl std::fmt::Display for Shape {
    /// As the program's options give it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Single => f.write_str("--kind single"),
            Self::Sequence(length) => write!(f, "--kind sequence --length {length}"),
            Self::Block(length) => write!(f, "--kind block --length {length}"),
        }
    }
}

/// Instructions that can be left out of a case only together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unit {
    /// How many instructions.
    pub length: usize,
    /// The number of the unit that they store into. Without it they must be left out, too.
    pub patches: Option<usize>,
    /// Whether the others rely on them.
    pub needed: bool,
}

impl Unit {
    /// An instruction on its own.
    pub const ALONE: Self = Self {
        length: 1,
        patches: None,
        needed: false,
    };
}

/// Data that only a block's own instructions reach: counters, addresses, bytes to be stored into instructions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells {
    /// Where they lie in the block's pages.
    pub offset: usize,
    /// What they hold at first.
    pub bytes: Vec<u8>,
}

/// Instructions and the state that they start from.
#[derive(Clone, Debug)]
pub struct Case {
    /// The campaign's seed.
    pub seed: u64,
    /// The case's number in the campaign.
    pub index: u64,
    /// What it is made of.
    pub shape: Shape,
    /// The bytes of each instruction, in the order of their addresses. An INT3 follows the last.
    pub instructions: Vec<Vec<u8>>,
    /// Which of the instructions belong together, in their order; empty if none do.
    pub units: Vec<Unit>,
    /// The status flags that its instructions rely on. Of several instructions, none leaves one of these undefined.
    pub defined_flags: Defined,
    /// What else lies in a block's pages.
    pub cells: Cells,
    /// Initial registers; the first instruction lies at RIP.
    pub registers: Registers,
    /// Initial x87 and vector registers.
    pub vector: VectorState,
    /// Initial content of the data pages.
    pub data: Box<Data>,
}

impl Case {
    /// The bytes of all instructions.
    pub fn code(&self) -> Vec<u8> {
        self.instructions.concat()
    }

    /// The instruction that `outcome` ended at, as the case ended.
    pub(crate) fn instruction_at(&self, outcome: &Outcome) -> Option<Instruction> {
        let rip = outcome.registers.rip;
        let (start, code) = match &outcome.block {
            Some(pages) => (BLOCK, pages.to_vec()),
            None => (self.registers.rip, self.code()),
        };
        let bytes = code.get(usize::try_from(rip.checked_sub(start)?).ok()?..)?;
        let mut instruction = decode(bytes)?.instruction;
        relocate(&mut instruction, rip);
        Some(instruction)
    }

    /// The same with NOPs for the units that are marked in `left_out`, and for those that store into them.
    #[must_use]
    pub fn without(&self, left_out: &[bool]) -> Self {
        let mut case = self.clone();
        let is_out = |number: usize| left_out.get(number).copied().unwrap_or(false);
        let mut rest = case.instructions.iter_mut();
        for (number, unit) in self.units.iter().enumerate() {
            let goes = is_out(number) || unit.patches.is_some_and(is_out);
            for instruction in rest.by_ref().take(unit.length) {
                if goes {
                    instruction.fill(NOP);
                }
            }
        }
        case
    }

    /// Whether it is a block, which lies in pages of its own that it may write to.
    pub fn is_block(&self) -> bool {
        matches!(self.shape, Shape::Block(_))
    }

    /// First address and length of the pages that the instructions lie in.
    fn pages(&self) -> (u64, usize) {
        if self.is_block() {
            (BLOCK, BLOCK_CODE_LEN)
        } else {
            (CODE, CODE_LEN)
        }
    }

    /// Where the instructions lie in their pages.
    pub fn code_offset(&self) -> usize {
        let (start, length) = self.pages();
        (self.registers.rip.wrapping_sub(start) as usize).min(length)
    }

    /// How many bytes of instructions their pages have room for.
    pub fn room(&self) -> usize {
        self.pages().1 - self.code_offset()
    }
}

/// The exception that ended a case. Every case ends in one: the INT3 after its last instruction if in no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fault {
    /// Its vector.
    pub vector: u64,
    /// The error code, 0 for vectors without one.
    pub error: u64,
    /// CR2, 0 unless it is a page fault.
    pub address: u64,
}

/// The state that a case ended in.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What ended it.
    pub fault: Fault,
    /// Final registers, as the exception saved them.
    pub registers: Registers,
    /// Final x87 and vector registers.
    pub vector: VectorState,
    /// Final content of the data pages.
    pub data: Box<Data>,
    /// Final content of a block's pages.
    pub block: Option<Box<BlockPages>>,
}

/// How a case ended without an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did not come to an end in time.
    Hung,
    /// What ran it came to an end instead.
    Died(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hung => f.write_str("did not come to an end"),
            Self::Died(how) => f.write_str(how),
        }
    }
}
