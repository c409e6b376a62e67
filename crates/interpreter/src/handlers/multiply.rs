//! MUL, IMUL, DIV, IDIV.
//!
//! Flags that the manual leaves undefined are those of AMD's Zen: multiplication leaves SF, ZF, AF
//! and PF alone, division leaves CF and OF alone, sets AF and clears the others.

use super::operand;
use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step};
use crate::processor::Core;
use belljar_x86::bits::rflags;
use belljar_x86::{Exception, Gpr};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;
/// AH.
const HIGH_BYTE: u8 = 16;

/// The upper half of the double-width accumulator.
const fn upper<T: Word>() -> u8 {
    if T::BYTES == 1 { HIGH_BYTE } else { RDX }
}

/// MUL
pub fn mul<T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?;
    let product = u128::from(core.reg::<T>(RAX).extend()) * u128::from(source.extend());
    let high = (product >> T::BITS) as u64;
    core.set_reg(RAX, T::truncate(product as u64));
    core.set_reg(upper::<T>(), T::truncate(high));
    core.flags.set_carry_overflow(high != 0, high != 0);
    Ok(Flow::Next)
}

#[inline(always)]
fn signed_product<T: Word>(a: T, b: T) -> (i128, bool) {
    let product = i128::from(a.sign_extend() as i64) * i128::from(b.sign_extend() as i64);
    let truncated = T::truncate(product as u64).sign_extend() as i64;
    (product, i128::from(truncated) != product)
}

/// IMUL of one operand.
pub fn imul<T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?;
    let (product, overflow) = signed_product(core.reg::<T>(RAX), source);
    core.set_reg(RAX, T::truncate(product as u64));
    core.set_reg(upper::<T>(), T::truncate((product >> T::BITS) as u64));
    core.flags.set_carry_overflow(overflow, overflow);
    Ok(Flow::Next)
}

/// IMUL of two operands.
pub fn imul_two<T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?;
    let (product, overflow) = signed_product(core.reg::<T>(op.dst), source);
    core.set_reg(op.dst, T::truncate(product as u64));
    core.flags.set_carry_overflow(overflow, overflow);
    Ok(Flow::Next)
}

/// IMUL of three operands.
pub fn imul_three<T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?;
    let (product, overflow) = signed_product(source, T::truncate(op.imm));
    core.set_reg(op.dst, T::truncate(product as u64));
    core.flags.set_carry_overflow(overflow, overflow);
    Ok(Flow::Next)
}

#[cold]
fn divide_error(core: &mut Core) -> Fault {
    core.raise(Exception::divide_error())
}

#[inline(always)]
fn set_quotient<T: Word>(core: &mut Core, quotient: u64, remainder: u64) -> Step {
    core.set_reg(RAX, T::truncate(quotient));
    core.set_reg(upper::<T>(), T::truncate(remainder));
    let (carry, overflow) = (core.flags.carry(), core.flags.overflow());
    core.flags.set_bits(rflags::AF);
    core.flags.set_carry_overflow(carry, overflow);
    Ok(Flow::Next)
}

#[inline(always)]
fn dividend<T: Word>(core: &Core) -> u128 {
    u128::from(core.reg::<T>(upper::<T>()).extend()) << T::BITS
        | u128::from(core.reg::<T>(RAX).extend())
}

/// DIV
pub fn div<T: Word>(core: &mut Core, op: &Op) -> Step {
    let divisor = operand::read::<T>(core, op, op.src)?.extend();
    if divisor == 0 || core.reg::<T>(upper::<T>()).extend() >= divisor {
        return Err(divide_error(core));
    }
    let dividend = dividend::<T>(core);
    if let Ok(dividend) = u64::try_from(dividend) {
        return set_quotient::<T>(core, dividend / divisor, dividend % divisor);
    }
    let divisor = u128::from(divisor);
    set_quotient::<T>(
        core,
        (dividend / divisor) as u64,
        (dividend % divisor) as u64,
    )
}

/// IDIV
pub fn idiv<T: Word>(core: &mut Core, op: &Op) -> Step {
    let divisor = i128::from(operand::read::<T>(core, op, op.src)?.sign_extend() as i64);
    let unused = 128 - 2 * T::BITS;
    let dividend = (dividend::<T>(core) << unused) as i128 >> unused;
    let (Some(quotient), Some(remainder)) =
        (dividend.checked_div(divisor), dividend.checked_rem(divisor))
    else {
        return Err(divide_error(core));
    };
    if i128::from(T::truncate(quotient as u64).sign_extend() as i64) != quotient {
        return Err(divide_error(core));
    }
    set_quotient::<T>(core, quotient as u64, remainder as u64)
}
