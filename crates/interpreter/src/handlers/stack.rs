//! PUSH, POP, PUSHA, POPA, ENTER, LEAVE.

use super::operand::{self, MEMORY};
use crate::host::Word;
use crate::op::{Flow, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::{Access, Gpr};

const RSP: u8 = Gpr::Rsp as u8;
const RBP: u8 = Gpr::Rbp as u8;

/// PUSH register.
pub fn push_register<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<T>(op.src);
    core.push(value)?;
    core.stored()
}

/// PUSH immediate.
pub fn push_immediate<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.push(T::truncate(op.imm))?;
    core.stored()
}

/// PUSH memory.
pub fn push_memory<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = operand::read::<T>(core, op, MEMORY)?;
    core.push(value)?;
    core.stored()
}

/// POP register.
pub fn pop_register<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.pop::<T>()?;
    core.set_reg(op.dst, value);
    Ok(Flow::Next)
}

/// POP memory: an address by RSP is computed after RSP is incremented.
pub fn pop_memory<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.peek::<T>(0)?;
    let before = core.gpr(RSP);
    core.release(T::BYTES);
    let written = operand::write(core, op, MEMORY, value);
    if written.is_err() {
        core.set_gpr(RSP, before);
    }
    written
}

/// PUSHA, PUSHAD
pub fn push_all<T: Word>(core: &mut Core, _op: &Op) -> Step {
    let before = core.gpr(RSP);
    for number in 0..8 {
        let value = if number == RSP {
            T::truncate(before)
        } else {
            core.reg::<T>(number)
        };
        if let Err(fault) = core.push(value) {
            core.set_gpr(RSP, before);
            return Err(fault);
        }
    }
    core.stored()
}

/// POPA, POPAD
pub fn pop_all<T: Word>(core: &mut Core, _op: &Op) -> Step {
    let mut values = [0; 8];
    for (above, value) in (0..).step_by(T::BYTES as usize).zip(&mut values) {
        *value = core.peek::<T>(above)?.extend();
    }
    for (number, value) in (0..8).rev().zip(values) {
        if number != RSP {
            core.set_reg(number, T::truncate(value));
        }
    }
    core.release(8 * T::BYTES);
    Ok(Flow::Next)
}

/// LEAVE
pub fn leave<T: Word>(core: &mut Core, _op: &Op) -> Step {
    let before = core.gpr(RSP);
    let frame = core.gpr(RBP);
    core.set_stack_pointer(frame);
    match core.pop::<T>() {
        Ok(value) => {
            core.set_reg(RBP, value);
            Ok(Flow::Next)
        }
        Err(fault) => {
            core.set_gpr(RSP, before);
            Err(fault)
        }
    }
}

/// ENTER: the immediate holds the frame's size, and the nesting level from bit 16 on.
pub fn enter<T: Word>(core: &mut Core, op: &Op) -> Step {
    let before = core.gpr(RSP);
    let result = enter_frame::<T>(core, op);
    result.map_err(|fault| {
        core.set_gpr(RSP, before);
        core.stack_fault(fault)
    })
}

fn enter_frame<T: Word>(core: &mut Core, op: &Op) -> Step {
    let (size, level) = (op.imm & 0xffff, op.imm >> 16 & 31);
    let base = core.gpr(RBP);
    core.push(T::truncate(base))?;
    let frame = core.gpr(RSP);
    let mask = core.stack_mask();
    for n in 1..level {
        let offset = base.wrapping_sub(n * T::BYTES) & mask;
        let at = core.stack_linear::<T>(offset, Access::Read)?;
        let value = core.read::<T>(at)?;
        core.push(value)?;
    }
    if level > 0 {
        core.push(T::truncate(frame))?;
    }
    // The new top of the stack must be writable (SDM 2, ENTER), though nothing is written.
    let top = core.gpr(RSP).wrapping_sub(size) & mask;
    let at = core.stack_linear::<T>(top, Access::Write)?;
    core.probe_write(at, T::BYTES)?;
    core.set_stack_pointer(top);
    if T::BYTES == 2 {
        core.set_reg(RBP, T::truncate(frame));
    } else {
        core.set_masked(
            Gpr::Rbp,
            if T::BYTES == 8 { u64::MAX } else { 0xffff_ffff },
            frame,
        );
    }
    core.stored()
}

/// BOUND: #BR unless the register lies within the two bounds in memory.
pub fn bound<T: Word>(core: &mut Core, op: &Op) -> Step {
    let offset = effective_address(core, op);
    let low = linear(core, op, offset, T::BYTES as u32, Access::Read)?;
    let low = core.read::<T>(low)?.sign_extend() as i64;
    let second = offset.wrapping_add(T::BYTES) & op.address_mask();
    let high = linear(core, op, second, T::BYTES as u32, Access::Read)?;
    let high = core.read::<T>(high)?.sign_extend() as i64;
    let index = core.reg::<T>(op.dst).sign_extend() as i64;
    if index < low || index > high {
        return Err(core.raise(belljar_x86::Exception::bound_range()));
    }
    Ok(Flow::Next)
}
