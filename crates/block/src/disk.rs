//! What a card holds: a queue of requests, and what serves them: io_uring ([`ring`]) or threads.

mod ring;

use crate::limit::Buckets;
use crate::{Aio, BlockError, Limits, Storage};
use belljar_memory::Segments;
use ring::{RingPart, Waiting};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most threads of a disk.
const MOST_THREADS: usize = 4;
/// Errors that are logged in one [`LOG_PERIOD`]; the rest is counted.
const LOGGED_ERRORS: u32 = 10;
const LOG_PERIOD: Duration = Duration::from_secs(10);

/// One thing to do.
#[derive(Debug)]
pub enum Request {
    /// Fill the segments from the disk.
    Read {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where to.
        segments: Segments,
    },
    /// Write the segments to the disk.
    Write {
        /// Where on the disk, in bytes.
        offset: u64,
        /// Where from.
        segments: Segments,
    },
    /// Make last what was complete when this was submitted.
    Flush,
    /// A range is of no use any more.
    Discard {
        /// Its start, in bytes.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
    },
    /// A range is to read as zeroes.
    WriteZeroes {
        /// Its start, in bytes.
        offset: u64,
        /// Its length, in bytes.
        len: u64,
        /// Whether the host may free its room.
        may_unmap: bool,
    },
}

impl Request {
    /// The name, offset and length, for the log.
    fn describe(&self) -> (&'static str, u64, u64) {
        match self {
            Self::Read { offset, segments } => ("read", *offset, segments.len()),
            Self::Write { offset, segments } => ("write", *offset, segments.len()),
            Self::Flush => ("flush", 0, 0),
            Self::Discard { offset, len } => ("discard", *offset, *len),
            Self::WriteZeroes { offset, len, .. } => ("write of zeroes", *offset, *len),
        }
    }

    /// The bytes that count against a limit of bandwidth.
    fn cost(&self) -> u64 {
        match self {
            Self::Read { segments, .. } | Self::Write { segments, .. } => segments.len(),
            Self::WriteZeroes { len, .. } => *len,
            Self::Flush | Self::Discard { .. } => 0,
        }
    }

    fn serve(&self, storage: &dyn Storage) -> io::Result<()> {
        match self {
            Self::Read { offset, segments } => storage.read(*offset, segments),
            Self::Write { offset, segments } => storage.write(*offset, segments),
            Self::Flush => storage.flush(),
            Self::Discard { offset, len } => storage.discard(*offset, *len),
            Self::WriteZeroes {
                offset,
                len,
                may_unmap,
            } => storage.write_zeroes(*offset, *len, *may_unmap),
        }
    }
}

/// What is called once when a request is done, on a thread of the disk or on one that submits
/// requests. It may submit more, but does not wait.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A disk in use. Dropping it waits for what was submitted.
///
/// Requests run side by side, in no certain order. A flush covers what was complete before it was
/// submitted, and is never held up by limits.
pub struct Disk {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    storage: Box<dyn Storage>,
    /// Where reads and writes go, if there is one.
    ring: Option<RingPart>,
    state: Mutex<State>,
    /// There is something to do, or to wait for differently.
    work: Condvar,
    /// Somebody has turned the ring.
    turned: Condvar,
    /// A request is done.
    finished: Condvar,
    /// The origin of the times of the buckets.
    start: Instant,
    /// A disk without limits serves in the order of submission.
    limited: bool,
}

struct State {
    /// What may go at once.
    ready: VecDeque<(Request, Done)>,
    /// What has to keep the limits.
    limited: VecDeque<(Request, Done)>,
    /// What is served by the ring.
    waiting: Waiting,
    buckets: Buckets,
    /// How many requests are being served.
    in_flight: usize,
    /// How many callers wait for everything to be done.
    draining: usize,
    /// Threads that wait for something to do.
    idle: usize,
    threads: Vec<JoinHandle<()>>,
    /// How many of the threads serve requests.
    pool: usize,
    ended: bool,
    log: ErrorLog,
    /// The storage panicked: what it holds in memory may make no sense.
    broken: bool,
}

/// Bounds what a guest can write into the log.
struct ErrorLog {
    since: Instant,
    logged: u32,
    suppressed: u64,
}

