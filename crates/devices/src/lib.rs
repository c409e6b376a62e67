//! Interrupt controllers, timers, serial and the other devices of the board.
//!
//! Floor 3 of the house. A device is plain state plus a backend: it knows its registers, an
//! [`IrqLine`](irq::IrqLine), the machine's clock and little else, and nothing of engines or of the
//! other devices. What it holds is saved as a serialisable state (`save`), and restoring is
//! building (`restore`): no device is ever changed into another.
//!
//! - [`layout`] tells where everything lies on the board; firmware tables are made from it.
//! - [`bus`] finds the device at a port or an address: [`bus::Device`] is what a device implements.
//! - [`timers`] calls devices back when machine time has come: [`timers::Timed`].
//! - [`interrupts`] is the fabric between devices and vCPUs, made of [`pic`], [`ioapic`] and
//!   [`lapic`], which send each other what [`message`] defines.
//! - [`control`] is what devices ask of the machine: power-off, reset.
//! - [`pci`] is the bus of devices that are found by asking, and [`virtio`] and [`nvme`] are devices on it. What
//!   they exchange with drivers lies in [`buffers`]; [`disk`] is what disks of any kind stand on.
//! - [`serial`], [`pit`], [`rtc`], [`i8042`], [`acpi_pm`], [`debug_exit`] and [`paravirtual`] are
//!   the devices.
//!
//! Registers are the guest's: whatever it writes, nothing panics, waits or grows without bound.
//! Counters and clocks do not tick: they are computed from machine time when they are looked at,
//! and ask for a deadline only while an interrupt would come of it.

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod buffers;
pub mod bus;
pub mod control;
pub mod debug_exit;
pub mod disk;
pub mod i8042;
mod in_flight;
pub mod interrupts;
pub mod ioapic;
pub mod irq;
pub mod lapic;
pub mod layout;
pub mod message;
pub mod nvme;
pub mod paravirtual;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod serial;
pub mod timers;
pub mod virtio;
