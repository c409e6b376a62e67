//! What the guest printed lately, for those who attach to its console.
//!
//! There is one bounded buffer however many readers there are: each reads at its own pace, and one
//! that falls behind by more than the buffer misses what is in between. The guest never waits.

use super::lock;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};

/// Bytes that are kept.
const CAPACITY: usize = 64 << 10;

#[derive(Debug, Default)]
struct State {
    bytes: VecDeque<u8>,
    /// The number of bytes that were ever printed.
    end: u64,
    /// Readers that wait; nobody is woken if there are none.
    waiting: usize,
    closed: bool,
}

/// The buffer. See the [module](self).
#[derive(Debug, Default)]
pub struct Scrollback {
    state: Mutex<State>,
    changed: Condvar,
}

/// A reader's place in what was printed.
#[derive(Debug)]
pub struct Cursor(u64);

impl Scrollback {
    /// Adds output.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = lock(&self.state);
        state.bytes.extend(bytes);
        state.end += bytes.len() as u64;
        let over = state.bytes.len().saturating_sub(CAPACITY);
        state.bytes.drain(..over);
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Nothing will be added any more.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Lets readers look whether they are to go on.
    pub fn wake(&self) {
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// A place before what is kept, or behind it.
    pub fn cursor(&self, before: bool) -> Cursor {
        let state = lock(&self.state);
        let kept = if before { state.bytes.len() } else { 0 };
        Cursor(state.end - kept as u64)
    }

    /// Moves what was printed behind `cursor` to the empty buffer `into`; waits until there is
    /// something. False at the end, or when `goes_on` says no.
    pub fn read(
        &self,
        cursor: &mut Cursor,
        into: &mut Vec<u8>,
        goes_on: impl Fn() -> bool,
    ) -> bool {
        into.clear();
        let mut state = lock(&self.state);
        while goes_on() && state.end == cursor.0 && !state.closed {
            state.waiting += 1;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
        }
        let unread = usize::try_from(state.end - cursor.0).unwrap_or(usize::MAX);
        let first = state.bytes.len().saturating_sub(unread);
        into.extend(state.bytes.range(first..));
        cursor.0 = state.end;
        !into.is_empty() && goes_on()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(scrollback: &Scrollback, cursor: &mut Cursor) -> Vec<u8> {
        let mut bytes = Vec::new();
        scrollback.read(cursor, &mut bytes, || true);
        bytes
    }

    #[test]
    fn readers_go_at_their_own_pace() {
        let scrollback = Scrollback::default();
        let mut first = scrollback.cursor(true);
        scrollback.push(b"one ");
        assert_eq!(read(&scrollback, &mut first), b"one ");
        let (mut late, mut newest) = (scrollback.cursor(true), scrollback.cursor(false));
        scrollback.push(b"two");
        assert_eq!(read(&scrollback, &mut first), b"two");
        assert_eq!(read(&scrollback, &mut late), b"one two");
        assert_eq!(read(&scrollback, &mut newest), b"two");
        scrollback.close();
        assert!(!scrollback.read(&mut late, &mut Vec::new(), || true));
    }

    #[test]
    fn a_reader_that_falls_behind_misses_the_oldest() {
        let scrollback = Scrollback::default();
        let mut cursor = scrollback.cursor(true);
        scrollback.push(&vec![b'a'; CAPACITY]);
        scrollback.push(b"end");
        let got = read(&scrollback, &mut cursor);
        assert_eq!(got.len(), CAPACITY);
        assert!(got.ends_with(b"aend"));
    }

    #[test]
    fn a_reader_that_is_told_to_leave_leaves() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let scrollback = Scrollback::default();
        let goes_on = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut cursor = scrollback.cursor(true);
                scrollback.read(&mut cursor, &mut Vec::new(), || {
                    goes_on.load(Ordering::Acquire)
                })
            });
            goes_on.store(false, Ordering::Release);
            scrollback.wake();
            assert!(!reader.join().unwrap());
        });
    }
}
