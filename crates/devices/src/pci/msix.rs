//! MSI-X: messages by table. PCI 3.0, 6.8.2.
//!
//! A message is a write to memory, so a function that is no bus master sends none (6.2.2). Its
//! vectors then wait as if they were masked.

use super::configuration::{CAPABILITY_MSIX, Configuration};
use crate::timers::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Bytes of an entry of the table.
const ENTRY: u64 = 16;
/// The bit of an entry's vector control that masks it.
const MASKED: u32 = 1;
/// In the high byte of message control: enable, function mask.
const ENABLE: u8 = 1 << 7;
const FUNCTION_MASK: u8 = 1 << 6;
/// Bits of a word of the pending array.
const WORD: usize = 64;

/// Where messages go: the interrupt controllers. It never calls back into a device.
pub trait MessageSink: Send + Sync + std::fmt::Debug {
    /// Delivers the write of `data` to `address`.
    fn deliver_message(&self, address: u64, data: u32);
}

/// An entry of the table: where to write what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

/// The state of [`Msix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    enabled: bool,
    masked: bool,
    bus_master: bool,
    entries: Vec<Entry>,
    pending: Vec<u64>,
}

impl MsixState {
    fn new(vectors: u16) -> Self {
        let entry = Entry {
            address: 0,
            data: 0,
            control: MASKED,
        };
        Self {
            enabled: false,
            masked: false,
            bus_master: false,
            entries: vec![entry; usize::from(vectors)],
            pending: vec![0; usize::from(vectors).div_ceil(WORD)],
        }
    }

    /// The entry to send if `vector` may be sent now.
    fn open(&self, vector: usize) -> Option<Entry> {
        let entry = self.entries.get(vector)?;
        let open = self.enabled && self.bus_master && !self.masked;
        (open && entry.control & MASKED == 0).then_some(*entry)
    }

    fn take_pending(&mut self, vector: usize) -> bool {
        let (word, bit) = (vector / WORD, 1 << (vector % WORD));
        let Some(word) = self.pending.get_mut(word) else {
            return false;
        };
        let was = *word & bit != 0;
        *word &= !bit;
        was
    }
}

/// A function's table of messages and the messages that wait because they are masked.
#[derive(Debug)]
pub struct Msix {
    state: Mutex<MsixState>,
    sink: Arc<dyn MessageSink>,
    vectors: u16,
}

impl Msix {
    /// A table of `vectors` masked entries (1 to 2048), disabled.
    pub fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Self {
        Self {
            state: Mutex::new(MsixState::new(vectors)),
            sink,
            vectors,
        }
    }

    /// The table as it was saved. A state of another number of vectors is taken as far as it goes.
    pub fn restore(vectors: u16, state: MsixState, sink: Arc<dyn MessageSink>) -> Self {
        let this = Self::new(vectors, sink);
        {
            let mut now = lock(&this.state);
            (now.enabled, now.masked) = (state.enabled, state.masked);
            now.bus_master = state.bus_master;
            for (to, from) in now.entries.iter_mut().zip(state.entries) {
                *to = from;
            }
            for (to, from) in now.pending.iter_mut().zip(state.pending) {
                *to = from;
            }
        }
        this
    }

    /// The whole state.
    pub fn save(&self) -> MsixState {
        lock(&self.state).clone()
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Adds the capability to `space`, with the table and the pending array at these offsets of the
    /// range of `bar`. Gives the capability's offset, for [`control_written`](Self::control_written).
    pub fn add_capability(
        &self,
        space: &mut Configuration,
        bar: u8,
        table: u32,
        pending: u32,
    ) -> usize {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        space.add_capability(CAPABILITY_MSIX, &body, &[0, ENABLE | FUNCTION_MASK])
    }

    /// Takes over the enable and mask bits, and whether the function is a bus master, after the guest
    /// wrote configuration space.
    pub fn control_written(&self, space: &Configuration, capability: usize) {
        let control = space.byte(capability + 3);
        let mut state = lock(&self.state);
        state.enabled = control & ENABLE != 0;
        state.masked = control & FUNCTION_MASK != 0;
        state.bus_master = space.bus_master();
        for vector in 0..usize::from(self.vectors) {
            self.flush(&mut state, vector);
        }
    }

    /// Sends `vector` if it waits and may be sent now.
    fn flush(&self, state: &mut MsixState, vector: usize) {
        if let Some(entry) = state.open(vector)
            && state.take_pending(vector)
        {
            self.sink.deliver_message(entry.address, entry.data);
        }
    }

    /// Whether the function is to use messages and not its line.
    pub fn enabled(&self) -> bool {
        lock(&self.state).enabled
    }

    /// Sends `vector`, or lets it wait while it may not be sent; a vector that does not exist is not
    /// sent. Tells whether messages are enabled: if not, nothing happens.
    ///
    /// The table is locked during the delivery, so that a vector is not sent after it was masked.
    pub fn signal(&self, vector: u16) -> bool {
        let mut state = lock(&self.state);
        if !state.enabled {
            return false;
        }
        let vector = usize::from(vector);
        if let Some(entry) = state.open(vector) {
            self.sink.deliver_message(entry.address, entry.data);
        } else if vector < state.entries.len() {
            state.pending[vector / WORD] |= 1 << (vector % WORD);
        }
        true
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let entry = state.entries.get((at / ENTRY) as usize);
            *byte = entry.map_or(0, |entry| entry.bytes()[(at % ENTRY) as usize]);
        }
    }

