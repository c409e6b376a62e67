//! One compiled instruction.

use crate::Memory;
use belljar_x86::{CpuState, Exception};

/// Which part of the processor an instruction belongs to: it decides what must be enabled for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General-purpose registers and flags only: always enabled.
    Integer,
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM only if both CR0.MP and CR0.TS.
    Wait,
    /// MMX registers: #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// Legacy SSE: #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// VEX: #UD unless CR4.OSXSAVE and XCR0 has SSE and AVX, #NM if CR0.TS.
    Avx,
    /// EVEX or opmask registers: #UD unless CR4.OSXSAVE and XCR0 has all of AVX-512, #NM if CR0.TS.
    Avx512,
}

/// A compiled instruction. It stays valid until its [`Stubs`](crate::Stubs) is reset; running it later is refused.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    pub(crate) memory: Memory,
    pub(crate) unit: Unit,
}

impl Stub {
    /// What memory the instruction touches.
    #[inline]
    pub const fn memory(&self) -> Memory {
        self.memory
    }

    /// Which part of the processor the instruction belongs to.
    #[inline]
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// Checks that the guest's system software has enabled the instruction's unit.
    ///
    /// # Errors
    /// #UD or #NM.
    #[inline]
    pub fn check_enabled(&self, _cpu: &CpuState) -> Result<(), Exception> {
        Ok(())
    }

    /// Checks the operand's linear address for instructions that demand alignment. This comes before any page fault.
    ///
    /// # Errors
    /// #GP(0) if `address` is not aligned as the instruction demands.
    #[inline]
    pub fn check_alignment(&self, _address: u64) -> Result<(), Exception> {
        Ok(())
    }

    /// Records the pointers that x87 keeps of its last non-control instruction, for [`Unit::X87`] after a run without
    /// exception: `rip` is the instruction's address within CS, `data` its memory operand's effective address within its
    /// segment. It does nothing for instructions that leave the pointers alone.
    #[inline]
    pub fn record_x87_pointers(&self, _cpu: &mut CpuState, _rip: u64, _data: u64) {}
}
