//! The x86-64 architecture as data and pure functions.
//!
//! Floor 1 of the house. [`CpuState`] is everything that one logical processor holds, the same for
//! every engine; the other modules are functions of it: how an address is translated, how an
//! exception is delivered, what CPUID and the MSRs say. They reach memory only through the two
//! traits of [`access`], so that an engine lends its own fast paths. Nothing here knows an engine,
//! a device or a board.
//!
//! "SDM" in comments is Intel's *Software Developer's Manual*, "APM" AMD's *Architecture
//! Programmer's Manual*.

#![forbid(unsafe_code)]

pub mod access;
pub mod bits;
pub mod control;
pub mod cpuid;
pub mod debug;
pub mod delivery;
pub mod descriptor;
pub mod event;
mod inner_stack;
pub mod msr;
pub mod paging;
pub mod reset;
pub mod segmentation;
mod stack;
pub mod state;
pub mod syscall;
pub mod task;
#[cfg(test)]
mod testing;
pub mod transfer;
pub mod xsave;

pub use access::{Access, LinearMemory, PhysicalMemory};
pub use event::{Event, Exception, Vector};
pub use state::{CpuState, Gpr, Seg, Segment, VectorState};
