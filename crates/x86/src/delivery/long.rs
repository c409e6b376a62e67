//! Delivery in long mode. SDM 3A, 6.14.

use super::protected::handler;
use super::{Passage, handler_flags};
use crate::descriptor::{Descriptor, null_segment, system};
use crate::inner_stack::{InnerStack, interrupt_stack};
use crate::paging::is_canonical;
use crate::stack::Stack;
use crate::task::Fault;
use crate::transfer::{check_target, enter, set_stack_pointer, with_level};
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg};

pub(super) fn deliver(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    passage: &Passage,
) -> Result<(), Fault> {
    let (gate, offset) = gate(cpu, mem, passage)?;
    let target = handler(cpu, mem, gate.gate_selector())?;
    if !target.descriptor.is_code64() {
        return Err(Exception::general_protection(target.error()).into());
    }
    let inner = !target.descriptor.is_conforming() && target.descriptor.dpl() < cpu.cpl;
    let cpl = if inner {
        target.descriptor.dpl()
    } else {
        cpu.cpl
    };
    let code = target.segment(with_level(target.selector, cpl));
    check_target(cpu, &code, offset)?;
    let mut stack = stack(cpu, mem, gate.gate_ist(), inner, cpl)?;
    stack.push(cpu, mem, u64::from(cpu.seg(Seg::Ss).selector), 8)?;
    stack.push(cpu, mem, cpu.gpr[Gpr::Rsp as usize], 8)?;
    stack.push(cpu, mem, passage.flags, 8)?;
    stack.push(cpu, mem, u64::from(cpu.seg(Seg::Cs).selector), 8)?;
    stack.push(cpu, mem, cpu.rip, 8)?;
    if let Some(error) = passage.error {
        stack.push(cpu, mem, u64::from(error), 8)?;
    }
    target.mark_accessed(cpu, mem)?;

    if inner {
        cpu.segments[Seg::Ss as usize] = null_segment(u16::from(cpl));
    }
    set_stack_pointer(cpu, &stack);
    enter(cpu, code, offset, cpl);
    cpu.rflags = handler_flags(cpu.rflags, gate.kind() & system::TRAP != 0);
    Ok(())
}

/// The IDT's gate for an event, and the handler's offset. SDM 3A, 6.14.1.
fn gate(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    passage: &Passage,
) -> Result<(Descriptor, u64), Exception> {
    let error = passage.gate_error();
    let offset = u64::from(passage.vector) * 16;
    if offset + 15 > u64::from(cpu.idtr.limit) {
        return Err(Exception::general_protection(error));
    }
    let at = cpu.idtr.base.wrapping_add(offset);
    let gate = Descriptor(mem.load(cpu, at, 8, Access::SystemRead)?);
    let known = matches!(gate.kind(), system::INTERRUPT_GATE32 | system::TRAP_GATE32);
    if !known || !gate.is_system() || (passage.software && gate.dpl() < cpu.cpl) {
        return Err(Exception::general_protection(error));
    }
    if !gate.present() {
        return Err(Exception::segment_not_present(error));
    }
    let upper = mem.load(cpu, at.wrapping_add(8), 8, Access::SystemRead)?;
    Ok((gate, u64::from(gate.gate_offset()) | upper << 32))
}

/// The handler's stack, aligned to 16 bytes. SDM 3A, 6.14.2 and 6.14.5.
fn stack(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    ist: u8,
    inner: bool,
    cpl: u8,
) -> Result<Stack, Exception> {
    const ALIGNED: u64 = !15;
    let pointer = if ist != 0 {
        interrupt_stack(cpu, mem, ist)?
    } else if inner {
        InnerStack::pointer_64bit(cpu, mem, cpl)?
    } else {
        cpu.gpr[Gpr::Rsp as usize]
    };
    if !is_canonical(pointer) {
        return Err(Exception::stack_fault(0));
    }
    let write = if inner {
        Access::SystemWrite
    } else {
        Access::Write
    };
    Ok(Stack::flat(pointer & ALIGNED, write))
}
