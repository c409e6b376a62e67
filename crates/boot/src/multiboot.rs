//! Multiboot 1, as its specification 0.6.96 has it: ELF kernels, and flat ones whose header gives
//! the addresses.

use crate::elf::Elf;
use crate::entry::{Mode, Start};
use crate::fields::{Fields, put};
use crate::placement::{check_place, end_of_low_ram, write_cmdline, write_module_low};
use crate::{BootError, Firmware, Payload, Region, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::Gpr;

/// The header lies in so many bytes at the file's start.
const SEARCH: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Header flags: modules in whole pages (all are), and memory information (always given).
const FLAG_PAGE_ALIGN: u32 = 1 << 0;
const FLAG_MEMORY_INFO: u32 = 1 << 1;
/// Header flags: the header has the addresses.
const FLAG_ADDRESSES: u32 = 1 << 16;
/// Header flags in these bits are requirements: a loader that does not know one must not boot the
/// kernel.
const REQUIREMENTS: u32 = 0xffff;

const INFO_SIZE: usize = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMORY_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const MODULE_SIZE: usize = 16;
const LOADER_NAME: &[u8] = b"belljar\0";

/// Where the tables lie: the module, its string and the loader's name, then the memory map.
const MODULE: u64 = layout::INFO_TABLES;
const NAME: u64 = MODULE + MODULE_SIZE as u64;
const EMPTY_STRING: u64 = NAME + LOADER_NAME.len() as u64 - 1;
const MAP: u64 = layout::INFO_TABLES + 0x40;

/// The multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Its offset in the file.
    offset: u64,
    flags: u32,
    /// Where a file that is not ELF goes.
    pub(crate) addresses: Option<Addresses>,
}

/// The header's address fields: physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Addresses {
    header: u32,
    load: u32,
    /// End of what is in the file; 0 for the whole file.
    load_end: u32,
    /// End of what is to be zeroed; 0 for nothing.
    bss_end: u32,
    entry: u32,
}

/// Looks for the header: a magic number at a multiple of 4, with flags and a checksum that make the
/// sum zero.
pub(crate) fn find_header(file: &[u8]) -> Option<Header> {
    let fields = Fields::new(&file[..file.len().min(SEARCH)], "multiboot image");
    (0..SEARCH as u64).step_by(4).find_map(|offset| {
        let word = |index: u64| fields.u32(offset + index * 4).ok();
        let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
        let sum = magic.wrapping_add(flags).wrapping_add(checksum);
        if magic != HEADER_MAGIC || sum != 0 {
            return None;
        }
        let addresses = if flags & FLAG_ADDRESSES != 0 {
            Some(Addresses {
                header: word(3)?,
                load: word(4)?,
                load_end: word(5)?,
                bss_end: word(6)?,
                entry: word(7)?,
            })
        } else {
            None
        };
        Some(Header {
            offset,
            flags,
            addresses,
        })
    })
}

/// Loads the ELF kernel of `payload`.
pub(crate) fn load_elf(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
    header: &Header,
    elf: &Elf<'_>,
) -> Result<Start, BootError> {
    let end = elf.load(memory)?;
    let entry = elf.physical_entry();
    elf.check_entry(memory, entry)?;
    start(memory, payload, firmware, header, entry, end)
}

/// Loads the kernel of `payload` by the addresses of its header.
pub(crate) fn load_flat(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
    header: &Header,
) -> Result<Start, BootError> {
    let file = Fields::new(payload.kernel, "multiboot image");
    let Some(addresses) = header.addresses else {
        return Err(file.bad("flag of the address fields", header.flags.into()));
    };
    let load = u64::from(addresses.load);
    // The header lies `header - load` bytes into what is loaded, and `offset` bytes into the file.
    let skipped = u64::from(addresses.header)
        .checked_sub(load)
        .and_then(|distance| header.offset.checked_sub(distance))
        .ok_or_else(|| file.bad("load address", load))?;
    let file_len = payload.kernel.len() as u64 - skipped;
    let len = match u64::from(addresses.load_end) {
        0 => file_len,
        end => end
            .checked_sub(load)
            .ok_or_else(|| file.bad("load end address", end))?,
    };
    let bytes = file.slice(skipped, len)?;
    let end = u64::from(addresses.bss_end).max(load + len);
    check_place(memory, "the multiboot kernel", load, end - load)?;
    let entry = u64::from(addresses.entry);
    if !(load..end).contains(&entry) {
        return Err(file.bad("entry address", entry));
    }
    memory.write(GuestPhysAddr(load), bytes)?;
    memory.zero(GuestPhysAddr(load + len), end - load - len)?;
    start(memory, payload, firmware, header, entry, end)
}

/// Writes the boot information for a kernel that ends at `end` and gives the state at `entry`.
fn start(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
    header: &Header,
    entry: u64,
    end: u64,
) -> Result<Start, BootError> {
    let unknown = header.flags & REQUIREMENTS & !(FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO);
    if unknown != 0 {
        return Err(BootError::MultibootFeatures { flags: unknown });
    }
    let cmdline = [payload.name, payload.cmdline].join(" ");
    write_cmdline(memory, cmdline.trim_end(), usize::MAX)?;
    memory.write(GuestPhysAddr(NAME), LOADER_NAME)?;

    let mut info = [0; INFO_SIZE];
    let mut word =
        |offset: usize, value: u64| put(&mut info, offset, &(value as u32).to_le_bytes());
    let mut flags = INFO_MEMORY | INFO_CMDLINE | INFO_MEMORY_MAP | INFO_LOADER_NAME;
    word(4, layout::EBDA.start >> 10);
    word(
        8,
        end_of_low_ram(memory).saturating_sub(layout::HIGH_MEMORY) >> 10,
    );
    word(16, layout::CMDLINE);
    if let Some(module) = payload.initrd {
        let at = write_module_low(memory, module, end)?;
        let mut entry = [0; MODULE_SIZE];
        put(&mut entry, 0, &(at as u32).to_le_bytes());
        put(
            &mut entry,
            4,
            &((at + module.len() as u64) as u32).to_le_bytes(),
        );
        put(&mut entry, 8, &(EMPTY_STRING as u32).to_le_bytes());
        memory.write(GuestPhysAddr(MODULE), &entry)?;
        flags |= INFO_MODULES;
        word(20, 1);
        word(24, MODULE);
    }
    let map = memory_map(firmware);
    memory.write(GuestPhysAddr(MAP), &map)?;
    word(44, map.len() as u64);
    word(48, MAP);
    word(64, NAME);
    word(0, flags.into());
    memory.write(GuestPhysAddr(layout::INFO), &info)?;

    Ok(Start {
        mode: Mode::Protected,
        address: entry,
        registers: vec![(Gpr::Rax, LOADER_MAGIC), (Gpr::Rbx, layout::INFO)],
    })
}

/// The memory map: each entry with the size of the rest of it before.
fn memory_map(firmware: &Firmware) -> Vec<u8> {
    let mut map = Vec::new();
    for region in firmware.memory_map().regions() {
        map.extend((Region::BYTES as u32).to_le_bytes());
        map.extend(region.to_bytes());
    }
    map
}
