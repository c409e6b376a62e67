//! MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS and their repetition.
//!
//! A repeated instruction runs a bounded number of iterations and then begins anew at its own
//! address, so that interrupts are taken in between; the registers are exact after each iteration.
//! MOVS and STOS that run upward in flat segments do as many iterations at once as lie within one
//! page. Where an instruction begins anew depends on its registers alone, not on what the TLB holds:
//! it counts as the same number of instructions in every engine.

use super::alu::{Binary, Cmp};
use crate::host::{self, Word};
use crate::op::{Fault, Flow, Op, Step, linear};
use crate::processor::Core;
use belljar_memory::PAGE_SIZE;
use belljar_x86::bits::rflags;
use belljar_x86::{Access, Gpr, Seg, debug, segmentation};

/// No repeat prefix.
pub const ONCE: u8 = 0;
/// REP, or REPE where it matters.
pub const REPEAT: u8 = 1;
/// REPNE
pub const REPEAT_UNEQUAL: u8 = 2;

/// The most runs of iterations before interrupts are looked at.
const MOST: u32 = 256;
/// The iterations after whose run interrupts are looked at, too: they may all be a device's.
const MANY: u64 = 1 << 16;

/// Which instruction.
pub trait StringOp {
    /// Whether the zero flag ends a repetition.
    const COMPARES: bool = false;

    /// One iteration.
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault>;

    /// Iterations that count as one run, whether or not they are done at once: 0 or 1 if each counts.
    fn run<T: Word>(_core: &mut Core, _op: &Op) -> Result<u64, Fault> {
        Ok(1)
    }

    /// As many iterations at once as can be, but at most `most`; 0 if none can.
    fn many<T: Word>(_core: &mut Core, _op: &Op, _most: u64) -> Result<u64, Fault> {
        Ok(0)
    }
}

/// How far an index moves.
#[inline(always)]
fn stride<T: Word>(core: &Core) -> u64 {
    if core.cpu.rflags & rflags::DF != 0 {
        T::BYTES.wrapping_neg()
    } else {
        T::BYTES
    }
}

#[inline(always)]
fn advance<T: Word>(core: &mut Core, register: Gpr, mask: u64) {
    let value = core.masked(register, mask).wrapping_add(stride::<T>(core));
    core.set_masked(register, mask, value);
}

/// Linear address of the source, in the op's segment.
#[inline(always)]
fn source<T: Word>(core: &mut Core, op: &Op) -> Result<u64, Fault> {
    let offset = core.masked(Gpr::Rsi, op.address_mask());
    linear(core, op, offset, T::BYTES as u32, Access::Read)
}

/// Linear address of the destination, in ES.
#[inline(always)]
fn destination<T: Word>(core: &mut Core, op: &Op, access: Access) -> Result<u64, Fault> {
    let offset = core.masked(Gpr::Rdi, op.address_mask());
    if core.code64 {
        return Ok(offset);
    }
    segmentation::linear_address(&core.cpu, Seg::Es, offset, T::BYTES as u32, access)
        .map_err(|e| core.raise(e))
}

/// Iterations that lie within the page of `linear`, upward.
const fn room<T: Word>(linear: u64) -> u64 {
    (PAGE_SIZE - linear % PAGE_SIZE) / T::BYTES
}

/// Whether runs of iterations may be done at once.
fn bulk_possible(core: &Core, op: &Op) -> bool {
    core.code64 && core.cpu.rflags & rflags::DF == 0 && !core.single && op.address_bits == 64
}

/// MOVS
#[derive(Debug)]
pub struct Movs;

impl StringOp for Movs {
    #[inline(always)]
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let from = source::<T>(core, op)?;
        let value = core.read::<T>(from)?;
        let to = destination::<T>(core, op, Access::Write)?;
        core.write(to, value)?;
        advance::<T>(core, Gpr::Rsi, op.address_mask());
        advance::<T>(core, Gpr::Rdi, op.address_mask());
        Ok(())
    }

    fn run<T: Word>(core: &mut Core, op: &Op) -> Result<u64, Fault> {
        if !bulk_possible(core, op) {
            return Ok(1);
        }
        let from = source::<T>(core, op)?;
        let to = destination::<T>(core, op, Access::Write)?;
        Ok(room::<T>(from).min(room::<T>(to)))
    }

    fn many<T: Word>(core: &mut Core, op: &Op, most: u64) -> Result<u64, Fault> {
        if !bulk_possible(core, op) {
            return Ok(0);
        }
        let from = source::<T>(core, op)?;
        let to = destination::<T>(core, op, Access::Write)?;
        let count = most.min(room::<T>(from)).min(room::<T>(to));
        let (Some(from), Some(to)) = (core.mmu.fast_read::<T>(from), core.mmu.fast_write::<T>(to))
        else {
            return Ok(0);
        };
        let bytes = count * T::BYTES;
        // SAFETY: the TLB holds host addresses of RAM pages, the second writable, and `room` keeps
        // within both. Copying byte by byte shows the same overlap as copying by `T` unless the
        // ranges are nearer than `T`'s size.
        unsafe {
            if (to as usize).wrapping_sub(from as usize) < T::BYTES as usize && to != from {
                return Ok(0);
            }
            host::copy(to, from, bytes as usize);
        }
        core.set_gpr(Gpr::Rsi as u8, core.gpr(Gpr::Rsi as u8).wrapping_add(bytes));
        core.set_gpr(Gpr::Rdi as u8, core.gpr(Gpr::Rdi as u8).wrapping_add(bytes));
        Ok(count)
    }
}

/// STOS
#[derive(Debug)]
pub struct Stos;

