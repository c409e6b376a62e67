//! The socket device: streams between processes of the host and of the guest. Virtio 1.2, 5.10.
//!
//! The host's side is not the host kernel's vsock but [`VsockHost`]: a process-internal way to
//! connect a Unix socket with a port that somebody listens at in the guest. Guests cannot begin
//! connections: nobody listens on the host, and a request is answered with a reset.
//!
//! One worker moves all bytes, from and to sockets that do not block. Flow is controlled by credit
//! in both directions: the guest sends no more than the device has told it that there is room for,
//! or loses the connection; and bytes for the guest stay in the host's sockets until it has room.

mod connection;
mod packet;
mod table;
mod worker;

#[cfg(test)]
mod tests;

pub use connection::Greetings;

use super::{Activation, DeviceKind, Doorbell, Running, VirtioDevice, WorkerThread};
use crate::timers::lock;
use serde::{Deserialize, Serialize};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use table::Table;
use worker::Worker;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Connections that the worker has not heard of yet.
const MOST_DIALS: usize = 64;

/// The queues. 5.10.2.
mod queue {
    /// Packets for the guest.
    pub const RECEIVE: usize = 0;
    /// Packets of the guest.
    pub const TRANSMIT: usize = 1;
    /// Events for the guest.
    pub const EVENT: usize = 2;
    pub const COUNT: usize = 3;
}

/// A connection that somebody on the host asks for.
#[derive(Debug)]
struct Dial {
    port: u32,
    stream: UnixStream,
    greetings: Greetings,
}

/// What the device, its worker and the host's processes share.
#[derive(Debug)]
struct Shared {
    doorbell: Arc<Doorbell>,
    table: Mutex<Table>,
    dials: Mutex<Vec<Dial>>,
    /// The guest is to be told that its connections are gone.
    forgotten: AtomicBool,
}

/// The host's side: connects sockets of the host with ports of the guest. It can be cloned and used
/// from any thread.
#[derive(Clone, Debug)]
pub struct VsockHost(Arc<Shared>);

impl VsockHost {
    /// The bell of a dial, beside those of the queues.
    const BELL: usize = queue::COUNT;

    /// Connects `stream` with port `port` of the guest. The other end of `stream` first gets one of
    /// `greetings`, as soon as the guest has answered, and then what the guest sends; it is closed
    /// if the guest refuses. While the guest has no driver, it waits; when too many wait, the
    /// stream is closed.
    ///
    /// # Errors
    /// What the host says against a stream that does not block.
    pub fn connect(
        &self,
        port: u32,
        stream: UnixStream,
        greetings: Greetings,
    ) -> std::io::Result<()> {
        stream.set_nonblocking(true)?;
        let mut dials = lock(&self.0.dials);
        if dials.len() < MOST_DIALS {
            dials.push(Dial {
                port,
                stream,
                greetings,
            });
        }
        drop(dials);
        self.0.doorbell.bell(Self::BELL).ring();
        Ok(())
    }
}

/// The state of a [`Vsock`]. Connections do not outlive it: the guest is told that they are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    guest: u64,
}

/// The socket device.
#[derive(Debug)]
pub struct Vsock {
    guest: u64,
    shared: Arc<Shared>,
}

impl Vsock {
    /// The device of a guest whose number is `guest`, 3 or higher.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(guest: u64) -> std::io::Result<Self> {
        let doorbell = Doorbell::new()?;
        Ok(Self {
            guest,
            shared: Arc::new(Shared {
                doorbell,
                table: Mutex::new(Table::new(guest)),
                dials: Mutex::default(),
                forgotten: AtomicBool::new(false),
            }),
        })
    }

    /// The device as it was saved, without its connections.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(state: VsockState) -> std::io::Result<Self> {
        let device = Self::new(state.guest)?;
        let forgotten = &device.shared.forgotten;
        forgotten.store(true, std::sync::atomic::Ordering::SeqCst);
        Ok(device)
    }

    /// The host's side.
    pub fn host(&self) -> VsockHost {
        VsockHost(Arc::clone(&self.shared))
    }
}

impl VirtioDevice for Vsock {
    type State = VsockState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Socket
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; queue::COUNT]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.shared.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.guest.to_le_bytes(), offset, data);
    }

    fn write_configuration(&self, _: u64, _: &[u8]) {}

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let shared = Arc::clone(&self.shared);
        let doorbell = &self.shared.doorbell;
        let mut worker = Worker::new(shared, activation.queues);
        WorkerThread::spawn("vsock", doorbell, move || {
            worker.run();
            worker.into_queues()
        })
    }

    fn reset(&self) {
        lock(&self.shared.table).clear();
    }

    fn save(&self) -> VsockState {
        VsockState { guest: self.guest }
    }
}
