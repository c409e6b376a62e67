//! MOV, MOVZX, MOVSX, LEA, XCHG of registers, CMOVcc, SETcc, conversions, MOVBE, BSWAP, XLAT.

use super::operand;
use crate::host::Word;
use crate::op::{Flow, Form, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::{Access, Gpr};

/// MOV register, register.
pub fn mov_rr<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<T>(op.src);
    core.set_reg(op.dst, value);
    Ok(Flow::Next)
}

/// MOV register, immediate.
pub fn mov_ri<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.set_reg(op.dst, T::truncate(op.imm));
    Ok(Flow::Next)
}

/// MOV register, memory.
pub fn load<F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<T>(core, op, Access::Read)?;
    let value = core.read::<T>(linear)?;
    core.set_reg(op.dst, value);
    Ok(Flow::Next)
}

/// MOV memory, register.
pub fn store<F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<T>(core, op, Access::Write)?;
    let value = core.reg::<T>(op.src);
    core.write(linear, value)?;
    core.stored()
}

/// MOV memory, immediate.
pub fn store_immediate<F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<T>(core, op, Access::Write)?;
    core.write(linear, T::truncate(op.imm))?;
    core.stored()
}

/// MOV accumulator, memory at a full-width offset (which is the immediate).
pub fn load_absolute<T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = linear(core, op, op.imm, T::BYTES as u32, Access::Read)?;
    let value = core.read::<T>(linear)?;
    core.set_reg(Gpr::Rax as u8, value);
    Ok(Flow::Next)
}

/// MOV memory at a full-width offset (which is the immediate), accumulator.
pub fn store_absolute<T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = linear(core, op, op.imm, T::BYTES as u32, Access::Write)?;
    let value = core.reg::<T>(Gpr::Rax as u8);
    core.write(linear, value)?;
    core.stored()
}

/// MOVZX register, register: from `S` to `T`.
pub fn movzx_rr<S: Word, T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<S>(op.src).extend();
    core.set_reg(op.dst, T::truncate(value));
    Ok(Flow::Next)
}

/// MOVZX register, memory.
pub fn movzx_rm<S: Word, F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<S>(core, op, Access::Read)?;
    let value = core.read::<S>(linear)?.extend();
    core.set_reg(op.dst, T::truncate(value));
    Ok(Flow::Next)
}

/// MOVSX and MOVSXD register, register.
pub fn movsx_rr<S: Word, T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.reg::<S>(op.src).sign_extend();
    core.set_reg(op.dst, T::truncate(value));
    Ok(Flow::Next)
}

/// MOVSX and MOVSXD register, memory.
pub fn movsx_rm<S: Word, F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<S>(core, op, Access::Read)?;
    let value = core.read::<S>(linear)?.sign_extend();
    core.set_reg(op.dst, T::truncate(value));
    Ok(Flow::Next)
}

/// LEA with a 64-bit address of base and displacement.
pub fn lea_base<T: Word>(core: &mut Core, op: &Op) -> Step {
    let address = core.gpr(op.base).wrapping_add(op.disp as i64 as u64);
    core.set_reg(op.dst, T::truncate(address));
    Ok(Flow::Next)
}

/// LEA with a 64-bit address of base, index and displacement.
pub fn lea_indexed<T: Word>(core: &mut Core, op: &Op) -> Step {
    let address = core
        .gpr(op.base)
        .wrapping_add(core.gpr(op.index) << (op.scale & 3))
        .wrapping_add(op.disp as i64 as u64);
    core.set_reg(op.dst, T::truncate(address));
    Ok(Flow::Next)
}

/// LEA with any other address.
pub fn lea<T: Word>(core: &mut Core, op: &Op) -> Step {
    let address = effective_address(core, op);
    core.set_reg(op.dst, T::truncate(address));
    Ok(Flow::Next)
}

/// XCHG register, register.
pub fn xchg_rr<T: Word>(core: &mut Core, op: &Op) -> Step {
    let (a, b) = (core.reg::<T>(op.dst), core.reg::<T>(op.src));
    core.set_reg(op.dst, b);
    core.set_reg(op.src, a);
    Ok(Flow::Next)
}

/// CMOVcc. The source is read, and a 32-bit destination's upper half cleared, whether or not the
/// condition holds.
pub fn cmov<const CODE: u8, T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?;
    let kept = core.reg::<T>(op.dst);
    let value = if core.flags.condition::<CODE>() {
        source
    } else {
        kept
    };
    core.set_reg(op.dst, value);
    Ok(Flow::Next)
}

/// SETcc
pub fn set<const CODE: u8>(core: &mut Core, op: &Op) -> Step {
    let value = u8::from(core.flags.condition::<CODE>());
    operand::write(core, op, op.dst, value)
}

/// CBW, CWDE, CDQE: the lower half of RAX's part `T` sign-extended.
pub fn extend_accumulator<S: Word, T: Word>(core: &mut Core, _op: &Op) -> Step {
    let value = core.reg::<S>(Gpr::Rax as u8).sign_extend();
    core.set_reg(Gpr::Rax as u8, T::truncate(value));
    Ok(Flow::Next)
}

/// CWD, CDQ, CQO: RDX's part `T` is the sign of RAX's.
pub fn sign_into_rdx<T: Word>(core: &mut Core, _op: &Op) -> Step {
    let sign = (core.reg::<T>(Gpr::Rax as u8).sign_extend() as i64 >> 63) as u64;
    core.set_reg(Gpr::Rdx as u8, T::truncate(sign));
    Ok(Flow::Next)
}

fn swap_bytes<T: Word>(value: T) -> T {
    T::truncate(value.extend().swap_bytes() >> (64 - T::BITS))
}

/// BSWAP. Of 16 bits, which the manual leaves undefined, processors clear all.
pub fn bswap<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = if T::BYTES == 2 {
        T::truncate(0)
    } else {
        swap_bytes(core.reg::<T>(op.dst))
    };
    core.set_reg(op.dst, value);
    Ok(Flow::Next)
}

/// MOVBE register, memory.
pub fn movbe_load<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = operand::read::<T>(core, op, operand::MEMORY)?;
    core.set_reg(op.dst, swap_bytes(value));
    Ok(Flow::Next)
}

/// MOVBE memory, register.
pub fn movbe_store<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = swap_bytes(core.reg::<T>(op.src));
    operand::write(core, op, operand::MEMORY, value)
}

/// XLAT
pub fn xlat(core: &mut Core, op: &Op) -> Step {
    let index = u64::from(core.reg::<u8>(Gpr::Rax as u8));
    let offset = core.gpr(Gpr::Rbx as u8).wrapping_add(index) & op.address_mask();
    let linear = linear(core, op, offset, 1, Access::Read)?;
    let value = core.read::<u8>(linear)?;
    core.set_reg(Gpr::Rax as u8, value);
    Ok(Flow::Next)
}

/// Nothing.
pub fn nop(_core: &mut Core, _op: &Op) -> Step {
    Ok(Flow::Next)
}
