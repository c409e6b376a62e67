//! What executes the instructions, by family.

// Handlers have one type, whether or not they can fail.
#![allow(clippy::unnecessary_wraps)]

pub mod alu;
pub mod atomics;
pub mod bits;
pub mod branches;
pub mod decimal;
pub mod extended;
pub mod flag_control;
pub mod host_run;
pub mod io;
pub mod moves;
pub mod multiply;
pub mod operand;
pub mod segments;
pub mod shifts;
pub mod stack;
pub mod strings;
pub mod system;
