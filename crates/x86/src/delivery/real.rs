//! Delivery in real-address mode. SDM 3A, 21.1.4.

use super::Passage;
use crate::bits::rflags;
use crate::descriptor::paragraph_segment;
use crate::stack::Stack;
use crate::task::Fault;
use crate::transfer::{check_target, enter, set_stack_pointer};
use crate::{Access, CpuState, Exception, LinearMemory, Seg};

pub(super) fn deliver(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    passage: &Passage,
) -> Result<(), Fault> {
    let offset = u64::from(passage.vector) * 4;
    if offset + 3 > u64::from(cpu.idtr.limit) {
        return Err(Exception::general_protection(passage.gate_error()).into());
    }
    let at = cpu.idtr.base.wrapping_add(offset) & 0xffff_ffff;
    let pointer = mem.load(cpu, at, 4, Access::SystemRead)?;
    let (selector, offset) = ((pointer >> 16) as u16, pointer & 0xffff);
    let mut stack = Stack::current(cpu);
    // Error codes do not exist here.
    stack.push(cpu, mem, passage.flags, 2)?;
    stack.push(cpu, mem, u64::from(cpu.seg(Seg::Cs).selector), 2)?;
    stack.push(cpu, mem, cpu.rip, 2)?;
    let code = paragraph_segment(cpu, cpu.seg(Seg::Cs), selector);
    check_target(cpu, &code, offset)?;
    set_stack_pointer(cpu, &stack);
    enter(cpu, code, offset, cpu.cpl);
    cpu.rflags &= !(rflags::IF | rflags::TF | rflags::RF | rflags::AC);
    Ok(())
}
