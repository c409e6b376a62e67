//! Makes blocks: cases with loops, jumps and calls, whose instructions store into one another.
//!
//! However its branches fall, a block comes to an end. It consists of *regions*, of which all but the first are called and
//! return. Branches lead to later units of their region, calls to later regions; a branch that leads backward first takes
//! from a counter that nothing else writes. And whatever is stored into instructions, and whenever, what lies there
//! afterwards is as harmless as what lay there before: other instructions of the same kind, another immediate, or another
//! way forward.

mod control;
mod draft;
mod patch;
mod plain;

use crate::case::{Case, Cells};
use crate::catalogue::Catalogue;
use crate::encode::PINNED;
use crate::flags::Defined;
use crate::layout::{BLOCK, BLOCK_CODE_LEN, BLOCK_LEN, DATA, PAGE};
use crate::random::Random;
use control::Counter;
use draft::{Draft, Program, Unit};
use patch::{Patcher, Target};
use plain::Plain;

/// The most bytes that a block's instructions may have: what the host's child has room for.
const MOST_BYTES: usize = 2000;
/// Registers of counters: no instruction uses them without naming them.
const COUNTERS: [usize; 4] = [9, 12, 14, 15];
/// RSP, and what the string instructions use.
const RCX: usize = 1;
const RSP: usize = 4;
const RSI: usize = 6;
const RDI: usize = 7;
/// Where the stack of a block with calls lies, which nothing but its calls must reach: behind the read-only page.
const CALL_STACK: u64 = DATA + 3 * PAGE as u64 + 2048;

/// Makes `case` a block of about `most` instructions. `None` if it gets too long.
pub fn fill(
    case: &mut Case,
    random: &mut Random,
    catalogue: &Catalogue,
    most: usize,
) -> Option<()> {
    let mut composer = Composer::new(case, random, catalogue);
    // What cannot be a part of a block leaves it to others.
    let about = Some(catalogue.code(case.index));
    let first = composer.plain.instruction(composer.random, about);
    let first = first.or_else(|| composer.plain.instruction(composer.random, None))?;
    composer.compose(first.bytes, most);
    let mut program = composer.program;
    let length = program.length();
    if length > MOST_BYTES {
        return None;
    }
    let start = place(random, length);
    let cells = place_cells(random, start + length);
    case.registers.rip = BLOCK + start as u64;
    program.link(random, case.registers.rip, BLOCK + cells as u64);
    case.units = program.units();
    case.cells = Cells {
        offset: cells,
        bytes: program.cells,
    };
    case.instructions = program
        .regions
        .into_iter()
        .flatten()
        .flat_map(Unit::into_bytes)
        .collect();
    Some(())
}

/// Offset in the block's pages for `length` bytes of instructions: often across the border of the first two.
fn place(random: &mut Random, length: usize) -> usize {
    if random.one_in(2) {
        PAGE - random.below(length as u64 + 1) as usize
    } else {
        // Room for the cells is left behind them.
        random.below((BLOCK_CODE_LEN - length - PAGE / 2) as u64) as usize
    }
}

/// Offset in the block's pages for its cells: in the last page, or right behind the instructions, which end at `end`.
fn place_cells(random: &mut Random, end: usize) -> usize {
    if random.one_in(2) {
        (end + 1).next_multiple_of(8)
    } else {
        BLOCK_LEN - PAGE + 8 * random.below(64) as usize
    }
}

/// A block in the making.
struct Composer<'a> {
    random: &'a mut Random,
    plain: Plain<'a>,
    program: Program,
    /// What loops are to count with.
    counters: Vec<Counter>,
    /// RCX counts.
    rcx_counts: bool,
    defined: Defined,
    targets: Vec<Target>,
}

impl<'a> Composer<'a> {
    /// Chooses what the block is to have, and sets the registers of `case` that it relies on.
    fn new(case: &mut Case, random: &'a mut Random, catalogue: &'a Catalogue) -> Self {
        case.defined_flags = Defined::pick(random);
        let defined = case.defined_flags;
        let regions = random.pick(&[1, 1, 2, 3]);
        let mut program = Program::new(regions);
        let gpr = &mut case.registers.gpr;
        let mut pinned = PINNED.to_vec();
        for number in PINNED {
            let askew = if random.one_in(16) {
                random.below(64)
            } else {
                0
            };
            gpr[number] = DATA + 512 + 64 * random.below(64) + askew;
        }
        gpr[RSI] = DATA + 1024 + 16 * random.below(128);
        gpr[RDI] = DATA + 1024 + 16 * random.below(128);
        gpr[RSP] = if regions > 1 {
            CALL_STACK + 8 * random.below(128)
        } else {
            DATA + 1024 + 8 * random.below(512)
        };
        let mut counters = Vec::new();
        for number in COUNTERS.into_iter().take(random.below(4) as usize) {
            let counter = match random.below(3) {
                0 => Counter::Cell(program.cell(count(random))),
                1 if !counters.contains(&Counter::Rcx) => Counter::Rcx,
                _ => Counter::Register(number),
            };
            if let Some(number) = counter.register() {
                gpr[number] = count(random);
                pinned.push(number);
            }
            counters.push(counter);
        }
        Self {
            rcx_counts: counters.contains(&Counter::Rcx),
            // What lies on the stack of calls is an address of code: nobody may change it or go there.
            plain: Plain::new(catalogue, pinned, regions == 1, defined),
            random,
            program,
            counters,
            defined,
            targets: Vec::new(),
        }
    }

