//! Far RET and IRET.

use super::{OperandSize, check_target, enter, is_64bit, named, present_code, set_stack_pointer};
use crate::bits::rflags;
use crate::descriptor::{
    Entry, is_null, null_segment, paragraph_segment, stack_segment, system_address,
    virtual_8086_segment,
};
use crate::stack::Stack;
use crate::task::{self, Cause, Switch};
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg, Segment};

/// The flags that every return from an interrupt restores; RF is cleared by the 16-bit form.
const ALWAYS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::RF;
/// The flags that only the 32-bit and 64-bit forms restore.
const WIDE: u64 = rflags::AC | rflags::ID;

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
    let release = u64::from(release);
    let mut stack = Stack::current(cpu);
    let offset = stack.pop(cpu, mem, size.bytes())?;
    let selector = stack.pop(cpu, mem, size.bytes())? as u16;
    stack.skip(release);
    if !cpu.protected() || cpu.virtual_8086() {
        let segment = paragraph_segment(cpu, cpu.seg(Seg::Cs), selector);
        check_target(cpu, &segment, offset)?;
        set_stack_pointer(cpu, &stack);
        enter(cpu, segment, offset, cpu.cpl);
        return Ok(());
    }
    let target = returned_code(cpu, mem, selector)?;
    let code = target.segment(selector);
    check_target(cpu, &code, offset)?;
    if code.rpl() == cpu.cpl {
        target.mark_accessed(cpu, mem)?;
        set_stack_pointer(cpu, &stack);
        enter(cpu, code, offset, cpu.cpl);
        return Ok(());
    }
    let outer = Outer::pop(cpu, mem, &mut stack, size, &code)?;
    target.mark_accessed(cpu, mem)?;
    outer.enter(cpu, code, offset, release);
    Ok(())
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
    // Even an IRET that faults unblocks NMIs. SDM 3A, 6.7.1.
    cpu.nmi_blocked = false;
    if !cpu.protected() || cpu.virtual_8086() {
        return iret_paragraph(cpu, mem, size);
    }
    if cpu.rflags & rflags::NT != 0 {
        if cpu.long_mode() {
            return Err(Exception::general_protection(0));
        }
        return return_to_task(cpu, mem, next);
    }
    let mut stack = Stack::current(cpu);
    let bytes = size.bytes();
    let offset = stack.pop(cpu, mem, bytes)?;
    let selector = stack.pop(cpu, mem, bytes)? as u16;
    let flags = stack.pop(cpu, mem, bytes)?;
    let to_virtual_8086 = flags & rflags::VM != 0 && size != OperandSize::Bits16;
    if to_virtual_8086 && cpu.cpl == 0 && !cpu.long_mode() {
        return enter_virtual_8086(cpu, mem, &mut stack, offset, selector, flags);
    }
    let target = returned_code(cpu, mem, selector)?;
    let code = target.segment(selector);
    check_target(cpu, &code, offset)?;
    let kept = !restored_flags(cpu, size);
    let flags = cpu.rflags & kept | flags & !kept;
    // 64-bit mode pops the stack pointer always.
    if code.rpl() == cpu.cpl && !cpu.code64() {
        target.mark_accessed(cpu, mem)?;
        set_stack_pointer(cpu, &stack);
        enter(cpu, code, offset, cpu.cpl);
    } else {
        let outer = Outer::pop(cpu, mem, &mut stack, size, &code)?;
        target.mark_accessed(cpu, mem)?;
        outer.enter(cpu, code, offset, 0);
    }
    cpu.rflags = flags;
    Ok(())
}

/// The flags that IRET of protected mode restores at the present level. SDM 2, IRET.
fn restored_flags(cpu: &CpuState, size: OperandSize) -> u64 {
    let wide = size != OperandSize::Bits16;
    let mut mask = ALWAYS;
    if wide {
        mask |= WIDE;
    }
    if cpu.cpl <= iopl(cpu) {
        mask |= rflags::IF;
    }
    if cpu.cpl == 0 {
        mask |= rflags::IOPL;
        if wide {
            mask |= rflags::VIF | rflags::VIP;
        }
    }
    mask
}

const fn iopl(cpu: &CpuState) -> u8 {
    ((cpu.rflags & rflags::IOPL) >> rflags::IOPL_SHIFT) as u8
}

/// IRET in real-address and virtual-8086 mode.
fn iret_paragraph(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    size: OperandSize,
) -> Result<(), Exception> {
    let virtual_8086 = cpu.virtual_8086();
    if virtual_8086 && iopl(cpu) != 3 {
        return Err(Exception::general_protection(0));
    }
    let mut stack = Stack::current(cpu);
    let offset = stack.pop(cpu, mem, size.bytes())?;
    let selector = stack.pop(cpu, mem, size.bytes())? as u16;
    let flags = stack.pop(cpu, mem, size.bytes())?;
    let segment = paragraph_segment(cpu, cpu.seg(Seg::Cs), selector);
    check_target(cpu, &segment, offset)?;
    let mut mask = ALWAYS | rflags::IF;
    if size != OperandSize::Bits16 {
        mask |= WIDE;
    }
    if !virtual_8086 {
        mask |= rflags::IOPL;
    }
    set_stack_pointer(cpu, &stack);
    enter(cpu, segment, offset, cpu.cpl);
    cpu.rflags = cpu.rflags & !mask | flags & mask;
    Ok(())
}

