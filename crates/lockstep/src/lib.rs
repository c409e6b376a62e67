//! Two machines side by side: the same guest, an engine each, compared as they go.
//!
//! A test tool, beside the house. A [`Pair`] is two [`SteppedMachine`](belljar_machine::SteppedMachine)s whose
//! time moves by instructions executed, whose chance is the same, and whose interrupts come between
//! *slices* of instructions only, so that nothing but a fault of an engine can make them differ.
//! [`Lockstep`] runs a pair to the shell's prompt, or any other end, and compares all registers
//! after each slice and all RAM now and then. What differs it finds again from the start, down to
//! the instruction: the [`Report`] names it, with the instructions that led there.

#![forbid(unsafe_code)]

mod console;
mod history;
mod lockstep;
mod memory;
mod narrow;
mod pair;
mod report;
mod state;

pub use console::Console;
pub use history::{History, Past};
pub use lockstep::{End, Lockstep, Position, Settings};
pub use pair::{LockstepError, Pair, Script, Sides};
pub use report::{Found, Hidden, Report};
pub use state::{Field, fields};
