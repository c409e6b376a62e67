//! The two layouts of a TSS. SDM 3A, 7.2.1 and 7.6.

use crate::{Access, CpuState, Exception, LinearMemory, Seg};

/// What a TSS holds of a task.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) ip: u32,
    pub(super) flags: u64,
    /// In the order of their encoding.
    pub(super) gpr: [u32; 8],
    /// In the order of their encoding.
    pub(super) segments: [u16; 6],
    pub(super) ldt: u16,
    pub(super) cr3: u32,
    pub(super) trap: bool,
}

impl Image {
    /// The present task, to be continued at `ip` with `flags`.
    pub(super) fn of(cpu: &CpuState, ip: u64, flags: u64) -> Self {
        let mut gpr = [0; 8];
        for (slot, value) in gpr.iter_mut().zip(cpu.gpr) {
            *slot = value as u32;
        }
        Self {
            ip: ip as u32,
            flags,
            gpr,
            segments: cpu.segments.map(|segment| segment.selector),
            ldt: cpu.ldtr.selector,
            cr3: cpu.cr3 as u32,
            trap: false,
        }
    }
}

/// A TSS's layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Tss16,
    Tss32,
}

impl Layout {
    /// Size in bytes of a register's slot.
    pub(super) const fn word(self) -> u8 {
        match self {
            Self::Tss16 => 2,
            Self::Tss32 => 4,
        }
    }

    /// The least limit that a TSS may have.
    pub(super) const fn last_byte(self) -> u32 {
        match self {
            Self::Tss16 => 0x2b,
            Self::Tss32 => 0x67,
        }
    }

    /// Offset of the instruction pointer, which flags, general registers and segment registers
    /// follow.
    const fn registers(self) -> u64 {
        match self {
            Self::Tss16 => 0x0e,
            Self::Tss32 => 0x20,
        }
    }

    /// Number of segment registers that it holds: FS and GS came with 32 bits.
    const fn segments(self) -> usize {
        match self {
            Self::Tss16 => Seg::Ds as usize + 1,
            Self::Tss32 => Seg::Gs as usize + 1,
        }
    }

    /// Checks that [`store`](Self::store) will not fault.
    pub(super) fn probe(
        self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        base: u64,
    ) -> Result<(), Exception> {
        let slots = 2 + 8 + self.segments() as u32;
        let at = linear(base, self.registers());
        mem.probe(cpu, at, slots * u32::from(self.word()), Access::SystemWrite)
    }

    /// Writes what a task switch saves: neither the LDT's selector nor CR3.
    pub(super) fn store(
        self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        base: u64,
        image: &Image,
    ) -> Result<(), Exception> {
        let word = self.word();
        let mut at = self.registers();
        let mut put = |value: u64, size: u8| {
            let result = mem.store(cpu, linear(base, at), size, value, Access::SystemWrite);
            at += u64::from(word);
            result
        };
        put(u64::from(image.ip), word)?;
        put(image.flags, word)?;
        for value in image.gpr {
            put(u64::from(value), word)?;
        }
        for selector in image.segments.iter().take(self.segments()) {
            put(u64::from(*selector), 2)?;
        }
        Ok(())
    }

    /// Reads a whole TSS.
    pub(super) fn load(
        self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        base: u64,
    ) -> Result<Image, Exception> {
        let word = self.word();
        let mut at = self.registers();
        let mut get = |size: u8| {
            let value = mem.load(cpu, linear(base, at), size, Access::SystemRead);
            at += u64::from(word);
            value
        };
        let ip = get(word)? as u32;
        let flags = get(word)?;
        let mut gpr = [0; 8];
        for register in &mut gpr {
            *register = get(word)? as u32;
        }
        let mut segments = [0; 6];
        for selector in segments.iter_mut().take(self.segments()) {
            *selector = get(2)? as u16;
        }
        let ldt = get(2)? as u16;
        let (trap, cr3) = match self {
            Self::Tss16 => (false, 0),
            Self::Tss32 => (
                get(2)? & 1 != 0,
                mem.load(cpu, linear(base, 0x1c), 4, Access::SystemRead)? as u32,
            ),
        };
        Ok(Image {
            ip,
            flags,
            gpr,
            segments,
            ldt,
            cr3,
            trap,
        })
    }
}

/// Task switches happen outside long mode, where linear addresses have 32 bits.
const fn linear(base: u64, offset: u64) -> u64 {
    base.wrapping_add(offset) & 0xffff_ffff
}
