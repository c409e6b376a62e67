use super::*;
use crate::bits::rflags;
use crate::delivery::deliver;
use crate::descriptor::system::*;
use crate::descriptor::{error_of, null_segment};
use crate::testing::*;
use crate::{Access, Event};
use OperandSize::{Bits16, Bits32, Bits64};
use proptest::prelude::*;

const RSP: usize = Gpr::Rsp as usize;
const NEXT: u64 = 0x5_0007;
const TARGET: u64 = 0x6_0000;

fn gp<T>(selector: u16) -> Result<T, Exception> {
    Err(Exception::general_protection(error_of(selector)))
}

/// Puts `values` of `size` bytes on the stack.
fn push_all(cpu: &mut CpuState, mem: &TestMemory, size: u8, values: &[u64]) {
    let base = if cpu.code64() {
        0
    } else {
        cpu.seg(Seg::Ss).base
    };
    cpu.gpr[RSP] -= u64::from(size) * values.len() as u64;
    for (index, value) in (0..).zip(values) {
        mem.put(base + cpu.gpr[RSP] + index * u64::from(size), size, *value);
    }
}

fn where_it_is(cpu: &CpuState) -> (u16, u64, u8) {
    (cpu.seg(Seg::Cs).selector, cpu.rip, cpu.cpl)
}

#[test]
fn real_mode_far_jumps_check_the_limit() {
    let (mut cpu, mut mem) = real();
    far_jump(&mut cpu, &mut mem, 0x2000, 0x1_1234, Bits16, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (0x2000, 0x1234, 0));
    assert_eq!(cpu.seg(Seg::Cs).base, 0x20000);
    assert_eq!(
        far_jump(&mut cpu, &mut mem, 0x2000, 0x1_0000, Bits32, NEXT),
        gp(0)
    );
}

#[test]
fn real_mode_calls_return_to_where_they_came_from() {
    let (mut cpu, mut mem) = real();
    let before = cpu.clone();
    far_call(&mut cpu, &mut mem, 0x2000, 0x10, Bits16, 0x205).unwrap();
    assert_eq!(stacked(&cpu, &mem, 2, 2), [0x205, 0x1000]);
    far_return(&mut cpu, &mut mem, Bits16, 6).unwrap();
    assert_eq!(where_it_is(&cpu), (0x1000, 0x205, 0));
    assert_eq!(cpu.gpr[RSP], STACK + 6);
    assert_eq!(cpu.segments, before.segments);
}

#[test]
fn a_far_jump_goes_to_protected_64_bit_and_compatibility_code() {
    let (mut cpu, mut mem) = long(0);
    define(&mem, FREE, segment(0x1000, 0xffff, 0x9a | Segment::BIG));
    far_jump(&mut cpu, &mut mem, FREE, 0xffff, Bits32, NEXT).unwrap();
    assert_eq!((cpu.code_bits(), cpu.rip), (32, 0xffff));
    assert_eq!(mem.get(GDT + u64::from(FREE) + 5, 1), 0x9b);
    far_jump(&mut cpu, &mut mem, code(0), TARGET, Bits32, NEXT).unwrap();
    assert_eq!((cpu.code_bits(), cpu.rip), (64, TARGET));
    assert_eq!(
        far_jump(&mut cpu, &mut mem, FREE, 0x1_0000, Bits32, NEXT),
        gp(0)
    );
    assert_eq!(
        far_jump(&mut cpu, &mut mem, code(0), 1 << 47, Bits64, NEXT),
        gp(0)
    );
    define(
        &mem,
        FREE,
        segment(0, 0xffff, 0x9a | Segment::BIG | Segment::LONG),
    );
    assert_eq!(
        far_jump(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT),
        gp(FREE)
    );
}

