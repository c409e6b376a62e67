//! The host bridge.

use super::{Class, Configuration, ConfigurationState, Function, Identity};
use crate::timers::lock;
use std::sync::Mutex;

/// The bridge from the processors to PCI: function 0 of bus 0, without which kernels do not believe
/// that there is PCI at all. It has the identity of the 82G33, a plain host bridge of PCI Express
/// times that kernels have no errata for, and no registers of its own.
#[derive(Debug)]
pub struct HostBridge {
    configuration: Mutex<Configuration>,
}

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x29c0,
    revision: 2,
    class: Class(6, 0, 0),
    subsystem: (0x1af4, 0x1100),
};

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl HostBridge {
    /// The bridge after power-on.
    pub fn new() -> Self {
        Self {
            configuration: Mutex::new(Configuration::new(&IDENTITY)),
        }
    }

    /// The bridge as it was saved.
    pub fn restore(state: &ConfigurationState) -> Self {
        Self {
            configuration: Mutex::new(Configuration::new(&IDENTITY).restored(state)),
        }
    }

    /// The whole state.
    pub fn save(&self) -> ConfigurationState {
        lock(&self.configuration).save()
    }
}

impl Function for HostBridge {
    fn read_configuration(&self, register: usize, data: &mut [u8]) {
        lock(&self.configuration).read(register, data);
    }

    fn write_configuration(&self, register: usize, data: &[u8]) {
        lock(&self.configuration).write(register, data);
    }

    fn configuration(&self) -> &Mutex<Configuration> {
        &self.configuration
    }

    fn set_interrupt_line(&self, _: u8) {}

    fn read_memory(&self, _: u8, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_memory(&self, _: u8, _: u64, _: &[u8]) {}

    fn reset(&self) {
        lock(&self.configuration).reset();
    }
}
