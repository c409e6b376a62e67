//! What was found out about a difference.

use crate::history::History;
use crate::lockstep::Position;
use crate::state::Field;
use std::fmt;

/// Fields that are printed at most.
const MOST_FIELDS: usize = 40;

/// A difference that shows only while the engines are not stopped after each instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hidden {
    /// The fewest instructions from the begin of the slice after which it shows.
    pub together: u64,
}

/// How near a difference was come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The last instruction of the history made it.
    Instruction,
    /// It hides when the engines run one instruction at a time.
    Hidden(Hidden),
    /// It did not come again in a second run: something is not deterministic.
    NotAgain,
}

/// The first difference between two sides.
#[derive(Clone, Debug)]
pub struct Report {
    /// How near it was come to.
    pub found: Found,
    /// Where the pair stands just after it.
    pub at: Position,
    /// What differs.
    pub fields: Vec<Field>,
    /// The instructions that led there, as the left side executed them.
    pub history: History,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "the sides differ after {} instructions, in slice {}",
            self.at.instruction, self.at.slice
        )?;
        match self.found {
            Found::Instruction => {}
            Found::Hidden(Hidden { together }) => writeln!(
                f,
                "(only when the slice's first {together} instructions run in one go)"
            )?,
            Found::NotAgain => writeln!(f, "(it did not come again: this is not deterministic)")?,
        }
        let width = self.fields.iter().map(|field| field.left.len()).max();
        let width = width.unwrap_or(0).max("left".len());
        writeln!(f, "  {:<22} {:<width$}  right", "", "left")?;
        for field in self.fields.iter().take(MOST_FIELDS) {
            writeln!(
                f,
                "  {:<22} {:<width$}  {}",
                field.name, field.left, field.right
            )?;
        }
        if self.fields.len() > MOST_FIELDS {
            writeln!(f, "  and {} more", self.fields.len() - MOST_FIELDS)?;
        }
        if self.history.iter().next().is_some() {
            writeln!(f, "the instructions before, as on the left:")?;
        }
        for past in self.history.iter() {
            writeln!(f, "{past}")?;
        }
        Ok(())
    }
}
