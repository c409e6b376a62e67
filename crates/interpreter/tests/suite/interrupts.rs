//! Interrupts, requests and budgets while code loops.

use super::harness::{CODE, DATA, HANDLERS, Machine, assemble, run, state64};
use belljar_engine::{Exit, Reason};
use belljar_x86::Gpr;
use belljar_x86::bits::rflags;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Loops without end, of every kind. They count nothing, so that nothing but the interrupt ends
/// them.
fn endless() -> Vec<Vec<u8>> {
    let mut loops = vec![
        vec![0xeb, 0xfe],                   // jmp $
        vec![0x90, 0x90, 0xeb, 0xfc],       // nop; nop; jmp $-2
        vec![0xf3, 0x90, 0xeb, 0xfc],       // pause; jmp
        vec![0x31, 0xc0, 0x74, 0xfc],       // xor eax, eax; je
        vec![0xe8, 0, 0, 0, 0, 0xeb, 0xfe], // call $+5; jmp $
    ];
    loops.push(assemble(|a| {
        let mut top = a.create_label();
        a.lea(rax, qword_ptr(top)).unwrap();
        a.set_label(&mut top).unwrap();
        a.jmp(rax).unwrap();
    }));
    loops.push(assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.push(CODE as i32).unwrap();
        a.ret().unwrap();
    }));
    loops.push(assemble(|a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        a.set_label(&mut top).unwrap();
        a.call(function).unwrap();
        a.jmp(top).unwrap();
        a.set_label(&mut function).unwrap();
        a.ret().unwrap();
    }));
    // From page to page and back.
    loops.push(assemble(|a| {
        a.jmp(CODE + 0x1800).unwrap();
    }));
    loops
}

/// A machine that runs an endless loop, with what the loop of two pages needs.
fn looping(code: &[u8], flags: u64) -> Machine {
    let mut cpu = state64();
    cpu.rflags |= flags;
    let machine = Machine::with_state(code, cpu);
    let back = super::harness::assemble_at(CODE + 0x1800, |a| a.jmp(CODE).unwrap());
    machine.write(CODE + 0x1800, &back);
    machine
}

/// Lets another thread raise `reason` while the machine runs.
fn run_until_raised(machine: &mut Machine, reason: Reason) -> Exit {
    let attention = Arc::clone(&machine.attention);
    let raiser = thread::spawn(move || {
        thread::sleep(Duration::from_millis(3));
        attention[0].raise(reason);
    });
    let exit = run(&mut *machine.vcpu, &machine.attention, 0, 1 << 40);
    raiser.join().unwrap();
    exit
}

#[test]
fn an_interrupt_ends_every_kind_of_loop() {
    for code in endless() {
        let mut machine = looping(&code, rflags::IF);
        machine.board.vector.store(0x42, Ordering::SeqCst);
        let exit = run_until_raised(&mut machine, Reason::INTERRUPT);
        assert_eq!(exit, Exit::Halted, "{code:02x?}");
        assert_eq!(machine.vector(), Some(0x42), "{code:02x?}");
    }
}

#[test]
fn a_non_maskable_interrupt_ends_every_kind_of_loop() {
    for code in endless() {
        let mut machine = looping(&code, 0);
        let exit = run_until_raised(&mut machine, Reason::NMI);
        assert_eq!(exit, Exit::Halted, "{code:02x?}");
        assert_eq!(machine.vector(), Some(2), "{code:02x?}");
    }
}

#[test]
fn a_stop_ends_every_kind_of_loop() {
    for code in endless() {
        // Interrupts are off, and one waits.
        let mut machine = looping(&code, 0);
        machine.board.vector.store(0x42, Ordering::SeqCst);
        machine.attention[0].raise(Reason::INTERRUPT);
        let exit = run_until_raised(&mut machine, Reason::STOP);
        assert_eq!(exit, Exit::Attention, "{code:02x?}");
        assert_eq!(machine.board.vector.load(Ordering::SeqCst), 0x42);
    }
}

