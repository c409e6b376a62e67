//! Shifts and rotates.
//!
//! Where the manual leaves OF undefined (counts other than 1) it is computed from the result in the
//! same way as for a count of 1, as processors do.

use super::operand;
use crate::flags::LazyFlags;
use crate::host::Word;
use crate::op::{Op, Step};
use crate::processor::Core;
use belljar_x86::Gpr;

/// A shift or rotate by a count that is not 0.
pub trait Shift {
    /// The result; sets the flags.
    fn apply<T: Word>(flags: &mut LazyFlags, value: T, count: u32) -> T;
}

/// Bit `n` of `value`.
#[inline(always)]
const fn bit(value: u64, n: u32) -> bool {
    value >> n & 1 != 0
}

macro_rules! shift {
    ($(#[$doc:meta])* $name:ident, |$flags:ident, $value:ident, $count:ident| $body:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;

        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Word>($flags: &mut LazyFlags, $value: T, $count: u32) -> T {
                $body
            }
        }
    };
}

shift!(
    /// SHL
    Shl, |flags, value, count| {
        let wide = u128::from(value.extend()) << count;
        let result = T::truncate(wide as u64);
        let carry = wide >> T::BITS & 1 != 0;
        flags.set_shift(result, carry, bit(result.extend(), T::BITS - 1) != carry);
        result
    }
);

shift!(
    /// SHR
    Shr, |flags, value, count| {
        let value = value.extend();
        let carry = bit(value >> (count - 1), 0);
        let result = T::truncate(value >> (count - 1) >> 1);
        let wide = result.extend();
        flags.set_shift(result, carry, bit(wide, T::BITS - 1) != bit(wide, T::BITS - 2));
        result
    }
);

shift!(
    /// SAR
    Sar, |flags, value, count| {
        let value = value.sign_extend() as i64 >> (count - 1);
        let result = T::truncate((value >> 1) as u64);
        flags.set_shift(result, value & 1 != 0, false);
        result
    }
);

shift!(
    /// ROL
    Rol, |flags, value, count| {
        let (value, count) = (value.extend(), count % T::BITS);
        let result = if count == 0 { value } else { value << count | value >> (T::BITS - count) };
        let result = T::truncate(result);
        let wide = result.extend();
        flags.set_carry_overflow(bit(wide, 0), bit(wide, T::BITS - 1) != bit(wide, 0));
        result
    }
);

shift!(
    /// ROR
    Ror, |flags, value, count| {
        let (value, count) = (value.extend(), count % T::BITS);
        let result = if count == 0 { value } else { value >> count | value << (T::BITS - count) };
        let result = T::truncate(result);
        let wide = result.extend();
        let top = bit(wide, T::BITS - 1);
        flags.set_carry_overflow(top, top != bit(wide, T::BITS - 2));
        result
    }
);

shift!(
    /// RCL
    Rcl, |flags, value, count| {
        let width = T::BITS + 1;
        let all = u128::from(value.extend()) | u128::from(flags.carry()) << T::BITS;
        let count = count % width;
        let turned = if count == 0 { all } else { all << count | all >> (width - count) };
        let result = T::truncate(turned as u64);
        let carry = turned >> T::BITS & 1 != 0;
        flags.set_carry_overflow(carry, bit(result.extend(), T::BITS - 1) != carry);
        result
    }
);

shift!(
    /// RCR
    Rcr, |flags, value, count| {
        let width = T::BITS + 1;
        let all = u128::from(value.extend()) | u128::from(flags.carry()) << T::BITS;
        let count = count % width;
        let turned = if count == 0 { all } else { all >> count | all << (width - count) };
        let result = T::truncate(turned as u64);
        let wide = result.extend();
        let overflow = bit(wide, T::BITS - 1) != bit(wide, T::BITS - 2);
        flags.set_carry_overflow(turned >> T::BITS & 1 != 0, overflow);
        result
    }
);

/// The count as the processor takes it.
#[inline(always)]
const fn mask<T: Word>(count: u64) -> u32 {
    (count & if T::BYTES == 8 { 63 } else { 31 }) as u32
}

/// Shift by the immediate, which is not 0 when masked.
pub fn immediate<S: Shift, T: Word>(core: &mut Core, op: &Op) -> Step {
    let count = mask::<T>(op.imm);
    operand::modify::<T>(core, op, op.dst, |flags, value| {
        if count == 0 {
            return value;
        }
        S::apply(flags, value, count)
    })
}

/// Shift by CL.
pub fn by_cl<S: Shift, T: Word>(core: &mut Core, op: &Op) -> Step {
    let count = mask::<T>(core.gpr(Gpr::Rcx as u8));
    operand::modify::<T>(core, op, op.dst, |flags, value| {
        if count == 0 {
            return value;
        }
        S::apply(flags, value, count)
    })
}

/// SHLD (`LEFT`) or SHRD: the count in `count`.
#[inline(always)]
fn double<const LEFT: bool, T: Word>(core: &mut Core, op: &Op, count: u64) -> Step {
    let count = mask::<T>(count);
    let source = core.reg::<T>(op.src);
    operand::modify::<T>(core, op, op.dst, |flags, value| {
        if count == 0 {
            return value;
        }
        let (result, carry) = double_shift::<LEFT, T>(value, source, count);
        // OF: whether the sign changed in the last step; after a left shift by all bits or more it
        // is CF.
        let wide = result.extend();
        let overflow = if LEFT {
            (count < T::BITS && bit(wide, T::BITS - 1)) != carry
        } else {
            bit(wide, T::BITS - 1) != bit(wide, T::BITS - 2)
        };
        flags.set_shift(result, carry, overflow);
        result
    })
}

/// The result and CF, the last bit shifted out. For a 16-bit operand and a count beyond 16, which
/// the manual leaves undefined, processors shift the source in again and clear CF.
fn double_shift<const LEFT: bool, T: Word>(value: T, source: T, count: u32) -> (T, bool) {
    let (value, source) = (u128::from(value.extend()), u128::from(source.extend()));
    let bits = T::BITS;
    if count > bits {
        let source = source as u32;
        let doubled = source << 16 | source;
        let result = if LEFT {
            doubled << (count - bits) >> 16
        } else {
            doubled >> (count - bits)
        };
        return (T::truncate(u64::from(result)), false);
    }
    if LEFT {
        let all = (value << bits | source) << (count - 1);
        let carry = all >> (2 * bits - 1) & 1 != 0;
        return (T::truncate((all << 1 >> bits) as u64), carry);
    }
    let shifted = (source << bits | value) >> (count - 1);
    (T::truncate((shifted >> 1) as u64), shifted & 1 != 0)
}

/// SHLD or SHRD by the immediate.
pub fn double_immediate<const LEFT: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    double::<LEFT, T>(core, op, op.imm)
}

/// SHLD or SHRD by CL.
pub fn double_by_cl<const LEFT: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let count = core.gpr(Gpr::Rcx as u8);
    double::<LEFT, T>(core, op, count)
}
