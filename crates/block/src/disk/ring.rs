//! Serving reads and writes by io_uring.
//!
//! What goes there is what it serves better than threads do (docs/disks.md has the figures): reads, up to
//! a length beyond which copying is the work and several threads do it sooner. Writes into the
//! host's cache do not: file systems as common as ext4 have the kernel's own threads do them, one
//! after the other. A user can have everything served by the ring.
//!
//! Requests wait in [`Waiting`] until somebody *turns* the ring: moves them into it, hands them to the
//! kernel together, and answers those that are complete. One thread does so at a time, and takes along
//! what others submit meanwhile. It is the ring's own thread if that sleeps, and else, when that waits
//! for the kernel, the one that submits. The way through the thread lets requests come together; without
//! it a guest has an interrupt for each.
//!
//! Whatever is not moved as a whole, in one piece, is served again by the disk's other threads, as if
//! there were no ring: the end of a file within a sector, errors, and all that the kernel may think of.

use super::{Done, Request, Shared, State, wait};
use belljar_uring::{Finished, Ring, Transfer, Unavailable, Way};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::iter;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Transfers that the kernel is given at most.
const ENTRIES: u16 = 256;
/// Bytes after which the kernel is given what there is: those that have been waiting longest do not wait
/// for all of a long queue.
const BATCH: u64 = 64 << 10;
/// The longest reads that go to a ring which does not serve everything.
const LONGEST_READ: u64 = 128 << 10;

/// The ring of a disk.
#[derive(Debug)]
pub(super) struct RingPart {
    /// Locked by who turns it.
    ring: Mutex<Ring<Done>>,
    /// Readable while transfers are complete.
    complete: OwnedFd,
    /// It serves all reads and writes, and not only those that it serves best.
    all: bool,
}

/// What of the ring belongs to the disk's state.
#[derive(Default)]
pub(super) struct Waiting {
    /// What has not been put into the ring.
    requests: VecDeque<(Transfer, Done)>,
    /// How many are in the ring, or just taken out of it.
    inside: usize,
    /// How many the kernel was at when the ring was turned last.
    under_way: usize,
    /// Somebody turns the ring.
    turning: bool,
    /// The thread that waits for the kernel has nothing to wait for.
    thread_sleeps: bool,
    /// The kernel takes no more: the disk's other threads serve everything.
    given_up: bool,
}

impl Waiting {
    /// Whether the ring has nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.inside == 0
    }

    /// Whether requests can be served by the ring, if there is one.
    pub(super) fn is_usable(&self) -> bool {
        !self.given_up
    }

    /// Whether the caller has to turn the ring; then others need not.
    pub(super) fn begin_turn(&mut self) -> bool {
        let begins = !self.turning && !self.requests.is_empty();
        self.turning |= begins;
        begins
    }

    /// Whether the thread of the ring is to be woken to turn it.
    pub(super) fn is_for_thread(&self) -> bool {
        self.thread_sleeps && !self.turning && !self.requests.is_empty()
    }

    /// Takes what goes to the kernel together, of at most `room` requests.
    fn take(&mut self, room: usize) -> Vec<(Transfer, Done)> {
        let (mut count, mut bytes) = (0, 0);
        for (transfer, _) in self.requests.iter().take(room) {
            if bytes >= BATCH {
                break;
            }
            bytes += transfer.segments.len();
            count += 1;
        }
        self.inside += count;
        self.requests.drain(..count).collect()
    }
}

impl RingPart {
    /// A ring of transfers of `file`: of `all`, or of those that it serves best.
    pub(super) fn new(file: &File, all: bool) -> Result<Self, Unavailable> {
        let ring = Ring::new(file.try_clone().map_err(Unavailable::Setup)?, ENTRIES)?;
        let complete = ring.descriptor().map_err(Unavailable::Setup)?;
        Ok(Self {
            ring: Mutex::new(ring),
            complete,
            all,
        })
    }

    fn is_for(&self, transfer: &Transfer) -> bool {
        let best = transfer.way == Way::Read && transfer.segments.len() <= LONGEST_READ;
        (best || self.all) && transfer.is_possible()
    }
}

/// The request that a transfer was.
fn request(transfer: Transfer) -> Request {
    let Transfer {
        way,
        offset,
        segments,
    } = transfer;
    match way {
        Way::Read => Request::Read { offset, segments },
        Way::Write => Request::Write { offset, segments },
    }
}

