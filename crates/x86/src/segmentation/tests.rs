use super::*;
use crate::Gpr;
use crate::bits::cr0;
use crate::descriptor::Descriptor;
use crate::testing::*;
use proptest::prelude::*;

const GP: Exception = Exception::general_protection(0);

fn gp<T>(selector: u16) -> Result<T, Exception> {
    Err(Exception::general_protection(error_of(selector)))
}

#[test]
fn limits_hold_to_the_last_byte() {
    let (mut cpu, _) = protected(0);
    let ds = &mut cpu.segments[Seg::Ds as usize];
    (ds.base, ds.limit) = (0x1000, 0xff);
    let at = |offset, size| linear_address(&cpu, Seg::Ds, offset, size, Access::Read);
    assert_eq!(at(0xfc, 4), Ok(0x10fc));
    assert_eq!(at(0xfd, 4), Err(GP));
    assert_eq!(at(0xffff_ffff, 4), Err(GP));
}

#[test]
fn the_stack_segment_raises_stack_faults() {
    let (mut cpu, _) = protected(0);
    cpu.segments[Seg::Ss as usize].limit = 0xf;
    let got = linear_address(&cpu, Seg::Ss, 0x10, 1, Access::Read);
    assert_eq!(got, Err(Exception::stack_fault(0)));
    let (cpu, _) = long(0);
    let got = linear_address(&cpu, Seg::Ss, 1 << 47, 1, Access::Read);
    assert_eq!(got, Err(Exception::stack_fault(0)));
}

#[test]
fn expand_down_segments_begin_behind_the_limit() {
    let (mut cpu, _) = protected(0);
    let ds = &mut cpu.segments[Seg::Ds as usize];
    ds.limit = 0xfff;
    ds.rights = DATA | Segment::EXPAND_DOWN;
    let at =
        |cpu: &CpuState, offset, size| linear_address(cpu, Seg::Ds, offset, size, Access::Write);
    assert_eq!(at(&cpu, 0xfff, 1), Err(GP));
    assert_eq!(at(&cpu, 0x1000, 1), Ok(0x1000));
    assert_eq!(at(&cpu, 0xfffe, 2), Ok(0xfffe));
    assert_eq!(at(&cpu, 0xffff, 2), Err(GP));
    cpu.segments[Seg::Ds as usize].rights |= Segment::BIG;
    assert_eq!(at(&cpu, 0x1_0000, 2), Ok(0x1_0000));
}

#[test]
fn types_forbid_accesses_in_protected_mode_only() {
    let (mut cpu, _) = protected(0);
    let at = |cpu: &CpuState, access| linear_address(cpu, Seg::Cs, 0, 1, access);
    assert_eq!(at(&cpu, Access::Write), Err(GP));
    assert_eq!(at(&cpu, Access::Read), Ok(0));
    cpu.segments[Seg::Cs as usize].rights &= !Segment::WRITABLE;
    assert_eq!(at(&cpu, Access::Read), Err(GP));
    assert_eq!(at(&cpu, Access::Fetch), Ok(0));
    cpu.cr0 &= !cr0::PE;
    assert_eq!(at(&cpu, Access::Write), Ok(0));
}

#[test]
fn in_64_bit_mode_only_fs_and_gs_have_a_base() {
    let (mut cpu, _) = long(3);
    for segment in &mut cpu.segments {
        (segment.base, segment.limit) = (0x10_0000, 0);
    }
    let at = |seg, offset, size| linear_address(&cpu, seg, offset, size, Access::Write);
    assert_eq!(at(Seg::Ds, 0x1234, 8), Ok(0x1234));
    assert_eq!(at(Seg::Fs, 0x1234, 8), Ok(0x10_1234));
    assert_eq!(at(Seg::Gs, 0u64.wrapping_sub(8), 8), Ok(0xf_fff8));
    assert_eq!(at(Seg::Ds, 0x7fff_ffff_fff9, 8), Err(GP));
    assert_eq!(at(Seg::Ds, 0x7fff_ffff_fff8, 8), Ok(0x7fff_ffff_fff8));
}

#[test]
fn a_null_data_selector_loads_and_then_faults_on_use() {
    let (mut cpu, mut mem) = protected(3);
    load_segment(&mut cpu, &mut mem, Seg::Ds, 3).unwrap();
    assert_eq!(cpu.seg(Seg::Ds).selector, 3);
    assert_eq!(linear_address(&cpu, Seg::Ds, 0, 1, Access::Read), Err(GP));
}

