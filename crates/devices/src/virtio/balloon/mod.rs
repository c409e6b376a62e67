//! The memory balloon: gives memory that the guest does not use back to the host. Virtio 1.2, 5.5.
//!
//! Pages come by two ways. The guest *inflates* the balloon when [`BalloonHost::set_target`] asks for
//! it, and does without these pages until it deflates it again; it may deflate by itself before it
//! runs out of memory. And it *reports* pages that are free at the moment, whenever there are some,
//! and takes them again without asking. Either way the pages are discarded from guest memory: they
//! read as zeros, code cached from there is dropped, and the host has memory for others.
//!
//! What a driver says of pages that are no RAM, or of more pages than there are, breaks the queue's
//! rules.

mod pages;
mod statistics;
mod worker;

#[cfg(test)]
mod tests;

pub use statistics::{GuestStatistics, STATISTICS};

use super::{Activation, DeviceKind, Doorbell, Running, Signals, VirtioDevice, WorkerThread};
use crate::timers::lock;
use belljar_memory::{GuestMemory, PAGE_SHIFT};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use worker::Worker;

/// Feature bits. Virtio 1.2, 5.5.3.
mod feature {
    pub const STATS_VQ: u64 = 1 << 1;
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub const PAGE_POISON: u64 = 1 << 4;
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;
/// Number of queues; what each is for depends on the driver, see [`worker`].
const QUEUES: usize = 5;
/// The bell of a request for statistics, beside those of the queues.
const REQUEST: usize = QUEUES;

/// Offsets in the configuration. Virtio 1.2, 5.5.4.
mod field {
    pub const TARGET: usize = 0;
    pub const ACTUAL: usize = 4;
    pub const POISON: usize = 12;
    pub const END: usize = 16;
}

/// What the worker and the host's side tell each other.
#[derive(Debug, Default)]
struct Book {
    /// How the driver is reached, while a worker runs.
    signals: Option<Arc<Signals>>,
    /// How often the guest has sent statistics, and the last ones.
    arrivals: u64,
    statistics: GuestStatistics,
}

/// What the device, its worker and the host's side share.
#[derive(Debug)]
struct Shared {
    memory: GuestMemory,
    doorbell: Arc<Doorbell>,
    /// Pages that the balloon is to have, and that the driver says it has.
    target: AtomicU32,
    actual: AtomicU32,
    /// What free pages are filled with, if the driver says so.
    poison: AtomicU32,
    book: Mutex<Book>,
    /// Statistics have arrived, or the worker has ended.
    changed: Condvar,
}

/// The host's side: sizes and statistics. It can be cloned and used from any thread.
#[derive(Clone, Debug)]
pub struct BalloonHost(Arc<Shared>);

/// The size of the balloon, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonSize {
    /// What it is to be.
    pub target: u64,
    /// What it is, as the driver says.
    pub actual: u64,
    /// The most that it can be: the size of the RAM.
    pub most: u64,
}

impl BalloonHost {
    /// Asks the guest to make the balloon as large as `bytes`, rounded down to whole pages; not
    /// larger than the RAM. The guest does it when it can, or not at all.
    pub fn set_target(&self, bytes: u64) {
        let bytes = bytes.min(self.0.memory.size());
        // RAM has fewer than 2^32 pages.
        let pages = (bytes >> PAGE_SHIFT) as u32;
        self.0.target.store(pages, Ordering::SeqCst);
        if let Some(signals) = &lock(&self.0.book).signals {
            signals.configuration_changed();
        }
    }

    /// The balloon's size.
    pub fn size(&self) -> BalloonSize {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::SeqCst)) << PAGE_SHIFT;
        BalloonSize {
            target: bytes(&self.0.target),
            actual: bytes(&self.0.actual),
            most: self.0.memory.size(),
        }
    }

    /// Asks the guest for its statistics and waits up to `limit` for them. What does not come in
    /// time, or from a guest without a driver, is as it was last, or empty.
    pub fn statistics(&self, limit: Duration) -> GuestStatistics {
        let book = lock(&self.0.book);
        let seen = book.arrivals;
        self.0.doorbell.bell(REQUEST).ring();
        let waiting = |book: &mut Book| book.arrivals == seen && book.signals.is_some();
        let waited = self.0.changed.wait_timeout_while(book, limit, waiting);
        let (book, _) = waited.unwrap_or_else(PoisonError::into_inner);
        book.statistics.clone()
    }
}

/// The state of a [`Balloon`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    target: u32,
    actual: u32,
    poison: u32,
}

/// The balloon.
#[derive(Debug)]
pub struct Balloon {
    shared: Arc<Shared>,
}

impl Balloon {
    /// A balloon without pages, for the pages of `memory`.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(memory: GuestMemory) -> std::io::Result<Self> {
        let state = BalloonState {
            target: 0,
            actual: 0,
            poison: 0,
        };
        Self::restore(state, memory)
    }

    /// The balloon as it was saved. Whether its pages are in `memory` is the business of whoever
    /// saved and restored that.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(state: BalloonState, memory: GuestMemory) -> std::io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                memory,
                doorbell: Doorbell::new()?,
                target: AtomicU32::new(state.target),
                actual: AtomicU32::new(state.actual),
                poison: AtomicU32::new(state.poison),
                book: Mutex::default(),
                changed: Condvar::new(),
            }),
        })
    }

    /// The host's side.
    pub fn host(&self) -> BalloonHost {
        BalloonHost(Arc::clone(&self.shared))
    }

    fn configuration(&self) -> [u8; field::END] {
        let mut bytes = [0; field::END];
        let fields = [
            (field::TARGET, &self.shared.target),
            (field::ACTUAL, &self.shared.actual),
            (field::POISON, &self.shared.poison),
        ];
        for (at, value) in fields {
            let value = value.load(Ordering::SeqCst).to_le_bytes();
            bytes[at..at + 4].copy_from_slice(&value);
        }
        bytes
    }
}

impl VirtioDevice for Balloon {
    type State = BalloonState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn features(&self) -> u64 {
        feature::STATS_VQ | feature::DEFLATE_ON_OOM | feature::PAGE_POISON | feature::PAGE_REPORTING
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.shared.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.configuration(), offset, data);
    }

    fn write_configuration(&self, offset: u64, data: &[u8]) {
        // Fields are written whole (4.1.3.1).
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(bytes);
        match usize::try_from(offset) {
            Ok(field::ACTUAL) => self.shared.actual.store(value, Ordering::SeqCst),
            Ok(field::POISON) => self.shared.poison.store(value, Ordering::SeqCst),
            _ => {}
        }
    }

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let signals = Arc::clone(&activation.signals);
        let worker = Worker::new(Arc::clone(&self.shared), activation);
        // Before the thread, which takes it away when it ends.
        lock(&self.shared.book).signals = Some(Arc::clone(&signals));
        let running = WorkerThread::spawn("balloon", &self.shared.doorbell, move || worker.run());
        if running.is_err() {
            lock(&self.shared.book).signals = None;
        } else if self.shared.target.load(Ordering::SeqCst) != 0 {
            // It may have been set while the driver could not be told.
            signals.configuration_changed();
        }
        running
    }

    fn reset(&self) {
        self.shared.actual.store(0, Ordering::SeqCst);
        self.shared.poison.store(0, Ordering::SeqCst);
        *lock(&self.shared.book) = Book::default();
    }

    fn save(&self) -> BalloonState {
        BalloonState {
            target: self.shared.target.load(Ordering::SeqCst),
            actual: self.shared.actual.load(Ordering::SeqCst),
            poison: self.shared.poison.load(Ordering::SeqCst),
        }
    }
}
