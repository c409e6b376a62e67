//! Segment registers: what they allow, and how they are loaded. SDM 3A, chapters 3 and 5.

use crate::{Access, CpuState, Exception, LinearMemory, Seg};

/// The linear address of `size` bytes at `offset` in `seg`, if the segment allows the access.
///
/// # Errors
/// #SS(0) for SS, #GP(0) for the others: beyond the limit, not usable, of the wrong type, or not canonical.
pub fn linear_address(
    cpu: &CpuState,
    seg: Seg,
    offset: u64,
    size: u32,
    access: Access,
) -> Result<u64, Exception> {
    let _ = (cpu, seg, offset, size, access);
    todo!()
}

/// MOV or POP to DS, ES, FS, GS or SS, and the loads of far pointers (LDS and its kin).
///
/// The shadow of MOV SS and POP SS is the caller's business.
///
/// # Errors
/// #UD for CS; #GP, #SS or #NP with the selector; a page fault on the descriptor. Then nothing has changed.
pub fn load_segment(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    seg: Seg,
    selector: u16,
) -> Result<(), Exception> {
    let _ = (cpu, mem, seg, selector);
    todo!()
}

/// LLDT.
///
/// # Errors
/// #UD outside protected mode, #GP(0) if not at CPL 0, #GP or #NP with the selector, a page fault.
pub fn lldt(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<(), Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// LTR: marks the TSS busy.
///
/// # Errors
/// #UD outside protected mode, #GP(0) if not at CPL 0, #GP or #NP with the selector, a page fault.
pub fn ltr(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<(), Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// LAR: the rights as the 32-bit form loads them, or `None` if the instruction is to clear ZF.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn lar(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Option<u32>, Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// LSL: the limit in bytes, or `None` if the instruction is to clear ZF.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn lsl(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Option<u32>, Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// VERR: the ZF that it sets.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn verr(cpu: &CpuState, mem: &mut impl LinearMemory, selector: u16) -> Result<bool, Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// VERW: the ZF that it sets.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn verw(cpu: &CpuState, mem: &mut impl LinearMemory, selector: u16) -> Result<bool, Exception> {
    let _ = (cpu, mem, selector);
    todo!()
}

/// ARPL: the destination with its RPL raised to the source's and ZF set, or `None` if only ZF is to be cleared.
///
/// # Errors
/// #UD outside protected mode (in 64-bit mode the opcode is another instruction's).
pub fn arpl(cpu: &CpuState, destination: u16, source: u16) -> Result<Option<u16>, Exception> {
    let _ = (cpu, destination, source);
    todo!()
}

/// Whether IN, OUT, INS and OUTS of `size` (1, 2 or 4) bytes may use `port`: by IOPL, else by the bitmap of the TSS.
/// SDM 1, 19.5.
///
/// # Errors
/// #GP(0) if not; a page fault on the bitmap.
pub fn check_io(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    port: u16,
    size: u8,
) -> Result<(), Exception> {
    let _ = (cpu, mem, port, size);
    todo!()
}
