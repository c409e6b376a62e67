//! Exceptions in the middle of code, with exact registers.

use super::counted;
use super::harness::{CODE, DATA, HANDLERS, Machine, PAGES, STACK, assemble, assemble_at, state64};
use belljar_x86::bits::{cr0, cr4, rflags};
use belljar_x86::{CpuState, Gpr};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions};

/// What every register holds when an instruction of [`faults`] comes.
const VALUES: [u64; 16] = [
    0x1010_1010_0000_0001,
    0x2020_2020_0000_0002,
    0x3030_3030_0000_0003,
    PAGES,
    STACK,
    0x6060_6060_0000_0006,
    0x0123_4567_89ab_cdef,
    DATA + 1,
    0x8080_8080_0000_0008,
    0x9090_9090_0000_0009,
    PAGES + 0x10,
    0xb0b0_b0b0_0000_000b,
    0xc0c0_c0c0_0000_000c,
    0x0000_9000_0000_000d,
    0xe0e0_e0e0_0000_000e,
    0,
];

const REGISTERS: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];

/// Runs an instruction that must raise `vector`, between others that load all registers and use
/// the flags, and looks at everything.
fn faults(vector: u64, instruction: &[u8]) {
    let code = |prologue: bool| {
        assemble(|a| {
            for (register, value) in REGISTERS.into_iter().zip(VALUES) {
                a.mov(register, value).unwrap();
            }
            // CF, PF, AF and ZF become set.
            a.add(r14b, 0xf2u32 as i32).unwrap();
            if prologue {
                return;
            }
            a.db(instruction).unwrap();
            for register in REGISTERS {
                a.adc(register, 3).unwrap();
            }
            a.hlt().unwrap();
        })
    };
    let before = code(true).len() as u64;
    let mut machine = Machine::new(&code(false));
    machine.run();
    let found = machine.vector();
    assert_eq!(found, Some(vector), "{instruction:02x?}");
    let mut values = VALUES;
    values[14] &= !0xff;
    let state = machine.vcpu.state().clone();
    let frame = state.gpr[Gpr::Rsp as usize];
    let frame = if matches!(vector, 8 | 10..=14 | 17) {
        frame + 8
    } else {
        frame
    };
    for (n, value) in values.into_iter().enumerate() {
        if n != Gpr::Rsp as usize {
            assert_eq!(state.gpr[n], value, "register {n}, {instruction:02x?}");
        }
    }
    assert_eq!(
        machine.word(frame),
        CODE + before,
        "the address, {instruction:02x?}"
    );
    // Code that does not count may be inexact about flags that the instruction overwrites.
    let decoded = Decoder::new(64, instruction, DecoderOptions::NONE).decode();
    if counted() || decoded.rflags_modified() == 0 {
        assert_eq!(
            machine.word(frame + 16) & rflags::STATUS,
            rflags::CF | rflags::PF | rflags::AF | rflags::ZF,
            "the flags, {instruction:02x?}"
        );
    }
    assert_eq!(
        machine.word(frame + 24),
        STACK,
        "the stack, {instruction:02x?}"
    );
}

fn one(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble(write)
}

