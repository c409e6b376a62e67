//! How a device gets its driver's attention: MSI-X, or the interrupt status register and INTx.
//! Virtio 1.2, 4.1.4.5 and 4.1.5.

use crate::pci::{LineInput, Msix};
use crate::timers::lock;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

/// The vector that means none.
pub(super) const NO_VECTOR: u16 = 0xffff;
/// Bits of the interrupt status: a queue, the configuration.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIGURATION: u8 = 2;

/// The interrupt status register, and whether the line may be used.
#[derive(Debug)]
struct Line {
    status: u8,
    allowed: bool,
    input: LineInput,
}

/// The state of [`Signals`] besides the table of messages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SignalsState {
    pub(super) status: u8,
    pub(super) configuration_vector: u16,
    pub(super) queue_vectors: Vec<u16>,
    pub(super) generation: u8,
    pub(super) needs_reset: bool,
}

/// The interrupts of a virtio device. Sending one takes only the lock of the table of messages.
#[derive(Debug)]
pub struct Signals {
    pub(super) msix: Msix,
    line: Mutex<Line>,
    configuration_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    generation: AtomicU8,
    needs_reset: AtomicBool,
}

impl Signals {
    pub(super) fn new(msix: Msix, input: LineInput, queues: usize) -> Self {
        Self {
            msix,
            line: Mutex::new(Line {
                status: 0,
                allowed: true,
                input,
            }),
            configuration_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            generation: AtomicU8::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    pub(super) fn restore(self, state: &SignalsState) -> Self {
        lock(&self.line).status = state.status;
        self.configuration_vector
            .store(state.configuration_vector, Ordering::SeqCst);
        for (to, from) in self.queue_vectors.iter().zip(&state.queue_vectors) {
            to.store(*from, Ordering::SeqCst);
        }
        self.generation.store(state.generation, Ordering::SeqCst);
        self.needs_reset.store(state.needs_reset, Ordering::SeqCst);
        self
    }

    pub(super) fn save(&self) -> SignalsState {
        SignalsState {
            status: lock(&self.line).status,
            configuration_vector: self.configuration_vector.load(Ordering::SeqCst),
            queue_vectors: self
                .queue_vectors
                .iter()
                .map(|v| v.load(Ordering::SeqCst))
                .collect(),
            generation: self.generation.load(Ordering::SeqCst),
            needs_reset: self.needs_reset.load(Ordering::SeqCst),
        }
    }

    /// Tells the driver that queue `index` has something for it.
    pub(super) fn queue(&self, index: u16) {
        let vector = self.queue_vector(index);
        if !self.msix.signal(vector) {
            self.raise(ISR_QUEUE);
        }
    }

    /// Tells the driver that the device's part of the configuration has changed.
    pub fn configuration_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        let vector = self.configuration_vector.load(Ordering::SeqCst);
        if !self.msix.signal(vector) {
            self.raise(ISR_CONFIGURATION);
        }
    }

    /// Tells the driver that the device cannot go on without a reset.
    pub fn needs_reset(&self) {
        if !self.needs_reset.swap(true, Ordering::SeqCst) {
            self.configuration_changed();
        }
    }

    /// Whether the driver was asked for a reset.
    pub(super) fn wants_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::SeqCst)
    }

    fn raise(&self, bit: u8) {
        let mut line = lock(&self.line);
        line.status |= bit;
        line.update(self.msix.enabled());
    }

    /// Reads the interrupt status, which clears it and releases the line.
    pub(super) fn take_status(&self) -> u8 {
        let mut line = lock(&self.line);
        let status = std::mem::take(&mut line.status);
        line.update(self.msix.enabled());
        status
    }

    /// Takes over what configuration space says about the line. Tells whether an interrupt waits.
    pub(super) fn set_line_allowed(&self, allowed: bool) -> bool {
        let mut line = lock(&self.line);
        line.allowed = allowed;
        line.update(self.msix.enabled());
        line.status != 0
    }

    pub(super) fn configuration_vector(&self) -> u16 {
        self.configuration_vector.load(Ordering::SeqCst)
    }

    /// Sets the vector of configuration changes; one that does not exist means none.
    pub(super) fn set_configuration_vector(&self, vector: u16) {
        self.configuration_vector
            .store(self.existing(vector), Ordering::SeqCst);
    }

    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        self.queue_vectors
            .get(usize::from(index))
            .map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    /// Sets the vector of a queue; one that does not exist means none.
    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() {
            vector
        } else {
            NO_VECTOR
        }
    }

    /// As after a reset by the driver, which does not touch the table of messages.
    pub(super) fn reset(&self) {
        self.take_status();
        self.configuration_vector.store(NO_VECTOR, Ordering::SeqCst);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::SeqCst);
        }
        self.needs_reset.store(false, Ordering::SeqCst);
    }
}

impl Line {
    fn update(&mut self, messages: bool) {
        self.input
            .set(self.status != 0 && self.allowed && !messages);
    }
}