#[test]
fn a_null_stack_selector_loads_in_64_bit_mode_at_its_own_level_below_3() {
    let (mut cpu, mut mem) = long(0);
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Ss, 0), Ok(()));
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Ss, 1), Err(GP));
    let (mut cpu, mut mem) = long(3);
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Ss, 3), Err(GP));
    let (mut cpu, mut mem) = protected(0);
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Ss, 0), Err(GP));
}

#[test]
fn a_load_sets_the_accessed_bit_once() {
    let (mut cpu, mut mem) = protected(0);
    define(
        &mem,
        FREE,
        segment(0x12_3456, 0x7, 0x92 | Segment::GRANULARITY),
    );
    load_segment(&mut cpu, &mut mem, Seg::Es, FREE).unwrap();
    let es = *cpu.seg(Seg::Es);
    assert_eq!(
        (es.base, es.limit, es.rights & 0xff),
        (0x12_3456, 0x7fff, 0x93)
    );
    assert_eq!(mem.get(GDT + u64::from(FREE) + 5, 1), 0x93);
    // Already accessed: a table that cannot be written will do.
    mem.read_only.insert(GDT);
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Es, FREE), Ok(()));
}

#[test]
fn a_bad_data_selector_is_refused_with_its_error_code() {
    let cases = [
        (segment(0, 1, 0x98), gp(FREE)),
        (segment(0, 1, 0x82), gp(FREE)),
        (segment(0, 1, DATA), gp(FREE)),
        (
            segment(0, 1, 0x73),
            Err(Exception::segment_not_present(u32::from(FREE))),
        ),
        (segment(0, 1, 0x9e), Ok(())),
        (segment(0, 1, 0xf3), Ok(())),
    ];
    for (descriptor, expected) in cases {
        let (mut cpu, mut mem) = protected(3);
        define(&mem, FREE, descriptor);
        let before = cpu.clone();
        let got = load_segment(&mut cpu, &mut mem, Seg::Gs, FREE | 3);
        assert_eq!(got, expected, "{descriptor:#x}");
        assert!(got.is_ok() || cpu == before);
    }
    let (mut cpu, mut mem) = protected(3);
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Gs, 0x103), gp(0x100));
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Gs, 0xf), gp(0xc));
}

#[test]
fn the_stack_segment_must_be_of_the_present_level() {
    let (mut cpu, mut mem) = protected(1);
    let mut load = |selector| load_segment(&mut cpu, &mut mem, Seg::Ss, selector);
    assert_eq!(load(data(1)), Ok(()));
    assert_eq!(load(data(0)), gp(data(0)));
    assert_eq!(load(data(1) & !3), gp(data(1)));
    assert_eq!(load(code(1)), gp(code(1)));
    define(&mem, FREE, segment(0, 1, 0x33));
    let got = load_segment(&mut cpu, &mut mem, Seg::Ss, FREE | 1);
    assert_eq!(got, Err(Exception::stack_fault(u32::from(FREE))));
    assert_eq!(
        load_segment(&mut cpu, &mut mem, Seg::Cs, code(1)),
        Err(Exception::invalid_opcode())
    );
}

#[test]
fn real_mode_loads_keep_limit_and_rights() {
    let (mut cpu, mut mem) = real();
    cpu.segments[Seg::Fs as usize].limit = u32::MAX;
    load_segment(&mut cpu, &mut mem, Seg::Fs, 0xb800).unwrap();
    assert_eq!(
        linear_address(&cpu, Seg::Fs, 0x10_0000, 4, Access::Write),
        Ok(0x1b_8000)
    );
    let (mut cpu, mut mem) = virtual_8086();
    cpu.segments[Seg::Fs as usize].limit = u32::MAX;
    load_segment(&mut cpu, &mut mem, Seg::Fs, 0xb800).unwrap();
    assert_eq!(
        linear_address(&cpu, Seg::Fs, 0x1_0000, 1, Access::Write),
        Err(GP)
    );
}