#[test]
fn a_direct_transfer_stays_at_its_level() {
    let absent = Err(Exception::segment_not_present(u32::from(FREE)));
    let cases = [
        (3, code(3), 0, Ok(3)),
        (3, code(0), 0, gp(code(0))),
        (3, data(3), 0, gp(data(3))),
        (3, 0, 0, gp(0)),
        (3, 0x7f8, 0, gp(0x7f8)),
        (0, code(3), 0, gp(code(3))),
        (0, code(0) | 3, 0, gp(code(0))),
        (3, FREE, CODE | 4, Ok(3)),
        (0, FREE, CODE | 4 | level(1), gp(FREE)),
        (0, FREE, CODE & !0x80, absent),
    ];
    for (cpl, selector, rights, expected) in cases {
        let (mut cpu, mut mem) = protected(cpl);
        define(&mem, FREE, segment(0, 0xf_ffff, rights | FLAT));
        let before = cpu.clone();
        let got = far_call(&mut cpu, &mut mem, selector, TARGET, Bits32, NEXT);
        let case = format!("{cpl} to {selector:#x} {rights:#x}");
        assert_eq!(got.map(|()| cpu.cpl), expected, "{case}");
        if expected.is_ok() {
            assert_eq!(
                cpu.seg(Seg::Cs).selector,
                selector & !3 | u16::from(cpl),
                "{case}"
            );
        } else {
            assert_eq!(cpu, before, "{case}");
        }
    }
}

#[test]
fn a_call_that_cannot_push_changes_nothing() {
    let (mut cpu, mut mem) = long(0);
    cpu.gpr[RSP] = STACK - 0xff8;
    mem.absent.insert(STACK - 0x2000);
    let before = cpu.clone();
    let got = far_call(&mut cpu, &mut mem, code(0), TARGET, Bits64, NEXT);
    assert_eq!(got, Err(Exception::page_fault(STACK - 0x1008, 2)));
    assert_eq!(cpu, before);
}

#[test]
fn a_call_gate_to_an_inner_level_copies_the_parameters() {
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, gate(code(1), TARGET as u32, CALL_GATE32, 3, 3));
    push_all(&mut cpu, &mem, 4, &[11, 22, 33]);
    let rsp = cpu.gpr[RSP];
    // The offset of the pointer is disregarded.
    far_call(&mut cpu, &mut mem, FREE | 3, 0x77, Bits32, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(1), TARGET, 1));
    assert_eq!(cpu.seg(Seg::Ss).selector, data(1));
    let expected = [
        NEXT,
        u64::from(code(3)),
        11,
        22,
        33,
        rsp,
        u64::from(data(3)),
    ];
    assert_eq!(stacked(&cpu, &mem, 4, 7), expected);
    assert_eq!(cpu.gpr[RSP], INNER_STACK[1] - 28);

    cpu.segments[Seg::Es as usize] = loaded(&mem, data(1));
    far_return(&mut cpu, &mut mem, Bits32, 12).unwrap();
    assert_eq!(where_it_is(&cpu), (code(3), NEXT, 3));
    assert_eq!(cpu.gpr[RSP], rsp + 12);
    assert_eq!(cpu.seg(Seg::Ss).selector, data(3));
    // What level 3 may not use is gone; the rest stays.
    assert_eq!(*cpu.seg(Seg::Es), null_segment(0));
    assert_eq!(cpu.seg(Seg::Ds).selector, data(3));
}

#[test]
fn a_16_bit_call_gate_pushes_words() {
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, gate(code(0), 0x1_2345, CALL_GATE16, 3, 1));
    push_all(&mut cpu, &mem, 2, &[11]);
    far_call(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT).unwrap();
    assert_eq!(cpu.rip, 0x2345);
    let expected = [
        NEXT & 0xffff,
        u64::from(code(3)),
        11,
        STACK - 2,
        u64::from(data(3)),
    ];
    assert_eq!(stacked(&cpu, &mem, 2, 5), expected);
}

#[test]
fn a_call_gate_of_long_mode_pushes_quadwords_and_nulls_ss() {
    let (mut cpu, mut mem) = long(3);
    mem.put(
        GDT + u64::from(FREE),
        8,
        gate(code(0), TARGET as u32, CALL_GATE32, 3, 0),
    );
    mem.put(GDT + u64::from(FREE) + 8, 8, 0xffff_8000);
    far_call(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(0), 0xffff_8000_0006_0000, 0));
    assert_eq!(*cpu.seg(Seg::Ss), null_segment(0));
    let expected = [NEXT, u64::from(code(3)), STACK, u64::from(data(3))];
    assert_eq!(stacked(&cpu, &mem, 8, 4), expected);
    far_return(&mut cpu, &mut mem, Bits64, 0).unwrap();
    assert_eq!(where_it_is(&cpu), (code(3), NEXT, 3));
    assert_eq!((cpu.gpr[RSP], cpu.seg(Seg::Ss).selector), (STACK, data(3)));
}

