//! CLC to STD, CLI and STI, LAHF and SAHF, PUSHF and POPF, CLAC and STAC.

use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step};
use crate::processor::Core;
use belljar_x86::bits::{cr4, rflags};
use belljar_x86::state::Shadow;

/// CLC, STC
pub fn set_carry<const CARRY: bool>(core: &mut Core, _op: &Op) -> Step {
    core.flags.set_carry(CARRY);
    Ok(Flow::Next)
}

/// CMC
pub fn complement_carry(core: &mut Core, _op: &Op) -> Step {
    let carry = core.flags.carry();
    core.flags.set_carry(!carry);
    Ok(Flow::Next)
}

/// SALC, which the manual does not list and every processor has: CF fills AL.
pub fn salc(core: &mut Core, _op: &Op) -> Step {
    let carry = core.flags.carry();
    core.set_reg(0, 0_u8.wrapping_sub(u8::from(carry)));
    Ok(Flow::Next)
}

/// CLD
pub fn cld(core: &mut Core, _op: &Op) -> Step {
    core.cpu.rflags &= !rflags::DF;
    Ok(Flow::Next)
}

/// STD
pub fn std(core: &mut Core, _op: &Op) -> Step {
    core.cpu.rflags |= rflags::DF;
    Ok(Flow::Next)
}

/// LAHF
pub fn lahf(core: &mut Core, _op: &Op) -> Step {
    let flags = core.flags.bits() | rflags::FIXED;
    core.set_reg(16, flags as u8);
    Ok(Flow::Next)
}

/// SAHF
pub fn sahf(core: &mut Core, _op: &Op) -> Step {
    let overflow = core.flags.bits() & rflags::OF;
    core.flags
        .set_bits(u64::from(core.reg::<u8>(16)) | overflow);
    Ok(Flow::Next)
}

const fn iopl(flags: u64) -> u8 {
    (flags >> rflags::IOPL_SHIFT) as u8 & 3
}

/// Which of IF and VIF CLI and STI change: the flag's bit.
fn interrupt_flag(core: &mut Core) -> Result<u64, Fault> {
    let cpu = &core.cpu;
    // SDM 2, CLI: table of decisions.
    if !cpu.protected() || iopl(cpu.rflags) >= cpu.cpl && !cpu.virtual_8086() {
        return Ok(rflags::IF);
    }
    if cpu.virtual_8086() && iopl(cpu.rflags) == 3 {
        return Ok(rflags::IF);
    }
    let virtual_flag = if cpu.virtual_8086() {
        cpu.cr4 & cr4::VME != 0
    } else {
        cpu.cpl == 3 && cpu.cr4 & cr4::PVI != 0
    };
    if virtual_flag {
        return Ok(rflags::VIF);
    }
    Err(core.protection_fault())
}

/// CLI
pub fn cli(core: &mut Core, _op: &Op) -> Step {
    let flag = interrupt_flag(core)?;
    core.cpu.rflags &= !flag;
    core.heed();
    Ok(Flow::Next)
}

/// STI
pub fn sti(core: &mut Core, _op: &Op) -> Step {
    let flag = interrupt_flag(core)?;
    if flag == rflags::VIF && core.cpu.rflags & rflags::VIP != 0 {
        return Err(core.protection_fault());
    }
    if flag == rflags::IF && core.cpu.rflags & rflags::IF == 0 {
        core.cpu.shadow = Shadow::Sti;
    }
    core.cpu.rflags |= flag;
    Ok(Flow::Resync)
}

/// PUSHF, PUSHFD, PUSHFQ
pub fn pushf<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let cpu = &core.cpu;
    let mut image = cpu.rflags & !(rflags::RF | rflags::VM);
    if cpu.virtual_8086() && iopl(cpu.rflags) < 3 {
        if T::BYTES != 2 || cpu.cr4 & cr4::VME == 0 {
            return Err(core.protection_fault());
        }
        // SDM 3A 20.3: VIF takes IF's place, and IOPL reads as 3.
        let virtual_if = cpu.rflags & rflags::VIF != 0;
        image = image & !rflags::IF | rflags::IOPL | if virtual_if { rflags::IF } else { 0 };
    }
    core.push(T::truncate(image))?;
    core.stored()
}

/// The flags that POPF may change, by mode. SDM 2, POPF.
fn changeable(core: &Core) -> u64 {
    let cpu = &core.cpu;
    let mut mask = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
    if !cpu.protected() || cpu.cpl == 0 {
        mask |= rflags::IF | rflags::IOPL;
    } else if cpu.cpl <= iopl(cpu.rflags) {
        mask |= rflags::IF;
    }
    mask
}

/// POPF, POPFD, POPFQ
pub fn popf<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let cpu = &core.cpu;
    let before = cpu.rflags;
    if cpu.virtual_8086() && iopl(before) < 3 {
        return popf_virtual::<T>(core);
    }
    let mut mask = changeable(core);
    let image = core.pop::<T>()?.extend();
    if T::BYTES == 2 {
        mask &= 0xffff;
    }
    core.cpu.rflags = before & !(mask | rflags::RF) | image & mask;
    core.load_flags();
    if (before ^ core.cpu.rflags) & (rflags::IF | rflags::TF | rflags::AC | rflags::RF) != 0 {
        return Ok(Flow::Resync);
    }
    Ok(Flow::Next)
}

/// POPF in virtual-8086 mode without IOPL 3. SDM 3A, 20.3.
fn popf_virtual<T: Word>(core: &mut Core) -> Step {
    if T::BYTES != 2 || core.cpu.cr4 & cr4::VME == 0 {
        return Err(core.protection_fault());
    }
    let image = core.peek::<u16>(0)?.extend();
    let sets_if = image & rflags::IF != 0;
    if image & rflags::TF != 0 || sets_if && core.cpu.rflags & rflags::VIP != 0 {
        return Err(core.protection_fault());
    }
    core.release(2);
    let mask = rflags::STATUS | rflags::DF | rflags::NT;
    let virtual_if = if sets_if { rflags::VIF } else { 0 };
    core.cpu.rflags = core.cpu.rflags & !(mask | rflags::VIF) | image & mask | virtual_if;
    core.load_flags();
    Ok(Flow::Resync)
}

/// CLAC, STAC
pub fn set_ac<const AC: bool>(core: &mut Core, _op: &Op) -> Step {
    if core.cpu.cpl != 0 {
        return Err(core.invalid_opcode());
    }
    if AC {
        core.cpu.rflags |= rflags::AC;
    } else {
        core.cpu.rflags &= !rflags::AC;
    }
    let cpu = &core.cpu;
    core.mmu.select(cpu);
    Ok(Flow::Next)
}
