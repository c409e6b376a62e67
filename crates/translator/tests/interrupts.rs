//! Interrupts between any two instructions: the translator and the interpreter run the same code
//! side by side, a few instructions at a time, and must agree in everything.

#[path = "../../interpreter/tests/suite/harness/mod.rs"]
mod harness;
mod random;

use belljar_engine::{Engine, Exit, Reason};
use belljar_interpreter::Interpreter;
use belljar_lockstep::fields;
use belljar_memory::GuestPhysAddr;
use belljar_translator::{Translator, Tuning};
use belljar_x86::bits::rflags;
use belljar_x86::{CpuState, Gpr};
use harness::{CODE, DATA, HANDLERS, Machine, PAGES, assemble, assemble_at, state64};
use iced_x86::code_asm::*;
use random::Random;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The vector of the interrupts.
const VECTOR: u64 = 0x40;
/// Where functions lie, in another page than the code that calls them.
const FUNCTIONS: u64 = CODE + 0x4000;
/// Runs of a few instructions.
const RUNS: u32 = 20_000;

// What the harness wants of a suite.

fn engine() -> Arc<dyn Engine> {
    Arc::new(Interpreter::new())
}

fn counted() -> bool {
    true
}

/// A loop of a little of everything, in which flags live long and the stack is used.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut skip, mut inner) = (a.create_label(), a.create_label(), a.create_label());
    let mut patched = a.create_label();
    a.mov(rbx, DATA).unwrap();
    a.mov(r13, PAGES + 0xffc).unwrap();
    a.set_label(&mut top).unwrap();
    a.add(rax, rcx).unwrap();
    a.adc(qword_ptr(rbx), rax).unwrap();
    a.sbb(r9, qword_ptr(rbx)).unwrap();
    a.push(rax).unwrap();
    a.pushfq().unwrap();
    a.call(FUNCTIONS).unwrap();
    a.popfq().unwrap();
    a.rcl(r10, 3).unwrap();
    a.pop(rdx).unwrap();
    a.xor(qword_ptr(r13), rdx).unwrap();
    a.cli().unwrap();
    a.inc(dword_ptr(rbx + 0x40)).unwrap();
    a.sti().unwrap();
    a.bt(r9, 7).unwrap();
    a.jb(skip).unwrap();
    a.cvtsi2sd(xmm0, rax).unwrap();
    a.addsd(xmm1, xmm0).unwrap();
    a.movq(qword_ptr(rbx + 0x48), xmm1).unwrap();
    a.set_label(&mut skip).unwrap();
    a.lea(rsi, qword_ptr(rbx + 0x100)).unwrap();
    a.lea(rdi, qword_ptr(rbx + 0x103)).unwrap();
    a.mov(ecx, 9).unwrap();
    a.rep().movsb().unwrap();
    a.mov(r11d, 5).unwrap();
    a.set_label(&mut inner).unwrap();
    a.imul_2(rax, r10).unwrap();
    a.add(rax, r11).unwrap();
    a.dec(r11d).unwrap();
    a.jne(inner).unwrap();
    a.lea(r14, qword_ptr(patched)).unwrap();
    a.mov(byte_ptr(r14 + 1), al).unwrap();
    a.set_label(&mut patched).unwrap();
    a.mov(cl, 0).unwrap();
    a.lea(r8, qword_ptr(top)).unwrap();
    a.jmp(r8).unwrap();
}

/// A machine of the program, with a handler that counts.
fn machine(engine: &dyn Engine) -> Machine {
    let mut cpu: CpuState = state64();
    cpu.rflags |= rflags::IF;
    for (n, register) in cpu.gpr.iter_mut().enumerate() {
        if n != Gpr::Rsp as usize {
            *register = 0x1234_5678_9abc_def0_u64.rotate_left(n as u32 * 4);
        }
    }
    let machine = Machine::with_engine(engine, &assemble(program), cpu);
    machine.map(PAGES, 0x40_0000, 3);
    machine.map(PAGES + 0x1000, 0x60_0000, 3);
    let function = assemble_at(FUNCTIONS, |a| {
        a.mov(rbp, qword_ptr(rsp + 16)).unwrap();
        a.shr(rbp, 1).unwrap();
        a.adc(r12, rbp).unwrap();
        a.ret().unwrap();
    });
    machine.write(FUNCTIONS, &function);
    let at = HANDLERS + VECTOR * 16;
    let handler = assemble_at(at, |a| a.jmp(HANDLERS + 0x2000).unwrap());
    machine.write(at, &handler);
    let handler = assemble_at(HANDLERS + 0x2000, |a| {
        a.push(rax).unwrap();
        a.mov(rax, qword_ptr(rsp + 8)).unwrap();
        a.add(dword_ptr(DATA + 0x80), eax).unwrap();
        a.inc(dword_ptr(DATA + 0x88)).unwrap();
        a.pop(rax).unwrap();
        a.iretq().unwrap();
    });
    machine.write(HANDLERS + 0x2000, &handler);
    machine
}

fn interrupt(machine: &Machine, reason: Reason) {
    if reason == Reason::INTERRUPT {
        machine.board.vector.store(VECTOR as u32, Ordering::SeqCst);
    }
    machine.attention[0].raise(reason);
}

/// What of memory the program writes to.
fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, length) in [
        (DATA, 0x200),
        (0x40_0000, 0x1000),
        (0x60_0000, 0x1000),
        (CODE, 0x1000),
    ] {
        let mut part = vec![0; length];
        machine.memory.read(GuestPhysAddr(at), &mut part).unwrap();
        bytes.append(&mut part);
    }
    bytes
}

/// Runs the program in the interpreter and under `tuning`.
fn agrees_with_the_interpreter(name: &str, tuning: Tuning, seed: u64) {
    let mut left = machine(&Interpreter::new());
    let mut right = machine(&Translator::with_tuning(tuning));
    let mut random = Random(seed);
    for run in 0..RUNS {
        if random.below(3) == 0 {
            interrupt(&left, Reason::INTERRUPT);
            interrupt(&right, Reason::INTERRUPT);
        }
        let budget = 1 + random.below(if run % 100 == 0 { 2000 } else { 30 });
        let exits = [&mut left, &mut right].map(|side| side.vcpu.run(Some(budget)));
        assert_eq!(exits, [Exit::Budget; 2], "{name}, run {run}");
        let found = fields(left.vcpu.state(), right.vcpu.state());
        assert!(
            found.is_empty(),
            "{name}, seed {seed}, run {run}: {found:#x?}"
        );
    }
    assert_eq!(memory(&left), memory(&right), "{name}, seed {seed}");
    assert!(left.word(DATA + 0x88) > u64::from(RUNS) / 10, "interrupts");
}

#[test]
fn interrupts_come_anywhere_as_users_get_it() {
    for seed in 1..5 {
        agrees_with_the_interpreter("usual", Tuning::default(), seed);
    }
}

#[test]
fn interrupts_come_anywhere_under_every_tuning() {
    for (seed, (name, tuning)) in (100..).zip(Tuning::STRESSED) {
        agrees_with_the_interpreter(name, tuning, seed);
    }
}
