//! Virtio devices over PCI. Virtual I/O Device (VIRTIO) 1.2, split virtqueues and the transport of
//! 4.1; nothing of the legacy interface.
//!
//! # How to write a device
//!
//! A device's model implements [`VirtioDevice`]: its identity, its features and its configuration
//! space, and [`start`](VirtioDevice::start), which is called when the driver is ready and gives
//! the queues to a worker, mostly a [`WorkerThread`]. [`VirtioPci`] does the rest: registers,
//! negotiation, interrupts, reset, pausing, saving.
//!
//! No work is done on a vCPU's thread: what the guest writes to notify a queue rings a [`Bell`],
//! which takes no lock and wakes the worker. The worker takes [`Chain`]s from its [`Queue`]s, which
//! are checked as a whole before it sees them, and gives them back with
//! [`complete`](Queue::complete). [`Buffers`](crate::buffers::Buffers) reads and writes guest memory
//! within the chain.
//!
//! A worker can be stopped at any time: by a reset of the guest, a pause or the machine's end. It
//! then finishes or puts back what it has taken from the queues, and returns them. So reset, pause,
//! saving and the loss of the right to reach memory are one mechanism: a device that does not run has
//! no request in flight. A worker runs only while its function is a bus master.

pub mod balloon;
mod bell;
pub mod block;
mod chain;
pub mod console;
pub mod fs;
pub mod net;
mod pci;
mod queue;
mod registers;
pub mod rng;
mod signals;
pub mod vsock;
mod worker;

pub use bell::{Bell, Doorbell};
pub use chain::{Chain, ChainError};
pub use pci::{VirtioPci, VirtioPciParts, VirtioPciState};
pub use queue::{Queue, QueueError, QueueSetup};
pub use signals::Signals;
pub use worker::WorkerThread;

use belljar_memory::DmaMemory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// Feature bit: the device follows virtio 1.0 and later.
pub const FEATURE_VERSION_1: u64 = 1 << 32;
/// Feature bit: chains may lie in tables of their own.
pub const FEATURE_INDIRECT: u64 = 1 << 28;
/// Feature bit: each side tells at which index it wants to be notified.
pub const FEATURE_EVENT_IDX: u64 = 1 << 29;
/// What every device offers: the transport and [`Queue`] do it.
pub const COMMON_FEATURES: u64 = FEATURE_VERSION_1 | FEATURE_INDIRECT | FEATURE_EVENT_IDX;

/// The kinds of devices, with their numbers. Virtio 1.2, chapter 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card.
    Network = 1,
    /// Disk.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// 9P transport.
    NineP = 9,
    /// Socket.
    Socket = 19,
    /// File system.
    FileSystem = 26,
}

/// A virtio device's model, without its transport. It is shared by all threads and does its own
/// locking; no method but [`Running::stop`] waits for anything.
pub trait VirtioDevice: Send + Sync + std::fmt::Debug + 'static {
    /// What [`save`](Self::save) gives: whatever the device needs to be built again, apart from
    /// the backend. Restoring is a constructor of the device's own.
    type State: Serialize + DeserializeOwned + Clone + std::fmt::Debug + Send;

    /// What the device is.
    fn kind(&self) -> DeviceKind;

    /// The features that it offers besides the [common ones](COMMON_FEATURES).
    fn features(&self) -> u64;

    /// The most entries that each of its queues can have: powers of two, at most 32768.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The doorbell whose first bells are the queues', which the guest's notifications ring. It is the
    /// same for the device's whole life; a ring while no worker runs is kept or lost, both are fine.
    fn doorbell(&self) -> &Arc<Doorbell>;

    /// Reads the device's part of the configuration from `offset` on; zeros beyond its end.
    fn read_configuration(&self, offset: u64, data: &mut [u8]);

    /// Writes the device's part of the configuration; what cannot be written is ignored.
    fn write_configuration(&self, offset: u64, data: &[u8]);

    /// Starts serving the queues: the driver is ready and the function a bus master, or the machine
    /// goes on after a pause. All bells ring right after.
    ///
    /// # Errors
    /// What the host refuses. The device then asks the driver for a reset.
    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>>;

    /// Forgets what the driver has done: as after power-on. No worker runs.
    fn reset(&self);

    /// The whole state. No worker runs.
    fn save(&self) -> Self::State;
}

/// What a device gets to work with.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<DmaMemory>,
    /// All queues, in order. Those that the driver did not enable are not
    /// [ready](Queue::is_ready) and stay empty.
    pub queues: Vec<Queue>,
    /// The features that the driver accepted.
    pub features: u64,
    /// The interrupts that do not belong to a queue.
    pub signals: Arc<Signals>,
}

/// A device's worker.
pub trait Running: Send + std::fmt::Debug {
    /// Makes the worker finish or put back what it has begun, waits for that, and gives the queues
    /// back, all of them and in order. Fewer mean that the worker failed.
    fn stop(self: Box<Self>) -> Vec<Queue>;
}

/// Reads from `offset` on in a device's configuration, which is `bytes`; zeros beyond its end.
fn read_bytes(bytes: &[u8], offset: u64, data: &mut [u8]) {
    for (at, byte) in (offset..).zip(data) {
        let here = usize::try_from(at).ok().and_then(|at| bytes.get(at));
        *byte = here.copied().unwrap_or(0);
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
