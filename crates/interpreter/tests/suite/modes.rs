//! Real mode, 16- and 32-bit protected mode, and programs at CPL 3.

use super::harness::{DATA, Machine, STACK, assemble, state64};
use belljar_memory::GuestPhysAddr;
use belljar_x86::bits::{cr0, rflags};
use belljar_x86::{CpuState, Gpr, Seg, Segment};
use iced_x86::code_asm::*;

/// A processor in real mode at 0:7C00h.
fn real_mode() -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.segments[Seg::Cs as usize] = Segment::real_mode(0, cpu.seg(Seg::Cs).rights);
    cpu.rip = 0x7c00;
    cpu.gpr[Gpr::Rsp as usize] = 0x7000;
    cpu
}

/// Runs 16-bit code in real mode to HLT.
fn run_real(write: impl FnOnce(&mut CodeAssembler)) -> (Machine, CpuState) {
    let mut assembler = CodeAssembler::new(16).unwrap();
    write(&mut assembler);
    let code = assembler.assemble(0x7c00).unwrap();
    let mut machine = Machine::with_state(&[], real_mode());
    machine.memory.write(GuestPhysAddr(0x7c00), &code).unwrap();
    let state = machine.run().clone();
    (machine, state)
}

#[test]
fn real_mode_addresses_by_paragraphs() {
    let (machine, state) = run_real(|a| {
        a.mov(ax, 0x2000).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(bx, 0x10).unwrap();
        a.mov(word_ptr(bx + 4), 0x1234).unwrap();
        a.mov(cx, word_ptr(bx + 4)).unwrap();
        a.push(cx).unwrap();
        a.pop(dx).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(machine.word(0x2_0014) & 0xffff, 0x1234);
    assert_eq!(state.gpr[Gpr::Rdx as usize] & 0xffff, 0x1234);
    assert_eq!(state.gpr[Gpr::Rsp as usize], 0x7000);
}

#[test]
fn a_real_mode_access_beyond_the_limit_faults_through_the_vector_table() {
    let (mut machine, state) = run_real(|a| {
        // Vector 13 leads to 0:500h.
        a.mov(word_ptr(0x34), 0x500).unwrap();
        a.mov(word_ptr(0x36), 0).unwrap();
        a.mov(byte_ptr(0x500), 0xf4).unwrap();
        a.mov(bx, 0xffff).unwrap();
        a.mov(ax, word_ptr(bx)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(state.rip, 0x501);
    assert_eq!(state.gpr[Gpr::Rsp as usize], 0x7000 - 6);
    assert!(machine.vector().is_none());
}

#[test]
fn real_mode_enters_protected_mode_and_runs_32_bit_code() {
    let gdt = [0, 0x00cf_9b00_0000_ffff_u64, 0x00cf_9300_0000_ffff];
    let mut bits32 = CodeAssembler::new(32).unwrap();
    bits32.mov(eax, 0x10).unwrap();
    bits32.mov(ds, eax).unwrap();
    bits32.mov(ss, eax).unwrap();
    bits32.mov(esp, 0x9_0000).unwrap();
    bits32.mov(ebx, DATA as u32).unwrap();
    bits32.mov(dword_ptr(ebx), 0xdead_beefu32).unwrap();
    bits32.push(dword_ptr(ebx)).unwrap();
    bits32.pop(ecx).unwrap();
    bits32.hlt().unwrap();
    let tail = bits32.assemble(0x8000).unwrap();
    let mut bits16 = CodeAssembler::new(16).unwrap();
    bits16.lgdt(fword_ptr(0x600)).unwrap();
    bits16.mov(eax, cr0).unwrap();
    bits16.or(al, 1).unwrap();
    bits16.mov(cr0, eax).unwrap();
    // jmp dword 8:8000h
    bits16.db(&[0x66, 0xea, 0x00, 0x80, 0, 0, 8, 0]).unwrap();
    let head = bits16.assemble(0x7c00).unwrap();

    let mut machine = Machine::with_state(&[], real_mode());
    let write = |at, data: &[u8]| machine.memory.write(GuestPhysAddr(at), data).unwrap();
    write(0x600, &[23, 0, 0x10, 0x06, 0, 0]);
    for (at, entry) in (0x610..).step_by(8).zip(gdt) {
        write(at, &entry.to_le_bytes());
    }
    write(0x7c00, &head);
    write(0x8000, &tail);
    let state = machine.run().clone();
    assert_eq!(state.gpr[Gpr::Rcx as usize], 0xdead_beef);
    assert_eq!(state.gpr[Gpr::Rsp as usize], 0x9_0000);
    assert_ne!(state.cr0 & cr0::PE, 0);
    assert_eq!(state.seg(Seg::Cs).selector, 8);
}

#[test]
fn repeated_moves_in_real_mode_wrap_within_the_segment() {
    let (machine, state) = run_real(|a| {
        a.mov(ax, 0x3000).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(di, 0xfffe).unwrap();
        a.mov(cx, 4).unwrap();
        a.mov(al, 0x55).unwrap();
        a.rep().stosb().unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(state.gpr[Gpr::Rdi as usize] & 0xffff, 2);
    assert_eq!(state.gpr[Gpr::Rcx as usize] & 0xffff, 0);
    assert_eq!(machine.word(0x3_0000) & 0xffff_ffff, 0x5555);
    assert_eq!(machine.word(0x3_fff8) >> 48, 0x5555);
}

/// A 64-bit program at CPL 3.
fn user64() -> CpuState {
    let mut cpu = state64();
    for segment in &mut cpu.segments {
        segment.rights |= 3 << 5;
        segment.selector |= 3;
    }
    cpu.cpl = 3;
    cpu.tr = Segment {
        selector: 0x20,
        rights: Segment::PRESENT | 0b1011,
        limit: 0x67,
        base: 0xb000,
        usable: true,
    };
    cpu
}

/// Runs a program with a task-state segment that has a stack for CPL 0 and no I/O bitmap.
fn run_program(code: &[u8], cpu: CpuState) -> Machine {
    let mut machine = Machine::with_state(code, cpu);
    let write = |at, data: &[u8]| machine.memory.write(GuestPhysAddr(at), data).unwrap();
    write(0xb004, &STACK.to_le_bytes());
    write(0xb066, &[0x68, 0]);
    machine.run();
    machine
}

fn run_user(code: &[u8]) -> Machine {
    run_program(code, user64())
}

#[test]
fn privileged_instructions_fault_at_cpl_3() {
    let privileged: [&[u8]; 8] = [
        &[0xf4],
        &[0xfa],
        &[0x0f, 0x20, 0xc0],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0x38],
        &[0xe4, 0x80],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x09],
    ];
    for code in privileged {
        let mut machine = run_user(code);
        assert_eq!(machine.vector(), Some(13), "{code:x?}");
    }
}

#[test]
fn a_program_cannot_change_the_interrupt_flag_by_popf() {
    let code = assemble(|a| {
        a.push(0x3202).unwrap();
        a.popfq().unwrap();
        a.pushfq().unwrap();
        a.pop(rax).unwrap();
        a.ud2().unwrap();
    });
    let mut machine = run_user(&code);
    assert_eq!(machine.vector(), Some(6));
    let flags = machine.vcpu.state().gpr[Gpr::Rax as usize];
    assert_eq!(flags & (rflags::IF | rflags::IOPL), 0);
}

#[test]
fn misaligned_accesses_of_a_program_fault_if_it_asks_for_that() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(eax, dword_ptr(rbx + 1)).unwrap();
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x4_0000).unwrap();
        a.popfq().unwrap();
        a.mov(eax, dword_ptr(rbx + 4)).unwrap();
        a.mov(ecx, 1).unwrap();
        a.mov(eax, dword_ptr(rbx + 1)).unwrap();
        a.ud2().unwrap();
    });
    let mut cpu = user64();
    cpu.cr0 |= cr0::AM;
    let mut machine = run_program(&code, cpu);
    assert_eq!(machine.vector(), Some(17));
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rcx as usize], 1);
}
