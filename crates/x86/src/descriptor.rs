//! Segment and gate descriptors, and the tables that hold them. SDM 3A, 3.4.5 and 3.5.

use crate::bits::rflags;
use crate::{Access, CpuState, Exception, LinearMemory, Segment};

/// Which exception a bad selector or descriptor raises: #GP mostly, #TS for what a TSS holds.
pub type Raise = fn(u32) -> Exception;

/// Types of system descriptors. SDM 3A, table 3-2.
pub mod system {
    #![allow(missing_docs)]
    pub const TSS16_AVAILABLE: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    /// Also the 64-bit TSS.
    pub const TSS32_AVAILABLE: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    /// Also the 64-bit call gate, and so on.
    pub const CALL_GATE32: u8 = 12;
    pub const INTERRUPT_GATE32: u8 = 14;
    pub const TRAP_GATE32: u8 = 15;
    /// The bit that tells a busy TSS from an available one.
    pub const BUSY: u8 = 2;
    /// The bit that tells a trap gate from an interrupt gate.
    pub const TRAP: u8 = 1;
    /// The bit that tells a 32-bit (or 64-bit) system segment or gate from a 16-bit one.
    pub const WIDE: u8 = 8;
}

/// The selector without its RPL, as error codes hold it.
pub const fn error_of(selector: u16) -> u32 {
    selector as u32 & 0xfffc
}

/// Whether `selector` is one of the four null selectors.
pub const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// The first 8 bytes of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The rights, as [`Segment::rights`] holds them.
    pub const fn rights(self) -> u16 {
        (self.0 >> 40) as u16 & 0xf0ff
    }

    /// Whether `bit` of the rights is set.
    pub const fn has(self, bit: u16) -> bool {
        self.rights() & bit != 0
    }

    /// The low 32 bits of a segment's base.
    pub const fn base(self) -> u32 {
        (self.0 >> 16 & 0x00ff_ffff) as u32 | (self.0 >> 32 & 0xff00_0000) as u32
    }

    /// A segment's last valid offset, in bytes.
    pub const fn limit(self) -> u32 {
        let limit = (self.0 & 0xffff | self.0 >> 32 & 0xf_0000) as u32;
        if self.has(Segment::GRANULARITY) {
            limit << 12 | 0xfff
        } else {
            limit
        }
    }

    /// Descriptor privilege level.
    pub const fn dpl(self) -> u8 {
        (self.0 >> 45) as u8 & 3
    }

    /// The present bit.
    pub const fn present(self) -> bool {
        self.has(Segment::PRESENT)
    }

    /// The four type bits.
    pub const fn kind(self) -> u8 {
        (self.0 >> 40) as u8 & 15
    }

    /// Whether it is a gate or a system segment.
    pub const fn is_system(self) -> bool {
        !self.has(Segment::S)
    }

    /// Whether it is a code segment.
    pub const fn is_code(self) -> bool {
        self.has(Segment::S) && self.has(Segment::CODE)
    }

    /// Whether it is a conforming code segment.
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.has(Segment::EXPAND_DOWN)
    }

    /// Whether it is a data segment that can be written.
    pub const fn is_writable_data(self) -> bool {
        self.has(Segment::S) && !self.has(Segment::CODE) && self.has(Segment::WRITABLE)
    }

    /// Whether it is data, or code that can be read.
    pub const fn is_readable(self) -> bool {
        self.has(Segment::S) && (!self.has(Segment::CODE) || self.has(Segment::WRITABLE))
    }

    /// Whether it is 64-bit code and no 32-bit code.
    pub const fn is_code64(self) -> bool {
        self.has(Segment::LONG) && !self.has(Segment::BIG)
    }

    /// A gate's selector.
    pub const fn gate_selector(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The low 32 bits of a gate's offset; 16-bit gates have 16.
    pub const fn gate_offset(self) -> u32 {
        let low = self.0 as u32 & 0xffff;
        if self.kind() & system::WIDE != 0 {
            low | (self.0 >> 32) as u32 & 0xffff_0000
        } else {
            low
        }
    }

    /// The number of words that a call gate copies between stacks.
    pub const fn gate_parameters(self) -> u8 {
        (self.0 >> 32) as u8 & 31
    }

    /// The interrupt stack that a 64-bit gate names; 0 for none.
    pub const fn gate_ist(self) -> u8 {
        (self.0 >> 32) as u8 & 7
    }
}

/// A descriptor found by a selector.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The selector.
    pub selector: u16,
    /// Where the descriptor lies.
    pub linear: u64,
    /// The last address of the table.
    last: u64,
    /// The descriptor.
    pub descriptor: Descriptor,
}

impl Entry {
    /// Looks `selector` up in the GDT or LDT. The selector must not be null.
    ///
    /// # Errors
    /// `raise` with the selector if it lies outside the table; a page fault.
    pub fn read(
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        selector: u16,
        raise: Raise,
    ) -> Result<Self, Exception> {
        let (base, limit) = if selector & 4 == 0 {
            (cpu.gdtr.base, u32::from(cpu.gdtr.limit))
        } else if cpu.ldtr.usable {
            (cpu.ldtr.base, cpu.ldtr.limit)
        } else {
            return Err(raise(error_of(selector)));
        };
        let offset = u32::from(selector & 0xfff8);
        if offset + 7 > limit {
            return Err(raise(error_of(selector)));
        }
        let linear = system_address(cpu, base, offset);
        Ok(Self {
            selector,
            linear,
            last: base.wrapping_add(u64::from(limit)),
            descriptor: Descriptor(mem.load(cpu, linear, 8, Access::SystemRead)?),
        })
    }

