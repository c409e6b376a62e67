//! Guests that do what no kernel does: the machine runs on or ends, but neither fails nor hangs.

mod guest;

use belljar_machine::Outcome;
use guest::*;
use iced_x86::code_asm::*;

/// Ports where an arbitrary write may rightly end or reset the machine.
const POWER: [u32; 7] = [0x60, 0x64, 0x92, 0xcf9, 0x604, 0x605, 0x603];

/// Numbers without a pattern that a device could be made for: xorshift.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }
}

/// Whether an access of four bytes at `port` spares the [`POWER`] ports.
fn is_harmless(port: u32) -> bool {
    POWER.iter().all(|power| !(port..port + 4).contains(power))
}

fn assert_ends_well(outcome: &Outcome) {
    assert!(
        matches!(outcome, Outcome::PoweredOff | Outcome::Crashed(_)),
        "{outcome:?}"
    );
}

#[test]
fn garbage_in_every_port_of_every_width_harms_nobody() {
    for seed in [0x1234_5678, 0x9e37_79b9] {
        let image = image(|asm| {
            let mut numbers = Numbers(seed);
            for port in (0..0x1000)
                .chain(0xfff8..0x1_0000)
                .filter(|p| is_harmless(*p))
            {
                asm.mov(dx, port)?;
                asm.mov(eax, numbers.next())?;
                asm.out(dx, al)?;
                asm.in_(eax, dx)?;
                asm.mov(eax, numbers.next())?;
                asm.out(dx, ax)?;
                asm.in_(ax, dx)?;
                asm.mov(eax, numbers.next())?;
                asm.out(dx, eax)?;
                asm.in_(al, dx)?;
            }
            power_off(asm)
        });
        let (outcome, _) = run(image, |_| ());
        assert_ends_well(&outcome);
    }
}

#[test]
fn garbage_in_the_apics_harms_nobody() {
    let image = image(|asm| {
        let mut numbers = Numbers(0xdead_beef);
        for page in [0xfee0_0000, 0xfec0_0000] {
            for offset in (0..0x1000).step_by(8) {
                let at = page + offset + (numbers.next() & 4);
                // An arbitrary command would stop this very processor.
                if at & 0xff0 == 0x300 {
                    continue;
                }
                store(asm, at, numbers.next())?;
                asm.mov(ax, word_ptr(at + 1))?;
                asm.mov(byte_ptr(at + 3), al)?;
                asm.fild(qword_ptr(at))?;
            }
            // Through the I/O APIC's window, every register.
            for register in 0..0x100 {
                store(asm, 0xfec0_0000, register)?;
                store(asm, 0xfec0_0010, numbers.next())?;
            }
        }
        power_off(asm)
    });
    let (outcome, _) = run(image, |config| config.cpus = 2);
    assert_ends_well(&outcome);
}

#[test]
fn a_jump_to_nowhere_ends_in_a_crash() {
    for target in [0xa_0000, 0xfee0_0000, 0xc000_0000, 0xffff_fff0_u32] {
        let image = image(|asm| {
            // Where nothing is, all ones are read: an invalid instruction, and no table to report
            // it by.
            store(asm, 0x2_0000, 0)?;
            store(asm, 0x2_0004, 0)?;
            asm.lidt(fword_ptr(0x2_0000))?;
            asm.mov(eax, target)?;
            asm.jmp(eax)
        });
        let machine = Running::start(image, |_| ());
        if target == 0xfee0_0000 {
            // The local APIC's registers may be instructions of some kind.
            machine.handle.stop();
            machine.end();
        } else {
            let (outcome, _) = machine.end();
            assert!(
                matches!(outcome, Outcome::Crashed(_)),
                "{target:#x}: {outcome:?}"
            );
        }
    }
}

#[test]
fn a_guest_that_writes_over_all_its_memory_ends_or_is_stopped() {
    let image = image(|asm| {
        print(asm, "!")?;
        asm.xor(edi, edi)?;
        asm.mov(ecx, 64 << 20)?;
        asm.mov(al, 0x90)?;
        asm.cld()?;
        asm.rep().stosb()?;
        halt(asm)
    });
    let machine = Running::start(image, |_| ());
    machine.printed.wait_for(1);
    machine.handle.stop();
    let (outcome, _) = machine.end();
    assert!(
        matches!(outcome, Outcome::Stopped | Outcome::Crashed(_)),
        "{outcome:?}"
    );
}

#[test]
fn resets_in_a_row_by_several_processors_are_survived() {
    // Every processor resets as soon as it runs; the machine is stopped after a while.
    let image = image(|asm| {
        print(asm, ".")?;
        store(asm, 0xfee0_00f0, 0x1ff)?;
        store(asm, 0xfee0_0300, 0xc_4500)?;
        out8(asm, 0xcf9, 6)?;
        halt(asm)
    });
    let machine = Running::start(image, |config| config.cpus = 3);
    machine.printed.wait_for(20);
    machine.handle.stop();
    let (outcome, _) = machine.end();
    assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
}

#[test]
fn output_by_words_that_straddle_the_port_is_paced_too() {
    let image = image(|asm| {
        let mut again = asm.create_label();
        asm.mov(ecx, 100)?;
        asm.mov(dx, 0x3f7)?;
        asm.mov(eax, 0x6161)?;
        asm.set_label(&mut again)?;
        asm.out(dx, ax)?;
        asm.loop_(again)?;
        power_off(asm)
    });
    let machine = Running::start(image, |_| ());
    let printed = machine.printed.clone();
    let (outcome, text) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(text, "a".repeat(100));
    assert!(printed.paces() >= 100, "{}", printed.paces());
}
