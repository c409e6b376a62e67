//! Interrupt controllers, timers, serial and the other devices of the board.

#![forbid(unsafe_code)]

pub mod bus;
pub mod control;
pub mod interrupts;
pub mod ioapic;
pub mod irq;
pub mod lapic;
pub mod layout;
pub mod message;
pub mod pic;
pub mod timers;