#[test]
fn a_call_gate_checks_level_presence_and_target() {
    let cases = [
        (gate(code(0), 0, CALL_GATE32, 2, 0), gp(FREE)),
        (
            gate(code(0), 0, CALL_GATE32, 3, 0) & !(0x80 << 40),
            Err(Exception::segment_not_present(u32::from(FREE))),
        ),
        (gate(0, 0, CALL_GATE32, 3, 0), gp(0)),
        (gate(data(3), 0, CALL_GATE32, 3, 0), gp(data(3))),
        (gate(0, 0, INTERRUPT_GATE32, 3, 0), gp(FREE)),
    ];
    for (descriptor, expected) in cases {
        let (mut cpu, mut mem) = protected(3);
        define(&mem, FREE, descriptor);
        let got = far_call(&mut cpu, &mut mem, FREE | 3, 0, Bits32, NEXT);
        assert_eq!(got, expected, "{descriptor:#x}");
    }
    // JMP does not change the level.
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, gate(code(0), 0, CALL_GATE32, 3, 0));
    assert_eq!(
        far_jump(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT),
        gp(code(0))
    );
    define(&mem, FREE, gate(code(3), TARGET as u32, CALL_GATE32, 3, 0));
    far_jump(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(3), TARGET, 3));
}

#[test]
fn an_inner_stack_of_the_wrong_level_is_an_invalid_tss() {
    let (mut cpu, mut mem) = protected(3);
    define(&mem, FREE, gate(code(0), 0, CALL_GATE32, 3, 0));
    mem.put(TSS + 8, 2, u64::from(data(1)));
    let before = cpu.clone();
    let got = far_call(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT);
    assert_eq!(got, Err(Exception::invalid_tss(error_of(data(1)))));
    cpu.tr.limit = 8;
    let got = far_call(&mut cpu, &mut mem, FREE, 0, Bits32, NEXT);
    assert_eq!(got, Err(Exception::invalid_tss(error_of(TSS_SELECTOR))));
    cpu.tr = before.tr;
    assert_eq!(cpu, before);
}

#[test]
fn a_return_to_an_inner_level_is_refused() {
    let (mut cpu, mut mem) = protected(3);
    push_all(&mut cpu, &mem, 4, &[TARGET, u64::from(code(0)), 0, 0]);
    let before = cpu.clone();
    assert_eq!(far_return(&mut cpu, &mut mem, Bits32, 0), gp(code(0)));
    assert_eq!(iret(&mut cpu, &mut mem, Bits32, NEXT), gp(code(0)));
    assert_eq!(cpu, before);
}

#[test]
fn iret_restores_the_flags_that_the_level_may_change() {
    let all = rflags::WRITABLE & !rflags::VM;
    let cases = [
        (0, 0, Bits32, all),
        (0, 0, Bits16, all & 0xffff),
        (
            3,
            0,
            Bits32,
            all & !(rflags::IF | rflags::IOPL | rflags::VIF | rflags::VIP),
        ),
        (
            3,
            3,
            Bits32,
            all & !(rflags::IOPL | rflags::VIF | rflags::VIP),
        ),
    ];
    for (cpl, iopl, size, restored) in cases {
        let (mut cpu, mut mem) = protected(cpl);
        cpu.rflags = rflags::FIXED | iopl << rflags::IOPL_SHIFT;
        let kept = cpu.rflags & !restored;
        let frame = [TARGET & 0xffff, u64::from(code(cpl)), all];
        push_all(&mut cpu, &mem, size.bytes(), &frame);
        iret(&mut cpu, &mut mem, size, NEXT).unwrap();
        assert_eq!(
            cpu.rflags,
            kept | restored,
            "level {cpl}, IOPL {iopl}, {size:?}"
        );
        assert_eq!(cpu.gpr[RSP], STACK);
    }
}

