//! What vCPUs have counted, asked of a machine at any moment of its life.

mod guest;

use belljar_machine::{Activity, Machine, MachineConfig, MachineHandle, Outcome, Size, Statistics};
use guest::*;
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::time::Duration;

/// Far longer than any answer here takes.
const LONG: Duration = Duration::from_mins(1);
/// Where guests count.
const COUNT: u32 = 0x9000;

fn counter(statistics: &Statistics, vcpu: usize, name: &str) -> u64 {
    let counters = &statistics.vcpus[vcpu].counters;
    let found = counters.iter().find(|(found, _)| *found == name);
    found
        .unwrap_or_else(|| panic!("no {name} in {counters:?}"))
        .1
}

fn instructions(statistics: &Statistics) -> u64 {
    counter(statistics, 0, "instructions")
}

/// Asks, and checks that every vCPU has answered.
fn ask(machine: &MachineHandle) -> Statistics {
    let statistics = machine.statistics(LONG);
    let all = statistics.vcpus.iter().all(|vcpu| vcpu.current);
    assert!(all, "{statistics:?}");
    statistics
}

#[test]
fn a_guest_that_spins_with_interrupts_off_is_asked_and_goes_on() {
    // Looks now and then whether it is to end.
    let spinning = image(|asm| {
        let (mut again, mut inner) = (asm.create_label(), asm.create_label());
        asm.cli()?;
        print(asm, "<")?;
        asm.mov(dx, 0x3fd)?;
        asm.set_label(&mut again)?;
        asm.mov(ecx, 1_000_000)?;
        asm.set_label(&mut inner)?;
        asm.dec(ecx)?;
        asm.jnz(inner)?;
        asm.in_(al, dx)?;
        asm.test(al, 1)?;
        asm.jz(again)?;
        print(asm, ">")?;
        power_off(asm)
    });
    let machine = Running::start(spinning, |_| ());
    machine.printed.wait_for(1);
    let mut before = ask(&machine.handle);
    for _ in 0..100 {
        let now = ask(&machine.handle);
        assert_eq!(now.vcpus[0].activity, Activity::Running);
        assert!(now.uptime > before.uptime);
        assert!(now.vcpus[0].cpu_time > before.vcpus[0].cpu_time);
        before = now;
    }
    assert!(machine.input.send(b"."));
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "<>");
}

#[test]
fn a_halted_guest_is_not_woken_by_questions_but_by_its_interrupt() {
    // Halts once; prints when it goes on.
    let halting = image(|asm| {
        set_up_interrupts(asm, 0x24, |asm| {
            asm.mov(dx, 0x3f8)?;
            asm.in_(al, dx)?;
            asm.out(dx, al)?;
            asm.iretd()
        })?;
        set_up_pics(asm, 1 << 4)?;
        out8(asm, 0x3f9, 1)?;
        out8(asm, 0x3fc, 8)?;
        print(asm, ">")?;
        asm.sti()?;
        asm.hlt()?;
        print(asm, "!")?;
        power_off(asm)
    });
    let machine = Running::start(halting, |_| ());
    machine.printed.wait_for(1);
    wait_until(|| ask(&machine.handle).vcpus[0].activity == Activity::Halted);
    let before = ask(&machine.handle);
    for _ in 0..100 {
        assert_eq!(instructions(&ask(&machine.handle)), instructions(&before));
    }
    assert_eq!(machine.printed.text(), ">");
    assert!(machine.input.send(b"k"));
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, ">k!");
}

#[test]
fn a_vcpu_that_waits_for_its_start_is_asked_and_can_still_be_started() {
    let starting = image(|asm| {
        let mut waits = asm.create_label();
        // In real mode at page 8: lock inc word [COUNT]; cli; hlt; jmp back to hlt.
        let code = [
            0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xff, 0x06, 0x00, 0x90, 0xfa, 0xf4, 0xeb, 0xfd,
        ];
        for (at, byte) in (0x8000..).zip(code) {
            asm.mov(byte_ptr(at), byte)?;
        }
        store(asm, COUNT, 0)?;
        // Until something comes in.
        print(asm, ">")?;
        asm.mov(dx, 0x3fd)?;
        asm.set_label(&mut waits)?;
        asm.in_(al, dx)?;
        asm.test(al, 1)?;
        asm.jz(waits)?;
        start_others(asm)?;
        let mut counts = asm.create_label();
        asm.set_label(&mut counts)?;
        asm.cmp(dword_ptr(COUNT), 1)?;
        asm.jne(counts)?;
        power_off(asm)
    });
    let machine = Running::start(starting, |config| config.cpus = 2);
    machine.printed.wait_for(1);
    for _ in 0..100 {
        let statistics = ask(&machine.handle);
        assert_eq!(statistics.vcpus[1].activity, Activity::WaitForSipi);
        assert_eq!(counter(&statistics, 1, "instructions"), 0);
    }
    assert!(machine.input.send(b"."));
    let handle = machine.handle.clone();
    assert!(matches!(machine.end().0, Outcome::PoweredOff));
    assert_ne!(ask(&handle).vcpus[1].activity, Activity::WaitForSipi);
}

/// Starts the other processors at page 8.
fn start_others(asm: &mut CodeAssembler) -> Assembled {
    store(asm, 0xfee0_00f0, 0x1ff)?;
    for command in [0xc_4500, 0xc_4608] {
        store(asm, 0xfee0_0300, command)?;
    }
    Ok(())
}

#[test]
fn a_machine_that_stands_still_tells_the_same_again_and_again() {
    let machine = Running::start(
        image(|asm| {
            let mut again = asm.create_label();
            asm.set_label(&mut again)?;
            print(asm, ".")?;
            asm.jmp(again)
        }),
        |config| config.cpus = 2,
    );
    machine.printed.wait_for(1);
    machine.handle.pause();
    let first = ask(&machine.handle);
    let second = ask(&machine.handle);
    assert_eq!(first.uptime, second.uptime);
    assert_eq!(first.vcpus[0].counters, second.vcpus[0].counters);
    assert_eq!(first.vcpus[0].cpu_time, second.vcpus[0].cpu_time);
    let paused = machine.printed.len();
    machine.handle.resume();
    machine.printed.wait_for(paused + 1);
    assert!(ask(&machine.handle).uptime > first.uptime);
    let handle = machine.handle.clone();
    handle.stop();
    assert!(matches!(machine.end().0, Outcome::Stopped));
    ask(&handle);
}

#[test]
fn a_machine_that_has_not_run_has_counted_nothing() {
    let file = image(halt);
    let config = MachineConfig {
        kernel: Some(file.path().to_owned()),
        memory: Size::mib(16),
        ..MachineConfig::default()
    };
    let machine = Machine::new(&config, Arc::new(Printed::default())).unwrap();
    let statistics = ask(&machine.handle());
    assert_eq!(instructions(&statistics), 0);
    assert_eq!(ask(&machine.handle()).uptime, statistics.uptime);
}

#[test]
fn questions_from_several_threads_amid_pauses_and_resets_are_all_answered() {
    let machine = Running::start(
        image(|asm| {
            print(asm, ".")?;
            halt(asm)
        }),
        |config| config.cpus = 2,
    );
    let handle = &machine.handle;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(move || {
                for _ in 0..200 {
                    ask(handle);
                }
            });
        }
        for _ in 0..50 {
            handle.reset();
            handle.pause();
            handle.resume();
        }
    });
    handle.stop();
    assert!(matches!(machine.end().0, Outcome::Stopped));
}
