//! Where the stack of an inner privilege level begins: the TSS knows. SDM 3A, 5.8.5, 7.2.1 and 7.7.

use crate::descriptor::{error_of, null_segment, stack_segment, system, system_address};
use crate::stack::Stack;
use crate::{Access, CpuState, Exception, LinearMemory, Segment};

/// A stack of an inner level, and what SS becomes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InnerStack {
    pub(crate) stack: Stack,
    pub(crate) segment: Segment,
}

impl InnerStack {
    /// The stack for level `cpl`, outside long mode.
    pub(crate) fn find(
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        cpl: u8,
    ) -> Result<Self, Exception> {
        let wide = cpu.tr.rights & u16::from(system::WIDE) != 0;
        let word = if wide { 4 } else { 2 };
        let at = (2 * u32::from(cpl) + 1) * u32::from(word);
        check_limit(cpu, at + u32::from(word) + 1)?;
        let pointer = system_address(cpu, cpu.tr.base, at);
        let pointer = mem.load(cpu, pointer, word, Access::SystemRead)?;
        let selector = system_address(cpu, cpu.tr.base, at + u32::from(word));
        let selector = mem.load(cpu, selector, 2, Access::SystemRead)? as u16;
        let segment = stack_segment(cpu, mem, selector, cpl, Exception::invalid_tss)?;
        Ok(Self {
            stack: Stack::of(segment, pointer, error_of(selector)),
            segment,
        })
    }

    /// The stack for level `cpl` in long mode. SS becomes null.
    pub(crate) fn find_64bit(
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        cpl: u8,
    ) -> Result<Self, Exception> {
        let pointer = Self::pointer_64bit(cpu, mem, cpl)?;
        Ok(Self {
            stack: Stack::flat(pointer, Access::SystemWrite),
            segment: null_segment(u16::from(cpl)),
        })
    }

    /// The stack pointer that the 64-bit TSS holds for level `cpl`.
    pub(crate) fn pointer_64bit(
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        cpl: u8,
    ) -> Result<u64, Exception> {
        quadword(cpu, mem, 4 + 8 * u32::from(cpl))
    }
}

/// The stack pointer that the 64-bit TSS holds for entry `ist` (1 to 7) of the interrupt stack
/// table.
pub(crate) fn interrupt_stack(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    ist: u8,
) -> Result<u64, Exception> {
    quadword(cpu, mem, 0x1c + 8 * u32::from(ist))
}

fn quadword(cpu: &CpuState, mem: &mut impl LinearMemory, at: u32) -> Result<u64, Exception> {
    check_limit(cpu, at + 7)?;
    let linear = system_address(cpu, cpu.tr.base, at);
    mem.load(cpu, linear, 8, Access::SystemRead)
}

fn check_limit(cpu: &CpuState, last: u32) -> Result<(), Exception> {
    if !cpu.tr.usable || last > cpu.tr.limit {
        return Err(Exception::invalid_tss(error_of(cpu.tr.selector)));
    }
    Ok(())
}
