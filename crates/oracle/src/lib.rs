//! The host's own processor as the oracle: random instructions run on it and in an engine, and every difference is told.
//!
//! A test tool, beside the house rather than in it. A [`Case`] is one instruction, a sequence of them, or a block that loops
//! and changes itself, with the complete state of user mode that it starts from; it is a function of a seed and an index, so
//! every report can be repeated. [`Host`] runs it on the processor, in a child process that can do nothing else; [`Machine`]
//! runs it in an [`Engine`](belljar_engine::Engine), as user mode of a small 64-bit machine; [`differences`] compares all
//! registers, flags, XSAVE state, memory and the exception that ended it. A [`Campaign`] does that for many cases.
//!
//! Left out is what cannot mean the same in both places: system calls, far transfers, segment loads, time, identity, and
//! the XSAVE family, whose images tell what the processor believes to be in use.

mod aim;
mod block;
mod campaign;
mod case;
mod catalogue;
mod compare;
mod encode;
mod features;
mod flags;
mod generate;
mod layout;
mod machine;
mod native;
mod random;
mod report;
mod state;
mod watchdog;

pub use campaign::{Campaign, CampaignError, Mismatch, Runner, Summary, Tally};
pub use case::{Case, Cells, Failure, Fault, Outcome, Registers, Shape, Unit};
pub use catalogue::Catalogue;
pub use compare::{Difference, Flags, Rules, differences};
pub use features::{Answer, Cpuid, has, host_cpuid};
pub use flags::Defined;
pub use generate::{Generator, MOST_INSTRUCTIONS};
pub use machine::{Machine, MachineError};
pub use native::{Host, HostError};
pub use report::describe;
