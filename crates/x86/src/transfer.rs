//! Far jumps, calls and returns, and IRET. SDM 3A, 5.8; SDM 2, the instructions' pages.
//!
//! On entry `cpu.rip` is the instruction's own address; `next` is that of the next one. When a function fails, the
//! exception is to be delivered with `cpu` as it stands: nothing has changed, unless the fault came late in a task switch,
//! when it belongs to the new task. Whether the new instruction pointer's page can be fetched is found when it is fetched.

use crate::{CpuState, Exception, LinearMemory};

/// An instruction's operand size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum OperandSize {
    Bits16 = 2,
    Bits32 = 4,
    Bits64 = 8,
}

/// JMP to a far pointer, call gate, task gate or TSS.
///
/// # Errors
/// The exception to deliver.
pub fn far_jump(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    offset: u64,
    size: OperandSize,
    next: u64,
) -> Result<(), Exception> {
    let _ = (cpu, mem, selector, offset, size, next);
    todo!()
}

/// CALL to a far pointer, call gate, task gate or TSS.
///
/// # Errors
/// The exception to deliver.
pub fn far_call(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    offset: u64,
    size: OperandSize,
    next: u64,
) -> Result<(), Exception> {
    let _ = (cpu, mem, selector, offset, size, next);
    todo!()
}

/// Far RET that releases `release` bytes of parameters.
///
/// # Errors
/// The exception to deliver.
pub fn far_return(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    size: OperandSize,
    release: u16,
) -> Result<(), Exception> {
    let _ = (cpu, mem, size, release);
    todo!()
}

/// IRET, IRETD, IRETQ.
///
/// # Errors
/// The exception to deliver.
pub fn iret(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    size: OperandSize,
    next: u64,
) -> Result<(), Exception> {
    let _ = (cpu, mem, size, next);
    todo!()
}
