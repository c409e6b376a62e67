//! Random initial states: registers, flags, floating-point values and memory.

use crate::case::Registers;
use crate::layout::{CODE, CODE_FIRST, DATA, DATA_LEN, Data, PAGE};
use crate::random::Random;
use belljar_x86::VectorState;
use belljar_x86::bits::{rflags, xstate};
use belljar_x86::state::X87;

/// Integers at which carries, signs and widths change.
const INTEGERS: [u64; 20] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ff80,
    0xffff_ffff_8000_0000,
    u64::MAX,
];

/// Doubles: zeros, units, infinities, quiet and signalling NaNs, denormals, the ends of the range, the ends of integers.
const DOUBLES: [u64; 20] = [
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x4000_0000_0000_0000,
    0x400921fb54442d18,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0xfff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    0xfff4_0000_0000_0000,
    1,
    0x800f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0x4330_0000_0000_0001,
];

/// Singles of the same kinds.
const SINGLES: [u32; 18] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbf80_0000,
    0x3f00_0000,
    0x4049_0fdb,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffc0_0001,
    0x7f80_0001,
    0xffa0_0000,
    1,
    0x807f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x4f00_0000,
    0x4b00_0001,
];

/// An address in the data pages or near them, often close to where two pages meet.
pub fn data_address(random: &mut Random) -> u64 {
    if random.one_in(3) {
        let edge = DATA + PAGE as u64 * random.below(1 + (DATA_LEN / PAGE) as u64);
        edge.wrapping_add(random.below(128)).wrapping_sub(64)
    } else {
        DATA + random.below(DATA_LEN as u64)
    }
}

/// An address in the code pages where nothing but INT3 lies.
pub fn code_address(random: &mut Random) -> u64 {
    CODE + random.below(CODE_FIRST as u64 / 2)
}

/// A value for a general-purpose register.
pub fn integer(random: &mut Random) -> u64 {
    match random.below(8) {
        0 | 1 => random.pick(&INTEGERS),
        2 => random.below(64),
        3 => random.below(256).wrapping_neg(),
        4 => data_address(random),
        5 => random.word() >> random.below(64),
        _ => random.word(),
    }
}

/// Initial registers, all but RIP. Those that instructions use as pointers without being asked mostly are pointers.
pub fn registers(random: &mut Random) -> Registers {
    let mut registers = Registers {
        rflags: flags(random),
        fs_base: base(random),
        gs_base: base(random),
        ..Registers::default()
    };
    for gpr in &mut registers.gpr {
        *gpr = integer(random);
    }
    // RBX for XLAT, RBP for LEAVE, RSI and RDI for the string operations.
    for number in [3, 5, 6, 7] {
        if !random.one_in(4) {
            registers.gpr[number] = data_address(random);
        }
    }
    // The count of the repeat prefixes, mostly small.
    if !random.one_in(3) {
        registers.gpr[1] = random.below(80);
    }
    registers.gpr[4] = match random.below(16) {
        0 => random.word(),
        1 => data_address(random),
        _ => DATA + random.below(2 * PAGE as u64 / 8) * 8,
    };
    registers
}

fn base(random: &mut Random) -> u64 {
    if random.one_in(2) {
        0
    } else {
        random.below(1 << 20)
    }
}

fn flags(random: &mut Random) -> u64 {
    let down = if random.one_in(4) { rflags::DF } else { 0 };
    // Makes programs' misaligned accesses fault, so of most cases no more could be seen.
    let aligned = if random.one_in(32) { rflags::AC } else { 0 };
    random.word() & rflags::STATUS | down | aligned | rflags::FIXED | rflags::IF
}

/// Initial vector, mask and x87 registers: random ones for the components in `xcr0`.
pub fn vector(random: &mut Random, xcr0: u64) -> VectorState {
    let mut state = VectorState {
        x87: x87(random),
        ..VectorState::default()
    };
    state.x87.mxcsr = mxcsr(random);
    for register in &mut state.zmm {
        lanes(random, register);
    }
    for mask in &mut state.k {
        *mask = match random.below(4) {
            0 => u64::MAX,
            1 => random.word() & random.word() & random.word(),
            _ => random.word(),
        };
    }
    clear_absent(&mut state, xcr0);
    state
}

/// Puts the components that are not in `xcr0` into their initial state.
pub fn clear_absent(state: &mut VectorState, xcr0: u64) {
    if xcr0 & xstate::AVX512 != xstate::AVX512 {
        state.k = [0; 8];
        for (n, register) in state.zmm.iter_mut().enumerate() {
            register[if n < 16 { 4 } else { 0 }..].fill(0);
        }
    }
}

/// Fills a vector with lanes of one kind.
fn lanes(random: &mut Random, words: &mut [u64]) {
    let kind = random.below(8);
    for word in words {
        *word = match kind {
            0 | 1 => u64::from(single(random)) << 32 | u64::from(single(random)),
            2 | 3 => double(random),
            4 => random.pick(&INTEGERS),
            5 => 0,
            _ => random.word(),
        };
    }
}

