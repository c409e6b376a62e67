//! Randomness that comes again: for tests.

use crate::Entropy;
use std::sync::Mutex;

/// An [`Entropy`] whose bytes are a function of its seed. Not for secrets.
#[derive(Debug)]
pub struct SeededEntropy {
    /// The counter of SplitMix64.
    counter: Mutex<u64>,
}

impl SeededEntropy {
    /// The generator of `seed`, at its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            counter: Mutex::new(seed),
        }
    }

    fn word(&self) -> u64 {
        let mut counter = self
            .counter
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *counter = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = *counter;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.word().to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let bytes = |seed| {
            let mut bytes = [0; 37];
            SeededEntropy::new(seed).fill(&mut bytes);
            bytes
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }
}
