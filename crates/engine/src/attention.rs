//! How the rest of the machine gets a vCPU's attention.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What a vCPU is to attend to: bits of its [`Attention`] word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    /// An external interrupt can be taken: the level of the interrupt controllers' line, set and
    /// cleared by the board.
    pub const INTERRUPT: Self = Self(1 << 0);
    /// A non-maskable interrupt waits. The engine clears the bit when it delivers it.
    pub const NMI: Self = Self(1 << 1);
    /// INIT was sent. The machine's business.
    pub const INIT: Self = Self(1 << 2);
    /// A start-up IPI was sent; its vector is in [`Attention::sipi_vector`]. The machine's
    /// business.
    pub const SIPI: Self = Self(1 << 3);
    /// The machine wants the thread back: pause, stop, reset. The machine's business.
    pub const STOP: Self = Self(1 << 4);
    /// Another vCPU's engine asks for something (a flush). The engine's own business.
    pub const ENGINE: Self = Self(1 << 5);
    /// Somebody wants to know what the vCPU has counted. The machine's business.
    pub const STATISTICS: Self = Self(1 << 6);
    /// What only the machine can handle: `run` returns [`Exit::Attention`](crate::Exit::Attention).
    pub const MACHINE: Self = Self(Self::INIT.0 | Self::SIPI.0 | Self::STOP.0 | Self::STATISTICS.0);
}

impl std::ops::BitOr for Reason {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One word that a running vCPU looks at often and a halted one sleeps on. Raising a reason wakes a
/// sleeper.
#[derive(Debug, Default)]
pub struct Attention {
    bits: AtomicU32,
    sipi_vector: AtomicU32,
    sleepers: Mutex<u32>,
    wake: Condvar,
}

impl Attention {
    /// An empty word.
    pub fn new() -> Self {
        Self::default()
    }

    /// The word for a poll: 0 if there is nothing to do.
    #[inline]
    pub fn pending(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    /// The word itself, for engines whose generated code polls it.
    pub fn word(&self) -> &AtomicU32 {
        &self.bits
    }

    /// Whether any bit of `reason` is set.
    #[inline]
    pub fn has(&self, reason: Reason) -> bool {
        self.bits.load(Ordering::Acquire) & reason.0 != 0
    }

    /// Sets the bits of `reason` and wakes the vCPU if it sleeps.
    pub fn raise(&self, reason: Reason) {
        let old = self.bits.fetch_or(reason.0, Ordering::SeqCst);
        if old & reason.0 != reason.0 {
            let sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            if *sleepers > 0 {
                self.wake.notify_all();
            }
        }
    }

    /// Clears the bits of `reason`; tells whether any of them was set.
    pub fn clear(&self, reason: Reason) -> bool {
        self.bits.fetch_and(!reason.0, Ordering::SeqCst) & reason.0 != 0
    }

    /// Sends a start-up IPI.
    pub fn raise_sipi(&self, vector: u8) {
        self.sipi_vector.store(u32::from(vector), Ordering::SeqCst);
        self.raise(Reason::SIPI);
    }

    /// The vector of the last start-up IPI.
    pub fn sipi_vector(&self) -> u8 {
        self.sipi_vector.load(Ordering::SeqCst) as u8
    }

    /// Sleeps until any bit of `reason` is set, or `limit` has passed. Tells whether one is set.
    pub fn wait(&self, reason: Reason, limit: Option<Duration>) -> bool {
        let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        *sleepers += 1;
        while !self.has(reason) {
            if let Some(limit) = limit {
                sleepers = self
                    .wake
                    .wait_timeout(sleepers, limit)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                break;
            }
            sleepers = self
                .wake
                .wait(sleepers)
                .unwrap_or_else(PoisonError::into_inner);
        }
        *sleepers -= 1;
        self.has(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_sleeper_wakes_for_its_reason() {
        let attention = Arc::new(Attention::new());
        let sleeper = std::thread::spawn({
            let attention = Arc::clone(&attention);
            move || attention.wait(Reason::NMI, Some(Duration::from_secs(30)))
        });
        attention.raise(Reason::NMI);
        assert!(sleeper.join().unwrap());
        assert!(attention.clear(Reason::NMI));
        assert!(!attention.clear(Reason::NMI));
    }

    #[test]
    fn a_wait_ends_at_its_limit() {
        let attention = Attention::new();
        attention.raise(Reason::STOP);
        assert!(!attention.wait(Reason::NMI, Some(Duration::from_millis(1))));
    }
}
