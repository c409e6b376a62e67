//! Operands that may be a register or memory, for handlers that are not worth specialising by kind.

use crate::flags::LazyFlags;
use crate::host::Word;
use crate::op::{Fault, Flexible, Flow, Form, Op, Step};
use crate::processor::Core;
use belljar_x86::Access;

/// In the place of a register number: the memory operand.
pub const MEMORY: u8 = 0x80;
/// In the place of a register number: the memory operand of an instruction with a LOCK prefix.
pub const LOCKED: u8 = 0x81;

/// Reads an operand.
#[inline(always)]
pub fn read<T: Word>(core: &mut Core, op: &Op, operand: u8) -> Result<T, Fault> {
    if operand < MEMORY {
        return Ok(core.reg(operand));
    }
    let linear = Flexible::linear::<T>(core, op, Access::Read)?;
    core.read(linear)
}

/// Writes an operand.
#[inline(always)]
pub fn write<T: Word>(core: &mut Core, op: &Op, operand: u8, value: T) -> Step {
    if operand < MEMORY {
        core.set_reg(operand, value);
        return Ok(Flow::Next);
    }
    let linear = Flexible::linear::<T>(core, op, Access::Write)?;
    core.write(linear, value)?;
    core.stored()
}

/// Reads, changes and writes an operand; atomically if it is [`LOCKED`], when `change` may be
/// called more than once.
#[inline(always)]
pub fn modify<T: Word>(
    core: &mut Core,
    op: &Op,
    operand: u8,
    change: impl Fn(&mut LazyFlags, T) -> T,
) -> Step {
    if operand < MEMORY {
        let old = core.reg(operand);
        let new = change(&mut core.flags, old);
        core.set_reg(operand, new);
        return Ok(Flow::Next);
    }
    let linear = Flexible::linear::<T>(core, op, Access::Write)?;
    if operand == LOCKED {
        core.modify_locked(linear, change)?;
    } else {
        core.modify(linear, change)?;
    }
    core.stored()
}
