//! IN and OUT.

use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step};
use crate::processor::Core;
use belljar_x86::{Gpr, debug, segmentation};

/// #GP(0) if the program may not use the port; notes I/O breakpoints.
pub fn check<T: Word>(core: &mut Core, port: u16) -> Result<(), Fault> {
    let size = T::BYTES as u8;
    segmentation::check_io(&core.cpu, &mut core.mmu, port, size).map_err(|e| core.raise(e))?;
    if debug::any_active(&core.cpu) {
        core.mmu.breakpoints |= debug::io_breakpoint(&core.cpu, port, size).unwrap_or(0);
    }
    Ok(())
}

/// The port: the immediate, or DX.
fn port<const IMMEDIATE: bool>(core: &Core, op: &Op) -> u16 {
    if IMMEDIATE {
        op.imm as u16
    } else {
        core.reg(Gpr::Rdx as u8)
    }
}

/// IN
pub fn input<const IMMEDIATE: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let port = port::<IMMEDIATE>(core, op);
    check::<T>(core, port)?;
    let value = core.board.port_read(core.id, port, T::BYTES as u8);
    core.set_reg(Gpr::Rax as u8, T::truncate(u64::from(value)));
    Ok(Flow::Leave)
}

/// OUT
pub fn output<const IMMEDIATE: bool, T: Word>(core: &mut Core, op: &Op) -> Step {
    let port = port::<IMMEDIATE>(core, op);
    check::<T>(core, port)?;
    let value = core.reg::<T>(Gpr::Rax as u8).extend() as u32;
    core.board.port_write(core.id, port, T::BYTES as u8, value);
    Ok(Flow::Leave)
}
