//! Instructions and events in 64-bit mode.

use super::harness::{CODE, DATA, HANDLERS, Machine, PAGES, STACK, TABLES, assemble, state64};
use belljar_engine::{Exit, Reason};
use belljar_memory::GuestPhysAddr;
use belljar_x86::bits::rflags;
use belljar_x86::{Gpr, Seg, state::Activity};
use iced_x86::code_asm::*;
use std::sync::atomic::Ordering;

#[test]
fn a_loop_computes_its_sum() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 500_500);
}

#[test]
fn a_budget_is_kept_to_the_instruction() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rax).unwrap();
        a.inc(rbx).unwrap();
        a.inc(rcx).unwrap();
        a.jmp(top).unwrap();
    });
    for budget in [1, 2, 3, 4, 5, 6, 401, 402] {
        let mut machine = Machine::new(&code);
        assert_eq!(machine.vcpu.run(Some(budget)), Exit::Budget);
        let state = machine.vcpu.state().clone();
        assert_eq!(state.gpr[Gpr::Rax as usize], budget.div_ceil(4));
        assert_eq!(state.gpr[Gpr::Rbx as usize], (budget + 2) / 4);
        assert_eq!(state.gpr[Gpr::Rcx as usize], (budget + 1) / 4);
        let fresh = machine.vcpu.run(Some(1));
        assert_eq!(fresh, Exit::Budget);
    }
}

#[test]
fn string_operations_with_an_address_size_prefix_see_half_of_the_registers() {
    let counts = [4, 4 | 1u64 << 32];
    let operations = [0xa4, 0xa5, 0xaa, 0xab];
    for (operation, count) in operations.map(|it| counts.map(|n| (it, n))).concat() {
        let code = assemble(|a| {
            a.mov(rsi, DATA | 5 << 32).unwrap();
            a.mov(rdi, (DATA + 0x100) | 7 << 32).unwrap();
            a.mov(rcx, count).unwrap();
            a.mov(rax, 0x6161_6161u64).unwrap();
            a.db(&[0x67, 0xf3, operation]).unwrap();
            a.hlt().unwrap();
        });
        let mut machine = Machine::new(&code);
        machine.write(DATA, &[0x61; 16]);
        let size = if operation & 1 == 0 { 1 } else { 4 };
        let gpr = machine.run().gpr;
        assert_eq!(machine.vector(), None, "{operation:#x}");
        assert_eq!(gpr[Gpr::Rcx as usize], 0);
        assert_eq!(gpr[Gpr::Rdi as usize], DATA + 0x100 + 4 * size);
        if operation < 0xa6 {
            assert_eq!(gpr[Gpr::Rsi as usize], DATA + 4 * size);
        }
        let expected = 0x6161_6161_6161_6161u64 >> (64 - 8 * (4 * size).min(8));
        assert_eq!(machine.word(DATA + 0x100), expected);
    }
}

#[test]
fn rex_prefixes_before_other_prefixes_do_not_count() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        // mov [rbx], ax; mov [rbx+8], rax; mov [rbx+16], al; mov rcx, rbx
        a.db(&[0x48, 0x66, 0x89, 0x03]).unwrap();
        a.db(&[0x4f, 0x48, 0x89, 0x43, 8]).unwrap();
        a.db(&[0x49, 0x3e, 0x40, 0x88, 0x43, 16]).unwrap();
        a.db(&[0x4d, 0x48, 0x89, 0xd9]).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rcx as usize], DATA);
    assert_eq!(machine.word(DATA), 0x7788);
    assert_eq!(machine.word(DATA + 8), 0x1122_3344_5566_7788);
    assert_eq!(machine.word(DATA + 16), 0x88);
}

