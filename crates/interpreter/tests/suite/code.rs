//! Code that changes while it runs, and code at the edges of pages.

use super::harness::{CODE, DATA, HANDLERS, Machine, PAGES, STACK, assemble, assemble_at, state64};
use belljar_x86::Gpr;
use iced_x86::code_asm::*;

const ROUNDS: u32 = 300;
/// Present and writable, for the supervisor.
const RIGHTS: u64 = 3;

/// A loop that has `change` put ECX into the immediate operand of a function's only MOV, at the
/// address in RSI, calls the function, and stops in RDI at the first wrong answer. The function
/// lies `distance` bytes from the code's start.
fn patching(distance: u64, change: impl Fn(&mut CodeAssembler)) -> u64 {
    let function = CODE + distance;
    let code = assemble(|a| {
        let (mut top, mut bad) = (a.create_label(), a.create_label());
        a.mov(rsi, function + 1).unwrap();
        a.mov(rbx, function).unwrap();
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut top).unwrap();
        change(a);
        a.call(rbx).unwrap();
        a.mov(edi, ecx).unwrap();
        a.cmp(eax, ecx).unwrap();
        a.jne(bad).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, ROUNDS as i32).unwrap();
        a.jne(top).unwrap();
        a.mov(edi, 0).unwrap();
        a.set_label(&mut bad).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    // mov eax, 0; ret
    machine.write(function, &[0xb8, 0, 0, 0, 0, 0xc3]);
    machine.map(PAGES, function & !0xfff, RIGHTS);
    machine.map(PAGES + 0x1000, (function & !0xfff) + 0x1000, RIGHTS);
    machine.run();
    assert_eq!(machine.vector(), None, "{:x?}", machine.vcpu.state());
    machine.vcpu.state().gpr[Gpr::Rdi as usize]
}

/// Functions in the page of the code that changes them, in another one, and across two.
const DISTANCES: [u64; 3] = [0x200, 0x3000, 0x2ffd];

fn every_change_is_seen(change: impl Fn(&mut CodeAssembler, u64)) {
    for distance in DISTANCES {
        let alias = PAGES + (CODE + distance) % 0x1000 + 1;
        assert_eq!(patching(distance, |a| change(a, alias)), 0, "{distance:#x}");
    }
}

#[test]
fn stores_to_code_are_seen() {
    every_change_is_seen(|a, _| a.mov(dword_ptr(rsi), ecx).unwrap());
}

#[test]
fn stores_to_code_through_another_address_are_seen() {
    every_change_is_seen(|a, alias| {
        a.mov(rdx, alias).unwrap();
        a.mov(dword_ptr(rdx), ecx).unwrap();
    });
}

#[test]
fn stores_of_single_bytes_are_seen() {
    every_change_is_seen(|a, _| {
        a.mov(eax, ecx).unwrap();
        for n in 0..4 {
            a.mov(byte_ptr(rsi + n), al).unwrap();
            a.shr(eax, 8).unwrap();
        }
    });
}

#[test]
fn atomic_operations_on_code_are_seen() {
    every_change_is_seen(|a, _| {
        a.mov(edx, ecx).unwrap();
        a.xchg(dword_ptr(rsi), edx).unwrap();
    });
    every_change_is_seen(|a, _| a.lock().inc(dword_ptr(rsi)).unwrap());
    every_change_is_seen(|a, _| {
        a.mov(eax, dword_ptr(rsi)).unwrap();
        a.lock().cmpxchg(dword_ptr(rsi), ecx).unwrap();
    });
}

#[test]
fn changes_of_code_by_operations_on_memory_are_seen() {
    every_change_is_seen(|a, _| a.add(dword_ptr(rsi), 1).unwrap());
    every_change_is_seen(|a, _| {
        a.stc().unwrap();
        a.adc(dword_ptr(rsi), 0).unwrap();
    });
}

#[test]
fn string_instructions_that_write_code_are_seen() {
    every_change_is_seen(|a, _| {
        a.push(rsi).unwrap();
        a.mov(dword_ptr(DATA), ecx).unwrap();
        a.push(rcx).unwrap();
        a.mov(rdi, rsi).unwrap();
        a.mov(esi, DATA as u32).unwrap();
        a.mov(ecx, 4).unwrap();
        a.rep().movsb().unwrap();
        a.pop(rcx).unwrap();
        a.pop(rsi).unwrap();
    });
    every_change_is_seen(|a, _| {
        a.mov(rdi, rsi).unwrap();
        a.mov(eax, ecx).unwrap();
        a.stosd().unwrap();
    });
}

#[test]
fn vector_stores_to_code_are_seen() {
    every_change_is_seen(|a, _| {
        a.movd(xmm3, ecx).unwrap();
        a.movss(dword_ptr(rsi), xmm3).unwrap();
    });
    every_change_is_seen(|a, _| {
        a.movups(xmm1, xmmword_ptr(rsi)).unwrap();
        a.movd(xmm3, ecx).unwrap();
        a.movss(xmm1, xmm3).unwrap();
        a.movups(xmmword_ptr(rsi), xmm1).unwrap();
    });
}

#[test]
fn pushes_onto_code_are_seen() {
    every_change_is_seen(|a, _| {
        a.mov(eax, dword_ptr(rsi + 4)).unwrap();
        a.shl(rax, 32).unwrap();
        a.or(rax, rcx).unwrap();
        a.mov(rbp, rsp).unwrap();
        a.lea(rsp, qword_ptr(rsi + 8)).unwrap();
        a.push(rax).unwrap();
        a.mov(rsp, rbp).unwrap();
    });
}

