//! Several vCPUs on the same memory.

use super::harness::{CODE, DATA, Machine, Pair, assemble, run, state64};
use belljar_memory::GuestPhysAddr;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::thread;

/// Instructions after which a vCPU gives up.
const PATIENCE: u64 = 400_000_000;

fn run_both(pair: Pair) -> Machine {
    let Pair {
        machine,
        mut second,
    } = pair;
    let mut machine = machine;
    let attention = Arc::clone(&machine.attention);
    let other = thread::spawn(move || {
        run(&mut *second, &attention, 1, PATIENCE);
    });
    run(&mut *machine.vcpu, &machine.attention, 0, PATIENCE);
    other.join().unwrap();
    machine
}

#[test]
fn locked_additions_of_two_vcpus_all_count() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.mov(ecx, 100_000).unwrap();
        a.set_label(&mut top).unwrap();
        a.lock().add(qword_ptr(rbx), 1).unwrap();
        // A misaligned counter within a page, and one across two pages.
        a.lock().inc(dword_ptr(rbx + 0x41)).unwrap();
        a.lock().xadd(qword_ptr(rbx + 0xffc), rdx).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let machine = run_both(Pair::new(&code, state64(), state64()));
    assert_eq!(machine.word(DATA), 200_000);
    assert_eq!(machine.word(DATA + 0x41) & 0xffff_ffff, 200_000);
}

#[test]
fn code_written_by_another_vcpu_is_seen_after_a_serialising_instruction() {
    const FUNCTION: u64 = CODE + 0x2000;
    const FLAG: u64 = DATA;
    const ANSWER: u64 = DATA + 64;
    // The writer changes the immediate of `mov eax, n; ret` and tells the number; the reader
    // answers with what it got.
    let writer = assemble(|a| {
        let (mut top, mut wait) = (a.create_label(), a.create_label());
        a.mov(rbx, FLAG).unwrap();
        a.mov(rsi, FUNCTION).unwrap();
        a.mov(ecx, 1).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(dword_ptr(rsi + 1), ecx).unwrap();
        a.mov(dword_ptr(rbx), ecx).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(rbx + 64), ecx).unwrap();
        a.jne(wait).unwrap();
        a.inc(ecx).unwrap();
        a.cmp(ecx, 300).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let reader = assemble(|a| {
        let mut wait = a.create_label();
        a.mov(rdi, FLAG).unwrap();
        a.mov(rsi, FUNCTION).unwrap();
        a.mov(ebp, 1).unwrap();
        a.set_label(&mut wait).unwrap();
        a.pause().unwrap();
        a.cmp(dword_ptr(rdi), ebp).unwrap();
        a.jne(wait).unwrap();
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
        a.call(rsi).unwrap();
        a.mov(dword_ptr(rdi + 64), eax).unwrap();
        a.cmp(eax, ebp).unwrap();
        let mut good = a.create_label();
        a.je(good).unwrap();
        a.mov(dword_ptr(rdi + 128), ebp).unwrap();
        a.mov(dword_ptr(rdi + 64), ebp).unwrap();
        a.set_label(&mut good).unwrap();
        a.inc(ebp).unwrap();
        a.cmp(ebp, 300).unwrap();
        a.jne(wait).unwrap();
        a.hlt().unwrap();
    });
    let mut second = state64();
    second.rip = CODE + 0x1000;
    second.gpr[belljar_x86::Gpr::Rsp as usize] -= 0x1000;
    let pair = Pair::new(&writer, state64(), second);
    let write = |at, data: &[u8]| pair.machine.memory.write(GuestPhysAddr(at), data).unwrap();
    write(CODE + 0x1000, &reader);
    write(FUNCTION, &[0xb8, 0, 0, 0, 0, 0xc3]);
    let machine = run_both(pair);
    assert_eq!(machine.word(ANSWER) as u32, 299);
    assert_eq!(machine.word(DATA + 128), 0, "stale code was run");
}
