//! The compiled instructions of one vCPU.

use crate::{CompileError, Error, OperandMemory, Stub};
use belljar_x86::{CpuState, Exception};
use iced_x86::Instruction;

/// The compiled instructions of one vCPU, and what is needed to run them. Equal instructions share their code.
#[derive(Debug)]
pub struct Stubs {}

impl Stubs {
    /// Makes room for `capacity` bytes of code (a stub takes about 100), and makes sure that the process catches the faults
    /// of stubs. 4 MiB is plenty for a kernel.
    ///
    /// # Errors
    /// If the host gives no memory or refuses the signal handlers.
    pub fn new(_capacity: usize) -> Result<Self, Error> {
        Ok(Self {})
    }

    /// Compiles `instruction`, decoded in any mode from the bytes `encoding`.
    ///
    /// # Errors
    /// [`CompileError::NotInnocuous`] for what the engine must do itself, [`CompileError::NotOnHost`] for what the host
    /// lacks, and [`CompileError::Full`].
    pub fn compile(
        &mut self,
        _instruction: &Instruction,
        _encoding: &[u8],
    ) -> Result<Stub, CompileError> {
        Err(CompileError::NotInnocuous)
    }

    /// Forgets all code. Stubs compiled before can no longer be run.
    pub fn reset(&mut self) {}

    /// Runs an instruction without memory operand. `cpu.rip` is left alone.
    ///
    /// # Errors
    /// The exception that the instruction raised; registers are then as the architecture leaves them.
    ///
    /// # Panics
    /// If the stub is stale (compiled before a [`reset`](Self::reset) or by another `Stubs`) or has a memory operand.
    #[inline]
    pub fn run(&mut self, _stub: &Stub, _cpu: &mut CpuState) -> Result<(), Exception> {
        Ok(())
    }

    /// Runs an instruction of any [`Memory`](crate::Memory) kind, reaching memory through `memory`. `cpu.rip` is left alone.
    ///
    /// # Errors
    /// The exception that the instruction or `memory` raised. Nothing has changed then, except what the architecture
    /// leaves changed: the flags of MXCSR at #XM, and the completed elements of a gather or scatter.
    ///
    /// # Panics
    /// If the stub is stale.
    pub fn run_with_memory<M: OperandMemory>(
        &mut self,
        _stub: &Stub,
        _cpu: &mut CpuState,
        _memory: &mut M,
    ) -> Result<(), Exception> {
        Ok(())
    }

    /// Runs an instruction whose operand is [`Memory::Whole`](crate::Memory::Whole) directly on the host's memory.
    /// `cpu.rip` is left alone.
    ///
    /// # Errors
    /// The exception that the instruction raised.
    ///
    /// # Panics
    /// If the stub is stale or its memory is of another kind.
    ///
    /// # Safety
    /// `operand` points to as many bytes as [`Stub::memory`] says, mapped, writable if the instruction writes, and not
    /// part of any Rust object that is borrowed meanwhile.
    #[inline]
    pub unsafe fn run_at(
        &mut self,
        _stub: &Stub,
        _cpu: &mut CpuState,
        _operand: *mut u8,
    ) -> Result<(), Exception> {
        Ok(())
    }
}
