//! The DSDT: processors, the devices of the ISA bus, and how to power off. ACPI 6.5, chapters 6, 7
//! and 19.

use super::{bytes_of, generation, pci, table};
use crate::{Platform, SerialPort};
use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

/// Integers have 64 bits from this revision on.
const REVISION: u8 = 2;
/// Interrupts of the keyboard controller's two ports.
const KEYBOARD_IRQ: u8 = 1;
const MOUSE_IRQ: u8 = 12;
/// Ports of the keyboard controller.
const KEYBOARD_DATA: u16 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
/// Registers of a 16550.
const SERIAL_PORTS: u8 = 8;
/// Index and data port of the clock.
const RTC_PORTS: u8 = 2;

/// The table for `platform`.
pub(super) fn build(platform: &Platform) -> Sdt {
    let mut body = Vec::new();
    let power_off = platform.power.power_off;
    let sleep = Package::new(vec![&power_off, &ZERO, &ZERO, &ZERO]);
    body.extend(bytes_of(&Name::new("_S5_".into(), &sleep)));

    let mut devices: Vec<u8> = (0..platform.cpus).flat_map(processor).collect();
    for (index, serial) in platform.serial.iter().enumerate() {
        devices.extend(serial_port(index, serial));
    }
    let rtc = &platform.rtc;
    devices.extend(isa_device(
        "RTC_",
        "PNP0B00",
        &[(rtc.port, RTC_PORTS)],
        rtc.irq,
    ));
    if platform.keyboard_controller {
        let ports = [(KEYBOARD_DATA, 1), (KEYBOARD_COMMAND, 1)];
        devices.extend(isa_device("KBD_", "PNP0303", &ports, KEYBOARD_IRQ));
        devices.extend(isa_device("MOU_", "PNP0F13", &[], MOUSE_IRQ));
    }
    devices.extend(pci::root(&platform.pci));
    if platform.generation.is_some() {
        devices.extend(generation::device());
    }
    body.extend(Scope::raw("_SB_".into(), devices));
    if let Some(it) = &platform.generation {
        body.extend(generation::event(it));
    }
    table(*b"DSDT", REVISION, &body)
}

/// A processor device; its `_UID` ties it to the entry of the MADT.
fn processor(id: u32) -> Vec<u8> {
    let name = format!("C{id:03X}");
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &id);
    bytes_of(&Device::new(name.as_str().into(), vec![&hid, &uid]))
}

fn serial_port(index: usize, serial: &SerialPort) -> Vec<u8> {
    let number = index as u8 + 1;
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &number);
    let resources = resources(&[(serial.port, SERIAL_PORTS)], serial.irq);
    let name = format!("COM{number:X}");
    bytes_of(&Device::new(
        name.as_str().into(),
        vec![&hid, &uid, &resources],
    ))
}

/// A device with `ports` (first and number) and an interrupt as on the ISA bus.
fn isa_device(name: &str, id: &str, ports: &[(u16, u8)], irq: u8) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new(id));
    let resources = resources(ports, irq);
    bytes_of(&Device::new(name.into(), vec![&hid, &resources]))
}

fn resources(ports: &[(u16, u8)], irq: u8) -> Name {
    let ports: Vec<IO> = ports
        .iter()
        .map(|&(port, count)| IO::new(port, port, 1, count))
        .collect();
    let interrupt = Interrupt::new(true, true, false, false, irq.into());
    let mut all: Vec<&dyn Aml> = ports.iter().map(|io| io as &dyn Aml).collect();
    all.push(&interrupt);
    Name::new("_CRS".into(), &ResourceTemplate::new(all))
}
