//! How notifications reach a device's worker.

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one worker waits for: up to 63 bells and a call to stop. Ringing takes no lock, and no
/// system call while something is already pending.
///
/// A worker that waits for other things too polls [`AsFd::as_fd`] for reading and calls
/// [`take`](Self::take).
#[derive(Debug)]
pub struct Doorbell {
    pending: AtomicU64,
    event: OwnedFd,
}

impl Doorbell {
    /// The bit of the call to stop.
    pub const STOP: u64 = 1 << 63;

    /// A doorbell that nobody has rung.
    ///
    /// # Errors
    /// If the host gives no event file descriptor.
    pub fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            pending: AtomicU64::new(0),
            event: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Bell `number` (0 to 62) of the doorbell; a number beyond rings the last.
    pub fn bell(self: &Arc<Self>, number: usize) -> Bell {
        Bell {
            bit: 1 << number.min(62),
            doorbell: Arc::clone(self),
        }
    }

    /// Sets `bits` and wakes the worker if nothing was pending.
    pub fn ring(&self, bits: u64) {
        if self.pending.fetch_or(bits, Ordering::SeqCst) == 0 {
            // It fails only if the counter is full, and then the worker is awake already.
            let _ = write(&self.event, &1_u64.to_ne_bytes());
        }
    }

    /// Takes what has been rung, without waiting.
    pub fn take(&self) -> u64 {
        // The event first: who rings between the two wakes us once too often, never too seldom.
        let _ = read(&self.event, &mut [0; 8]);
        self.pending.swap(0, Ordering::SeqCst)
    }

    /// Takes what has been rung; waits until something is, unless there is `more` to do meanwhile.
    pub fn take_between(&self, more: bool) -> u64 {
        if more { self.take() } else { self.wait() }
    }

    /// Waits until something is rung and takes it.
    pub fn wait(&self) -> u64 {
        loop {
            let pending = self.take();
            if pending != 0 {
                return pending;
            }
            let mut ready = [rustix::event::PollFd::new(
                &self.event,
                rustix::event::PollFlags::IN,
            )];
            // An interrupted wait is looked after like any other wake-up.
            let _ = rustix::event::poll(&mut ready, None);
        }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// One bit of a [`Doorbell`]: what a queue's notification rings.
#[derive(Clone, Debug)]
pub struct Bell {
    doorbell: Arc<Doorbell>,
    bit: u64,
}

impl Bell {
    /// Wakes the worker.
    pub fn ring(&self) {
        self.doorbell.ring(self.bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_rung_is_taken_once() {
        let doorbell = Doorbell::new().unwrap();
        doorbell.bell(3).ring();
        doorbell.bell(0).ring();
        doorbell.bell(3).ring();
        assert_eq!(doorbell.wait(), 1 << 3 | 1);
        assert_eq!(doorbell.take(), 0);
    }

    #[test]
    fn a_ring_wakes_who_waits() {
        let doorbell = Doorbell::new().unwrap();
        let waiter = std::thread::spawn({
            let doorbell = Arc::clone(&doorbell);
            move || doorbell.wait()
        });
        doorbell.ring(Doorbell::STOP);
        assert_eq!(waiter.join().unwrap(), Doorbell::STOP);
    }
}