impl StringOp for Stos {
    #[inline(always)]
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let to = destination::<T>(core, op, Access::Write)?;
        let value = core.reg::<T>(Gpr::Rax as u8);
        core.write(to, value)?;
        advance::<T>(core, Gpr::Rdi, op.address_mask());
        Ok(())
    }

    fn run<T: Word>(core: &mut Core, op: &Op) -> Result<u64, Fault> {
        if !bulk_possible(core, op) {
            return Ok(1);
        }
        Ok(room::<T>(destination::<T>(core, op, Access::Write)?))
    }

    fn many<T: Word>(core: &mut Core, op: &Op, most: u64) -> Result<u64, Fault> {
        if !bulk_possible(core, op) {
            return Ok(0);
        }
        let to = destination::<T>(core, op, Access::Write)?;
        let count = most.min(room::<T>(to));
        let Some(to) = core.mmu.fast_write::<T>(to) else {
            return Ok(0);
        };
        let value = core.reg::<T>(Gpr::Rax as u8);
        // SAFETY: the TLB holds the host address of a writable page of RAM, and `room` keeps within
        // it.
        unsafe { host::fill(to, value, count as usize) };
        let bytes = count * T::BYTES;
        core.set_gpr(Gpr::Rdi as u8, core.gpr(Gpr::Rdi as u8).wrapping_add(bytes));
        Ok(count)
    }
}

/// LODS
#[derive(Debug)]
pub struct Lods;

impl StringOp for Lods {
    #[inline(always)]
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let from = source::<T>(core, op)?;
        let value = core.read::<T>(from)?;
        core.set_reg(Gpr::Rax as u8, value);
        advance::<T>(core, Gpr::Rsi, op.address_mask());
        Ok(())
    }
}

/// SCAS
#[derive(Debug)]
pub struct Scas;

impl StringOp for Scas {
    const COMPARES: bool = true;

    #[inline(always)]
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let at = destination::<T>(core, op, Access::Read)?;
        let value = core.read::<T>(at)?;
        let accumulator = core.reg::<T>(Gpr::Rax as u8);
        Cmp::apply(&mut core.flags, accumulator, value);
        advance::<T>(core, Gpr::Rdi, op.address_mask());
        Ok(())
    }
}

/// CMPS
#[derive(Debug)]
pub struct Cmps;

impl StringOp for Cmps {
    const COMPARES: bool = true;

    #[inline(always)]
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let first = source::<T>(core, op)?;
        let first = core.read::<T>(first)?;
        let second = destination::<T>(core, op, Access::Read)?;
        let second = core.read::<T>(second)?;
        Cmp::apply(&mut core.flags, first, second);
        advance::<T>(core, Gpr::Rsi, op.address_mask());
        advance::<T>(core, Gpr::Rdi, op.address_mask());
        Ok(())
    }
}

/// The port of INS and OUTS, if it may be used.
fn port<T: Word>(core: &mut Core) -> Result<u16, Fault> {
    let port = core.reg::<u16>(Gpr::Rdx as u8);
    super::io::check::<T>(core, port)?;
    Ok(port)
}

/// INS
#[derive(Debug)]
pub struct Ins;

impl StringOp for Ins {
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let port = port::<T>(core)?;
        let to = destination::<T>(core, op, Access::Write)?;
        // What a port gives is gone if the store then faults: check first.
        core.probe_write(to, T::BYTES)?;
        let value = core.board.port_read(core.id, port, T::BYTES as u8);
        core.write(to, T::truncate(u64::from(value)))?;
        advance::<T>(core, Gpr::Rdi, op.address_mask());
        Ok(())
    }
}

/// OUTS
#[derive(Debug)]
pub struct Outs;

impl StringOp for Outs {
    fn once<T: Word>(core: &mut Core, op: &Op) -> Result<(), Fault> {
        let port = port::<T>(core)?;
        let from = source::<T>(core, op)?;
        let value = core.read::<T>(from)?.extend() as u32;
        core.board.port_write(core.id, port, T::BYTES as u8, value);
        advance::<T>(core, Gpr::Rsi, op.address_mask());
        Ok(())
    }
}

/// A string instruction; the repeat prefix is the immediate.
pub fn string<S: StringOp, T: Word>(core: &mut Core, op: &Op) -> Step {
    if op.imm as u8 == ONCE {
        S::once::<T>(core, op)?;
        return core.stored();
    }
    repeat::<S, T>(core, op)
}

fn repeat<S: StringOp, T: Word>(core: &mut Core, op: &Op) -> Step {
    let mask = op.address_mask();
    let mut left = if core.single { 1 } else { MOST };
    // Iterations of this call, and those that are left of the present run.
    let (mut iterations, mut run) = (0, 0);
    loop {
        let count = core.masked(Gpr::Rcx, mask);
        if count == 0 {
            return core.stored();
        }
        if run == 0 {
            run = S::run::<T>(core, op)?.clamp(1, count);
        }
        let done = S::many::<T>(core, op, run)?;
        let done = if done == 0 {
            S::once::<T>(core, op)?;
            1
        } else {
            done
        };
        let count = count.wrapping_sub(done);
        core.set_masked(Gpr::Rcx, mask, count);
        let ends = S::COMPARES && core.flags.zero() != (op.imm as u8 == REPEAT);
        if count == 0 || ends {
            return core.stored();
        }
        run -= done;
        iterations += done;
        if run == 0 {
            left -= 1;
        }
        let enough = run == 0 && (left == 0 || iterations >= MANY);
        if enough || core.mmu.disturbed || debug::any_active(&core.cpu) {
            core.cpu.rip = core.next_after(u64::from(op.offset));
            return Ok(Flow::Jump);
        }
    }
}
