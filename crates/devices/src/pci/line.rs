//! INTx: level-triggered interrupt lines that functions share. PCI 3.0, 2.2.6.

use crate::timers::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Where PCI's lines end: the interrupt controllers. It is called with a line's lock held, and
/// never calls back.
pub trait LevelSink: Send + Sync + std::fmt::Debug {
    /// Says whether PCI's line at the global system interrupt `gsi` is asserted.
    fn set_pci_line(&self, gsi: u8, asserted: bool);
}

/// A line that is asserted while any function asserts it.
#[derive(Debug)]
pub struct SharedLine {
    gsi: u8,
    asserting: Mutex<u32>,
    sink: Arc<dyn LevelSink>,
}

impl SharedLine {
    /// The line of global system interrupt `gsi`, asserted by nobody.
    pub fn new(gsi: u8, sink: Arc<dyn LevelSink>) -> Arc<Self> {
        Arc::new(Self {
            gsi,
            asserting: Mutex::new(0),
            sink,
        })
    }

    /// The global system interrupt.
    pub fn gsi(&self) -> u8 {
        self.gsi
    }

    fn change(&self, assert: bool) {
        let mut asserting = lock(&self.asserting);
        let before = *asserting;
        *asserting = if assert {
            before.saturating_add(1)
        } else {
            before.saturating_sub(1)
        };
        if (before == 0) != (*asserting == 0) {
            self.sink.set_pci_line(self.gsi, assert);
        }
    }
}

/// One function's connection to a line.
#[derive(Debug)]
pub struct LineInput {
    line: Arc<SharedLine>,
    asserted: AtomicBool,
}

impl LineInput {
    /// A connection that does not assert `line`.
    pub fn new(line: Arc<SharedLine>) -> Self {
        Self {
            line,
            asserted: AtomicBool::new(false),
        }
    }

    /// Asserts the line or stops asserting it.
    pub fn set(&self, asserted: bool) {
        if self.asserted.swap(asserted, Ordering::SeqCst) != asserted {
            self.line.change(asserted);
        }
    }
}

impl Drop for LineInput {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::LevelSink;
    use crate::pci::MessageSink;
    use std::sync::{Arc, Mutex};

    /// Remembers what arrives at the interrupt controllers.
    #[derive(Debug, Default)]
    pub struct Arrivals {
        pub lines: Mutex<Vec<(u8, bool)>>,
        pub messages: Mutex<Vec<(u64, u32)>>,
    }

    impl Arrivals {
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        pub fn take_lines(&self) -> Vec<(u8, bool)> {
            std::mem::take(&mut *self.lines.lock().unwrap())
        }

        pub fn take_messages(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut *self.messages.lock().unwrap())
        }
    }

    impl LevelSink for Arrivals {
        fn set_pci_line(&self, gsi: u8, asserted: bool) {
            self.lines.lock().unwrap().push((gsi, asserted));
        }
    }

    impl MessageSink for Arrivals {
        fn deliver_message(&self, address: u64, data: u32) {
            self.messages.lock().unwrap().push((address, data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Arrivals;
    use super::*;

    #[test]
    fn a_line_is_asserted_while_any_function_asserts_it() {
        let arrivals = Arrivals::new();
        let line = SharedLine::new(17, Arc::<Arrivals>::clone(&arrivals));
        let (a, b) = (LineInput::new(Arc::clone(&line)), LineInput::new(line));
        a.set(true);
        b.set(true);
        a.set(false);
        a.set(false);
        assert_eq!(arrivals.take_lines(), [(17, true)]);
        drop(b);
        assert_eq!(arrivals.take_lines(), [(17, false)]);
    }
}
