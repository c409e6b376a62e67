//! The local APIC's timer. SDM 3A, 11.5.4.

use belljar_clock::{Clock, Nanos};
use serde::{Deserialize, Serialize};

/// Frequency of the timer before its divider, in hertz: one tick is a nanosecond of machine time.
pub const TIMER_HZ: u64 = Nanos::SECOND;
/// The shortest time between two interrupts of a periodic timer, in nanoseconds: a guest that asks
/// for more must not keep the machine's timer thread busy. Counts are unaffected.
const SHORTEST_PERIOD: u64 = 20_000;

/// The farthest TSC deadline, in ticks: decades, and yet no time that overflows in nanoseconds.
const FARTHEST: u64 = 1 << 60;

/// Timer modes of the LVT's timer entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Mode {
    #[default]
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    /// The mode that bits 17 and 18 of the entry give; the reserved value never fires, like an
    /// unarmed deadline.
    pub(super) const fn from_entry(entry: u32) -> Self {
        match entry >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            _ => Self::TscDeadline,
        }
    }
}

/// The timer's registers and the time at which they were set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    mode: Mode,
    /// Divide configuration register.
    divide: u32,
    initial: u32,
    /// When the count was `count_at_start`.
    start: Nanos,
    count_at_start: u32,
    /// IA32_TSC_DEADLINE as the guest wrote it; 0 if not armed.
    tsc_deadline: u64,
    due: Option<Nanos>,
}

impl Timer {
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.due
    }

    /// Nanoseconds of one count.
    fn tick(&self) -> u64 {
        let code = self.divide & 3 | self.divide >> 1 & 4;
        // 0 divides by 2, 1 by 4, …, 6 by 128, and 7 by 1.
        1 << ((code + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.tick()
    }

    /// Time from `start` until the count first reaches 0.
    fn first_span(&self) -> u64 {
        u64::from(self.count_at_start) * self.tick()
    }

    /// The current count register.
    pub(super) fn count(&self, now: Nanos) -> u32 {
        if self.mode == Mode::TscDeadline || self.initial == 0 {
            return 0;
        }
        if self.mode == Mode::Periodic && self.due.is_none() {
            return 0;
        }
        let elapsed = now.since(self.start);
        let left = match (self.mode, self.first_span().checked_sub(elapsed)) {
            (_, Some(left)) => left,
            (Mode::Periodic, None) => self.period() - (elapsed - self.first_span()) % self.period(),
            _ => 0,
        };
        left.div_ceil(self.tick()) as u32
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial count: starts or stops the timer.
    pub(super) fn set_initial(&mut self, value: u32, now: Nanos) {
        if self.mode == Mode::TscDeadline {
            return;
        }
        self.initial = value;
        self.start_from(value, now);
    }

    fn start_from(&mut self, count: u32, now: Nanos) {
        self.start = now;
        self.count_at_start = count;
        let stopped = self.initial == 0 || (count == 0 && self.mode == Mode::OneShot);
        self.due = (!stopped).then(|| now.after(self.first_span()));
    }

    /// Goes on from `count` after a change; if it had run out, it stays so.
    fn go_on_from(&mut self, count: u32, now: Nanos) {
        let runs = self.due.is_some();
        self.start_from(count, now);
        self.due = self.due.filter(|_| runs);
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration; the count goes on from where it is.
    pub(super) fn set_divide(&mut self, value: u32, now: Nanos) {
        let count = self.count(now);
        self.divide = value & 0xb;
        if self.mode != Mode::TscDeadline {
            self.go_on_from(count, now);
        }
    }

    /// Changes the mode. To or from the TSC deadline disarms the timer; a timer that has run out
    /// does not start again, even if it is periodic now.
    pub(super) fn set_mode(&mut self, mode: Mode, now: Nanos) {
        if mode == self.mode {
            return;
        }
        let count = self.count(now);
        let disarms = mode == Mode::TscDeadline || self.mode == Mode::TscDeadline;
        self.mode = mode;
        if disarms {
            self.initial = 0;
            self.tsc_deadline = 0;
            self.due = None;
        } else {
            self.go_on_from(count, now);
        }
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; `tsc_adjust` is what the guest's counter is ahead of the
    /// machine's.
    pub(super) fn set_tsc_deadline(&mut self, value: u64, tsc_adjust: u64, clock: &dyn Clock) {
        if self.mode != Mode::TscDeadline {
            return;
        }
        self.tsc_deadline = value;
        self.due = None;
        if value != 0 {
            let tsc = clock.tsc();
            let guest_tsc = tsc.wrapping_add(tsc_adjust);
            let wait = value.saturating_sub(guest_tsc).min(FARTHEST);
            self.due = Some(if wait == 0 {
                Nanos(0)
            } else {
                clock.when_tsc(tsc.saturating_add(wait))
            });
        }
    }

    /// Tells whether the timer fired by `now`, and sets its next deadline.
    pub(super) fn expire(&mut self, now: Nanos) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else {
            return false;
        };
        self.tsc_deadline = 0;
        let period = self.period();
        self.due = if self.mode == Mode::Periodic && period != 0 {
            // Periods that passed unserved are one interrupt.
            let earliest = now.after(SHORTEST_PERIOD.saturating_sub(period));
            let periods = earliest.since(due) / period + 1;
            Some(due.after(period.saturating_mul(periods)))
        } else {
            None
        };
        true
    }
}
