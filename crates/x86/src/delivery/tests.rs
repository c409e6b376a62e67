use super::*;
use crate::descriptor::system::*;
use crate::testing::*;
use crate::{Gpr, Seg};
use proptest::prelude::*;

const HANDLER: u32 = 0x6_1234;
const RSP: usize = Gpr::Rsp as usize;
const OLD_FLAGS: u64 = rflags::FIXED | rflags::IF | rflags::TF | rflags::CF;
const PAGE_FAULT: Exception = Exception::page_fault(0xdead_b000, 6);

fn code_selector(n: u8) -> u64 {
    u64::from(code(n))
}

fn data_selector(n: u8) -> u64 {
    u64::from(data(n))
}

/// Puts a gate of protected mode into the IDT.
fn set_gate(mem: &TestMemory, vector: u64, kind: u8, dpl: u8) {
    mem.put(IDT + vector * 8, 8, gate(CODE0, HANDLER, kind, dpl, 0));
}

/// Puts a gate of long mode into the IDT.
fn set_gate64(mem: &TestMemory, vector: u64, kind: u8, dpl: u8, ist: u8) {
    mem.put(IDT + vector * 16, 8, gate(CODE0, HANDLER, kind, dpl, ist));
    mem.put(IDT + vector * 16 + 8, 8, 0xffff_8000);
}

#[test]
fn real_mode_pushes_three_words_and_no_error_code() {
    let (mut cpu, mut mem) = real();
    mem.put(13 * 4, 4, 0x2345_0678);
    cpu.rflags = OLD_FLAGS | rflags::AC;
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::general_protection(0)),
    )
    .unwrap();
    assert_eq!(
        (cpu.seg(Seg::Cs).selector, cpu.seg(Seg::Cs).base),
        (0x2345, 0x23450)
    );
    assert_eq!(cpu.rip, 0x678);
    assert_eq!(cpu.gpr[RSP], STACK - 6);
    assert_eq!(
        stacked(&cpu, &mem, 2, 3),
        [0x200, 0x1000, OLD_FLAGS & 0xffff]
    );
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF);
}

#[test]
fn a_vector_beyond_the_real_mode_table_ends_in_shutdown_if_there_is_no_table() {
    let (mut cpu, mut mem) = real();
    cpu.idtr.limit = 0;
    let before = cpu.clone();
    let event = Event::Software {
        vector: 0x21,
        length: 2,
    };
    assert_eq!(deliver(&mut cpu, &mut mem, event), Err(TripleFault));
    assert_eq!(cpu.rip, before.rip - 2);
    assert_eq!(cpu.activity, Activity::Shutdown);
    assert_eq!((cpu.segments, cpu.gpr), (before.segments, before.gpr));
}

#[test]
fn protected_mode_at_the_same_level_keeps_the_stack() {
    let (mut cpu, mut mem) = protected(0);
    set_gate(&mem, 14, TRAP_GATE32, 0);
    cpu.rflags = OLD_FLAGS | rflags::NT;
    deliver(&mut cpu, &mut mem, Event::Exception(PAGE_FAULT)).unwrap();
    let flags = OLD_FLAGS | rflags::NT | rflags::RF;
    assert_eq!(
        stacked(&cpu, &mem, 4, 4),
        [6, 0x5_0000, code_selector(0), flags]
    );
    assert_eq!(cpu.gpr[RSP], STACK - 16);
    assert_eq!(cpu.cr2, 0xdead_b000);
    assert_eq!(cpu.rip, u64::from(HANDLER));
    // A trap gate leaves IF.
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::IF | rflags::CF);
}

#[test]
fn protected_mode_switches_to_the_stack_of_the_tss() {
    let (mut cpu, mut mem) = protected(3);
    set_gate(&mem, 0x30, INTERRUPT_GATE32, 0);
    cpu.rflags = OLD_FLAGS;
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(
        (
            cpu.cpl,
            cpu.seg(Seg::Cs).selector,
            cpu.seg(Seg::Ss).selector
        ),
        (0, code(0), data(0))
    );
    assert_eq!(cpu.gpr[RSP], INNER_STACK[0] - 20);
    assert_eq!(
        stacked(&cpu, &mem, 4, 5),
        [
            0x5_0000,
            code_selector(3),
            OLD_FLAGS,
            STACK,
            data_selector(3)
        ]
    );
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF);
}

