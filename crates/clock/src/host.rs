//! The host's time-stamp counter as the machine's time.

use crate::{Clock, Nanos};
use std::arch::x86_64::{__cpuid, _rdtsc};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the frequency is measured where the host does not tell it.
const MEASURE: Duration = Duration::from_millis(50);
/// `paused_at` of a clock that runs.
const RUNNING: u64 = u64::MAX;

/// A [`Clock`] driven by the host's invariant time-stamp counter, less the time spent paused.
#[derive(Debug)]
pub struct HostClock {
    hz: u64,
    /// Host TSC at machine time 0; grows by every pause.
    origin: AtomicU64,
    /// Host TSC at which the clock was paused, or [`RUNNING`].
    paused_at: AtomicU64,
}

fn host_tsc() -> u64 {
    // SAFETY: every x86-64 processor has RDTSC, and it touches nothing but registers.
    unsafe { _rdtsc() }
}

/// The frequency as the host's CPUID tells it: leaf 15h (SDM 2A, CPUID), or the hypervisor's timing
/// leaf.
fn told_hz() -> Option<u64> {
    let highest = __cpuid(0).eax;
    if highest >= 0x15 {
        let leaf = __cpuid(0x15);
        if leaf.eax != 0 && leaf.ebx != 0 && leaf.ecx != 0 {
            return Some(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax));
        }
    }
    None
}

/// The frequency measured against the host's monotonic clock.
fn measured_hz() -> u64 {
    let (start, tsc) = (Instant::now(), host_tsc());
    std::thread::sleep(MEASURE);
    let (elapsed, ticks) = (start.elapsed(), host_tsc().wrapping_sub(tsc));
    let hz = u128::from(ticks) * 1_000_000_000 / elapsed.as_nanos().max(1);
    // Whole 10 kHz: what is left is noise of the measurement.
    (hz as u64).max(1_000_000) / 10_000 * 10_000
}

impl HostClock {
    /// A running clock at machine time 0.
    pub fn new() -> Self {
        Self::at(Nanos(0))
    }

    /// A running clock at machine time `now`: for a machine that was restored.
    pub fn at(now: Nanos) -> Self {
        let hz = told_hz().unwrap_or_else(measured_hz);
        let elapsed = (u128::from(now.0) * u128::from(hz) / u128::from(Nanos::SECOND)) as u64;
        Self {
            hz,
            origin: AtomicU64::new(host_tsc().wrapping_sub(elapsed)),
            paused_at: AtomicU64::new(RUNNING),
        }
    }
}

impl Default for HostClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for HostClock {
    fn now(&self) -> Nanos {
        Nanos((u128::from(self.tsc()) * u128::from(Nanos::SECOND) / u128::from(self.hz)) as u64)
    }

    fn tsc(&self) -> u64 {
        let paused = self.paused_at.load(Ordering::Acquire);
        let host = if paused == RUNNING {
            host_tsc()
        } else {
            paused
        };
        host.wrapping_sub(self.origin.load(Ordering::Acquire))
    }

    fn behind_host(&self) -> Option<u64> {
        let runs = self.paused_at.load(Ordering::Acquire) == RUNNING;
        runs.then(|| self.origin.load(Ordering::Acquire))
    }

    fn tsc_hz(&self) -> u64 {
        self.hz
    }

    fn wall(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_nanos() as u64)
    }

    fn pause(&self) {
        let _ = self.paused_at.compare_exchange(
            RUNNING,
            host_tsc(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    fn resume(&self) {
        let paused = self.paused_at.load(Ordering::Acquire);
        if paused != RUNNING {
            self.origin
                .fetch_add(host_tsc().wrapping_sub(paused), Ordering::AcqRel);
            self.paused_at.store(RUNNING, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_time_stands_still_while_paused() {
        let clock = HostClock::at(Nanos(5_000));
        assert!(clock.now() >= Nanos(5_000));
        clock.pause();
        let paused = clock.now();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), paused);
        clock.resume();
        let before = clock.now();
        assert!(
            before.since(paused) < 2_000_000,
            "the pause leaked into machine time"
        );
        while clock.now() == before {}
    }

    #[test]
    fn the_counter_reaches_a_value_when_it_says() {
        let clock = HostClock::new();
        let target = clock.tsc() + clock.tsc_hz() / 1000;
        let when = clock.when_tsc(target);
        while clock.now() < when {}
        assert!(clock.tsc() >= target - 2);
    }
}
