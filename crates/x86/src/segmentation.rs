//! Segment registers: what they allow, and how they are loaded. SDM 3A, chapters 3 and 5.

use crate::bits::rflags;
use crate::descriptor::{
    Entry, data_segment, error_of, is_null, null_segment, paragraph_segment, stack_segment, system,
    system_address,
};
use crate::paging::is_canonical;
use crate::{Access, CpuState, Exception, LinearMemory, Seg, Segment};

/// The linear address of `size` bytes at `offset` in `seg`, if the segment allows the access.
///
/// # Errors
/// #SS(0) for SS, #GP(0) for the others: beyond the limit, not usable, of the wrong type, or not
/// canonical.
#[inline]
pub fn linear_address(
    cpu: &CpuState,
    seg: Seg,
    offset: u64,
    size: u32,
    access: Access,
) -> Result<u64, Exception> {
    let linear = if cpu.code64() {
        let base = match seg {
            Seg::Fs | Seg::Gs => cpu.seg(seg).base,
            _ => 0,
        };
        canonical_range(base.wrapping_add(offset), size)
    } else {
        address_in(cpu, cpu.seg(seg), offset, size, access)
    };
    linear.ok_or(match seg {
        Seg::Ss => Exception::stack_fault(0),
        _ => Exception::general_protection(0),
    })
}

/// `linear`, if its `size` bytes have canonical addresses.
#[inline]
pub(crate) const fn canonical_range(linear: u64, size: u32) -> Option<u64> {
    let last = linear.wrapping_add(size.saturating_sub(1) as u64);
    if is_canonical(linear) && is_canonical(last) {
        Some(linear)
    } else {
        None
    }
}

/// The linear address of `size` bytes at `offset` in `segment` outside 64-bit mode, if type and
/// limit allow the access. SDM 3A, 5.3 to 5.5.
pub(crate) fn address_in(
    cpu: &CpuState,
    segment: &Segment,
    offset: u64,
    size: u32,
    access: Access,
) -> Option<u64> {
    if !segment.usable {
        return None;
    }
    let first = offset & 0xffff_ffff;
    let last = first + u64::from(size.saturating_sub(1));
    // Real-address and virtual-8086 mode check the limit, but not the type.
    let typed = cpu.protected() && !cpu.virtual_8086();
    let code = segment.has(Segment::CODE);
    let allowed = match access {
        Access::Write | Access::SystemWrite => !code && segment.has(Segment::WRITABLE),
        Access::Read | Access::SystemRead => !code || segment.has(Segment::WRITABLE),
        Access::Fetch => true,
    };
    if typed && !allowed {
        return None;
    }
    let limit = u64::from(segment.limit);
    let within = if !code && segment.has(Segment::EXPAND_DOWN) {
        let top = if segment.has(Segment::BIG) {
            0xffff_ffff
        } else {
            0xffff
        };
        first > limit && last <= top
    } else {
        last <= limit
    };
    within.then_some(segment.base.wrapping_add(first) & 0xffff_ffff)
}

/// MOV or POP to DS, ES, FS, GS or SS, and the loads of far pointers (LDS and its kin).
///
/// The shadow of MOV SS and POP SS is the caller's business.
///
/// # Errors
/// #UD for CS; #GP, #SS or #NP with the selector; a page fault on the descriptor. Then nothing has
/// changed.
pub fn load_segment(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    seg: Seg,
    selector: u16,
) -> Result<(), Exception> {
    if seg == Seg::Cs {
        return Err(Exception::invalid_opcode());
    }
    let segment = if !cpu.protected() || cpu.virtual_8086() {
        paragraph_segment(cpu, cpu.seg(seg), selector)
    } else if seg != Seg::Ss {
        data_segment(cpu, mem, selector, cpu.cpl, Exception::general_protection)?
    } else if is_null(selector) && cpu.code64() && cpu.cpl < 3 && selector as u8 & 3 == cpu.cpl {
        // 64-bit mode needs no stack segment except at level 3. SDM 3A, 5.4.1.1.
        null_segment(selector)
    } else {
        stack_segment(cpu, mem, selector, cpu.cpl, Exception::general_protection)?
    };
    cpu.segments[seg as usize] = segment;
    Ok(())
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
    require_level_0(cpu)?;
    cpu.ldtr = local_table(cpu, mem, selector, Exception::general_protection)?;
    Ok(())
}

/// The LDT that `selector` names; a null selector names none.
pub(crate) fn local_table(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    raise: fn(u32) -> Exception,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let (entry, base) = system_segment(cpu, mem, selector, raise, |kind| kind == system::LDT)?;
    Ok(Segment {
        rights: entry.descriptor.rights(),
        base,
        ..entry.segment(selector)
    })
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
    require_level_0(cpu)?;
    if is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    let long = cpu.long_mode();
    let available =
        |kind| kind == system::TSS32_AVAILABLE || (kind == system::TSS16_AVAILABLE && !long);
    let raise = Exception::general_protection;
    let (entry, base) = system_segment(cpu, mem, selector, raise, available)?;
    entry.mark_busy(cpu, mem, true)?;
    cpu.tr = Segment {
        rights: entry.descriptor.rights() | u16::from(system::BUSY),
        base,
        ..entry.segment(selector)
    };
    Ok(())
}

/// LLDT and LTR belong to protected mode and to level 0.
fn require_level_0(cpu: &CpuState) -> Result<(), Exception> {
    require_protected(cpu)?;
    if cpu.cpl != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(())
}

/// The instructions that name descriptors are #UD in real-address and virtual-8086 mode.
fn require_protected(cpu: &CpuState) -> Result<(), Exception> {
    if !cpu.protected() || cpu.virtual_8086() {
        return Err(Exception::invalid_opcode());
    }
    Ok(())
}

