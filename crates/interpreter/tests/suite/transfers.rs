//! Jumps, calls and returns.

use super::harness::{CODE, DATA, Machine, PAGES, STACK, assemble, assemble_at, state64};
use belljar_x86::Gpr;
use iced_x86::code_asm::*;

/// An address that is not canonical.
const NOWHERE: u64 = 0x0000_8000_0000_0000;
/// Above and below the canonical addresses' gap, and in its middle.
const BEYOND: [u64; 4] = [
    NOWHERE,
    0xffff_7fff_ffff_ffff,
    0x8000_0000_0010_0000,
    0x0010_0000_0010_0000,
];

#[test]
fn calls_nest_deeply() {
    let code = assemble(|a| {
        let (mut function, mut end) = (a.create_label(), a.create_label());
        a.mov(ecx, 20_000).unwrap();
        a.xor(eax, eax).unwrap();
        a.call(function).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(ecx).unwrap();
        a.je(end).unwrap();
        a.call(function).unwrap();
        a.inc(rdx).unwrap();
        a.set_label(&mut end).unwrap();
        a.ret().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rdx as usize] = 0;
    let mut machine = Machine::with_state(&code, cpu);
    let state = machine.run();
    assert_eq!(state.gpr[Gpr::Rax as usize], (1..=20_000).sum::<u64>());
    assert_eq!(state.gpr[Gpr::Rdx as usize], 19_999);
    assert_eq!(state.gpr[Gpr::Rsp as usize], STACK);
}

#[test]
fn a_return_goes_where_the_stack_says() {
    let code = assemble(|a| {
        let (mut function, mut other) = (a.create_label(), a.create_label());
        let mut top = a.create_label();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(function).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.lea(rax, qword_ptr(other)).unwrap();
        a.mov(qword_ptr(rsp), rax).unwrap();
        a.ret().unwrap();
        a.set_label(&mut other).unwrap();
        a.inc(rbx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.mov(edx, 1).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rbx as usize] = 0;
    let mut machine = Machine::with_state(&code, cpu);
    let state = machine.run();
    assert_eq!(state.gpr[Gpr::Rbx as usize], 100);
    assert_eq!(state.gpr[Gpr::Rdx as usize], 1);
    assert_eq!(state.gpr[Gpr::Rsp as usize], STACK);
}

#[test]
fn indirect_jumps_reach_many_targets_by_turns() {
    const TARGETS: u64 = 300;
    let code = assemble(|a| {
        let (mut top, mut end) = (a.create_label(), a.create_label());
        a.xor(ecx, ecx).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rdx, rcx).unwrap();
        a.imul_3(rdx, rdx, 4096 + 16).unwrap();
        a.add(rdx, 0x100_0000).unwrap();
        a.call(rdx).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, TARGETS as i32).unwrap();
        a.jne(top).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.dec(ebx).unwrap();
        a.je(end).unwrap();
        a.jmp(top).unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rbx as usize] = 5;
    let mut machine = Machine::with_state(&code, cpu);
    for n in 0..TARGETS {
        // lea rax, [rax+rcx*2+n]; ret
        let mut function = vec![0x48, 0x8d, 0x84, 0x48];
        function.extend((n as u32).to_le_bytes());
        function.push(0xc3);
        machine.write(0x100_0000 + n * (4096 + 16), &function);
    }
    let sum: u64 = (0..TARGETS).map(|n| 3 * n).sum();
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 5 * sum);
}

/// Runs `code` to a #GP that the instruction at `at` raises with the stack pointer at `rsp`.
fn raises_a_protection_fault(code: &[u8], target: u64, at: u64, top: u64) {
    let mut cpu = state64();
    cpu.gpr[Gpr::Rbx as usize] = target;
    cpu.gpr[Gpr::Rcx as usize] = DATA;
    let mut machine = Machine::with_state(code, cpu);
    machine.write(DATA, &target.to_le_bytes());
    machine.run();
    assert_eq!(machine.vector(), Some(13), "{target:#x}");
    let frame = machine.vcpu.state().gpr[Gpr::Rsp as usize];
    assert_eq!(machine.word(frame), 0, "the error code");
    assert_eq!(machine.word(frame + 8), CODE + at, "the address");
    assert_eq!(machine.word(frame + 32), top, "the stack pointer");
}

#[test]
fn transfers_to_addresses_that_are_not_canonical_fault_where_they_are() {
    for target in BEYOND {
        let jump = assemble(|a| a.jmp(rbx).unwrap());
        raises_a_protection_fault(&jump, target, 0, STACK);
        let jump = assemble(|a| a.jmp(qword_ptr(rcx)).unwrap());
        raises_a_protection_fault(&jump, target, 0, STACK);
        let call = assemble(|a| a.call(rbx).unwrap());
        raises_a_protection_fault(&call, target, 0, STACK);
        let call = assemble(|a| a.call(qword_ptr(rcx)).unwrap());
        raises_a_protection_fault(&call, target, 0, STACK);
        let mut ret = assemble(|a| {
            a.push(rbx).unwrap();
            a.ret().unwrap();
        });
        raises_a_protection_fault(&ret, target, 1, STACK - 8);
        // push rbx; ret 8
        ret = vec![0x53, 0xc2, 8, 0];
        raises_a_protection_fault(&ret, target, 1, STACK - 8);
    }
}

#[test]
fn operands_that_are_not_canonical_fault_where_they_are() {
    for target in BEYOND {
        let code = assemble(|a| a.mov(rax, qword_ptr(rbx)).unwrap());
        raises_a_protection_fault(&code, target, 0, STACK);
        let code = assemble(|a| {
            a.nop().unwrap();
            a.add(byte_ptr(rbx), 1).unwrap();
        });
        raises_a_protection_fault(&code, target, 1, STACK);
    }
    // The last bytes of the lower half, and beyond.
    let code = assemble(|a| a.mov(rax, qword_ptr(rbx)).unwrap());
    raises_a_protection_fault(&code, NOWHERE - 4, 0, STACK);
}

#[test]
fn operands_of_a_loop_that_are_not_canonical_fault_where_they_are() {
    for target in [1 << 63, (1 << 63) + 0x100, (1 << 63) + 0x1000 - 8, NOWHERE] {
        let read = assemble(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top).unwrap();
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.add(rbx, 8).unwrap();
            a.jne(top).unwrap();
        });
        raises_a_protection_fault(&read, target, 0, STACK);
        let write = assemble(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top).unwrap();
            a.nop().unwrap();
            a.mov(qword_ptr(rbx), rax).unwrap();
            a.mov(qword_ptr(rbx + 8), rcx).unwrap();
            a.add(rbx, 16).unwrap();
            a.jne(top).unwrap();
        });
        raises_a_protection_fault(&write, target, 1, STACK);
    }
}

