//! SYSCALL, SYSRET, SYSENTER, SYSEXIT. SDM 3A, 5.8.7 and 5.8.8.

use crate::bits::{debug, efer, rflags};
use crate::descriptor::is_null;
use crate::paging::is_canonical;
use crate::{CpuState, Exception, Gpr, Seg, Segment};

/// Whose processor it is, where the two makers' differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SYSENTER and SYSEXIT exist in all modes, SYSCALL and SYSRET in 64-bit mode alone. SYSRET
    /// checks RCX.
    Intel,
    /// SYSCALL and SYSRET exist in all protected modes, SYSENTER and SYSEXIT only outside long
    /// mode. SYSRET does not check RCX.
    Amd,
}

/// The flat segments that these instructions load without reading a descriptor.
#[derive(Clone, Copy)]
enum Flat {
    Code64,
    Code32,
    Stack,
}

/// SYSCALL; `next` is the address of the next instruction.
///
/// # Errors
/// #UD where it does not exist.
pub fn syscall(cpu: &mut CpuState, vendor: Vendor, next: u64) -> Result<(), Exception> {
    require_enabled(cpu, vendor)?;
    // The flags are saved as they are after the instruction, which clears RF.
    let flags = cpu.rflags & !rflags::RF;
    cpu.gpr[Gpr::Rcx as usize] = next;
    if cpu.long_mode() {
        cpu.gpr[Gpr::R11 as usize] = flags;
        cpu.rip = if cpu.code64() {
            cpu.msr.lstar
        } else {
            cpu.msr.cstar
        };
        cpu.rflags = flags & !cpu.msr.fmask | rflags::FIXED;
    } else {
        // APM 3, SYSCALL: legacy mode.
        cpu.rip = cpu.msr.star & 0xffff_ffff;
        cpu.rflags = flags & !(rflags::IF | rflags::VM);
    }
    load_supervisor(cpu);
    cpu.cpl = 0;
    Ok(())
}

/// The selectors of CS and SS that SYSCALL loads.
pub fn supervisor_selectors(cpu: &CpuState) -> (u16, u16) {
    let selector = (cpu.msr.star >> 32) as u16 & !3;
    (selector, selector.wrapping_add(8))
}

/// Loads CS and SS as SYSCALL does.
pub fn load_supervisor(cpu: &mut CpuState) {
    let (code, stack) = supervisor_selectors(cpu);
    let kind = if cpu.long_mode() {
        Flat::Code64
    } else {
        Flat::Code32
    };
    load_flat(cpu, Seg::Cs, code, kind, 0);
    load_flat(cpu, Seg::Ss, stack, Flat::Stack, 0);
}

/// SYSRET; to 64-bit mode if `wide` (REX.W).
///
/// # Errors
/// #UD where it does not exist, #GP(0) if not at CPL 0 or RCX is not canonical.
pub fn sysret(cpu: &mut CpuState, vendor: Vendor, wide: bool) -> Result<(), Exception> {
    require_enabled(cpu, vendor)?;
    let rcx = cpu.gpr[Gpr::Rcx as usize];
    // Intel's processors check while they still are at level 0; AMD's fault at the target.
    if cpu.cpl != 0 || (wide && vendor == Vendor::Intel && !is_canonical(rcx)) {
        return Err(Exception::general_protection(0));
    }
    if cpu.long_mode() {
        // RF and VM are never restored. SDM 2, SYSRET.
        cpu.rflags = cpu.gpr[Gpr::R11 as usize] & 0x3c_7fd7 | rflags::FIXED;
    } else {
        cpu.rflags = cpu.rflags & !(rflags::RF | rflags::VM) | rflags::IF;
    }
    if wide {
        cpu.rip = rcx;
    } else {
        cpu.rip = rcx & 0xffff_ffff;
    }
    load_program(cpu, wide);
    cpu.cpl = 3;
    if cpu.rflags & rflags::TF != 0 {
        // TF traps at once, as if the program's SYSCALL had just ended, not after another
        // instruction as with POPF and IRET: debuggers step over system calls by it.
        cpu.pending_debug |= debug::DR6_BS;
    }
    Ok(())
}

/// The selectors of CS and SS that SYSRET to 64-bit code loads.
pub fn program_selectors(cpu: &CpuState) -> (u16, u16) {
    let selector = (cpu.msr.star >> 48) as u16;
    (selector.wrapping_add(16) | 3, selector.wrapping_add(8) | 3)
}