/// A present LDT or TSS in the GDT, and its base.
fn system_segment(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
    raise: fn(u32) -> Exception,
    wanted: impl Fn(u8) -> bool,
) -> Result<(Entry, u64), Exception> {
    if selector & 4 != 0 {
        return Err(raise(error_of(selector)));
    }
    let entry = Entry::read(cpu, mem, selector, raise)?;
    if !entry.descriptor.is_system() || !wanted(entry.descriptor.kind()) {
        return Err(raise(entry.error()));
    }
    if !entry.descriptor.present() {
        return Err(Exception::segment_not_present(entry.error()));
    }
    let mut base = u64::from(entry.descriptor.base());
    if cpu.long_mode() {
        base |= entry.upper(cpu, mem, raise)? << 32;
        if !is_canonical(base) {
            return Err(raise(entry.error()));
        }
    }
    Ok((entry, base))
}

/// The descriptor that LAR, LSL, VERR or VERW asks for, or `None` if there is no such descriptor.
fn inspect(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Option<Entry>, Exception> {
    require_protected(cpu)?;
    if is_null(selector) {
        return Ok(None);
    }
    match Entry::read(cpu, mem, selector, Exception::general_protection) {
        Ok(entry) => Ok(Some(entry)),
        Err(fault) if fault == Exception::general_protection(error_of(selector)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether the present level and the selector's RPL may see the descriptor.
fn visible(cpu: &CpuState, entry: &Entry) -> bool {
    let level = cpu.cpl.max(entry.selector as u8 & 3);
    entry.descriptor.is_conforming() || level <= entry.descriptor.dpl()
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
    use system::*;
    let known = |kind| match kind {
        LDT | TSS32_AVAILABLE | TSS32_BUSY | CALL_GATE32 => true,
        TSS16_AVAILABLE | TSS16_BUSY | CALL_GATE16 | TASK_GATE => !cpu.long_mode(),
        _ => false,
    };
    let entry = inspect(cpu, mem, selector)?.filter(|entry| {
        visible(cpu, entry) && (!entry.descriptor.is_system() || known(entry.descriptor.kind()))
    });
    // Intel leaves the bits of the limit undefined; AMD keeps them.
    Ok(entry.map(|entry| (entry.descriptor.0 >> 32) as u32 & 0x00ff_ff00))
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
    use system::*;
    let known = |kind| match kind {
        LDT | TSS32_AVAILABLE | TSS32_BUSY => true,
        TSS16_AVAILABLE | TSS16_BUSY => !cpu.long_mode(),
        _ => false,
    };
    let entry = inspect(cpu, mem, selector)?.filter(|entry| {
        visible(cpu, entry) && (!entry.descriptor.is_system() || known(entry.descriptor.kind()))
    });
    Ok(entry.map(|entry| entry.descriptor.limit()))
}

/// VERR: the ZF that it sets.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn verr(cpu: &CpuState, mem: &mut impl LinearMemory, selector: u16) -> Result<bool, Exception> {
    let entry = inspect(cpu, mem, selector)?;
    Ok(entry.is_some_and(|entry| visible(cpu, &entry) && entry.descriptor.is_readable()))
}

/// VERW: the ZF that it sets.
///
/// # Errors
/// #UD outside protected mode, a page fault.
pub fn verw(cpu: &CpuState, mem: &mut impl LinearMemory, selector: u16) -> Result<bool, Exception> {
    let entry = inspect(cpu, mem, selector)?;
    Ok(entry.is_some_and(|entry| visible(cpu, &entry) && entry.descriptor.is_writable_data()))
}

/// ARPL: the destination with its RPL raised to the source's and ZF set, or `None` if only ZF is to
/// be cleared.
///
/// # Errors
/// #UD outside protected mode (in 64-bit mode the opcode is another instruction's).
pub fn arpl(cpu: &CpuState, destination: u16, source: u16) -> Result<Option<u16>, Exception> {
    require_protected(cpu)?;
    let raised = destination & 3 < source & 3;
    Ok(raised.then_some(destination & !3 | source & 3))
}

/// Whether IN, OUT, INS and OUTS of `size` (1, 2 or 4) bytes may use `port`: by IOPL, else by the
/// bitmap of the TSS. SDM 1, 19.5.
///
/// # Errors
/// #GP(0) if not; a page fault on the bitmap.
pub fn check_io(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    port: u16,
    size: u8,
) -> Result<(), Exception> {
    // Where the TSS says where the bitmap begins.
    const MAP_BASE: u32 = 0x66;
    let iopl = ((cpu.rflags & rflags::IOPL) >> rflags::IOPL_SHIFT) as u8;
    if !cpu.protected() || (cpu.cpl <= iopl && !cpu.virtual_8086()) {
        return Ok(());
    }
    let denied = Err(Exception::general_protection(0));
    let wide = cpu.tr.rights & u16::from(system::WIDE) != 0;
    if !cpu.tr.usable || !wide || cpu.tr.limit < MAP_BASE + 1 {
        return denied;
    }
    let at = system_address(cpu, cpu.tr.base, MAP_BASE);
    let map = mem.load(cpu, at, 2, Access::SystemRead)? as u32;
    // Two bytes are always read, for a port's bits may lie in both.
    let byte = map + u32::from(port >> 3);
    if byte + 1 > cpu.tr.limit {
        return denied;
    }
    let at = system_address(cpu, cpu.tr.base, byte);
    let bits = mem.load(cpu, at, 2, Access::SystemRead)? >> (port & 7);
    let mask = (1 << size.min(4)) - 1;
    if bits & mask != 0 { denied } else { Ok(()) }
}

#[cfg(test)]
mod tests;
