//! Runs single innocuous instructions on the host's own processor with their operands redirected.
//!
//! Floor 2 of the house, under the engines. An instruction is *innocuous* (Popek and Goldberg) if
//! its effect is a function of registers, flags and at most one memory operand: all of x87, MMX,
//! SSE, AVX and AVX-512, and the integer instructions that touch neither the stack nor control flow
//! nor system state. Such an instruction needs no emulation: [`Stubs::compile`] re-encodes it once
//! into a few host instructions that load what it uses from a [`CpuState`](belljar_x86::CpuState),
//! run it, and store what it changed. The results are the host's own, bit for bit, and so are the
//! exceptions: a fault in a stub is caught and handed back as the guest's
//! [`Exception`](belljar_x86::Exception).
//!
//! How an engine uses it:
//!
//! 1. At decode: [`Stubs::compile`] gives a [`Stub`], which is small and `Copy` and is kept with
//!    the decoded instruction. [`CompileError::Full`] asks to drop all stubs and to call
//!    [`Stubs::reset`].
//! 2. At run: [`Stub::check_enabled`] raises #UD and #NM as CR0, CR4 and XCR0 demand.
//! 3. [`Stub::memory`] says what memory the instruction touches. [`Memory::None`]: [`Stubs::run`].
//!    Otherwise the engine computes the operand's linear address (without the index, if it is a
//!    vector's) and calls [`Stubs::run_with_memory`] with its [`OperandMemory`], or, for
//!    [`Memory::Whole`] with the operand in ordinary RAM within one page, the faster
//!    [`Stubs::run_at`] with the host's address of the operand. For a misaligned operand of an
//!    instruction that demands alignment the engine raises #GP(0) before:
//!    [`Stub::check_alignment`]. The operand of MASKMOVDQU and MASKMOVQ is at the implied DS:rDI.
//! 4. After an x87 instruction without exception: [`Stub::record_x87_pointers`].

mod class;
pub mod code_memory;
mod compile;
mod elements;
mod emit;
mod error;
pub mod fault;
mod host;
mod masked;
mod memory;
mod registers;
mod stub;
mod stubs;

pub use class::{innocuous, recorded_opcode};
pub use error::{CompileError, Error};
pub use host::{has_avx, has_avx512};
pub use memory::{Memory, OperandMemory};
pub use stub::{Stub, Unit};
pub use stubs::Stubs;

#[cfg(test)]
mod tests;
