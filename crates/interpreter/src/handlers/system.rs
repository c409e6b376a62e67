//! Control and debug registers, MSRs, CPUID, time, cache and TLB control, SYSCALL and its kin, HLT.

use super::operand::{self, MEMORY};
use super::segments::check_umip;
use crate::host::Word;
use crate::op::{Fault, Flow, Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_x86::bits::{cr0, cr4, rflags};
use belljar_x86::paging::{Flush, is_canonical};
use belljar_x86::state::Activity;
use belljar_x86::{Access, Exception, Gpr, control, debug, msr, syscall};

const RAX: u8 = Gpr::Rax as u8;
const RBX: u8 = Gpr::Rbx as u8;
const RCX: u8 = Gpr::Rcx as u8;
const RDX: u8 = Gpr::Rdx as u8;
/// The MSR that holds the local APIC's enable bit.
const MSR_APIC_BASE: u32 = 0x1b;
const APIC_ENABLED: u64 = 1 << 11;

/// #UD
pub fn undefined(core: &mut Core, _op: &Op) -> Step {
    Err(core.invalid_opcode())
}

/// #GP(0): an instruction of more than 15 bytes.
pub fn too_long(core: &mut Core, _op: &Op) -> Step {
    Err(core.protection_fault())
}

/// EDX:EAX.
fn edx_eax(core: &Core) -> u64 {
    u64::from(core.reg::<u32>(RDX)) << 32 | u64::from(core.reg::<u32>(RAX))
}

/// Sets EDX:EAX.
fn set_edx_eax(core: &mut Core, value: u64) {
    core.set_reg(RAX, value as u32);
    core.set_reg(RDX, (value >> 32) as u32);
}

/// Control and debug registers are read and written whole in 64-bit mode and by 32 bits elsewhere.
fn whole_register(core: &Core, number: u8) -> u64 {
    let mask = if core.code64 { u64::MAX } else { 0xffff_ffff };
    core.gpr(number) & mask
}

fn set_whole_register(core: &mut Core, number: u8, value: u64) {
    let mask = if core.code64 { u64::MAX } else { 0xffff_ffff };
    core.set_gpr(number, value & mask);
}

/// Ends a serialising instruction after which translations are dropped.
fn flushed(core: &mut Core, flush: Flush) -> Step {
    core.mmu.flush(flush);
    core.serialise();
    Ok(Flow::Resync)
}

/// MOV from control register `src`.
pub fn mov_from_cr(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let value = match op.src {
        0 => core.cpu.cr0,
        2 => core.cpu.cr2,
        3 => core.cpu.cr3,
        4 => core.cpu.cr4,
        8 => u64::from(core.board.task_priority(core.id)),
        _ => return Err(core.invalid_opcode()),
    };
    set_whole_register(core, op.dst, value);
    Ok(Flow::Next)
}

/// MOV to control register `dst`.
pub fn mov_to_cr(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let value = whole_register(core, op.src);
    let (cpu, memory) = (&mut core.cpu, core.mmu.memory().clone());
    let result = match op.dst {
        0 => control::write_cr0(cpu, &memory, value),
        2 => {
            cpu.cr2 = value;
            Ok(Flush::None)
        }
        3 => {
            let flush = control::write_cr3(cpu, &core.model, &memory, value);
            let flush = flush.map_err(|e| core.raise(e))?;
            core.mmu.change_space(flush);
            return flushed(core, Flush::None);
        }
        4 => control::write_cr4(cpu, &core.model, &memory, value),
        8 if value > 15 => Err(Exception::general_protection(0)),
        8 => {
            core.board.set_task_priority(core.id, value as u8);
            Ok(Flush::None)
        }
        _ => Err(Exception::invalid_opcode()),
    };
    let flush = result.map_err(|e| core.raise(e))?;
    flushed(core, flush)
}

/// MOV from debug register `src`.
pub fn mov_from_dr(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let value = debug::read(&core.cpu, op.src);
    let value = value.map_err(|e| core.raise(e))?;
    set_whole_register(core, op.dst, value);
    Ok(Flow::Next)
}

/// MOV to debug register `dst`.
pub fn mov_to_dr(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let value = whole_register(core, op.src);
    debug::write(&mut core.cpu, op.dst, value).map_err(|e| core.raise(e))?;
    Ok(Flow::Resync)
}

/// CLTS
pub fn clts(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    control::clts(&mut core.cpu);
    Ok(Flow::Resync)
}

/// LMSW
pub fn lmsw(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let source = operand::read::<u16>(core, op, op.src)?;
    let memory = core.mmu.memory().clone();
    let flush = control::lmsw(&mut core.cpu, &memory, source).map_err(|e| core.raise(e))?;
    flushed(core, flush)
}

/// SMSW: memory gets 16 bits, a register its size.
pub fn smsw<T: Word>(core: &mut Core, op: &Op) -> Step {
    check_umip(core)?;
    let value = core.cpu.cr0;
    if op.dst >= MEMORY {
        return operand::write(core, op, op.dst, value as u16);
    }
    core.set_reg(op.dst, T::truncate(value));
    Ok(Flow::Next)
}

/// INVLPG
pub fn invlpg(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let offset = effective_address(core, op);
    // Only the segment's base counts; SDM 2, INVLPG: an address that is not canonical does nothing.
    let at = if core.code64 {
        linear(core, op, offset, 1, Access::Read)?
    } else {
        offset.wrapping_add(core.cpu.seg(op.segment()).base) & 0xffff_ffff
    };
    if core.code64 && !is_canonical(at) {
        return Ok(Flow::Next);
    }
    let pcid = control::current_pcid(&core.cpu);
    let flush = Flush::Address {
        linear: at,
        pcid,
        global: true,
    };
    flushed(core, flush)
}

/// INVPCID: the type is in the register operand.
pub fn invpcid(core: &mut Core, op: &Op) -> Step {
    core.require_cpl0()?;
    let kind = whole_register(core, op.dst);
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, 16, Access::Read)?;
    let mut descriptor = [0; 16];
    let result = core
        .mmu
        .read_bytes(&core.cpu, at, &mut descriptor, Access::Read);
    result.map_err(|e| core.raise(e))?;
    let (words, _) = descriptor.as_chunks::<8>();
    let words = [words[0], words[1]].map(u64::from_le_bytes);
    let flush = control::invpcid(&core.cpu, kind, words).map_err(|e| core.raise(e))?;
    flushed(core, flush)
}