/// IRET with NT set: back to the task that called this one. SDM 3A, 7.4.
fn return_to_task(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    next: u64,
) -> Result<(), Exception> {
    let link = system_address(cpu, cpu.tr.base, 0);
    let selector = mem.load(cpu, link, 2, Access::SystemRead)? as u16;
    let switch = Switch {
        selector,
        cause: Cause::Return,
        next,
        flags: cpu.rflags,
        error: None,
    };
    task::switch(cpu, mem, &switch).map_err(|fault| fault.exception)
}

/// IRETD at level 0 with VM in the flags popped. SDM 3A, 21.2.5.
fn enter_virtual_8086(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    stack: &mut Stack,
    offset: u64,
    selector: u16,
    flags: u64,
) -> Result<(), Exception> {
    let rsp = stack.pop(cpu, mem, 4)?;
    let mut selectors = [0; 5];
    for slot in &mut selectors {
        *slot = stack.pop(cpu, mem, 4)? as u16;
    }
    let code = virtual_8086_segment(selector);
    check_target(cpu, &code, offset)?;
    let order = [Seg::Ss, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs];
    for (seg, selector) in order.into_iter().zip(selectors) {
        cpu.segments[seg as usize] = virtual_8086_segment(selector);
    }
    cpu.gpr[Gpr::Rsp as usize] = rsp;
    cpu.rflags = flags & rflags::WRITABLE | rflags::FIXED;
    enter(cpu, code, offset, 3);
    Ok(())
}

/// The code segment to which a return leads: of the same level or an outer one. SDM 3A, 5.8.6.
fn returned_code(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Entry, Exception> {
    let entry = named(cpu, mem, selector)?;
    let descriptor = entry.descriptor;
    let rpl = selector as u8 & 3;
    let level = if descriptor.is_conforming() {
        descriptor.dpl() <= rpl
    } else {
        descriptor.dpl() == rpl
    };
    if !descriptor.is_code() || rpl < cpu.cpl || !level {
        return Err(Exception::general_protection(entry.error()));
    }
    present_code(cpu, &entry)?;
    Ok(entry)
}

/// The stack to which a return goes with a change of level, or always in 64-bit mode.
struct Outer {
    rsp: u64,
    segment: Segment,
}

impl Outer {
    /// Pops RSP and SS for a return to `code`.
    fn pop(
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        stack: &mut Stack,
        size: OperandSize,
        code: &Segment,
    ) -> Result<Self, Exception> {
        let rsp = stack.pop(cpu, mem, size.bytes())?;
        let selector = stack.pop(cpu, mem, size.bytes())? as u16;
        let level = code.rpl();
        // 64-bit code needs no stack segment except at level 3.
        let unneeded = is_64bit(cpu, code) && level != 3 && selector as u8 & 3 == level;
        let segment = if is_null(selector) && unneeded {
            null_segment(selector)
        } else {
            stack_segment(cpu, mem, selector, level, Exception::general_protection)?
        };
        Ok(Self { rsp, segment })
    }

    /// Goes on at `offset` in `code` with this stack, `release` bytes of which are dropped.
    fn enter(self, cpu: &mut CpuState, code: Segment, offset: u64, release: u64) {
        let outward = code.rpl() > cpu.cpl;
        let level = code.rpl();
        let mut stack = if is_64bit(cpu, &code) {
            Stack::flat(self.rsp, Access::Write)
        } else {
            Stack::of(self.segment, self.rsp, 0)
        };
        stack.skip(release);
        set_stack_pointer(cpu, &stack);
        cpu.segments[Seg::Ss as usize] = self.segment;
        enter(cpu, code, offset, level);
        if outward {
            drop_inner_segments(cpu);
        }
    }
}

/// Nulls the data segments that the present level may not use. SDM 3A, 5.8.6.
///
/// Their bases stay, as on hardware: in 64-bit mode those of FS and GS count whatever the selector,
/// and kernels that never load the selectors of their own go by the base alone.
fn drop_inner_segments(cpu: &mut CpuState) {
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        let segment = cpu.seg(seg);
        let conforming = segment.has(Segment::CODE) && segment.has(Segment::EXPAND_DOWN);
        if segment.usable && !conforming && segment.dpl() < cpu.cpl {
            cpu.segments[seg as usize] = Segment {
                base: segment.base,
                ..null_segment(0)
            };
        }
    }
}
