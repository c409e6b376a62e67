//! PVH: Xen's direct boot of ELF kernels. Xen's docs/misc/pvh.pandoc and
//! public/arch-x86/hvm/start_info.h.

use crate::elf::Elf;
use crate::entry::{Mode, Start};
use crate::fields::put;
use crate::placement::{write_cmdline, write_initrd_high};
use crate::{BootError, Firmware, Payload, Region, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::Gpr;

const NOTE_OWNER: &[u8] = b"Xen\0";
/// XEN_ELFNOTE_PHYS32_ENTRY.
const NOTE_PHYS32_ENTRY: u32 = 18;

const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;
const START_SIZE: usize = 56;
const MODULE_SIZE: usize = 32;
/// An entry of the memory map: as in E820, and 4 reserved bytes.
const MAP_ENTRY_SIZE: usize = Region::BYTES + 4;

/// The entry point of the PVH note, if there is one.
pub(crate) fn entry_point(elf: &Elf<'_>) -> Result<Option<u64>, BootError> {
    let Some(note) = elf.note(NOTE_OWNER, NOTE_PHYS32_ENTRY)? else {
        return Ok(None);
    };
    // The note is as wide as the tools that wrote it; the address has 32 bits in any case.
    let mut address = [0; 8];
    let len = note.len();
    if len != 4 && len != 8 {
        return Err(BootError::BadField {
            what: "ELF kernel",
            field: "size of the PVH note",
            value: len as u64,
        });
    }
    address[..len].copy_from_slice(note);
    Ok(Some(u64::from_le_bytes(address)))
}

/// Loads the ELF kernel of `payload`, whose PVH entry is `address`.
pub(crate) fn load(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
    elf: &Elf<'_>,
    address: u64,
) -> Result<Start, BootError> {
    let end = elf.load(memory)?;
    elf.check_entry(memory, address)?;
    write_cmdline(memory, payload.cmdline, usize::MAX)?;

    let mut start = [0; START_SIZE];
    put(&mut start, 0, &START_MAGIC.to_le_bytes());
    put(&mut start, 4, &START_VERSION.to_le_bytes());
    put(&mut start, 24, &layout::CMDLINE.to_le_bytes());
    put(&mut start, 32, &firmware.rsdp().0.to_le_bytes());
    if let Some(initrd) = payload.initrd {
        let at = write_initrd_high(memory, initrd, end, u64::MAX)?;
        let mut module = [0; MODULE_SIZE];
        put(&mut module, 0, &at.to_le_bytes());
        put(&mut module, 8, &(initrd.len() as u64).to_le_bytes());
        memory.write(GuestPhysAddr(layout::INFO_TABLES), &module)?;
        put(&mut start, 12, &1_u32.to_le_bytes());
        put(&mut start, 16, &layout::INFO_TABLES.to_le_bytes());
    }
    let map = firmware.memory_map().regions();
    let map_at = layout::INFO_TABLES + MODULE_SIZE as u64;
    let mut entries = Vec::with_capacity(map.len() * MAP_ENTRY_SIZE);
    for region in map {
        entries.extend(region.to_bytes());
        entries.extend([0; 4]);
    }
    memory.write(GuestPhysAddr(map_at), &entries)?;
    put(&mut start, 40, &map_at.to_le_bytes());
    put(&mut start, 48, &(map.len() as u32).to_le_bytes());
    memory.write(GuestPhysAddr(layout::INFO), &start)?;

    Ok(Start {
        mode: Mode::Protected,
        address,
        registers: vec![(Gpr::Rbx, layout::INFO)],
    })
}