#[test]
fn a_selector_of_the_ldt_needs_an_ldt() {
    let (mut cpu, mut mem) = protected(0);
    mem.put(LDT + 8, 8, segment(0x777, 0xf, DATA));
    assert_eq!(load_segment(&mut cpu, &mut mem, Seg::Es, 0xc), gp(0xc));
    lldt(&mut cpu, &mut mem, LDT_SELECTOR).unwrap();
    load_segment(&mut cpu, &mut mem, Seg::Es, 0xc).unwrap();
    assert_eq!(cpu.seg(Seg::Es).base, 0x777);
    assert_eq!(lldt(&mut cpu, &mut mem, code(0)), gp(code(0)));
    lldt(&mut cpu, &mut mem, 0).unwrap();
    assert!(!cpu.ldtr.usable);
}

#[test]
fn ltr_marks_the_tss_busy_and_refuses_a_busy_one() {
    let (mut cpu, mut mem) = long(0);
    mem.put(GDT + u64::from(FREE), 8, segment(0x1234_5000, 0x67, 0x89));
    mem.put(GDT + u64::from(FREE) + 8, 8, 0xffff_8000);
    ltr(&mut cpu, &mut mem, FREE).unwrap();
    assert_eq!(cpu.tr.base, 0xffff_8000_1234_5000);
    assert_eq!(cpu.tr.rights & 0xf, u16::from(system::TSS32_BUSY));
    assert_eq!(mem.get(GDT + u64::from(FREE) + 5, 1), 0x8b);
    assert_eq!(ltr(&mut cpu, &mut mem, FREE), gp(FREE));
    assert_eq!(ltr(&mut cpu, &mut mem, 0), Err(GP));
    cpu.cpl = 3;
    assert_eq!(ltr(&mut cpu, &mut mem, FREE), Err(GP));
}

#[test]
fn a_system_descriptor_of_long_mode_is_16_bytes_and_zero_where_its_type_would_be() {
    let (mut cpu, mut mem) = long(0);
    mem.put(GDT + 0xf8, 8, segment(0, 0x67, 0x89));
    assert_eq!(ltr(&mut cpu, &mut mem, 0xf8), gp(0xf8));
    mem.put(GDT + u64::from(FREE), 8, segment(0, 0x67, 0x89));
    mem.put(GDT + u64::from(FREE) + 8, 8, segment(0, 0, DATA));
    assert_eq!(ltr(&mut cpu, &mut mem, FREE), gp(FREE));
    // A base that is not canonical.
    mem.put(GDT + u64::from(FREE) + 8, 8, 0x8000);
    assert_eq!(ltr(&mut cpu, &mut mem, FREE), gp(FREE));
}

#[test]
fn lar_and_lsl_tell_what_the_level_may_know() {
    let (cpu, mut mem) = protected(3);
    assert_eq!(lar(&cpu, &mut mem, data(3)), Ok(Some(0x00cf_f300)));
    assert_eq!(lsl(&cpu, &mut mem, data(3)), Ok(Some(u32::MAX)));
    assert_eq!(lar(&cpu, &mut mem, data(0)), Ok(None));
    assert_eq!(lar(&cpu, &mut mem, 3), Ok(None));
    assert_eq!(lsl(&cpu, &mut mem, 0xfff0), Ok(None));
    define(&mem, FREE, gate(code(0), 0, system::CALL_GATE32, 3, 0));
    assert!(lar(&cpu, &mut mem, FREE).unwrap().is_some());
    assert_eq!(lsl(&cpu, &mut mem, FREE), Ok(None));
    define(&mem, FREE, gate(code(0), 0, system::INTERRUPT_GATE32, 3, 0));
    assert_eq!(lar(&cpu, &mut mem, FREE), Ok(None));
    let (cpu, mut mem) = virtual_8086();
    assert_eq!(
        lar(&cpu, &mut mem, data(3)),
        Err(Exception::invalid_opcode())
    );
}

#[test]
fn verr_and_verw_look_at_type_and_level() {
    let (cpu, mut mem) = protected(3);
    let cases = [
        (segment(0, 0, 0xf3), true, true),
        (segment(0, 0, 0xf1), true, false),
        (segment(0, 0, 0xfb), true, false),
        (segment(0, 0, 0xf9), false, false),
        (segment(0, 0, 0x9f), true, false),
        (segment(0, 0, 0x93), false, false),
        (segment(0, 0, 0xe9), false, false),
    ];
    for (descriptor, readable, writable) in cases {
        define(&mem, FREE, descriptor);
        assert_eq!(verr(&cpu, &mut mem, FREE), Ok(readable), "{descriptor:#x}");
        assert_eq!(verw(&cpu, &mut mem, FREE), Ok(writable), "{descriptor:#x}");
    }
    mem.absent.insert(GDT);
    assert_eq!(
        verr(&cpu, &mut mem, FREE),
        Err(Exception::page_fault(GDT + 0x80, 0))
    );
}

