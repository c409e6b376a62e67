//! The serial console of one side.

use belljar_machine::ConsoleOutput;
use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

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

    /// Whether `text` is among what was printed after the first `from` bytes.
    pub fn has_printed(&self, text: &str, from: usize) -> bool {
        let printed = self.lock();
        let new = printed.get(from..).unwrap_or_default();
        new.windows(text.len()).any(|part| part == text.as_bytes())
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

    fn pace(&self) {}
}
