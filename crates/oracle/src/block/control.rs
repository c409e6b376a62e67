//! What leads elsewhere than to the next instruction, and what a block needs to come to an end.

use super::RCX;
use super::draft::{Draft, Form, Goal, Program};
use crate::flags::Defined;
use crate::layout::FILL;
use crate::random::Random;
use iced_x86::Code;

/// Registers that single units use and nothing relies on: RAX, RDX, R8 and R10.
pub const SCRATCH: [usize; 4] = [0, 2, 8, 10];

/// What a loop counts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// A register.
    Register(usize),
    /// RCX, by LOOP and its like.
    Rcx,
    /// A cell.
    Cell(usize),
}

impl Counter {
    /// The register that counts.
    pub fn register(self) -> Option<usize> {
        match self {
            Self::Register(number) => Some(number),
            Self::Rcx => Some(RCX),
            Self::Cell(_) => None,
        }
    }
}

/// Jcc's number of a condition and its opposite.
const NOT_SIGN: u8 = 9;
const GREATER_OR_EQUAL: u8 = 13;
const GREATER: u8 = 15;
const OPPOSITE: u8 = 1;

/// The conditional branches, by the numbers of their conditions.
const JCC: [Code; 16] = [
    Code::Jo_rel8_64,
    Code::Jno_rel8_64,
    Code::Jb_rel8_64,
    Code::Jae_rel8_64,
    Code::Je_rel8_64,
    Code::Jne_rel8_64,
    Code::Jbe_rel8_64,
    Code::Ja_rel8_64,
    Code::Js_rel8_64,
    Code::Jns_rel8_64,
    Code::Jp_rel8_64,
    Code::Jnp_rel8_64,
    Code::Jl_rel8_64,
    Code::Jge_rel8_64,
    Code::Jle_rel8_64,
    Code::Jg_rel8_64,
];

/// A conditional branch with a distance of one or four bytes.
fn jcc(condition: u8, long: bool, goal: Goal) -> Draft {
    if long {
        Draft::new([0x0f, 0x80 | condition, 0, 0, 0, 0]).ending_in_distance(goal)
    } else {
        Draft::new([0x70 | condition, 0]).with(1, Form::Relative(1), goal)
    }
}

fn jmp(long: bool, goal: Goal) -> Draft {
    if long {
        Draft::new([0xe9, 0, 0, 0, 0]).ending_in_distance(goal)
    } else {
        Draft::new([0xeb, 0]).with(1, Form::Relative(1), goal)
    }
}

/// JMP (`extension` 4) or CALL (2) to `goal` by a register or by a cell.
fn indirect(random: &mut Random, program: &mut Program, extension: u8, goal: Goal) -> Vec<Draft> {
    if random.one_in(2) {
        let cell = program.cell(0);
        let draft = Draft::new([0xff, extension << 3 | 5, 0, 0, 0, 0]);
        let draft = draft.ending_in_distance(Goal::Cell(cell));
        return vec![draft.with(0, Form::InCell(cell), goal)];
    }
    let register = random.pick(&SCRATCH) as u8;
    let rex = 0x40 | register >> 3;
    let load = Draft::new([rex, 0xb8 | register & 7, 0, 0, 0, 0]).with(2, Form::Absolute, goal);
    let branch = Draft::new([rex, 0xff, 0xc0 | extension << 3 | register & 7]);
    vec![load, branch]
}

/// A branch to a later unit.
pub fn forward(random: &mut Random, program: &mut Program, defined: Defined) -> Vec<Draft> {
    let long = random.one_in(2);
    let condition = random.byte() & 15;
    match random.below(16) {
        0..9 if defined.allows_code(JCC[usize::from(condition)]) => {
            vec![jcc(condition, long, Goal::Later)]
        }
        9..11 => vec![jmp(long, Goal::Later)],
        // JRCXZ, and JECXZ
        11 => vec![Draft::new([0xe3, 0]).with(1, Form::Relative(1), Goal::Later)],
        12 => vec![Draft::new([0x67, 0xe3, 0]).with(2, Form::Relative(1), Goal::Later)],
        _ => indirect(random, program, 4, Goal::Later),
    }
}

/// Where the displacement of a unit that is one direct branch forward lies, and how long it is.
pub fn displacement(drafts: &[Draft]) -> Option<(usize, usize)> {
    let [branch] = drafts else {
        return None;
    };
    branch.fixes.iter().find_map(|fix| match fix.form {
        Form::Relative(size) if fix.goal == Goal::Later => Some((fix.at, size)),
        _ => None,
    })
}

