//! What stores into instructions.

use super::RDI;
use super::control::SCRATCH;
use super::draft::{Draft, Form, Goal, Id, Program};
use crate::layout::DATA;
use crate::random::Random;

/// An instruction that is to be changed.
#[derive(Clone, Debug)]
pub enum Target {
    /// It is replaced, with its neighbours in the unit.
    Replaced {
        unit: Id,
        before: Vec<u8>,
        after: Vec<u8>,
    },
    /// Its immediate gets any value.
    Immediate {
        unit: Id,
        offset: usize,
        size: usize,
    },
    /// It is a branch forward, which gets another target.
    Detour {
        unit: Id,
        offset: usize,
        size: usize,
    },
}

impl Target {
    /// The unit that is changed.
    pub fn unit(&self) -> Id {
        match *self {
            Self::Replaced { unit, .. }
            | Self::Immediate { unit, .. }
            | Self::Detour { unit, .. } => unit,
        }
    }
}

/// Makes the stores.
pub struct Patcher<'a> {
    pub random: &'a mut Random,
    pub program: &'a mut Program,
    /// RCX must not be written.
    pub rcx_counts: bool,
}

impl Patcher<'_> {
    /// What stores into `target`.
    pub fn drafts(&mut self, target: &Target) -> Vec<Draft> {
        match target {
            Target::Replaced {
                unit,
                before,
                after,
            } => self.replace(*unit, before, after),
            Target::Immediate { unit, offset, size } => {
                vec![self.change(Goal::Byte(*unit, *offset), *size)]
            }
            Target::Detour { unit, offset, size } => {
                let store = store_immediate(Goal::Byte(*unit, *offset), &vec![0; *size]);
                let at = store.bytes.len() - size;
                vec![store.with(at, Form::Of(*unit, *size), Goal::Later)]
            }
        }
    }

    /// Lets a constant of `size` bytes get a value that depends on registers.
    fn change(&mut self, goal: Goal, size: usize) -> Draft {
        if self.random.one_in(4) {
            // INC
            return operate(&[0xfe], &[0x05], goal, size, &[], 0);
        }
        // MOV, ADD, SUB, XOR or XCHG with any register but the stack pointer
        let opcode = self.random.pick(&[0x88, 0x88, 0x00, 0x28, 0x30]);
        let register = self
            .random
            .pick(&[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        with_register(opcode, register, goal, size)
    }

    /// Stores `after` over `before`, which a unit begins with, so far as they differ.
    fn replace(&mut self, unit: Id, before: &[u8], after: &[u8]) -> Vec<Draft> {
        let differs = |at: &usize| before[*at] != after[*at];
        let mut all = 0..before.len();
        let first = all.clone().find(differs).unwrap_or(0);
        let last = all.rfind(differs).unwrap_or(0);
        let (start, end) = if self.random.one_in(4) {
            (0, before.len())
        } else {
            (first, last + 1)
        };
        let stores = Stores {
            unit,
            start,
            before: &before[start..end],
            after: &after[start..end],
        };
        match self.random.below(10) {
            0..3 => self.by_immediates(&stores),
            3..5 => self.by_toggling(&stores),
            5..7 => self.by_registers(&stores),
            7 => self.by_strings(&stores),
            8 if !self.rcx_counts => self.by_a_repeated_string(&stores),
            _ => self.by_vectors(&stores),
        }
    }

    /// Cuts `stores` into pieces of 1, 2, 4, and so on up to `most` bytes.
    fn pieces(&mut self, stores: &Stores<'_>, most: usize) -> Vec<(usize, usize)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < stores.after.len() {
            let room = stores.after.len() - at;
            let mut size = most;
            while size > room || (size > 1 && self.random.one_in(4)) {
                size /= 2;
            }
            pieces.push((at, size));
            at += size;
        }
        pieces
    }

    /// By MOV of immediates.
    fn by_immediates(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        let pieces = self.pieces(stores, 4);
        let store = |(at, size)| store_immediate(stores.goal(at), &stores.after[at..at + size]);
        pieces.into_iter().map(store).collect()
    }

    /// By XOR with the difference, which makes the old instruction from the new one the next time.
    fn by_toggling(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        let lock: &[u8] = if self.random.one_in(3) { &[0xf0] } else { &[] };
        let pieces = self.pieces(stores, 4);
        let toggle = |(at, size)| {
            let range = at..at + size;
            let pairs = stores.before[range.clone()]
                .iter()
                .zip(&stores.after[range]);
            let difference: Vec<u8> = pairs.map(|(before, after)| before ^ after).collect();
            let mut draft = operate(&[0x80], &[0x35], stores.goal(at), size, &difference, size);
            draft.bytes.splice(0..0, lock.iter().copied());
            for fix in &mut draft.fixes {
                fix.at += lock.len();
            }
            draft
        };
        pieces.into_iter().map(toggle).collect()
    }

    /// By MOV or XCHG of a register.
    fn by_registers(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        let opcode = self.random.pick(&[0x88, 0x88, 0x86]);
        let mut drafts = Vec::new();
        for (at, size) in self.pieces(stores, 8) {
            let register = self.random.pick(&SCRATCH) as u8;
            drafts.push(load(register, &stores.after[at..at + size]));
            drafts.push(with_register(opcode, register, stores.goal(at), size));
        }
        drafts
    }

    /// By STOS.
    fn by_strings(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        // CLD; LEA RDI
        let mut drafts = vec![Draft::new([0xfc]), lea(RDI, stores.goal(0))];
        for (at, size) in self.pieces(stores, 8) {
            drafts.push(load(0, &stores.after[at..at + size]));
            drafts.push(Draft::new(sized(&[0xaa], size)));
        }
        drafts.push(self.data_pointer(RDI));
        drafts
    }

    /// By REP MOVSB from the cells.
    fn by_a_repeated_string(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        let cell = self.cells(stores.after);
        let count = (stores.after.len() as u32).to_le_bytes();
        vec![
            Draft::new([0xfc]),
            lea(RDI, stores.goal(0)),
            lea(super::RSI, Goal::Cell(cell)),
            Draft::new([&[0xb9], &count[..]].concat()),
            Draft::new([0xf3, 0xa4]),
            self.data_pointer(RDI),
            self.data_pointer(super::RSI),
        ]
    }

    /// By MOVUPS from the cells, or else by immediates where 16 bytes are too many.
    fn by_vectors(&mut self, stores: &Stores<'_>) -> Vec<Draft> {
        const BYTES: usize = 16;
        if stores.after.len() < BYTES {
            return self.by_immediates(stores);
        }
        let cell = self.cells(stores.after);
        let mut drafts = Vec::new();
        let last = stores.after.len() - BYTES;
        let mut at = 0;
        loop {
            let register = self.random.byte() & 7;
            let modrm = register << 3 | 5;
            let load = Draft::new([0x0f, 0x10, modrm, 0, 0, 0, 0]);
            let store = Draft::new([0x0f, 0x11, modrm, 0, 0, 0, 0]);
            drafts.push(load.ending_in_distance(Goal::Cell(cell + at)));
            drafts.push(store.ending_in_distance(stores.goal(at)));
            if at == last {
                return drafts;
            }
            at = (at + BYTES).min(last);
        }
    }

    /// New cells that begin with `bytes`.
    fn cells(&mut self, bytes: &[u8]) -> usize {
        let first = self.program.cells.len();
        for word in bytes.chunks(8) {
            let mut content = [0; 8];
            content[..word.len()].copy_from_slice(word);
            self.program.cell(u64::from_le_bytes(content));
        }
        first
    }

    /// MOV of an address of data.
    fn data_pointer(&mut self, register: usize) -> Draft {
        let address = DATA + 1024 + 16 * self.random.below(128);
        load(register as u8, &(address as u32).to_le_bytes())
    }
}

