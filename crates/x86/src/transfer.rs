//! Far jumps, calls and returns, and IRET. SDM 3A, 5.8; SDM 2, the instructions' pages.
//!
//! On entry `cpu.rip` is the instruction's own address; `next` is that of the next one. When a
//! function fails, the exception is to be delivered with `cpu` as it stands: nothing has changed,
//! unless the fault came late in a task switch, when it belongs to the new task. Whether the new
//! instruction pointer's page can be fetched is found when it is fetched.

mod gate;
mod ret;

pub use ret::{far_return, iret};

use crate::descriptor::{Entry, is_null, paragraph_segment};
use crate::paging::is_canonical;
use crate::stack::Stack;
use crate::{CpuState, Exception, Gpr, LinearMemory, Seg, Segment};

/// An instruction's operand size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum OperandSize {
    Bits16 = 2,
    Bits32 = 4,
    Bits64 = 8,
}

impl OperandSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u8 {
        self as u8
    }

    /// The part of `value` that an operand of this size holds.
    pub const fn truncate(self, value: u64) -> u64 {
        match self {
            Self::Bits16 => value & 0xffff,
            Self::Bits32 => value & 0xffff_ffff,
            Self::Bits64 => value,
        }
    }
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
    let offset = size.truncate(offset);
    if !cpu.protected() || cpu.virtual_8086() {
        let segment = paragraph_segment(cpu, cpu.seg(Seg::Cs), selector);
        check_target(cpu, &segment, offset)?;
        enter(cpu, segment, offset, cpu.cpl);
        return Ok(());
    }
    let entry = named(cpu, mem, selector)?;
    if entry.descriptor.is_system() {
        return gate::jump(cpu, mem, &entry, next);
    }
    let segment = direct(cpu, &entry)?;
    check_target(cpu, &segment, offset)?;
    entry.mark_accessed(cpu, mem)?;
    enter(cpu, segment, offset, cpu.cpl);
    Ok(())
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
    let offset = size.truncate(offset);
    let segment = if !cpu.protected() || cpu.virtual_8086() {
        let segment = paragraph_segment(cpu, cpu.seg(Seg::Cs), selector);
        check_target(cpu, &segment, offset)?;
        segment
    } else {
        let entry = named(cpu, mem, selector)?;
        if entry.descriptor.is_system() {
            return gate::call(cpu, mem, &entry, next);
        }
        let segment = direct(cpu, &entry)?;
        check_target(cpu, &segment, offset)?;
        entry.mark_accessed(cpu, mem)?;
        segment
    };
    let mut stack = Stack::current(cpu);
    push_return(cpu, mem, &mut stack, size.bytes(), next)?;
    set_stack_pointer(cpu, &stack);
    enter(cpu, segment, offset, cpu.cpl);
    Ok(())
}

/// The descriptor of a far pointer.
fn named(cpu: &CpuState, mem: &mut impl LinearMemory, selector: u16) -> Result<Entry, Exception> {
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    Entry::read(cpu, mem, selector, Exception::general_protection)
}

/// The code segment that JMP or CALL reaches without a gate: at the same privilege level. SDM 3A,
/// 5.8.1.
fn direct(cpu: &CpuState, entry: &Entry) -> Result<Segment, Exception> {
    let descriptor = entry.descriptor;
    let level = if descriptor.is_conforming() {
        descriptor.dpl() <= cpu.cpl
    } else {
        entry.selector as u8 & 3 <= cpu.cpl && descriptor.dpl() == cpu.cpl
    };
    if !descriptor.is_code() || !level {
        return Err(Exception::general_protection(entry.error()));
    }
    present_code(cpu, entry)?;
    Ok(entry.segment(with_level(entry.selector, cpu.cpl)))
}

/// A code segment must be present, and in long mode not be 64-bit and 32-bit code at once.
fn present_code(cpu: &CpuState, entry: &Entry) -> Result<(), Exception> {
    let descriptor = entry.descriptor;
    let both = descriptor.has(Segment::LONG) && descriptor.has(Segment::BIG);
    if cpu.long_mode() && both {
        return Err(Exception::general_protection(entry.error()));
    }
    if !descriptor.present() {
        return Err(Exception::segment_not_present(entry.error()));
    }
    Ok(())
}

/// `selector` with `level` for its RPL.
pub(crate) const fn with_level(selector: u16, level: u8) -> u16 {
    selector & !3 | level as u16
}

/// Whether `segment` is 64-bit code.
pub(crate) const fn is_64bit(cpu: &CpuState, segment: &Segment) -> bool {
    cpu.long_mode() && segment.has(Segment::LONG)
}

/// Checks that code at `offset` lies within `segment`.
pub(crate) fn check_target(
    cpu: &CpuState,
    segment: &Segment,
    offset: u64,
) -> Result<(), Exception> {
    let within = if is_64bit(cpu, segment) {
        is_canonical(offset)
    } else {
        offset & 0xffff_ffff <= u64::from(segment.limit)
    };
    if within {
        Ok(())
    } else {
        Err(Exception::general_protection(0))
    }
}

/// Goes on at `offset` in `segment`, at privilege level `cpl`.
pub(crate) fn enter(cpu: &mut CpuState, segment: Segment, offset: u64, cpl: u8) {
    cpu.rip = if is_64bit(cpu, &segment) {
        offset
    } else {
        offset & 0xffff_ffff
    };
    cpu.segments[Seg::Cs as usize] = segment;
    cpu.cpl = cpl;
}

/// Sets RSP from `stack`.
pub(crate) fn set_stack_pointer(cpu: &mut CpuState, stack: &Stack) {
    let rsp = &mut cpu.gpr[Gpr::Rsp as usize];
    *rsp = stack.stack_pointer(*rsp);
}

/// Pushes CS and the return address.
fn push_return(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    stack: &mut Stack,
    size: u8,
    next: u64,
) -> Result<(), Exception> {
    stack.push(cpu, mem, u64::from(cpu.seg(Seg::Cs).selector), size)?;
    stack.push(cpu, mem, next, size)
}

#[cfg(test)]
mod tests;