#[test]
fn arpl_raises_the_level_and_never_lowers_it() {
    let (cpu, _) = protected(0);
    assert_eq!(arpl(&cpu, 0x10, 0x23), Ok(Some(0x13)));
    assert_eq!(arpl(&cpu, 0x13, 0x21), Ok(None));
    assert_eq!(
        arpl(&real().0, 0x10, 0x23),
        Err(Exception::invalid_opcode())
    );
}

#[test]
fn ports_are_granted_by_iopl_or_by_every_bit_of_the_bitmap() {
    let (mut cpu, mut mem) = protected(3);
    mem.put(TSS + 0x68 + (0x3f8 >> 3), 2, 0xff00);
    assert_eq!(check_io(&cpu, &mut mem, 0x3f8, 4), Ok(()));
    assert_eq!(check_io(&cpu, &mut mem, 0x3ff, 1), Ok(()));
    assert_eq!(check_io(&cpu, &mut mem, 0x3ff, 2), Err(GP));
    // The byte behind the last one must lie within the limit, too.
    assert_eq!(check_io(&cpu, &mut mem, 0xfff8, 1), Err(GP));
    cpu.rflags |= rflags::IOPL;
    assert_eq!(check_io(&cpu, &mut mem, 0x3ff, 2), Ok(()));
    // Virtual-8086 mode knows only the bitmap.
    let (mut cpu, mut mem) = virtual_8086();
    cpu.rflags |= rflags::IOPL;
    mem.put(TSS + 0x68, 1, 2);
    assert_eq!(check_io(&cpu, &mut mem, 0, 1), Ok(()));
    assert_eq!(check_io(&cpu, &mut mem, 1, 1), Err(GP));
    cpu.tr.rights = 0x83;
    assert_eq!(check_io(&cpu, &mut mem, 0, 1), Err(GP));
}

#[test]
fn a_multiple_push_that_faults_leaves_the_stack_pointer() {
    let (mut cpu, mut mem) = protected(0);
    mem.absent.insert(STACK - 0x2000);
    cpu.gpr[Gpr::Rsp as usize] = STACK - 0x1000 + 4;
    let mut stack = crate::stack::Stack::current(&cpu);
    assert!(stack.push(&cpu, &mut mem, 1, 4).is_ok());
    let fault = stack.push(&cpu, &mut mem, 2, 4).unwrap_err();
    assert_eq!(fault.payload, STACK - 0x1004);
    assert_eq!(cpu.gpr[Gpr::Rsp as usize], STACK - 0xffc);
}

proptest! {
    #[test]
    fn an_address_is_given_exactly_if_all_bytes_lie_within(
        limit: u32, offset: u32, size in 1u32..65, down: bool, big: bool, near: i8, base: u32,
    ) {
        let (mut cpu, _) = protected(0);
        // Half of the offsets lie close to the limit.
        let offset = if near < 0 {
            offset
        } else {
            limit.wrapping_add((near as u32).wrapping_sub(64))
        };
        let mut rights = DATA;
        rights |= if down { Segment::EXPAND_DOWN } else { 0 };
        rights |= if big { Segment::BIG } else { 0 };
        cpu.segments[Seg::Ds as usize] = Segment {
            selector: 8, rights, limit, base: u64::from(base), usable: true,
        };
        let valid = |byte: u64| if down {
            byte > u64::from(limit) && byte <= if big { 0xffff_ffff } else { 0xffff }
        } else {
            byte <= u64::from(limit)
        };
        let all = (0..u64::from(size)).all(|index| valid(u64::from(offset) + index));
        let got = linear_address(&cpu, Seg::Ds, u64::from(offset), size, Access::Write);
        prop_assert_eq!(got.ok(), all.then_some(u64::from(base.wrapping_add(offset))));
    }

    #[test]
    fn descriptors_give_back_what_they_were_built_of(
        base: u32, limit in 0u32..0x10_0000, rights: u16,
    ) {
        let rights = rights & 0xf0ff & !Segment::GRANULARITY;
        let descriptor = Descriptor(segment(base, limit, rights));
        let got = (descriptor.base(), descriptor.limit(), descriptor.rights());
        prop_assert_eq!(got, (base, limit, rights));
    }
}