#[test]
fn a_threads_variables_lie_below_the_base_of_fs() {
    let code = assemble(|a| {
        // mov rax, fs:[-8]; mov rbx, fs:[-16]
        a.db(&[0x64, 0x48, 0x8b, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff])
            .unwrap();
        a.db(&[0x64, 0x48, 0x8b, 0x1c, 0x25, 0xf0, 0xff, 0xff, 0xff])
            .unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.segments[Seg::Fs as usize].base = DATA + 0x100;
    let mut machine = Machine::with_state(&code, cpu);
    machine.write(DATA + 0xf0, &[1, 0, 0, 0, 0, 0, 0, 0, 2]);
    let state = machine.run();
    assert_eq!(state.gpr[Gpr::Rax as usize], 2);
    assert_eq!(state.gpr[Gpr::Rbx as usize], 1);
}

#[test]
fn calls_and_the_stack_work() {
    let code = assemble(|a| {
        let mut function = a.create_label();
        a.push(5).unwrap();
        a.call(function).unwrap();
        a.pop(rbx).unwrap();
        a.hlt().unwrap();
        a.set_label(&mut function).unwrap();
        a.mov(rax, qword_ptr(rsp + 8)).unwrap();
        a.lea(rax, qword_ptr(rax + rax * 4 + 1)).unwrap();
        a.ret().unwrap();
    });
    let mut machine = Machine::new(&code);
    let state = machine.run();
    assert_eq!(state.gpr[Gpr::Rax as usize], 26);
    assert_eq!(state.gpr[Gpr::Rbx as usize], 5);
    assert_eq!(state.gpr[Gpr::Rsp as usize], STACK);
}

#[test]
fn a_page_fault_tells_address_and_leaves_the_instruction_undone() {
    let code = assemble(|a| {
        a.mov(rax, 7u64).unwrap();
        a.mov(rbx, 0x4000_0000u64).unwrap();
        a.xadd(qword_ptr(rbx + 0x10), rax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), Some(14));
    let state = machine.vcpu.state().clone();
    assert_eq!(state.cr2, 0x4000_0010);
    assert_eq!(state.gpr[Gpr::Rax as usize], 7);
    // Error code: a write to what is not present.
    assert_eq!(machine.word(state.gpr[Gpr::Rsp as usize]), 2);
}

#[test]
fn a_store_across_pages_faults_before_it_writes() {
    let code = assemble(|a| {
        a.mov(rbx, 0x3fff_fffcu64).unwrap();
        a.mov(rax, u64::MAX).unwrap();
        a.mov(qword_ptr(rbx), rax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    // The last page that is mapped leads to RAM.
    let entry = TABLES + 0x2000 + 511 * 8;
    machine
        .memory
        .write(GuestPhysAddr(entry), &(0x20_0000u64 | 0x87).to_le_bytes())
        .unwrap();
    machine.run();
    assert_eq!(machine.vector(), Some(14));
    assert_eq!(machine.vcpu.state().cr2, 0x4000_0000);
    let mut last = [1; 4];
    machine
        .memory
        .read(GuestPhysAddr(0x3f_fffc), &mut last)
        .unwrap();
    assert_eq!(last, [0; 4]);
}

#[test]
fn changed_code_is_seen_by_the_next_instruction() {
    let code = assemble(|a| {
        let mut patch = a.create_label();
        a.lea(rbx, qword_ptr(patch)).unwrap();
        a.mov(byte_ptr(rbx + 1), 42).unwrap();
        a.set_label(&mut patch).unwrap();
        a.mov(al, 1).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize] & 0xff, 42);
}

#[test]
fn code_changed_by_a_device_is_seen() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(al, 1).unwrap();
        a.jmp(top).unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.vcpu.run(Some(100));
    machine.memory.write(GuestPhysAddr(CODE), &[0xf4]).unwrap();
    machine.run();
}

#[test]
fn repeated_moves_stop_at_a_fault_with_exact_progress() {
    let code = assemble(|a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, 0x4000_0000u64 - 0x1800).unwrap();
        a.mov(ecx, 0x1000).unwrap();
        a.rep().movsq().unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    let entry = TABLES + 0x2000 + 511 * 8;
    machine
        .memory
        .write(GuestPhysAddr(entry), &(0x40_0000u64 | 0x87).to_le_bytes())
        .unwrap();
    machine.run();
    assert_eq!(machine.vector(), Some(14));
    let state = machine.vcpu.state();
    assert_eq!(state.gpr[Gpr::Rdi as usize], 0x4000_0000);
    assert_eq!(state.gpr[Gpr::Rsi as usize], DATA + 0x1800);
    assert_eq!(state.gpr[Gpr::Rcx as usize], 0x1000 - 0x300);
}

#[test]
fn an_interrupt_waits_for_the_instruction_after_sti() {
    let code = assemble(|a| {
        a.sti().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.board.vector.store(0x40, Ordering::SeqCst);
    machine.attention[0].raise(Reason::INTERRUPT);
    machine.run();
    assert_eq!(machine.vector(), Some(0x40));
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rax as usize], 1);
}

#[test]
fn a_halted_processor_wakes_for_an_interrupt() {
    let code = assemble(|a| {
        a.sti().unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vcpu.state().activity, Activity::Halted);
    machine.board.vector.store(0x41, Ordering::SeqCst);
    machine.attention[0].raise(Reason::INTERRUPT);
    machine.run();
    assert_eq!(machine.vector(), Some(0x41));
    let state = machine.vcpu.state().clone();
    assert_eq!(machine.word(state.gpr[Gpr::Rsp as usize]), CODE + 2);
}

#[test]
fn the_trap_flag_traps_after_one_instruction() {
    let code = assemble(|a| {
        a.pushfq().unwrap();
        a.or(qword_ptr(rsp), 0x100).unwrap();
        a.popfq().unwrap();
        a.inc(rax).unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), Some(1));
    let state = machine.vcpu.state();
    assert_eq!(state.gpr[Gpr::Rax as usize], 1);
    assert_ne!(state.dr6 & 1 << 14, 0);
}

#[test]
fn a_data_breakpoint_traps_after_the_access() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(dword_ptr(rbx + 4), 5).unwrap();
        a.mov(dword_ptr(rbx + 8), 6).unwrap();
        a.inc(rax).unwrap();
        a.hlt().unwrap();
    });
    let mut cpu = state64();
    cpu.dr[0] = DATA + 8;
    cpu.dr7 |= 1 | 0b1101 << 16;
    let mut machine = Machine::with_state(&code, cpu);
    machine.run();
    assert_eq!(machine.vector(), Some(1));
    assert_eq!(machine.vcpu.state().gpr[Gpr::Rax as usize], 0);
    assert_eq!(machine.vcpu.state().dr6 & 15, 1);
    assert_eq!(machine.word(DATA + 8), 6);
}

#[test]
fn an_undefined_instruction_is_reported_at_its_address() {
    let mut machine = Machine::new(&[0x90, 0x0f, 0x0b]);
    machine.run();
    assert_eq!(machine.vector(), Some(6));
    let state = machine.vcpu.state().clone();
    assert_eq!(machine.word(state.gpr[Gpr::Rsp as usize]), CODE + 1);
}

#[test]
fn an_instruction_of_sixteen_bytes_is_a_protection_fault() {
    let mut code = vec![0x66; 15];
    code.push(0x90);
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), Some(13));
}

#[test]
fn a_fault_without_handlers_shuts_the_processor_down() {
    let mut cpu = state64();
    cpu.idtr.limit = 0;
    let mut machine = Machine::with_state(&[0x0f, 0x0b], cpu);
    assert_eq!(machine.vcpu.run(Some(10)), Exit::TripleFault);
    assert_eq!(machine.vcpu.state().rip, CODE);
}

#[test]
fn an_instruction_across_pages_runs_and_follows_changes_of_either() {
    let mut machine = Machine::new(&[]);
    let start = CODE + 0xffd;
    // mov eax, 0x44332211; hlt
    let code = [0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4];
    machine.memory.write(GuestPhysAddr(start), &code).unwrap();
    let mut cpu = state64();
    cpu.rip = start;
    machine.vcpu.set_state(cpu.clone());
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 0x4433_2211);
    machine
        .memory
        .write(GuestPhysAddr(start + 4), &[0x55])
        .unwrap();
    let mut again = machine.vcpu.state().clone();
    again.rip = start;
    again.activity = Activity::Running;
    machine.vcpu.set_state(again);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 0x5533_2211);
}