/// Loads CS and SS as SYSRET does; of 64-bit code if `wide`.
pub fn load_program(cpu: &mut CpuState, wide: bool) {
    let (code, stack) = program_selectors(cpu);
    if wide {
        load_flat(cpu, Seg::Cs, code, Flat::Code64, 3);
    } else {
        let selector = (cpu.msr.star >> 48) as u16;
        load_flat(cpu, Seg::Cs, selector, Flat::Code32, 3);
    }
    load_flat(cpu, Seg::Ss, stack, Flat::Stack, 3);
}

/// SYSENTER.
///
/// # Errors
/// #UD where it does not exist, #GP(0) in real mode or if `IA32_SYSENTER_CS` is null.
pub fn sysenter(cpu: &mut CpuState, vendor: Vendor) -> Result<(), Exception> {
    let selector = sysenter_selector(cpu, vendor)?;
    cpu.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    if cpu.long_mode() {
        cpu.rip = cpu.msr.sysenter_eip;
        cpu.gpr[Gpr::Rsp as usize] = cpu.msr.sysenter_esp;
        load_flat(cpu, Seg::Cs, selector, Flat::Code64, 0);
    } else {
        cpu.rip = cpu.msr.sysenter_eip & 0xffff_ffff;
        cpu.gpr[Gpr::Rsp as usize] = cpu.msr.sysenter_esp & 0xffff_ffff;
        load_flat(cpu, Seg::Cs, selector, Flat::Code32, 0);
    }
    load_flat(cpu, Seg::Ss, selector.wrapping_add(8), Flat::Stack, 0);
    cpu.cpl = 0;
    Ok(())
}

/// SYSEXIT; to 64-bit mode if `wide` (REX.W).
///
/// # Errors
/// #UD where it does not exist, #GP(0) if not at CPL 0, if `IA32_SYSENTER_CS` is null or a target
/// is not canonical.
pub fn sysexit(cpu: &mut CpuState, vendor: Vendor, wide: bool) -> Result<(), Exception> {
    let selector = sysenter_selector(cpu, vendor)?;
    let (rcx, rdx) = (cpu.gpr[Gpr::Rcx as usize], cpu.gpr[Gpr::Rdx as usize]);
    if cpu.cpl != 0 || (wide && !(is_canonical(rcx) && is_canonical(rdx))) {
        return Err(Exception::general_protection(0));
    }
    let stack = if wide {
        (cpu.rip, cpu.gpr[Gpr::Rsp as usize]) = (rdx, rcx);
        load_flat(cpu, Seg::Cs, selector.wrapping_add(32), Flat::Code64, 3);
        selector.wrapping_add(40)
    } else {
        cpu.rip = rdx & 0xffff_ffff;
        cpu.gpr[Gpr::Rsp as usize] = rcx & 0xffff_ffff;
        load_flat(cpu, Seg::Cs, selector.wrapping_add(16), Flat::Code32, 3);
        selector.wrapping_add(24)
    };
    load_flat(cpu, Seg::Ss, stack, Flat::Stack, 3);
    cpu.cpl = 3;
    Ok(())
}

/// SYSCALL and SYSRET are #UD where they do not exist.
fn require_enabled(cpu: &CpuState, vendor: Vendor) -> Result<(), Exception> {
    let mode = match vendor {
        Vendor::Intel => cpu.code64(),
        Vendor::Amd => cpu.protected() && !cpu.virtual_8086(),
    };
    if !mode || cpu.efer & efer::SCE == 0 {
        return Err(Exception::invalid_opcode());
    }
    Ok(())
}

/// The base selector of SYSENTER and SYSEXIT.
fn sysenter_selector(cpu: &CpuState, vendor: Vendor) -> Result<u16, Exception> {
    if vendor == Vendor::Amd && cpu.long_mode() {
        return Err(Exception::invalid_opcode());
    }
    let selector = cpu.msr.sysenter_cs as u16 & !3;
    if !cpu.protected() || is_null(selector) {
        return Err(Exception::general_protection(0));
    }
    Ok(selector)
}

/// Loads `seg` with a flat segment of privilege level `level`.
fn load_flat(cpu: &mut CpuState, seg: Seg, selector: u16, kind: Flat, level: u8) {
    const READ_WRITE: u16 = Segment::WRITABLE | Segment::ACCESSED;
    let kind = match kind {
        Flat::Code64 => Segment::CODE | Segment::LONG,
        Flat::Code32 => Segment::CODE | Segment::BIG,
        Flat::Stack => Segment::BIG,
    };
    let level = u16::from(level);
    cpu.segments[seg as usize] = Segment {
        selector: selector | level,
        rights: kind
            | READ_WRITE
            | Segment::S
            | Segment::PRESENT
            | Segment::GRANULARITY
            | level << 5,
        limit: u32::MAX,
        base: 0,
        usable: true,
    };
}

#[cfg(test)]
mod tests;
