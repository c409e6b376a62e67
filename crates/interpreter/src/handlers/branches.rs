//! Near jumps, calls and returns, loops; far transfers and software interrupts.

use super::operand;
use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::bits::rflags;
use belljar_x86::paging::is_canonical;
use belljar_x86::transfer::{self, OperandSize};
use belljar_x86::{Access, Event, Exception, Gpr, LinearMemory, Seg};

/// #GP(0) for a target that cannot be fetched from: not canonical, or beyond CS's limit.
#[inline(always)]
pub fn check_target(core: &mut Core, target: u64) -> Result<(), Fault> {
    let allowed = if core.code64 {
        is_canonical(target)
    } else {
        target <= u64::from(core.cpu.seg(Seg::Cs).limit)
    };
    if allowed {
        Ok(())
    } else {
        Err(core.protection_fault())
    }
}

#[inline(always)]
fn jump_direct<const CHECK: bool>(core: &mut Core, op: &Op) -> Step {
    if CHECK {
        check_target(core, op.imm)?;
    }
    core.cpu.rip = op.imm;
    Ok(Flow::Taken)
}

/// Jcc. `CHECK` if the target may not be fetched from.
pub fn jcc<const CODE: u8, const CHECK: bool>(core: &mut Core, op: &Op) -> Step {
    if core.flags.condition::<CODE>() {
        return jump_direct::<CHECK>(core, op);
    }
    Ok(Flow::Next)
}

/// JMP to a direct target.
pub fn jmp<const CHECK: bool>(core: &mut Core, op: &Op) -> Step {
    jump_direct::<CHECK>(core, op)
}

/// CALL of a direct target.
pub fn call<const CHECK: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    if CHECK {
        check_target(core, op.imm)?;
    }
    let next = core.next_rip(op);
    core.push(T::truncate(next))?;
    core.cpu.rip = op.imm;
    Ok(Flow::Taken)
}

/// JMP to the address in a register or memory.
pub fn jmp_indirect<T: Word>(core: &mut Core, op: &Op) -> Step {
    let target = operand::read::<T>(core, op, op.src)?.extend();
    check_target(core, target)?;
    core.cpu.rip = target;
    Ok(Flow::Jump)
}

/// The fault of a call whose target cannot be fetched from: a fault of the stack comes first.
#[cold]
fn refused_call<T: Word>(core: &mut Core) -> Fault {
    core.probe_push::<T>()
        .err()
        .unwrap_or_else(|| core.protection_fault())
}

/// CALL of the address in a register or memory.
pub fn call_indirect<T: Word>(core: &mut Core, op: &Op) -> Step {
    let target = operand::read::<T>(core, op, op.src)?.extend();
    if check_target(core, target).is_err() {
        return Err(refused_call::<T>(core));
    }
    let next = core.next_rip(op);
    core.push(T::truncate(next))?;
    core.cpu.rip = target;
    Ok(Flow::Jump)
}

/// RET; the immediate is what it releases besides.
pub fn ret<T: Word>(core: &mut Core, op: &Op) -> Step {
    let target = core.peek::<T>(0)?.extend();
    check_target(core, target)?;
    core.release(T::BYTES.wrapping_add(op.imm));
    core.cpu.rip = target;
    Ok(Flow::Jump)
}

/// What LOOP and its kin ask of ZF.
const ANY: u8 = 0;
const ZERO: u8 = 1;

/// LOOP (`KIND` 0), LOOPE (1), LOOPNE (2).
pub fn loop_near<const KIND: u8>(core: &mut Core, op: &Op) -> Step {
    let mask = op.address_mask();
    let count = core.masked(Gpr::Rcx, mask).wrapping_sub(1) & mask;
    let wanted = match KIND {
        ANY => true,
        ZERO => core.flags.zero(),
        _ => !core.flags.zero(),
    };
    let taken = count != 0 && wanted;
    if taken {
        check_target(core, op.imm)?;
        core.cpu.rip = op.imm;
    }
    core.set_masked(Gpr::Rcx, mask, count);
    Ok(if taken { Flow::Taken } else { Flow::Next })
}

/// JCXZ, JECXZ, JRCXZ
pub fn jump_if_count_zero(core: &mut Core, op: &Op) -> Step {
    if core.masked(Gpr::Rcx, op.address_mask()) == 0 {
        return jump_direct::<true>(core, op);
    }
    Ok(Flow::Next)
}

