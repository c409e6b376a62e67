use super::*;
use crate::testing::*;

const UD: Result<(), Exception> = Err(Exception::invalid_opcode());
const GP: Result<(), Exception> = Err(Exception::general_protection(0));
const RCX: usize = Gpr::Rcx as usize;
const R11: usize = Gpr::R11 as usize;

fn linux(cpl: u8) -> CpuState {
    let (mut cpu, _) = long(cpl);
    cpu.msr.star = 0x0023_0010 << 32;
    cpu.msr.lstar = 0xffff_8000_0000_1000;
    cpu.msr.cstar = 0xffff_8000_0000_2000;
    cpu.msr.fmask = rflags::IF | rflags::TF | rflags::AC;
    cpu.rflags = rflags::FIXED | rflags::IF | rflags::ZF | rflags::RF;
    cpu
}

fn code_and_stack(cpu: &CpuState) -> (u16, u16) {
    (cpu.seg(Seg::Cs).selector, cpu.seg(Seg::Ss).selector)
}

#[test]
fn syscall_saves_address_and_flags_and_masks_them() {
    let mut cpu = linux(3);
    syscall(&mut cpu, Vendor::Intel, 0x5_0002).unwrap();
    assert_eq!(cpu.gpr[RCX], 0x5_0002);
    assert_eq!(cpu.gpr[R11], rflags::FIXED | rflags::IF | rflags::ZF);
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::ZF);
    assert_eq!((cpu.rip, cpu.cpl), (0xffff_8000_0000_1000, 0));
    assert_eq!(code_and_stack(&cpu), (0x10, 0x18));
    assert!(cpu.code64());
    assert_eq!(cpu.seg(Seg::Ss).rights, 0xc093);
}

#[test]
fn sysret_brings_back_what_syscall_saved() {
    let mut cpu = linux(3);
    let before = cpu.rflags & !rflags::RF;
    syscall(&mut cpu, Vendor::Intel, 0x5_0002).unwrap();
    sysret(&mut cpu, Vendor::Intel, true).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.rflags), (0x5_0002, 3, before));
    assert_eq!(code_and_stack(&cpu), (0x33, 0x2b));
    assert!(cpu.code64());
}

#[test]
fn sysret_with_the_trap_flag_traps_before_the_next_instruction() {
    let mut cpu = linux(0);
    cpu.gpr[R11] = rflags::FIXED;
    sysret(&mut cpu, Vendor::Amd, true).unwrap();
    assert_eq!(cpu.pending_debug, 0);
    cpu.cpl = 0;
    cpu.gpr[R11] = rflags::FIXED | rflags::TF;
    sysret(&mut cpu, Vendor::Amd, true).unwrap();
    assert_eq!(cpu.pending_debug, debug::DR6_BS);
}

#[test]
fn sysret_without_rex_returns_to_compatibility_mode() {
    let mut cpu = linux(0);
    cpu.gpr[RCX] = 0x1_2345_6789;
    cpu.gpr[R11] = u64::MAX;
    sysret(&mut cpu, Vendor::Intel, false).unwrap();
    assert_eq!((cpu.rip, cpu.code_bits()), (0x2345_6789, 32));
    assert_eq!(code_and_stack(&cpu), (0x23, 0x2b));
    assert_eq!(cpu.rflags, 0x3c_7fd7);
}

#[test]
fn a_non_canonical_return_faults_in_the_kernel_on_intel_alone() {
    let mut cpu = linux(0);
    cpu.gpr[RCX] = 1 << 47;
    let before = cpu.clone();
    assert_eq!(sysret(&mut cpu, Vendor::Intel, true), GP);
    assert_eq!(cpu, before);
    assert_eq!(sysret(&mut cpu, Vendor::Amd, true), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl), (1 << 47, 3));
}

#[test]
fn syscall_in_compatibility_mode_exists_on_amd_alone() {
    let mut cpu = linux(3);
    cpu.segments[Seg::Cs as usize].rights &= !Segment::LONG;
    assert_eq!(syscall(&mut cpu, Vendor::Intel, 0x100), UD);
    assert_eq!(syscall(&mut cpu, Vendor::Amd, 0x100), Ok(()));
    assert_eq!(cpu.rip, 0xffff_8000_0000_2000);
    assert!(cpu.code64());
}

#[test]
fn without_sce_there_is_no_syscall() {
    let mut cpu = linux(3);
    cpu.efer &= !efer::SCE;
    assert_eq!(syscall(&mut cpu, Vendor::Intel, 0x100), UD);
    assert_eq!(sysret(&mut cpu, Vendor::Intel, true), UD);
    let mut cpu = linux(3);
    assert_eq!(sysret(&mut cpu, Vendor::Intel, true), GP);
}

#[test]
fn sysenter_and_sysexit_take_their_segments_from_one_selector() {
    let (mut cpu, _) = protected(3);
    cpu.msr.sysenter_cs = 0x63;
    (cpu.msr.sysenter_eip, cpu.msr.sysenter_esp) = (0xc000_1000, 0xc000_8000);
    cpu.rflags |= rflags::IF;
    sysenter(&mut cpu, Vendor::Amd).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[Gpr::Rsp as usize], cpu.cpl),
        (0xc000_1000, 0xc000_8000, 0)
    );
    assert_eq!(code_and_stack(&cpu), (0x60, 0x68));
    assert_eq!(cpu.rflags, rflags::FIXED);
    (cpu.gpr[RCX], cpu.gpr[Gpr::Rdx as usize]) = (0x8000, 0x5_0000);
    sysexit(&mut cpu, Vendor::Amd, false).unwrap();
    assert_eq!(
        (cpu.rip, cpu.gpr[Gpr::Rsp as usize], cpu.cpl),
        (0x5_0000, 0x8000, 3)
    );
    assert_eq!(code_and_stack(&cpu), (0x73, 0x7b));
    assert_eq!(sysexit(&mut cpu, Vendor::Amd, false), GP);
}

#[test]
fn sysenter_in_long_mode_enters_64_bit_code_on_intel_and_is_undefined_on_amd() {
    let mut cpu = linux(3);
    cpu.msr.sysenter_cs = 0x10;
    cpu.msr.sysenter_eip = 0xffff_8000_0000_3000;
    assert_eq!(sysenter(&mut cpu, Vendor::Amd), UD);
    sysenter(&mut cpu, Vendor::Intel).unwrap();
    assert_eq!(cpu.rip, 0xffff_8000_0000_3000);
    cpu.gpr[Gpr::Rdx as usize] = 1 << 47;
    assert_eq!(sysexit(&mut cpu, Vendor::Intel, true), GP);
    cpu.gpr[Gpr::Rdx as usize] = 0x5_0000;
    sysexit(&mut cpu, Vendor::Intel, true).unwrap();
    assert_eq!(code_and_stack(&cpu), (0x33, 0x3b));
    assert!(cpu.code64());
}

#[test]
fn a_null_sysenter_selector_and_real_mode_are_protection_faults() {
    let (mut cpu, _) = protected(3);
    cpu.msr.sysenter_cs = 3;
    assert_eq!(sysenter(&mut cpu, Vendor::Intel), GP);
    let (mut cpu, _) = real();
    cpu.msr.sysenter_cs = 0x10;
    assert_eq!(sysenter(&mut cpu, Vendor::Intel), GP);
}