/// Bytes of a unit, from `start` on, that are to be replaced.
struct Stores<'a> {
    unit: Id,
    start: usize,
    before: &'a [u8],
    after: &'a [u8],
}

impl Stores<'_> {
    fn goal(&self, at: usize) -> Goal {
        Goal::Byte(self.unit, self.start + at)
    }
}

/// An instruction for an operand of `size` bytes: `opcode` is that for bytes, and ends in the bit that tells.
fn sized(opcode: &[u8], size: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = match size {
        2 => vec![0x66],
        8 => vec![0x48],
        _ => Vec::new(),
    };
    bytes.extend_from_slice(opcode);
    if size > 1
        && let Some(last) = bytes.last_mut()
    {
        *last |= 1;
    }
    bytes
}

/// An instruction on `size` bytes at `goal`, with an immediate of which the last `immediate` bytes are left.
fn operate(
    opcode: &[u8],
    modrm: &[u8],
    goal: Goal,
    size: usize,
    value: &[u8],
    immediate: usize,
) -> Draft {
    let head = [&sized(opcode, size), modrm].concat();
    let at = head.len();
    let bytes = [&head, &[0; 4][..], &value[..immediate]].concat();
    Draft::new(bytes).with(at, Form::Relative(4), goal)
}

/// MOV of an immediate of 1, 2 or 4 bytes.
fn store_immediate(goal: Goal, value: &[u8]) -> Draft {
    operate(&[0xc6], &[0x05], goal, value.len(), value, value.len())
}

/// `opcode` (that for bytes) on `size` bytes at `goal` with a register.
fn with_register(opcode: u8, register: u8, goal: Goal, size: usize) -> Draft {
    let prefix: &[u8] = if size == 2 { &[0x66] } else { &[] };
    let rex = 0x40 | u8::from(size == 8) << 3 | register >> 3 << 2;
    let opcode = opcode | u8::from(size > 1);
    let bytes = [prefix, &[rex, opcode, (register & 7) << 3 | 5, 0, 0, 0, 0]].concat();
    Draft::new(bytes).ending_in_distance(goal)
}

/// MOV of an immediate of up to 8 bytes into a register.
fn load(register: u8, value: &[u8]) -> Draft {
    let mut bytes = [0; 8];
    bytes[..value.len()].copy_from_slice(value);
    let (wide, length) = if value.len() > 4 { (8, 8) } else { (0, 4) };
    let opcode = [0x40 | wide | register >> 3, 0xb8 | register & 7];
    Draft::new([&opcode, &bytes[..length]].concat())
}

/// LEA of RSI or RDI.
fn lea(register: usize, goal: Goal) -> Draft {
    let modrm = (register as u8) << 3 | 5;
    Draft::new([0x48, 0x8d, modrm, 0, 0, 0, 0]).ending_in_distance(goal)
}