#[test]
fn iret_in_64_bit_mode_pops_the_stack_pointer_at_every_level() {
    let (mut cpu, mut mem) = long(0);
    let frame = [
        TARGET,
        u64::from(code(0)),
        rflags::FIXED | rflags::RF,
        0x1238,
        0,
    ];
    push_all(&mut cpu, &mem, 8, &frame);
    iret(&mut cpu, &mut mem, Bits64, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(0), TARGET, 0));
    assert_eq!((cpu.gpr[RSP], cpu.seg(Seg::Ss).usable), (0x1238, false));
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::RF);
    // A null stack segment will not do at level 3.
    let frame = [TARGET, u64::from(code(3)), rflags::FIXED, 0x1238, 3];
    push_all(&mut cpu, &mem, 8, &frame);
    assert_eq!(iret(&mut cpu, &mut mem, Bits64, NEXT), gp(0));
}

#[test]
fn a_return_outward_nulls_inner_segments_but_not_their_bases() {
    let (mut cpu, mut mem) = long(0);
    let inner = Segment {
        base: 0xffff_8000_0000_1000,
        ..*cpu.seg(Seg::Ds)
    };
    cpu.segments[Seg::Gs as usize] = inner;
    let stack = u64::from(data(3));
    let frame = [TARGET, u64::from(code(3)), rflags::FIXED, 0x1238, stack];
    push_all(&mut cpu, &mem, 8, &frame);
    iret(&mut cpu, &mut mem, Bits64, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(3), TARGET, 3));
    let gs = cpu.seg(Seg::Gs);
    assert_eq!((gs.selector, gs.usable, gs.base), (0, false, inner.base));
}

#[test]
fn iret_from_64_bit_mode_reaches_compatibility_mode() {
    let (mut cpu, mut mem) = long(0);
    define(&mem, FREE, segment(0, 0xf_ffff, CODE | level(3) | FLAT));
    let frame = [
        TARGET,
        u64::from(FREE | 3),
        rflags::FIXED,
        0x9000,
        u64::from(data(3)),
    ];
    push_all(&mut cpu, &mem, 8, &frame);
    iret(&mut cpu, &mut mem, Bits64, NEXT).unwrap();
    assert_eq!((cpu.code_bits(), cpu.cpl, cpu.gpr[RSP]), (32, 3, 0x9000));
    for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
        assert!(!cpu.seg(seg).usable);
    }
}

#[test]
fn iret_to_a_16_bit_stack_leaves_the_upper_bits_of_the_pointer() {
    let (mut cpu, mut mem) = protected(0);
    define(&mem, FREE, segment(0, 0xffff, DATA | level(3)));
    cpu.gpr[RSP] = 0x2_8000;
    let frame = [
        TARGET,
        u64::from(code(3)),
        rflags::FIXED,
        0x7_1234,
        u64::from(FREE | 3),
    ];
    push_all(&mut cpu, &mem, 4, &frame);
    iret(&mut cpu, &mut mem, Bits32, NEXT).unwrap();
    assert_eq!(cpu.gpr[RSP], 0x2_1234);
}

#[test]
fn iret_unblocks_nmis_even_if_it_faults() {
    let (mut cpu, mut mem) = long(0);
    cpu.nmi_blocked = true;
    cpu.rflags |= rflags::NT;
    assert_eq!(iret(&mut cpu, &mut mem, Bits64, NEXT), gp(0));
    assert!(!cpu.nmi_blocked);
}

#[test]
fn iret_enters_virtual_8086_mode_from_level_0() {
    let (mut cpu, mut mem) = protected(0);
    let flags = rflags::FIXED | rflags::VM | rflags::IF;
    let frame = [0x1234, 0x2000, flags, 0xfffe, 0x3000, 1, 2, 3, 4];
    push_all(&mut cpu, &mem, 4, &frame);
    iret(&mut cpu, &mut mem, Bits32, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (0x2000, 0x1234, 3));
    assert_eq!((cpu.rflags, cpu.gpr[RSP]), (flags, 0xfffe));
    let selectors = [Seg::Ss, Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs].map(|seg| cpu.seg(seg).selector);
    assert_eq!(selectors, [0x3000, 1, 2, 3, 4]);
    assert_eq!(cpu.seg(Seg::Ss).base, 0x30000);
    // At level 3, VM in the image is nothing special.
    let (mut cpu, mut mem) = protected(3);
    push_all(&mut cpu, &mem, 4, &[TARGET, u64::from(code(3)), flags]);
    iret(&mut cpu, &mut mem, Bits32, NEXT).unwrap();
    assert!(!cpu.virtual_8086());
}

