//! XCHG with memory, XADD, CMPXCHG, CMPXCHG8B, CMPXCHG16B.

use super::alu::{Add, Binary, Cmp};
use super::operand::{LOCKED, MEMORY};
use crate::host::{self, Word};
use crate::op::{Fault, Flexible, Flow, Form, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::{Access, Gpr};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;
const RBX: u8 = Gpr::Rbx as u8;
const RCX: u8 = Gpr::Rcx as u8;

/// XCHG memory, register: always locked.
pub fn xchg<T: Word>(core: &mut Core, op: &Op) -> Step {
    let at = Flexible::linear::<T>(core, op, Access::Write)?;
    let value = core.reg::<T>(op.src);
    let old = if let Some(host) = core.mmu.fast_write::<T>(at) {
        // SAFETY: the TLB holds host addresses of writable RAM, and the access stays within its
        // page.
        unsafe { T::exchange(host, value) }
    } else {
        core.modify_locked(at, |_, _| value)?
    };
    core.set_reg(op.src, old);
    core.stored()
}

/// XADD
pub fn xadd<T: Word>(core: &mut Core, op: &Op) -> Step {
    let addend = core.reg::<T>(op.src);
    if op.dst < MEMORY {
        let old = core.reg::<T>(op.dst);
        let sum = Add::apply(&mut core.flags, old, addend);
        core.set_reg(op.src, old);
        core.set_reg(op.dst, sum);
        return Ok(Flow::Next);
    }
    let at = Flexible::linear::<T>(core, op, Access::Write)?;
    let old = if op.dst == LOCKED {
        core.modify_locked(at, |flags, old| Add::apply(flags, old, addend))?
    } else {
        let mut seen = addend;
        core.modify(at, |flags, old| {
            seen = old;
            Add::apply(flags, old, addend)
        })?;
        seen
    };
    core.set_reg(op.src, old);
    core.stored()
}

/// CMPXCHG. Memory is written even if it differs from the accumulator: with what was there.
pub fn cmpxchg<T: Word>(core: &mut Core, op: &Op) -> Step {
    let (expected, new) = (core.reg::<T>(RAX), core.reg::<T>(op.src));
    let old = if op.dst < MEMORY {
        core.reg::<T>(op.dst)
    } else {
        let at = Flexible::linear::<T>(core, op, Access::Write)?;
        match core.mmu.fast_write::<T>(at) {
            // SAFETY: the TLB holds host addresses of writable RAM, and the access stays within its
            // page.
            Some(host) => unsafe { T::compare_exchange(host, expected, new) },
            None => core.modify_locked(at, |_, old| if old == expected { new } else { old })?,
        }
    };
    Cmp::apply(&mut core.flags, expected, old);
    if old == expected {
        if op.dst < MEMORY {
            core.set_reg(op.dst, new);
        }
    } else {
        core.set_reg(RAX, old);
    }
    core.stored()
}

/// CMPXCHG8B
pub fn cmpxchg8b(core: &mut Core, op: &Op) -> Step {
    let pair = |high: u8, low: u8| {
        u64::from(core.reg::<u32>(high)) << 32 | u64::from(core.reg::<u32>(low))
    };
    let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
    let at = Flexible::linear::<u64>(core, op, Access::Write)?;
    let old = core.modify_locked(at, |_, old| if old == expected { new } else { old })?;
    core.flags.set_zero(old == expected);
    if old != expected {
        core.set_reg(RAX, old as u32);
        core.set_reg(RDX, (old >> 32) as u32);
    }
    core.stored()
}

/// CMPXCHG16B
pub fn cmpxchg16b(core: &mut Core, op: &Op) -> Step {
    let pair = |high: u8, low: u8| u128::from(core.gpr(high)) << 64 | u128::from(core.gpr(low));
    let (expected, new) = (pair(RDX, RAX), pair(RCX, RBX));
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, 16, Access::Write)?;
    if at % 16 != 0 {
        return Err(core.protection_fault());
    }
    let old = match core.locked_range(at, 16)? {
        Some(host) => {
            // SAFETY: `locked_range` gave the host address of 16 bytes of writable RAM; pages are
            // aligned, so they are.
            let old = unsafe { host::compare_exchange_16(host, expected, new) };
            core.note_locked_write(host, 16);
            old
        }
        None => device_16(core, at, expected, new)?,
    };
    core.flags.set_zero(old == expected);
    if old != expected {
        core.set_gpr(RAX, old as u64);
        core.set_gpr(RDX, (old >> 64) as u64);
    }
    core.stored()
}

/// CMPXCHG16B on what is not RAM.
fn device_16(core: &mut Core, at: u64, expected: u128, new: u128) -> Result<u128, Fault> {
    let mut bytes = [0; 16];
    let result = core.mmu.read_bytes(&core.cpu, at, &mut bytes, Access::Read);
    result.map_err(|e| core.raise(e))?;
    let old = u128::from_le_bytes(bytes);
    let stored = if old == expected { new } else { old };
    let result = core
        .mmu
        .write_bytes(&core.cpu, at, &stored.to_le_bytes(), Access::Write);
    result.map_err(|e| core.raise(e))?;
    Ok(old)
}