#[test]
fn a_16_bit_gate_pushes_words_and_truncates_the_offset() {
    let (mut cpu, mut mem) = protected(0);
    set_gate(&mem, 0x30, INTERRUPT_GATE16, 0);
    cpu.rip = 0x4321;
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(
        stacked(&cpu, &mem, 2, 3),
        [0x4321, code_selector(0), rflags::FIXED]
    );
    assert_eq!(cpu.rip, u64::from(HANDLER & 0xffff));
}

#[test]
fn a_16_bit_tss_gives_a_16_bit_stack_pointer() {
    let (mut cpu, mut mem) = protected(3);
    cpu.tr.rights = 0x80 | u16::from(TSS16_BUSY);
    mem.put(TSS + 2, 2, 0x9000);
    mem.put(TSS + 4, 2, data_selector(0));
    set_gate(&mem, 0x30, INTERRUPT_GATE32, 0);
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(cpu.gpr[RSP], 0x9000 - 20);
}

#[test]
fn a_conforming_handler_runs_at_the_level_of_the_program() {
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, segment(0, 0xf_ffff, CODE | 4 | FLAT));
    mem.put(
        IDT + 0x30 * 8,
        8,
        gate(FREE, HANDLER, INTERRUPT_GATE32, 0, 0),
    );
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!((cpu.cpl, cpu.seg(Seg::Cs).selector), (3, FREE | 3));
    assert_eq!(cpu.gpr[RSP], STACK - 12);
}

#[test]
fn virtual_8086_mode_saves_and_nulls_the_data_segments() {
    let (mut cpu, mut mem) = virtual_8086();
    set_gate(&mem, 0x30, INTERRUPT_GATE32, 0);
    for (seg, selector) in [(Seg::Es, 1), (Seg::Ds, 2), (Seg::Fs, 3), (Seg::Gs, 4)] {
        cpu.segments[seg as usize].selector = selector;
    }
    let flags = cpu.rflags;
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(
        stacked(&cpu, &mem, 4, 9),
        [0x200, 0x2000, flags, STACK, 0x2000, 1, 2, 3, 4]
    );
    assert!(!cpu.virtual_8086());
    assert_eq!(cpu.cpl, 0);
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        assert!(!cpu.seg(seg).usable);
    }
}

#[test]
fn a_handler_of_virtual_8086_mode_must_be_of_level_0() {
    let (mut cpu, mut mem) = virtual_8086();
    mem.put(
        IDT + 0x30 * 8,
        8,
        gate(code(1), HANDLER, INTERRUPT_GATE32, 3, 0),
    );
    set_gate(&mem, 13, INTERRUPT_GATE32, 0);
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(stacked(&cpu, &mem, 4, 1), [u64::from(code(1) & !3) | 1]);
}

#[test]
fn long_mode_aligns_the_stack_and_pushes_ss_always() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 14, INTERRUPT_GATE32, 0, 0);
    cpu.gpr[RSP] = STACK - 3;
    cpu.rflags = OLD_FLAGS;
    deliver(&mut cpu, &mut mem, Event::Exception(PAGE_FAULT)).unwrap();
    assert_eq!(cpu.gpr[RSP], STACK - 16 - 48);
    let flags = OLD_FLAGS | rflags::RF;
    assert_eq!(
        stacked(&cpu, &mem, 8, 6),
        [
            6,
            0x5_0000,
            code_selector(0),
            flags,
            STACK - 3,
            data_selector(0)
        ]
    );
    assert_eq!(cpu.rip, 0xffff_8000_0006_1234);
    assert_eq!(cpu.seg(Seg::Ss).selector, data(0));
}

