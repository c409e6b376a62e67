//! A machine: vCPU threads, memory, and devices wired to a board.
//!
//! Floor 4 of the house. A [`Machine`] is made from a [`MachineConfig`], the one source of truth
//! about what it is to be. It chooses an engine, loads the kernel, and runs one thread for each
//! vCPU and one for the devices' deadlines; a [`MachineHandle`] pauses, resumes, resets and stops
//! it from any thread and tells its [`Statistics`], and [`Machine::wait`] gives its [`Outcome`]. It
//! knows nothing of terminals: its console is a [`ConsoleOutput`] that it writes to and a
//! [`ConsoleInput`] that is written to.
//!
//! A [`SteppedMachine`] is the same board for tools that want to run the guest themselves, a number
//! of instructions at a time, and twice in the same way.

#![forbid(unsafe_code)]

mod board;
mod config;
mod console;
mod disks;
mod engines;
mod error;
mod expansion;
mod generation;
mod halt;
mod lifecycle;
mod machine;
mod outcome;
mod power_on;
mod size;
mod source;
mod statistics;
mod stepped;
mod vcpu;
mod wiring;

pub use belljar_block::{DiskConfig, Format as DiskFormat, Interface};
pub use belljar_devices::virtio::vsock::Greetings;
pub use belljar_net::CardConfig;
pub use belljar_share::ShareConfig;
pub use config::{
    BadChoice, ConfigError, ConsoleChoice, ConsoleDevice, EngineChoice, MOST_CARDS, MOST_CPUS,
    MOST_DISKS, MOST_SHARES, MachineConfig, NetChoice,
};
pub use console::{ConsoleInput, ConsoleOutput};
pub use engines::choose as choose_engine;
pub use error::MachineError;
pub use machine::{Machine, MachineHandle};
pub use outcome::{Crash, Outcome};
pub use size::{BadSize, Size};
pub use statistics::{
    Activity, BalloonSize, BalloonStatistics, Counters, GuestStatistics, Statistics, VcpuStatistics,
};
pub use stepped::SteppedMachine;
