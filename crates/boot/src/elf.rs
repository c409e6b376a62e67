//! ELF files of both classes: program headers, notes, loading. System V ABI, chapters 4 and 5.

use crate::fields::Fields;
use crate::placement::check_place;
use crate::{BootError, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr};

const MAGIC: &[u8] = b"\x7fELF";
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    kind: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_size: u64,
    memory_size: u64,
    align: u64,
}

/// An ELF file for x86.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    file: Fields<'a>,
    entry: u64,
    segments: Vec<Segment>,
}

/// Whether `file` begins as an ELF file.
pub(crate) fn recognizes(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

impl<'a> Elf<'a> {
    /// Reads the headers of `bytes`.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, BootError> {
        let file = Fields::new(bytes, "ELF kernel");
        let class = file.u8(4)?;
        if class != CLASS_32 && class != CLASS_64 {
            return Err(file.bad("class", class.into()));
        }
        let data = file.u8(5)?;
        if data != LITTLE_ENDIAN {
            return Err(file.bad("byte order", data.into()));
        }
        let kind = file.u16(16)?;
        if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
            return Err(file.bad("type", kind.into()));
        }
        let machine = file.u16(18)?;
        if machine != MACHINE_386 && machine != MACHINE_X86_64 {
            return Err(file.bad("machine", machine.into()));
        }
        let is_64 = class == CLASS_64;
        let (entry, table) = if is_64 {
            (file.u64(24)?, file.u64(32)?)
        } else {
            (file.u32(24)?.into(), file.u32(28)?.into())
        };
        let (entry_size, count) = if is_64 {
            (file.u16(54)?, file.u16(56)?)
        } else {
            (file.u16(42)?, file.u16(44)?)
        };
        let least = if is_64 { 56 } else { 32 };
        if count == 0 || entry_size < least {
            return Err(file.bad("size of program headers", entry_size.into()));
        }
        let all = file.slice(table, u64::from(entry_size) * u64::from(count))?;
        let segments = all
            .chunks_exact(entry_size.into())
            .map(|header| Segment::parse(&Fields::new(header, file.what()), is_64))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            file,
            entry,
            segments,
        })
    }

    /// The physical address of the entry point, which the file gives as a virtual one.
    pub(crate) fn physical_entry(&self) -> u64 {
        self.loaded()
            .find(|s| self.entry.wrapping_sub(s.virtual_address) < s.memory_size)
            .map_or(self.entry, |s| {
                self.entry
                    .wrapping_sub(s.virtual_address)
                    .wrapping_add(s.physical_address)
            })
    }

    fn loaded(&self) -> impl Iterator<Item = &Segment> {
        self.segments
            .iter()
            .filter(|s| s.kind == PT_LOAD && s.memory_size > 0)
    }

    /// The first note of this owner and type.
    pub(crate) fn note(&self, owner: &[u8], kind: u32) -> Result<Option<&'a [u8]>, BootError> {
        for segment in self.segments.iter().filter(|s| s.kind == PT_NOTE) {
            let bytes = self.file.slice(segment.offset, segment.file_size)?;
            let notes = Fields::new(bytes, "ELF note segment");
            // Notes of the gABI are aligned to 4 bytes, whatever the class; some segments say 8 and
            // mean it.
            let align = if segment.align == 8 { 8 } else { 4 };
            let mut at = 0;
            while at + 12 <= bytes.len() as u64 {
                let (owner_len, data_len) = (notes.u32(at)?, notes.u32(at + 4)?);
                let data_at = (at + 12 + u64::from(owner_len)).next_multiple_of(align);
                let data = notes.slice(data_at, data_len.into())?;
                if notes.u32(at + 8)? == kind && notes.slice(at + 12, owner_len.into())? == owner {
                    return Ok(Some(data));
                }
                at = (data_at + u64::from(data_len)).next_multiple_of(align);
            }
        }
        Ok(None)
    }

    /// Copies the loadable segments to their physical addresses and zeroes the rest of each.
    /// Returns the end of the highest.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<u64, BootError> {
        let end = self.check_segments(memory)?;
        for segment in self.loaded() {
            let start = segment.physical_address;
            let bytes = self.file.slice(segment.offset, segment.file_size)?;
            memory.write(GuestPhysAddr(start), bytes)?;
            memory.zero(
                GuestPhysAddr(start + segment.file_size),
                segment.memory_size - segment.file_size,
            )?;
        }
        Ok(end)
    }

    /// Checks that the loadable segments lie in RAM, none over another: so loading them touches no
    /// byte of RAM twice, however many they are. Returns the end of the highest.
    fn check_segments(&self, memory: &GuestMemory) -> Result<u64, BootError> {
        let mut segments: Vec<&Segment> = self.loaded().collect();
        segments.sort_unstable_by_key(|s| s.physical_address);
        let mut end = 0;
        for segment in segments {
            if segment.file_size > segment.memory_size {
                return Err(self
                    .file
                    .bad("size of a segment in the file", segment.file_size));
            }
            let start = segment.physical_address;
            check_place(
                memory,
                "a segment of the kernel",
                start,
                segment.memory_size,
            )?;
            if start < end {
                return Err(BootError::SegmentsOverlap { start, end });
            }
            end = start + segment.memory_size;
        }
        if end == 0 {
            return Err(self.file.bad("number of loadable segments", 0));
        }
        Ok(end)
    }

    /// Checks that a 32-bit kernel can begin at `address`: in RAM below 4 GiB.
    pub(crate) fn check_entry(&self, memory: &GuestMemory, address: u64) -> Result<(), BootError> {
        if address >= layout::DEVICE_HOLE.end || memory.offset(GuestPhysAddr(address)).is_none() {
            return Err(self.file.bad("entry point", address));
        }
        Ok(())
    }
}

impl Segment {
    fn parse(header: &Fields<'_>, is_64: bool) -> Result<Self, BootError> {
        if is_64 {
            return Ok(Self {
                kind: header.u32(0)?,
                offset: header.u64(8)?,
                virtual_address: header.u64(16)?,
                physical_address: header.u64(24)?,
                file_size: header.u64(32)?,
                memory_size: header.u64(40)?,
                align: header.u64(48)?,
            });
        }
        let field = |offset| header.u32(offset).map(u64::from);
        Ok(Self {
            kind: header.u32(0)?,
            offset: field(4)?,
            virtual_address: field(8)?,
            physical_address: field(12)?,
            file_size: field(16)?,
            memory_size: field(20)?,
            align: field(28)?,
        })
    }
}
