//! Interrupt lines: what devices hold of the interrupt controllers.

use std::sync::Arc;

/// Where interrupt lines end: the interrupt controllers.
///
/// It is called with the device's lock held, and takes its own locks; it never calls back into a
/// device.
pub trait IrqSink: Send + Sync + std::fmt::Debug {
    /// Sets the level of ISA interrupt line `irq`. Setting the level that the line has changes
    /// nothing.
    fn set_irq(&self, irq: u8, level: bool);
}

/// One interrupt line, seen from the device that drives it.
#[derive(Clone, Debug)]
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    irq: u8,
}

impl IrqLine {
    /// ISA interrupt line `irq` of `sink`.
    pub fn new(sink: Arc<dyn IrqSink>, irq: u8) -> Self {
        Self { sink, irq }
    }

    /// Sets the line's level.
    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.irq, level);
    }

    /// Makes a rising edge and leaves the line high: an 8259A wants an edge's line to stay high
    /// until the processor has acknowledged it.
    pub fn pulse(&self) {
        self.set(false);
        self.set(true);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{IrqLine, IrqSink};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    /// A sink for one line that shows its level and counts its rising edges.
    #[derive(Debug, Default)]
    pub struct Probe {
        level: AtomicBool,
        edges: AtomicU32,
    }

    impl Probe {
        pub fn line() -> (Arc<Self>, IrqLine) {
            let probe = Arc::new(Self::default());
            (Arc::clone(&probe), IrqLine::new(probe, 0))
        }

        pub fn level(&self) -> bool {
            self.level.load(Ordering::SeqCst)
        }

        pub fn edges(&self) -> u32 {
            self.edges.load(Ordering::SeqCst)
        }
    }

    impl IrqSink for Probe {
        fn set_irq(&self, _: u8, level: bool) {
            if level && !self.level.swap(level, Ordering::SeqCst) {
                self.edges.fetch_add(1, Ordering::SeqCst);
            }
            self.level.store(level, Ordering::SeqCst);
        }
    }
}
