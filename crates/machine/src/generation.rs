//! The machine's generation: an identifier that is another one once the guest goes on as a copy of
//! what it was, so that it makes new random numbers.

use crate::MachineError;
use belljar_boot::Generation;
use belljar_clock::Entropy;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use std::sync::{Arc, Mutex, PoisonError};

/// The general-purpose event that tells the guest.
pub(crate) const EVENT: u8 = 0;

/// What the machine's generation is.
#[derive(Debug)]
pub(crate) struct CurrentGeneration {
    entropy: Arc<dyn Entropy>,
    id: Mutex<[u8; 16]>,
}

impl CurrentGeneration {
    /// The first generation.
    pub fn new(entropy: Arc<dyn Entropy>) -> Self {
        let mut id = [0; 16];
        entropy.fill(&mut id);
        let id = Mutex::new(id);
        Self { entropy, id }
    }

    /// What the firmware's tables say of it.
    pub fn for_tables(&self) -> Generation {
        let id = *self.id.lock().unwrap_or_else(PoisonError::into_inner);
        Generation { id, event: EVENT }
    }

    /// Puts the identifier of a new generation where the guest finds it. It is to be told.
    pub fn renew(&self, memory: &GuestMemory) -> Result<(), MachineError> {
        let mut id = self.id.lock().unwrap_or_else(PoisonError::into_inner);
        self.entropy.fill(&mut *id);
        let at = GuestPhysAddr(Generation::ADDRESS);
        memory.write(at, &*id).map_err(MachineError::Memory)
    }
}
