//! Two machines that start from the same state.

use crate::console::Console;
use crate::history::Past;
use crate::memory::{self, WORD};
use crate::state::{Field, fields};
use belljar_clock::{ManualClock, SeededEntropy};
use belljar_engine::{Engine, Exit};
use belljar_machine::{MachineConfig, MachineError, SteppedMachine};
use belljar_memory::{GuestPhysAddr, MemoryError};
use belljar_x86::bits::rflags;
use std::sync::Arc;
use thiserror::Error;

/// What the wall clock shows when a guest starts, in nanoseconds since 1970: some day of 2025.
const WALL: u64 = 1_750_000_000_000_000_000;
/// The seed of the guest's randomness.
const SEED: u64 = 0x10c5;
/// Deadlines in a row after which a vCPU that still waits is taken to wait for ever.
const MOST_DEADLINES: u32 = 100_000;

/// Why a pair could not be made or compared.
#[derive(Debug, Error)]
pub enum LockstepError {
    /// A machine could not be made.
    #[error("cannot make a machine of the pair")]
    Machine(#[from] MachineError),
    /// RAM could not be read.
    #[error("cannot compare the machines' RAM")]
    Memory(#[from] MemoryError),
}

/// What is typed at the guest's console, and when a run ends.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// What the guest prints when it is ready for the next line, or after the last one at its end.
    /// `None` waits for nothing and types nothing.
    pub prompt: Option<String>,
    /// The lines to type.
    pub lines: Vec<String>,
}

/// What pairs are made of.
#[derive(Clone, Debug)]
pub struct Sides {
    /// What is typed on both sides.
    pub script: Script,
    /// Whether the status flags must always be the same. Else they may differ as long as nothing
    /// comes of it: the manual leaves some undefined, and engines go different ways there.
    pub exact_flags: bool,
    /// The machine; its engine, vCPUs and console do not count.
    pub config: MachineConfig,
    /// The engine on the left.
    pub left: Arc<dyn Engine>,
    /// The engine on the right.
    pub right: Arc<dyn Engine>,
}

impl Sides {
    /// Makes a pair at the guest's first instruction; `shown` says whether standard output shows the
    /// console of the left side.
    ///
    /// # Errors
    /// [`LockstepError::Machine`]
    pub fn make(&self, shown: bool) -> Result<Pair, LockstepError> {
        Ok(Pair {
            left: Side::new(&self.config, &*self.left, shown)?,
            right: Side::new(&self.config, &*self.right, false)?,
            slices: 0,
            flags: FlagCount::new(self.exact_flags),
            typist: Typist {
                script: self.script.clone(),
                ..Typist::default()
            },
        })
    }
}

/// Slices in a row after which status flags that differ are no matter of undefined flags.
const MOST_FLAG_SLICES: u32 = 3;

/// How often the status flags were all that differed.
#[derive(Debug)]
struct FlagCount {
    exact: bool,
    /// Slices after which they did.
    slices: u64,
    /// How many of these were the last ones.
    last: u32,
}

impl FlagCount {
    fn new(exact: bool) -> Self {
        Self {
            exact,
            slices: 0,
            last: 0,
        }
    }

