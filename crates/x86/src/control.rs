//! Writes of the control registers, EFER and XCR0: which values are allowed, what else changes with
//! them, and which translations an engine must drop. SDM 3A, 2.5 and 4.1; SDM 2, MOV to control
//! registers, XSETBV, INVPCID.
//!
//! Privilege is the caller's to check: the instructions differ in how they do it. Outside 64-bit
//! mode values arrive zero-extended. CR8 is the board's; CR2 holds any value.

use crate::bits::{cr0, cr4, efer, xstate};
use crate::cpuid::{CpuidModel, Feature};
use crate::paging::{self, Flush};
use crate::{CpuState, Exception, PhysicalMemory, Segment, xsave};

/// Bits of CR0 that exist.
const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// Bits of CR0 that decide what a translation means or allows.
const CR0_OF_PAGING: u64 = cr0::PG | cr0::WP | cr0::PE;
/// Bits of CR4 that decide what a translation means or allows.
const CR4_OF_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;
/// Bit of a value for CR3 that, with PCIDs on, says that nothing is to be flushed.
const CR3_NO_FLUSH: u64 = 1 << 63;
/// The PCID in CR3.
const CR3_PCID: u64 = 0xfff;
/// Type of a 16-bit TSS, busy or not, without the busy bit.
const TSS_16BIT: u16 = 1;

const fn refused<T>() -> Result<T, Exception> {
    Err(Exception::general_protection(0))
}

/// Whether the processor uses PAE paging outside long mode, for which it caches the four PDPTEs.
const fn pae_paging(cpu: &CpuState) -> bool {
    cpu.cr0 & cr0::PG != 0 && cpu.cr4 & cr4::PAE != 0 && cpu.efer & efer::LMA == 0
}

/// The PCID of the present address space.
pub const fn current_pcid(cpu: &CpuState) -> u16 {
    if cpu.cr4 & cr4::PCIDE != 0 {
        (cpu.cr3 & CR3_PCID) as u16
    } else {
        0
    }
}

/// MOV to CR0. Setting PG with EFER.LME enters long mode, clearing it leaves it.
///
/// # Errors
/// #GP(0) for values that SDM 2 (MOV to control registers) or 3A 9.8.5 excludes; then nothing has
/// changed.
pub fn write_cr0(
    cpu: &mut CpuState,
    memory: &impl PhysicalMemory,
    value: u64,
) -> Result<Flush, Exception> {
    if value >> 32 != 0 {
        return refused();
    }
    let new = value & CR0_DEFINED | cr0::ET;
    let changed = new ^ cpu.cr0;
    if new & (cr0::PG | cr0::PE) == cr0::PG || new & (cr0::NW | cr0::CD) == cr0::NW {
        return refused();
    }
    let mut new_efer = cpu.efer;
    if changed & cr0::PG != 0 {
        new_efer = efer_after_paging(cpu, new & cr0::PG != 0)?;
    }
    let (old_cr0, old_efer) = (cpu.cr0, cpu.efer);
    (cpu.cr0, cpu.efer) = (new, new_efer);
    // SDM 3A 4.4.1: these reload the PDPTEs.
    if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && pae_paging(cpu) {
        match paging::load_pdptes(cpu, memory) {
            Ok(pdpte) => cpu.pdpte = pdpte,
            Err(exception) => {
                (cpu.cr0, cpu.efer) = (old_cr0, old_efer);
                return Err(exception);
            }
        }
    }
    Ok(if changed & CR0_OF_PAGING != 0 {
        Flush::All
    } else {
        Flush::None
    })
}

/// EFER when paging is turned on or off.
fn efer_after_paging(cpu: &CpuState, on: bool) -> Result<u64, Exception> {
    if !on {
        // SDM 3A 4.10.1 and 9.8.5.4: not with PCIDs, not from 64-bit code.
        if cpu.cr4 & cr4::PCIDE != 0 || cpu.code64() {
            return refused();
        }
        return Ok(cpu.efer & !efer::LMA);
    }
    if cpu.efer & efer::LME == 0 {
        return Ok(cpu.efer);
    }
    // SDM 3A 9.8.5: long mode needs PAE, a code segment without L, and no 16-bit TSS.
    let old_task = cpu.tr.usable && cpu.tr.rights & 0xd == TSS_16BIT;
    if cpu.cr4 & cr4::PAE == 0 || cpu.segments[1].has(Segment::LONG) || old_task {
        return refused();
    }
    Ok(cpu.efer | efer::LMA)
}

/// MOV to CR3.
///
/// # Errors
/// #GP(0) for reserved bits of the base in long mode, or of the PDPTEs in PAE paging; then nothing
/// has changed.
pub fn write_cr3(
    cpu: &mut CpuState,
    model: &CpuidModel,
    memory: &impl PhysicalMemory,
    value: u64,
) -> Result<Flush, Exception> {
    let pcids = cpu.cr4 & cr4::PCIDE != 0;
    let keep = pcids && value & CR3_NO_FLUSH != 0;
    let value = if pcids { value & !CR3_NO_FLUSH } else { value };
    if cpu.long_mode() && value >> model.phys_bits() != 0 {
        return refused();
    }
    let old = std::mem::replace(&mut cpu.cr3, value);
    if pae_paging(cpu) {
        match paging::load_pdptes(cpu, memory) {
            Ok(pdpte) => cpu.pdpte = pdpte,
            Err(exception) => {
                cpu.cr3 = old;
                return Err(exception);
            }
        }
    }
    // SDM 3A 4.10.4.1.
    Ok(if keep {
        Flush::None
    } else if pcids {
        Flush::Pcid(current_pcid(cpu))
    } else {
        Flush::NonGlobal
    })
}

