//! What a card holds: a queue of requests and the threads that serve them.

use crate::limit::Buckets;
use crate::{Limits, Storage};
use belljar_memory::Segments;
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

/// What is called once when a request is done, on a thread of the disk.
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
    state: Mutex<State>,
    /// There is something to do, or to wait for differently.
    work: Condvar,
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
    buckets: Buckets,
    /// How many requests are being served.
    in_flight: usize,
    /// How many callers wait for everything to be done.
    draining: usize,
    /// Threads that wait for something to do.
    idle: usize,
    threads: Vec<JoinHandle<()>>,
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
    /// A disk called `name` in the log.
    ///
    /// # Errors
    /// When the host gives no thread.
    pub fn new(name: String, storage: Box<dyn Storage>, limits: Limits) -> io::Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            name,
            storage,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                limited: VecDeque::new(),
                buckets: Buckets::new(limits),
                in_flight: 0,
                draining: 0,
                idle: 0,
                threads: Vec::new(),
                ended: false,
                log: ErrorLog {
                    since: now,
                    logged: 0,
                    suppressed: 0,
                },
                broken: false,
            }),
            work: Condvar::new(),
            finished: Condvar::new(),
            start: now,
            limited: limits != Limits::default(),
        });
        let thread = shared.spawn()?;
        shared.lock().threads.push(thread);
        Ok(Self { shared })
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

    /// Has `request` served by a thread of the disk, which then calls `done`. Never blocks. What
    /// makes no sense (a range beyond the end, a write to a read-only disk) reaches `done` as an
    /// error.
    pub fn submit(&self, request: Request, done: Done) {
        let shared = &self.shared;
        let mut state = shared.lock();
        if shared.limited && !matches!(request, Request::Flush) {
            state.limited.push_back((request, done));
        } else {
            state.ready.push_back((request, done));
        }
        let waiting = state.ready.len() + state.limited.len();
        if waiting > state.idle && state.threads.len() < MOST_THREADS {
            // Without another thread those that there are serve everything.
            if let Ok(thread) = shared.spawn() {
                state.threads.push(thread);
            }
        }
        drop(state);
        shared.work.notify_one();
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
        let me = thread::current().id();
        for thread in threads {
            // The last handle may go away in a `done`; that thread ends by itself.
            if thread.thread().id() != me {
                // A thread that panicked has said so on standard error.
                let _ = thread.join();
            }
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
        self.ready.is_empty() && self.limited.is_empty() && self.in_flight == 0
    }

    /// What to serve next, or how many nanoseconds to wait (`None`: until there is something).
    fn next(&mut self, now: u64) -> Result<(Request, Done), Option<u64>> {
        if let Some(job) = self.ready.pop_front() {
            return Ok(job);
        }
        if self.limited.is_empty() {
            return Err(None);
        }
        let nanos = self.buckets.wait(now);
        if nanos > 0 && self.draining == 0 && !self.ended {
            return Err(Some(nanos));
        }
        let job = self.limited.pop_front().ok_or(None)?;
        self.buckets.take(job.0.cost());
        Ok(job)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let shared = Arc::clone(self);
        thread::Builder::new()
            .name("disk".to_owned())
            .spawn(move || shared.run())
    }

    /// A thread of the disk.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            match state.next(self.start.elapsed().as_nanos() as u64) {
                Ok((request, done)) => {
                    state.in_flight += 1;
                    let broken = state.broken;
                    drop(state);
                    let result = self.serve(&request, broken);
                    // The segments keep guest memory alive; the card may count on them being gone.
                    drop(request);
                    let called = catch_unwind(AssertUnwindSafe(|| done(result)));
                    state = self.lock();
                    state.in_flight -= 1;
                    if called.is_err() {
                        tracing::error!(disk = %self.name, "the card's answer to a request panicked");
                    }
                    if state.is_empty() {
                        self.finished.notify_all();
                    }
                }
                Err(_) if state.ended => return,
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
