//! What the fuzz targets share.

use belljar_boot::{Generation, IoApic, Pci, Platform, PowerManagement, ResetRegister, Rtc};
use belljar_devices::layout;
use belljar_devices::pci::SLOTS;

pub mod rings;

/// The fuzzer's bytes, taken from the front. At the end it gives zeros.
#[derive(Debug)]
pub struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    /// The whole input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next bytes, at most `most`.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(most.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }
}

/// A board with one processor, for the loaders.
pub fn platform() -> Platform {
    Platform {
        cpus: 1,
        physical_bits: belljar_x86::bits::PHYS_BITS as u8,
        local_apic: layout::LAPIC_BASE as u32,
        io_apic: IoApic {
            id: layout::IOAPIC_ID,
            address: layout::IOAPIC_BASE as u32,
            timer_pin: layout::isa_gsi(layout::PIT_IRQ),
        },
        power: PowerManagement {
            sci: layout::SCI_IRQ,
            pm1a_event: layout::PM1A_EVENT,
            pm1a_control: layout::PM1A_CONTROL,
            timer: layout::PM_TIMER,
            general_events: layout::GPE0,
            timer_is_32_bit: true,
            power_button: true,
            power_off: layout::SLEEP_TYPE_OFF,
        },
        reset: ResetRegister {
            port: layout::RESET_PORT,
            value: layout::RESET_VALUE,
        },
        serial: Vec::new(),
        rtc: Rtc {
            port: layout::RTC.base as u16,
            irq: layout::RTC_IRQ,
            century: layout::RTC_CENTURY,
        },
        keyboard_controller: true,
        pci: Pci {
            ecam: layout::PCI_ECAM.base as u32,
            memory: layout::PCI_MEMORY.base as u32,
            memory_len: layout::PCI_MEMORY.ranges[0].1 as u32,
            interrupts: (0..SLOTS)
                .map(|slot| layout::pci_gsi(slot).into())
                .collect(),
        },
        generation: Some(Generation {
            id: [1; 16],
            event: 0,
        }),
    }
}