/// MOV to CR4.
///
/// # Errors
/// #GP(0) for bits of features that are not offered and for transitions that the architecture
/// excludes; then nothing
/// has changed.
pub fn write_cr4(
    cpu: &mut CpuState,
    model: &CpuidModel,
    memory: &impl PhysicalMemory,
    value: u64,
) -> Result<Flush, Exception> {
    let changed = value ^ cpu.cr4;
    if value & !model.cr4_mask() != 0 {
        return refused();
    }
    if cpu.long_mode() && value & cr4::PAE == 0 {
        return refused();
    }
    // SDM 3A 4.10.1: PCIDs are turned on in long mode and from PCID 0 only.
    if changed & value & cr4::PCIDE != 0 && (!cpu.long_mode() || cpu.cr3 & CR3_PCID != 0) {
        return refused();
    }
    let old = std::mem::replace(&mut cpu.cr4, value);
    // SDM 3A 4.4.1: these reload the PDPTEs.
    let reloading = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    if changed & reloading != 0 && pae_paging(cpu) {
        match paging::load_pdptes(cpu, memory) {
            Ok(pdpte) => cpu.pdpte = pdpte,
            Err(exception) => {
                cpu.cr4 = old;
                return Err(exception);
            }
        }
    }
    Ok(if changed & CR4_OF_PAGING != 0 {
        Flush::All
    } else {
        Flush::None
    })
}

/// WRMSR to EFER. LMA follows paging alone: what is written to it is disregarded.
///
/// # Errors
/// #GP(0) for bits of features that are not offered, or a change of LME while paging is on; then
/// nothing has changed.
pub fn write_efer(cpu: &mut CpuState, model: &CpuidModel, value: u64) -> Result<Flush, Exception> {
    let new = value & !efer::LMA | cpu.efer & efer::LMA;
    let changed = new ^ cpu.efer;
    if value & !model.efer_mask() != 0 {
        return refused();
    }
    if changed & efer::LME != 0 && cpu.cr0 & cr0::PG != 0 {
        return refused();
    }
    cpu.efer = new;
    Ok(if changed & efer::NXE != 0 {
        Flush::All
    } else {
        Flush::None
    })
}

/// XSETBV. CR4.OSXSAVE is the caller's to check.
///
/// # Errors
/// #GP(0) for another register than XCR0, components that are not offered, and combinations that
/// SDM 1 13.3 excludes.
pub fn write_xcr(
    cpu: &mut CpuState,
    model: &CpuidModel,
    index: u32,
    value: u64,
) -> Result<(), Exception> {
    let avx512 = value & xstate::AVX512;
    let sound = index == 0
        && value & xstate::X87 != 0
        && value & !model.xcr0_mask() == 0
        && (value & xstate::AVX == 0 || value & xstate::SSE != 0)
        && (avx512 == 0 || avx512 == xstate::AVX512 && value & xstate::AVX != 0);
    if !sound {
        return refused();
    }
    cpu.xcr0 = value;
    Ok(())
}

/// XGETBV: XCR0, or with index 1 those of its components that are in use. CR4.OSXSAVE is the
/// caller's to check.
///
/// # Errors
/// #GP(0) for registers that do not exist.
pub fn read_xcr(cpu: &CpuState, model: &CpuidModel, index: u32) -> Result<u64, Exception> {
    match index {
        0 => Ok(cpu.xcr0),
        1 if model.has(Feature::Xgetbv1) => Ok(cpu.xcr0 & xsave::in_use_with_mxcsr(cpu)),
        _ => refused(),
    }
}

/// LMSW: the low four bits of CR0, of which PE is never cleared.
///
/// # Errors
/// As [`write_cr0`].
pub fn lmsw(
    cpu: &mut CpuState,
    memory: &impl PhysicalMemory,
    source: u16,
) -> Result<Flush, Exception> {
    let kept = cpu.cr0 & !(cr0::MP | cr0::EM | cr0::TS);
    write_cr0(cpu, memory, kept | u64::from(source & 0xf))
}

/// CLTS.
pub const fn clts(cpu: &mut CpuState) {
    cpu.cr0 &= !cr0::TS;
}

/// INVPCID of type `kind` with the two quadwords of its descriptor.
///
/// # Errors
/// #GP(0) for unknown types and malformed descriptors.
pub fn invpcid(cpu: &CpuState, kind: u64, descriptor: [u64; 2]) -> Result<Flush, Exception> {
    let [first, linear] = descriptor;
    let pcid = (first & CR3_PCID) as u16;
    let pcids = cpu.cr4 & cr4::PCIDE != 0;
    if kind > 3 || first & !CR3_PCID != 0 {
        return refused();
    }
    if kind < 2 && pcid != 0 && !pcids {
        return refused();
    }
    match kind {
        0 if !paging::is_canonical(linear) => refused(),
        0 => Ok(Flush::Address {
            linear,
            pcid,
            global: false,
        }),
        1 => Ok(Flush::Pcid(pcid)),
        2 => Ok(Flush::All),
        _ => Ok(Flush::NonGlobal),
    }
}

#[cfg(test)]
mod tests;
