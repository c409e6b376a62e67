//! Linux bzImages. Linux's Documentation/arch/x86/boot.rst is the protocol's text; offsets are
//! those of its tables.

use crate::entry::{Mode, Start, write_long_mode_tables};
use crate::fields::{Fields, put};
use crate::placement::{check_place, write_cmdline, write_initrd_high};
use crate::{BootError, Firmware, Payload, Protocol, Region, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::Gpr;

/// Offsets in the file, which are the same in `boot_params`.
mod offset {
    pub(super) const ACPI_RSDP_ADDR: usize = 0x070;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const SETUP_SECTS: u64 = 0x1f1;
    pub(super) const SYSSIZE: u64 = 0x1f4;
    pub(super) const BOOT_FLAG: u64 = 0x1fe;
    /// The distance of the jump at 0x200: the header ends where it goes.
    pub(super) const JUMP: u64 = 0x201;
    pub(super) const HEADER: u64 = 0x202;
    pub(super) const VERSION: u64 = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: u64 = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: u64 = 0x22c;
    pub(super) const XLOADFLAGS: u64 = 0x236;
    pub(super) const CMDLINE_SIZE: u64 = 0x238;
    pub(super) const PREF_ADDRESS: u64 = 0x258;
    pub(super) const INIT_SIZE: u64 = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

const BOOT_FLAG: u16 = 0xaa55;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// Bytes of a sector, in which the setup code is counted.
const SECTOR: u64 = 512;
/// Bytes of a paragraph, in which the protected-mode code is counted.
const PARAGRAPH: u64 = 16;
/// `setup_sects` of very old kernels that hold 0.
const DEFAULT_SETUP_SECTS: u8 = 4;
/// `loadflags`: the kernel is loaded above 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;
/// `xloadflags`: there is a 64-bit entry 0x200 bytes into the protected-mode code.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `xloadflags`: initrd and the like may lie anywhere.
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 1 << 1;
/// `type_of_loader`: a loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// Offset of the 64-bit entry.
const ENTRY_64: u64 = 0x200;
/// Bytes of `boot_params`: the zero page.
const BOOT_PARAMS_SIZE: usize = 4096;
/// Limits of protocols that do not tell them.
const DEFAULT_INITRD_ADDR_MAX: u32 = 0x37ff_ffff;
const DEFAULT_CMDLINE_SIZE: u32 = 255;

/// What the setup header says, with the defaults of its version of the protocol.
#[derive(Debug, PartialEq, Eq)]
struct SetupHeader {
    version: u16,
    /// Offset of the protected-mode code in the file.
    code_offset: u64,
    /// Its length in bytes.
    code_len: u64,
    /// Where the header ends in the file.
    header_end: u64,
    has_entry_64: bool,
    /// First address that an initrd must not reach.
    initrd_ceiling: u64,
    cmdline_max: u32,
    /// Where the kernel wants to lie, and the bytes that it takes there until it knows the memory
    /// map.
    address: u64,
    init_size: u64,
}

/// Whether `file` has the signatures of a Linux image.
pub(crate) fn recognizes(file: &[u8]) -> bool {
    let fields = Fields::new(file, "Linux image");
    fields.u16(offset::BOOT_FLAG).is_ok_and(|v| v == BOOT_FLAG)
        && fields.u32(offset::HEADER).is_ok_and(|v| v == MAGIC)
}

impl SetupHeader {
    fn parse(file: &Fields<'_>) -> Result<Self, BootError> {
        let version = file.u16(offset::VERSION)?;
        let loaded_high = file.u8(offset::LOADFLAGS)? & LOADED_HIGH != 0;
        if version < 0x202 || !loaded_high {
            return Err(BootError::OldLinux {
                version,
                place: if loaded_high { "high" } else { "low" },
            });
        }
        let sectors = match file.u8(offset::SETUP_SECTS)? {
            0 => DEFAULT_SETUP_SECTS,
            sectors => sectors,
        };
        let since = |first: u16| version >= first;
        let paragraphs = if since(0x204) {
            file.u32(offset::SYSSIZE)?
        } else {
            u32::from(file.u16(offset::SYSSIZE)?)
        };
        let xloadflags = if since(0x20c) {
            file.u16(offset::XLOADFLAGS)?
        } else {
            0
        };
        let initrd_addr_max = if xloadflags & XLF_CAN_BE_LOADED_ABOVE_4G != 0 {
            u32::MAX
        } else if since(0x203) {
            file.u32(offset::INITRD_ADDR_MAX)?
        } else {
            DEFAULT_INITRD_ADDR_MAX
        };
        let code_len = u64::from(paragraphs) * PARAGRAPH;
        let (address, init_size) = if since(0x20a) {
            let init_size = u64::from(file.u32(offset::INIT_SIZE)?);
            (file.u64(offset::PREF_ADDRESS)?, init_size.max(code_len))
        } else {
            (layout::HIGH_MEMORY, code_len)
        };
        Ok(Self {
            version,
            code_offset: (u64::from(sectors) + 1) * SECTOR,
            code_len,
            header_end: offset::HEADER + u64::from(file.u8(offset::JUMP)?),
            has_entry_64: xloadflags & XLF_KERNEL_64 != 0,
            initrd_ceiling: u64::from(initrd_addr_max) + 1,
            cmdline_max: if since(0x206) {
                file.u32(offset::CMDLINE_SIZE)?
            } else {
                DEFAULT_CMDLINE_SIZE
            },
            address,
            init_size,
        })
    }

    /// The protected-mode code. The file may hold more (a signature), and up to a paragraph less
    /// than the header rounds it to.
    fn code<'a>(&self, file: &Fields<'a>) -> Result<&'a [u8], BootError> {
        if self.code_len == 0 {
            return Err(file.bad("syssize", 0));
        }
        let least = self.code_len - (PARAGRAPH - 1);
        file.slice(self.code_offset, self.code_len)
            .or_else(|_| file.slice(self.code_offset, least))
    }
}

