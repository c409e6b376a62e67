//! PCI: the host bridge, configuration space and interrupts of functions. PCI 3.0; PCI Express
//! Base 4.0 for the enhanced configuration access mechanism (7.2.2).
//!
//! The board has one bus, 0, whose devices have one function each, or a few. [`PciRoot`] finds the function
//! at a configuration address, through the ports of mechanism 1 ([`ConfigurationPorts`]) or memory
//! ([`Ecam`]), and at an address of the memory window ([`MemoryWindow`]), where functions answer
//! as their base address registers say at that moment.
//!
//! A device's model implements [`Function`], and has for it a [`Configuration`] with its
//! capabilities, [`Msix`] for its messages and a [`LineInput`] for its INTx line. [`Msi`] is for kernels
//! that do not know MSI-X; virtio knows only the other two.
//!
//! # Locks
//!
//! In this order: the root's decoded ranges, a function's own, then those of the
//! [interrupt fabric](crate::interrupts). A function is called with the ranges locked for reading,
//! so it must not wait, and not call the root.

mod bridge;
mod configuration;
pub(crate) mod line;
mod msi;
mod msix;
mod ports;
mod root;

pub use bridge::HostBridge;
pub use configuration::{
    BarKind, CAPABILITY_EXPRESS, CAPABILITY_MSI, CAPABILITY_MSIX, CAPABILITY_VENDOR, Class,
    Configuration, ConfigurationState, Identity,
};
pub use line::{LevelSink, LineInput, SharedLine};
pub use msi::{Msi, MsiState};
pub use msix::{Entry, MessageSink, Msix, MsixState};
pub use ports::{ConfigurationPorts, ConfigurationPortsState};
pub use root::{Ecam, Location, MemoryWindow, PciRoot, RootError};

use crate::timers::lock;
use std::sync::Mutex;

/// Bytes of a function's configuration space.
pub const CONFIGURATION_SPACE: usize = 4096;
/// Devices of a bus.
pub const SLOTS: usize = 32;
/// Functions of a device, at most.
pub const FUNCTIONS: usize = 8;

/// A range of memory that a function answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The base address register that says so.
    pub bar: u8,
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// One function of PCI, as the root reaches it. It does its own locking. Accesses lie within the
/// configuration space or the range, and may be anything else: the guest makes them.
pub trait Function: Send + Sync + std::fmt::Debug {
    /// Reads configuration space from `register` on.
    fn read_configuration(&self, register: usize, data: &mut [u8]);

    /// Writes configuration space from `register` on.
    fn write_configuration(&self, register: usize, data: &[u8]);

    /// The configuration space itself.
    fn configuration(&self) -> &Mutex<Configuration>;

    /// Where the function answers at present.
    fn decoded(&self) -> Vec<Decoded> {
        lock(self.configuration()).decoded()
    }

    /// Its base address registers and the bytes that each decodes.
    fn bars(&self) -> Vec<(u8, u64)> {
        lock(self.configuration()).bars()
    }

    /// Does what firmware does: sets base address register `bar`, and lets the function answer.
    fn assign(&self, bar: u8, address: u64) {
        lock(self.configuration()).assign(bar, address);
    }

    /// Tells drivers which interrupt the function's line is (the register of that name).
    fn set_interrupt_line(&self, gsi: u8) {
        lock(self.configuration()).set_interrupt_line(gsi);
    }

    /// Reads `offset` of the range of `bar`.
    fn read_memory(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes `offset` of the range of `bar`.
    fn write_memory(&self, bar: u8, offset: u64, data: &[u8]);

    /// Power-on reset. No vCPU runs meanwhile; it may wait for what the device has begun.
    fn reset(&self);
}
