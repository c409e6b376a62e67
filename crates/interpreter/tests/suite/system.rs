//! Instructions of the system and of the paravirtual interface.

use super::harness::{CODE, Machine, STACK, assemble, state64};
use belljar_engine::{Exit, Reason};
use belljar_x86::Gpr;
use belljar_x86::bits::rflags;
use belljar_x86::syscall::Vendor;
use iced_x86::code_asm::*;

#[test]
fn hypercalls_of_both_makers_are_refused_by_their_result() {
    let code = assemble(|a| {
        a.mov(rax, 5_u64).unwrap();
        a.vmcall().unwrap();
        a.mov(rbx, rax).unwrap();
        a.mov(rax, 5_u64).unwrap();
        a.vmmcall().unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), None);
    let no_such_call = -1000_i64 as u64;
    for register in [Gpr::Rax, Gpr::Rbx] {
        assert_eq!(machine.vcpu.state().gpr[register as usize], no_such_call);
    }
}

#[test]
fn a_non_maskable_interrupt_waits_for_the_instruction_after_sti() {
    let code = assemble(|a| {
        a.sti().unwrap();
        a.nop().unwrap();
        a.nop().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.vcpu.run(Some(1)), Exit::Budget);
    machine.attention[0].raise(Reason::NMI);
    assert_eq!(machine.vcpu.run(Some(1)), Exit::Budget);
    assert_eq!(machine.vcpu.state().rip, CODE + 2, "after the first NOP");
    machine.run();
    assert_eq!(machine.vector(), Some(2));
}

#[test]
fn event_counters_are_read_as_zero_where_the_maker_has_them() {
    let code = assemble(|a| {
        a.mov(ecx, 3).unwrap();
        a.or(rax, -1).unwrap();
        a.rdpmc().unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    if machine.model.vendor() == Vendor::Amd {
        assert_eq!(machine.vector(), None);
        assert_eq!(machine.vcpu.state().gpr[Gpr::Rax as usize], 0);
    } else {
        assert_eq!(machine.vector(), Some(13));
    }
}

#[test]
fn a_traced_halt_is_ended_by_its_trap() {
    let code = assemble(|a| {
        a.hlt().unwrap();
        a.nop().unwrap();
    });
    let mut cpu = state64();
    cpu.rflags |= rflags::TF;
    let mut machine = Machine::with_state(&code, cpu);
    machine.run();
    assert_eq!(machine.vector(), Some(1));
    assert_eq!(machine.word(STACK - 40), CODE + 1, "after HLT");
}

#[test]
fn a_code_breakpoint_after_mov_ss_waits_on_intel_alone() {
    let code = assemble(|a| {
        a.mov(eax, ss).unwrap();
        a.mov(ss, eax).unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    let nop = CODE + 4;
    cpu.dr[0] = nop;
    cpu.dr7 |= 1;
    let mut machine = Machine::with_state(&code, cpu);
    machine.run();
    if machine.model.vendor() == Vendor::Intel {
        assert_eq!(machine.vector(), None);
    } else {
        assert_eq!(machine.vector(), Some(1));
        assert_eq!(machine.word(STACK - 40), nop);
    }
}
