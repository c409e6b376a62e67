//! How a halted vCPU waits.
//!
//! Waking a thread that sleeps takes the host tens of microseconds, and far more where the host is a
//! virtual machine itself; two vCPUs that wake each other by turns would wait for little else. So
//! a vCPU first watches its attention word for a while, as KVM does on the host (Linux
//! documentation: virt/kvm/halt-polling.rst): for longer if it would have paid lately, not at all
//! if it would not have. It gives its processor away to whoever wants it meanwhile.

use belljar_engine::{Attention, Reason};
use std::time::{Duration, Instant};

/// The first time to watch for, once a sleep was short.
const FIRST: Duration = Duration::from_micros(20);
/// A sleep that lasts longer is none that watching should have spared, and no watch is longer.
const LONGEST: Duration = Duration::from_micros(200);
/// How often the word is looked at before the processor is given away.
const LOOKS: u32 = 64;

/// How long one vCPU watches before it sleeps.
#[derive(Debug, Default)]
pub(crate) struct HaltPolling {
    window: Duration,
}

impl HaltPolling {
    /// Waits until any bit of `reason` is set.
    pub fn wait(&mut self, attention: &Attention, reason: Reason) {
        let start = Instant::now();
        if !watch(attention, reason, start, self.window) {
            attention.wait(reason, None);
        }
        self.learn(start.elapsed());
    }

    /// Takes note of a halt that lasted for `time`.
    fn learn(&mut self, time: Duration) {
        if time > LONGEST {
            self.window = Duration::ZERO;
        } else if time > self.window {
            self.window = (self.window * 2).clamp(FIRST, LONGEST);
        }
    }
}

/// Looks at the word until a bit of `reason` is set or `window` from `start` on has passed; tells
/// whether one is set.
fn watch(attention: &Attention, reason: Reason, start: Instant, window: Duration) -> bool {
    while start.elapsed() < window {
        for _ in 0..LOOKS {
            if attention.has(reason) {
                return true;
            }
            std::hint::spin_loop();
        }
        std::thread::yield_now();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn short_halts_are_watched_for_and_long_ones_are_not() {
        let mut polling = HaltPolling::default();
        polling.learn(micros(1_000));
        assert_eq!(polling.window, Duration::ZERO);
        for _ in 0..2 {
            polling.learn(micros(30));
        }
        assert_eq!(polling.window, micros(40));
        polling.learn(micros(35));
        assert_eq!(polling.window, micros(40));
        for _ in 0..5 {
            polling.learn(micros(199));
        }
        assert_eq!(polling.window, LONGEST);
        polling.learn(micros(201));
        assert_eq!(polling.window, Duration::ZERO);
    }

    #[test]
    fn a_watch_sees_the_reason_and_ends_in_time() {
        let attention = Attention::new();
        assert!(!watch(&attention, Reason::NMI, Instant::now(), micros(50)));
        attention.raise(Reason::NMI);
        assert!(watch(
            &attention,
            Reason::NMI,
            Instant::now(),
            Duration::from_secs(30)
        ));
    }
}
