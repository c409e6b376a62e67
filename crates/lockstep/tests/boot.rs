//! The beginning of a stock kernel's boot, under two engines side by side.

use belljar_lockstep::{End, Lockstep, Settings, Sides};
use belljar_machine::{EngineChoice, MachineConfig, Size, choose_engine};

/// Instructions that a test compares.
const INSTRUCTIONS: u64 = 20_000_000;

/// Compares `engine` with the interpreter on the default guest.
fn compare(engine: EngineChoice) {
    let guest = belljar_image::default_guest(None).unwrap();
    let sides = Sides {
        config: MachineConfig {
            kernel: Some(guest.kernel),
            initrd: Some(guest.initrd),
            cmdline: Some(guest.cmdline),
            memory: Size::mib(256),
            ..MachineConfig::default()
        },
        left: choose_engine(EngineChoice::Interpreter).unwrap(),
        right: choose_engine(engine).unwrap(),
    };
    let settings = Settings {
        most: INSTRUCTIONS,
        memory_every: 500,
        ..Settings::default()
    };
    let end = Lockstep::new(sides, settings).run().unwrap();
    let End::Executed(position) = end else {
        panic!("{end}");
    };
    assert!(position.instruction >= INSTRUCTIONS);
}

#[test]
fn the_interpreter_boots_a_stock_kernel_the_same_way_twice() {
    compare(EngineChoice::Interpreter);
}
