//! The MADT: processors and interrupt controllers. ACPI 6.5, 5.2.12.

use super::table;
use crate::Platform;
use acpi_tables::sdt::Sdt;

const REVISION: u8 = 5;
/// Flags: there are two 8259s besides.
const PCAT_COMPAT: u32 = 1;
/// Flags of a processor: it can be used.
const ENABLED: u32 = 1;
/// The local APIC entry has 8 bits for the identifier, and 255 means all; the rest take the x2APIC
/// entry.
const FIRST_X2APIC: u32 = 255;
/// Interrupt flags: active high, level-triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// Interrupt flags: as the bus says, which is active high and edge-triggered for ISA.
const CONFORMS: u16 = 0;
const ISA: u8 = 0;

/// The table for `platform`.
pub(super) fn build(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    body.extend(platform.local_apic.to_le_bytes());
    body.extend(PCAT_COMPAT.to_le_bytes());
    for id in 0..platform.cpus {
        body.extend(processor(id));
    }
    let io_apic = &platform.io_apic;
    body.extend([1, 12, io_apic.id, 0]);
    body.extend(io_apic.address.to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    body.extend(source_override(0, io_apic.timer_pin, CONFORMS));
    let sci = platform.power.sci;
    body.extend(source_override(sci, sci, ACTIVE_HIGH_LEVEL));
    // All processors take NMIs at LINT1.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    if platform.cpus > FIRST_X2APIC {
        body.extend([10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    table(*b"APIC", REVISION, &body)
}

/// A processor whose identifiers for ACPI and the APIC are both `id`.
fn processor(id: u32) -> Vec<u8> {
    let mut entry = Vec::new();
    if id < FIRST_X2APIC {
        entry.extend([0, 8, id as u8, id as u8]);
        entry.extend(ENABLED.to_le_bytes());
    } else {
        entry.extend([9, 16, 0, 0]);
        for field in [id, ENABLED, id] {
            entry.extend(field.to_le_bytes());
        }
    }
    entry
}

/// The ISA interrupt `irq` arrives at another pin, or in another way, than the bus says.
fn source_override(irq: u8, pin: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, ISA, irq, pin, 0, 0, 0, low, high]
}
