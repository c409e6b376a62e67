//! Prints how many million guest instructions the interpreter executes in a second.

#[path = "../tests/suite/harness/mod.rs"]
mod harness;

use belljar_engine::{Engine, Vcpu};
use belljar_interpreter::Interpreter;
use harness::{DATA, Machine, assemble};
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Instant;

/// What the harness asks for.
fn counted() -> bool {
    true
}

fn engine() -> Arc<dyn Engine> {
    Arc::new(Interpreter::new())
}

/// Instructions of each measurement.
const BUDGET: u64 = 200_000_000;

fn main() {
    let loops: [(&str, Vec<u8>); 4] = [
        ("registers", assemble(registers)),
        ("memory", assemble(memory)),
        ("calls", assemble(calls)),
        ("sieve", assemble(sieve)),
    ];
    for (name, code) in loops {
        let mut machine = Machine::new(&code);
        let vcpu: &mut dyn Vcpu = machine.vcpu.as_mut();
        let start = Instant::now();
        let exit = vcpu.run(Some(BUDGET));
        let seconds = start.elapsed().as_secs_f64();
        let executed = vcpu.counters()[0].1;
        println!(
            "{name:10} {:6.0} MIPS ({executed} instructions, {exit:?})",
            executed as f64 / seconds / 1e6
        );
    }
}

/// A dependent chain of arithmetic.
fn registers(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.mov(rax, 1u64).unwrap();
    a.mov(rbx, 0x9e37_79b9u64).unwrap();
    a.set_label(&mut top).unwrap();
    a.imul_2(rax, rbx).unwrap();
    a.add(rax, 7).unwrap();
    a.mov(rcx, rax).unwrap();
    a.shr(rcx, 13).unwrap();
    a.xor(rax, rcx).unwrap();
    a.lea(rdx, qword_ptr(rax + rcx * 2 + 5)).unwrap();
    a.sub(rdx, 1).unwrap();
    a.test(rdx, rdx).unwrap();
    a.jne(top).unwrap();
    a.jmp(top).unwrap();
}

/// Loads and stores.
fn memory(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    a.mov(rsi, DATA).unwrap();
    a.xor(ecx, ecx).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rax, qword_ptr(rsi + rcx * 8)).unwrap();
    a.add(rax, rcx).unwrap();
    a.mov(qword_ptr(rsi + rcx * 8), rax).unwrap();
    a.add(dword_ptr(rsi + 0x4000), 1).unwrap();
    a.movzx(edx, byte_ptr(rsi + rcx)).unwrap();
    a.inc(rcx).unwrap();
    a.and(ecx, 0x3ff).unwrap();
    a.cmp(edx, 300).unwrap();
    a.jb(top).unwrap();
    a.hlt().unwrap();
}

/// A recursive function.
fn calls(a: &mut CodeAssembler) {
    let mut top = a.create_label();
    let mut fib = a.create_label();
    let mut leaf = a.create_label();
    a.set_label(&mut top).unwrap();
    a.mov(edi, 20).unwrap();
    a.call(fib).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut fib).unwrap();
    a.push(rbx).unwrap();
    a.mov(ebx, edi).unwrap();
    a.mov(eax, edi).unwrap();
    a.cmp(edi, 2).unwrap();
    a.jb(leaf).unwrap();
    a.push(r12).unwrap();
    a.lea(edi, dword_ptr(rbx - 1)).unwrap();
    a.call(fib).unwrap();
    a.mov(r12d, eax).unwrap();
    a.lea(edi, dword_ptr(rbx - 2)).unwrap();
    a.call(fib).unwrap();
    a.add(eax, r12d).unwrap();
    a.pop(r12).unwrap();
    a.set_label(&mut leaf).unwrap();
    a.pop(rbx).unwrap();
    a.ret().unwrap();
}

/// The sieve of Eratosthenes.
fn sieve(a: &mut CodeAssembler) {
    let (mut again, mut outer, mut inner, mut next) = (
        a.create_label(),
        a.create_label(),
        a.create_label(),
        a.create_label(),
    );
    a.mov(rsi, DATA).unwrap();
    a.set_label(&mut again).unwrap();
    a.mov(rdi, rsi).unwrap();
    a.mov(ecx, 0x8000).unwrap();
    a.xor(eax, eax).unwrap();
    a.rep().stosb().unwrap();
    a.mov(ebx, 2).unwrap();
    a.set_label(&mut outer).unwrap();
    a.cmp(byte_ptr(rsi + rbx), 0).unwrap();
    a.jne(next).unwrap();
    a.lea(rdx, qword_ptr(rbx + rbx)).unwrap();
    a.set_label(&mut inner).unwrap();
    a.cmp(rdx, 0x8000).unwrap();
    a.jae(next).unwrap();
    a.mov(byte_ptr(rsi + rdx), 1).unwrap();
    a.add(rdx, rbx).unwrap();
    a.jmp(inner).unwrap();
    a.set_label(&mut next).unwrap();
    a.inc(rbx).unwrap();
    a.cmp(rbx, 0x4000).unwrap();
    a.jb(outer).unwrap();
    a.jmp(again).unwrap();
}
