//! A function's configuration space: the header of type 0, base address registers and the list of
//! capabilities. PCI 3.0, chapter 6.

use serde::{Deserialize, Serialize};

/// Bytes that PCI itself has; what PCI Express adds above is empty.
const SPACE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BARS: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// Where the first capability lies.
const FIRST_CAPABILITY: usize = 0x40;

const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
/// In the command register's high byte: INTx is off.
const COMMAND_INTX_DISABLE: u8 = 1 << 2;
/// Memory, bus master, parity and SERR# responses.
const COMMAND_WRITABLE: [u8; 2] = [0x46, 0x05];
/// In the header's type: the device has other functions.
const MULTIFUNCTION: u8 = 1 << 7;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// In the capability of PCI Express: the low byte of device status, and its bit that tells of
/// transactions that have not ended. PCI Express Base 4.0, 7.5.3.5.
const EXPRESS_STATUS: usize = 0x0a;
const TRANSACTIONS_PENDING: u8 = 1 << 5;

/// Capability of message-signalled interrupts in configuration space.
pub const CAPABILITY_MSI: u8 = 0x05;
/// Capability of message-signalled interrupts by table.
pub const CAPABILITY_MSIX: u8 = 0x11;
/// Capability whose format the vendor defines.
pub const CAPABILITY_VENDOR: u8 = 0x09;
/// Capability of PCI Express.
pub const CAPABILITY_EXPRESS: u8 = 0x10;

/// The class code: class, subclass, programming interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(pub u8, pub u8, pub u8);

/// Who a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Class code.
    pub class: Class,
    /// Subsystem's vendor and device ID.
    pub subsystem: (u16, u16),
}

/// What a base address register decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register too.
    Memory64,
}

#[derive(Clone, Copy, Debug)]
struct Bar {
    index: u8,
    kind: BarKind,
    size: u64,
}

/// What the guest has written: the whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationState {
    bytes: Vec<u8>,
}

/// A configuration space. It is built once; then the guest writes the bits that it may.
#[derive(Clone, Debug)]
pub struct Configuration {
    bytes: [u8; SPACE],
    /// The bits that the guest may write.
    writable: [u8; SPACE],
    /// What the bytes were when the function was made.
    initial: Option<Box<[u8; SPACE]>>,
    bars: Vec<Bar>,
    /// Where the next capability goes, and the byte that links to it.
    free: usize,
    link: usize,
    /// Where the capability of PCI Express lies.
    express: Option<usize>,
}

