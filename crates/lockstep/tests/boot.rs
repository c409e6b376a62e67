//! The beginning of a stock kernel's boot, under two engines side by side.

mod broken;
mod stuttering;

use belljar_engine::Engine;
use belljar_lockstep::{End, Found, Lockstep, Script, Settings, Sides};
use belljar_machine::{EngineChoice, MachineConfig, Size, choose_engine};
use broken::{Broken, Fault};
use std::sync::Arc;
use stuttering::Stuttering;

/// Instructions that a test compares: enough for the kernel to unpack itself, and to run with
/// interrupts.
const INSTRUCTIONS: u64 = 200_000_000;

fn interpreter() -> Arc<dyn Engine> {
    choose_engine(EngineChoice::Interpreter).unwrap()
}

/// Runs the default guest in the interpreter and in `engine`.
fn run(engine: Arc<dyn Engine>) -> End {
    let guest = belljar_image::default_guest(None).unwrap();
    let sides = Sides {
        script: Script::default(),
        exact_flags: false,
        config: MachineConfig {
            kernel: Some(guest.kernel),
            initrd: Some(guest.initrd),
            cmdline: Some(guest.cmdline),
            memory: Size::mib(256),
            ..MachineConfig::default()
        },
        left: interpreter(),
        right: engine,
    };
    let settings = Settings {
        most: INSTRUCTIONS,
        memory_every: 500,
        ..Settings::default()
    };
    Lockstep::new(sides, settings).run().unwrap()
}

fn runs_as_in_the_interpreter(engine: Arc<dyn Engine>) {
    let end = run(engine);
    let End::Executed(position) = end else {
        panic!("{end}");
    };
    assert!(position.instruction >= INSTRUCTIONS);
}

#[test]
fn the_interpreter_boots_a_stock_kernel_the_same_way_twice() {
    runs_as_in_the_interpreter(interpreter());
}

#[test]
fn the_translator_boots_a_stock_kernel_as_the_interpreter_does() {
    runs_as_in_the_interpreter(choose_engine(EngineChoice::Translator).unwrap());
}

#[test]
fn where_an_engine_stops_does_not_change_what_a_guest_does() {
    runs_as_in_the_interpreter(Arc::new(Stuttering(interpreter())));
}

#[test]
fn a_fault_in_the_middle_of_a_boot_is_found_at_its_instruction() {
    // Near the slice's end, where the register still holds what it must not.
    let after = 30_009_990;
    let end = run(Arc::new(Broken::new(
        interpreter(),
        Fault::Register { after },
    )));
    let End::Differ(report) = end else {
        panic!("{end}");
    };
    println!("{report}");
    assert_eq!(report.found, Found::Instruction);
    assert_eq!(report.at.instruction, after);
    assert_eq!(report.history.iter().count(), 20);
}
