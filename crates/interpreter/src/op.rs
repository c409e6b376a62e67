//! Decoded instructions as the execution loop runs them.

use crate::host::Word;
use crate::processor::Core;
use belljar_x86::paging::is_canonical;
use belljar_x86::syscall::Vendor;
use belljar_x86::{Access, Seg, segmentation};

/// An exception was raised; it is in [`Core::exception`]. The instruction has changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault;

/// Where execution goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction of the block.
    Next,
    /// To a target known at decode time, which is now in `rip`; the link for it is the op's.
    Taken,
    /// To what is now in `rip`.
    Jump,
    /// To the next instruction, but not within this block: code or pending events may have changed.
    Leave,
    /// As `Leave`, and state that the engine caches from the registers may have changed.
    Resync,
    /// As `Jump`, and state that the engine caches from the registers may have changed.
    ResyncJump,
    /// The machine shuts down: a triple fault.
    TripleFault,
}

/// What a handler gives.
pub type Step = Result<Flow, Fault>;

/// Executes one instruction.
pub type Handler = fn(&mut Core, &Op) -> Step;

/// Register number: none.
pub const NO_REGISTER: u8 = 0xff;
/// Register number of a base: the address of the next instruction.
pub const RIP: u8 = 0xfe;

/// One instruction, ready to run.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Op {
    /// What executes it.
    pub handler: Handler,
    /// Immediate operand, branch target or index into a side table.
    pub imm: u64,
    /// Displacement of the memory operand, or the link of a direct branch.
    pub disp: i32,
    /// Where the instruction begins, counted from the block's start.
    pub offset: u16,
    /// Length of the instruction in bytes.
    pub length: u8,
    /// Segment of the memory operand: a [`Seg`].
    pub seg: u8,
    /// First register operand. Bit 4 set: the high byte of one of the first four registers.
    pub dst: u8,
    /// Second register operand.
    pub src: u8,
    /// Base register of the memory operand.
    pub base: u8,
    /// Index register of the memory operand.
    pub index: u8,
    /// Binary logarithm of the scale.
    pub scale: u8,
    /// Address size in bits: 16, 32 or 64.
    pub address_bits: u8,
}

const _: () = assert!(size_of::<Op>() == 32);

impl Op {
    /// Counted from the block's start: the next instruction.
    #[inline(always)]
    pub const fn end(&self) -> u64 {
        self.offset as u64 + self.length as u64
    }

    /// The segment of the memory operand.
    #[inline(always)]
    pub const fn segment(&self) -> Seg {
        match self.seg {
            0 => Seg::Es,
            1 => Seg::Cs,
            2 => Seg::Ss,
            4 => Seg::Fs,
            5 => Seg::Gs,
            _ => Seg::Ds,
        }
    }

    /// The mask of effective addresses.
    #[inline(always)]
    pub const fn address_mask(&self) -> u64 {
        u64::MAX >> (64 - self.address_bits)
    }
}

/// How a memory operand's linear address is computed.
pub trait Form {
    /// The linear address of an operand of type `T`.
    fn linear<T: Word>(core: &mut Core, op: &Op, access: Access) -> Result<u64, Fault>;
}

/// 64-bit code, flat segment: base and displacement.
#[derive(Debug)]
pub struct Base;
/// 64-bit code, flat segment: base, scaled index and displacement.
#[derive(Debug)]
pub struct Indexed;
/// Everything else.
#[derive(Debug)]
pub struct Flexible;

impl Form for Base {
    #[inline(always)]
    fn linear<T: Word>(core: &mut Core, op: &Op, _access: Access) -> Result<u64, Fault> {
        Ok(core.gpr(op.base).wrapping_add(op.disp as i64 as u64))
    }
}

impl Form for Indexed {
    #[inline(always)]
    fn linear<T: Word>(core: &mut Core, op: &Op, _access: Access) -> Result<u64, Fault> {
        Ok(core
            .gpr(op.base)
            .wrapping_add(core.gpr(op.index) << (op.scale & 3))
            .wrapping_add(op.disp as i64 as u64))
    }
}

impl Form for Flexible {
    #[inline]
    fn linear<T: Word>(core: &mut Core, op: &Op, access: Access) -> Result<u64, Fault> {
        linear(
            core,
            op,
            effective_address(core, op),
            T::BYTES as u32,
            access,
        )
    }
}

/// The offset within the segment of the memory operand.
#[inline]
pub fn effective_address(core: &Core, op: &Op) -> u64 {
    let mut address = op.disp as i64 as u64;
    if op.base < 16 {
        address = address.wrapping_add(core.gpr(op.base));
    } else if op.base == RIP {
        address = address.wrapping_add(core.block_rip).wrapping_add(op.end());
    }
    if op.index < 16 {
        address = address.wrapping_add(core.gpr(op.index) << (op.scale & 3));
    }
    address & op.address_mask()
}

/// The linear address of `size` bytes at `offset` in the op's segment.
#[inline]
pub fn linear(
    core: &mut Core,
    op: &Op,
    offset: u64,
    size: u32,
    access: Access,
) -> Result<u64, Fault> {
    if core.code64 {
        // Canonical form is checked when the address misses the TLB.
        if op.seg < Seg::Fs as u8 {
            return Ok(offset);
        }
        // AMD's processors check the offset too, before they add the base.
        if core.vendor == Vendor::Amd && !is_canonical(offset) {
            return Err(core.protection_fault());
        }
        return Ok(offset.wrapping_add(core.cpu.seg(op.segment()).base));
    }
    segmentation::linear_address(&core.cpu, op.segment(), offset, size, access)
        .map_err(|e| core.raise(e))
}