#[test]
fn iret_in_virtual_8086_mode_needs_iopl_3_and_keeps_it() {
    let (mut cpu, mut mem) = virtual_8086();
    push_all(&mut cpu, &mem, 2, &[0x1234, 0x4000, rflags::IF]);
    assert_eq!(iret(&mut cpu, &mut mem, Bits16, NEXT), gp(0));
    cpu.rflags |= rflags::IOPL;
    iret(&mut cpu, &mut mem, Bits16, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (0x4000, 0x1234, 3));
    assert_eq!(
        cpu.rflags,
        rflags::FIXED | rflags::VM | rflags::IOPL | rflags::IF
    );
}

#[test]
fn iret_with_nested_task_returns_to_the_task_of_the_link() {
    let (mut cpu, mut mem) = protected(0);
    let old = 0x1_0000;
    define(&mem, FREE, segment(old as u32, 0x67, 0x8b));
    mem.put(TSS, 2, u64::from(FREE));
    mem.put(old + 0x20, 4, TARGET);
    mem.put(old + 0x24, 4, rflags::FIXED);
    for (at, selector) in [(0x48, 0), (0x4c, code(3)), (0x50, data(3)), (0x54, 0)] {
        mem.put(old + at, 2, u64::from(selector));
    }
    cpu.rflags |= rflags::NT;
    iret(&mut cpu, &mut mem, Bits32, NEXT).unwrap();
    assert_eq!(where_it_is(&cpu), (code(3), TARGET, 3));
    assert_eq!(cpu.tr.selector, FREE);
    // The task that is left is available again, and its image has lost NT.
    assert_eq!(mem.get(GDT + u64::from(TSS_SELECTOR) + 5, 1), 0x89);
    assert_eq!(mem.get(TSS + 0x24, 4), rflags::FIXED);
    assert_eq!(mem.get(TSS + 0x20, 4), NEXT);
}

proptest! {
    /// IRET undoes a delivery, whatever the registers were. The stack lies above the tables.
    #[test]
    fn iret_returns_from_an_interrupt_exactly(
        cpl in 0u8..4, wide: bool, rip in 0u64..1 << 32, rsp in 0x8000u64..0x1_0000, flags: u64,
    ) {
        let (mut cpu, mut mem) = if wide { long(cpl) } else { protected(cpl) };
        let (size, slot) = if wide { (Bits64, 16) } else { (Bits32, 8) };
        mem.put(IDT + 0x30 * slot, 8, gate(CODE0, TARGET as u32, INTERRUPT_GATE32, 0, 0));
        cpu.rip = rip;
        cpu.gpr[RSP] = rsp;
        cpu.rflags = flags & rflags::WRITABLE & !(rflags::VM | rflags::NT) | rflags::FIXED;
        let before = cpu.clone();
        deliver(&mut cpu, &mut mem, Event::Interrupt(0x30)).unwrap();
        prop_assert_eq!(cpu.cpl, 0);
        iret(&mut cpu, &mut mem, size, 0).unwrap();
        prop_assert_eq!(cpu, before);
    }

    /// Far returns and IRETs of garbage either go somewhere allowed or change nothing.
    #[test]
    fn a_return_to_anywhere_is_allowed_or_changes_nothing(
        frame in prop::array::uniform9(0u64..0x200), cpl in 0u8..4, mode in 0u8..4,
        interrupt: bool, size in prop_oneof![Just(Bits16), Just(Bits32), Just(Bits64)],
    ) {
        let (mut cpu, mut mem) = match mode {
            0 => real(),
            1 => virtual_8086(),
            2 => protected(cpl),
            _ => long(cpl),
        };
        push_all(&mut cpu, &mem, size.bytes(), &frame);
        let before = cpu.clone();
        let result = if interrupt {
            iret(&mut cpu, &mut mem, size, 0)
        } else {
            far_return(&mut cpu, &mut mem, size, 8)
        };
        if result.is_err() {
            prop_assert_eq!(&cpu, &before);
        } else {
            prop_assert!(cpu.cpl >= before.cpl);
            let fetch = crate::segmentation::linear_address(
                &cpu, Seg::Cs, cpu.rip, 1, Access::Fetch,
            );
            prop_assert!(fetch.is_ok());
        }
    }
}
