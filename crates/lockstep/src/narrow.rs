//! From a slice in which the sides came to differ down to the instruction.
//!
//! Nothing is saved on the way, so every step down begins at the first instruction anew; the runs
//! are the same each time.

use crate::history::History;
use crate::lockstep::{Lockstep, Position, position};
use crate::pair::{LockstepError, Pair};
use crate::report::{Found, Hidden, Report};
use crate::state::Field;
use belljar_memory::GuestPhysAddr;

/// What is known of a difference.
#[derive(Debug)]
pub(crate) struct Narrowing<'a> {
    pub lockstep: &'a Lockstep,
    /// The slice before which all was the same.
    pub first: u64,
    /// The slice after which it was not.
    pub last: u64,
    /// Words of RAM that differed then.
    pub watched: Vec<GuestPhysAddr>,
}

impl Narrowing<'_> {
    /// Finds the instruction. `fields` and `at` are what was seen first, and where.
    pub fn find(&self, fields: Vec<Field>, at: Position) -> Result<Report, LockstepError> {
        let slice = if self.watched.is_empty() {
            Some(self.last)
        } else {
            self.find_slice()?
        };
        let seen = Report {
            found: Found::NotAgain,
            at,
            fields,
            history: History::default(),
        };
        let Some(slice) = slice else {
            return Ok(seen);
        };
        if let Some(report) = self.by_one(slice)? {
            return Ok(report);
        }
        Ok(self.in_one_go(slice)?.unwrap_or(seen))
    }

    /// A new pair at the begin of `slice`.
    fn at(&self, slice: u64) -> Result<Pair, LockstepError> {
        let mut pair = self.lockstep.sides.make(false)?;
        while pair.slices < slice {
            self.lockstep.slice(&mut pair, |_| false);
        }
        Ok(pair)
    }

    fn differing(&self, pair: &mut Pair) -> Vec<Field> {
        let mut fields = pair.differing();
        fields.extend(pair.differing_words(&self.watched));
        fields
    }

    /// The first slice after which anything that is known to differ does.
    fn find_slice(&self) -> Result<Option<u64>, LockstepError> {
        let mut pair = self.at(self.first)?;
        while pair.slices <= self.last {
            let slice = pair.slices;
            let differs = self
                .lockstep
                .slice(&mut pair, |pair| !self.differing(pair).is_empty());
            if differs {
                return Ok(Some(slice));
            }
        }
        Ok(None)
    }

    /// Runs `slice` an instruction at a time to the first difference.
    fn by_one(&self, slice: u64) -> Result<Option<Report>, LockstepError> {
        let mut pair = self.at(slice)?;
        let mut history = History::default();
        history.push(pair.left.next());
        let mut fields = Vec::new();
        let differs = pair.slice(self.lockstep.settings.slice, 1, |pair| {
            fields = self.differing(pair);
            if fields.is_empty() {
                history.push(pair.left.next());
            }
            !fields.is_empty()
        });
        Ok(differs.then(|| Report {
            found: Found::Instruction,
            at: position(&pair),
            fields,
            history,
        }))
    }

    /// For a difference that is not there when the engines stop after each instruction: the fewest
    /// instructions of `slice` after which it is.
    fn in_one_go(&self, slice: u64) -> Result<Option<Report>, LockstepError> {
        let whole = self.lockstep.settings.slice;
        if self.probe(slice, whole)?.1.is_empty() {
            return Ok(None);
        }
        let (mut same, mut differs) = (0, whole);
        while differs - same > 1 {
            let middle = same + (differs - same) / 2;
            if self.probe(slice, middle)?.1.is_empty() {
                same = middle;
            } else {
                differs = middle;
            }
        }
        let (pair, fields) = self.probe(slice, differs)?;
        Ok(Some(Report {
            found: Found::Hidden(Hidden { together: differs }),
            at: position(&pair),
            fields,
            history: self.history(slice, differs)?,
        }))
    }

    /// What differs after the first `instructions` of `slice`, and after its end if it ends there.
    fn probe(&self, slice: u64, instructions: u64) -> Result<(Pair, Vec<Field>), LockstepError> {
        let mut pair = self.at(slice)?;
        let step = self.lockstep.step_at(pair.left.executed);
        let whole = self.lockstep.settings.slice;
        let mut left = instructions;
        while left > 0 {
            let now = step.clamp(1, left);
            pair.step(now);
            left -= now;
            if pair.left_early() {
                break;
            }
        }
        let mut fields = self.differing(&mut pair);
        if fields.is_empty() && (instructions == whole || pair.left_early()) {
            pair.tick(whole);
            fields = self.differing(&mut pair);
        }
        Ok((pair, fields))
    }

    /// The last of the first `instructions` instructions of `slice`.
    fn history(&self, slice: u64, instructions: u64) -> Result<History, LockstepError> {
        let mut pair = self.at(slice)?;
        let mut history = History::default();
        for _ in 0..instructions {
            history.push(pair.left.next());
            pair.left.step(1);
        }
        Ok(history)
    }
}
