//! What the firmware tables say about the board.
//!
//! The board's own numbers come from whoever wires it: this crate knows the tables' formats, not
//! the devices.

/// The board as its firmware tables describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Number of processors; their APIC identifiers count from 0.
    pub cpus: u32,
    /// Width of the processors' physical addresses in bits (CPUID leaf 0x80000008).
    pub physical_bits: u8,
    /// Guest-physical address of the local APICs' registers.
    pub local_apic: u32,
    /// The I/O APIC.
    pub io_apic: IoApic,
    /// The power-management registers.
    pub power: PowerManagement,
    /// The register that resets the machine.
    pub reset: ResetRegister,
    /// The serial ports, COM1 first.
    pub serial: Vec<SerialPort>,
    /// The real-time clock.
    pub rtc: Rtc,
    /// Whether there is a keyboard controller at ports 0x60 and 0x64 with interrupt 1.
    pub keyboard_controller: bool,
    /// PCI.
    pub pci: Pci,
    /// The machine's generation, if it has a device that tells it.
    pub generation: Option<Generation>,
}

/// The identifier of the machine's generation: another one means that the guest goes on as a copy of
/// what it was. Microsoft, "Virtual Machine Generation ID".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The identifier.
    pub id: [u8; 16],
    /// The general-purpose event, 0 to 15, that tells of a new one.
    pub event: u8,
}

impl Generation {
    /// Guest-physical address of the identifier, which is the same in every machine.
    pub const ADDRESS: u64 = crate::layout::GENERATION.start + GENERATION_OFFSET;
}

/// Where in its page the identifier lies: not where kernels look for the signature of a ROM.
const GENERATION_OFFSET: u64 = 0x28;

/// PCI: one bus, 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pci {
    /// Guest-physical address of the configuration space of bus 0 in memory, 1 MiB.
    pub ecam: u32,
    /// First guest-physical address of the memory in which functions answer.
    pub memory: u32,
    /// Length of that memory in bytes.
    pub memory_len: u32,
    /// The global system interrupt of pin INTA# of the device in each slot, level-triggered and
    /// active low.
    pub interrupts: Vec<u32>,
}

/// The I/O APIC, whose input pins are the global system interrupts from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its APIC identifier.
    pub id: u8,
    /// Guest-physical address of its registers.
    pub address: u32,
    /// The pin of the interval timer's interrupt 0.
    pub timer_pin: u8,
}

/// The ACPI fixed hardware. ACPI 6.5, 4.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerManagement {
    /// The system control interrupt: a pin of the I/O APIC, level-triggered and active high.
    pub sci: u8,
    /// First port of the PM1a event block: status and enable, 4 bytes.
    pub pm1a_event: u16,
    /// Port of the PM1a control register, 2 bytes.
    pub pm1a_control: u16,
    /// Port of the power-management timer, 4 bytes.
    pub timer: u16,
    /// First port of the general-purpose events 0 to 15: status and enable, 4 bytes.
    pub general_events: u16,
    /// Whether the timer counts in 32 bits and not in 24.
    pub timer_is_32_bit: bool,
    /// Whether there is a power button in the fixed registers.
    pub power_button: bool,
    /// What SLP_TYP holds to power off (S5).
    pub power_off: u8,
}

/// A write that resets the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetRegister {
    /// The 8-bit port.
    pub port: u16,
    /// The value.
    pub value: u8,
}

/// A 16550 serial port of 8 registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Its first port.
    pub port: u16,
    /// Its interrupt.
    pub irq: u8,
}

/// The real-time clock and its CMOS memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtc {
    /// The index port; the data port follows.
    pub port: u16,
    /// Its interrupt.
    pub irq: u8,
    /// Index of the byte that holds the century.
    pub century: u8,
}

#[cfg(test)]
impl Platform {
    /// A PC with `cpus` processors.
    pub(crate) fn example(cpus: u32) -> Self {
        Self {
            cpus,
            physical_bits: 40,
            local_apic: 0xfee0_0000,
            io_apic: IoApic {
                id: 0,
                address: 0xfec0_0000,
                timer_pin: 2,
            },
            power: PowerManagement {
                sci: 9,
                pm1a_event: 0x600,
                pm1a_control: 0x604,
                timer: 0x608,
                general_events: 0x620,
                timer_is_32_bit: true,
                power_button: true,
                power_off: 5,
            },
            reset: ResetRegister {
                port: 0xcf9,
                value: 6,
            },
            serial: vec![SerialPort {
                port: 0x3f8,
                irq: 4,
            }],
            rtc: Rtc {
                port: 0x70,
                irq: 8,
                century: 0x32,
            },
            keyboard_controller: true,
            pci: Pci {
                ecam: 0xe000_0000,
                memory: 0xc000_0000,
                memory_len: 0x2000_0000,
                interrupts: (0..32).map(|slot| 16 + slot % 8).collect(),
            },
            generation: Some(Generation {
                id: [0x5a; 16],
                event: 0,
            }),
        }
    }
}
