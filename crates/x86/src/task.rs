//! Hardware task switches, which exist outside long mode. SDM 3A, chapter 7.

mod image;

use crate::bits::{cr0, debug, rflags};
use crate::descriptor::{
    Entry, data_segment, error_of, is_null, null_segment, stack_segment, system,
    virtual_8086_segment,
};
use crate::segmentation::local_table;
use crate::stack::Stack;
use crate::{Access, CpuState, Exception, Gpr, LinearMemory, Seg, Segment, Vector};
use image::{Image, Layout};

/// What causes a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// JMP.
    Jump,
    /// CALL.
    Call,
    /// IRET with NT set.
    Return,
    /// An exception or interrupt through a task gate.
    Event,
}

/// A task switch to be done.
#[derive(Clone, Copy, Debug)]
pub struct Switch {
    /// The new task's TSS.
    pub selector: u16,
    /// What causes it.
    pub cause: Cause,
    /// The instruction pointer that the old task is to continue from.
    pub next: u64,
    /// The flags that the old task is to continue with.
    pub flags: u64,
    /// The error code of an exception, which is pushed on the new task's stack.
    pub error: Option<u32>,
}

/// A fault in a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What to deliver.
    pub exception: Exception,
    /// Whether the new task is already the current one. Otherwise nothing has changed.
    pub in_new_task: bool,
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self {
            exception,
            in_new_task: false,
        }
    }
}

/// Switches tasks. SDM 3A, 7.3.
///
/// The privilege checks of gates and descriptors are the caller's. The debug trap of a TSS with its
/// T bit set is left in [`CpuState::pending_debug`].
///
/// # Errors
/// The fault to deliver, in the old task or the new.
pub fn switch(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    switch: &Switch,
) -> Result<(), Fault> {
    let (new, layout) = new_task(cpu, mem, switch)?;
    let tss = Segment {
        rights: new.descriptor.rights() | u16::from(system::BUSY),
        ..new.segment(switch.selector)
    };
    let mut image = layout.load(cpu, mem, tss.base)?;
    let links = matches!(switch.cause, Cause::Call | Cause::Event);
    save_old_task(cpu, mem, switch, &new, tss.base, links)?;
    if links {
        image.flags |= rflags::NT;
    }
    enter_new_task(cpu, &image, tss);
    load_descriptors(cpu, mem, &image, layout)
        .and_then(|()| finish(cpu, mem, switch, &image, layout))
        .map_err(|exception| Fault {
            exception,
            in_new_task: true,
        })
}

/// The TSS to switch to. SDM 3A, 7.3, steps 1 to 4 and table 7-1.
fn new_task(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    switch: &Switch,
) -> Result<(Entry, Layout), Exception> {
    let selector = switch.selector;
    let returns = switch.cause == Cause::Return;
    let raise = if returns {
        Exception::invalid_tss
    } else {
        Exception::general_protection
    };
    if selector & 4 != 0 || is_null(selector) {
        return Err(raise(error_of(selector)));
    }
    let entry = Entry::read(cpu, mem, selector, raise)?;
    let kind = entry.descriptor.kind();
    let layout = match kind & !system::BUSY {
        system::TSS32_AVAILABLE => Layout::Tss32,
        system::TSS16_AVAILABLE => Layout::Tss16,
        _ => return Err(raise(entry.error())),
    };
    let busy = kind & system::BUSY != 0;
    if !entry.descriptor.is_system() || busy != returns {
        return Err(raise(entry.error()));
    }
    if !entry.descriptor.present() {
        return Err(Exception::segment_not_present(entry.error()));
    }
    if entry.descriptor.limit() < layout.last_byte() {
        return Err(Exception::invalid_tss(entry.error()));
    }
    Ok((entry, layout))
}

/// Writes the old task's TSS, the link of the new one at `new_base`, and the busy bits. Everything
/// is probed before the first byte is written. SDM 3A, 7.3, steps 5 to 10.
fn save_old_task(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    switch: &Switch,
    new: &Entry,
    new_base: u64,
    links: bool,
) -> Result<(), Exception> {
    let wide = cpu.tr.rights & u16::from(system::WIDE) != 0;
    let layout = if wide { Layout::Tss32 } else { Layout::Tss16 };
    if !cpu.tr.usable || cpu.tr.limit < layout.last_byte() {
        return Err(Exception::invalid_tss(error_of(cpu.tr.selector)));
    }
    let write = Access::SystemWrite;
    layout.probe(cpu, mem, cpu.tr.base)?;
    let leaves = matches!(switch.cause, Cause::Jump | Cause::Return);
    let old = if leaves {
        let old = Entry::read(cpu, mem, cpu.tr.selector, Exception::invalid_tss)?;
        mem.probe(cpu, old.linear, 8, write)?;
        Some(old)
    } else {
        None
    };
    mem.probe(cpu, new.linear, 8, write)?;
    if links {
        mem.probe(cpu, new_base, 2, write)?;
    }

    let mut image = Image::of(cpu, switch.next, switch.flags);
    if switch.cause == Cause::Return {
        image.flags &= !rflags::NT;
    }
    layout.store(cpu, mem, cpu.tr.base, &image)?;
    if let Some(old) = old {
        old.mark_busy(cpu, mem, false)?;
    }
    new.mark_busy(cpu, mem, true)?;
    if links {
        mem.store(cpu, new_base, 2, u64::from(cpu.tr.selector), write)?;
    }
    Ok(())
}