    fn count(&mut self, left: &mut Side, right: &mut Side) {
        if differing_flags(left, right) == 0 {
            self.last = 0;
        } else {
            self.last += 1;
            self.slices += 1;
        }
    }
}

/// The status flags that differ.
fn differing_flags(left: &mut Side, right: &mut Side) -> u64 {
    (left.machine.state().rflags ^ right.machine.state().rflags) & rflags::STATUS
}

/// Where a pair is in its script.
#[derive(Debug, Default)]
struct Typist {
    script: Script,
    /// Lines begun.
    lines: usize,
    /// What of them is yet to be typed.
    left: Vec<u8>,
    /// How much of the console has been looked at for prompts.
    seen: usize,
    /// How many bytes the sides took last.
    taken: [usize; 2],
    /// The prompt after the last line has come.
    finished: bool,
}

impl Typist {
    /// Types what there is to type.
    fn act(&mut self, left: &mut Side, right: &mut Side) {
        let Some(prompt) = &self.script.prompt else {
            return;
        };
        if let Some(end) = left.console.find(prompt, self.seen) {
            self.seen = end;
            match self.script.lines.get(self.lines) {
                Some(line) => self.left.extend(format!("{line}\n").bytes()),
                None => self.finished = true,
            }
            self.lines += 1;
        } else {
            // The prompt may come in two pieces.
            let looked_at = left.console.len().saturating_sub(prompt.len());
            self.seen = self.seen.max(looked_at);
        }
        if !self.left.is_empty() {
            self.taken = [left, right].map(|side| side.machine.type_in(&self.left));
            self.left.drain(..self.taken[0]);
        }
    }
}

/// One of the two machines.
#[derive(Debug)]
pub(crate) struct Side {
    pub machine: SteppedMachine,
    pub console: Arc<Console>,
    /// Instructions executed.
    pub executed: u64,
    /// How the last step ended.
    pub exit: Exit,
    /// Nothing will ever end its vCPU's waiting.
    pub stuck: bool,
    /// How the guest ended the machine, in words.
    pub outcome: Option<String>,
}

impl Side {
    fn new(
        config: &MachineConfig,
        engine: &dyn Engine,
        shown: bool,
    ) -> Result<Self, LockstepError> {
        let console = Arc::new(Console::new(shown));
        let machine = SteppedMachine::new(
            config,
            engine,
            Arc::new(ManualClock::new(WALL)),
            Arc::new(SeededEntropy::new(SEED)),
            Arc::<Console>::clone(&console),
        )?;
        Ok(Self {
            machine,
            console,
            executed: 0,
            exit: Exit::Budget,
            stuck: false,
            outcome: None,
        })
    }

    /// What the engine counts, which is exact also where a run ends early.
    fn counted(&self) -> Option<u64> {
        let counters = self.machine.counters();
        let found = counters.iter().find(|(name, _)| *name == "instructions");
        found.map(|(_, count)| *count)
    }

    pub fn step(&mut self, instructions: u64) {
        let before = self.counted();
        self.exit = self.machine.run(instructions);
        let counted = before.zip(self.counted());
        self.executed += counted.map_or(instructions, |(before, after)| after.wrapping_sub(before));
    }

    /// Moves time, by `nanos` or to where the vCPU has something to do.
    fn tick(&mut self, nanos: u64) {
        self.machine.tick(nanos);
        for _ in 0..MOST_DEADLINES {
            if !self.machine.is_waiting() {
                return;
            }
            let Some(deadline) = self.machine.deadline() else {
                break;
            };
            self.machine.tick(deadline.since(self.machine.now()));
        }
        self.stuck = self.machine.is_waiting();
    }

    /// The instruction that comes next.
    pub fn next(&mut self) -> Past {
        let memory = self.machine.memory().clone();
        Past::next(self.executed, self.machine.state(), &memory)
    }
}

/// Two machines that run the same guest. See the [crate].
#[derive(Debug)]
pub struct Pair {
    pub(crate) left: Side,
    pub(crate) right: Side,
    /// Slices run to their end.
    pub(crate) slices: u64,
    flags: FlagCount,
    typist: Typist,
}

impl Pair {
    /// Runs both sides `instructions` instructions.
    pub(crate) fn step(&mut self, instructions: u64) {
        self.left.step(instructions);
        self.right.step(instructions);
    }

    /// Whether a step ended before its instructions were executed, which ends the slice.
    pub(crate) fn left_early(&self) -> bool {
        self.left.exit != Exit::Budget || self.right.exit != Exit::Budget
    }

