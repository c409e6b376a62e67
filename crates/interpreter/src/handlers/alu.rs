//! ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST, INC, DEC, NEG, NOT.

use super::operand;
use crate::flags::LazyFlags;
use crate::host::Word;
use crate::op::{Flow, Form, Op, Step};
use crate::processor::Core;
use belljar_x86::Access;

/// An operation on two operands.
pub trait Binary {
    /// Whether the result is written to the first operand.
    const WRITES: bool;

    /// The result; sets the flags.
    fn apply<T: Word>(flags: &mut LazyFlags, a: T, b: T) -> T;
}

/// `a + b + carry` and the flags.
#[inline(always)]
fn add<T: Word>(flags: &mut LazyFlags, a: T, b: T, carry: u64) -> T {
    let (a, b) = (a.extend(), b.extend());
    let sum = a.wrapping_add(b).wrapping_add(carry);
    let result = T::truncate(sum);
    // Each bit's carry out: both are set, or one is and the sum's is not.
    flags.set_arithmetic(result, T::truncate((a & b) | ((a | b) & !sum)));
    result
}

/// `a - b - borrow` and the flags.
#[inline(always)]
fn subtract<T: Word>(flags: &mut LazyFlags, a: T, b: T, borrow: u64) -> T {
    let (a, b) = (a.extend(), b.extend());
    let difference = a.wrapping_sub(b).wrapping_sub(borrow);
    let result = T::truncate(difference);
    flags.set_arithmetic(result, T::truncate((!a & b) | ((!a | b) & difference)));
    result
}

macro_rules! binary {
    ($(#[$doc:meta])* $name:ident, $writes:literal,
        |$flags:ident, $a:ident, $b:ident| $body:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Binary for $name {
            const WRITES: bool = $writes;

            #[inline(always)]
            fn apply<T: Word>($flags: &mut LazyFlags, $a: T, $b: T) -> T {
                $body
            }
        }
    };
}

macro_rules! logic {
    ($flags:ident, $value:expr) => {{
        let result = T::truncate($value);
        $flags.set_logic(result);
        result
    }};
}

binary!(
    /// ADD
    Add, true, |flags, a, b| add(flags, a, b, 0));
binary!(
    /// ADC
    Adc, true, |flags, a, b| { let carry = u64::from(flags.carry()); add(flags, a, b, carry) });
binary!(
    /// SUB
    Sub, true, |flags, a, b| subtract(flags, a, b, 0));
binary!(
/// SBB
Sbb, true, |flags, a, b| {
    let borrow = u64::from(flags.carry());
    subtract(flags, a, b, borrow)
});
binary!(
    /// CMP
    Cmp, false, |flags, a, b| subtract(flags, a, b, 0));
binary!(
    /// AND
    And, true, |flags, a, b| logic!(flags, a.extend() & b.extend()));
binary!(
    /// OR
    Or, true, |flags, a, b| logic!(flags, a.extend() | b.extend()));
binary!(
    /// XOR
    Xor, true, |flags, a, b| logic!(flags, a.extend() ^ b.extend()));
binary!(
    /// TEST
    Test, false, |flags, a, b| logic!(flags, a.extend() & b.extend()));

/// Register, register.
pub fn rr<O: Binary, T: Word>(core: &mut Core, op: &Op) -> Step {
    let (a, b) = (core.reg::<T>(op.dst), core.reg::<T>(op.src));
    let result = O::apply(&mut core.flags, a, b);
    if O::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(Flow::Next)
}

/// Register, immediate.
pub fn ri<O: Binary, T: Word>(core: &mut Core, op: &Op) -> Step {
    let (a, b) = (core.reg::<T>(op.dst), T::truncate(op.imm));
    let result = O::apply(&mut core.flags, a, b);
    if O::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(Flow::Next)
}

/// Register, memory.
pub fn rm<O: Binary, F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let linear = F::linear::<T>(core, op, Access::Read)?;
    let b = core.read(linear)?;
    let a = core.reg::<T>(op.dst);
    let result = O::apply(&mut core.flags, a, b);
    if O::WRITES {
        core.set_reg(op.dst, result);
    }
    Ok(Flow::Next)
}

#[inline(always)]
fn memory<O: Binary, F: Form, T: Word>(core: &mut Core, op: &Op, b: T) -> Step {
    if O::WRITES {
        let linear = F::linear::<T>(core, op, Access::Write)?;
        core.modify(linear, |flags, a| O::apply(flags, a, b))?;
        return core.stored();
    }
    let linear = F::linear::<T>(core, op, Access::Read)?;
    let a = core.read(linear)?;
    O::apply(&mut core.flags, a, b);
    Ok(Flow::Next)
}

/// Memory, register.
pub fn mr<O: Binary, F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    let b = core.reg::<T>(op.src);
    memory::<O, F, T>(core, op, b)
}

/// Memory, immediate.
pub fn mi<O: Binary, F: Form, T: Word>(core: &mut Core, op: &Op) -> Step {
    memory::<O, F, T>(core, op, T::truncate(op.imm))
}

/// LOCK, memory, register.
pub fn locked_mr<O: Binary, T: Word>(core: &mut Core, op: &Op) -> Step {
    let b = core.reg::<T>(op.src);
    operand::modify::<T>(core, op, operand::LOCKED, |flags, a| O::apply(flags, a, b))
}

/// LOCK, memory, immediate.
pub fn locked_mi<O: Binary, T: Word>(core: &mut Core, op: &Op) -> Step {
    let b = T::truncate(op.imm);
    operand::modify::<T>(core, op, operand::LOCKED, |flags, a| O::apply(flags, a, b))
}

/// INC
pub fn inc<T: Word>(core: &mut Core, op: &Op) -> Step {
    operand::modify::<T>(core, op, op.dst, |flags, a| {
        let a = a.extend();
        let result = T::truncate(a.wrapping_add(1));
        let carries = (a & 1) | ((a | 1) & !result.extend());
        flags.set_arithmetic_keeping_carry(result, T::truncate(carries));
        result
    })
}

/// DEC
pub fn dec<T: Word>(core: &mut Core, op: &Op) -> Step {
    operand::modify::<T>(core, op, op.dst, |flags, a| {
        let a = a.extend();
        let result = T::truncate(a.wrapping_sub(1));
        let borrows = (!a & 1) | ((!a | 1) & result.extend());
        flags.set_arithmetic_keeping_carry(result, T::truncate(borrows));
        result
    })
}

/// NEG
pub fn neg<T: Word>(core: &mut Core, op: &Op) -> Step {
    operand::modify::<T>(core, op, op.dst, |flags, a| {
        subtract(flags, T::truncate(0), a, 0)
    })
}

/// NOT
pub fn not<T: Word>(core: &mut Core, op: &Op) -> Step {
    operand::modify::<T>(core, op, op.dst, |_, a| T::truncate(!a.extend()))
}
