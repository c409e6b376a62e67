//! MSI: a message, or a few, whose address and data lie in configuration space. PCI 3.0, 6.8.1.
//!
//! As with [`Msix`](super::Msix), a vector that is masked, or of a function that is no bus master,
//! waits.

use super::configuration::{CAPABILITY_MSI, Configuration};
use super::msix::MessageSink;
use crate::timers::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Offsets in the capability: message control, address, data, and a bit for each vector that masks it
/// and that tells that it waits.
const CONTROL: usize = 2;
const ADDRESS: usize = 4;
const DATA: usize = 12;
const MASK: usize = 16;
const PENDING: usize = 20;
/// Bytes of the capability.
const LEN: usize = 24;
/// In message control: enable; the vectors that the function can have, and those that it was given, as
/// powers of two; addresses of 64 bits; masks.
const ENABLE: u16 = 1;
const CAPABLE_SHIFT: u16 = 1;
const GRANTED_SHIFT: u16 = 4;
const POWER: u16 = 7;
const WIDE: u16 = 1 << 7;
const MASKS: u16 = 1 << 8;
/// The most vectors, as a power of two.
const MOST: u8 = 5;

/// The state of [`Msi`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiState {
    enabled: bool,
    bus_master: bool,
    /// Vectors that the guest has granted, as a power of two.
    granted: u8,
    address: u64,
    data: u16,
    masked: u32,
    pending: u32,
}

impl MsiState {
    fn vectors(&self) -> u16 {
        1 << self.granted
    }
}

/// A function's messages, and those that wait.
#[derive(Debug)]
pub struct Msi {
    state: Mutex<MsiState>,
    sink: Arc<dyn MessageSink>,
    /// Vectors that the function can have, as a power of two.
    capable: u8,
}

impl Msi {
    /// Up to `vectors` messages (32 at most, rounded up to a power of two), disabled.
    pub fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Self {
        let power = vectors.max(1).next_power_of_two().trailing_zeros();
        Self {
            state: Mutex::default(),
            sink,
            capable: MOST.min(power as u8),
        }
    }

    /// The messages as they were saved.
    pub fn restore(vectors: u16, state: MsiState, sink: Arc<dyn MessageSink>) -> Self {
        let this = Self::new(vectors, sink);
        let granted = state.granted.min(this.capable);
        *lock(&this.state) = MsiState { granted, ..state };
        this
    }

    /// The whole state.
    pub fn save(&self) -> MsiState {
        lock(&self.state).clone()
    }

    /// Adds the capability to `space`. Gives its offset, for [`written`](Self::written) and
    /// [`show_pending`](Self::show_pending).
    pub fn add_capability(&self, space: &mut Configuration) -> usize {
        let control = u16::from(self.capable) << CAPABLE_SHIFT | WIDE | MASKS;
        let mut body = [0; LEN - 2];
        body[..2].copy_from_slice(&control.to_le_bytes());
        let mut writable = [0; LEN - 2];
        let mut allow = |at: usize, bits: &[u8]| {
            writable[at - 2..at - 2 + bits.len()].copy_from_slice(bits);
        };
        allow(CONTROL, &(ENABLE | POWER << GRANTED_SHIFT).to_le_bytes());
        allow(ADDRESS, &(!3_u64).to_le_bytes());
        allow(DATA, &[0xff; 2]);
        let masks = u32::MAX >> (32 - (1_u32 << self.capable));
        allow(MASK, &masks.to_le_bytes());
        space.add_capability(CAPABILITY_MSI, &body, &writable)
    }

    /// Takes over the capability at `at` of `space`, and whether the function is a bus master, after
    /// the guest wrote configuration space.
    pub fn written(&self, space: &Configuration, at: usize) {
        let control = space.word(at) >> 16;
        let high = u64::from(space.word(at + ADDRESS + 4));
        let granted = (control >> GRANTED_SHIFT) as u8 & POWER as u8;
        let mut state = lock(&self.state);
        state.enabled = control & u32::from(ENABLE) != 0;
        state.bus_master = space.bus_master();
        // More than it can have is not allowed.
        state.granted = granted.min(self.capable);
        state.address = high << 32 | u64::from(space.word(at + ADDRESS));
        state.data = space.word(at + DATA) as u16;
        state.masked = space.word(at + MASK);
        for vector in 0..state.vectors() {
            if state.pending & 1 << vector != 0 {
                state.pending &= !(1 << vector);
                self.send(&mut state, vector);
            }
        }
    }

    /// Shows in the capability at `at` of `space` which vectors wait.
    pub fn show_pending(&self, space: &mut Configuration, at: usize) {
        space.show(at + PENDING, &lock(&self.state).pending.to_le_bytes());
    }

    /// Sends one of the vectors that there are, or lets it wait.
    fn send(&self, state: &mut MsiState, vector: u16) {
        if state.enabled && state.bus_master && state.masked & 1 << vector == 0 {
            // The vector takes the place of the lowest bits.
            let data = state.data & !(state.vectors() - 1) | vector;
            self.sink.deliver_message(state.address, data.into());
        } else {
            state.pending |= 1 << vector;
        }
    }

    /// Whether the function is to use messages and not its line.
    pub fn enabled(&self) -> bool {
        lock(&self.state).enabled
    }

    /// The number of vectors that the guest has granted.
    pub fn vectors(&self) -> u16 {
        lock(&self.state).vectors()
    }

