//! The oracle's own generator of random numbers, so that a seed printed years ago still means the same case.

/// SplitMix64: a counter and a mixing function.
#[derive(Clone, Debug)]
pub struct Random {
    counter: u64,
}

impl Random {
    /// The generator for case `index` of `seed`.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut start = Self { counter: seed };
        let spread = start.word() ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self { counter: spread }
    }

    /// 64 random bits.
    pub fn word(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.counter;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 8 random bits.
    pub fn byte(&mut self) -> u8 {
        (self.word() >> 32) as u8
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.word()) * u128::from(limit)) >> 64) as u64
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `choices`, which is not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_and_index_give_the_same_numbers() {
        let mut a = Random::new(1, 2);
        let mut b = Random::new(1, 2);
        assert!((0..100).all(|_| a.word() == b.word()));
        assert_ne!(Random::new(1, 3).word(), Random::new(1, 2).word());
        assert_ne!(Random::new(2, 2).word(), Random::new(1, 2).word());
    }

    #[test]
    fn a_number_below_a_limit_reaches_all_and_only_the_numbers_below_it() {
        let mut random = Random::new(7, 0);
        let mut seen = [false; 5];
        for _ in 0..1000 {
            seen[random.below(5) as usize] = true;
        }
        assert_eq!(seen, [true; 5]);
    }
}
