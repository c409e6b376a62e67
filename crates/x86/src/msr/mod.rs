//! Model-specific registers. SDM 4; APM 2, appendix A.
//!
//! What the core holds is read and written here. Registers of the local APIC and the paravirtual ones belong to the
//! board, which the outcome says. Privilege is the caller's to check.

use crate::cpuid::CpuidModel;
use crate::paging::Flush;
use crate::{CpuState, Exception};

/// What RDMSR found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value.
    Value(u64),
    /// The register is the board's: ask it. If it refuses, #GP(0).
    Board,
}

/// What WRMSR did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is done; the engine drops these translations.
    Done(Flush),
    /// The register is the board's: tell it. If it refuses, #GP(0).
    Board,
}

/// RDMSR. `tsc` is the machine's time-stamp counter, before the processor's own offset.
///
/// # Errors
/// #GP(0) for registers that do not exist.
pub fn read(cpu: &CpuState, model: &CpuidModel, index: u32, tsc: u64) -> Result<Read, Exception> {
    let _ = (cpu, model, index, tsc);
    todo!()
}

/// WRMSR. `tsc` is the machine's time-stamp counter, before the processor's own offset.
///
/// # Errors
/// #GP(0) for registers that do not exist or cannot be written, and values that they cannot hold; then nothing has
/// changed.
pub fn write(
    cpu: &mut CpuState,
    model: &CpuidModel,
    index: u32,
    value: u64,
    tsc: u64,
) -> Result<Write, Exception> {
    let _ = (cpu, model, index, value, tsc);
    todo!()
}
