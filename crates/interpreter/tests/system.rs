//! Instructions of the system and of the paravirtual interface.

mod harness;

use belljar_x86::Gpr;
use harness::{Machine, assemble};
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
