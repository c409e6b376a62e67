//! What every engine must do: small machines that run a few instructions.
//!
//! The module that includes this one says by a function `engine` of its own which engine runs them,
//! and by a function `counted` whether their instructions are counted.

pub mod harness;

mod code;
mod code32;
mod exceptions;
mod execution;
mod flags;
mod interrupts;
mod modes;
mod remapping;
mod sharing;
mod system;
mod transfers;
mod x87;

use super::{counted, engine};
