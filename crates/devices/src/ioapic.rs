//! The I/O APIC: 24 inputs, each with an entry that tells which message it sends. Intel 82093AA
//! data sheet; version 20h, which has the EOI register.

use crate::layout;
use crate::message::{DeliveryMode, Message};
use serde::{Deserialize, Serialize};

/// Number of inputs.
pub const PINS: u8 = 24;
/// Inputs from this one on are PCI's, active low and pulled up.
const FIRST_PCI_PIN: u8 = 16;
/// Version 20h, and the number of the last entry.
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;

/// One input's redirection entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry(u64);

impl Entry {
    const POLARITY_LOW: u64 = 1 << 13;
    const REMOTE_IRR: u64 = 1 << 14;
    const LEVEL: u64 = 1 << 15;
    const MASKED: u64 = 1 << 16;
    /// Delivery status and remote IRR.
    const READ_ONLY: u64 = 1 << 12 | Self::REMOTE_IRR;
    const WRITABLE: u64 = 0xff00_0000_0001_afff;

    const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    fn message(self) -> Option<Message> {
        let logical = self.has(1 << 11);
        Some(Message {
            destination: Message::destination8((self.0 >> 56) as u8, logical),
            logical,
            mode: DeliveryMode::from_bits((self.0 >> 8) as u32)?,
            vector: self.0 as u8,
            level: self.has(Self::LEVEL),
        })
    }
}

