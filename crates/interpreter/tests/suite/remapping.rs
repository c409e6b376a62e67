//! Page tables that change under running code.

use super::harness::{DATA, Machine, PAGES, TABLES, assemble, assemble_at, entry_of, state64};
use belljar_x86::Gpr;
use belljar_x86::bits::cr4;
use iced_x86::code_asm::*;

/// Present and writable, for the supervisor.
const RIGHTS: u64 = 3;
const GLOBAL: u64 = 1 << 8;
const FIRST: u64 = 0x40_0000;
const SECOND: u64 = 0x50_0000;

/// A function in the page at [`PAGES`] that tells by EAX which of two pages it lies in.
fn functions(machine: &Machine, flags: u64) {
    for (page, answer) in [(FIRST, 1), (SECOND, 2)] {
        let body = assemble_at(PAGES, |a| {
            let mut next = a.create_label();
            a.jmp(next).unwrap();
            a.nops_with_size(9).unwrap();
            a.set_label(&mut next).unwrap();
            a.mov(eax, answer).unwrap();
            a.ret().unwrap();
        });
        machine.write(page, &body);
    }
    machine.map(PAGES, FIRST, flags);
}

/// Lets `switch` make the page at [`PAGES`] the second of the two and back again and again, and
/// sums up what the function there says.
fn alternates(flags: u64, switch: impl Fn(&mut CodeAssembler)) {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rsi, PAGES).unwrap();
        a.mov(rdi, entry_of(PAGES)).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rsi).unwrap();
        // 1 and 2 by turns: their differences from what is due are 0.
        a.mov(edx, ecx).unwrap();
        a.and(edx, 1).unwrap();
        a.lea(edx, dword_ptr(rdx + rax - 2)).unwrap();
        a.or(ebx, edx).unwrap();
        a.call(PAGES).unwrap();
        a.mov(edx, ecx).unwrap();
        a.and(edx, 1).unwrap();
        a.lea(edx, dword_ptr(rdx + rax - 2)).unwrap();
        a.or(ebx, edx).unwrap();
        switch(a);
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.cr4 |= cr4::PGE;
    let mut machine = Machine::with_state(&code, cpu);
    // ECX is even at first, when the answer must be 2.
    functions(&machine, flags);
    machine.map(PAGES, SECOND, flags);
    machine.run();
    assert_eq!(machine.vector(), None);
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rbx as usize], 0);
}

fn toggle(a: &mut CodeAssembler) {
    a.xor(qword_ptr(rdi), (FIRST ^ SECOND) as i32).unwrap();
}

#[test]
fn code_moves_with_its_page_by_invlpg() {
    for flags in [RIGHTS, RIGHTS | GLOBAL] {
        alternates(flags, |a| {
            toggle(a);
            a.invlpg(ptr(rsi)).unwrap();
        });
    }
}

#[test]
fn code_moves_with_its_page_by_a_load_of_cr3() {
    alternates(RIGHTS, |a| {
        toggle(a);
        a.mov(rax, cr3).unwrap();
        a.mov(cr3, rax).unwrap();
    });
}

#[test]
fn global_code_moves_with_its_page_by_changes_of_cr4() {
    alternates(RIGHTS | GLOBAL, |a| {
        toggle(a);
        a.mov(rax, cr4).unwrap();
        a.xor(eax, cr4::PGE as i32).unwrap();
        a.mov(cr4, rax).unwrap();
        a.xor(eax, cr4::PGE as i32).unwrap();
        a.mov(cr4, rax).unwrap();
    });
}

#[test]
fn data_moves_with_its_page() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rsi, PAGES).unwrap();
        a.mov(rdi, entry_of(PAGES)).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(qword_ptr(rsi), rcx).unwrap();
        a.add(qword_ptr(PAGES as i32 + 8), 1).unwrap();
        toggle(a);
        a.invlpg(ptr(rsi)).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.map(PAGES, FIRST, RIGHTS);
    machine.run();
    let odd: u64 = (1..100).step_by(2).sum();
    let even: u64 = (2..=100).step_by(2).sum();
    assert_eq!([machine.word(FIRST), machine.word(SECOND)], [even, odd]);
    assert_eq!(
        [machine.word(FIRST + 8), machine.word(SECOND + 8)],
        [50, 50]
    );
}