    /// The second 8 bytes of a system descriptor in long mode.
    ///
    /// # Errors
    /// `raise` with the selector if they lie outside the table or are malformed; a page fault.
    pub fn upper(
        &self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        raise: Raise,
    ) -> Result<u64, Exception> {
        if self.last.wrapping_sub(self.linear) < 15 {
            return Err(raise(self.error()));
        }
        let linear = self.linear.wrapping_add(8);
        let upper = mem.load(cpu, linear, 8, Access::SystemRead)?;
        // The place of the type must be zero, lest the upper half be taken for a descriptor. SDM
        // 3A, 5.8.3.1.
        if upper >> 40 & 0x1f != 0 {
            return Err(raise(self.error()));
        }
        Ok(upper)
    }

    /// The error code that names this selector.
    pub const fn error(&self) -> u32 {
        error_of(self.selector)
    }

    /// The segment register as it is after the load, its accessed bit set.
    pub fn segment(&self, selector: u16) -> Segment {
        Segment {
            selector,
            rights: self.descriptor.rights() | Segment::ACCESSED,
            limit: self.descriptor.limit(),
            base: u64::from(self.descriptor.base()),
            usable: true,
        }
    }

    /// Sets the accessed bit of a code or data descriptor in memory.
    ///
    /// # Errors
    /// A page fault.
    pub fn mark_accessed(
        &self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
    ) -> Result<(), Exception> {
        if self.descriptor.has(Segment::ACCESSED) {
            return Ok(());
        }
        self.store_kind(cpu, mem, self.descriptor.kind() | Segment::ACCESSED as u8)
    }

    /// Marks a TSS descriptor busy or available in memory.
    ///
    /// # Errors
    /// A page fault.
    pub fn mark_busy(
        &self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        busy: bool,
    ) -> Result<(), Exception> {
        let kind = self.descriptor.kind() & !system::BUSY;
        let kind = if busy { kind | system::BUSY } else { kind };
        self.store_kind(cpu, mem, kind)
    }

    fn store_kind(
        &self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        kind: u8,
    ) -> Result<(), Exception> {
        let byte = self.descriptor.0 >> 40 & 0xf0 | u64::from(kind);
        let linear = system_address(cpu, self.linear, 5);
        mem.store(cpu, linear, 1, byte, Access::SystemWrite)
    }
}

/// The linear address of a byte in a system table: 32 bits wide outside long mode.
pub(crate) const fn system_address(cpu: &CpuState, base: u64, offset: u32) -> u64 {
    let linear = base.wrapping_add(offset as u64);
    if cpu.long_mode() {
        linear
    } else {
        linear & 0xffff_ffff
    }
}

/// The stack segment `selector` for use at privilege level `cpl`. SDM 3A, 5.7.
///
/// # Errors
/// `raise` if it is null, of another level or not writable; #SS if it is not present; a page fault.
pub fn stack_segment(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    cpl: u8,
    raise: Raise,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Err(raise(0));
    }
    let entry = Entry::read(cpu, mem, selector, raise)?;
    let descriptor = entry.descriptor;
    if selector as u8 & 3 != cpl || descriptor.dpl() != cpl || !descriptor.is_writable_data() {
        return Err(raise(entry.error()));
    }
    if !descriptor.present() {
        return Err(Exception::stack_fault(entry.error()));
    }
    entry.mark_accessed(cpu, mem)?;
    Ok(entry.segment(selector))
}

/// The data segment `selector` for DS, ES, FS or GS at privilege level `cpl`. SDM 3A, 5.6.
///
/// # Errors
/// `raise` if it cannot be read or its level forbids; #NP if it is not present; a page fault.
pub fn data_segment(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    cpl: u8,
    raise: Raise,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let entry = Entry::read(cpu, mem, selector, raise)?;
    let descriptor = entry.descriptor;
    let level = cpl.max(selector as u8 & 3);
    if !descriptor.is_readable() || (!descriptor.is_conforming() && level > descriptor.dpl()) {
        return Err(raise(entry.error()));
    }
    if !descriptor.present() {
        return Err(Exception::segment_not_present(entry.error()));
    }
    entry.mark_accessed(cpu, mem)?;
    Ok(entry.segment(selector))
}

/// A segment register after a null selector was loaded.
pub const fn null_segment(selector: u16) -> Segment {
    Segment {
        selector,
        rights: 0,
        limit: 0,
        base: 0,
        usable: false,
    }
}

/// A data or code segment register as virtual-8086 mode holds it. SDM 3A, 21.2.1.
pub const fn virtual_8086_segment(selector: u16) -> Segment {
    const DPL3: u16 = 3 << 5;
    Segment::real_mode(
        selector,
        Segment::PRESENT | DPL3 | Segment::S | Segment::WRITABLE | Segment::ACCESSED,
    )
}

/// A segment register after a load in real or virtual-8086 mode.
///
/// Real mode replaces the base alone: limit and rights stay as protected mode may have left them.
pub(crate) fn paragraph_segment(cpu: &CpuState, old: &Segment, selector: u16) -> Segment {
    if cpu.rflags & rflags::VM != 0 {
        return virtual_8086_segment(selector);
    }
    if !old.usable {
        let rights = Segment::PRESENT | Segment::S | Segment::WRITABLE | Segment::ACCESSED;
        return Segment::real_mode(selector, rights);
    }
    Segment {
        selector,
        base: u64::from(selector) << 4,
        ..*old
    }
}