/// INVD, WBINVD, WBNOINVD: there are no caches to write back.
pub fn cache_control(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    core.serialise();
    Ok(Flow::Leave)
}

/// CLFLUSH, CLFLUSHOPT, CLWB: faults as a read of a byte does.
pub fn cache_line(core: &mut Core, op: &Op) -> Step {
    let offset = effective_address(core, op);
    let at = linear(core, op, offset, 1, Access::Read)?;
    super::branches::probe(core, at, 1, Access::Read)?;
    Ok(Flow::Next)
}

/// LFENCE, SFENCE, MFENCE
pub fn fence(_core: &mut Core, _op: &Op) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(Flow::Next)
}

/// PAUSE
pub fn pause(core: &mut Core, _op: &Op) -> Step {
    core.pauses = core.pauses.wrapping_add(1);
    if core.pauses.is_multiple_of(PAUSES_PER_RELAX) {
        core.board.relax(core.id);
    }
    Ok(Flow::Next)
}

/// How many PAUSEs a spinning guest executes before another thread may run.
const PAUSES_PER_RELAX: u32 = 64;

/// HLT
pub fn hlt(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    core.cpu.activity = Activity::Halted;
    Ok(Flow::Resync)
}

/// CPUID
pub fn cpuid(core: &mut Core, _op: &Op) -> Step {
    let (leaf, subleaf) = (core.reg::<u32>(RAX), core.reg::<u32>(RCX));
    let apic_on = core
        .board
        .msr_read(core.id, MSR_APIC_BASE)
        .is_ok_and(|base| base & APIC_ENABLED != 0);
    let [eax, ebx, ecx, edx] = core.model.query(leaf, subleaf, &core.cpu, core.id, apic_on);
    core.set_reg(RAX, eax);
    core.set_reg(RBX, ebx);
    core.set_reg(RCX, ecx);
    core.set_reg(RDX, edx);
    core.serialise();
    Ok(Flow::Leave)
}

/// RDMSR
pub fn rdmsr(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    let index = core.reg::<u32>(RCX);
    let read = msr::read(&core.cpu, &core.model, index, core.clock.tsc());
    let value = match read.map_err(|e| core.raise(e))? {
        msr::Read::Value(value) => value,
        msr::Read::Board => core
            .board
            .msr_read(core.id, index)
            .map_err(|_| core.protection_fault())?,
    };
    set_edx_eax(core, value);
    Ok(Flow::Next)
}

/// WRMSR
pub fn wrmsr(core: &mut Core, _op: &Op) -> Step {
    core.require_cpl0()?;
    let (index, value) = (core.reg::<u32>(RCX), edx_eax(core));
    let tsc = core.clock.tsc();
    let written = msr::write(&mut core.cpu, &core.model, index, value, tsc);
    match written.map_err(|e| core.raise(e))? {
        msr::Write::Done(flush) => flushed(core, flush),
        msr::Write::Board => {
            core.sync_flags();
            core.board
                .msr_write(core.id, index, value, &core.cpu)
                .map_err(|_| core.protection_fault())?;
            Ok(Flow::Resync)
        }
    }
}

/// #GP(0) if CR4.TSD keeps the time-stamp counter from programs.
fn require_tsc(core: &mut Core) -> Result<(), Fault> {
    if core.cpu.cr4 & cr4::TSD != 0 && core.cpu.cpl != 0 && core.cpu.protected() {
        return Err(core.protection_fault());
    }
    Ok(())
}