#[test]
fn a_jump_to_an_unmapped_page_faults_there() {
    for direct in [false, true] {
        let code = assemble(|a| {
            a.mov(eax, PAGES as u32).unwrap();
            if direct {
                a.jmp(PAGES).unwrap();
            } else {
                a.jmp(rax).unwrap();
            }
        });
        let mut machine = Machine::new(&code);
        machine.run();
        assert_eq!(machine.vector(), Some(14));
        assert_eq!(machine.vcpu.state().cr2, PAGES);
        let frame = machine.vcpu.state().gpr[Gpr::Rsp as usize];
        assert_eq!(machine.word(frame + 8), PAGES);
    }
}

#[test]
fn operands_that_use_the_stack_pointer_see_it_as_the_manual_says() {
    let code = assemble(|a| {
        let (mut function, mut after) = (a.create_label(), a.create_label());
        let mut back = a.create_label();
        a.push(rsp).unwrap();
        a.pop(rax).unwrap();
        a.push(7).unwrap();
        a.push(qword_ptr(rsp)).unwrap();
        a.pop(rbx).unwrap();
        a.push(0).unwrap();
        a.pop(qword_ptr(rsp)).unwrap();
        a.pop(rcx).unwrap();
        a.lea(rdx, qword_ptr(function)).unwrap();
        a.push(rdx).unwrap();
        a.call(qword_ptr(rsp)).unwrap();
        a.set_label(&mut back).unwrap();
        a.jmp(after).unwrap();
        a.set_label(&mut function).unwrap();
        a.lea(rsi, qword_ptr(back)).unwrap();
        a.sub(rsi, qword_ptr(rsp)).unwrap();
        a.ret_1(8).unwrap();
        a.set_label(&mut after).unwrap();
        a.mov(rbp, rsp).unwrap();
        a.enter(32, 0).unwrap();
        a.mov(rdi, rsp).unwrap();
        a.leave().unwrap();
        a.push(rbp).unwrap();
        a.pop(rsp).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    let gpr = machine.run().gpr;
    assert_eq!(machine.vector(), None);
    assert_eq!(gpr[Gpr::Rax as usize], STACK);
    assert_eq!(gpr[Gpr::Rbx as usize], 7);
    // POP to [RSP] writes where the stack pointer is afterwards: over the 7.
    assert_eq!(gpr[Gpr::Rcx as usize], 0);
    assert_eq!(gpr[Gpr::Rsi as usize], 0);
    assert_eq!(gpr[Gpr::Rdi as usize], STACK - 8 - 32);
    assert_eq!(gpr[Gpr::Rsp as usize], STACK);
}

#[test]
fn loops_count_and_look_at_the_zero_flag() {
    let code = assemble(|a| {
        let (mut first, mut second) = (a.create_label(), a.create_label());
        let (mut third, mut end) = (a.create_label(), a.create_label());
        a.mov(ecx, 10).unwrap();
        a.set_label(&mut first).unwrap();
        a.inc(eax).unwrap();
        a.loop_(first).unwrap();
        a.mov(ecx, 10).unwrap();
        a.set_label(&mut second).unwrap();
        a.inc(ebx).unwrap();
        a.cmp(ebx, 4).unwrap();
        a.loopne(second).unwrap();
        a.set_label(&mut third).unwrap();
        a.dec(ecx).unwrap();
        a.inc(edx).unwrap();
        a.jrcxz(end).unwrap();
        a.jmp(third).unwrap();
        a.set_label(&mut end).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    for register in [Gpr::Rax, Gpr::Rbx, Gpr::Rdx] {
        cpu.gpr[register as usize] = 0;
    }
    let mut machine = Machine::with_state(&code, cpu);
    let gpr = machine.run().gpr;
    assert_eq!(gpr[Gpr::Rax as usize], 10);
    assert_eq!(gpr[Gpr::Rbx as usize], 4);
    assert_eq!(gpr[Gpr::Rdx as usize], 6);
}

#[test]
fn flags_outlive_transfers() {
    // Each way from one page to another: a direct jump, a call and a return, an indirect jump.
    let far = CODE + 0x5000;
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.cmp(ecx, 50).unwrap();
        a.jmp(far).unwrap();
    });
    let back = assemble_at(far, |a| {
        let (mut function, mut next) = (a.create_label(), a.create_label());
        a.call(function).unwrap();
        a.lea(rdx, qword_ptr(next)).unwrap();
        a.jmp(rdx).unwrap();
        a.set_label(&mut function).unwrap();
        a.ret().unwrap();
        a.set_label(&mut next).unwrap();
        a.adc(eax, 0).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, 100).unwrap();
        a.jne(CODE).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rax as usize] = 0;
    cpu.gpr[Gpr::Rcx as usize] = 0;
    let mut machine = Machine::with_state(&code, cpu);
    machine.write(far, &back);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 50);
    assert_eq!(machine.vector(), None);
}

#[test]
fn a_far_return_to_32_bit_code_and_back_keeps_the_registers() {
    const COMPATIBLE: u64 = 0x18;
    let there = CODE + 0x1000;
    let code = assemble(|a| {
        let mut back = a.create_label();
        a.mov(r8, 0x1234_5678_9abc_def0_u64).unwrap();
        a.lea(rsi, qword_ptr(back)).unwrap();
        a.push(COMPATIBLE as i32).unwrap();
        a.push(there as i32).unwrap();
        a.db(&[0x48, 0xcb]).unwrap(); // retfq
        a.set_label(&mut back).unwrap();
        a.add(rax, 1).unwrap();
        a.hlt().unwrap();
    });
    let mut narrow = CodeAssembler::new(32).unwrap();
    narrow.mov(eax, 0xffff_ffffu32).unwrap();
    // Three bytes in 32-bit code are INC ECX and ADD, which 64-bit code would take for one.
    narrow.db(&[0x41, 0x01, 0xc8]).unwrap();
    narrow.push(8).unwrap();
    narrow.push(esi).unwrap();
    narrow.retf().unwrap();
    let mut cpu = state64();
    cpu.gpr[Gpr::Rcx as usize] = 9;
    let mut machine = Machine::with_state(&code, cpu);
    machine.write(
        0x9000 + COMPATIBLE,
        &0x00cf_9b00_0000_ffff_u64.to_le_bytes(),
    );
    machine.write(there, &narrow.assemble(there).unwrap());
    let state = machine.run().clone();
    assert_eq!(machine.vector(), None, "{state:x?}");
    assert_eq!(state.gpr[Gpr::Rcx as usize], 10);
    assert_eq!(state.gpr[Gpr::Rax as usize], 10);
    assert_eq!(state.gpr[Gpr::R8 as usize], 0x1234_5678_9abc_def0);
}