#[test]
fn long_mode_nulls_ss_when_the_level_changes() {
    let (mut cpu, mut mem) = long(3);
    set_gate64(&mem, 0x80, TRAP_GATE32, 3, 0);
    let event = Event::Software {
        vector: 0x80,
        length: 2,
    };
    deliver(&mut cpu, &mut mem, event).unwrap();
    assert_eq!(cpu.gpr[RSP], INNER_STACK[0] - 40);
    assert_eq!((cpu.cpl, cpu.seg(Seg::Ss).selector), (0, 0));
    assert!(!cpu.seg(Seg::Ss).usable);
    assert_eq!(
        stacked(&cpu, &mem, 8, 5),
        [
            0x5_0000,
            code_selector(3),
            rflags::FIXED,
            STACK,
            data_selector(3)
        ]
    );
}

#[test]
fn an_interrupt_stack_is_taken_at_any_level_and_blocks_nmis() {
    for cpl in [0, 3] {
        let (mut cpu, mut mem) = long(cpl);
        set_gate64(&mem, 2, INTERRUPT_GATE32, 0, 7);
        mem.put(TSS + 0x24 + 6 * 8, 8, 0xf008);
        cpu.shadow = Shadow::MovSs;
        deliver(&mut cpu, &mut mem, Event::Nmi).unwrap();
        assert_eq!(cpu.gpr[RSP], 0xf000 - 40);
        assert!(cpu.nmi_blocked);
        assert_eq!(cpu.shadow, Shadow::None);
        assert_eq!(cpu.seg(Seg::Ss).usable, cpl == 0);
    }
}

#[test]
fn a_software_interrupt_below_the_gates_level_faults_at_the_instruction() {
    let (mut cpu, mut mem) = long(3);
    set_gate64(&mem, 0x80, TRAP_GATE32, 0, 0);
    set_gate64(&mem, 13, INTERRUPT_GATE32, 0, 0);
    let event = Event::Software {
        vector: 0x80,
        length: 2,
    };
    deliver(&mut cpu, &mut mem, event).unwrap();
    // Without EXT: the program asked for it.
    assert_eq!(stacked(&cpu, &mem, 8, 2), [0x80 << 3 | 2, 0x5_0000 - 2]);
}

#[test]
fn an_absent_gate_is_segment_not_present_with_ext_for_an_interrupt() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 0x40, INTERRUPT_GATE32, 0, 0);
    mem.put(IDT + 0x40 * 16 + 5, 1, u64::from(INTERRUPT_GATE32));
    set_gate64(&mem, 11, INTERRUPT_GATE32, 0, 0);
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x40)).unwrap();
    assert_eq!(stacked(&cpu, &mem, 8, 2), [0x40 << 3 | 3, 0x5_0000]);
}

#[test]
fn long_mode_refuses_gates_to_32_bit_code_and_16_bit_gates() {
    for (selector, kind, error) in [
        (FREE, INTERRUPT_GATE32, u64::from(FREE) | 1),
        (CODE0, INTERRUPT_GATE16, 0x30 << 3 | 3),
        (CODE0, TASK_GATE, 0x30 << 3 | 3),
        (0, INTERRUPT_GATE32, 1),
    ] {
        let (mut cpu, mut mem) = long(0);
        define(&mem, FREE, segment(0, 0xf_ffff, CODE | FLAT));
        mem.put(IDT + 0x30 * 16, 8, gate(selector, HANDLER, kind, 0, 0));
        set_gate64(&mem, 13, INTERRUPT_GATE32, 0, 0);
        deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
        assert_eq!(stacked(&cpu, &mem, 8, 1), [error]);
    }
}

#[test]
fn a_page_fault_on_the_handlers_stack_is_a_double_fault_with_the_second_address() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 14, INTERRUPT_GATE32, 0, 0);
    set_gate64(&mem, 8, INTERRUPT_GATE32, 0, 1);
    mem.put(TSS + 0x24, 8, 0xf000);
    mem.absent.insert(STACK - 0x1000);
    deliver(&mut cpu, &mut mem, Event::Exception(PAGE_FAULT)).unwrap();
    assert_eq!(cpu.cr2, STACK - 8);
    assert_eq!(
        stacked(&cpu, &mem, 8, 6),
        [
            0,
            0x5_0000,
            code_selector(0),
            rflags::FIXED,
            STACK,
            data_selector(0)
        ]
    );
}