    /// Writes the table: aligned words of 32 or 64 bits; other accesses are not allowed (6.8.2) and
    /// have no effect.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let allowed = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let vector = (offset / ENTRY) as usize;
        let mut state = lock(&self.state);
        if !allowed {
            return;
        }
        let Some(entry) = state.entries.get_mut(vector) else {
            return;
        };
        let mut bytes = entry.bytes();
        let at = (offset % ENTRY) as usize;
        bytes[at..at + data.len()].copy_from_slice(data);
        *entry = Entry::from_bytes(bytes);
        self.flush(&mut state, vector);
    }

    /// Reads the pending array.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        for (at, byte) in (offset..).zip(data) {
            let word = state.pending.get((at / 8) as usize).copied().unwrap_or(0);
            *byte = word.to_le_bytes()[(at % 8) as usize];
        }
    }

    /// Power-on reset.
    pub fn reset(&self) {
        *lock(&self.state) = MsixState::new(self.vectors);
    }
}

impl Entry {
    fn bytes(self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }

    /// The lowest two bits of an address are zero, and a vector's control has one bit.
    fn from_bytes(bytes: [u8; ENTRY as usize]) -> Self {
        let bits = u128::from_le_bytes(bytes);
        Self {
            address: bits as u64 & !3,
            data: (bits >> 64) as u32,
            control: (bits >> 96) as u32 & MASKED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::configuration::testing::{BUS_MASTER, COMMAND, plain};
    use crate::pci::line::testing::Arrivals;
    use proptest::prelude::*;

    struct Bench {
        msix: Msix,
        space: Configuration,
        capability: usize,
        arrivals: Arc<Arrivals>,
    }

    fn bench() -> Bench {
        let arrivals = Arrivals::new();
        let msix = Msix::new(3, Arc::<Arrivals>::clone(&arrivals));
        let mut space = plain();
        let capability = msix.add_capability(&mut space, 0, 0x4000, 0x5000);
        space.write(COMMAND, &[BUS_MASTER]);
        Bench {
            msix,
            space,
            capability,
            arrivals,
        }
    }

    impl Bench {
        fn control(&mut self, value: u8) {
            self.space.write(self.capability + 3, &[value]);
            self.msix.control_written(&self.space, self.capability);
        }

        fn program(&self, vector: u64, address: u64, data: u32, mask: u32) {
            let at = vector * ENTRY;
            self.msix.write_table(at, &address.to_le_bytes());
            self.msix.write_table(at + 8, &data.to_le_bytes());
            self.msix.write_table(at + 12, &mask.to_le_bytes());
        }
    }

    #[test]
    fn a_vector_is_sent_when_messages_are_enabled() {
        let mut bench = bench();
        bench.program(1, 0xfee0_0000, 0x31, 0);
        assert!(!bench.msix.signal(1));
        bench.control(ENABLE);
        assert!(bench.msix.signal(1));
        assert!(bench.msix.signal(9));
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x31)]);
    }

    #[test]
    fn a_masked_vector_waits_and_is_sent_once() {
        let mut bench = bench();
        bench.control(ENABLE);
        bench.program(2, 0xfee0_1000, 0x41, MASKED);
        bench.msix.signal(2);
        bench.msix.signal(2);
        let mut pending = [0; 8];
        bench.msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 1 << 2);
        assert_eq!(bench.arrivals.take_messages(), []);
        bench.program(2, 0xfee0_1000, 0x41, 0);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_1000, 0x41)]);
        bench.msix.read_pending(0, &mut pending);
        assert_eq!(pending, [0; 8]);
    }

    #[test]
    fn the_function_mask_holds_all_vectors_back() {
        let mut bench = bench();
        bench.program(0, 0xfee0_0000, 0x51, 0);
        bench.control(ENABLE | FUNCTION_MASK);
        bench.msix.signal(0);
        assert_eq!(bench.arrivals.take_messages(), []);
        bench.control(ENABLE);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x51)]);
    }

    #[test]
    fn a_function_that_is_no_bus_master_holds_all_vectors_back() {
        let mut bench = bench();
        bench.program(0, 0xfee0_0000, 0x51, 0);
        bench.control(ENABLE);
        bench.space.write(COMMAND, &[0]);
        bench.control(ENABLE);
        assert!(bench.msix.signal(0));
        assert_eq!(bench.arrivals.take_messages(), []);
        bench.space.write(COMMAND, &[BUS_MASTER]);
        bench.control(ENABLE);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x51)]);
    }

    #[test]
    fn a_saved_table_is_the_same_again() {
        let mut bench = bench();
        bench.control(ENABLE);
        bench.program(0, 0xfee0_0000, 7, 0);
        bench.msix.signal(1);
        let state = bench.msix.save();
        let again = Msix::restore(3, state.clone(), bench.arrivals);
        assert_eq!(again.save(), state);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(
            accesses in proptest::collection::vec((any::<u64>(), 1_usize..64, any::<u16>()), 0..40)
        ) {
            let mut bench = bench();
            for (offset, len, vector) in accesses {
                let mut data = vec![offset as u8; len];
                // The transport gives offsets within the page only.
                let offset = offset % 0x1000;
                bench.msix.write_table(offset, &data);
                bench.msix.read_table(offset, &mut data);
                bench.msix.read_pending(offset, &mut data);
                bench.control(offset as u8);
                bench.msix.signal(vector);
            }
        }
    }
}