#[test]
fn an_interrupt_comes_at_once_when_flags_are_loaded() {
    // STI, POPFQ and IRETQ in the middle of code.
    for way in 0..3 {
        let code = assemble(|a| {
            a.xor(eax, eax).unwrap();
            match way {
                0 => {
                    a.sti().unwrap();
                    a.inc(eax).unwrap();
                }
                1 => {
                    a.push(0x202).unwrap();
                    a.popfq().unwrap();
                }
                _ => {
                    let mut next = a.create_label();
                    a.mov(rdx, rsp).unwrap();
                    a.push(0x10).unwrap();
                    a.push(rdx).unwrap();
                    a.push(0x202).unwrap();
                    a.push(8).unwrap();
                    a.lea(rdx, qword_ptr(next)).unwrap();
                    a.push(rdx).unwrap();
                    a.iretq().unwrap();
                    a.set_label(&mut next).unwrap();
                }
            }
            a.add(eax, 16).unwrap();
            a.hlt().unwrap();
        });
        let mut machine = Machine::new(&code);
        machine.board.vector.store(0x33, Ordering::SeqCst);
        machine.attention[0].raise(Reason::INTERRUPT);
        machine.run();
        assert_eq!(machine.vector(), Some(0x33), "{way}");
        let gpr = machine.vcpu.state().gpr;
        assert_eq!(gpr[Gpr::Rax as usize], u64::from(way == 0), "{way}");
    }
}

#[test]
fn budgets_hold_after_runs_without_one() {
    // What was translated for a run without a budget must not be reached in one that has one.
    let code = assemble(|a| {
        let (mut top, mut function) = (a.create_label(), a.create_label());
        a.set_label(&mut top).unwrap();
        a.lea(rbx, qword_ptr(function)).unwrap();
        a.call(rbx).unwrap();
        a.jmp(top).unwrap();
        a.set_label(&mut function).unwrap();
        a.inc(rax).unwrap();
        a.ret().unwrap();
    });
    let mut machine = Machine::new(&code);
    let attention = Arc::clone(&machine.attention);
    for _ in 0..3 {
        let stopper = thread::spawn({
            let attention = Arc::clone(&attention);
            move || {
                thread::sleep(Duration::from_millis(2));
                attention[0].raise(Reason::STOP);
            }
        });
        assert_eq!(machine.vcpu.run(None), Exit::Attention);
        stopper.join().unwrap();
        attention[0].clear(Reason::STOP);
        // To the loop's top.
        while machine.vcpu.state().rip != CODE {
            assert_eq!(machine.vcpu.run(Some(1)), Exit::Budget);
        }
        let before = machine.vcpu.state().gpr[Gpr::Rax as usize];
        assert_eq!(machine.vcpu.run(Some(5 * 1000 + 3)), Exit::Budget);
        let after = machine.vcpu.state().clone();
        assert_eq!(after.gpr[Gpr::Rax as usize] - before, 1001);
        // Behind LEA, CALL and INC: at RET.
        let ret = CODE + code.len() as u64 - 1;
        assert_eq!(after.rip, ret);
        while machine.vcpu.state().rip != CODE {
            assert_eq!(machine.vcpu.run(Some(1)), Exit::Budget);
        }
    }
}

#[test]
fn handlers_return_into_the_loop_they_interrupted() {
    const INTERRUPTS: u64 = 20;
    // Counts to RDX:RAX and to RCX until the handler has run often enough.
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rcx).unwrap();
        a.add(eax, 1).unwrap();
        a.adc(edx, 0).unwrap();
        a.cmp(dword_ptr(DATA), INTERRUPTS as i32).unwrap();
        a.jb(top).unwrap();
        a.cli().unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.rflags |= rflags::IF;
    cpu.gpr[Gpr::Rax as usize] = 0xffff_ff00;
    for register in [Gpr::Rcx, Gpr::Rdx] {
        cpu.gpr[register as usize] = 0;
    }
    let mut machine = Machine::with_state(&code, cpu);
    let handler = super::harness::assemble_at(HANDLERS + 0x400, |a| {
        a.inc(dword_ptr(DATA)).unwrap();
        a.iretq().unwrap();
    });
    machine.write(HANDLERS + 0x400, &handler);
    let (board, attention) = (Arc::clone(&machine.board), Arc::clone(&machine.attention));
    let (finished, end) = channel::<()>();
    let raiser = thread::spawn(move || {
        while end.recv_timeout(Duration::from_micros(200)) == Err(RecvTimeoutError::Timeout) {
            board.vector.store(0x40, Ordering::SeqCst);
            attention[0].raise(Reason::INTERRUPT);
        }
    });
    let exit = run(&mut *machine.vcpu, &machine.attention, 0, 1 << 40);
    drop(finished);
    raiser.join().unwrap();
    assert_eq!(exit, Exit::Halted);
    let gpr = machine.vcpu.state().gpr;
    let sum = gpr[Gpr::Rdx as usize] << 32 | gpr[Gpr::Rax as usize];
    assert_eq!(sum, 0xffff_ff00 + gpr[Gpr::Rcx as usize]);
    assert!(machine.word(DATA) >= INTERRUPTS);
}
