//! Ends cases that run without a budget and would never end.

use belljar_engine::{Attention, Reason};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

/// How often the watchdog looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it sees the same case before that counts as hung.
const MOST: u32 = 5;

/// Looks at one vCPU's cases as long as it lives.
#[derive(Debug)]
pub struct Watchdog {
    /// Cases begun and ended: odd while one runs.
    count: Arc<AtomicU64>,
    /// Its end ends the thread.
    _life: Sender<()>,
}

impl Watchdog {
    /// A watchdog that stops the vCPU of `attention`.
    ///
    /// # Errors
    /// If the host gives no thread.
    pub fn new(attention: &Arc<[Attention]>) -> std::io::Result<Self> {
        let (life, end) = channel();
        let count = Arc::new(AtomicU64::new(0));
        let (seen, attention) = (Arc::clone(&count), Arc::clone(attention));
        Builder::new().name("watchdog".into()).spawn(move || {
            let (mut last, mut times) = (0, 0);
            while end.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let now = seen.load(Ordering::Relaxed);
                times = if now == last { times + 1 } else { 0 };
                last = now;
                if now % 2 == 1 && times >= MOST {
                    attention[0].raise(Reason::STOP);
                }
            }
        })?;
        Ok(Self { count, _life: life })
    }

    /// A case begins.
    pub fn begin(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended.
    pub fn end(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}
