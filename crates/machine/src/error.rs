//! Why a machine could not be made, or not go on.

use crate::{ConfigError, EngineChoice};
use belljar_block::BlockError;
use belljar_boot::BootError;
use belljar_devices::bus::BusError;
use belljar_devices::pci::RootError;
use belljar_engine::EngineError;
use belljar_memory::MemoryError;
use std::path::PathBuf;
use thiserror::Error;

/// Why a machine could not be made, or not go on.
#[derive(Debug, Error)]
pub enum MachineError {
    /// The configuration is not one of a machine.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no kernel to boot.
    #[error("there is no kernel to boot: give one with --kernel")]
    NoKernel,
    /// An engine that does not exist yet.
    #[error("this version of Belljar has no engine {0}: use --engine interpreter or auto")]
    EngineMissing(EngineChoice),
    /// The engine cannot run here, or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No RAM.
    #[error("cannot make the guest's memory (see --memory)")]
    Memory(#[source] MemoryError),
    /// A kernel or an initial RAM filesystem that cannot be read.
    #[error("cannot read the {what} {}", path.display())]
    Read {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// The firmware's tables do not fit.
    #[error("cannot install the firmware's tables")]
    Firmware(#[source] BootError),
    /// The kernel cannot be booted.
    #[error("cannot boot {}", path.display())]
    Boot {
        /// The kernel.
        path: PathBuf,
        /// Why not.
        #[source]
        source: BootError,
    },
    /// Two devices at one place.
    #[error("the board's devices do not fit together")]
    Board(#[from] BusError),
    /// The PCI devices do not fit on the bus.
    #[error("the machine has more PCI devices than fit on its bus")]
    Pci(#[from] RootError),
    /// A disk that cannot be used.
    #[error("cannot use a disk (see --disk)")]
    Disk(#[from] BlockError),
    /// The host refuses what a device needs.
    #[error("cannot make the device {name}")]
    Device {
        /// The device.
        name: String,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// A directory that cannot be shared.
    #[error("cannot share a directory (see --share)")]
    Share(#[from] belljar_share::ShareError),
    /// A card cannot be attached to its network.
    #[error("cannot make the network card {card}")]
    Network {
        /// The card.
        card: String,
        /// Why.
        #[source]
        source: belljar_net::AttachError,
    },
    /// The host has no randomness.
    #[error("the host gives no randomness")]
    Entropy(#[source] std::io::Error),
    /// The host gave no thread.
    #[error("cannot start the thread {name}")]
    Thread {
        /// The thread's name.
        name: String,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// A fault of Belljar itself.
    #[error("the thread {0} failed; this is a fault of Belljar, please report it")]
    ThreadPanicked(String),
}