    fn compose(&mut self, first: Vec<u8>, most: usize) {
        let regions = self.program.regions.len();
        // What stores into the others comes on top.
        let share = (most * 2 / 3 / regions).max(1);
        self.add(0, vec![Draft::new(first)]);
        for region in 0..regions {
            let mut left = 1 + self.random.below(share as u64) as usize;
            while left > 0 {
                let drafts = self.unit(region);
                left = left.saturating_sub(drafts.max(1));
            }
            if region == 0 {
                // Loops around everything.
                while let Some(counter) = self.counters.pop() {
                    let drafts = control::turn_back(self.random, counter);
                    self.add(region, drafts);
                }
            }
            let end = control::end(self.random, region > 0);
            let id = self.add(region, end);
            self.program.need(id);
        }
        self.patch();
    }

    fn add(&mut self, region: usize, drafts: Vec<Draft>) -> draft::Id {
        self.program.add(region, drafts)
    }

    /// Adds a unit to `region`; tells how many instructions it has, 0 if none was found.
    fn unit(&mut self, region: usize) -> usize {
        let last = region + 1 == self.program.regions.len();
        let drafts = match self.random.below(32) {
            0..4 => return self.replaced(region),
            4..7 => return self.immediate(region),
            7..11 => return self.forward(region),
            11 | 12 => match self.counters.pop() {
                Some(counter) => control::turn_back(self.random, counter),
                None => Vec::new(),
            },
            13..15 if !last => control::call(self.random, &mut self.program),
            15 => control::own_immediate(self.random),
            _ => {
                let plain = self.plain.instruction(self.random, None);
                plain
                    .map(|plain| Draft::new(plain.bytes))
                    .into_iter()
                    .collect()
            }
        };
        let length = drafts.len();
        if length > 0 {
            self.add(region, drafts);
        }
        length
    }

    /// Adds a branch forward, the way of which may be changed.
    fn forward(&mut self, region: usize) -> usize {
        let drafts = control::forward(self.random, &mut self.program, self.defined);
        let (length, place) = (drafts.len(), control::displacement(&drafts));
        let unit = self.add(region, drafts);
        if let Some((offset, size)) = place
            && self.random.one_in(3)
        {
            self.targets.push(Target::Detour { unit, offset, size });
        }
        length
    }

    /// Adds plain instructions that are to be replaced by others.
    fn replaced(&mut self, region: usize) -> usize {
        let count = 1 + self.random.below(3) as usize;
        let old: Vec<Vec<u8>> = (0..count)
            .filter_map(|_| self.plain.instruction(self.random, None))
            .map(|plain| plain.bytes)
            .collect();
        let before = old.concat();
        let after = self.plain.of_length(self.random, before.len());
        let length = old.len();
        if length > 0 {
            let unit = self.add(region, old.into_iter().map(Draft::new).collect());
            self.targets.push(Target::Replaced {
                unit,
                before,
                after,
            });
        }
        length
    }

    /// Adds a plain instruction whose immediate is to be changed.
    fn immediate(&mut self, region: usize) -> usize {
        let found = (0..16).find_map(|_| {
            let plain = self.plain.instruction(self.random, None)?;
            plain.offsets.has_immediate().then_some(plain)
        });
        let Some(plain) = found else {
            return 0;
        };
        let (offset, size) = (
            plain.offsets.immediate_offset(),
            plain.offsets.immediate_size(),
        );
        let unit = self.add(region, vec![Draft::new(plain.bytes)]);
        self.targets.push(Target::Immediate { unit, offset, size });
        1
    }

    /// Adds what stores into the targets: right before the target, or anywhere.
    fn patch(&mut self) {
        for target in std::mem::take(&mut self.targets) {
            let drafts = Patcher {
                random: self.random,
                program: &mut self.program,
                rcx_counts: self.rcx_counts,
            }
            .drafts(&target);
            let before = self.random.one_in(3).then_some(target.unit());
            self.program
                .insert(self.random, drafts, target.unit(), before);
        }
    }
}

/// How often a loop is to turn back: mostly a few times, seldom so often that an engine will take it for hot.
fn count(random: &mut Random) -> u64 {
    match random.below(24) {
        0 => 40 + random.below(200),
        1..5 => 0,
        _ => 1 + random.below(12),
    }
}