impl Shared {
    /// Has a request wait for the ring, or gives it back if that is not for the ring.
    pub(super) fn to_ring(
        &self,
        state: &mut State,
        request: Request,
        done: Done,
    ) -> Option<(Request, Done)> {
        let Some(ring) = self.ring.as_ref().filter(|_| state.waiting.is_usable()) else {
            return Some((request, done));
        };
        let (way, offset, segments) = match request {
            Request::Read { offset, segments } => (Way::Read, offset, segments),
            Request::Write { offset, segments } if !self.storage.is_read_only() => {
                (Way::Write, offset, segments)
            }
            other => return Some((other, done)),
        };
        let end = offset.checked_add(segments.len());
        let is_within = end.is_some_and(|end| end <= self.storage.size());
        let transfer = Transfer {
            way,
            offset,
            segments,
        };
        if is_within && ring.is_for(&transfer) {
            state.waiting.requests.push_back((transfer, done));
            None
        } else {
            Some((self::request(transfer), done))
        }
    }

    /// Turns the ring if there is something for it that nobody else takes along.
    pub(super) fn turn_if_needed<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> MutexGuard<'a, State> {
        if !state.waiting.begin_turn() {
            return state;
        }
        drop(state);
        self.turn();
        self.lock()
    }

    /// Turns the ring until nothing can be done without waiting for the kernel. Only for who has
    /// [begun](Waiting::begin_turn) that.
    pub(super) fn turn(&self) {
        let Some(part) = &self.ring else {
            return;
        };
        let mut ring = part.ring.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let batch = self.lock().waiting.take(ring.room());
            for (transfer, done) in batch {
                if let Err((transfer, done)) = ring.push(transfer, done) {
                    self.serve_otherwise(transfer, done);
                }
            }
            if let Err(error) = ring.submit() {
                tracing::warn!(disk = %self.name, %error, "io_uring is given up for threads");
            }
            let finished: Vec<_> = iter::from_fn(|| ring.complete()).collect();
            if !self.finish(finished) && self.end_turn(&ring) {
                return;
            }
        }
    }

    /// Ends a turn, unless there is more to be given to the kernel.
    fn end_turn(&self, ring: &Ring<Done>) -> bool {
        let mut state = self.lock();
        if ring.is_given_up() {
            let waiting = &mut state.waiting;
            waiting.given_up = true;
            let rest: Vec<_> = waiting.requests.drain(..).collect();
            let rest = rest
                .into_iter()
                .map(|(transfer, done)| (request(transfer), done));
            state.ready.extend(rest);
            self.work.notify_all();
        }
        let waiting = &mut state.waiting;
        if ring.room() > 0 && !waiting.requests.is_empty() {
            return false;
        }
        waiting.turning = false;
        waiting.under_way = ring.under_way();
        if waiting.thread_sleeps && waiting.under_way > 0 {
            self.turned.notify_all();
        }
        if state.ended {
            // Whoever waits for the ring to be empty before it ends.
            self.turned.notify_all();
            self.work.notify_all();
        }
        if state.is_empty() {
            self.finished.notify_all();
        }
        true
    }

    /// Answers transfers; `false` if there was none.
    fn finish(&self, finished: Vec<Finished<Done>>) -> bool {
        let any = !finished.is_empty();
        let is_whole = |finished: &Finished<Done>| {
            let len = finished.transfer.segments.len();
            finished.moved.as_ref().is_ok_and(|&moved| moved == len)
        };
        let (whole, others): (Vec<_>, Vec<_>) = finished.into_iter().partition(is_whole);
        for other in others {
            self.serve_otherwise(other.transfer, other.token);
        }
        let count = whole.len();
        if count > 0 {
            let mut state = self.lock();
            state.waiting.inside -= count;
            state.in_flight += count;
            drop(state);
            for Finished {
                transfer, token, ..
            } in whole
            {
                // The segments keep guest memory alive; the card may count on them being gone.
                drop(transfer);
                self.answer(token, Ok(()));
            }
            self.lock().in_flight -= count;
        }
        any
    }

    /// Gives a transfer from the ring to the disk's other threads.
    fn serve_otherwise(&self, transfer: Transfer, done: Done) {
        let mut state = self.lock();
        state.waiting.inside -= 1;
        state.ready.push_back((request(transfer), done));
        drop(state);
        self.work.notify_one();
    }

    /// The thread that waits for the kernel.
    pub(super) fn wait_for_kernel(&self) {
        let Some(part) = &self.ring else {
            return;
        };
        let mut state = self.lock();
        loop {
            state = self.turn_if_needed(state);
            if state.waiting.turning || state.waiting.under_way == 0 {
                if state.ended && state.limited.is_empty() && state.waiting.is_empty() {
                    return;
                }
                state.waiting.thread_sleeps = true;
                state = wait(&self.turned, state);
                state.waiting.thread_sleeps = false;
                continue;
            }
            drop(state);
            // An interrupted wait is looked after like any other wake-up.
            let _ = poll(&mut [PollFd::new(&part.complete, PollFlags::IN)], None);
            state = self.lock();
            if !state.waiting.turning {
                state.waiting.turning = true;
                drop(state);
                self.turn();
                state = self.lock();
            }
        }
    }
}
