//! Segment registers, descriptor tables, and instructions that ask about selectors.

use super::operand;
use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::bits::cr4;
use belljar_x86::paging::is_canonical;
use belljar_x86::state::{Shadow, TableRegister};
use belljar_x86::{Access, Exception, Seg, segmentation};

/// The segment register of encoding `number`.
pub const fn seg(number: u8) -> Seg {
    match number & 7 {
        0 => Seg::Es,
        1 => Seg::Cs,
        2 => Seg::Ss,
        4 => Seg::Fs,
        5 => Seg::Gs,
        _ => Seg::Ds,
    }
}

/// Loads segment register `number`.
pub fn load(core: &mut Core, number: u8, selector: u16) -> Result<(), Fault> {
    segmentation::load_segment(&mut core.cpu, &mut core.mmu, seg(number), selector)
        .map_err(|e| core.raise(e))
}

/// MOV to segment register.
pub fn mov_to(core: &mut Core, op: &Op) -> Step {
    let selector = operand::read::<u16>(core, op, op.src)?;
    load(core, op.dst, selector)?;
    if op.dst == Seg::Ss as u8 {
        core.cpu.shadow = Shadow::MovSs;
    }
    Ok(Flow::Resync)
}

/// MOV from segment register. Memory gets 16 bits, a register is zero-extended to its size.
pub fn mov_from<T: Word>(core: &mut Core, op: &Op) -> Step {
    let selector = core.cpu.seg(seg(op.src)).selector;
    if operand_is_memory(op) {
        return operand::write(core, op, op.dst, selector);
    }
    core.set_reg(op.dst, T::truncate(u64::from(selector)));
    Ok(Flow::Next)
}

const fn operand_is_memory(op: &Op) -> bool {
    op.dst >= operand::MEMORY
}

/// PUSH segment register.
pub fn push<T: Word>(core: &mut Core, op: &Op) -> Step {
    let selector = core.cpu.seg(seg(op.src)).selector;
    core.push(T::truncate(u64::from(selector)))?;
    core.stored()
}

/// POP segment register.
pub fn pop<T: Word>(core: &mut Core, op: &Op) -> Step {
    let selector = core.peek::<T>(0)?.extend() as u16;
    load(core, op.dst, selector)?;
    // The stack's size may be a new one after POP SS, but the increment is by the old.
    core.release(T::BYTES);
    if op.dst == Seg::Ss as u8 {
        core.cpu.shadow = Shadow::MovSs;
    }
    Ok(Flow::Resync)
}

/// SLDT, STR: which register is the immediate.
pub fn store_system<T: Word>(core: &mut Core, op: &Op) -> Step {
    require_protected(core)?;
    check_umip(core)?;
    let selector = if op.imm == 0 {
        core.cpu.ldtr.selector
    } else {
        core.cpu.tr.selector
    };
    if operand_is_memory(op) {
        return operand::write(core, op, op.dst, selector);
    }
    core.set_reg(op.dst, T::truncate(u64::from(selector)));
    Ok(Flow::Next)
}

/// #UD in real and virtual-8086 mode.
fn require_protected(core: &mut Core) -> Result<(), Fault> {
    if !core.cpu.protected() || core.cpu.virtual_8086() {
        return Err(core.invalid_opcode());
    }
    Ok(())
}

/// #GP(0) outside CPL 0 with CR4.UMIP. SDM 3A, 2.5.
pub fn check_umip(core: &mut Core) -> Result<(), Fault> {
    if core.cpu.cr4 & cr4::UMIP != 0 && core.cpu.cpl != 0 {
        return Err(core.protection_fault());
    }
    Ok(())
}

/// LLDT, LTR: which register is the immediate.
pub fn load_system(core: &mut Core, op: &Op) -> Step {
    require_protected(core)?;
    core.require_cpl0()?;
    let selector = operand::read::<u16>(core, op, op.src)?;
    let (cpu, mmu) = (&mut core.cpu, &mut core.mmu);
    let result = if op.imm == 0 {
        segmentation::lldt(cpu, mmu, selector)
    } else {
        segmentation::ltr(cpu, mmu, selector)
    };
    result.map_err(|e| core.raise(e))?;
    core.serialise();
    Ok(Flow::Resync)
}

