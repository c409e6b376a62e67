//! Pushes and pops of several values, apart from the registers: they are set at the end, so that a
//! fault on the way leaves them as they were.

use crate::segmentation::{address_in, canonical_range};
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg, Segment};

/// A stack and how far it is filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// `None` in 64-bit mode, which has no limits.
    segment: Option<Segment>,
    pointer: u64,
    mask: u64,
    write: Access,
    /// The error code of #SS where the stack ends.
    error: u32,
}

impl Stack {
    /// The present stack.
    pub(crate) fn current(cpu: &CpuState) -> Self {
        let pointer = cpu.gpr[Gpr::Rsp as usize];
        if cpu.code64() {
            return Self::flat(pointer, Access::Write);
        }
        Self {
            write: Access::Write,
            ..Self::of(*cpu.seg(Seg::Ss), pointer, 0)
        }
    }

    /// The stack of an inner privilege level, in `segment`; #SS has the error code `error`.
    ///
    /// It is a supervisor's even before the level changes. SDM 3A, 4.6.1.
    pub(crate) fn of(segment: Segment, pointer: u64, error: u32) -> Self {
        let mask = if segment.has(Segment::BIG) {
            0xffff_ffff
        } else {
            0xffff
        };
        Self {
            segment: Some(segment),
            pointer: pointer & mask,
            mask,
            write: Access::SystemWrite,
            error,
        }
    }

    /// A stack in 64-bit mode, written with the rights of `write`.
    pub(crate) fn flat(pointer: u64, write: Access) -> Self {
        Self {
            segment: None,
            pointer,
            mask: u64::MAX,
            write,
            error: 0,
        }
    }

    /// Pushes the low `size` bytes of `value`.
    pub(crate) fn push(
        &mut self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        value: u64,
        size: u8,
    ) -> Result<(), Exception> {
        let pointer = self.pointer.wrapping_sub(u64::from(size)) & self.mask;
        let linear = self.linear(cpu, pointer, size, self.write)?;
        mem.store(cpu, linear, size, value, self.write)?;
        self.pointer = pointer;
        Ok(())
    }

    /// Pops `size` bytes.
    pub(crate) fn pop(
        &mut self,
        cpu: &CpuState,
        mem: &mut impl LinearMemory,
        size: u8,
    ) -> Result<u64, Exception> {
        let linear = self.linear(cpu, self.pointer, size, Access::Read)?;
        let value = mem.load(cpu, linear, size, Access::Read)?;
        self.skip(u64::from(size));
        Ok(value)
    }

    /// Releases `bytes` without reading them.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.pointer = self.pointer.wrapping_add(bytes) & self.mask;
    }

    /// What RSP, which is `rsp` now, becomes: a 16-bit stack leaves its upper bits alone.
    pub(crate) const fn stack_pointer(&self, rsp: u64) -> u64 {
        if self.mask == 0xffff {
            rsp & !self.mask | self.pointer
        } else {
            self.pointer
        }
    }

    fn linear(
        &self,
        cpu: &CpuState,
        pointer: u64,
        size: u8,
        access: Access,
    ) -> Result<u64, Exception> {
        let size = u32::from(size);
        match &self.segment {
            Some(segment) => address_in(cpu, segment, pointer, size, access),
            None => canonical_range(pointer, size),
        }
        .ok_or(Exception::stack_fault(self.error))
    }
}
