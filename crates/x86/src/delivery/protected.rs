//! Delivery in protected and virtual-8086 mode. SDM 3A, 6.12.

use super::{Passage, handler_flags};
use crate::descriptor::{Descriptor, Entry, is_null, null_segment, system, system_address};
use crate::inner_stack::InnerStack;
use crate::stack::Stack;
use crate::task::{self, Cause, Fault, Switch};
use crate::transfer::{check_target, enter, set_stack_pointer, with_level};
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg};

pub(super) fn deliver(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    passage: &Passage,
) -> Result<(), Fault> {
    let gate = gate(cpu, mem, passage)?;
    if gate.kind() == system::TASK_GATE {
        let switch = Switch {
            selector: gate.gate_selector(),
            cause: Cause::Event,
            next: cpu.rip,
            flags: passage.flags,
            error: passage.error,
        };
        return task::switch(cpu, mem, &switch);
    }
    let target = handler(cpu, mem, gate.gate_selector())?;
    let inner = !target.descriptor.is_conforming() && target.descriptor.dpl() < cpu.cpl;
    let cpl = if inner {
        target.descriptor.dpl()
    } else {
        cpu.cpl
    };
    if cpu.virtual_8086() && (!inner || cpl != 0) {
        return Err(Exception::general_protection(target.error()).into());
    }
    let code = target.segment(with_level(target.selector, cpl));
    let offset = u64::from(gate.gate_offset());
    let size = if gate.kind() & system::WIDE != 0 {
        4
    } else {
        2
    };
    let new = if inner {
        let mut new = InnerStack::find(cpu, mem, cpl)?;
        push_outer_context(cpu, mem, &mut new.stack, size)?;
        new
    } else {
        InnerStack {
            stack: Stack::current(cpu),
            segment: *cpu.seg(Seg::Ss),
        }
    };
    let mut stack = new.stack;
    stack.push(cpu, mem, passage.flags, size)?;
    stack.push(cpu, mem, u64::from(cpu.seg(Seg::Cs).selector), size)?;
    stack.push(cpu, mem, cpu.rip, size)?;
    if let Some(error) = passage.error {
        stack.push(cpu, mem, u64::from(error), size)?;
    }
    check_target(cpu, &code, offset)?;
    target.mark_accessed(cpu, mem)?;

    if cpu.virtual_8086() {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            cpu.segments[seg as usize] = null_segment(0);
        }
    }
    cpu.segments[Seg::Ss as usize] = new.segment;
    set_stack_pointer(cpu, &stack);
    enter(cpu, code, offset, cpl);
    cpu.rflags = handler_flags(cpu.rflags, gate.kind() & system::TRAP != 0);
    Ok(())
}

/// The IDT's gate for an event. SDM 3A, 6.12.1.1.
fn gate(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    passage: &Passage,
) -> Result<Descriptor, Exception> {
    let error = passage.gate_error();
    let offset = u32::from(passage.vector) * 8;
    if offset + 7 > u32::from(cpu.idtr.limit) {
        return Err(Exception::general_protection(error));
    }
    let at = system_address(cpu, cpu.idtr.base, offset);
    let gate = Descriptor(mem.load(cpu, at, 8, Access::SystemRead)?);
    let known = matches!(
        gate.kind(),
        system::TASK_GATE
            | system::INTERRUPT_GATE16
            | system::TRAP_GATE16
            | system::INTERRUPT_GATE32
            | system::TRAP_GATE32
    );
    if !known || !gate.is_system() || (passage.software && gate.dpl() < cpu.cpl) {
        return Err(Exception::general_protection(error));
    }
    if !gate.present() {
        return Err(Exception::segment_not_present(error));
    }
    Ok(gate)
}

/// The handler's code segment.
pub(super) fn handler(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Entry, Exception> {
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    let target = Entry::read(cpu, mem, selector, Exception::general_protection)?;
    if !target.descriptor.is_code() || target.descriptor.dpl() > cpu.cpl {
        return Err(Exception::general_protection(target.error()));
    }
    if !target.descriptor.present() {
        return Err(Exception::segment_not_present(target.error()));
    }
    Ok(target)
}

/// Pushes what an interrupt to an inner level saves before flags and return address.
fn push_outer_context(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    stack: &mut Stack,
    size: u8,
) -> Result<(), Exception> {
    let selector = |seg: Seg| u64::from(cpu.seg(seg).selector);
    if cpu.virtual_8086() {
        for seg in [Seg::Gs, Seg::Fs, Seg::Ds, Seg::Es] {
            stack.push(cpu, mem, selector(seg), size)?;
        }
    }
    stack.push(cpu, mem, selector(Seg::Ss), size)?;
    stack.push(cpu, mem, cpu.gpr[Gpr::Rsp as usize], size)
}