#[test]
fn page_faults_leave_every_register_as_it_was() {
    for instruction in [
        one(|a| a.mov(rax, qword_ptr(rbx)).unwrap()),
        one(|a| a.mov(qword_ptr(rbx), r9).unwrap()),
        one(|a| a.add(r10, qword_ptr(rbx + 8)).unwrap()),
        one(|a| a.add(qword_ptr(r10), r11).unwrap()),
        one(|a| a.xchg(qword_ptr(r10), r9).unwrap()),
        one(|a| a.lock().xadd(qword_ptr(rbx), rcx).unwrap()),
        one(|a| a.lock().cmpxchg(qword_ptr(rbx), rcx).unwrap()),
        one(|a| a.push(qword_ptr(rbx)).unwrap()),
        one(|a| a.pop(qword_ptr(rbx)).unwrap()),
        one(|a| a.call(qword_ptr(rbx)).unwrap()),
        one(|a| a.jmp(qword_ptr(r10)).unwrap()),
        one(|a| a.bts(qword_ptr(rbx), r15).unwrap()),
        one(|a| a.imul_2(rax, qword_ptr(rbx)).unwrap()),
        one(|a| a.mul(qword_ptr(rbx)).unwrap()),
        one(|a| a.div(qword_ptr(rbx)).unwrap()),
        one(|a| a.shl(dword_ptr(rbx), cl).unwrap()),
        one(|a| a.movups(xmm0, xmmword_ptr(rbx)).unwrap()),
        one(|a| a.movups(xmmword_ptr(r10), xmm7).unwrap()),
        one(|a| a.cmove(rax, qword_ptr(rbx)).unwrap()),
        one(|a| a.setb(byte_ptr(rbx)).unwrap()),
        one(|a| a.movbe(rax, qword_ptr(rbx)).unwrap()),
        one(|a| a.test(byte_ptr(rbx), ah).unwrap()),
        one(|a| a.mov(byte_ptr(rbx), ch).unwrap()),
    ] {
        faults(14, &instruction);
    }
}

#[test]
fn other_faults_leave_every_register_as_it_was() {
    // The dividend is too large.
    faults(0, &one(|a| a.div(rcx).unwrap()));
    faults(0, &one(|a| a.idiv(edx).unwrap()));
    faults(0, &one(|a| a.div(r15).unwrap()));
    faults(6, &one(|a| a.ud2().unwrap()));
    // Not canonical; misaligned.
    faults(13, &one(|a| a.mov(rax, qword_ptr(r13)).unwrap()));
    faults(13, &one(|a| a.or(qword_ptr(r13), r13).unwrap()));
    faults(13, &one(|a| a.movaps(xmm0, xmmword_ptr(rdi)).unwrap()));
    faults(13, &one(|a| a.cmpxchg16b(xmmword_ptr(rdi)).unwrap()));
    faults(13, &one(|a| a.db(&[0x0f, 0x22, 0xe0]).unwrap())); // mov cr4, rax
}

/// A machine in which the handler of `vector`, which finds no error code on the stack, runs `handle`
/// and returns.
fn handled(
    vector: u64,
    code: &[u8],
    cpu: CpuState,
    handle: impl FnOnce(&mut CodeAssembler),
) -> Machine {
    let machine = Machine::with_state(code, cpu);
    let at = HANDLERS + vector * 16;
    let jump = assemble_at(at, |a| a.jmp(HANDLERS + 0x2000).unwrap());
    machine.write(at, &jump);
    let handler = assemble_at(HANDLERS + 0x2000, |a| {
        handle(a);
        a.iretq().unwrap();
    });
    machine.write(HANDLERS + 0x2000, &handler);
    machine
}

#[test]
fn an_instruction_runs_again_after_its_page_fault() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.xor(eax, eax).unwrap();
        a.mov(ecx, 100).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(rbx, PAGES).unwrap();
        a.add(eax, ecx).unwrap();
        a.add(dword_ptr(rbx), eax).unwrap();
        a.adc(eax, 0).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = handled(14, &code, state64(), |a| {
        a.mov(ebx, DATA as u32).unwrap();
        a.add(rsp, 8).unwrap();
    });
    let state = machine.run().clone();
    assert_eq!(machine.vector(), None);
    assert_eq!(state.gpr[Gpr::Rax as usize], 5050);
    let sums: u64 = (1..=100)
        .rev()
        .scan(0, |sum, n| {
            *sum += n;
            Some(*sum)
        })
        .sum();
    assert_eq!(machine.word(DATA), sums);
    assert_eq!(state.gpr[Gpr::Rsp as usize], STACK);
}

#[test]
fn a_division_runs_again_after_its_fault() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(esi, 100).unwrap();
        a.xor(edi, edi).unwrap();
        a.set_label(&mut top).unwrap();
        a.xor(ecx, ecx).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 42).unwrap();
        a.div(ecx).unwrap();
        a.add(edi, eax).unwrap();
        a.dec(esi).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = handled(0, &code, state64(), |a| a.mov(ecx, 2).unwrap());
    assert_eq!(machine.run().gpr[Gpr::Rdi as usize], 2100);
}