#[test]
fn devices_are_read_and_written_whole() {
    let code = assemble(|a| {
        a.mov(rbx, 0xc000_0000u64 >> 8).unwrap();
        a.mov(rbx, 0xa_0010u64).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.mov(word_ptr(rbx + 2), 0x1234).unwrap();
        a.lock().or(byte_ptr(rbx), 1).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 0x1312_1110);
    let writes = machine.board.writes.lock().unwrap().clone();
    assert_eq!(
        writes,
        [(0xa_0012, vec![0x34, 0x12]), (0xa_0010, vec![0x11])]
    );
}

#[test]
fn vector_instructions_run_on_the_host() {
    let code = assemble(|a| {
        a.mov(rbx, DATA).unwrap();
        a.mov(dword_ptr(rbx), 0x4000_0000).unwrap();
        a.movss(xmm0, dword_ptr(rbx)).unwrap();
        a.mulss(xmm0, xmm0).unwrap();
        a.movss(dword_ptr(rbx + 4), xmm0).unwrap();
        a.mov(eax, dword_ptr(rbx + 4)).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 0x4080_0000);
}

#[test]
fn software_interrupts_come_back_by_iret() {
    let code = assemble(|a| {
        a.stc().unwrap();
        a.int(0x55).unwrap();
        a.setb(al).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    // clc; iretq
    machine
        .memory
        .write(GuestPhysAddr(HANDLERS + 0x550), &[0xf8, 0x48, 0xcf])
        .unwrap();
    let state = machine.run();
    assert_eq!(state.gpr[Gpr::Rax as usize] & 0xff, 1);
    assert_eq!(state.gpr[Gpr::Rsp as usize], STACK);
    assert_ne!(state.rflags & rflags::CF, 0);
}

#[test]
fn bit_strings_wrap_at_32_bits_if_they_are_addressed_by_32() {
    const FROM: u32 = 0xffff_f000;
    let distance = (DATA as u32).wrapping_sub(FROM);
    let code = assemble(|a| {
        a.mov(ecx, FROM).unwrap();
        a.mov(eax, distance * 8 + 5).unwrap();
        a.bts(dword_ptr(ecx), eax).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    machine.run();
    assert_eq!(machine.vector(), None);
    assert_eq!(machine.word(DATA), 1 << 5);
}

#[test]
fn the_stack_pointer_is_right_at_a_fault_between_pushes() {
    for (pops, moved) in [(false, -24), (true, 16)] {
        let code = assemble(|a| {
            a.mov(rbx, PAGES).unwrap();
            for _ in 0..3 {
                if pops {
                    a.pop(rcx).unwrap();
                } else {
                    a.push(rcx).unwrap();
                }
                a.inc(rdx).unwrap();
            }
            if pops {
                a.push(rdx).unwrap();
            }
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.pop(rcx).unwrap();
        });
        let mut machine = Machine::new(&code);
        machine.run();
        assert_eq!(machine.vector(), Some(14));
        let frame = machine.vcpu.state().gpr[Gpr::Rsp as usize];
        // Error code, RIP, CS, RFLAGS, RSP.
        assert_eq!(machine.word(frame + 32), STACK.wrapping_add_signed(moved));
    }
}

#[test]
fn a_move_to_and_from_an_address_of_64_bits_works() {
    let code = assemble(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        // mov [DATA], rax; xor eax, eax; mov eax, [DATA + 2]
        a.db(&[0x48, 0xa3]).unwrap();
        a.db(&DATA.to_le_bytes()).unwrap();
        a.xor(eax, eax).unwrap();
        a.db(&[0xa1]).unwrap();
        a.db(&(DATA + 2).to_le_bytes()).unwrap();
        a.hlt().unwrap();
    });
    let mut machine = Machine::new(&code);
    assert_eq!(machine.run().gpr[Gpr::Rax as usize], 0x3344_5566);
}