/// A call of a later region.
pub fn call(random: &mut Random, program: &mut Program) -> Vec<Draft> {
    if random.one_in(2) {
        vec![Draft::new([0xe8, 0, 0, 0, 0]).ending_in_distance(Goal::Call)]
    } else {
        indirect(random, program, 2, Goal::Call)
    }
}

/// The end of a region.
pub fn end(random: &mut Random, returns: bool) -> Vec<Draft> {
    let bytes: &[u8] = match random.below(4) {
        _ if !returns => &[FILL],
        0 => &[0xf3, 0xc3],
        1 => &[0xc2, 0, 0],
        _ => &[0xc3],
    };
    vec![Draft::new(bytes)]
}

/// An instruction that changes its own immediate.
pub fn own_immediate(random: &mut Random) -> Vec<Draft> {
    // ADD, SUB or XOR
    let operation = random.pick(&[0x05, 0x2d, 0x35]);
    let value = random.word().to_le_bytes();
    let bytes = if random.one_in(2) {
        [&[0x80, operation], &(-1_i32).to_le_bytes()[..], &value[..1]].concat()
    } else {
        [&[0x81, operation], &(-4_i32).to_le_bytes()[..], &value[..4]].concat()
    };
    vec![Draft::new(bytes)]
}

/// A branch backward that takes from `counter` each time: once that has come to its end, it stays there.
pub fn turn_back(random: &mut Random, counter: Counter) -> Vec<Draft> {
    let mut drafts = match counter {
        Counter::Rcx => return turn_back_by_rcx(random),
        Counter::Register(number) => take_from_register(random, number as u8),
        Counter::Cell(cell) => vec![take_from_cell(random, cell)],
    };
    let condition = random.pick(&[NOT_SIGN, GREATER_OR_EQUAL, GREATER]);
    let long = random.one_in(2);
    if random.one_in(4) {
        drafts.push(jcc(condition ^ OPPOSITE, long, Goal::Behind));
        if random.one_in(2) {
            drafts.push(jmp(long, Goal::Earlier));
        } else {
            let load = Draft::new([0xb8, 0, 0, 0, 0]).with(1, Form::Absolute, Goal::Earlier);
            drafts.extend([load, Draft::new([0xff, 0xe0])]);
        }
    } else {
        drafts.push(jcc(condition, long, Goal::Earlier));
    }
    drafts
}

/// LOOP, LOOPE or LOOPNE, which is passed by when RCX is 0: it would count on from there.
fn turn_back_by_rcx(random: &mut Random) -> Vec<Draft> {
    let opcode = random.pick(&[0xe2, 0xe2, 0xe1, 0xe0]);
    let prefix: &[u8] = if random.one_in(4) { &[0x67] } else { &[] };
    let branch = |opcode, goal| {
        let bytes = [prefix, &[opcode, 0]].concat();
        Draft::new(bytes).with(prefix.len() + 1, Form::Relative(1), goal)
    };
    vec![branch(0xe3, Goal::Behind), branch(opcode, Goal::Earlier)]
}

/// Takes 1 from R8 to R15, with flags that tell the sign of what is left.
fn take_from_register(random: &mut Random, number: u8) -> Vec<Draft> {
    let low = number & 7;
    let bytes: &[&[u8]] = match random.below(5) {
        // DEC, of 64 and of 32 bits
        0 => &[&[0x49, 0xff, 0xc8 | low]],
        1 => &[&[0x41, 0xff, 0xc8 | low]],
        // SUB
        2 => &[&[0x49, 0x83, 0xe8 | low, 1]],
        // ADD of -1
        3 => &[&[0x49, 0x83, 0xc0 | low, 0xff]],
        // LEA and TEST
        _ => &[
            &[0x4d, 0x8d, 0x44 | low << 3, 0x20 | low, 0xff],
            &[0x4d, 0x85, 0xc0 | low << 3 | low],
        ],
    };
    bytes.iter().map(|&bytes| Draft::new(bytes)).collect()
}

/// Takes 1 from a cell, with flags that tell the sign of what is left.
fn take_from_cell(random: &mut Random, cell: usize) -> Draft {
    let lock: &[u8] = if random.one_in(4) { &[0xf0] } else { &[] };
    let wide: &[u8] = if random.one_in(2) { &[0x48] } else { &[] };
    // DEC, or SUB of 1
    let (opcode, immediate): (&[u8], &[u8]) = if random.one_in(2) {
        (&[0xff, 0x0d], &[])
    } else {
        (&[0x83, 0x2d], &[1])
    };
    let bytes = [lock, wide, opcode, &[0; 4], immediate].concat();
    let at = bytes.len() - immediate.len() - 4;
    Draft::new(bytes).with(at, Form::Relative(4), Goal::Cell(cell))
}