impl Disk {
    /// A disk called `name` in the log, served by threads.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(name: String, storage: Box<dyn Storage>, limits: Limits) -> io::Result<Self> {
        Self::start(name, storage, limits, None)
    }

    /// A disk called `name` in the log, served as `aio` says. What serves it is in the log, too.
    ///
    /// # Errors
    /// When the host gives no thread, or not the ring that `aio` insists on.
    pub fn with_aio(
        name: String,
        storage: Box<dyn Storage>,
        limits: Limits,
        aio: Aio,
    ) -> Result<Self, BlockError> {
        let ring = match (aio, storage.file()) {
            (Aio::Threads, _) => None,
            (Aio::Auto, None) => {
                tracing::debug!(disk = name, "served by threads: the image is no raw file");
                None
            }
            (Aio::IoUring, None) => return Err(BlockError::NotRaw(name.into())),
            (_, Some(file)) => match RingPart::new(file, aio == Aio::IoUring) {
                Ok(ring) => Some(ring),
                Err(source) if aio == Aio::IoUring => {
                    let file = name.into();
                    return Err(BlockError::Ring { file, source });
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::debug!(disk = name, %error, cause, "served by threads");
                    None
                }
            },
        };
        if ring.is_some() {
            tracing::debug!(disk = name, ?aio, "served by io_uring");
        }
        Self::start(name, storage, limits, ring).map_err(BlockError::Thread)
    }

    fn start(
        name: String,
        storage: Box<dyn Storage>,
        limits: Limits,
        ring: Option<RingPart>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            name,
            storage,
            ring,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                limited: VecDeque::new(),
                waiting: Waiting::default(),
                buckets: Buckets::new(limits),
                in_flight: 0,
                draining: 0,
                idle: 0,
                threads: Vec::new(),
                pool: 1,
                ended: false,
                log: ErrorLog {
                    since: now,
                    logged: 0,
                    suppressed: 0,
                },
                broken: false,
            }),
            work: Condvar::new(),
            turned: Condvar::new(),
            finished: Condvar::new(),
            start: now,
            limited: limits != Limits::default(),
        });
        let disk = Self { shared };
        let shared = &disk.shared;
        let thread = shared.spawn("disk", Shared::run)?;
        shared.lock().threads.push(thread);
        if shared.ring.is_some() {
            let thread = shared.spawn("disk-ring", Shared::wait_for_kernel)?;
            shared.lock().threads.push(thread);
        }
        Ok(disk)
    }

    /// Bytes of the disk, a multiple of [`SECTOR`](crate::SECTOR).
    pub fn size(&self) -> u64 {
        self.shared.storage.size()
    }

    /// Whether the guest can only read.
    pub fn is_read_only(&self) -> bool {
        self.shared.storage.is_read_only()
    }

    /// The name in the log.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether reads and writes are served by io_uring.
    pub fn uses_io_uring(&self) -> bool {
        self.shared.ring.is_some() && self.shared.lock().waiting.is_usable()
    }

    /// Has `request` served, and `done` called then. Does not wait for the disk. What makes no sense
    /// (a range beyond the end, a write to a read-only disk) reaches `done` as an error.
    pub fn submit(&self, request: Request, done: Done) {
        self.submit_all([(request, done)]);
    }

    /// Has several requests served, as [`submit`](Self::submit) does each; the host is told of all at
    /// once where it can be. With io_uring the caller may be the one that serves what needs no waiting, and
    /// calls `done`, perhaps that of others.
    pub fn submit_all(&self, requests: impl IntoIterator<Item = (Request, Done)>) {
        let shared = &self.shared;
        let mut state = shared.lock();
        let mut for_threads = 0_usize;
        for (request, done) in requests {
            if shared.limited && !matches!(request, Request::Flush) {
                state.limited.push_back((request, done));
                for_threads += 1;
            } else if let Some((request, done)) = shared.to_ring(&mut state, request, done) {
                state.ready.push_back((request, done));
                for_threads += 1;
            }
        }
        let waiting = state.ready.len() + state.limited.len();
        let missing = waiting.saturating_sub(state.idle).min(for_threads);
        for _ in 0..missing.min(MOST_THREADS.saturating_sub(state.pool)) {
            // Without another thread those that there are serve everything.
            if let Ok(thread) = shared.spawn("disk", Shared::run) {
                state.threads.push(thread);
                state.pool += 1;
            }
        }
        let wakes = state.waiting.is_for_thread();
        let turns = !wakes && state.waiting.begin_turn();
        drop(state);
        for _ in 0..for_threads.min(MOST_THREADS) {
            shared.work.notify_one();
        }
        if wakes {
            shared.turned.notify_all();
        } else if turns {
            shared.turn();
        }
    }

    /// Waits until nothing is in flight. What waits for a limit goes at once then, and is owed
    /// afterwards. Not to be called from a request's `done`.
    pub fn drain(&self) {
        let shared = &self.shared;
        let mut state = shared.lock();
        state.draining += 1;
        shared.work.notify_all();
        while !state.is_empty() {
            state = wait(&shared.finished, state);
        }
        state.draining -= 1;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        self.shared.work.notify_all();
        self.shared.turned.notify_all();
        let me = thread::current().id();
        if threads.iter().any(|thread| thread.thread().id() == me) {
            // The last handle went away in a `done`: what there is still to do needs this thread, too,
            // and all end by themselves.
            return;
        }
        for thread in threads {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.shared.name)
            .field("storage", &self.shared.storage)
            .finish_non_exhaustive()
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition
        .wait(state)
        .unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn is_empty(&self) -> bool {
        let queues = self.ready.is_empty() && self.limited.is_empty() && self.waiting.is_empty();
        queues && self.in_flight == 0
    }

    /// What to serve next, and whether it had to keep the limits; or how many nanoseconds to wait
    /// (`None`: until there is something).
    fn next(&mut self, now: u64) -> Result<(Request, Done, bool), Option<u64>> {
        if let Some((request, done)) = self.ready.pop_front() {
            return Ok((request, done, false));
        }
        if self.limited.is_empty() {
            return Err(None);
        }
        let nanos = self.buckets.wait(now);
        if nanos > 0 && self.draining == 0 && !self.ended {
            return Err(Some(nanos));
        }
        let (request, done) = self.limited.pop_front().ok_or(None)?;
        self.buckets.take(request.cost());
        Ok((request, done, true))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>, name: &str, run: fn(&Self)) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&shared))
    }

    /// A thread of the disk.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            match state.next(self.start.elapsed().as_nanos() as u64) {
                Ok((request, done, was_limited)) => {
                    let job = if was_limited {
                        self.to_ring(&mut state, request, done)
                    } else {
                        Some((request, done))
                    };
                    let Some((request, done)) = job else {
                        state = self.turn_if_needed(state);
                        continue;
                    };
                    state.in_flight += 1;
                    let broken = state.broken;
                    drop(state);
                    let result = self.serve(&request, broken);
                    // The segments keep guest memory alive; the card may count on them being gone.
                    drop(request);
                    self.answer(done, result);
                    state = self.lock();
                    state.in_flight -= 1;
                    if state.is_empty() {
                        self.finished.notify_all();
                    }
                }
                Err(_) if state.ended && state.waiting.is_empty() => {
                    self.turned.notify_all();
                    return;
                }
                Err(pause) => {
                    state.idle += 1;
                    state = match pause {
                        None => wait(&self.work, state),
                        Some(nanos) => {
                            self.work
                                .wait_timeout(state, Duration::from_nanos(nanos))
                                .unwrap_or_else(PoisonError::into_inner)
                                .0
                        }
                    };
                    state.idle -= 1;
                }
            }
        }
    }

    /// Tells the card.
    fn answer(&self, done: Done, result: io::Result<()>) {
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            tracing::error!(disk = %self.name, "the card's answer to a request panicked");
        }
    }

    fn serve(&self, request: &Request, broken: bool) -> io::Result<()> {
        let result = if broken {
            Err(io::Error::other("the image's reader failed before"))
        } else {
            catch_unwind(AssertUnwindSafe(|| request.serve(&*self.storage))).unwrap_or_else(|_| {
                self.lock().broken = true;
                Err(io::Error::other("the image's reader failed"))
            })
        };
        if let Err(error) = &result {
            self.log(request, error);
        }
        result
    }

    fn log(&self, request: &Request, error: &io::Error) {
        let mut state = self.lock();
        let log = &mut state.log;
        if log.since.elapsed() >= LOG_PERIOD {
            log.since = Instant::now();
            log.logged = 0;
        }
        if log.logged == LOGGED_ERRORS {
            log.suppressed += 1;
            return;
        }
        log.logged += 1;
        let suppressed = std::mem::take(&mut log.suppressed);
        drop(state);
        let (operation, offset, len) = request.describe();
        tracing::warn!(
            disk = %self.name, offset, len, %error, not_logged_before = suppressed,
            "a {operation} failed"
        );
    }
}
