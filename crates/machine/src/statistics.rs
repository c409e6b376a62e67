//! What a machine's vCPUs have counted, asked of them while they run.
//!
//! Only the thread of a vCPU can read its counters. Whoever wants them opens a *round* in the
//! [`Ledger`] and raises [`Reason::STATISTICS`] for every vCPU; each thread enters its figures as
//! soon as it comes out of the engine, and goes on. A thread that is about to park enters them
//! before, and counts as having answered while it rests: nothing changes then.

use belljar_engine::{Attention, Reason, VcpuId};
use rustix::time::{ClockId, clock_gettime};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use belljar_devices::virtio::balloon::{BalloonSize, GuestStatistics};
pub use belljar_engine::Counters;
pub use belljar_x86::state::Activity;

/// Where a machine's time has gone.
#[derive(Clone, Debug)]
pub struct Statistics {
    /// Machine time since power-on: without pauses.
    pub uptime: Duration,
    /// Those of each vCPU, by its number.
    pub vcpus: Vec<VcpuStatistics>,
    /// Those of the balloon, if there is one.
    pub balloon: Option<BalloonStatistics>,
}

/// What the balloon knows of the guest's memory.
#[derive(Clone, Debug)]
pub struct BalloonStatistics {
    /// How large the balloon is.
    pub size: BalloonSize,
    /// What the guest tells, empty if it has no driver.
    pub guest: GuestStatistics,
}

/// Where a vCPU's time has gone.
#[derive(Clone, Debug)]
pub struct VcpuStatistics {
    /// Whether the vCPU answered in time. If not, the figures are those of its last answer.
    pub current: bool,
    /// What it was doing.
    pub activity: Activity,
    /// Processor time that its thread has used.
    pub cpu_time: Duration,
    /// What the engine has counted.
    pub counters: Counters,
}

impl VcpuStatistics {
    /// Those of a vCPU that the calling thread runs.
    pub(crate) fn of_this_thread(activity: Activity, counters: Counters) -> Self {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        Self {
            current: true,
            activity,
            // The clock of a thread counts from 0.
            cpu_time: Duration::try_from(used).unwrap_or_default(),
            counters,
        }
    }
}

/// What is known of one vCPU.
#[derive(Clone, Debug)]
struct Entry {
    figures: VcpuStatistics,
    /// The last round that the vCPU has answered.
    answered: u64,
    /// The vCPU's thread is parked, or about to be.
    rests: bool,
}

#[derive(Debug)]
struct Book {
    /// The number of the last round.
    round: u64,
    entries: Vec<Entry>,
}

/// Where the vCPUs enter their figures. See the [module](self).
#[derive(Debug)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
    entered: Condvar,
    attention: Arc<[Attention]>,
}

impl Ledger {
    /// The empty ledger of the vCPUs whose attention words these are.
    pub fn new(attention: Arc<[Attention]>) -> Self {
        let nothing = Entry {
            figures: VcpuStatistics {
                current: false,
                activity: Activity::WaitForSipi,
                cpu_time: Duration::ZERO,
                counters: Counters::new(),
            },
            answered: 0,
            rests: false,
        };
        Self {
            book: Mutex::new(Book {
                round: 0,
                entries: vec![nothing; attention.len()],
            }),
            entered: Condvar::new(),
            attention,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the figures of vCPU `id`, whose thread goes on. [`Reason::STATISTICS`] must have been
    /// cleared before, so that a round that is opened meanwhile is not missed.
    pub fn answer(&self, id: VcpuId, figures: VcpuStatistics) {
        self.enter(id, figures, false);
    }

    /// Enters the figures of vCPU `id`, whose thread runs no guest code until it calls
    /// [`go_on`](Self::go_on).
    pub fn rest(&self, id: VcpuId, figures: VcpuStatistics) {
        self.enter(id, figures, true);
    }

    fn enter(&self, id: VcpuId, figures: VcpuStatistics, rests: bool) {
        let mut book = self.lock();
        let answered = book.round;
        if let Some(entry) = book.entries.get_mut(id as usize) {
            *entry = Entry {
                figures,
                answered,
                rests,
            };
        }
        self.entered.notify_all();
    }

    /// The thread of vCPU `id` is about to run guest code again.
    pub fn go_on(&self, id: VcpuId) {
        if let Some(entry) = self.lock().entries.get_mut(id as usize) {
            entry.rests = false;
        }
    }

    /// Asks all vCPUs and comes back when they have answered, or `limit` has passed.
    pub fn collect(&self, limit: Duration) -> Vec<VcpuStatistics> {
        let mut book = self.lock();
        book.round += 1;
        let round = book.round;
        for (entry, attention) in book.entries.iter_mut().zip(self.attention.iter()) {
            if entry.rests {
                entry.answered = round;
            } else {
                attention.raise(Reason::STATISTICS);
            }
        }
        let (book, _) = self
            .entered
            .wait_timeout_while(book, limit, |book| {
                book.entries.iter().any(|entry| entry.answered < round)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let figures = |entry: &Entry| VcpuStatistics {
            current: entry.answered >= round,
            ..entry.figures.clone()
        };
        book.entries.iter().map(figures).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far longer than any answer here takes.
    const LONG: Duration = Duration::from_mins(1);

    fn figures(count: u64) -> VcpuStatistics {
        VcpuStatistics::of_this_thread(Activity::Running, vec![("count", count)])
    }

    fn count(figures: &VcpuStatistics) -> u64 {
        figures.counters[0].1
    }

    fn ledger() -> Ledger {
        Ledger::new((0..2).map(|_| Attention::new()).collect())
    }

    #[test]
    fn a_vcpu_that_rests_is_not_asked() {
        let ledger = ledger();
        ledger.rest(0, figures(5));
        ledger.rest(1, figures(6));
        let all = ledger.collect(LONG);
        assert!(all.iter().all(|f| f.current), "{all:?}");
        assert_eq!((count(&all[0]), count(&all[1])), (5, 6));
        assert!(!ledger.attention[0].has(Reason::STATISTICS));
    }

    #[test]
    fn a_vcpu_that_runs_is_asked_and_waited_for() {
        let ledger = ledger();
        ledger.rest(1, figures(6));
        let all = std::thread::scope(|scope| {
            scope.spawn(|| {
                ledger.attention[0].wait(Reason::STATISTICS, None);
                ledger.attention[0].clear(Reason::STATISTICS);
                ledger.answer(0, figures(7));
            });
            ledger.collect(LONG)
        });
        assert!(all[0].current);
        assert_eq!(count(&all[0]), 7);
    }

    #[test]
    fn a_vcpu_that_does_not_answer_is_not_current() {
        let ledger = ledger();
        for id in 0..2 {
            ledger.rest(id, figures(5));
        }
        ledger.go_on(1);
        let all = ledger.collect(Duration::from_millis(1));
        assert!(all[0].current && !all[1].current, "{all:?}");
        assert_eq!(count(&all[1]), 5);
        // A late answer belongs to the round that it was given in.
        ledger.answer(1, figures(8));
        assert!(!ledger.collect(Duration::from_millis(1))[1].current);
    }
}