/// The operand size of bytes `size`.
pub const fn operand_size(size: u64) -> OperandSize {
    match size {
        2 => OperandSize::Bits16,
        4 => OperandSize::Bits32,
        _ => OperandSize::Bits64,
    }
}

/// Finishes a transfer made by a function of the architecture.
fn transferred(core: &mut Core, result: Result<(), Exception>) -> Step {
    core.load_flags();
    match result {
        Ok(()) => {
            core.serialise();
            Ok(Flow::ResyncJump)
        }
        Err(exception) => late_fault(core, exception),
    }
}

/// Delivers a fault with `rip` as the function of the architecture left it: in a task switch it may
/// be the new task's.
fn late_fault(core: &mut Core, exception: Exception) -> Step {
    Ok(core.deliver(Event::Exception(exception)))
}

/// The far pointer at the memory operand: selector and offset.
fn far_pointer<T: Word>(core: &mut Core, op: &Op) -> Result<(u16, u64), Fault> {
    let at = effective_address(core, op);
    let offset = linear(core, op, at, T::BYTES as u32, Access::Read)?;
    let offset = core.read::<T>(offset)?.extend();
    let selector = at.wrapping_add(T::BYTES) & op.address_mask();
    let selector = linear(core, op, selector, 2, Access::Read)?;
    Ok((core.read::<u16>(selector)?, offset))
}

fn far<const CALL: bool, T: Word>(core: &mut Core, op: &Op, selector: u16, offset: u64) -> Step {
    core.sync(op);
    let (size, next) = (operand_size(T::BYTES), core.next_rip(op));
    let (cpu, mmu) = (&mut core.cpu, &mut core.mmu);
    let result = if CALL {
        transfer::far_call(cpu, mmu, selector, offset, size, next)
    } else {
        transfer::far_jump(cpu, mmu, selector, offset, size, next)
    };
    transferred(core, result)
}

/// Far JMP or CALL through memory.
pub fn far_memory<const CALL: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let (selector, offset) = far_pointer::<T>(core, op)?;
    far::<CALL, T>(core, op, selector, offset)
}

/// Far JMP or CALL to an immediate pointer: the offset in the low 32 bits, the selector above.
pub fn far_immediate<const CALL: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    far::<CALL, T>(core, op, (op.imm >> 32) as u16, op.imm & 0xffff_ffff)
}

/// Far RET; the immediate is what it releases besides.
pub fn far_return<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let size = operand_size(T::BYTES);
    let result = transfer::far_return(&mut core.cpu, &mut core.mmu, size, op.imm as u16);
    transferred(core, result)
}

/// IRET, IRETD, IRETQ
pub fn iret<T: Word>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let (size, next) = (operand_size(T::BYTES), core.next_rip(op));
    let result = transfer::iret(&mut core.cpu, &mut core.mmu, size, next);
    transferred(core, result)
}

/// LES, LDS, LSS, LFS, LGS: the segment register is the second register operand.
pub fn load_far_pointer<T: Word>(core: &mut Core, op: &Op) -> Step {
    let (selector, offset) = far_pointer::<T>(core, op)?;
    super::segments::load(core, op.src, selector)?;
    core.set_reg(op.dst, T::truncate(offset));
    Ok(Flow::Resync)
}

/// INT n; the immediate is the vector.
pub fn int(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    // SDM 3A 20.3.3: in virtual-8086 mode INT n needs IOPL 3, unless redirection is offered
    // (CR4.VME is not).
    if core.cpu.virtual_8086() && core.cpu.rflags & rflags::IOPL != rflags::IOPL {
        return Err(core.protection_fault());
    }
    software(core, op)
}

/// INT3, which is not sensitive to IOPL.
pub fn int3(core: &mut Core, op: &Op) -> Step {
    software(core, op)
}

fn software(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    core.cpu.rip = core.next_rip(op);
    Ok(core.deliver(Event::Software {
        vector: op.imm as u8,
        length: op.length,
    }))
}

/// INTO
pub fn into(core: &mut Core, op: &Op) -> Step {
    if core.flags.overflow() {
        return software(core, op);
    }
    Ok(Flow::Next)
}

/// INT1
pub fn icebp(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    core.cpu.rip = core.next_rip(op);
    Ok(core.deliver(Event::Icebp))
}

/// Probes a range, for instructions that check before they act.
pub fn probe(core: &mut Core, linear: u64, size: u32, access: Access) -> Result<(), Fault> {
    core.mmu
        .probe(&core.cpu, linear, size, access)
        .map_err(|e| core.raise(e))
}
