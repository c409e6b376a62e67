//! PCI's configuration space by mechanism 1. PCI 3.0, 3.2.2.3.

use super::PciRoot;
use crate::acpi_pm::{ResetControl, ResetControlState};
use crate::bus::Device;
use crate::control::MachineControl;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Offsets of the registers from port CF8h.
const ADDRESS: u64 = 0;
const RESET: u64 = 1;
const DATA: u64 = 4;

/// Bit of the address register: the data window shows configuration space.
const ENABLE: u32 = 1 << 31;
/// Bits of the address register that hold: enable, bus, device, function and register.
const ADDRESS_BITS: u32 = 0x80ff_fffc;

/// The state of [`ConfigurationPorts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationPortsState {
    address: u32,
    reset_control: ResetControlState,
}

/// Ports CF8h to CFFh: PCI's address register and data window, with the chipset's reset control
/// register in the middle of the former, told apart by the width of the access.
#[derive(Debug)]
pub struct ConfigurationPorts {
    address: u32,
    reset_control: ResetControl,
    root: Arc<PciRoot>,
}

impl ConfigurationPorts {
    /// The ports to `root` after reset. `machine` is reset by the register at CF9h.
    pub fn new(root: Arc<PciRoot>, machine: Arc<dyn MachineControl>) -> Self {
        Self {
            root,
            address: 0,
            reset_control: ResetControl::new(machine),
        }
    }

    /// The ports as they were saved. `machine` is reset by the register at CF9h.
    pub fn restore(
        state: ConfigurationPortsState,
        root: Arc<PciRoot>,
        machine: Arc<dyn MachineControl>,
    ) -> Self {
        Self {
            root,
            address: state.address & ADDRESS_BITS,
            reset_control: ResetControl::restore(state.reset_control, machine),
        }
    }

    /// The whole state.
    pub fn save(&self) -> ConfigurationPortsState {
        ConfigurationPortsState {
            address: self.address,
            reset_control: self.reset_control.save(),
        }
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        self.address = 0;
        self.reset_control.reset();
    }

    /// What the address register and an offset in the data window select: function and register.
    /// `None` while the window is closed.
    fn selected(&self, offset: u64) -> Option<(usize, usize)> {
        let function = (self.address >> 8 & 0xffff) as usize;
        let register = (self.address & 0xfc) as usize + (offset - DATA) as usize;
        (self.address & ENABLE != 0).then_some((function, register))
    }
}

impl Device for ConfigurationPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (ADDRESS, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET, 1) => self.reset_control.read(0, data),
            (DATA.., _) => match self.selected(offset) {
                Some((function, register)) => {
                    self.root.read_configuration(function, register, data);
                }
                None => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (ADDRESS, &[a, b, c, d]) => {
                self.address = u32::from_le_bytes([a, b, c, d]) & ADDRESS_BITS;
            }
            (RESET, [_]) => self.reset_control.write(0, data),
            (DATA.., _) => {
                if let Some((function, register)) = self.selected(offset) {
                    self.root.write_configuration(function, register, data);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Function, HostBridge};
    use super::*;
    use crate::control::PowerEvent;
    use crate::control::testing::Requests;
    use proptest::prelude::*;

    fn ports() -> (ConfigurationPorts, Arc<Requests>) {
        let requests = Requests::new();
        let bridge: Arc<dyn Function> = Arc::new(HostBridge::new());
        let root = PciRoot::new([(0, bridge)]).unwrap();
        let ports = ConfigurationPorts::new(root, Arc::<Requests>::clone(&requests));
        (ports, requests)
    }

    fn configuration(ports: &mut ConfigurationPorts, address: u32) -> u32 {
        ports.write(ADDRESS, &address.to_le_bytes());
        let mut data = [0; 4];
        ports.read(DATA, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_host_bridge_is_function_0_of_bus_0() {
        let (mut ports, _) = ports();
        assert_eq!(configuration(&mut ports, ENABLE), 0x29c0_8086);
        assert_eq!(configuration(&mut ports, ENABLE | 8) >> 16, 0x0600);
        let mut class = [0; 2];
        ports.read(DATA + 2, &mut class);
        assert_eq!(class, [0x00, 0x06]);
    }

    #[test]
    fn where_no_function_is_all_ones_are_read() {
        let (mut ports, _) = ports();
        for address in [0, ENABLE | 1 << 8, ENABLE | 1 << 11, ENABLE | 1 << 16] {
            assert_eq!(configuration(&mut ports, address), u32::MAX, "{address:#x}");
        }
    }

    #[test]
    fn the_address_register_reads_back_only_whole() {
        let (mut ports, _) = ports();
        ports.write(ADDRESS, &0xffff_ffff_u32.to_le_bytes());
        let mut address = [0; 4];
        ports.read(ADDRESS, &mut address);
        assert_eq!(u32::from_le_bytes(address), ADDRESS_BITS);
        let mut byte = [0];
        ports.read(ADDRESS, &mut byte);
        assert_eq!(byte, [0xff]);
    }

    #[test]
    fn a_byte_at_cf9_resets_the_machine_and_a_word_does_not() {
        let (mut ports, requests) = ports();
        ports.write(ADDRESS, &[0, 6, 0, 0]);
        ports.write(RESET, &[6, 0]);
        assert_eq!(requests.take(), []);
        ports.write(RESET, &[6]);
        assert_eq!(requests.take(), [PowerEvent::Reset]);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(address: u32, offset in 0_u64..8, len in 1_usize..5) {
            let (mut ports, _) = ports();
            let len = len.min(8 - offset as usize);
            ports.write(ADDRESS, &address.to_le_bytes());
            let mut data = vec![0; len];
            ports.read(offset, &mut data);
            ports.write(offset, &data);
        }
    }
}