#[test]
fn address_spaces_hold_their_own_code() {
    // Two address spaces that differ in what lies at PAGES.
    const OTHER: u64 = 0x70_0000;
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rsi, PAGES).unwrap();
        a.mov(rdi, TABLES).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rsi).unwrap();
        a.add(ebx, eax).unwrap();
        a.call(PAGES).unwrap();
        a.add(ebx, eax).unwrap();
        a.xor(rdi, (OTHER ^ TABLES) as i32).unwrap();
        a.mov(cr3, rdi).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    functions(&machine, RIGHTS);
    let tables = [
        (OTHER, (OTHER + 0x1000) | 7),
        (OTHER + 0x1000, (TABLES + 0x2000) | 7),
        (OTHER + 0x1008, (OTHER + 0x3000) | 7),
        (OTHER + 0x3000, (OTHER + 0x4000) | 7),
        (OTHER + 0x4000, SECOND | RIGHTS),
    ];
    for (at, entry) in tables {
        machine.write(at, &entry.to_le_bytes());
    }
    machine.run();
    assert_eq!(machine.vector(), None);
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rbx as usize], 50 * 2 + 50 * 4);
}

#[test]
fn a_page_that_moved_without_a_flush_leaves_nothing_behind_after_one() {
    // A function moves its own page without a flush, and jumps within it: it may go on in either
    // page. Once the page has moved back and was flushed, it must be the first one for certain.
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rsi, PAGES).unwrap();
        a.mov(rdi, entry_of(PAGES)).unwrap();
        a.mov(r8, DATA).unwrap();
        a.mov(ecx, 20).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut top).unwrap();
        // Moving: the answer does not count.
        a.mov(edx, (FIRST ^ SECOND) as u32).unwrap();
        a.call(rsi).unwrap();
        a.mov(qword_ptr(rdi), (FIRST | RIGHTS) as i32).unwrap();
        a.invlpg(ptr(rsi)).unwrap();
        a.xor(edx, edx).unwrap();
        a.call(rsi).unwrap();
        a.add(ebx, eax).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    for (page, answer) in [(FIRST, 1), (SECOND, 2)] {
        let body = assemble_at(PAGES, |a| {
            let mut next = a.create_label();
            a.xor(qword_ptr(rdi), rdx).unwrap();
            a.jmp(next).unwrap();
            a.nops_with_size(9).unwrap();
            a.set_label(&mut next).unwrap();
            a.mov(eax, answer).unwrap();
            a.ret().unwrap();
        });
        machine.write(page, &body);
    }
    machine.map(PAGES, FIRST, RIGHTS);
    machine.run();
    assert_eq!(machine.vector(), None);
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rbx as usize], 20);
}

#[test]
fn rights_that_are_taken_away_are_missed() {
    for (without, access) in [(1_u64, false), (2, true)] {
        let code = assemble(|a| {
            let mut top = a.create_label();
            a.mov(rsi, PAGES).unwrap();
            a.mov(rdi, entry_of(PAGES)).unwrap();
            a.mov(ecx, 5).unwrap();
            a.set_label(&mut top).unwrap();
            if access {
                a.mov(dword_ptr(rsi), ecx).unwrap();
            } else {
                a.mov(eax, dword_ptr(rsi)).unwrap();
            }
            a.dec(ecx).unwrap();
            a.jne(top).unwrap();
            a.and(qword_ptr(rdi), !(without as i32)).unwrap();
            a.invlpg(ptr(rsi)).unwrap();
            a.jmp(top).unwrap();
        });
        let mut machine = Machine::new(&code);
        machine.map(PAGES, FIRST, RIGHTS);
        machine.run();
        assert_eq!(machine.vector(), Some(14), "{without}");
        assert_eq!(machine.vcpu.state().cr2, PAGES);
    }
}
