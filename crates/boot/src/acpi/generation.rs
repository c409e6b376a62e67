//! The device that tells the machine's generation. Microsoft, "Virtual Machine Generation ID".

use super::bytes_of;
use crate::Generation;
use acpi_tables::aml::{Device, Method, Name, Notify, Package, Path, Scope};

/// What names the device, for whoever looks for it: with `_CID` and with `_DDN`.
const KIND: &str = "VM_Gen_Counter";
/// The device's own identifier, which the specification leaves to the maker.
const OWN_ID: &str = "BLJR0001";
/// The value of the notification: the identifier has changed.
const CHANGED: u8 = 0x80;

/// The device, for `\\_SB`. Its `ADDR` is the address of the identifier: the low and the high half.
pub(super) fn device() -> Vec<u8> {
    let hid = Name::new("_HID".into(), &OWN_ID);
    let compatible = Name::new("_CID".into(), &KIND);
    let description = Name::new("_DDN".into(), &KIND);
    let (low, high) = (
        Generation::ADDRESS as u32,
        (Generation::ADDRESS >> 32) as u32,
    );
    let address = Name::new("ADDR".into(), &Package::new(vec![&low, &high]));
    let children: Vec<&dyn acpi_tables::Aml> = vec![&hid, &compatible, &description, &address];
    bytes_of(&Device::new("VGEN".into(), children))
}

/// What the general-purpose event of `generation` does: it notifies the device. The event is of the
/// kind whose status is cleared before (`_Exx`).
pub(super) fn event(generation: &Generation) -> Vec<u8> {
    let device = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&device, &CHANGED);
    let name = format!("_E{:02X}", generation.event & 15);
    let method = Method::new(name.as_str().into(), 0, false, vec![&notify]);
    bytes_of(&Scope::new("\\_GPE".into(), vec![&method]))
}
