//! Bytes that look random and follow from a seed; `xtask/soak/load.c` makes the same ones in the guest.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};

/// Bytes that are made at once.
const BLOCK: usize = 64 << 10;

/// The word at an index, by the finalizer of splitmix64 (Steele, Lea and Flood, Fast Splittable
/// Pseudorandom Number Generators, 2014).
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number that follows from the seed and looks random, at least `least` and less than `limit`.
pub fn between(seed: u64, least: u64, limit: u64) -> u64 {
    least + word(seed, 0) % (limit - least)
}

/// The bytes of a seed, in blocks.
struct Blocks {
    seed: u64,
    at: u64,
    length: u64,
    block: Vec<u8>,
}

impl Blocks {
    fn new(seed: u64, length: u64) -> Self {
        Self {
            seed,
            at: 0,
            length,
            block: Vec::with_capacity(BLOCK),
        }
    }

    /// The next block and its place; `None` at the end.
    fn next(&mut self) -> Option<(u64, &[u8])> {
        let at = self.at;
        let count = (self.length - at).min(BLOCK as u64);
        let words = (at / 8..(at + count) / 8).map(|index| word(self.seed, index));
        self.block.clear();
        self.block.extend(words.flat_map(u64::to_le_bytes));
        self.at += count;
        (count > 0).then_some((at, self.block.as_slice()))
    }
}

/// Writes `length` bytes, a multiple of 8.
pub fn write(to: &mut impl Write, seed: u64, length: u64) -> Result<()> {
    let mut blocks = Blocks::new(seed, length);
    while let Some((at, block)) = blocks.next() {
        to.write_all(block)
            .with_context(|| format!("cannot write at byte {at}"))?;
    }
    Ok(())
}

/// Reads `length` bytes, which must be those of `seed`.
pub fn check(from: &mut impl Read, seed: u64, length: u64) -> Result<()> {
    let mut blocks = Blocks::new(seed, length);
    let mut found = vec![0; BLOCK];
    while let Some((at, block)) = blocks.next() {
        let found = &mut found[..block.len()];
        from.read_exact(found)
            .with_context(|| format!("cannot read all from byte {at} on"))?;
        if let Some(differs) = (0..found.len()).find(|&i| found[i] != block[i]) {
            bail!("other content from byte {} on", at + differs as u64);
        }
    }
    Ok(())
}

/// Nothing may be left to read.
pub fn check_end(from: &mut impl Read) -> Result<()> {
    let count = from.read(&mut [0]).context("cannot read the end")?;
    ensure!(count == 0, "there is more than there should be");
    Ok(())
}

/// A checksum, as `load sum` prints it (words folded as by FNV-1a).
pub fn sum(seed: u64, length: u64) -> String {
    let sum = (0..length / 8).fold(0xcbf2_9ce4_8422_2325_u64, |sum, index| {
        (sum ^ word(seed, index)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{sum:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: u64 = 3 * BLOCK as u64 + 80;

    #[test]
    fn what_is_written_is_found_and_nothing_else() {
        let mut bytes = Vec::new();
        write(&mut bytes, 7, LENGTH).unwrap();
        assert_eq!(bytes.len() as u64, LENGTH);
        let mut rest = bytes.as_slice();
        check(&mut rest, 7, LENGTH).unwrap();
        check_end(&mut rest).unwrap();
        assert!(check(&mut bytes.as_slice(), 8, LENGTH).is_err());
        assert!(check(&mut &bytes[1..], 7, LENGTH).is_err());
        assert!(check(&mut &bytes[..bytes.len() - 1], 7, LENGTH).is_err());
        assert!(check_end(&mut bytes.as_slice()).is_err());
        let at = bytes.len() - 3;
        bytes[at] ^= 1;
        let error = check(&mut bytes.as_slice(), 7, LENGTH).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("other content from byte {at} on")
        );
    }

    #[test]
    fn numbers_stay_in_their_range() {
        for seed in 0..1000 {
            assert!((3..17).contains(&between(seed, 3, 17)));
        }
    }
}
