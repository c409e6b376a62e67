//! Faults of an engine that are made on purpose, and whether they are found.

mod broken;

use belljar_interpreter::Interpreter;
use belljar_lockstep::{End, Found, Lockstep, Report, Script, Settings, Sides};
use belljar_machine::{MachineConfig, Size};
use broken::{Broken, Fault};
use iced_x86::code_asm::*;
use std::io::Write;
use std::sync::Arc;
use tempfile::NamedTempFile;

/// Where the guest is loaded, and its entry point after the multiboot header.
const LOADED_AT: u32 = 0x10_0000;
const ENTRY: u32 = LOADED_AT + 0x40;
/// Instructions in an iteration of the guest's loop.
const ITERATION: u64 = 5;
/// Where in the guest's memory nothing but the fault writes.
const UNTOUCHED: u64 = 0x80_0008;

/// A multiboot image that computes and stores for ever.
fn guest() -> NamedTempFile {
    let mut asm = CodeAssembler::new(32).unwrap();
    let mut again = asm.create_label();
    asm.set_label(&mut again).unwrap();
    asm.imul_3(ecx, ecx, 0x1234_5679).unwrap();
    asm.inc(ecx).unwrap();
    asm.mov(dword_ptr(0x20_0000), ecx).unwrap();
    asm.xor(edx, ecx).unwrap();
    asm.jmp(again).unwrap();
    let code = asm.assemble(u64::from(ENTRY)).unwrap();
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let header = [magic, flags, checksum, LOADED_AT, LOADED_AT, 0, 0, ENTRY];
    let mut bytes: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.resize((ENTRY - LOADED_AT) as usize, 0);
    bytes.extend(code);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    file
}

/// Runs the guest in an interpreter and in one with `fault`.
fn run(fault: Option<Fault>, settings: Settings) -> End {
    run_with(fault, settings, true)
}

fn run_with(fault: Option<Fault>, settings: Settings, exact_flags: bool) -> End {
    let image = guest();
    let interpreter = || Arc::new(Interpreter::new());
    let sides = Sides {
        script: Script::default(),
        exact_flags,
        config: MachineConfig {
            kernel: Some(image.path().to_owned()),
            memory: Size::mib(16),
            ..MachineConfig::default()
        },
        left: interpreter(),
        right: match fault {
            Some(fault) => Arc::new(Broken::new(interpreter(), fault)),
            None => interpreter(),
        },
    };
    Lockstep::new(sides, settings).run().unwrap()
}

fn settings() -> Settings {
    Settings {
        slice: 1000,
        every: 1000,
        memory_every: 16,
        most: 100_000,
        ..Settings::default()
    }
}

fn report(fault: Fault) -> Report {
    match run(Some(fault), settings()) {
        End::Differ(report) => *report,
        end => panic!("{end}"),
    }
}

fn names(report: &Report) -> Vec<&str> {
    report.fields.iter().map(|f| f.name.as_str()).collect()
}

#[test]
fn the_same_engine_twice_does_not_differ() {
    let end = run(None, settings());
    let End::Executed(position) = end else {
        panic!("{end}");
    };
    assert_eq!((position.slice, position.instruction), (100, 100_000));
}

#[test]
fn a_wrong_register_is_found_at_its_instruction() {
    let report = report(Fault::Register { after: 45_678 });
    assert_eq!(report.found, Found::Instruction, "{report}");
    assert_eq!(report.at.instruction, 45_678, "{report}");
    assert_eq!(names(&report), ["rbx"], "{report}");
    let last = report.history.iter().next_back().unwrap();
    assert_eq!(last.number, 45_677);
    // The third of an iteration: INC comes after an IMUL of six bytes.
    assert_eq!(45_677 % ITERATION, 2);
    assert_eq!(last.rip, u64::from(ENTRY) + 7, "{report}");
    assert!(report.to_string().contains("mov [200000h],ecx"), "{report}");
}

#[test]
fn a_wrong_store_is_found_at_its_instruction_though_no_register_tells() {
    let fault = Fault::Memory {
        after: 45_678,
        at: UNTOUCHED,
    };
    let report = report(fault);
    assert_eq!(report.found, Found::Instruction, "{report}");
    assert_eq!(report.at.instruction, 45_678, "{report}");
    assert_eq!(names(&report), ["memory at 0x800008"], "{report}");
}

#[test]
fn a_fault_that_hides_from_single_steps_is_found_by_halving() {
    let report = report(Fault::Unstepped { after: 45_678 });
    let Found::Hidden(hidden) = report.found else {
        panic!("{report}");
    };
    assert_eq!(hidden.together, 678);
    assert_eq!(report.at.instruction, 45_678, "{report}");
    let last = report.history.iter().next_back().unwrap();
    assert_eq!(last.number, 45_677);
}

#[test]
fn status_flags_may_differ_for_a_while_unless_they_must_be_exact() {
    // The last instruction of a slice, an XOR: the next one sets all flags anew.
    let fault = Some(Fault::Flags { after: 45_000 });
    let end = run_with(fault, settings(), false);
    let End::Executed(position) = end else {
        panic!("{end}");
    };
    assert_eq!(position.flag_slices, 1);
    let End::Differ(report) = run_with(fault, settings(), true) else {
        panic!("no difference");
    };
    assert_eq!(names(&report), ["rflags"]);
}

#[test]
fn comparisons_can_come_more_often_from_an_instruction_on() {
    let settings = Settings {
        from: 44_000,
        every: 1,
        ..settings()
    };
    // Stopped after each instruction, the engine does not show this one.
    let end = run(Some(Fault::Unstepped { after: 45_678 }), settings.clone());
    assert!(matches!(end, End::Executed(_)), "{end}");
    let end = run(Some(Fault::Unstepped { after: 43_678 }), settings);
    assert!(matches!(end, End::Differ(_)), "{end}");
}
