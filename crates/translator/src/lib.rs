//! The fast engine: translates x86-64 code to x86-64 code.

mod access;
mod asm;
mod block;
mod cache;
mod control;
mod encoding;
mod engine;
mod env;
mod exit;
mod flags;
mod generic;
mod groups;
mod gs;
mod mixer;
mod mode;
mod registers;
mod scan;
mod stubs;
mod system;
mod tables;
mod vcpu;

pub use engine::Translator;
