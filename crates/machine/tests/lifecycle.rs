//! How machines run, pause, reset and end.

mod guest;

use belljar_machine::Outcome;
use guest::*;
use iced_x86::code_asm::*;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

#[test]
fn a_guest_prints_and_powers_off() {
    let image = image(|asm| {
        print(asm, "hello, world\n")?;
        power_off(asm)
    });
    let (outcome, printed) = run(image, |_| ());
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "hello, world\n");
}

#[test]
fn the_debug_exit_port_ends_the_machine_with_the_guests_status() {
    let exits = || {
        image(|asm| {
            out8(asm, 0xf4, 0x10)?;
            power_off(asm)
        })
    };
    let (outcome, _) = run(exits(), |config| config.debug_exit = true);
    assert!(matches!(outcome, Outcome::DebugExit(0x21)), "{outcome:?}");
    let (outcome, _) = run(exits(), |_| ());
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
}

/// A guest whose first fault finds no gate.
fn faulting() -> NamedTempFile {
    image(|asm| {
        store(asm, 0x2_0000, 0)?;
        store(asm, 0x2_0004, 0)?;
        asm.lidt(fword_ptr(0x2_0000))?;
        asm.mov(ebx, 0x600d_f00d)?;
        asm.ud2()
    })
}

#[test]
fn a_triple_fault_is_a_crash_with_the_registers_of_its_cause() {
    for no_reboot in [false, true] {
        let (outcome, _) = run(faulting(), |config| config.no_reboot = no_reboot);
        let Outcome::Crashed(crash) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(crash.state.gpr[3], 0x600d_f00d);
        assert!(crash.to_string().contains("000000600df00d"));
    }
}

#[test]
fn a_guest_that_spins_with_interrupts_off_can_be_stopped() {
    let image = image(|asm| {
        asm.cli()?;
        print(asm, "!")?;
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        asm.jmp(again)
    });
    let machine = Running::start(image, |config| config.cpus = 2);
    machine.printed.wait_for(1);
    let asked = Instant::now();
    machine.handle.stop();
    let (outcome, _) = machine.end();
    assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
    assert!(asked.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_guest_that_halts_with_interrupts_off_can_be_stopped() {
    let machine = Running::start(
        image(|asm| {
            asm.cli()?;
            print(asm, "!")?;
            halt(asm)
        }),
        |_| (),
    );
    machine.printed.wait_for(1);
    machine.handle.stop();
    assert!(matches!(machine.end().0, Outcome::Stopped));
}

#[test]
fn a_machine_that_was_never_resumed_ends_when_stopped() {
    let machine = Running::start(image(halt), |_| ());
    machine.handle.pause();
    machine.handle.stop();
    assert!(matches!(machine.end().0, Outcome::Stopped));
}

#[test]
fn a_paused_machine_stands_still_until_it_is_resumed() {
    let chatty = image(|asm| {
        let mut again = asm.create_label();
        asm.set_label(&mut again)?;
        print(asm, ".")?;
        asm.jmp(again)
    });
    let machine = Running::start(chatty, |_| ());
    for _ in 0..20 {
        let before = machine.printed.len();
        machine.printed.wait_for(before + 1);
        machine.handle.pause();
        let paused = machine.printed.len();
        std::thread::yield_now();
        assert_eq!(machine.printed.len(), paused);
        machine.handle.resume();
    }
    machine.handle.stop();
    assert!(matches!(machine.end().0, Outcome::Stopped));
}

/// Prints 1, resets by `reset`, and prints 2 and powers off if it then runs again. RAM that nothing
/// is loaded over keeps the mark that the guest leaves.
fn resetting(reset: impl FnOnce(&mut CodeAssembler) -> Assembled) -> NamedTempFile {
    const MARK: u32 = 0x20_0000;
    image(|asm| {
        let mut again = asm.create_label();
        asm.cmp(dword_ptr(MARK), 0x4d41_524b)?;
        asm.je(again)?;
        store(asm, MARK, 0x4d41_524b)?;
        print(asm, "1")?;
        reset(asm)?;
        halt(asm)?;
        asm.set_label(&mut again)?;
        print(asm, "2")?;
        power_off(asm)
    })
}

fn reset_control(asm: &mut CodeAssembler) -> Assembled {
    out8(asm, 0xcf9, 6)
}

fn keyboard_controller(asm: &mut CodeAssembler) -> Assembled {
    out8(asm, 0x64, 0xfe)
}

fn port_92(asm: &mut CodeAssembler) -> Assembled {
    out8(asm, 0x92, 1)
}

/// INIT to the bootstrap processor, whose APIC ID is 0, from itself.
fn init(asm: &mut CodeAssembler) -> Assembled {
    store(asm, 0xfee0_0310, 0)?;
    store(asm, 0xfee0_0300, 0x4500)
}

/// All ways in which a guest resets the machine.
const RESETS: [fn(&mut CodeAssembler) -> Assembled; 4] =
    [reset_control, keyboard_controller, port_92, init];

#[test]
fn a_reset_starts_the_guest_anew() {
    for reset in RESETS {
        let (outcome, printed) = run(resetting(reset), |config| config.cpus = 2);
        assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
        assert_eq!(printed, "12");
    }
}

#[test]
fn with_no_reboot_a_reset_ends_the_machine() {
    for reset in RESETS {
        let (outcome, printed) = run(resetting(reset), |config| config.no_reboot = true);
        assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
        assert_eq!(printed, "1");
    }
}

#[test]
fn the_reset_button_starts_the_guest_anew() {
    let machine = Running::start(resetting(|_| Ok(())), |_| ());
    machine.printed.wait_for(1);
    machine.handle.reset();
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "12");
}

#[test]
fn a_reset_boots_the_same_guest_when_its_file_is_gone() {
    let image = resetting(|_| Ok(()));
    let path = image.path().to_owned();
    let machine = Running::start(image, |_| ());
    machine.printed.wait_for(1);
    std::fs::remove_file(path).unwrap();
    machine.handle.reset();
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "12");
}

#[test]
fn what_is_sent_to_the_console_reaches_the_guest_in_order() {
    // Echoes until a full stop; reads when the line status says that there is something.
    let echo = image(|asm| {
        let (mut again, mut done) = (asm.create_label(), asm.create_label());
        asm.set_label(&mut again)?;
        asm.mov(dx, 0x3fd)?;
        asm.in_(al, dx)?;
        asm.test(al, 1)?;
        asm.jz(again)?;
        asm.mov(dx, 0x3f8)?;
        asm.in_(al, dx)?;
        asm.out(dx, al)?;
        asm.cmp(al, u32::from(b'.'))?;
        asm.je(done)?;
        asm.jmp(again)?;
        asm.set_label(&mut done)?;
        power_off(asm)
    });
    let text = "the quick brown fox jumps over the lazy dog ".repeat(20) + ".";
    let machine = Running::start(echo, |_| ());
    assert!(machine.input.send(text.as_bytes()));
    let input = machine.input.clone();
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, text);
    assert!(!input.send(b"too late"));
}