fn single(random: &mut Random) -> u32 {
    match random.below(4) {
        0 | 1 => random.pick(&SINGLES),
        2 => (random.below(2000) as f32 - 1000.0).to_bits(),
        _ => random.word() as u32,
    }
}

fn double(random: &mut Random) -> u64 {
    match random.below(4) {
        0 | 1 => random.pick(&DOUBLES),
        2 => (random.below(2000) as f64 / 8.0 - 100.0).to_bits(),
        _ => random.word(),
    }
}

/// Any rounding and flags, mostly all exceptions masked. SDM 1, 10.2.3.
fn mxcsr(random: &mut Random) -> u32 {
    let masks = if random.one_in(8) {
        random.word() as u32 & 0x1f80
    } else {
        0x1f80
    };
    let flags = random.word() as u32 & random.word() as u32 & 0x3f;
    let rounding = random.word() as u32 & 0x6000;
    let zeros = if random.one_in(6) {
        random.word() as u32 & 0x8040
    } else {
        0
    };
    masks | flags | rounding | zeros
}

/// SDM 1, 8.1.
fn x87(random: &mut Random) -> X87 {
    let masks = if random.one_in(8) {
        random.word() as u16 & 0x3f
    } else {
        0x3f
    };
    let precision = random.pick(&[0x300, 0x300, 0x200, 0x000]);
    let fcw = 0x40 | masks | precision | random.word() as u16 & 0xc00;
    // Condition codes and the top of the stack at random; flags with their summary, seldom one that is not masked.
    let raised = random.word() as u16 & random.word() as u16 & 0x3f;
    let raised = if random.one_in(4) {
        raised
    } else {
        raised & masks
    };
    let summary = if raised & !fcw & 0x3f != 0 { 0x8080 } else { 0 };
    let fsw = random.word() as u16 & 0x7f00 | raised | summary;
    let ftw = match random.below(4) {
        0 => 0,
        1 => random.byte(),
        _ => 0xff,
    };
    let mut st = [[0; 2]; 8];
    for register in &mut st {
        *register = extended(random);
    }
    X87 {
        fcw,
        fsw,
        ftw,
        st,
        ..X87::default()
    }
}

/// An 80-bit floating-point value, of the kinds of SDM 1, table 4-3, seldom one that the manual calls unsupported.
fn extended(random: &mut Random) -> [u64; 2] {
    let sign = random.word() & 0x8000;
    let integer_bit = 1 << 63;
    let (mantissa, exponent) = match random.below(12) {
        0 => (0, 0),
        1 => (integer_bit, 0x7fff),
        2 => (random.word() | integer_bit | 1 << 62, 0x7fff),
        3 => (random.word() & !(1 << 62) | integer_bit | 1, 0x7fff),
        4 => (random.word() & !integer_bit, 0),
        5 => (random.word(), random.word() & 0x7fff),
        6 | 7 => (integer_bit, 0x3fff + random.below(8)),
        8 | 9 => (random.word() | integer_bit, 0x3fff - 32 + random.below(100)),
        _ => (random.word() | integer_bit, random.word() & 0x7fff),
    };
    [mantissa, exponent | sign]
}

/// How many contents of the data pages a campaign has; a case takes one of them and changes some of it.
const CONTENTS: usize = 32;

/// The contents of the data pages that the cases of a seed start from.
#[derive(Clone, Debug)]
pub struct Contents {
    pool: Vec<Box<Data>>,
}

impl Contents {
    /// The contents for `seed`.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed, u64::MAX);
        let pool = (0..CONTENTS).map(|_| content(&mut random)).collect();
        Self { pool }
    }

    /// One of them, at random.
    pub fn pick(&self, random: &mut Random) -> Box<Data> {
        self.pool[random.below(self.pool.len() as u64) as usize].clone()
    }
}

fn content(random: &mut Random) -> Box<Data> {
    let mut data = Box::new([0; DATA_LEN]);
    for chunk in data.chunks_exact_mut(64) {
        let mut words = [0; 8];
        match random.below(6) {
            0 => words.fill_with(|| integer(random)),
            1 => words.fill_with(|| code_address(random)),
            2 => {
                let [mantissa, exponent] = extended(random);
                words[0] = mantissa;
                words[1] = exponent;
            }
            _ => lanes(random, &mut words),
        }
        for (bytes, word) in chunk.chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_x87_summary_flag_agrees_with_the_masks() {
        let mut random = Random::new(3, 0);
        for _ in 0..1000 {
            let x87 = x87(&mut random);
            let pending = x87.fsw & !x87.fcw & 0x3f != 0;
            assert_eq!(x87.fsw & 0x80 != 0, pending);
        }
    }

    #[test]
    fn a_reserved_bit_of_mxcsr_is_never_set() {
        let mut random = Random::new(3, 1);
        assert!((0..1000).all(|_| mxcsr(&mut random) & !0xffff == 0));
    }
}
