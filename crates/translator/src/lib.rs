//! The fast engine: translates x86-64 code to x86-64 code.
//!
//! Tracing, at level TRACE: target `belljar::translate` tells the code of every block that is
//! translated, the guest's and the host's; target `belljar::enter` every block that is entered from
//! outside generated code. A [`Tuning`] makes what is rare frequent, for tests.

// Tables of opcodes are grouped by what they mean, not by what comes of it.
#![allow(clippy::match_same_arms)]

mod access;
mod asm;
mod block;
mod bound;
mod cache;
mod control;
mod encoding;
mod engine;
mod env;
mod exit;
mod far;
mod flags;
mod forms;
mod generic;
mod groups;
mod gs;
mod kinds;
mod loops;
mod mixer;
mod mode;
mod near;
mod plans;
mod privilege;
mod quick;
mod rare;
mod readings;
mod recent;
mod registers;
mod scan;
mod shapes;
mod stubs;
mod system;
mod tables;
mod trace;
mod tuning;
mod vcpu;
mod vectors;
mod width;
mod x87;

pub use engine::Translator;
pub use tuning::Tuning;