#[test]
fn unmasked_floating_point_exceptions_are_raised() {
    let code = assemble(|a| {
        a.mov(dword_ptr(DATA), 0x1d80).unwrap();
        a.ldmxcsr(dword_ptr(DATA)).unwrap();
        a.xorps(xmm1, xmm1).unwrap();
        a.mov(eax, 0x3f80_0000).unwrap();
        a.movd(xmm0, eax).unwrap();
        a.divss(xmm0, xmm1).unwrap();
        a.movd(ebx, xmm0).unwrap();
        a.hlt().unwrap();
    });
    // The exception masks without that of the division by zero.
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), Some(19));
    let mut again = handled(19, &code, state64(), |a| {
        a.mov(dword_ptr(DATA), 0x1f80).unwrap();
        a.ldmxcsr(dword_ptr(DATA)).unwrap();
    });
    assert_eq!(again.run().gpr[Gpr::Rbx as usize], 0x7f80_0000, "infinity");
}

#[test]
fn a_set_task_switched_flag_stops_vector_instructions_everywhere() {
    // A function that is called directly, called through a register and jumped to, first with TS
    // clear, often enough for everything to be cached; then with TS set.
    let function = CODE + 0x3000;
    let code = assemble(|a| {
        let (mut top, mut round) = (a.create_label(), a.create_label());
        a.mov(rbx, function).unwrap();
        a.mov(ebp, 2).unwrap();
        a.set_label(&mut round).unwrap();
        a.mov(ecx, 20).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rbx).unwrap();
        a.call(function).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.mov(rax, cr0).unwrap();
        a.or(eax, cr0::TS as i32).unwrap();
        a.mov(cr0, rax).unwrap();
        a.dec(ebp).unwrap();
        a.jne(round).unwrap();
        a.hlt().unwrap();
    });
    let body = assemble_at(function, |a| {
        a.inc(edx).unwrap();
        a.paddd(xmm0, xmm1).unwrap();
        a.ret().unwrap();
    });
    let mut cpu = state64();
    cpu.gpr[Gpr::Rdx as usize] = 0;
    let mut machine = Machine::with_state(&code, cpu);
    machine.write(function, &body);
    machine.run();
    assert_eq!(machine.vector(), Some(7));
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rdx as usize], 41);
    let frame = machine.vcpu.state().gpr[Gpr::Rsp as usize];
    assert_eq!(machine.word(frame), function + 2);
}

#[test]
fn vector_instructions_that_are_switched_off_do_not_exist() {
    let function = CODE + 0x3000;
    let code = assemble(|a| {
        let mut round = a.create_label();
        a.mov(rbx, function).unwrap();
        a.set_label(&mut round).unwrap();
        a.call(rbx).unwrap();
        a.call(rbx).unwrap();
        a.mov(rax, cr4).unwrap();
        a.and(eax, !cr4::OSFXSR as i32).unwrap();
        a.mov(cr4, rax).unwrap();
        a.jmp(round).unwrap();
    });
    let mut machine = Machine::new(&code);
    let body = assemble_at(function, |a| {
        a.paddd(xmm0, xmm1).unwrap();
        a.ret().unwrap();
    });
    machine.write(function, &body);
    machine.run();
    assert_eq!(machine.vector(), Some(6));
}

#[test]
fn vector_registers_outlive_faults_and_misses() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(eax, 1).unwrap();
        a.movd(xmm1, eax).unwrap();
        a.pxor(xmm0, xmm0).unwrap();
        a.mov(ecx, 64).unwrap();
        a.mov(rsi, 0x40_0000u64).unwrap();
        a.set_label(&mut top).unwrap();
        a.paddd(xmm0, xmm1).unwrap();
        // Another page each time, and an exception.
        a.add(dword_ptr(rsi), 1).unwrap();
        a.add(rsi, 4096).unwrap();
        a.paddd(xmm0, xmm1).unwrap();
        a.int3().unwrap();
        a.paddd(xmm0, xmm1).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.movd(eax, xmm0).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = handled(3, &code, state64(), |a| a.paddd(xmm0, xmm1).unwrap());
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 256);
}