#[test]
fn a_fault_in_the_double_faults_delivery_shuts_down_with_the_old_registers() {
    let (mut cpu, mut mem) = long(3);
    mem.absent.insert(IDT);
    let before = cpu.clone();
    let event = Event::Exception(Exception::divide_error());
    assert_eq!(deliver(&mut cpu, &mut mem, event), Err(TripleFault));
    assert_eq!(
        (cpu.rip, cpu.gpr, cpu.rflags),
        (before.rip, before.gpr, before.rflags)
    );
    assert_eq!((cpu.segments, cpu.cpl), (before.segments, 3));
}

#[test]
fn a_page_fault_while_an_interrupt_is_delivered_comes_first_without_ext() {
    let (mut cpu, mut mem) = protected(3);
    set_gate(&mem, 14, INTERRUPT_GATE32, 0);
    mem.put(
        IDT + 0x1000 - 8,
        8,
        gate(CODE0, HANDLER, INTERRUPT_GATE32, 0, 0),
    );
    cpu.idtr.limit = 0x17ff;
    mem.absent.insert(0x3000);
    cpu.tr.base = 0x1_0000;
    mem.put(0x1_0004, 4, INNER_STACK[0]);
    mem.put(0x1_0008, 2, data_selector(0));
    cpu.idtr.base = 0x2ff8 - 14 * 8;
    mem.put(0x2ff8, 8, gate(CODE0, HANDLER, INTERRUPT_GATE32, 0, 0));
    deliver(&mut cpu, &mut mem, Event::Interrupt(15)).unwrap();
    assert_eq!(cpu.cr2, 0x3000);
    assert_eq!(stacked(&cpu, &mem, 4, 2), [0, 0x5_0000]);
}

#[test]
fn a_stack_without_room_is_a_stack_fault_that_names_the_new_segment() {
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, segment(0, 0x7, DATA));
    mem.put(TSS + 4, 4, 8);
    mem.put(TSS + 8, 2, u64::from(FREE));
    set_gate(&mem, 0x30, INTERRUPT_GATE32, 0);
    // #SS itself goes through a conforming segment, so that it needs no stack.
    define(&mem, FREE + 8, segment(0, 0xf_ffff, CODE | 4 | FLAT));
    mem.put(
        IDT + 12 * 8,
        8,
        gate(FREE + 8, HANDLER, INTERRUPT_GATE32, 0, 0),
    );
    deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
    assert_eq!(stacked(&cpu, &mem, 4, 2), [u64::from(FREE) | 1, 0x5_0000]);
}

#[test]
fn a_debug_exception_replaces_the_breakpoints_of_the_last_in_dr6() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 1, INTERRUPT_GATE32, 0, 0);
    cpu.dr6 |= debug::DR6_BS | 1 << 1;
    let event = Event::Exception(Exception::debug(1 << 2));
    deliver(&mut cpu, &mut mem, event).unwrap();
    assert_eq!(cpu.dr6, debug::DR6_FIXED | debug::DR6_BS | 1 << 2);
}

#[test]
fn int1_and_a_trap_that_was_held_back_are_one_exception() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 1, INTERRUPT_GATE32, 0, 0);
    cpu.pending_debug = 1 << 1;
    deliver(&mut cpu, &mut mem, Event::Icebp).unwrap();
    assert_eq!(cpu.dr6, debug::DR6_FIXED | 1 << 1);
    assert_eq!(cpu.pending_debug, 0);
}

#[test]
fn debug_exceptions_gather_in_dr6_and_switch_general_detect_off() {
    let (mut cpu, mut mem) = long(0);
    set_gate64(&mem, 1, INTERRUPT_GATE32, 0, 0);
    cpu.dr7 |= debug::DR7_GD;
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::debug(debug::DR6_BS)),
    )
    .unwrap();
    assert_eq!(cpu.dr6, debug::DR6_FIXED | debug::DR6_BS);
    assert_eq!(cpu.dr7, debug::DR7_FIXED);
    // A trap: RF is as it was. No error code.
    assert_eq!(
        stacked(&cpu, &mem, 8, 3),
        [0x5_0000, code_selector(0), rflags::FIXED]
    );
}

