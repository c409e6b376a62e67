//! Access to guest memory through host pointers.
//!
//! Every access is one machine instruction, so that it is single-copy atomic where the architecture
//! says so (aligned, and on all current processors also within a cache line) and so that the
//! compiler assumes nothing about memory that other vCPUs and devices change at any time.

use std::arch::asm;

/// An operand of 8, 16, 32 or 64 bits.
pub trait Word: Copy + Eq + std::fmt::Debug + 'static {
    /// Size in bytes.
    const BYTES: u64;
    /// Size in bits.
    const BITS: u32;

    /// The low bits of `value`.
    fn truncate(value: u64) -> Self;
    /// Zero-extended.
    fn extend(self) -> u64;
    /// Sign-extended.
    fn sign_extend(self) -> u64;

    /// Loads from guest memory.
    ///
    /// # Safety
    /// `at` points to `BYTES` bytes of the mapping of guest memory.
    unsafe fn load(at: *const u8) -> Self;

    /// Stores to guest memory.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn store(at: *mut u8, value: Self);

    /// Atomically replaces what is in guest memory by `new` if it is `old`; gives what was there.
    /// Any alignment.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self;

    /// Atomically replaces what is in guest memory; gives what was there. Any alignment.
    ///
    /// # Safety
    /// As for [`load`](Self::load).
    unsafe fn exchange(at: *mut u8, value: Self) -> Self;
}

macro_rules! word {
    ($type:ty, $signed:ty, $class:ident, $modifier:literal, $accumulator:tt) => {
        impl Word for $type {
            const BYTES: u64 = <$type>::BITS as u64 / 8;
            const BITS: u32 = <$type>::BITS;

            #[inline(always)]
            fn truncate(value: u64) -> Self {
                value as $type
            }

            #[inline(always)]
            fn extend(self) -> u64 {
                self as u64
            }

            #[inline(always)]
            fn sign_extend(self) -> u64 {
                self as $signed as i64 as u64
            }

            #[inline(always)]
            unsafe fn load(at: *const u8) -> Self {
                let value: $type;
                // SAFETY: the caller promises that the bytes are mapped; the instruction only reads
                // them.
                unsafe {
                    asm!(concat!("mov {v", $modifier, "}, [{p}]"), p = in(reg) at,
                        v = lateout($class) value,
                        options(nostack, preserves_flags, readonly));
                }
                value
            }

            #[inline(always)]
            unsafe fn store(at: *mut u8, value: Self) {
                // SAFETY: the caller promises that the bytes are mapped guest memory, which no Rust
                // object lives in.
                unsafe {
                    asm!(concat!("mov [{p}], {v", $modifier, "}"), p = in(reg) at,
                        v = in($class) value,
                        options(nostack, preserves_flags));
                }
            }

            #[inline]
            unsafe fn compare_exchange(at: *mut u8, old: Self, new: Self) -> Self {
                let seen: $type;
                // SAFETY: as in `store`.
                unsafe {
                    asm!(concat!("lock cmpxchg [{p}], {v", $modifier, "}"), p = in(reg) at,
                        v = in($class) new,
                        inlateout($accumulator) old => seen, options(nostack));
                }
                seen
            }

            #[inline]
            unsafe fn exchange(at: *mut u8, value: Self) -> Self {
                let mut seen = value;
                // SAFETY: as in `store`.
                unsafe {
                    asm!(concat!("xchg [{p}], {v", $modifier, "}"), p = in(reg) at,
                        v = inout($class) seen,
                        options(nostack, preserves_flags));
                }
                seen
            }
        }
    };
}

word!(u8, i8, reg_byte, "", "al");
word!(u16, i16, reg, ":x", "ax");
word!(u32, i32, reg, ":e", "eax");
word!(u64, i64, reg, ":r", "rax");

/// Atomically replaces 16 aligned bytes of guest memory by `new` if they are `old`; gives what was
/// there.
///
/// # Safety
/// `at` is a multiple of 16 and points into the mapping of guest memory.
pub unsafe fn compare_exchange_16(at: *mut u8, old: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: the caller promises 16 aligned bytes of guest memory. The compiler reserves rbx, so
    // it is swapped in and out.
    unsafe {
        asm!(
            "xchg rbx, {b}",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {b}",
            b = inout(reg) new as u64 => _,
            p = in(reg) at,
            in("rcx") (new >> 64) as u64,
            inlateout("rax") old as u64 => low,
            inlateout("rdx") (old >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

/// Copies `len` bytes of guest memory forward, byte after byte as far as overlap can show: as `rep
/// movsb` does.
///
/// # Safety
/// Both ranges lie within the mapping of guest memory.
pub unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller promises that both ranges are mapped guest memory; DF is clear in Rust
    // code.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
}

/// Fills `count` words of guest memory.
///
/// # Safety
/// The range lies within the mapping of guest memory.
pub unsafe fn fill<T: Word>(to: *mut u8, value: T, count: usize) {
    let value = value.extend();
    macro_rules! fill {
        ($instruction:literal) => {
            asm!($instruction, inout("rcx") count => _, inout("rdi") to => _, in("rax") value,
                options(nostack, preserves_flags))
        };
    }
    // SAFETY: the caller promises that the range is mapped guest memory; DF is clear in Rust code.
    unsafe {
        match T::BYTES {
            1 => fill!("rep stosb"),
            2 => fill!("rep stosw"),
            4 => fill!("rep stosd"),
            _ => fill!("rep stosq"),
        }
    }
}
