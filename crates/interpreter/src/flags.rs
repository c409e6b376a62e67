//! The six status flags, kept as what they are computed from.

use crate::host::Word;
use belljar_x86::bits::rflags;

const TOP: u64 = 1 << 63;
/// Bit of [`LazyFlags::carries`] that is AF.
const AUXILIARY: u64 = 1 << 3;

/// What the last instruction that set flags left behind.
#[derive(Clone, Copy, Debug, Default)]
pub struct LazyFlags {
    /// ZF is set if this is 0.
    zero: u64,
    /// SF is bit 63; PF is the even parity of the low byte.
    sign: u64,
    /// The carries out of each bit position, moved up so that bit 63 is CF and bit 62 the carry
    /// into the sign; bit 3 alone stays in its place and is AF. OF is bit 63 xor bit 62.
    carries: u64,
}

impl LazyFlags {
    /// After an addition or subtraction with result `result` and carries (or borrows) out of each
    /// bit `carries`.
    #[inline(always)]
    pub fn set_arithmetic<T: Word>(&mut self, result: T, carries: T) {
        let carries = carries.extend();
        self.set_result(result);
        self.carries = (carries & AUXILIARY) | (carries << (64 - T::BITS));
    }

    /// After AND, OR, XOR, TEST: CF, OF and AF are clear.
    #[inline(always)]
    pub fn set_logic<T: Word>(&mut self, result: T) {
        self.set_result(result);
        self.carries = 0;
    }

    /// After INC and DEC: as [`set_arithmetic`](Self::set_arithmetic), but CF stays.
    #[inline(always)]
    pub fn set_arithmetic_keeping_carry<T: Word>(&mut self, result: T, carries: T) {
        let carry = self.carry();
        self.set_arithmetic(result, carries);
        let overflow = self.overflow();
        self.set_carry_overflow(carry, overflow);
    }

    /// After a shift: ZF, SF, PF by the result, AF set (as processors of both makers that have
    /// shown it do).
    #[inline(always)]
    pub fn set_shift<T: Word>(&mut self, result: T, carry: bool, overflow: bool) {
        self.set_result(result);
        self.carries = AUXILIARY;
        self.set_carry_overflow(carry, overflow);
    }

    #[inline(always)]
    fn set_result<T: Word>(&mut self, result: T) {
        self.zero = result.sign_extend();
        self.sign = self.zero;
    }

    /// Sets CF and OF and leaves the others alone.
    #[inline(always)]
    pub fn set_carry_overflow(&mut self, carry: bool, overflow: bool) {
        self.carries = (self.carries & AUXILIARY)
            | (u64::from(carry) << 63)
            | (u64::from(carry != overflow) << 62);
    }

    /// Sets CF and leaves the others alone.
    #[inline(always)]
    pub fn set_carry(&mut self, carry: bool) {
        let overflow = self.overflow();
        self.set_carry_overflow(carry, overflow);
    }

    /// Sets ZF and leaves the others alone.
    #[inline(always)]
    pub fn set_zero(&mut self, zero: bool) {
        self.zero = u64::from(!zero);
    }

    /// CF.
    #[inline(always)]
    pub const fn carry(&self) -> bool {
        self.carries & TOP != 0
    }

    /// ZF.
    #[inline(always)]
    pub const fn zero(&self) -> bool {
        self.zero == 0
    }

    /// SF.
    #[inline(always)]
    pub const fn sign(&self) -> bool {
        self.sign & TOP != 0
    }

    /// OF.
    #[inline(always)]
    pub const fn overflow(&self) -> bool {
        (self.carries ^ (self.carries << 1)) & TOP != 0
    }

    /// PF.
    #[inline(always)]
    pub const fn parity(&self) -> bool {
        (self.sign as u8).count_ones() & 1 == 0
    }

    /// AF.
    #[inline(always)]
    pub const fn auxiliary(&self) -> bool {
        self.carries & AUXILIARY != 0
    }

    /// The flags as RFLAGS holds them.
    pub fn bits(&self) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        bit(self.carry(), rflags::CF)
            | bit(self.parity(), rflags::PF)
            | bit(self.auxiliary(), rflags::AF)
            | bit(self.zero(), rflags::ZF)
            | bit(self.sign(), rflags::SF)
            | bit(self.overflow(), rflags::OF)
    }

    /// Takes the flags from an RFLAGS value.
    #[inline]
    pub fn set_bits(&mut self, flags: u64) {
        let carry = flags & rflags::CF != 0;
        let overflow = flags & rflags::OF != 0;
        self.zero = !flags & rflags::ZF;
        self.sign = ((flags & rflags::SF) << 56) | u64::from(flags & rflags::PF == 0);
        self.carries = (flags & rflags::AF) >> 1;
        self.set_carry_overflow(carry, overflow);
    }

    /// Whether condition `CODE` (the low four bits of Jcc's opcode) holds. SDM 1, appendix B.
    #[inline(always)]
    pub const fn condition<const CODE: u8>(&self) -> bool {
        let base = match CODE >> 1 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() != self.overflow(),
            _ => self.zero() || self.sign() != self.overflow(),
        };
        base != (CODE & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_flags_come_back_as_they_were_put_in(flags: u64) {
            let mut lazy = LazyFlags::default();
            lazy.set_bits(flags);
            prop_assert_eq!(lazy.bits(), flags & rflags::STATUS);
        }

        #[test]
        fn setting_carry_and_zero_leaves_the_others_alone(flags: u64, carry: bool, zero: bool) {
            let mut lazy = LazyFlags::default();
            lazy.set_bits(flags);
            lazy.set_carry(carry);
            lazy.set_zero(zero);
            let others = rflags::STATUS & !(rflags::CF | rflags::ZF);
            prop_assert_eq!(lazy.bits() & others, flags & others);
            prop_assert_eq!((lazy.carry(), lazy.zero()), (carry, zero));
        }
    }
}
