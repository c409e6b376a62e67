//! In which ranges of addresses large pages are cached, of which parts are entered one by one.

use crate::mix::mix;

/// The largest of the medium page sizes.
const LARGE: u64 = 4 << 20;
/// The largest page size.
const HUGE: u64 = 1 << 30;
/// Bits of the record of medium pages.
const BITS: usize = 1 << 15;

/// A record of where large pages may be. It never denies one that is there.
#[derive(Debug, Default)]
pub struct LargeRanges {
    /// A bit for each range of 4 MiB, several ranges to a bit.
    large: Option<Box<[u64; BITS / 64]>>,
    /// The same for ranges of 1 GiB.
    huge: u64,
}

impl LargeRanges {
    const fn large_bit(linear: u64) -> usize {
        mix(linear / LARGE, BITS.trailing_zeros())
    }

    const fn huge_bit(linear: u64) -> u64 {
        1 << mix(linear / HUGE, 6)
    }

    /// Notes a page of `size` bytes, which is more than 4 KiB, at `linear`.
    pub fn add(&mut self, linear: u64, size: u64) {
        if size > LARGE {
            self.huge |= Self::huge_bit(linear);
        } else {
            let bits = self.large.get_or_insert_with(|| Box::new([0; BITS / 64]));
            let bit = Self::large_bit(linear);
            bits[bit / 64] |= 1 << (bit % 64);
        }
    }

    /// The size of the range around `linear` in which a large page may lie.
    pub fn range(&self, linear: u64) -> Option<u64> {
        if self.huge & Self::huge_bit(linear) != 0 {
            return Some(HUGE);
        }
        let bit = Self::large_bit(linear);
        let bits = self.large.as_ref()?;
        (bits[bit / 64] & 1 << (bit % 64) != 0).then_some(LARGE)
    }

    /// Whether `linear` may lie in a large page.
    pub fn may_hold(&self, linear: u64) -> bool {
        self.range(linear).is_some()
    }
}