#[test]
fn a_task_gate_switches_tasks_and_pushes_the_error_code_there() {
    let (mut cpu, mut mem) = protected(3);
    mem.put(IDT + 13 * 8, 8, gate(FREE, 0, TASK_GATE, 0, 0));
    define(&mem, FREE, segment(0x1_0000, 0x67, 0x89));
    mem.put(0x1_0000 + 0x20, 4, 0x7_0000);
    mem.put(0x1_0000 + 0x38, 4, 0x9000);
    for (at, selector) in [
        (0x48, data(0)),
        (0x4c, code(0)),
        (0x50, data(0)),
        (0x54, data(0)),
    ] {
        mem.put(0x1_0000 + at, 2, u64::from(selector));
    }
    cpu.rflags = OLD_FLAGS;
    deliver(
        &mut cpu,
        &mut mem,
        Event::Exception(Exception::general_protection(0x44)),
    )
    .unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.tr.selector), (0x7_0000, 0, FREE));
    assert_eq!(stacked(&cpu, &mem, 4, 1), [0x44]);
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::NT);
    assert_eq!(mem.get(0x1_0000, 2), u64::from(TSS_SELECTOR));
    assert_eq!(mem.get(TSS + 0x20, 4), 0x5_0000);
    assert_eq!(mem.get(TSS + 0x24, 4), OLD_FLAGS | rflags::RF);
}

#[test]
fn pairs_of_exceptions_are_those_of_table_6_5() {
    let contributory = Exception::general_protection(0);
    let double = Some(Exception::double_fault());
    let cases = [
        (Event::Interrupt(32), contributory, Some(contributory)),
        (Event::Interrupt(32), PAGE_FAULT, Some(PAGE_FAULT)),
        (
            Event::Exception(Exception::x87()),
            contributory,
            Some(contributory),
        ),
        (Event::Exception(contributory), contributory, double),
        (Event::Exception(contributory), PAGE_FAULT, Some(PAGE_FAULT)),
        (Event::Exception(PAGE_FAULT), contributory, double),
        (Event::Exception(PAGE_FAULT), PAGE_FAULT, double),
        (
            Event::Exception(Exception::double_fault()),
            contributory,
            None,
        ),
        (
            Event::Exception(Exception::double_fault()),
            PAGE_FAULT,
            None,
        ),
        // INT 13 is no #GP.
        (
            Event::Software {
                vector: 13,
                length: 2,
            },
            contributory,
            Some(contributory),
        ),
    ];
    for (first, second, expected) in cases {
        assert_eq!(after(first, second), expected, "{first:?}, {second:?}");
    }
}

proptest! {
    /// Whatever lies in the tables, delivery ends, and a shutdown leaves the registers alone.
    #[test]
    fn any_tables_lead_to_a_handler_or_a_shutdown(
        tables in prop::collection::vec(any::<u64>(), 64),
        vector: u8, mode in 0u8..3, software: bool, gdt: bool,
    ) {
        let (mut cpu, mut mem) = match mode {
            0 => long(3),
            1 => protected(3),
            _ => virtual_8086(),
        };
        for (at, value) in (IDT..).step_by(8).zip(&tables) {
            mem.put(at, 8, *value);
        }
        if gdt {
            for (at, value) in (GDT..).step_by(8).zip(&tables) {
                mem.put(at, 8, *value);
            }
        }
        let vector = vector & 31;
        let event = if software {
            Event::Software { vector, length: 2 }
        } else {
            Event::Interrupt(vector)
        };
        let before = cpu.clone();
        if deliver(&mut cpu, &mut mem, event).is_err() {
            prop_assert_eq!(cpu.activity, Activity::Shutdown);
            if cpu.tr == before.tr {
                prop_assert_eq!(cpu.gpr, before.gpr);
                prop_assert_eq!(cpu.segments, before.segments);
            }
        } else {
            prop_assert!(!cpu.virtual_8086() || cpu.cpl == 3);
            prop_assert_eq!(cpu.cpl, cpu.seg(Seg::Cs).rpl());
        }
    }
}