fn tsc(core: &Core) -> u64 {
    core.clock.tsc().wrapping_add(core.cpu.msr.tsc_adjust)
}

/// RDTSC
pub fn rdtsc(core: &mut Core, _op: &Op) -> Step {
    require_tsc(core)?;
    let now = tsc(core);
    set_edx_eax(core, now);
    Ok(Flow::Next)
}

/// RDTSCP
pub fn rdtscp(core: &mut Core, _op: &Op) -> Step {
    require_tsc(core)?;
    let now = tsc(core);
    set_edx_eax(core, now);
    core.set_reg(RCX, core.cpu.msr.tsc_aux as u32);
    Ok(Flow::Next)
}

/// RDPID
pub fn rdpid(core: &mut Core, op: &Op) -> Step {
    core.set_gpr(op.dst, core.cpu.msr.tsc_aux);
    Ok(Flow::Next)
}

/// What a hypercall of an unknown number gives, `-KVM_ENOSYS`.
const NO_SUCH_HYPERCALL: i32 = -1000;
/// What a hypercall gives to a program, `-EPERM`.
const HYPERCALL_NOT_PERMITTED: i32 = -1;

/// VMCALL, VMMCALL: the paravirtual interface's calls, by whichever of the two the guest prefers.
///
/// CPUID offers no feature that has a call, but drivers that find the interface try some of them
/// unguarded (Linux's clock-pairing driver does) and take the refusal; #UD would be their end.
pub fn hypercall(core: &mut Core, _op: &Op) -> Step {
    let result = if core.cpu.cpl == 0 {
        NO_SUCH_HYPERCALL
    } else {
        HYPERCALL_NOT_PERMITTED
    };
    set_whole_register(core, RAX, i64::from(result) as u64);
    Ok(Flow::Next)
}

/// RDPMC: none of the counters that there are ([`msr`]) counts.
pub fn rdpmc(core: &mut Core, _op: &Op) -> Step {
    let cpu = &core.cpu;
    let permitted = cpu.cr4 & cr4::PCE != 0 || cpu.cpl == 0;
    if !permitted || core.reg::<u32>(RCX) >= msr::event_counters(core.vendor) {
        return Err(core.protection_fault());
    }
    set_edx_eax(core, 0);
    Ok(Flow::Next)
}

/// RDRAND, RDSEED: always successful.
pub fn random<T: Word>(core: &mut Core, op: &Op) -> Step {
    let value = core.entropy.next_u64();
    core.set_reg(op.dst, T::truncate(value));
    core.flags.set_bits(rflags::CF);
    Ok(Flow::Next)
}

/// XGETBV
pub fn xgetbv(core: &mut Core, _op: &Op) -> Step {
    require_osxsave(core)?;
    let index = core.reg::<u32>(RCX);
    let value = control::read_xcr(&core.cpu, &core.model, index).map_err(|e| core.raise(e))?;
    set_edx_eax(core, value);
    Ok(Flow::Next)
}

/// XSETBV
pub fn xsetbv(core: &mut Core, _op: &Op) -> Step {
    require_osxsave(core)?;
    core.require_cpl0()?;
    let (index, value) = (core.reg::<u32>(RCX), edx_eax(core));
    control::write_xcr(&mut core.cpu, &core.model, index, value).map_err(|e| core.raise(e))?;
    Ok(Flow::Resync)
}

/// #UD unless CR4.OSXSAVE.
pub fn require_osxsave(core: &mut Core) -> Result<(), Fault> {
    if core.cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(core.invalid_opcode());
    }
    Ok(())
}

/// #NM if CR0.TS.
pub fn require_task_switched(core: &mut Core) -> Result<(), Fault> {
    if core.cpu.cr0 & cr0::TS != 0 {
        return Err(core.raise(Exception::device_not_available()));
    }
    Ok(())
}

/// SYSCALL
pub fn syscall(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let next = core.next_rip(op);
    let result = syscall::syscall(&mut core.cpu, core.vendor, next);
    switched(core, result)
}

/// SYSRET
pub fn sysret<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let result = syscall::sysret(&mut core.cpu, core.vendor, WIDE);
    switched(core, result)
}

/// SYSENTER
pub fn sysenter(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let result = syscall::sysenter(&mut core.cpu, core.vendor);
    switched(core, result)
}

/// SYSEXIT
pub fn sysexit<const WIDE: bool>(core: &mut Core, op: &Op) -> Step {
    core.sync(op);
    let result = syscall::sysexit(&mut core.cpu, core.vendor, WIDE);
    switched(core, result)
}

fn switched(core: &mut Core, result: Result<(), Exception>) -> Step {
    result.map_err(|e| core.raise(e))?;
    core.load_flags();
    Ok(Flow::ResyncJump)
}
