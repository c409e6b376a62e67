//! Interrupt controllers, timers, serial and the other devices of the board.
pub mod layout;
