//! What a PC's firmware leaves in memory for the kernel.

use crate::{BootError, Generation, MemoryMap, Platform, acpi, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr};

/// Length of a page of device registers in bytes.
const DEVICE_PAGE: u64 = 0x1000;

/// The firmware that was installed: what a loader passes on to the kernel.
#[derive(Clone, Debug)]
pub struct Firmware {
    map: MemoryMap,
    rsdp: GuestPhysAddr,
    physical_bits: u8,
}

impl Firmware {
    /// Writes the BIOS data area, the ACPI tables and the generation of `platform` to `memory` and
    /// makes the memory map.
    ///
    /// # Errors
    /// [`BootError::AcpiTooLarge`] if `platform` has more processors than the tables' place has
    /// room for; [`BootError::Memory`] if `memory` has no RAM where these structures belong.
    pub fn install(memory: &GuestMemory, platform: &Platform) -> Result<Self, BootError> {
        write_bios_data(memory, platform)?;
        let rsdp = acpi::install(memory, platform)?;
        if let Some(generation) = &platform.generation {
            memory.write(GuestPhysAddr(Generation::ADDRESS), &generation.id)?;
        }
        let registers = |address: u32| u64::from(address)..u64::from(address) + DEVICE_PAGE;
        let ecam = u64::from(platform.pci.ecam);
        let map = MemoryMap::new(
            memory,
            &[
                layout::EBDA,
                layout::ROM,
                registers(platform.io_apic.address),
                registers(platform.local_apic),
                ecam..ecam + u64::from(layout::ECAM_LEN),
            ],
        );
        Ok(Self {
            map,
            rsdp,
            physical_bits: platform.physical_bits,
        })
    }

    /// The memory map.
    pub fn memory_map(&self) -> &MemoryMap {
        &self.map
    }

    /// Where the ACPI root pointer lies.
    pub fn rsdp(&self) -> GuestPhysAddr {
        self.rsdp
    }

    /// Width of the processors' physical addresses in bits.
    pub fn physical_bits(&self) -> u8 {
        self.physical_bits
    }
}

/// Writes the fields of the BIOS data area that kernels read: the ports of the serial lines, the
/// segment of the EBDA and the KiB of conventional memory; and the EBDA's own size in KiB.
fn write_bios_data(memory: &GuestMemory, platform: &Platform) -> Result<(), BootError> {
    let mut area = [0; 0x15];
    for (field, serial) in area.chunks_exact_mut(2).zip(platform.serial.iter().take(4)) {
        field.copy_from_slice(&serial.port.to_le_bytes());
    }
    area[0x0e..0x10].copy_from_slice(&((layout::EBDA.start >> 4) as u16).to_le_bytes());
    area[0x13..0x15].copy_from_slice(&((layout::EBDA.start >> 10) as u16).to_le_bytes());
    memory.write(GuestPhysAddr(layout::BIOS_DATA), &area)?;
    let ebda_kib = ((layout::EBDA.end - layout::EBDA.start) >> 10) as u8;
    memory.write(GuestPhysAddr(layout::EBDA.start), &[ebda_kib])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RegionKind;

    #[test]
    fn the_bios_data_area_tells_serial_port_ebda_and_memory() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        Firmware::install(&memory, &Platform::example(1)).unwrap();
        assert_eq!(memory.load_u16(GuestPhysAddr(0x400)), Some(0x3f8));
        assert_eq!(memory.load_u16(GuestPhysAddr(0x40e)), Some(0x9fc0));
        assert_eq!(memory.load_u8(GuestPhysAddr(0x413)), Some(0x7f));
        assert_eq!(memory.load_u8(GuestPhysAddr(0x414)), Some(0x02));
        assert_eq!(memory.load_u8(GuestPhysAddr(0x9_fc00)), Some(1));
    }

    #[test]
    fn the_generation_lies_where_nothing_else_does() {
        let memory = GuestMemory::new(1 << 20).unwrap();
        Firmware::install(&memory, &Platform::example(1)).unwrap();
        let mut page = [0; 0x1000];
        let start = GuestPhysAddr(Generation::ADDRESS).page();
        memory.read(start, &mut page).unwrap();
        let at = (Generation::ADDRESS - start.0) as usize;
        assert!(at.is_multiple_of(8));
        assert_eq!(page[at..at + 16], [0x5a; 16]);
        let others = page[..at].iter().chain(&page[at + 16..]);
        assert!(others.copied().all(|byte| byte == 0));
    }

    #[test]
    fn tables_and_device_registers_are_reserved() {
        let memory = GuestMemory::new(64 << 20).unwrap();
        let firmware = Firmware::install(&memory, &Platform::example(2)).unwrap();
        for address in [
            firmware.rsdp().0,
            0xfec0_0000,
            0xfee0_0fff,
            0x9_fc00,
            0xe00f_ffff,
            Generation::ADDRESS,
        ] {
            let region = firmware
                .memory_map()
                .regions()
                .iter()
                .find(|r| (r.start..r.start + r.len).contains(&address));
            assert_eq!(
                region.map(|r| r.kind),
                Some(RegionKind::Reserved),
                "{address:#x}"
            );
        }
    }
}
