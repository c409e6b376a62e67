use super::*;
use crate::bits::rflags;
use crate::testing::*;
use proptest::prelude::*;

const NEW: u64 = 0x1_0000;
const NEXT: u64 = 0x5_0007;

/// Builds a 32-bit task at `NEW`, described at `FREE`.
fn define_task(mem: &TestMemory, cpl: u8) {
    define(mem, FREE, segment(NEW as u32, 0x67, 0x89));
    mem.put(NEW + 0x1c, 4, 0x77_7000);
    mem.put(NEW + 0x20, 4, 0x7_0000);
    mem.put(NEW + 0x24, 4, rflags::FIXED | rflags::IF);
    for (index, at) in (NEW + 0x28..).step_by(4).take(8).enumerate() {
        mem.put(at, 4, 0x1_1000 * (index as u64 + 1));
    }
    let selectors = [data(cpl), code(cpl), data(cpl), data(cpl), 0, 0];
    for (at, selector) in (NEW + 0x48..).step_by(4).zip(selectors) {
        mem.put(at, 2, u64::from(selector));
    }
}

fn request(cause: Cause) -> Switch {
    Switch {
        selector: FREE,
        cause,
        next: NEXT,
        flags: rflags::FIXED | rflags::CF,
        error: None,
    }
}

fn in_new(exception: Exception) -> Result<(), Fault> {
    Err(Fault {
        exception,
        in_new_task: true,
    })
}

fn kind(mem: &TestMemory, selector: u16) -> u64 {
    mem.get(GDT + u64::from(selector) + 5, 1) & 0xf
}

#[test]
fn a_jump_saves_the_old_task_and_frees_it() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 3);
    for (value, register) in (0x100..).zip(&mut cpu.gpr) {
        *register = value;
    }
    cpu.dr7 |= 0x3ff;
    switch(&mut cpu, &mut mem, &request(Cause::Jump)).unwrap();

    let saved: Vec<u64> = (TSS + 0x20..)
        .step_by(4)
        .take(10)
        .map(|at| mem.get(at, 4))
        .collect();
    let registers: Vec<u64> = (0x100..0x108).collect();
    assert_eq!(saved[..2], [NEXT, rflags::FIXED | rflags::CF]);
    assert_eq!(saved[2..], registers);
    assert_eq!(mem.get(TSS + 0x4c, 2), u64::from(code(0)));
    assert_eq!((kind(&mem, TSS_SELECTOR), kind(&mem, FREE)), (9, 11));

    assert_eq!(
        (cpu.rip, cpu.cpl, cpu.tr.selector, cpu.tr.base),
        (0x7_0000, 3, FREE, NEW)
    );
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::IF);
    assert_eq!(cpu.gpr[Gpr::Rdi as usize], 0x8_8000);
    assert_eq!(cpu.seg(Seg::Ss).rights & 0xff, DATA | level(3));
    assert!(!cpu.seg(Seg::Gs).usable);
    assert_ne!(cpu.cr0 & cr0::TS, 0);
    assert_eq!(cpu.dr7, debug::DR7_FIXED | 0x2aa);
    // Without paging CR3 is not loaded.
    assert_eq!((cpu.cr3, mem.switches), (0, 0));
}

#[test]
fn a_call_links_the_tasks_and_leaves_both_busy() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    switch(&mut cpu, &mut mem, &request(Cause::Call)).unwrap();
    assert_eq!(mem.get(NEW, 2), u64::from(TSS_SELECTOR));
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::IF | rflags::NT);
    assert_eq!((kind(&mem, TSS_SELECTOR), kind(&mem, FREE)), (11, 11));
}

#[test]
fn under_paging_cr3_is_loaded_before_the_descriptors() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    cpu.cr0 |= cr0::PG;
    switch(&mut cpu, &mut mem, &request(Cause::Jump)).unwrap();
    assert_eq!((cpu.cr3, mem.switches), (0x77_7000, 1));
}

