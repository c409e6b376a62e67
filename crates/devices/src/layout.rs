//! Where everything lies on the board: the ports, addresses and interrupt lines of a standard PC.
//!
//! Firmware tables (ACPI) are made from these constants, so that what the guest is told is what the
//! board has.

/// A device's place on a bus: register offsets count from `base`, and it answers in `ranges` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// What offset 0 of the device's registers is.
    pub base: u64,
    /// First address and length in bytes of each range that it answers in, none below `base`.
    pub ranges: &'static [(u64, u64)],
}

/// The 8259A pair with its edge/level control registers.
pub const PIC: Place = Place {
    base: 0x20,
    ranges: &[(0x20, 2), (0xa0, 2), (0x4d0, 2)],
};
/// The 8254 timer, and port 61h which gates and shows it.
pub const PIT: Place = Place {
    base: 0x40,
    ranges: &[(0x40, 4), (0x61, 1)],
};
/// The keyboard controller, with port 92h which shares its outputs.
pub const I8042: Place = Place {
    base: 0x60,
    ranges: &[(0x60, 1), (0x64, 1), (0x92, 1)],
};
/// The real-time clock with its CMOS RAM.
pub const RTC: Place = Place {
    base: 0x70,
    ranges: &[(0x70, 2)],
};
/// The port where firmware shows its progress.
pub const POST: Place = Place {
    base: 0x80,
    ranges: &[(0x80, 1)],
};
/// The test device that ends the machine; only there if the user asked for it.
pub const DEBUG_EXIT: Place = Place {
    base: 0xf4,
    ranges: &[(0xf4, 4)],
};
/// PCI's configuration mechanism 1: the address register and the data window, among which lies the
/// chipset's reset control register.
pub const PCI_CONFIGURATION: Place = Place {
    base: 0xcf8,
    ranges: &[(0xcf8, 8)],
};
/// ACPI's fixed hardware: event, control, timer and general-purpose event blocks.
pub const ACPI_PM: Place = Place {
    base: PM_BASE as u64,
    ranges: &[
        (PM1A_EVENT as u64, PM1A_EVENT_LEN as u64),
        (PM1A_CONTROL as u64, PM1A_CONTROL_LEN as u64),
        (PM_TIMER as u64, PM_TIMER_LEN as u64),
        (GPE0 as u64, GPE0_LEN as u64),
    ],
};
/// The I/O APIC's page.
pub const IOAPIC: Place = Place {
    base: IOAPIC_BASE,
    ranges: &[(IOAPIC_BASE, 0x1000)],
};

/// PCI's configuration space in memory: bus 0, 4 KiB for each function.
pub const PCI_ECAM: Place = Place {
    base: 0xe000_0000,
    ranges: &[(0xe000_0000, 0x10_0000)],
};
/// The memory in which PCI's functions answer: from the end of low RAM on.
pub const PCI_MEMORY: Place = Place {
    base: 0xc000_0000,
    ranges: &[(0xc000_0000, 0x2000_0000)],
};
/// First global system interrupt of PCI's lines, and their number.
pub const PCI_GSI_BASE: u8 = 16;
/// Number of PCI's lines.
pub const PCI_LINES: u8 = 8;

/// The global system interrupt of pin INTA# of the device in `slot`: devices take the lines in
/// turn.
pub const fn pci_gsi(slot: usize) -> u8 {
    PCI_GSI_BASE + (slot % PCI_LINES as usize) as u8
}

/// Ports of the serial ports COM1 to COM4.
pub const SERIAL: [Place; 4] = [
    Place {
        base: 0x3f8,
        ranges: &[(0x3f8, 8)],
    },
    Place {
        base: 0x2f8,
        ranges: &[(0x2f8, 8)],
    },
    Place {
        base: 0x3e8,
        ranges: &[(0x3e8, 8)],
    },
    Place {
        base: 0x2e8,
        ranges: &[(0x2e8, 8)],
    },
];
/// ISA interrupts of COM1 to COM4.
pub const SERIAL_IRQ: [u8; 4] = [4, 3, 4, 3];

/// ISA interrupt of the PIT's counter 0.
pub const PIT_IRQ: u8 = 0;
/// ISA interrupt of the keyboard.
pub const KEYBOARD_IRQ: u8 = 1;
/// ISA interrupt of the mouse.
pub const MOUSE_IRQ: u8 = 12;
/// ISA interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// ISA interrupt of ACPI's events (SCI): level triggered. The board's lines are active high, so an
/// interrupt source override must say "level, active high".
pub const SCI_IRQ: u8 = 9;

/// The global system interrupt (I/O APIC input) of an ISA interrupt: the same, but for IRQ 0 which
/// is wired to input 2.
pub const fn isa_gsi(irq: u8) -> u8 {
    if irq == 0 { 2 } else { irq }
}

/// Physical address of the I/O APIC.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// The I/O APIC's ID at reset, and in the MADT.
pub const IOAPIC_ID: u8 = 0;
/// First global system interrupt of the I/O APIC.
pub const IOAPIC_GSI_BASE: u32 = 0;
/// Physical address of each local APIC at reset.
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// First port of ACPI's fixed hardware.
pub const PM_BASE: u16 = 0x600;
/// PM1a event block: status, then enable.
pub const PM1A_EVENT: u16 = PM_BASE;
/// Length of the PM1a event block in bytes.
pub const PM1A_EVENT_LEN: u8 = 4;
/// PM1a control block.
pub const PM1A_CONTROL: u16 = PM_BASE + 4;
/// Length of the PM1a control block in bytes.
pub const PM1A_CONTROL_LEN: u8 = 2;
/// Power-management timer: 32 bits wide (FADT flag TMR_VAL_EXT).
pub const PM_TIMER: u16 = PM_BASE + 8;
/// Length of the timer block in bytes.
pub const PM_TIMER_LEN: u8 = 4;
/// General-purpose event block 0: 16 status bits, then 16 enable bits.
pub const GPE0: u16 = PM_BASE + 0x20;
/// Length of general-purpose event block 0 in bytes.
pub const GPE0_LEN: u8 = 4;
/// SLP_TYP of the sleeping state S5 (off): the value of the `\_S5` package.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// The chipset's reset control register.
pub const RESET_PORT: u16 = 0xcf9;
/// What written to [`RESET_PORT`] resets the machine (the FADT's RESET_VALUE).
pub const RESET_VALUE: u8 = 0x06;
/// CMOS index of the century (the FADT's CENTURY).
pub const RTC_CENTURY: u8 = 0x32;