/// The I/O APIC. It has no backend, so it is its own saved state. What it sends goes to the
/// function that each call gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    id: u8,
    select: u8,
    /// Electrical levels of the inputs.
    lines: u32,
    entries: [Entry; PINS as usize],
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// The I/O APIC after power-on: every input masked.
    pub fn new() -> Self {
        Self {
            id: layout::IOAPIC_ID,
            select: 0,
            lines: u32::MAX << FIRST_PCI_PIN,
            entries: [Entry(Entry::MASKED); PINS as usize],
        }
    }

    /// Resets the registers; the inputs' levels are their drivers'.
    pub fn reset(&mut self) {
        *self = Self {
            lines: self.lines,
            ..Self::new()
        };
    }

    /// Sets the electrical level of input `pin`.
    pub fn set_pin(&mut self, pin: u8, high: bool, send: &mut dyn FnMut(&Message)) {
        let Some(entry) = self.entries.get(usize::from(pin)).copied() else {
            return;
        };
        let bit = 1u32 << pin;
        if (self.lines & bit != 0) == high {
            return;
        }
        self.lines ^= bit;
        let active = high != entry.has(Entry::POLARITY_LOW);
        if !active {
            return;
        }
        if entry.has(Entry::LEVEL) {
            self.send_level(usize::from(pin), send);
        } else if !entry.has(Entry::MASKED)
            && let Some(message) = entry.message()
        {
            send(&message);
        }
    }

    /// Sends the interrupt of a level-triggered input if it is active and no earlier one is
    /// unfinished.
    fn send_level(&mut self, pin: usize, send: &mut dyn FnMut(&Message)) {
        let high = self.lines & 1 << pin != 0;
        let Some(entry) = self.entries.get_mut(pin) else {
            return;
        };
        let active = high != entry.has(Entry::POLARITY_LOW);
        if !active || !entry.has(Entry::LEVEL) || entry.has(Entry::MASKED | Entry::REMOTE_IRR) {
            return;
        }
        if let Some(message) = entry.message() {
            if matches!(
                message.mode,
                DeliveryMode::Fixed | DeliveryMode::LowestPriority
            ) {
                entry.0 |= Entry::REMOTE_IRR;
            }
            send(&message);
        }
    }

    /// A local APIC ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8, send: &mut dyn FnMut(&Message)) {
        for pin in 0..self.entries.len() {
            let entry = &mut self.entries[pin];
            if entry.0 as u8 == vector && entry.has(Entry::REMOTE_IRR) {
                entry.0 &= !Entry::REMOTE_IRR;
                self.send_level(pin, send);
            }
        }
    }

    /// Reads the page at `offset`.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset & !0xf {
            SELECT => u32::from(self.select),
            WINDOW => self.read_register(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        for (at, byte) in (offset & 0xf..).zip(data) {
            *byte = bytes.get(at as usize).copied().unwrap_or(0);
        }
    }

    fn read_register(&self) -> u32 {
        match self.select {
            0x00 | 0x02 => u32::from(self.id) << 24,
            0x01 => VERSION,
            select => self
                .entry_of(select)
                .map_or(0, |(pin, shift)| (self.entries[pin].0 >> shift) as u32),
        }
    }

    /// The entry and the half of it that register `select` is.
    fn entry_of(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < self.entries.len()).then_some((index / 2, (index as u32 & 1) * 32))
    }

    /// Writes the page at `offset`. Registers but the selector take whole words only.
    pub fn write(&mut self, offset: u64, data: &[u8], send: &mut dyn FnMut(&Message)) {
        if let (SELECT, Some(select)) = (offset, data.first()) {
            self.select = *select;
            return;
        }
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            WINDOW => self.write_register(value, send),
            EOI => self.end_of_interrupt(value as u8, send),
            _ => {}
        }
    }

    fn write_register(&mut self, value: u32, send: &mut dyn FnMut(&Message)) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return;
        }
        let Some((pin, shift)) = self.entry_of(self.select) else {
            return;
        };
        let entry = &mut self.entries[pin];
        let half = 0xffff_ffff << shift & Entry::WRITABLE;
        let new = entry.0 & !half | u64::from(value) << shift & half;
        debug_assert_eq!(new & Entry::READ_ONLY, entry.0 & Entry::READ_ONLY);
        *entry = Entry(new);
        if !entry.has(Entry::LEVEL) {
            // Kernels turn an entry to edge triggering for a moment to forget an unfinished
            // interrupt.
            entry.0 &= !Entry::REMOTE_IRR;
        }
        self.send_level(pin, send);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(ioapic: &mut IoApic, register: u8) {
        ioapic.write(SELECT, &[register], &mut |_| {});
    }

    fn set_entry(ioapic: &mut IoApic, pin: u8, entry: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        let mut send = |m: &Message| sent.push(*m);
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            ioapic.write(SELECT, &[0x10 + 2 * pin + half], &mut send);
            ioapic.write(WINDOW, &value.to_le_bytes(), &mut send);
        }
        sent
    }

    fn entry(ioapic: &mut IoApic, pin: u8) -> u64 {
        let mut halves = [0; 2];
        for (half, value) in halves.iter_mut().enumerate() {
            select(ioapic, 0x10 + 2 * pin + half as u8);
            let mut data = [0; 4];
            ioapic.read(WINDOW, &mut data);
            *value = u64::from(u32::from_le_bytes(data));
        }
        halves[0] | halves[1] << 32
    }

    fn pin(ioapic: &mut IoApic, pin: u8, high: bool) -> Vec<Message> {
        let mut sent = Vec::new();
        ioapic.set_pin(pin, high, &mut |m| sent.push(*m));
        sent
    }

    #[test]
    fn an_edge_sends_one_message_and_none_while_masked() {
        let mut ioapic = IoApic::new();
        assert!(pin(&mut ioapic, 4, true).is_empty());
        pin(&mut ioapic, 4, false);
        set_entry(&mut ioapic, 4, 0x0300_0000_0000_0041);
        let sent = pin(&mut ioapic, 4, true);
        assert_eq!(sent.len(), 1);
        assert_eq!((sent[0].vector, sent[0].destination), (0x41, 3));
        assert!(pin(&mut ioapic, 4, true).is_empty());
    }

    #[test]
    fn a_level_is_sent_again_only_after_its_end() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x8051);
        assert_eq!(pin(&mut ioapic, 9, true).len(), 1);
        assert_ne!(entry(&mut ioapic, 9) & Entry::REMOTE_IRR, 0);
        pin(&mut ioapic, 9, false);
        assert!(pin(&mut ioapic, 9, true).is_empty());
        let mut sent = 0;
        ioapic.write(EOI, &0x51u32.to_le_bytes(), &mut |_| sent += 1);
        assert_eq!(sent, 1);
        pin(&mut ioapic, 9, false);
        ioapic.end_of_interrupt(0x51, &mut |_| sent += 1);
        assert_eq!(sent, 1);
        assert_eq!(entry(&mut ioapic, 9) & Entry::REMOTE_IRR, 0);
    }

    #[test]
    fn unmasking_an_active_level_sends_it() {
        let mut ioapic = IoApic::new();
        set_entry(&mut ioapic, 9, 0x1_8051);
        assert!(pin(&mut ioapic, 9, true).is_empty());
        assert_eq!(set_entry(&mut ioapic, 9, 0x8051).len(), 1);
    }

    #[test]
    fn an_active_low_input_acts_when_low() {
        let mut ioapic = IoApic::new();
        assert!(set_entry(&mut ioapic, 17, 0xa061).is_empty(), "pulled up");
        assert_eq!(pin(&mut ioapic, 17, false).len(), 1);
    }

    #[test]
    fn the_version_tells_24_inputs() {
        let mut ioapic = IoApic::new();
        select(&mut ioapic, 1);
        let mut data = [0; 4];
        ioapic.read(WINDOW, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x0017_0020);
    }

    proptest! {
        #[test]
        fn random_use_never_panics_and_keeps_read_only_bits(
            steps in proptest::collection::vec((0u8..3, any::<u64>(), any::<u32>()), 0..200)
        ) {
            let mut ioapic = IoApic::new();
            for (what, offset, value) in steps {
                let len = offset as usize % 5;
                let at = [SELECT, WINDOW, EOI, offset][offset as usize % 4];
                match what {
                    0 => ioapic.write(at, &value.to_le_bytes()[..len], &mut |_| {}),
                    1 => ioapic.set_pin(value as u8, value & 256 != 0, &mut |_| {}),
                    _ => ioapic.read(offset & 0xfff, &mut [0; 8]),
                }
                for entry in ioapic.entries {
                    prop_assert!(!entry.has(Entry::REMOTE_IRR) || entry.has(Entry::LEVEL));
                    prop_assert!(!entry.has(1 << 12));
                }
            }
        }
    }
}
