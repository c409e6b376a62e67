//! x87: its stack, the pointers of its last instruction, its exceptions.

use super::harness::{CODE, DATA, Machine, PAGES, assemble};
use belljar_x86::Gpr;
use belljar_x86::state::X87;
use iced_x86::code_asm::*;

/// Control word with all exceptions masked but division by zero.
const DIVISION_UNMASKED: u16 = 0x37b;

/// Where `instruction` begins in `code`, counted from its end.
fn address(code: &[u8], instruction: &[u8]) -> u64 {
    let found = |at: &usize| code[*at..].starts_with(instruction);
    CODE + (0..code.len()).rev().find(found).unwrap() as u64
}

fn x87(machine: &mut Machine) -> X87 {
    machine.vcpu.state().vector.x87
}

#[test]
fn the_stack_outlasts_what_lies_between() {
    let code = assemble(|a| {
        a.fld1().unwrap();
        a.mov(rbx, DATA).unwrap();
        a.fadd(dword_ptr(rbx)).unwrap();
        // SSE, a system instruction, and a page that has not been accessed.
        a.cvtsi2sd(xmm0, rbx).unwrap();
        a.cpuid().unwrap();
        a.mov(rbx, DATA + 0x5000).unwrap();
        a.fld(qword_ptr(rbx)).unwrap();
        a.faddp(st1, st0).unwrap();
        a.fstp(qword_ptr(rbx + 8)).unwrap();
        a.mov(rax, qword_ptr(rbx + 8)).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.write(DATA, &2f32.to_le_bytes());
    machine.write(DATA + 0x5000, &4f64.to_le_bytes());
    let sum = machine.run().gpr[Gpr::Rax as usize];
    assert_eq!(sum, 7f64.to_bits());
    assert_eq!(x87(&mut machine).ftw, 0, "the stack is empty");
}

#[test]
fn the_last_instruction_is_the_guests() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.fld(qword_ptr(rbx + 16)).unwrap();
        a.fld1().unwrap();
        a.fnstsw(ax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    let x87 = x87(&mut machine);
    // fld1 is D9 E8; FNSTSW leaves the pointers alone.
    assert_eq!(x87.fip, address(&code, &[0xd9, 0xe8]));
    assert_eq!(x87.fop, 0x1e8);
    assert_eq!(x87.fdp, DATA + 16);
}

#[test]
fn a_page_fault_leaves_everything_as_it_was() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.fld(dword_ptr(rbx)).unwrap();
        a.mov(rbx, PAGES).unwrap();
        a.fadd(qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.write(DATA, &2f32.to_le_bytes());
    machine.run();
    assert_eq!(machine.vector(), Some(14));
    let x87 = x87(&mut machine);
    assert_eq!(x87.fip, address(&code, &[0xd9, 0x03]));
    assert_eq!(x87.fdp, DATA);
    assert_eq!(x87.st[0], [1 << 63, 0x4000], "2.0");
}

#[test]
fn an_exception_that_waits_comes_before_a_page_fault() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.fldcw(word_ptr(rbx)).unwrap();
        a.fld1().unwrap();
        a.fldz().unwrap();
        a.fdivp(st1, st0).unwrap();
        a.mov(rax, 1u64).unwrap();
        a.mov(rbx, PAGES).unwrap();
        a.fld(qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.write(DATA, &DIVISION_UNMASKED.to_le_bytes());
    machine.run();
    assert_eq!(machine.vector(), Some(16));
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rax as usize], 1);
    assert_ne!(x87(&mut machine).fsw & 4, 0, "the division raised it");
}
