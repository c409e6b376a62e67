//! The console device. Virtio 1.2, 5.3.
//!
//! It has one port, which is a console: hvc0 in Linux. More ports (MULTIPORT) are not offered, because
//! nothing here would use them: the socket device carries any number of streams, and needs no queues
//! and no control messages for each.
//!
//! What the guest prints goes to the [backend](ConsoleBackend) in pieces, at the pace of whoever
//! reads; what is typed waits in a bounded buffer until the guest has room for it. The host's side is
//! [`ConsoleHost`].

mod worker;

#[cfg(test)]
mod tests;

use super::{Activation, DeviceKind, Doorbell, Running, VirtioDevice, WorkerThread};
use crate::timers::lock;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use worker::Worker;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 64;
/// Typed bytes that wait for the guest.
const MOST_INPUT: usize = 4096;
/// The most bytes that a backend gets at once.
pub const PIECE: usize = 1024;

/// The queues of port 0. 5.3.2.
mod queue {
    /// What is typed.
    pub const RECEIVE: usize = 0;
    /// What the guest prints.
    pub const TRANSMIT: usize = 1;
    pub const COUNT: usize = 2;
}
/// The bells beside those of the queues: something was typed, the size has changed.
const TYPED: usize = queue::COUNT;
const RESIZED: usize = queue::COUNT + 1;

/// Features. 5.3.3.
mod feature {
    /// The configuration has the size of the console.
    pub const SIZE: u64 = 1 << 0;
    /// The configuration has a field that prints at once.
    pub const EMERGENCY_WRITE: u64 = 1 << 2;
}

/// The configuration. 5.3.4.
mod field {
    pub const COLUMNS: usize = 0;
    pub const ROWS: usize = 2;
    pub const PORTS: usize = 4;
    pub const EMERGENCY: usize = 8;
    pub const END: usize = 12;
}

/// The other end of the console. It never calls into the device.
pub trait ConsoleBackend: Send + Sync + std::fmt::Debug {
    /// Takes what the guest printed, at most [`PIECE`] bytes. It does not wait: what it has no room for
    /// is kept or lost.
    fn write(&self, data: &[u8]);

    /// Waits until there is room for a piece, but for `limit` at most; tells whether there is.
    fn wait_for_room(&self, limit: Duration) -> bool;

    /// What was typed was refused, and can be taken again.
    fn room(&self);
}

/// What was typed.
#[derive(Debug, Default)]
struct Input {
    bytes: VecDeque<u8>,
    /// Whether somebody was refused and waits for room.
    refused: bool,
}

/// What the device, its worker and the host's side share.
#[derive(Debug)]
struct Shared {
    backend: Arc<dyn ConsoleBackend>,
    doorbell: Arc<Doorbell>,
    input: Mutex<Input>,
    /// Columns, and rows in the high half; 0 if nobody knows.
    size: AtomicU32,
    /// Bytes of the first chain in the transmit queue that are printed already.
    printed: AtomicU64,
    /// Whether the driver has printed since its reset. Linux's takes no notice of the size before.
    heard: AtomicBool,
}

/// The host's side: the keyboard and the size of the terminal. It can be cloned and used from any
/// thread.
#[derive(Clone, Debug)]
pub struct ConsoleHost(Arc<Shared>);

impl ConsoleHost {
    /// Types `data`; tells how many bytes of it were taken. If not all were,
    /// [`ConsoleBackend::room`] is called when the next can be.
    pub fn receive(&self, data: &[u8]) -> usize {
        let mut input = lock(&self.0.input);
        let taken = MOST_INPUT.saturating_sub(input.bytes.len()).min(data.len());
        input.bytes.extend(&data[..taken]);
        input.refused |= taken < data.len();
        drop(input);
        if taken > 0 {
            self.0.doorbell.bell(TYPED).ring();
        }
        taken
    }

    /// Tells the guest the size of the terminal that shows the console.
    pub fn set_size(&self, columns: u16, rows: u16) {
        let size = u32::from(columns) | u32::from(rows) << 16;
        if self.0.size.swap(size, Ordering::SeqCst) != size {
            self.0.doorbell.bell(RESIZED).ring();
        }
    }
}

/// The state of a [`Console`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    size: u32,
    input: Vec<u8>,
    printed: u64,
    heard: bool,
}

/// The console device.
#[derive(Debug)]
pub struct Console {
    shared: Arc<Shared>,
}

impl Console {
    /// A console that prints to `backend`.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(backend: Arc<dyn ConsoleBackend>) -> std::io::Result<Self> {
        let state = ConsoleState {
            size: 0,
            input: Vec::new(),
            printed: 0,
            heard: false,
        };
        Self::restore(state, backend)
    }

    /// The console as it was saved.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(
        mut state: ConsoleState,
        backend: Arc<dyn ConsoleBackend>,
    ) -> std::io::Result<Self> {
        state.input.truncate(MOST_INPUT);
        Ok(Self {
            shared: Arc::new(Shared {
                backend,
                doorbell: Doorbell::new()?,
                input: Mutex::new(Input {
                    bytes: state.input.into(),
                    refused: false,
                }),
                size: AtomicU32::new(state.size),
                printed: AtomicU64::new(state.printed),
                heard: AtomicBool::new(state.heard),
            }),
        })
    }

    /// The host's side.
    pub fn host(&self) -> ConsoleHost {
        ConsoleHost(Arc::clone(&self.shared))
    }

    fn configuration(&self) -> [u8; field::END] {
        let mut bytes = [0; field::END];
        let size = self.shared.size.load(Ordering::SeqCst).to_le_bytes();
        bytes[field::COLUMNS..field::ROWS].copy_from_slice(&size[..2]);
        bytes[field::ROWS..field::PORTS].copy_from_slice(&size[2..]);
        bytes[field::PORTS] = 1;
        bytes
    }
}

impl VirtioDevice for Console {
    type State = ConsoleState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Console
    }

    fn features(&self) -> u64 {
        feature::SIZE | feature::EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; queue::COUNT]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.shared.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.configuration(), offset, data);
    }

    /// The emergency write: one character, whether or not the driver has got as far as queues.
    fn write_configuration(&self, offset: u64, data: &[u8]) {
        if let (Ok(field::EMERGENCY), &[character, _, _, _]) = (usize::try_from(offset), data) {
            self.shared.backend.write(&[character]);
        }
    }

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let doorbell = &self.shared.doorbell;
        let worker = Worker::new(Arc::clone(&self.shared), activation);
        WorkerThread::spawn("console", doorbell, move || worker.run())
    }

    /// What was typed stays: a driver's first act is a reset, and its user may be ahead of it.
    fn reset(&self) {
        self.shared.printed.store(0, Ordering::SeqCst);
        self.shared.heard.store(false, Ordering::SeqCst);
    }

    fn save(&self) -> ConsoleState {
        ConsoleState {
            size: self.shared.size.load(Ordering::SeqCst),
            input: lock(&self.shared.input).bytes.iter().copied().collect(),
            printed: self.shared.printed.load(Ordering::SeqCst),
            heard: self.shared.heard.load(Ordering::SeqCst),
        }
    }
}
