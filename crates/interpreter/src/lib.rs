//! The reference engine.
//!
//! Floor 2 of the house. It executes guest code instruction by instruction, exactly, and fast
//! enough to be used: straight runs of instructions are decoded once into blocks of ops with
//! specialised handlers (`cache`, `decode`), memory is reached through a software TLB (`mmu`,
//! `tlb`), the status flags are computed only when something asks for them (`flags`). What is
//! innocuous and rare, and all floating point and SIMD, runs on the host's own processor
//! ([`belljar_passthrough`]); what touches the system calls the functions of [`belljar_x86`].
//!
//! Tracing: target `belljar::event` at level TRACE tells every exception and interrupt that is
//! delivered, target `belljar::decode` every instruction that is decoded.

//!
//! The translator stands on this engine: it executes by it what it does not translate, and shares
//! the processor's state, memory and TLB with it. That is what the public modules are for.

mod cache;
mod decode;
mod engine;
mod flags;
mod flushes;
mod handlers;
mod host;
mod large;
mod mix;
mod op;
mod shared;
mod spaces;
mod vcpu;

pub mod mmu;
pub mod processor;
pub mod tlb;
pub mod windows;

pub use cache::Source;
pub use decode::{decoder, exists, mark};
pub use engine::Interpreter;
pub use flags::LazyFlags;
pub use mix::mix;
pub use op::{Fault, Flow};
pub use vcpu::InterpreterVcpu;