impl Configuration {
    /// The header of a function with neither ranges nor capabilities.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; SPACE],
            writable: [0; SPACE],
            initial: None,
            bars: Vec::new(),
            free: FIRST_CAPABILITY,
            link: CAPABILITIES,
            express: None,
        };
        space.set(0x00, &identity.vendor.to_le_bytes());
        space.set(0x02, &identity.device.to_le_bytes());
        let Class(class, subclass, interface) = identity.class;
        space.set(0x08, &[identity.revision, interface, subclass, class]);
        space.set(0x2c, &identity.subsystem.0.to_le_bytes());
        space.set(0x2e, &identity.subsystem.1.to_le_bytes());
        space.writable[COMMAND..COMMAND + 2].copy_from_slice(&COMMAND_WRITABLE);
        // The size of cache lines is for software alone.
        space.writable[0x0c] = 0xff;
        space.writable[INTERRUPT_LINE] = 0xff;
        space
    }

    /// Adds base address register `index` for `size` bytes, a power of two of at least 16.
    #[must_use]
    pub fn with_bar(mut self, index: u8, kind: BarKind, size: u64) -> Self {
        let at = BARS + 4 * usize::from(index);
        let mask = !(size - 1);
        self.bytes[at] = if kind == BarKind::Memory64 { 4 } else { 0 };
        self.writable[at..at + 4].copy_from_slice(&(mask as u32).to_le_bytes());
        if kind == BarKind::Memory64 {
            self.writable[at + 4..at + 8].copy_from_slice(&((mask >> 32) as u32).to_le_bytes());
        }
        self.bars.push(Bar { index, kind, size });
        self
    }

    /// Says that the function has an interrupt line at `pin` (1 is INTA#).
    #[must_use]
    pub fn with_interrupt_pin(mut self, pin: u8) -> Self {
        self.bytes[INTERRUPT_PIN] = pin;
        self
    }

    /// Adds a capability whose bytes after the link are `body`; the guest may write the bits of
    /// `writable` (missing bytes are read only). Gives its offset.
    ///
    /// # Panics
    /// If the space is full, which is a mistake of the model.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.bytes[self.link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Adds the capability of PCI Express for a device on the root's own bus (a root complex
    /// integrated endpoint), which has no link. PCI Express Base 4.0, 7.5.3.
    pub fn add_express(&mut self) -> usize {
        const VERSION: u8 = 2;
        const ROOT_COMPLEX_INTEGRATED: u8 = 9;
        let mut body = [0; 0x3a];
        body[0] = VERSION | ROOT_COMPLEX_INTEGRATED << 4;
        // Device capabilities: role-based error reporting.
        body[3] = 0x80;
        let mut writable = [0; 0x3a];
        // Device control: error reporting, relaxed ordering, no snoop.
        writable[6..8].copy_from_slice(&[0x1f, 0x08]);
        let at = self.add_capability(CAPABILITY_EXPRESS, &body, &writable);
        self.express = Some(at);
        at
    }

    /// Sets bytes that the guest reads and cannot write.
    pub(super) fn show(&mut self, at: usize, bytes: &[u8]) {
        self.remember();
        self.set(at, bytes);
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The space of a function that was saved as `state`: `self`, which is as it was made, with the
    /// bits that the guest had written.
    #[must_use]
    pub fn restored(mut self, state: &ConfigurationState) -> Self {
        self.remember();
        for (at, (byte, saved)) in self.bytes.iter_mut().zip(&state.bytes).enumerate() {
            let writable = self.writable[at];
            *byte = *byte & !writable | *saved & writable;
        }
        self
    }

    /// What the guest has written.
    pub fn save(&self) -> ConfigurationState {
        ConfigurationState {
            bytes: self.bytes.to_vec(),
        }
    }

    fn remember(&mut self) {
        if self.initial.is_none() {
            self.initial = Some(Box::new(self.bytes));
        }
    }

    /// Puts everything as it was made.
    pub fn reset(&mut self) {
        if let Some(initial) = &self.initial {
            self.bytes = **initial;
        }
    }

    /// Reads from `register` on; beyond PCI's 256 bytes everything is zero.
    pub fn read(&self, register: usize, data: &mut [u8]) {
        for (at, byte) in (register..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// Writes the bits that may be written from `register` on.
    pub fn write(&mut self, register: usize, data: &[u8]) {
        self.remember();
        for (at, value) in (register..).zip(data) {
            if let Some(byte) = self.bytes.get_mut(at) {
                let writable = self.writable[at];
                *byte = *byte & !writable | value & writable;
            }
        }
    }

    /// A byte that the model itself looks at.
    pub fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    /// The little-endian word at `at`, which the model itself looks at.
    pub fn word(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Base address registers and their sizes.
    pub fn bars(&self) -> Vec<(u8, u64)> {
        self.bars.iter().map(|bar| (bar.index, bar.size)).collect()
    }

    /// The ranges that are decoded now: none unless the command register allows memory.
    pub fn decoded(&self) -> Vec<super::Decoded> {
        if self.bytes[COMMAND] & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let decoded = self.bars.iter().map(|bar| {
            let at = BARS + 4 * usize::from(bar.index);
            let high = match bar.kind {
                BarKind::Memory32 => 0,
                BarKind::Memory64 => self.word(at + 4),
            };
            super::Decoded {
                bar: bar.index,
                start: u64::from(high) << 32 | u64::from(self.word(at) & !0xf),
                len: bar.size,
            }
        });
        decoded.filter(|d| d.start != 0).collect()
    }

    /// Sets a base address register and lets the function decode memory.
    pub fn assign(&mut self, index: u8, address: u64) {
        self.remember();
        let Some(bar) = self.bars.iter().find(|bar| bar.index == index).copied() else {
            return;
        };
        let at = BARS + 4 * usize::from(index);
        let bytes = address.to_le_bytes();
        match bar.kind {
            BarKind::Memory32 => self.write(at, &bytes[..4]),
            BarKind::Memory64 => self.write(at, &bytes),
        }
        self.bytes[COMMAND] |= COMMAND_MEMORY;
    }

    /// Says that the device has other functions beside this one, which is its first.
    pub(super) fn set_multifunction(&mut self) {
        self.bytes[HEADER_TYPE] |= MULTIFUNCTION;
        if let Some(initial) = &mut self.initial {
            initial[HEADER_TYPE] |= MULTIFUNCTION;
        }
    }

    /// Sets the register that tells drivers their interrupt.
    pub fn set_interrupt_line(&mut self, gsi: u8) {
        self.remember();
        if self.bytes[INTERRUPT_PIN] != 0 {
            self.bytes[INTERRUPT_LINE] = gsi;
        }
    }

    /// Whether the function may read and write memory by itself, and so send messages. Without it,
    /// it begins nothing that would; what it had begun ends, and
    /// [shows](Self::set_transactions_pending) until then.
    pub fn bus_master(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0
    }

    /// Shows in PCI Express's device status whether a function that is no bus master any more still
    /// reads or writes memory for what it had begun.
    pub fn set_transactions_pending(&mut self, pending: bool) {
        if let Some(at) = self.express {
            let status = &mut self.bytes[at + EXPRESS_STATUS];
            *status &= !TRANSACTIONS_PENDING;
            if pending {
                *status |= TRANSACTIONS_PENDING;
            }
        }
    }

    /// Whether the function may use its INTx line.
    pub fn intx_allowed(&self) -> bool {
        self.bytes[COMMAND + 1] & COMMAND_INTX_DISABLE == 0
    }

    /// Shows in the status register whether the function wants an interrupt by its line.
    pub fn set_interrupt_status(&mut self, wanted: bool) {
        self.bytes[STATUS] &= !STATUS_INTERRUPT;
        if wanted {
            self.bytes[STATUS] |= STATUS_INTERRUPT;
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// The command register.
    pub const COMMAND: usize = 4;
    /// Its bit that makes a function a bus master.
    pub const BUS_MASTER: u8 = 1 << 2;

    /// The space of a function without ranges or capabilities.
    pub fn plain() -> Configuration {
        Configuration::new(&Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: Class(1, 8, 2),
            subsystem: (0, 0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Decoded;
    use proptest::prelude::*;

    fn example() -> Configuration {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1044,
            revision: 1,
            class: Class(0xff, 0, 0),
            subsystem: (0x1af4, 4),
        };
        let mut space = Configuration::new(&identity)
            .with_bar(0, BarKind::Memory64, 0x8000)
            .with_bar(2, BarKind::Memory32, 0x1000)
            .with_interrupt_pin(1);
        space.add_express();
        space.add_capability(CAPABILITY_VENDOR, &[4, 1, 2], &[0, 0xf0]);
        space
    }

    fn capabilities(space: &Configuration) -> Vec<(usize, u8)> {
        let mut at = usize::from(space.byte(CAPABILITIES));
        let mut found = Vec::new();
        while at != 0 {
            found.push((at, space.byte(at)));
            at = usize::from(space.byte(at + 1));
        }
        found
    }

    #[test]
    fn a_register_tells_its_size_when_ones_are_written() {
        let mut space = example();
        space.write(BARS, &[0xff; 12]);
        assert_eq!(space.word(BARS), 0xffff_8004);
        assert_eq!(space.word(BARS + 4), 0xffff_ffff);
        assert_eq!(space.word(BARS + 8), 0xffff_f000);
        assert_eq!(space.word(BARS + 12), 0);
    }

    #[test]
    fn ranges_are_decoded_where_and_while_the_guest_says() {
        let mut space = example();
        space.assign(0, 0x12_c000_0000);
        space.assign(2, 0xc000_9000);
        let at = |bar, start, len| Decoded { bar, start, len };
        let expected = [at(0, 0x12_c000_0000, 0x8000), at(2, 0xc000_9000, 0x1000)];
        assert_eq!(space.decoded(), expected);
        space.write(COMMAND, &[0]);
        assert_eq!(space.decoded(), []);
    }

    #[test]
    fn capabilities_are_linked_in_order() {
        let space = example();
        let ids: Vec<u8> = capabilities(&space).iter().map(|(_, id)| *id).collect();
        assert_eq!(ids, [CAPABILITY_EXPRESS, CAPABILITY_VENDOR]);
        assert_eq!(
            space.byte(STATUS) & STATUS_CAPABILITIES,
            STATUS_CAPABILITIES
        );
    }

    proptest! {
        #[test]
        fn only_writable_bits_change_and_a_reset_undoes_them(
            writes in proptest::collection::vec((0_usize..5000, proptest::collection::vec(any::<u8>(), 1..64)), 0..20)
        ) {
            let fresh = example();
            let mut space = example();
            for (at, data) in &writes {
                space.write(*at, data);
            }
            for at in 0..SPACE {
                let (was, is, mask) = (fresh.bytes[at], space.bytes[at], fresh.writable[at]);
                prop_assert_eq!(was & !mask, is & !mask, "{:#x}", at);
            }
            prop_assert_eq!(example().restored(&space.save()).bytes, space.bytes);
            space.reset();
            prop_assert_eq!(space.bytes, fresh.bytes);
        }
    }
}
