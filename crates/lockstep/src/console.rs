//! The serial console of one side.

use belljar_machine::ConsoleOutput;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Keeps what a guest printed, and shows it on standard output if asked to.
#[derive(Debug)]
pub struct Console {
    shown: bool,
    printed: Mutex<Vec<u8>>,
}

impl Console {
    /// A console; what is printed on a `shown` one appears on standard output.
    pub fn new(shown: bool) -> Self {
        Self {
            shown,
            printed: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.printed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes were printed.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether nothing was printed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where `text`, printed after the first `from` bytes, ends; `None` if it was not printed.
    pub fn find(&self, text: &str, from: usize) -> Option<usize> {
        let printed = self.lock();
        let new = printed.get(from..)?;
        let mut parts = new.windows(text.len().max(1));
        let at = parts.position(|part| part == text.as_bytes())?;
        Some(from + at + text.len())
    }

    /// All that was printed.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }
}

impl ConsoleOutput for Console {
    fn write(&self, bytes: &[u8]) {
        if self.shown {
            let mut out = std::io::stdout();
            // Nobody to tell that standard output is closed, and no reason to stop.
            let _ = out.write_all(bytes).and_then(|()| out.flush());
        }
        self.lock().extend_from_slice(bytes);
    }

    fn pace(&self, _: Option<Duration>) -> bool {
        true
    }
}
