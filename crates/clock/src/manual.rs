//! A clock that moves only when told to: for tests.

use crate::{Clock, Nanos};
use std::sync::atomic::{AtomicU64, Ordering};

/// A [`Clock`] of 1 GHz that stands still until [`advance`](Self::advance) moves it.
#[derive(Debug, Default)]
pub struct ManualClock {
    now: AtomicU64,
    wall_at_start: u64,
}

impl ManualClock {
    /// A clock at machine time 0 whose wall clock shows `wall` nanoseconds since 1970.
    pub fn new(wall: u64) -> Self {
        Self {
            now: AtomicU64::new(0),
            wall_at_start: wall,
        }
    }

    /// Moves time forward.
    pub fn advance(&self, nanos: u64) {
        self.now.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Nanos {
        Nanos(self.now.load(Ordering::SeqCst))
    }

    fn tsc(&self) -> u64 {
        self.now().0
    }

    fn behind_host(&self) -> Option<u64> {
        None
    }

    fn tsc_hz(&self) -> u64 {
        Nanos::SECOND
    }

    fn wall(&self) -> u64 {
        self.wall_at_start + self.now().0
    }

    fn pause(&self) {}

    fn resume(&self) {}
}
