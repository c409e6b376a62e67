//! What memory an instruction touches and how the engine lends it.

use belljar_x86::{CpuState, Exception};

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The instruction touches no memory.
    None,
    /// `size` bytes at the operand's address, all of them.
    Whole {
        /// Bytes from the operand's address.
        size: u16,
        /// What the address must be a multiple of, else #GP(0): 1 for most instructions.
        alignment: u8,
        /// Whether the instruction reads the bytes.
        read: bool,
        /// Whether it writes them.
        write: bool,
    },
    /// Some of the bytes from the operand's address on, as a mask register or the data says. The
    /// bytes that are not touched must not fault. Only
    /// [`Stubs::run_with_memory`](crate::Stubs::run_with_memory) runs these.
    Masked {
        /// Bytes from the operand's address if all were touched; at most 64.
        size: u16,
        /// What the address must be a multiple of, else #GP(0), whatever the mask.
        alignment: u8,
        /// Whether the instruction reads.
        read: bool,
        /// Whether it writes.
        write: bool,
    },
    /// A gather or scatter: elements at the operand's base and displacement plus each index times
    /// the scale. Only [`Stubs::run_with_memory`](crate::Stubs::run_with_memory) runs these.
    Elements {
        /// Bytes of each element: 4 or 8.
        size: u8,
        /// Whether it is a scatter.
        write: bool,
    },
}

/// The guest memory at an instruction's memory operand, as an engine lends it.
///
/// `offset` counts from the operand's effective address. For [`Memory::Elements`] that is of its
/// base and displacement alone, and `offset` may be "negative": the sum wraps at the operand's
/// *address size*, and the segment's base is added after.
pub trait OperandMemory {
    /// Reads `bytes.len()` bytes (1 to 512).
    ///
    /// # Errors
    /// The exception to deliver.
    fn read(&mut self, cpu: &CpuState, offset: u64, bytes: &mut [u8]) -> Result<(), Exception>;

    /// Checks that a write of `size` bytes (1 to 512) would succeed.
    ///
    /// # Errors
    /// The exception that it would raise.
    fn check_write(&mut self, cpu: &CpuState, offset: u64, size: usize) -> Result<(), Exception>;

    /// Writes `bytes` (1 to 512 of them).
    ///
    /// # Errors
    /// The exception to deliver; then nothing was written.
    fn write(&mut self, cpu: &CpuState, offset: u64, bytes: &[u8]) -> Result<(), Exception>;
}
