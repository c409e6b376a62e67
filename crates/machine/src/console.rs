//! The two ends of a machine's console, whichever of its devices that is.

use belljar_devices::serial::{Serial, SerialBackend};
use belljar_devices::virtio::console::{ConsoleBackend, ConsoleHost};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where a machine's console prints to.
pub trait ConsoleOutput: Send + Sync + fmt::Debug {
    /// Takes what the guest printed. It must not wait: a device's lock is held.
    fn write(&self, bytes: &[u8]);

    /// Waits until there is room for more, if this output is to slow its guest down and not to lose
    /// anything; for `limit` at most, if there is one. Tells whether there is room. Without a limit it
    /// is called after each [`write`](Self::write) of a serial port on the vCPU's thread, with no lock
    /// held, and must come back soon after the machine was asked to stop.
    fn pace(&self, limit: Option<Duration>) -> bool;
}

/// Where a serial port prints to that is not the console: its output is lost.
#[derive(Debug)]
pub(crate) struct Nowhere;

impl ConsoleOutput for Nowhere {
    fn write(&self, _: &[u8]) {}

    fn pace(&self, _: Option<Duration>) -> bool {
        true
    }
}

/// The line between a device and the world.
#[derive(Debug)]
pub(crate) struct Line {
    output: Arc<dyn ConsoleOutput>,
    state: Mutex<LineState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct LineState {
    /// How often the device has told that it has room again.
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

    fn tell_of_room(&self) {
        self.lock().rooms += 1;
        self.changed.notify_all();
    }

    /// Waits until the device has told of room more than `rooms` times, or the line is closed.
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
        self.0.tell_of_room();
    }
}

/// The console device's end of a [`Line`].
#[derive(Debug)]
pub(crate) struct DeviceEnd(pub Arc<Line>);

impl ConsoleBackend for DeviceEnd {
    fn write(&self, data: &[u8]) {
        self.0.output.write(data);
    }

    fn wait_for_room(&self, limit: Duration) -> bool {
        self.0.output.pace(Some(limit))
    }

    fn room(&self) {
        self.0.tell_of_room();
    }
}

/// What takes the input of a console. It never waits.
pub(crate) trait Keyboard: Send + Sync + fmt::Debug {
    /// Takes what there is room for; tells how many bytes that were.
    fn take(&self, bytes: &[u8]) -> usize;
}

impl Keyboard for Mutex<Serial> {
    fn take(&self, bytes: &[u8]) -> usize {
        let mut serial = self.lock().unwrap_or_else(PoisonError::into_inner);
        serial.receive(bytes)
    }
}

impl Keyboard for ConsoleHost {
    fn take(&self, bytes: &[u8]) -> usize {
        self.receive(bytes)
    }
}

/// The input of a machine's console.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    keyboard: Arc<dyn Keyboard>,
    line: Arc<Line>,
}

impl ConsoleInput {
    pub(crate) fn new(keyboard: Arc<dyn Keyboard>, line: Arc<Line>) -> Self {
        Self { keyboard, line }
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
        self.keyboard.take(bytes)
    }

    /// Nothing can be sent any more.
    pub(crate) fn close(&self) {
        self.line.lock().closed = true;
        self.line.changed.notify_all();
    }
}