#[test]
fn a_busy_task_can_only_be_returned_to() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    let before = cpu.clone();
    let got = switch(&mut cpu, &mut mem, &request(Cause::Return));
    assert_eq!(got, Err(Exception::invalid_tss(u32::from(FREE)).into()));
    define(&mem, FREE, segment(NEW as u32, 0x67, 0x8b));
    let got = switch(&mut cpu, &mut mem, &request(Cause::Call));
    assert_eq!(
        got,
        Err(Exception::general_protection(u32::from(FREE)).into())
    );
    assert_eq!(cpu, before);
}

#[test]
fn a_tss_must_be_in_the_gdt_present_and_large_enough() {
    let cases = [
        (
            segment(NEW as u32, 0x66, 0x89),
            Exception::invalid_tss(u32::from(FREE)),
        ),
        (
            segment(NEW as u32, 0x67, 0x09),
            Exception::segment_not_present(u32::from(FREE)),
        ),
        (
            segment(NEW as u32, 0x67, DATA),
            Exception::general_protection(u32::from(FREE)),
        ),
        (
            segment(NEW as u32, 0x67, 0x99),
            Exception::general_protection(u32::from(FREE)),
        ),
    ];
    for (descriptor, fault) in cases {
        let (mut cpu, mut mem) = protected(0);
        define(&mem, FREE, descriptor);
        let got = switch(&mut cpu, &mut mem, &request(Cause::Jump));
        assert_eq!(got, Err(fault.into()), "{descriptor:#x}");
    }
    let (mut cpu, mut mem) = protected(0);
    let local = Switch {
        selector: FREE | 4,
        ..request(Cause::Jump)
    };
    let got = switch(&mut cpu, &mut mem, &local);
    assert_eq!(
        got,
        Err(Exception::general_protection(u32::from(FREE | 4)).into())
    );
}

#[test]
fn a_page_fault_before_the_switch_writes_nothing() {
    for page in [TSS, NEW] {
        let (mut cpu, mut mem) = protected(0);
        define_task(&mem, 0);
        mem.read_only.insert(page);
        let (registers, memory) = (cpu.clone(), mem.clone());
        let fault = switch(&mut cpu, &mut mem, &request(Cause::Call)).unwrap_err();
        assert_eq!(fault.exception.vector, Vector::PageFault);
        assert!(!fault.in_new_task);
        assert_eq!(cpu, registers);
        assert_eq!(mem.get(TSS, 8), memory.get(TSS, 8));
        assert_eq!(mem.get(TSS + 0x20, 8), memory.get(TSS + 0x20, 8));
        assert_eq!((kind(&mem, TSS_SELECTOR), kind(&mem, FREE)), (11, 9));
    }
}

#[test]
fn a_bad_selector_faults_in_the_new_task() {
    let absent = FREE + 8;
    let cases = [
        (0x4c, data(0), Exception::invalid_tss(error_of(data(0)))),
        (0x4c, 0, Exception::invalid_tss(0)),
        (
            0x4c,
            absent,
            Exception::segment_not_present(u32::from(absent)),
        ),
        (0x50, code(0), Exception::invalid_tss(error_of(code(0)))),
        (0x50, 0, Exception::invalid_tss(0)),
        (0x54, 0x7f8, Exception::invalid_tss(0x7f8)),
        (0x60, data(0), Exception::invalid_tss(error_of(data(0)))),
    ];
    for (at, selector, fault) in cases {
        let (mut cpu, mut mem) = protected(0);
        define_task(&mem, 0);
        define(&mem, absent, segment(0, 0, CODE & !0x80));
        mem.put(NEW + at, 2, u64::from(selector));
        let got = switch(&mut cpu, &mut mem, &request(Cause::Jump));
        assert_eq!(got, in_new(fault), "{at:#x}: {selector:#x}");
        assert_eq!((cpu.rip, cpu.tr.selector), (0x7_0000, FREE));
    }
}

#[test]
fn an_instruction_pointer_beyond_the_limit_faults_in_the_new_task() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    define(&mem, FREE + 8, segment(0, 0xffff, CODE | Segment::BIG));
    mem.put(NEW + 0x4c, 2, u64::from(FREE + 8));
    let got = switch(&mut cpu, &mut mem, &request(Cause::Jump));
    assert_eq!(got, in_new(Exception::general_protection(0)));
}

