//! How many requests of a device its backend has not answered yet.

use crate::timers::lock;
use std::sync::{Condvar, Mutex, PoisonError};

/// A count that can be waited for to reach nothing.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    count: Mutex<usize>,
    idle: Condvar,
}

impl InFlight {
    /// A request goes to the backend.
    pub fn begin(&self) {
        *lock(&self.count) += 1;
    }

    /// One is answered.
    pub fn end(&self) {
        let mut count = lock(&self.count);
        *count -= 1;
        if *count == 0 {
            self.idle.notify_all();
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        *lock(&self.count)
    }

    /// Waits until none is under way.
    pub fn drain(&self) {
        let mut count = lock(&self.count);
        while *count > 0 {
            count = self
                .idle
                .wait(count)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
