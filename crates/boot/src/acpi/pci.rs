//! PCI in the tables: the MCFG, and the root with its resources and interrupts. PCI Firmware 3.3,
//! chapter 4; ACPI 6.5, 6.2.

use super::{bytes_of, table};
use crate::{Pci, layout};
use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, Device, EISAName, IO, Memory32Fixed, Method, Name,
    PackageBuilder, ResourceTemplate, Return, ZERO,
};
use acpi_tables::sdt::Sdt;

/// The low word of a device's address in `_PRT`: any function.
const ANY_FUNCTION: u32 = 0xffff;
/// Parameters of `_OSC`: identity, revision, count, capabilities.
const OSC_PARAMETERS: u8 = 4;
/// The parameter that holds the capabilities, which is also the answer.
const OSC_CAPABILITIES: Arg = Arg(3);

/// The MCFG: where the configuration space of bus 0 lies in memory.
pub(super) fn configuration_table(pci: &Pci) -> Sdt {
    let mut body = vec![0; 8];
    body.extend(u64::from(pci.ecam).to_le_bytes());
    // Segment 0, from bus 0 to bus 0.
    body.extend([0; 8]);
    table(*b"MCFG", 1, &body)
}

/// The devices of the namespace: PCI's root, and what claims the memory of configuration space.
pub(super) fn root(pci: &Pci) -> Vec<u8> {
    let mut devices = host_bridge(pci);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let ecam = Memory32Fixed::new(true, pci.ecam, layout::ECAM_LEN);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam]));
    devices.extend(bytes_of(&Device::new(
        "MCFG".into(),
        vec![&hid, &resources],
    )));
    devices
}

/// The root: bus 0, all ports but those of the configuration mechanism, and the memory window. It
/// grants the system the control of whatever of PCI Express it asks for.
fn host_bridge(pci: &Pci) -> Vec<u8> {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let compatible = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let (segment, bus) = (
        Name::new("_SEG".into(), &ZERO),
        Name::new("_BBN".into(), &ZERO),
    );
    let buses = AddressSpace::new_bus_number(0_u16, 0);
    let configuration = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::new_io(0_u16, 0xcf7, None);
    let ports_above = AddressSpace::new_io(0xd00_u16, 0xffff, None);
    let (first, last) = (pci.memory, pci.memory + (pci.memory_len - 1));
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(cacheable, true, first, last, None);
    let resources = ResourceTemplate::new(vec![
        &buses,
        &configuration,
        &ports_below,
        &ports_above,
        &memory,
    ]);
    let resources = Name::new("_CRS".into(), &resources);
    let routing = Name::new("_PRT".into(), &routing(pci));
    let grant = Return::new(&OSC_CAPABILITIES);
    let control = Method::new("_OSC".into(), OSC_PARAMETERS, false, vec![&grant]);
    let children: Vec<&dyn Aml> = vec![
        &hid,
        &compatible,
        &segment,
        &bus,
        &resources,
        &routing,
        &control,
    ];
    bytes_of(&Device::new("PCI0".into(), children))
}

/// `_PRT`: pin INTA# of each slot and its global system interrupt.
fn routing(pci: &Pci) -> PackageBuilder {
    let mut routing = PackageBuilder::new();
    for (slot, gsi) in (0_u32..).zip(&pci.interrupts) {
        let mut entry = PackageBuilder::new();
        entry.add_element(&(slot << 16 | ANY_FUNCTION));
        entry.add_element(&ZERO);
        entry.add_element(&ZERO);
        entry.add_element(gsi);
        routing.add_element(&entry);
    }
    routing
}