#[test]
fn the_t_bit_leaves_a_debug_trap_pending() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    mem.put(NEW + 0x64, 2, 1);
    switch(&mut cpu, &mut mem, &request(Cause::Jump)).unwrap();
    assert_eq!(cpu.pending_debug, debug::DR6_BT);
}

#[test]
fn a_task_may_run_in_virtual_8086_mode() {
    let (mut cpu, mut mem) = protected(0);
    define_task(&mem, 0);
    mem.put(NEW + 0x20, 4, 0x1234);
    mem.put(NEW + 0x24, 4, rflags::FIXED | rflags::VM);
    mem.put(NEW + 0x4c, 2, 0x2000);
    switch(&mut cpu, &mut mem, &request(Cause::Jump)).unwrap();
    assert!(cpu.virtual_8086());
    assert_eq!(
        (cpu.cpl, cpu.seg(Seg::Cs).base, cpu.rip),
        (3, 0x20000, 0x1234)
    );
}

#[test]
fn a_16_bit_tss_holds_words_and_neither_cr3_nor_fs() {
    let (mut cpu, mut mem) = protected(0);
    cpu.cr0 |= cr0::PG;
    define(&mem, FREE, segment(NEW as u32, 0x2b, 0x81));
    mem.put(NEW + 0x0e, 2, 0x1234);
    mem.put(NEW + 0x10, 2, rflags::FIXED);
    mem.put(NEW + 0x1a, 2, 0x9000);
    for (at, selector) in [(0x22, 0), (0x24, code(0)), (0x26, data(0)), (0x28, data(0))] {
        mem.put(NEW + at, 2, u64::from(selector));
    }
    let event = Switch {
        error: Some(0x44),
        ..request(Cause::Event)
    };
    switch(&mut cpu, &mut mem, &event).unwrap();
    assert_eq!((cpu.rip, cpu.gpr[Gpr::Rsp as usize]), (0x1234, 0x9000 - 2));
    assert_eq!(mem.get(0x9000 - 2, 2), 0x44);
    assert!(!cpu.seg(Seg::Fs).usable);
    assert_eq!((mem.switches, kind(&mem, FREE)), (0, 3));

    // And back: the 32-bit task is found through the link.
    let back = Switch {
        selector: mem.get(NEW, 2) as u16,
        next: 0x4321,
        ..request(Cause::Return)
    };
    cpu.gpr[0] = 0xaaaa_bbbb;
    mem.put(TSS + 0x1c, 4, 0);
    switch(&mut cpu, &mut mem, &back).unwrap();
    assert_eq!(cpu.rip, NEXT);
    assert_eq!(
        (mem.get(NEW + 0x0e, 2), mem.get(NEW + 0x12, 2)),
        (0x4321, 0xbbbb)
    );
    assert_eq!((kind(&mem, FREE), kind(&mem, TSS_SELECTOR)), (1, 11));
}

proptest! {
    /// A call to a task and its return leave everything as it was but TS.
    #[test]
    fn a_return_brings_back_the_calling_task(
        gpr in prop::array::uniform8(any::<u32>()), flags: u32, cpl in 0u8..4,
    ) {
        let (mut cpu, mut mem) = protected(0);
        define_task(&mem, cpl);
        for (register, value) in cpu.gpr.iter_mut().zip(gpr) {
            *register = u64::from(value);
        }
        let flags = u64::from(flags) & rflags::WRITABLE & !rflags::VM | rflags::FIXED;
        (cpu.rip, cpu.rflags, cpu.cr0) = (NEXT, flags, cpu.cr0 | cr0::TS);
        let before = cpu.clone();
        switch(&mut cpu, &mut mem, &Switch { flags, ..request(Cause::Call) }).unwrap();
        prop_assert_eq!(cpu.cpl, cpl);
        let back = Switch {
            selector: mem.get(NEW, 2) as u16,
            flags: cpu.rflags,
            ..request(Cause::Return)
        };
        switch(&mut cpu, &mut mem, &back).unwrap();
        prop_assert_eq!(cpu, before);
    }
}
