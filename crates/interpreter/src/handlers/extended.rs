//! FXSAVE, FXRSTOR and the XSAVE family. SDM 1, chapter 13.

use super::system::{require_osxsave, require_task_switched};
use crate::mmu::check_alignment;
use crate::op::{Fault, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_memory::PAGE_SIZE;
use belljar_x86::bits::cr0;
use belljar_x86::xsave::{self, Restore, Save};
use belljar_x86::{Access, Exception, Gpr};

/// Linear address of the save area, which must be a multiple of `alignment`.
fn area(
    core: &mut Core,
    op: &Op,
    size: usize,
    alignment: u64,
    access: Access,
) -> Result<u64, Fault> {
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, size as u32, access)?;
    // Where #AC is enabled processors may raise it instead (SDM 2, FXSAVE). AMD's do so by the
    // alignment of the words of the area.
    check_alignment(&core.cpu, at, 4).map_err(|e| core.raise(e))?;
    if !at.is_multiple_of(alignment) {
        return Err(core.protection_fault());
    }
    Ok(at)
}

/// Reads an area of any size, page by page.
fn read(core: &mut Core, at: u64, bytes: &mut [u8]) -> Result<(), Fault> {
    let mut at = at;
    for part in bytes.chunks_mut(PAGE_SIZE as usize) {
        let result = core.mmu.read_bytes(&core.cpu, at, part, Access::Read);
        result.map_err(|e| core.raise(e))?;
        at = at.wrapping_add(part.len() as u64);
    }
    Ok(())
}

/// Writes an area of any size; nothing is written if any of it cannot be.
fn write(core: &mut Core, at: u64, bytes: &[u8]) -> Result<(), Fault> {
    super::branches::probe(core, at, bytes.len() as u32, Access::Write)?;
    let mut at = at;
    for part in bytes.chunks(PAGE_SIZE as usize) {
        let result = core.mmu.write_bytes(&core.cpu, at, part, Access::Write);
        result.map_err(|e| core.raise(e))?;
        at = at.wrapping_add(part.len() as u64);
    }
    Ok(())
}

/// #NM as for x87 instructions.
fn require_x87(core: &mut Core) -> Result<(), Fault> {
    if core.cpu.cr0 & (cr0::EM | cr0::TS) != 0 {
        return Err(core.raise(Exception::device_not_available()));
    }
    Ok(())
}

/// FXSAVE; with `WIDE` FXSAVE64.
pub fn fxsave<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    require_x87(core)?;
    let at = area(core, op, xsave::LEGACY_SIZE, 16, Access::Write)?;
    super::branches::probe(core, at, xsave::LEGACY_SIZE as u32, Access::Write)?;
    let mut image = [0; xsave::LEGACY_SIZE];
    read(core, at, &mut image)?;
    xsave::fxsave(&core.cpu, WIDE, &mut image);
    write(core, at, &image)?;
    core.stored()
}

/// FXRSTOR; with `WIDE` FXRSTOR64.
pub fn fxrstor<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    require_x87(core)?;
    let at = area(core, op, xsave::LEGACY_SIZE, 16, Access::Read)?;
    let mut image = [0; xsave::LEGACY_SIZE];
    read(core, at, &mut image)?;
    xsave::fxrstor(&mut core.cpu, WIDE, &image).map_err(|e| core.raise(e))?;
    core.stored()
}

fn mask(core: &Core) -> u64 {
    let (high, low) = (
        core.reg::<u32>(Gpr::Rdx as u8),
        core.reg::<u32>(Gpr::Rax as u8),
    );
    u64::from(high) << 32 | u64::from(low)
}

fn save(core: &mut Core, op: &Op, form: Save, wide: bool) -> Step {
    require_osxsave(core)?;
    if form == Save::Xsaves {
        core.require_cpl0()?;
    }
    require_task_switched(core)?;
    let mask = mask(core);
    let size = xsave::save_size(&core.cpu, &core.model, form, mask);
    let at = area(core, op, size, 64, Access::Write)?;
    super::branches::probe(core, at, size as u32, Access::Write)?;
    let mut image = vec![0; size];
    read(core, at, &mut image)?;
    xsave::save(&core.cpu, &core.model, form, mask, wide, &mut image);
    write(core, at, &image)?;
    core.stored()
}

fn restore(core: &mut Core, op: &Op, form: Restore, wide: bool) -> Step {
    require_osxsave(core)?;
    if form == Restore::Xrstors {
        core.require_cpl0()?;
    }
    require_task_switched(core)?;
    let mask = mask(core);
    let at = area(core, op, xsave::EXTENDED_OFFSET, 64, Access::Read)?;
    let mut header = [0; xsave::HEADER_SIZE];
    read(
        core,
        at.wrapping_add(xsave::LEGACY_SIZE as u64),
        &mut header,
    )?;
    let size = xsave::restore_size(&core.cpu, &core.model, form, mask, &header);
    let size = size.map_err(|e| core.raise(e))?;
    let mut image = vec![0; size];
    read(core, at, &mut image)?;
    let result = xsave::restore(&mut core.cpu, &core.model, form, mask, wide, &image);
    result.map_err(|e| core.raise(e))?;
    core.stored()
}

/// XSAVE
pub fn xsave<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    save(core, op, Save::Xsave, WIDE)
}

/// XSAVEOPT
pub fn xsaveopt<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    save(core, op, Save::Xsaveopt, WIDE)
}

/// XSAVEC
pub fn xsavec<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    save(core, op, Save::Xsavec, WIDE)
}

/// XSAVES
pub fn xsaves<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    save(core, op, Save::Xsaves, WIDE)
}

/// XRSTOR
pub fn xrstor<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    restore(core, op, Restore::Xrstor, WIDE)
}

/// XRSTORS
pub fn xrstors<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    restore(core, op, Restore::Xrstors, WIDE)
}
