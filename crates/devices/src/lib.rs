//! Interrupt controllers, timers, serial and the other devices of the board.

#![forbid(unsafe_code)]

pub mod acpi_pm;
pub mod bus;
pub mod control;
pub mod debug_exit;
pub mod i8042;
pub mod interrupts;
pub mod ioapic;
pub mod irq;
pub mod lapic;
pub mod layout;
pub mod message;
pub mod pic;
pub mod serial;
pub mod timers;
