//! Deadlines: how devices are called back when machine time has come.

use belljar_clock::{Clock, Nanos};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A device with something to do at a point of machine time.
pub trait Timed: Send {
    /// When [`expire`](Self::expire) is to be called next; `None` if nothing waits.
    fn deadline(&self) -> Option<Nanos>;

    /// Does what is due at `now`. It may be called early or late, and then does what is due, if
    /// anything.
    fn expire(&mut self, now: Nanos);
}

/// A [`Timed`] device that does its own locking. Every `Mutex` of a [`Timed`] device is one.
pub trait SharedTimed: Send + Sync {
    /// As [`Timed::deadline`].
    fn deadline(&self) -> Option<Nanos>;

    /// As [`Timed::expire`].
    fn expire(&self, now: Nanos);
}

impl<T: Timed + ?Sized> SharedTimed for Mutex<T> {
    fn deadline(&self) -> Option<Nanos> {
        lock(self).deadline()
    }

    fn expire(&self, now: Nanos) {
        lock(self).expire(now);
    }
}

/// Locks `mutex`. A thread that panicked while it held a device's lock does not take the machine
/// with it: a device's state is plain data and every value of it is safe.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What devices tell when a deadline may have come nearer.
pub trait TimerWake: Send + Sync + std::fmt::Debug {
    /// A device now has the deadline `at`. It is called with the device's lock held, often, and on
    /// vCPUs' threads: it must not wait, and not call into devices.
    fn deadline_changed(&self, at: Nanos);
}

/// `sleeping_until` while deadlines are looked at.
const AWAKE: u64 = u64::MAX;
/// The longest sleep, after which deadlines are looked at again in any case.
const LONGEST_SLEEP: u64 = 3600 * Nanos::SECOND;

/// Serves the deadlines of all devices from one thread.
#[derive(Debug)]
pub struct Timers {
    clock: Arc<dyn Clock>,
    /// The deadline slept for, or [`AWAKE`]: lets later deadlines pass without a lock.
    sleeping_until: AtomicU64,
    signal: Mutex<Signal>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Signal {
    changed: bool,
    stop: bool,
}

impl Timers {
    /// Timers that go by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            sleeping_until: AtomicU64::new(AWAKE),
            signal: Mutex::default(),
            wake: Condvar::new(),
        })
    }

    /// Serves `sources` until [`stop`](Self::stop): the body of the machine's timer thread. It may
    /// be run again later.
    pub fn run(&self, sources: &[Arc<dyn SharedTimed>]) {
        loop {
            {
                let mut signal = lock(&self.signal);
                if std::mem::take(&mut signal.stop) {
                    return;
                }
                signal.changed = false;
            }
            let next = poll(sources, self.clock.now());
            let signal = lock(&self.signal);
            if signal.changed || signal.stop {
                continue;
            }
            let until = next.unwrap_or(Nanos(AWAKE - 1));
            let sleep = until.since(self.clock.now()).min(LONGEST_SLEEP);
            self.sleeping_until.store(until.0, Ordering::SeqCst);
            let woken = self
                .wake
                .wait_timeout_while(signal, Duration::from_nanos(sleep), |s| {
                    !s.changed && !s.stop
                });
            self.sleeping_until.store(AWAKE, Ordering::SeqCst);
            drop(woken);
        }
    }

    /// Makes [`run`](Self::run) return, now or when it is called next.
    pub fn stop(&self) {
        lock(&self.signal).stop = true;
        self.wake.notify_all();
    }
}

impl TimerWake for Timers {
    fn deadline_changed(&self, at: Nanos) {
        // A device publishes its deadline before it calls this. If an old value is read here, the
        // thread has not yet begun to look at the deadlines again and will see this one.
        if at.0 < self.sleeping_until.load(Ordering::SeqCst) {
            lock(&self.signal).changed = true;
            self.wake.notify_all();
        }
    }
}

/// Expires what is due in `sources` at `now`; gives the nearest deadline left.
pub fn poll(sources: &[Arc<dyn SharedTimed>], now: Nanos) -> Option<Nanos> {
    for source in sources {
        if source.deadline().is_some_and(|at| at <= now) {
            source.expire(now);
        }
    }
    sources.iter().filter_map(|s| s.deadline()).min()
}

#[cfg(test)]
pub(crate) mod testing {
    use super::TimerWake;
    use belljar_clock::Nanos;
    use std::sync::Arc;

    /// Nobody to wake: tests look at deadlines themselves.
    #[derive(Debug)]
    pub struct NoWake;

    impl NoWake {
        pub fn shared() -> Arc<dyn TimerWake> {
            Arc::new(Self)
        }
    }

    impl TimerWake for NoWake {
        fn deadline_changed(&self, _: Nanos) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_clock::HostClock;
    use std::time::Instant;

    #[derive(Debug)]
    struct Alarm {
        at: Option<Nanos>,
        rung: u32,
    }

    impl Timed for Alarm {
        fn deadline(&self) -> Option<Nanos> {
            self.at
        }

        fn expire(&mut self, now: Nanos) {
            if self.at.is_some_and(|at| at <= now) {
                self.at = None;
                self.rung += 1;
            }
        }
    }

    fn rings(alarm: &Mutex<Alarm>) -> bool {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            if alarm.lock().unwrap().rung == 1 {
                return true;
            }
            std::thread::yield_now();
        }
        false
    }

    #[test]
    fn a_deadline_set_while_the_thread_sleeps_is_kept() {
        let clock: Arc<dyn Clock> = Arc::new(HostClock::new());
        let timers = Timers::new(Arc::clone(&clock));
        let alarm = Arc::new(Mutex::new(Alarm { at: None, rung: 0 }));
        let thread = std::thread::spawn({
            let (timers, alarm) = (Arc::clone(&timers), Arc::clone(&alarm));
            move || timers.run(&[alarm])
        });
        let at = clock.now().after(1_000_000);
        alarm.lock().unwrap().at = Some(at);
        timers.deadline_changed(at);
        assert!(rings(&alarm));
        timers.stop();
        thread.join().unwrap();
    }

    #[test]
    fn poll_expires_what_is_due_and_gives_the_next_deadline() {
        let due = Arc::new(Mutex::new(Alarm {
            at: Some(Nanos(5)),
            rung: 0,
        }));
        let later = Arc::new(Mutex::new(Alarm {
            at: Some(Nanos(9)),
            rung: 0,
        }));
        let sources: [Arc<dyn SharedTimed>; 2] = [Arc::<Mutex<Alarm>>::clone(&due), later];
        assert_eq!(poll(&sources, Nanos(5)), Some(Nanos(9)));
        assert_eq!(due.lock().unwrap().rung, 1);
    }
}