/// LAR (`RIGHTS`) and LSL.
pub fn query<const RIGHTS: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    require_protected(core)?;
    let selector = operand::read::<u16>(core, op, op.src)?;
    let (cpu, mmu) = (&core.cpu, &mut core.mmu);
    let answer = if RIGHTS {
        segmentation::lar(cpu, mmu, selector)
    } else {
        segmentation::lsl(cpu, mmu, selector)
    };
    let answer = answer.map_err(|e| core.raise(e))?;
    core.flags.set_zero(answer.is_some());
    if let Some(value) = answer {
        core.set_reg(op.dst, T::truncate(u64::from(value)));
    }
    Ok(Flow::Next)
}

/// VERR (`WRITE` false) and VERW.
pub fn verify<const WRITE: bool>(core: &mut Core, op: &Op) -> Step {
    require_protected(core)?;
    let selector = operand::read::<u16>(core, op, op.src)?;
    let (cpu, mmu) = (&core.cpu, &mut core.mmu);
    let answer = if WRITE {
        segmentation::verw(cpu, mmu, selector)
    } else {
        segmentation::verr(cpu, mmu, selector)
    };
    let answer = answer.map_err(|e| core.raise(e))?;
    core.flags.set_zero(answer);
    Ok(Flow::Next)
}

/// ARPL
pub fn arpl(core: &mut Core, op: &Op) -> Step {
    require_protected(core)?;
    let destination = operand::read::<u16>(core, op, op.dst)?;
    let source = core.reg::<u16>(op.src);
    let raised = segmentation::arpl(&core.cpu, destination, source).map_err(|e| core.raise(e))?;
    if let Some(value) = raised {
        operand::write(core, op, op.dst, value)?;
    }
    core.flags.set_zero(raised.is_some());
    core.stored()
}

/// SGDT, SIDT: which register is the immediate.
pub fn store_table(core: &mut Core, op: &Op) -> Step {
    check_umip(core)?;
    let table = if op.imm == 0 {
        core.cpu.gdtr
    } else {
        core.cpu.idtr
    };
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let size = if core.code64 { 10 } else { 6 };
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, size, Access::Write)?;
    let result = core
        .mmu
        .write_bytes(&core.cpu, at, &image[..size as usize], Access::Write);
    result.map_err(|e| core.raise(e))?;
    core.stored()
}

/// LGDT, LIDT: which register is the immediate. `T` is the operand size: of a 16-bit one 24 bits of
/// base count.
pub fn load_table<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let size = if core.code64 { 10 } else { 6 };
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, size, Access::Read)?;
    let mut image = [0; 10];
    let result = core
        .mmu
        .read_bytes(&core.cpu, at, &mut image[..size as usize], Access::Read);
    result.map_err(|e| core.raise(e))?;
    let [l0, l1, base @ ..] = image;
    let mut base = u64::from_le_bytes(base);
    if T::BYTES == 2 && !core.code64 {
        base &= 0xff_ffff;
    }
    if core.code64 && !is_canonical(base) {
        return Err(core.raise(Exception::general_protection(0)));
    }
    let table = TableRegister {
        base,
        limit: u16::from_le_bytes([l0, l1]),
    };
    if op.imm == 0 {
        core.cpu.gdtr = table;
    } else {
        core.cpu.idtr = table;
    }
    core.serialise();
    Ok(Flow::Leave)
}

/// RDFSBASE, RDGSBASE: which register is the second operand.
pub fn read_base<T: Word>(core: &mut Core, op: &Op) -> Step {
    require_fsgsbase(core)?;
    let base = core.cpu.seg(seg(op.src)).base;
    core.set_reg(op.dst, T::truncate(base));
    Ok(Flow::Next)
}

/// WRFSBASE, WRGSBASE: which register is the first operand.
pub fn write_base<T: Word>(core: &mut Core, op: &Op) -> Step {
    require_fsgsbase(core)?;
    let base = core.reg::<T>(op.src).extend();
    if !is_canonical(base) {
        return Err(core.protection_fault());
    }
    core.cpu.segments[seg(op.dst) as usize].base = base;
    Ok(Flow::Next)
}

fn require_fsgsbase(core: &mut Core) -> Result<(), Fault> {
    if !core.code64 || core.cpu.cr4 & cr4::FSGSBASE == 0 {
        return Err(core.invalid_opcode());
    }
    Ok(())
}

/// SWAPGS
pub fn swapgs(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    let gs = &mut core.cpu.segments[Seg::Gs as usize];
    std::mem::swap(&mut gs.base, &mut core.cpu.msr.kernel_gs_base);
    Ok(Flow::Next)
}
