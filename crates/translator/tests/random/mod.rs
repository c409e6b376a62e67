//! Random numbers for tests that must be the same each time.

#![allow(dead_code, reason = "each test program uses a part")]

/// Xorshift. Its state is never 0.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    pub fn byte(&mut self) -> u8 {
        self.below(256) as u8
    }
}