/// Loads the bzImage of `payload` where it prefers to lie. (A 64-bit kernel moves itself up to
/// there from any lower address, so nothing is won by another place.)
pub(crate) fn load(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
) -> Result<(Protocol, Start), BootError> {
    let file = Fields::new(payload.kernel, "Linux image");
    let header = SetupHeader::parse(&file)?;
    let code = header.code(&file)?;
    // The page tables at the entry map 4 GiB and the 32-bit entry sees no more. `check_place` finds
    // the end in the same piece of RAM.
    if !(layout::HIGH_MEMORY..layout::DEVICE_HOLE.start).contains(&header.address) {
        return Err(file.bad("pref_address", header.address));
    }
    check_place(memory, "the Linux kernel", header.address, header.init_size)?;
    memory.write(GuestPhysAddr(header.address), code)?;
    write_cmdline(memory, payload.cmdline, header.cmdline_max as usize)?;
    let mut params = boot_params(&file, &header, firmware)?;
    if let Some(initrd) = payload.initrd {
        let floor = header.address + header.init_size;
        let start = write_initrd_high(memory, initrd, floor, header.initrd_ceiling)?;
        put(
            &mut params,
            offset::RAMDISK_IMAGE,
            &(start as u32).to_le_bytes(),
        );
        put(
            &mut params,
            offset::RAMDISK_SIZE,
            &(initrd.len() as u32).to_le_bytes(),
        );
    }
    memory.write(GuestPhysAddr(layout::INFO), &params)?;

    let (protocol, mode, entry) = if header.has_entry_64 {
        write_long_mode_tables(memory)?;
        (Protocol::Linux64, Mode::Long, header.address + ENTRY_64)
    } else {
        (Protocol::Linux32, Mode::Protected, header.address)
    };
    let start = Start {
        mode,
        address: entry,
        registers: vec![(Gpr::Rsi, layout::INFO)],
    };
    Ok((protocol, start))
}

/// The zero page: the file's setup header and what the loader fills in. The screen stays unset, so
/// that Linux takes no video memory for a console.
fn boot_params(
    file: &Fields<'_>,
    header: &SetupHeader,
    firmware: &Firmware,
) -> Result<[u8; BOOT_PARAMS_SIZE], BootError> {
    let mut params = [0; BOOT_PARAMS_SIZE];
    let setup = file.slice(offset::SETUP_SECTS, header.header_end - offset::SETUP_SECTS)?;
    put(&mut params, offset::SETUP_SECTS as usize, setup);
    put(&mut params, offset::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(
        &mut params,
        offset::CODE32_START,
        &(header.address as u32).to_le_bytes(),
    );
    put(
        &mut params,
        offset::CMD_LINE_PTR,
        &(layout::CMDLINE as u32).to_le_bytes(),
    );
    put(&mut params, offset::RAMDISK_IMAGE, &[0; 8]);
    if header.version >= 0x20e {
        put(
            &mut params,
            offset::ACPI_RSDP_ADDR,
            &firmware.rsdp().0.to_le_bytes(),
        );
    }
    // The table has room for 128 entries; a firmware's map has three runs of RAM and four reserved
    // ranges.
    let map = firmware.memory_map().regions();
    put(&mut params, offset::E820_ENTRIES, &[map.len() as u8]);
    let table = params[offset::E820_TABLE..].chunks_exact_mut(Region::BYTES);
    for (entry, region) in table.zip(map) {
        entry.copy_from_slice(&region.to_bytes());
    }
    Ok(params)
}
