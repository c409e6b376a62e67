//! BT and its kin, BSF, BSR, TZCNT, LZCNT, POPCNT.

use super::operand::{self, LOCKED, MEMORY};
use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::Access;
use belljar_x86::bits::rflags;

/// What becomes of the bit.
pub trait BitChange {
    /// Whether the operand is written.
    const WRITES: bool = true;

    /// `value` after it, `bit` being the bit's mask.
    fn apply(value: u64, bit: u64) -> u64;
}

macro_rules! change {
    ($(#[$doc:meta])* $name:ident, $writes:literal, |$value:ident, $bit:ident| $body:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl BitChange for $name {
            const WRITES: bool = $writes;

            #[inline(always)]
            fn apply($value: u64, $bit: u64) -> u64 {
                $body
            }
        }
    };
}

change!(
    /// BT
    Bt, false, |value, _bit| value);
change!(
    /// BTS
    Bts, true, |value, bit| value | bit);
change!(
    /// BTR
    Btr, true, |value, bit| value & !bit);
change!(
    /// BTC
    Btc, true, |value, bit| value ^ bit);

/// Register and bit number, or memory and an immediate: the bit number wraps at the operand's size.
#[inline(always)]
fn within<C: BitChange, T: Word>(core: &mut Core, op: &Op, number: u64) -> Step {
    let bit = 1 << (number & (u64::from(T::BITS) - 1));
    if C::WRITES {
        return operand::modify::<T>(core, op, op.dst, |flags, value| {
            flags.set_carry(value.extend() & bit != 0);
            T::truncate(C::apply(value.extend(), bit))
        });
    }
    let value = operand::read::<T>(core, op, op.dst)?;
    core.flags.set_carry(value.extend() & bit != 0);
    Ok(Flow::Next)
}

/// The bit number is the immediate.
pub fn immediate<C: BitChange, T: Word>(core: &mut Core, op: &Op) -> Step {
    within::<C, T>(core, op, op.imm)
}

/// Register, register.
pub fn rr<C: BitChange, T: Word>(core: &mut Core, op: &Op) -> Step {
    let number = core.reg::<T>(op.src).extend();
    within::<C, T>(core, op, number)
}

/// Linear address of the operand in the bit string at the memory operand that holds bit number
/// `number`.
fn bit_string<T: Word>(core: &mut Core, op: &Op, number: T, access: Access) -> Result<u64, Fault> {
    let units = number.sign_extend() as i64 >> T::BITS.trailing_zeros();
    let offset = effective_address(core, op).wrapping_add((units as u64).wrapping_mul(T::BYTES));
    linear(
        core,
        op,
        offset & op.address_mask(),
        T::BYTES as u32,
        access,
    )
}

/// Memory, register: a bit string.
pub fn mr<C: BitChange, T: Word>(core: &mut Core, op: &Op) -> Step {
    let number = core.reg::<T>(op.src);
    let bit = 1 << (number.extend() & (u64::from(T::BITS) - 1));
    if !C::WRITES {
        let at = bit_string(core, op, number, Access::Read)?;
        let value = core.read::<T>(at)?;
        core.flags.set_carry(value.extend() & bit != 0);
        return Ok(Flow::Next);
    }
    let at = bit_string(core, op, number, Access::Write)?;
    let change = |flags: &mut crate::flags::LazyFlags, value: T| {
        flags.set_carry(value.extend() & bit != 0);
        T::truncate(C::apply(value.extend(), bit))
    };
    debug_assert!(op.dst == LOCKED || op.dst == MEMORY);
    if op.dst == LOCKED {
        core.modify_locked(at, change)?;
    } else {
        core.modify(at, change)?;
    }
    core.stored()
}

/// BSF (`FORWARD`) or BSR. Of zero the destination stays as it is. Flags as processors leave them:
/// CF, OF, AF and SF clear, PF by the result.
pub fn scan<const FORWARD: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?.extend();
    if source == 0 {
        core.flags.set_logic(T::truncate(0));
        return Ok(Flow::Next);
    }
    let number = if FORWARD {
        source.trailing_zeros()
    } else {
        source.ilog2()
    };
    let number = T::truncate(u64::from(number));
    core.flags.set_logic(number);
    core.flags.set_zero(false);
    core.set_reg(op.dst, number);
    Ok(Flow::Next)
}

/// TZCNT (`TRAILING`) or LZCNT. OF stays; SF, AF and PF, which the manual leaves undefined, are
/// cleared.
pub fn count_zeros<const TRAILING: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?.extend();
    let count = if source == 0 {
        T::BITS
    } else if TRAILING {
        source.trailing_zeros()
    } else {
        source.leading_zeros() - (64 - T::BITS)
    };
    let overflow = core.flags.overflow();
    core.flags.set_bits(if count == 0 { rflags::ZF } else { 0 });
    core.flags.set_carry_overflow(source == 0, overflow);
    core.set_reg(op.dst, T::truncate(u64::from(count)));
    Ok(Flow::Next)
}

/// POPCNT
pub fn popcnt<T: Word>(core: &mut Core, op: &Op) -> Step {
    let source = operand::read::<T>(core, op, op.src)?.extend();
    core.flags
        .set_bits(if source == 0 { rflags::ZF } else { 0 });
    core.set_reg(op.dst, T::truncate(u64::from(source.count_ones())));
    Ok(Flow::Next)
}
