//! A pair's way from the first instruction to its end.

use crate::narrow::Narrowing;
use crate::pair::{LockstepError, Pair, Sides};
use crate::report::Report;
use belljar_engine::Exit;
use std::sync::atomic::{AtomicU64, Ordering};

/// How a pair is run and compared.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Instructions in a slice. Time moves by a nanosecond for each, at the slice's end.
    pub slice: u64,
    /// Instructions between comparisons, from [`from`](Self::from) on.
    pub every: u64,
    /// The first instruction after which comparisons come more often than once a slice.
    pub from: u64,
    /// Slices between comparisons of all RAM; 0 compares it only after a difference.
    pub memory_every: u64,
    /// Instructions after which a run ends.
    pub most: u64,
    /// Show the console of the left side on standard output.
    pub shown: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            slice: 10_000,
            every: 10_000,
            from: 0,
            memory_every: 0,
            most: u64::MAX,
            shown: false,
        }
    }
}

/// Where a pair stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Slices run to their end.
    pub slice: u64,
    /// Instructions executed on the left.
    pub instruction: u64,
    /// Slices after which status flags differed, and nothing came of it.
    pub flag_slices: u64,
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// The script came to its end: the last prompt was printed.
    Finished(Position),
    /// The instructions that were asked for were executed.
    Executed(Position),
    /// The guest came to its own end, the same on both sides.
    Guest(Position, String),
    /// The sides differ.
    Differ(Box<Report>),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (position, how) = match self {
            Self::Finished(position) => (position, "the guest printed what was waited for"),
            Self::Executed(position) => (position, "the instructions asked for were executed"),
            Self::Guest(position, how) => (position, how.as_str()),
            Self::Differ(report) => return report.fmt(f),
        };
        write!(
            f,
            "no difference in {} instructions ({} slices): {how}",
            position.instruction, position.slice
        )?;
        match position.flag_slices {
            0 => Ok(()),
            count => write!(
                f,
                "; status flags differed after {count} slices for a while"
            ),
        }
    }
}

/// A run of pairs. See the [crate].
#[derive(Debug)]
pub struct Lockstep {
    /// What is compared.
    pub sides: Sides,
    /// How it is compared.
    pub settings: Settings,
    steps: AtomicU64,
}

impl Lockstep {
    /// A run that compares `sides`.
    pub fn new(sides: Sides, settings: Settings) -> Self {
        Self {
            sides,
            settings,
            steps: AtomicU64::new(0),
        }
    }

    /// How many slices have been run so far, those that were run again too: another thread can see
    /// that the run goes on.
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    /// Runs a pair to its end, or to the first difference, which is then narrowed down.
    ///
    /// # Errors
    /// [`LockstepError`]: what no engine is to blame for.
    pub fn run(&self) -> Result<End, LockstepError> {
        let mut pair = self.sides.make(self.settings.shown)?;
        // The last slice before which all RAM was the same.
        let mut sound = 0;
        loop {
            let start = pair.slices;
            let differs = self.slice(&mut pair, |pair| !pair.differing().is_empty());
            let every = self.settings.memory_every;
            let due = every != 0 && pair.slices.is_multiple_of(every);
            if differs || due {
                let watched = pair.differing_memory()?;
                if differs || !watched.is_empty() {
                    let mut fields = pair.differing();
                    fields.extend(pair.differing_words(&watched));
                    let narrowing = Narrowing {
                        lockstep: self,
                        first: sound,
                        last: start,
                        watched,
                    };
                    let report = narrowing.find(fields, position(&pair))?;
                    return Ok(End::Differ(Box::new(report)));
                }
                sound = pair.slices;
            }
            if let Some(end) = self.end(&pair) {
                return Ok(end);
            }
        }
    }

    /// Runs the next slice.
    pub(crate) fn slice(&self, pair: &mut Pair, differs: impl FnMut(&mut Pair) -> bool) -> bool {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let step = self.step_at(pair.left.executed);
        pair.slice(self.settings.slice, step, differs)
    }

    /// Instructions in a step of a slice that begins after `executed` instructions.
    pub(crate) fn step_at(&self, executed: u64) -> u64 {
        if executed.saturating_add(self.settings.slice) > self.settings.from {
            self.settings.every
        } else {
            self.settings.slice
        }
    }

    /// How the run ends here, if it does.
    fn end(&self, pair: &Pair) -> Option<End> {
        let position = position(pair);
        let left = &pair.left;
        if let Some(outcome) = &left.outcome {
            return Some(End::Guest(position, outcome.clone()));
        }
        if left.exit == Exit::TripleFault {
            return Some(End::Guest(position, "the guest crashed".to_owned()));
        }
        if left.stuck {
            let how = "the guest waits for what will never come";
            return Some(End::Guest(position, how.to_owned()));
        }
        if pair.is_finished() {
            return Some(End::Finished(position));
        }
        (position.instruction >= self.settings.most).then_some(End::Executed(position))
    }
}

/// Where `pair` stands.
pub(crate) fn position(pair: &Pair) -> Position {
    Position {
        slice: pair.slices,
        instruction: pair.left.executed,
        flag_slices: pair.flag_slices(),
    }
}
