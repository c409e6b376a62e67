//! A case: instructions and the state that they start from; and an outcome: the state that they end in.

use crate::layout::{CODE, Data};
use belljar_x86::VectorState;

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

/// Instructions and the state that they start from.
#[derive(Clone, Debug)]
pub struct Case {
    /// The campaign's seed.
    pub seed: u64,
    /// The case's number in the campaign.
    pub index: u64,
    /// The bytes of each instruction, in the order of their addresses. An INT3 follows the last.
    pub instructions: Vec<Vec<u8>>,
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

    /// Where the instructions lie in the code pages.
    pub fn code_offset(&self) -> usize {
        self.registers.rip.wrapping_sub(CODE) as usize
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