    /// Ends a slice: moves the time of both sides.
    pub(crate) fn tick(&mut self, nanos: u64) {
        for side in [&mut self.left, &mut self.right] {
            side.tick(nanos);
            if let Some(outcome) = side.machine.take_outcome() {
                side.outcome = Some(format!("{outcome:?}"));
            }
        }
        self.flags.count(&mut self.left, &mut self.right);
        self.typist.act(&mut self.left, &mut self.right);
        self.slices += 1;
    }

    /// Whether the script has come to its end.
    pub(crate) fn is_finished(&self) -> bool {
        self.typist.finished
    }

    /// Runs a slice of `length` instructions in steps of `step`, after each of which `differs` is
    /// asked whether to stop there, as it is at the slice's end. Tells whether it stopped.
    pub(crate) fn slice(
        &mut self,
        length: u64,
        step: u64,
        mut differs: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let mut left = length;
        while left > 0 {
            let now = step.clamp(1, left);
            self.step(now);
            left -= now;
            if differs(self) {
                return true;
            }
            if self.left_early() {
                break;
            }
        }
        self.tick(length);
        differs(self)
    }

    /// Slices after which the status flags differed, and nothing came of it.
    pub(crate) fn flag_slices(&self) -> u64 {
        self.flags.slices
    }

    /// What differs between the sides, RAM apart; nothing if it is only status flags that may
    /// differ.
    pub(crate) fn differing(&mut self) -> Vec<Field> {
        let (left, right) = (&mut self.left, &mut self.right);
        let flags = differing_flags(left, right);
        let mut found = fields(left.machine.state(), right.machine.state());
        let lenient = !self.flags.exact && self.flags.last < MOST_FLAG_SLICES;
        let others = (left.machine.state().rflags ^ right.machine.state().rflags) & !flags;
        if lenient && flags != 0 && others == 0 && found.len() == 1 {
            found.clear();
        }
        let mut add = |name: &str, left: String, right: String| {
            if left != right {
                let name = name.to_owned();
                found.push(Field { name, left, right });
            }
        };
        if left.exit != right.exit {
            add(
                "exit",
                format!("{:?}", left.exit),
                format!("{:?}", right.exit),
            );
        }
        if left.executed != right.executed {
            let (left, right) = (left.executed.to_string(), right.executed.to_string());
            add("instructions executed", left, right);
        }
        if left.outcome != right.outcome {
            let text = |side: &Side| format!("{:?}", side.outcome);
            add("end of the machine", text(left), text(right));
        }
        if left.console.len() != right.console.len() {
            let text = |side: &Side| format!("{} bytes", side.console.len());
            add("console", text(left), text(right));
        }
        let [taken, other] = self.typist.taken.map(|bytes| format!("{bytes} bytes"));
        add("input taken", taken, other);
        let deadlines = (left.machine.deadline(), right.machine.deadline());
        if deadlines.0 != deadlines.1 {
            let (left, right) = (format!("{:?}", deadlines.0), format!("{:?}", deadlines.1));
            add("next deadline", left, right);
        }
        found
    }

    /// The addresses of the first words of RAM that differ.
    pub(crate) fn differing_memory(&self) -> Result<Vec<GuestPhysAddr>, MemoryError> {
        memory::differing(self.left.machine.memory(), self.right.machine.memory())
    }

    /// Those of the words at `watched` that differ, as fields.
    pub(crate) fn differing_words(&self, watched: &[GuestPhysAddr]) -> Vec<Field> {
        let word = |side: &Side, at| {
            let mut bytes = [0; WORD];
            // What is watched has been found in RAM.
            let _ = side.machine.memory().read(at, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let found = watched.iter().filter_map(|&at| {
            let (left, right) = (word(&self.left, at), word(&self.right, at));
            (left != right).then(|| Field {
                name: format!("memory at {:#x}", at.0),
                left: format!("{left:#018x}"),
                right: format!("{right:#018x}"),
            })
        });
        found.collect()
    }
}