/// Loads the registers that need no descriptor. Segment registers hold their selectors and cannot
/// be used yet. SDM 3A, 7.3, steps 11 and 12.
fn enter_new_task(cpu: &mut CpuState, image: &Image, tss: Segment) {
    cpu.tr = tss;
    cpu.cr0 |= cr0::TS;
    // The local breakpoints end with the task. SDM 3B, 18.2.4.
    cpu.dr7 &= !debug::DR7_LOCAL;
    cpu.rip = u64::from(image.ip);
    cpu.rflags = image.flags & rflags::WRITABLE | rflags::FIXED;
    for (register, value) in cpu.gpr.iter_mut().zip(image.gpr) {
        *register = u64::from(value);
    }
    for (segment, selector) in cpu.segments.iter_mut().zip(image.segments) {
        *segment = null_segment(selector);
    }
    cpu.ldtr = null_segment(image.ldt);
    cpu.cpl = if cpu.virtual_8086() {
        3
    } else {
        image.segments[Seg::Cs as usize] as u8 & 3
    };
}

/// Loads CR3 and the descriptors that the new task's selectors name.
fn load_descriptors(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    image: &Image,
    layout: Layout,
) -> Result<(), Exception> {
    if layout == Layout::Tss32 && cpu.cr0 & cr0::PG != 0 {
        cpu.cr3 = u64::from(image.cr3);
        mem.address_space_changed(cpu)?;
    }
    cpu.ldtr = local_table(cpu, mem, image.ldt, Exception::invalid_tss)
        .map_err(absent_table_is_invalid)?;
    if cpu.virtual_8086() {
        for (segment, selector) in cpu.segments.iter_mut().zip(image.segments) {
            *segment = virtual_8086_segment(selector);
        }
        return Ok(());
    }
    let raise = Exception::invalid_tss;
    let selector = |seg: Seg| image.segments[seg as usize];
    cpu.segments[Seg::Cs as usize] = code_segment(cpu, mem, selector(Seg::Cs))?;
    cpu.segments[Seg::Ss as usize] = stack_segment(cpu, mem, selector(Seg::Ss), cpu.cpl, raise)?;
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        cpu.segments[seg as usize] = data_segment(cpu, mem, selector(seg), cpu.cpl, raise)?;
    }
    Ok(())
}

/// An LDT that is not present is #TS here, not #NP. SDM 3A, table 7-1.
fn absent_table_is_invalid(fault: Exception) -> Exception {
    match (fault.vector, fault.error) {
        (Vector::SegmentNotPresent, Some(error)) => Exception::invalid_tss(error),
        _ => fault,
    }
}

/// The code segment of a new task.
fn code_segment(
    cpu: &CpuState,
    mem: &mut impl LinearMemory,
    selector: u16,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return Err(Exception::invalid_tss(0));
    }
    let entry = Entry::read(cpu, mem, selector, Exception::invalid_tss)?;
    let descriptor = entry.descriptor;
    let level = if descriptor.is_conforming() {
        descriptor.dpl() <= cpu.cpl
    } else {
        descriptor.dpl() == cpu.cpl
    };
    if !descriptor.is_code() || !level {
        return Err(Exception::invalid_tss(entry.error()));
    }
    if !descriptor.present() {
        return Err(Exception::segment_not_present(entry.error()));
    }
    entry.mark_accessed(cpu, mem)?;
    Ok(entry.segment(selector))
}

/// What happens in the new task before its first instruction.
fn finish(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    switch: &Switch,
    image: &Image,
    layout: Layout,
) -> Result<(), Exception> {
    if image.trap {
        cpu.pending_debug |= debug::DR6_BT;
    }
    if let Some(error) = switch.error {
        let mut stack = Stack::current(cpu);
        stack.push(cpu, mem, u64::from(error), layout.word())?;
        let rsp = &mut cpu.gpr[Gpr::Rsp as usize];
        *rsp = stack.stack_pointer(*rsp);
    }
    if image.ip > cpu.seg(Seg::Cs).limit {
        return Err(Exception::general_protection(0));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