    /// Sends `vector`, or lets it wait while it may not be sent; a vector that was not granted is not
    /// sent. Tells whether messages are enabled: if not, nothing happens.
    pub fn signal(&self, vector: u16) -> bool {
        let mut state = lock(&self.state);
        if state.enabled && vector < state.vectors() {
            self.send(&mut state, vector);
        }
        state.enabled
    }

    /// Power-on reset.
    pub fn reset(&self) {
        *lock(&self.state) = MsiState::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::configuration::testing::{BUS_MASTER, COMMAND, plain};
    use crate::pci::line::testing::Arrivals;
    use proptest::prelude::*;

    struct Bench {
        msi: Msi,
        space: Configuration,
        at: usize,
        arrivals: Arc<Arrivals>,
    }

    fn bench(vectors: u16) -> Bench {
        let arrivals = Arrivals::new();
        let msi = Msi::new(vectors, Arc::<Arrivals>::clone(&arrivals));
        let mut space = plain();
        let at = msi.add_capability(&mut space);
        let mut bench = Bench {
            msi,
            space,
            at,
            arrivals,
        };
        bench.write(COMMAND, &[BUS_MASTER]);
        bench
    }

    impl Bench {
        fn write(&mut self, at: usize, data: &[u8]) {
            self.space.write(at, data);
            self.msi.written(&self.space, self.at);
        }

        /// Sets address and data, and enables 2^`granted` vectors.
        fn enable(&mut self, address: u64, data: u16, granted: u8) {
            self.write(self.at + ADDRESS, &address.to_le_bytes());
            self.write(self.at + DATA, &data.to_le_bytes());
            self.write(self.at + CONTROL, &[1 | granted << 4]);
        }

        fn pending(&mut self) -> u32 {
            self.msi.show_pending(&mut self.space, self.at);
            self.space.word(self.at + PENDING)
        }
    }

    #[test]
    fn the_capability_tells_what_there_is() {
        for (vectors, power) in [(1, 0), (2, 1), (3, 2), (33, 5)] {
            let bench = bench(vectors);
            assert_eq!(bench.space.byte(bench.at), 5);
            let control = bench.space.word(bench.at) >> 16;
            assert_eq!(control, 0x180 | power << 1, "{vectors}");
        }
    }

    #[test]
    fn a_message_is_sent_when_messages_are_enabled() {
        let mut bench = bench(1);
        assert!(!bench.msi.signal(0));
        bench.enable(0x1_fee0_1003, 0x31, 0);
        assert!(bench.msi.signal(0));
        assert!(bench.msi.signal(1));
        assert_eq!(bench.arrivals.take_messages(), [(0x1_fee0_1000, 0x31)]);
    }

    #[test]
    fn vectors_that_were_granted_differ_in_the_lowest_bits() {
        let mut bench = bench(4);
        bench.enable(0xfee0_0000, 0x43, 1);
        for vector in 0..4 {
            assert!(bench.msi.signal(vector));
        }
        let messages = [(0xfee0_0000, 0x42), (0xfee0_0000, 0x43)];
        assert_eq!(bench.arrivals.take_messages(), messages);
        bench.enable(0xfee0_0000, 0x43, 7);
        assert_eq!(bench.msi.vectors(), 4);
    }

    #[test]
    fn a_masked_vector_waits_and_is_sent_once() {
        let mut bench = bench(2);
        bench.enable(0xfee0_0000, 0x40, 1);
        bench.write(bench.at + MASK, &[2]);
        bench.msi.signal(1);
        bench.msi.signal(1);
        assert_eq!(
            (bench.pending(), bench.arrivals.take_messages()),
            (2, vec![])
        );
        bench.write(bench.at + MASK, &[0]);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x41)]);
        assert_eq!(bench.pending(), 0);
    }

    #[test]
    fn a_function_that_is_no_bus_master_holds_messages_back() {
        let mut bench = bench(1);
        bench.enable(0xfee0_0000, 0x40, 0);
        bench.write(COMMAND, &[0]);
        assert!(bench.msi.signal(0));
        assert_eq!(bench.arrivals.take_messages(), []);
        bench.write(COMMAND, &[BUS_MASTER]);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x40)]);
    }

    #[test]
    fn saved_messages_are_the_same_again() {
        let mut bench = bench(2);
        bench.enable(0xfee0_0000, 0x40, 1);
        bench.write(bench.at + MASK, &[1]);
        bench.msi.signal(0);
        let state = bench.msi.save();
        let again = Msi::restore(2, state.clone(), Arc::<Arrivals>::clone(&bench.arrivals));
        assert_eq!(again.save(), state);
        bench.space.write(bench.at + MASK, &[0]);
        again.written(&bench.space, bench.at);
        assert_eq!(bench.arrivals.take_messages(), [(0xfee0_0000, 0x40)]);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless_and_no_message_goes_elsewhere(
            capable in 0_u16..40,
            accesses in proptest::collection::vec((0_usize..30, any::<u64>(), any::<u16>()), 0..40)
        ) {
            let mut bench = bench(capable);
            for (offset, value, vector) in accesses {
                bench.write(bench.at + offset, &value.to_le_bytes());
                bench.msi.signal(vector);
                bench.pending();
                let low = bench.space.word(bench.at + ADDRESS);
                for (address, _) in bench.arrivals.take_messages() {
                    prop_assert_eq!(address as u32, low);
                }
            }
        }
    }
}
