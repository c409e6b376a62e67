//! The two ends of the serial console.

use belljar_devices::serial::{Serial, SerialBackend};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where a machine's serial console prints to.
pub trait ConsoleOutput: Send + Sync + fmt::Debug {
    /// Takes what the guest printed. It must not wait: a device's lock is held.
    fn write(&self, bytes: &[u8]);

    /// Waits until there is room for more, if this output is to slow its guest down and not to lose
    /// anything. Called after each [`write`](Self::write) on the vCPU's thread, with no lock held.
    /// It must come back soon after the machine was asked to stop.
    fn pace(&self);
}

/// The line between the serial port and the world.
#[derive(Debug)]
pub(crate) struct Line {
    output: Arc<dyn ConsoleOutput>,
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    /// How often the port has told that it has room again.
    rooms: u64,
    closed: bool,
}

impl Line {
    pub fn new(output: Arc<dyn ConsoleOutput>) -> Arc<Self> {
        Arc::new(Self {
            output,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, LineState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the port has told of room more than `rooms` times, or the line is closed.
    fn wait_for_room(&self, rooms: u64) {
        let state = self.lock();
        let waited = self
            .changed
            .wait_while(state, |s| s.rooms == rooms && !s.closed);
        drop(waited);
    }
}

/// The serial port's end of a [`Line`].
pub(crate) struct PortEnd(pub Arc<Line>);

impl SerialBackend for PortEnd {
    fn write(&mut self, data: &[u8]) {
        self.0.output.write(data);
    }

    fn room(&mut self) {
        self.0.lock().rooms += 1;
        self.0.changed.notify_all();
    }
}

/// The input of a machine's serial console.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    serial: Arc<Mutex<Serial>>,
    line: Arc<Line>,
}

impl ConsoleInput {
    pub(crate) fn new(serial: Arc<Mutex<Serial>>, line: Arc<Line>) -> Self {
        Self { serial, line }
    }

    /// Hands `bytes` to the guest; waits while it takes none. False if the machine ended before it
    /// had taken all.
    pub fn send(&self, mut bytes: &[u8]) -> bool {
        loop {
            let LineState { rooms, closed } = *self.line.lock();
            if closed {
                return false;
            }
            let taken = self.offer(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if bytes.is_empty() {
                return true;
            }
            self.line.wait_for_room(rooms);
        }
    }

    /// Hands `bytes` to the guest; waits up to `limit` while it takes none. Tells how many it took;
    /// `None` if the machine has ended.
    pub fn send_within(&self, bytes: &[u8], limit: Duration) -> Option<usize> {
        let LineState { rooms, closed } = *self.line.lock();
        if closed {
            return None;
        }
        let taken = self.offer(bytes);
        if taken > 0 || bytes.is_empty() {
            return Some(taken);
        }
        let same = |s: &mut LineState| s.rooms == rooms && !s.closed;
        let state = self.line.lock();
        drop(self.line.changed.wait_timeout_while(state, limit, same));
        Some(0)
    }

    /// Hands `bytes` to the guest as far as it takes them now; tells how many it took.
    pub(crate) fn offer(&self, bytes: &[u8]) -> usize {
        self.serial
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .receive(bytes)
    }

    /// Nothing can be sent any more.
    pub(crate) fn close(&self) {
        self.line.lock().closed = true;
        self.line.changed.notify_all();
    }
}
