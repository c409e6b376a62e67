//! Slots of tables.

/// A number below 2^`bits` that depends on all bits of `value`: Fibonacci hashing.
pub const fn mix(value: u64, bits: u32) -> usize {
    (value.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - bits)) as usize
}