#[test]
fn a_loop_that_changes_its_own_operand_sees_each_change() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.db(&[0x05, 1, 0, 0, 0]).unwrap(); // add eax, 1
        a.inc(byte_ptr(rbx)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rax as usize] = 0;
    cpu.gpr[Gpr::Rcx as usize] = 50;
    cpu.gpr[Gpr::Rbx as usize] = CODE + 1;
    let mut machine = Machine::with_state(&code, cpu);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], (1..=50).sum::<u64>());
}

#[test]
fn an_instruction_that_overwrites_itself_has_run_as_it_was() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        // jmp to the end of the instruction, which is six bytes long
        a.mov(dword_ptr(rbx), 0x9090_04eb_u32).unwrap();
        a.inc(eax).unwrap();
        a.cmp(eax, 3).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rax as usize] = 0;
    cpu.gpr[Gpr::Rbx as usize] = CODE;
    let mut machine = Machine::with_state(&code, cpu);
    machine.run();
    assert_eq!(machine.vector(), None);
    assert_eq!(machine.word(CODE) as u32, 0x9090_04eb);
}

#[test]
fn data_beside_code_can_be_written_all_the_time() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rbx, CODE + 0x800).unwrap();
        a.mov(ecx, 2000).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(qword_ptr(rbx), rcx).unwrap();
        a.call(rdx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rdx as usize] = CODE + 0x400;
    // The stack lies in the page of the code, too.
    cpu.gpr[Gpr::Rsp as usize] = CODE + 0xc00;
    let mut machine = Machine::with_state(&code, cpu);
    machine.write(CODE + 0x400, &[0xc3]);
    machine.run();
    assert_eq!(machine.word(CODE + 0x800), (1..=2000).sum::<u64>());
}

#[test]
fn an_instruction_across_pages_faults_at_the_second_page() {
    let mut cpu = state64();
    cpu.rip = PAGES + 0xffd;
    cpu.gpr[Gpr::Rax as usize] = 7;
    let mut machine = Machine::with_state(&[], cpu);
    machine.map(PAGES, 0x40_0000, RIGHTS);
    // mov eax, imm32
    machine.write(0x40_0ffd, &[0xb8, 1, 2]);
    machine.run();
    assert_eq!(machine.vector(), Some(14));
    let state = machine.vcpu.state().clone();
    assert_eq!(state.cr2, PAGES + 0x1000);
    assert_eq!(state.gpr[Gpr::Rax as usize], 7);
    assert_eq!(
        machine.word(STACK - 40),
        PAGES + 0xffd,
        "the instruction's own address"
    );
}

#[test]
fn a_block_ends_where_the_next_page_is_not_mapped() {
    let code = assemble_at(PAGES + 0xff8, |a| {
        for _ in 0..4 {
            a.inc(eax).unwrap();
        }
    });
    assert_eq!(code.len(), 8);
    let mut cpu = state64();
    cpu.rip = PAGES + 0xff8;
    cpu.gpr[Gpr::Rax as usize] = 0;
    let mut machine = Machine::with_state(&[], cpu);
    machine.map(PAGES, 0x40_0000, RIGHTS);
    machine.write(0x40_0ff8, &code);
    // The handler maps the page and goes on.
    let entry = super::harness::entry_of(PAGES + 0x1000);
    let handler = assemble_at(HANDLERS + 0xe0, |a| {
        a.jmp(HANDLERS + 0x2000).unwrap();
    });
    machine.write(HANDLERS + 0xe0, &handler);
    let handler = assemble_at(HANDLERS + 0x2000, |a| {
        a.mov(qword_ptr(entry), 0x50_0000 + RIGHTS as i32).unwrap();
        a.add(rsp, 8).unwrap();
        a.iretq().unwrap();
    });
    machine.write(HANDLERS + 0x2000, &handler);
    // inc eax; hlt
    machine.write(0x50_0000, &[0xff, 0xc0, 0xf4]);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 5);
    assert_eq!(machine.vector(), None);
}

#[test]
fn operands_across_pages_reach_both() {
    let code = assemble(|a| {
        a.mov(rbx, PAGES + 0xffd).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788_u64).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.add(dword_ptr(rbx + 1), 1).unwrap();
        a.mov(rcx, qword_ptr(rbx)).unwrap();
        a.movups(xmm0, xmmword_ptr(rbx - 4)).unwrap();
        a.movups(xmmword_ptr(rbx - 8), xmm0).unwrap();
        a.mov(rdx, qword_ptr(rbx - 4)).unwrap();
        a.lea(rsp, qword_ptr(rbx + 4)).unwrap();
        a.push(rcx).unwrap();
        a.pop(r8).unwrap();
        a.bts(dword_ptr(rbx), 7).unwrap();
        a.lock().xadd(qword_ptr(rbx), r9).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::R9 as usize] = 5;
    let mut machine = Machine::with_state(&code, cpu);
    // Pages that are not neighbours.
    machine.map(PAGES, 0x40_0000, RIGHTS);
    machine.map(PAGES + 0x1000, 0x60_0000, RIGHTS);
    machine.run();
    assert_eq!(machine.vector(), None);
    let stored = 0x1122_3344_5566_7788_u64 + 0x100;
    let gpr = machine.vcpu.state().gpr;
    assert_eq!(gpr[Gpr::Rcx as usize], stored);
    assert_eq!(gpr[Gpr::Rdx as usize], stored);
    assert_eq!(gpr[Gpr::R8 as usize], stored);
    // The high half has moved to where the low one was.
    let last = stored >> 32 | 0x80;
    assert_eq!(gpr[Gpr::R9 as usize], last);
    let mut bytes = machine.word(0x40_0ff8).to_le_bytes()[5..].to_vec();
    bytes.extend(&machine.word(0x60_0000).to_le_bytes()[..5]);
    assert_eq!(bytes, (last + 5).to_le_bytes());
}
