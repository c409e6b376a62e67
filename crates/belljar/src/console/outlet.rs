//! What lies between a guest that prints and whoever reads: a bounded buffer.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes that wait at most, but for those that each vCPU adds before it paces itself.
const CAPACITY: usize = 64 << 10;
/// Room for what the vCPUs add before they pace themselves; more than that is dropped.
const SLACK: usize = 4 << 10;

/// What happens to output when the buffer is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// The guest waits: nothing is lost.
    Wait,
    /// The oldest output is dropped: the guest never waits for a reader that may not exist.
    DropOldest,
}

#[derive(Debug)]
struct State {
    waiting: VecDeque<u8>,
    /// Bytes that were taken but not yet written.
    taken: usize,
    /// Nobody waits for room any more, and the reader ends when nothing is left.
    closed: bool,
    /// The reader is gone: output is dropped.
    broken: bool,
    /// The user wants the process to end soon.
    hurried: bool,
}

/// How long the end of the process waits for output that was not written yet and may never be.
const GRACE: Duration = Duration::from_secs(1);

/// The buffer. vCPUs [`push`](Self::push) and
/// [`pace`](Self::pace) themselves, one writer thread [`take`](Self::take)s.
#[derive(Debug)]
pub struct Outlet {
    when_full: WhenFull,
    state: Mutex<State>,
    changed: Condvar,
}

impl Outlet {
    /// An empty buffer.
    pub fn new(when_full: WhenFull) -> Self {
        Self {
            when_full,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                taken: 0,
                closed: false,
                broken: false,
                hurried: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds output without waiting. Where nothing may be lost, the caller [`pace`](Self::pace)s
    /// itself afterwards.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.lock();
        let over = (state.waiting.len() + bytes.len()).saturating_sub(CAPACITY);
        let excess = if state.closed { over > 0 } else { over > SLACK };
        if state.broken || (excess && self.when_full == WhenFull::Wait) {
            return;
        }
        state.waiting.extend(bytes);
        if self.when_full == WhenFull::DropOldest {
            let over = over.min(state.waiting.len());
            state.waiting.drain(..over);
        }
        self.changed.notify_all();
    }

    /// Waits for room, if that is what to do when the buffer is full and the outlet is not closed; for
    /// `limit` at most, if there is one. Tells whether there is room.
    pub fn pace(&self, limit: Option<Duration>) -> bool {
        if self.when_full == WhenFull::DropOldest {
            return true;
        }
        let full = |s: &mut State| s.waiting.len() >= CAPACITY && !s.closed && !s.broken;
        let Some(limit) = limit else {
            drop(self.changed.wait_while(self.lock(), full));
            return true;
        };
        let waited = self.changed.wait_timeout_while(self.lock(), limit, full);
        let (_state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// Moves everything that waits to the empty buffer `into`; waits until there is something.
    /// False at the end.
    pub fn take(&self, into: &mut Vec<u8>) -> bool {
        into.clear();
        let mut state = self.lock();
        state.taken = 0;
        self.changed.notify_all();
        while state.waiting.is_empty() {
            if state.closed || state.broken {
                return false;
            }
            state = self.wait(state);
        }
        into.extend(state.waiting.drain(..));
        state.taken = into.len();
        self.changed.notify_all();
        true
    }

    /// Lets nobody wait for room from now on; [`take`](Self::take) gives what is left and then
    /// ends.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Drops what waits and all that comes.
    pub fn break_off(&self) {
        let mut state = self.lock();
        state.broken = true;
        state.waiting.clear();
        state.taken = 0;
        self.changed.notify_all();
    }

    /// Lets nobody wait longer than `GRACE` from now on for what was not written yet.
    pub fn hurry(&self) {
        self.lock().hurried = true;
        self.changed.notify_all();
    }

    /// Waits until everything was written: for `GRACE` at most, or if `patient` until somebody is in
    /// a [`hurry`](Self::hurry). Tells whether everything was written.
    pub fn wait_until_written(&self, patient: bool) -> bool {
        let unwritten = |s: &mut State| !s.broken && (s.taken > 0 || !s.waiting.is_empty());
        let mut state = self.lock();
        if patient {
            state = self
                .changed
                .wait_while(state, |s| !s.hurried && unwritten(s))
                .unwrap_or_else(PoisonError::into_inner);
        }
        let (mut state, _) = self
            .changed
            .wait_timeout_while(state, GRACE, unwritten)
            .unwrap_or_else(PoisonError::into_inner);
        !unwritten(&mut state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_is_pushed_is_taken_in_order_and_then_it_ends() {
        let outlet = Outlet::new(WhenFull::Wait);
        outlet.push(b"one ");
        outlet.push(b"two");
        outlet.close();
        let mut got = Vec::new();
        assert!(outlet.take(&mut got));
        assert_eq!(got, b"one two");
        assert!(!outlet.take(&mut got));
    }

    #[test]
    fn without_a_reader_the_newest_output_is_kept() {
        let outlet = Outlet::new(WhenFull::DropOldest);
        outlet.push(&vec![b'a'; CAPACITY]);
        outlet.push(b"end");
        let mut got = Vec::new();
        assert!(outlet.take(&mut got));
        assert_eq!(got.len(), CAPACITY);
        assert!(got.ends_with(b"aend"));
    }

    #[test]
    fn a_writer_that_never_waits_for_room_loses_its_newest_output() {
        let outlet = Outlet::new(WhenFull::Wait);
        for _ in 0..CAPACITY {
            outlet.push(b"old");
        }
        let mut got = Vec::new();
        assert!(outlet.take(&mut got));
        assert!(got.len() <= CAPACITY + SLACK, "{}", got.len());
        assert!(got.starts_with(b"old"));
    }

    #[test]
    fn a_writer_that_waits_for_room_goes_on_when_there_is_some() {
        let outlet = Arc::new(Outlet::new(WhenFull::Wait));
        outlet.push(&vec![b'a'; CAPACITY]);
        let pusher = std::thread::spawn({
            let outlet = Arc::clone(&outlet);
            move || {
                assert!(outlet.pace(None));
                outlet.push(b"late");
            }
        });
        let (mut got, mut all) = (Vec::new(), Vec::new());
        while all.len() < CAPACITY + 4 && outlet.take(&mut got) {
            all.append(&mut got);
        }
        pusher.join().unwrap();
        assert!(all.ends_with(b"late"));
    }

    #[test]
    fn closing_frees_a_writer_that_waits_for_room() {
        let outlet = Arc::new(Outlet::new(WhenFull::Wait));
        outlet.push(&vec![b'a'; CAPACITY]);
        let pusher = std::thread::spawn({
            let outlet = Arc::clone(&outlet);
            move || outlet.pace(None)
        });
        assert!(!outlet.pace(Some(Duration::from_millis(1))));
        outlet.close();
        assert!(pusher.join().unwrap());
        assert!(outlet.pace(Some(Duration::ZERO)));
        outlet.push(b"lost");
        let mut got = Vec::new();
        assert!(outlet.take(&mut got));
        assert!(!got.ends_with(b"lost"));
    }
}
