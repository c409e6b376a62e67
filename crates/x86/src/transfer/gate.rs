//! Far jumps and calls through system descriptors: call gates, task gates and TSSs. SDM 3A, 5.8.3
//! and 7.3.

use super::{check_target, enter, named, present_code, push_return, set_stack_pointer, with_level};
use crate::descriptor::{Entry, system};
use crate::inner_stack::InnerStack;
use crate::stack::Stack;
use crate::task::{self, Cause, Switch};
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg, Segment};

/// JMP to a system descriptor.
pub(super) fn jump(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    entry: &Entry,
    next: u64,
) -> Result<(), Exception> {
    if !is_call_gate(cpu, entry) {
        return switch_task(cpu, mem, entry, Cause::Jump, next);
    }
    let (target, offset) = call_gate(cpu, mem, entry)?;
    if !target.descriptor.is_conforming() && target.descriptor.dpl() != cpu.cpl {
        return Err(Exception::general_protection(target.error()));
    }
    let segment = code(cpu, &target, cpu.cpl)?;
    check_target(cpu, &segment, offset)?;
    target.mark_accessed(cpu, mem)?;
    enter(cpu, segment, offset, cpu.cpl);
    Ok(())
}

/// CALL to a system descriptor.
pub(super) fn call(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    entry: &Entry,
    next: u64,
) -> Result<(), Exception> {
    if !is_call_gate(cpu, entry) {
        return switch_task(cpu, mem, entry, Cause::Call, next);
    }
    let (target, offset) = call_gate(cpu, mem, entry)?;
    let inner = !target.descriptor.is_conforming() && target.descriptor.dpl() < cpu.cpl;
    let cpl = if inner {
        target.descriptor.dpl()
    } else {
        cpu.cpl
    };
    let segment = code(cpu, &target, cpl)?;
    check_target(cpu, &segment, offset)?;
    let size = if cpu.long_mode() {
        8
    } else if entry.descriptor.kind() == system::CALL_GATE32 {
        4
    } else {
        2
    };
    target.mark_accessed(cpu, mem)?;
    if inner {
        let parameters = entry.descriptor.gate_parameters();
        let new = inner_stack(cpu, mem, cpl, size, parameters, next)?;
        cpu.segments[Seg::Ss as usize] = new.segment;
        set_stack_pointer(cpu, &new.stack);
    } else {
        // Long mode knows no stack but the 64-bit one once the gate is passed.
        let mut stack = if cpu.long_mode() {
            Stack::flat(cpu.gpr[Gpr::Rsp as usize], Access::Write)
        } else {
            Stack::current(cpu)
        };
        push_return(cpu, mem, &mut stack, size, next)?;
        set_stack_pointer(cpu, &stack);
    }
    enter(cpu, segment, offset, cpl);
    Ok(())
}

fn is_call_gate(cpu: &CpuState, entry: &Entry) -> bool {
    match entry.descriptor.kind() {
        system::CALL_GATE32 => true,
        system::CALL_GATE16 => !cpu.long_mode(),
        _ => false,
    }
}

/// The code descriptor and offset to which a call gate leads. SDM 3A, 5.8.4.
fn call_gate(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    gate: &Entry,
) -> Result<(Entry, u64), Exception> {
    check_gate(cpu, gate)?;
    let mut offset = u64::from(gate.descriptor.gate_offset());
    if cpu.long_mode() {
        offset |= gate.upper(cpu, mem, Exception::general_protection)? << 32;
    }
    let target = named(cpu, mem, gate.descriptor.gate_selector())?;
    let descriptor = target.descriptor;
    // A gate of long mode leads to 64-bit code alone.
    let wrong = cpu.long_mode() && !descriptor.is_code64();
    if !descriptor.is_code() || descriptor.dpl() > cpu.cpl || wrong {
        return Err(Exception::general_protection(target.error()));
    }
    Ok((target, offset))
}

/// Whether the present level may use a gate or TSS, and it is present.
fn check_gate(cpu: &CpuState, gate: &Entry) -> Result<(), Exception> {
    let level = cpu.cpl.max(gate.selector as u8 & 3);
    if gate.descriptor.dpl() < level {
        return Err(Exception::general_protection(gate.error()));
    }
    if !gate.descriptor.present() {
        return Err(Exception::segment_not_present(gate.error()));
    }
    Ok(())
}

/// The code segment of `target` for privilege level `cpl`.
fn code(cpu: &CpuState, target: &Entry, cpl: u8) -> Result<Segment, Exception> {
    present_code(cpu, target)?;
    Ok(target.segment(with_level(target.selector, cpl)))
}

/// The inner stack with the old stack pointer, the parameters and the return address on it. SDM 3A,
/// 5.8.5.
fn inner_stack(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    cpl: u8,
    size: u8,
    parameters: u8,
    next: u64,
) -> Result<InnerStack, Exception> {
    let mut new = if cpu.long_mode() {
        InnerStack::find_64bit(cpu, mem, cpl)?
    } else {
        InnerStack::find(cpu, mem, cpl)?
    };
    new.stack
        .push(cpu, mem, u64::from(cpu.seg(Seg::Ss).selector), size)?;
    new.stack.push(cpu, mem, cpu.gpr[Gpr::Rsp as usize], size)?;
    if !cpu.long_mode() {
        // The last parameter, which lies highest, is pushed first.
        for index in (0..parameters).rev() {
            let mut old = Stack::current(cpu);
            old.skip(u64::from(index) * u64::from(size));
            let value = old.pop(cpu, mem, size)?;
            new.stack.push(cpu, mem, value, size)?;
        }
    }
    push_return(cpu, mem, &mut new.stack, size, next)?;
    Ok(new)
}

/// JMP or CALL to a task gate or TSS.
fn switch_task(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    entry: &Entry,
    cause: Cause,
    next: u64,
) -> Result<(), Exception> {
    let kind = entry.descriptor.kind();
    let selector = match kind {
        _ if cpu.long_mode() => None,
        system::TASK_GATE => Some(entry.descriptor.gate_selector()),
        system::TSS16_AVAILABLE | system::TSS32_AVAILABLE => Some(entry.selector),
        _ => None,
    }
    .ok_or(Exception::general_protection(entry.error()))?;
    check_gate(cpu, entry)?;
    let switch = Switch {
        selector,
        cause,
        next,
        flags: cpu.rflags,
        error: None,
    };
    task::switch(cpu, mem, &switch).map_err(|fault| fault.exception)
}
