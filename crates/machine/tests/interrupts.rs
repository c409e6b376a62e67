//! Interrupts and processors that wake each other, through all controllers.

mod guest;

use belljar_machine::Outcome;
use guest::*;
use iced_x86::code_asm::*;

/// Where the local APIC and the I/O APIC are.
const LAPIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Registers of the local APIC.
const EOI: u32 = LAPIC + 0xb0;
const SPURIOUS: u32 = LAPIC + 0xf0;
const ICR: u32 = LAPIC + 0x300;
const LVT_TIMER: u32 = LAPIC + 0x320;
const INITIAL_COUNT: u32 = LAPIC + 0x380;
const DIVIDE: u32 = LAPIC + 0x3e0;

/// Where the guests' processors count.
const COUNT: u32 = 0x9000;

/// Sets up the interrupts by `set_up`, then halts; the handler of `vector` prints a dot and ends
/// with `acknowledge`. After three of them the guest powers off.
fn ticking(
    vector: u32,
    set_up: impl FnOnce(&mut CodeAssembler) -> Assembled,
    acknowledge: impl FnOnce(&mut CodeAssembler) -> Assembled,
) -> (Outcome, String) {
    let image = image(|asm| {
        store(asm, COUNT, 0)?;
        set_up_interrupts(asm, vector, |asm| {
            let mut done = asm.create_label();
            print(asm, ".")?;
            asm.inc(dword_ptr(COUNT))?;
            asm.cmp(dword_ptr(COUNT), 3)?;
            asm.je(done)?;
            acknowledge(asm)?;
            asm.iretd()?;
            asm.set_label(&mut done)?;
            power_off(asm)
        })?;
        set_up(asm)?;
        asm.sti()?;
        halt(asm)
    });
    run(image, |_| ())
}

fn assert_three_ticks((outcome, printed): (Outcome, String)) {
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "...");
}

#[test]
fn the_local_apics_timer_interrupts_a_halted_processor_periodically() {
    assert_three_ticks(ticking(
        0x40,
        |asm| {
            store(asm, SPURIOUS, 0x1ff)?;
            store(asm, DIVIDE, 0xb)?;
            store(asm, LVT_TIMER, 0x2_0040)?;
            store(asm, INITIAL_COUNT, 100_000)
        },
        |asm| store(asm, EOI, 0),
    ));
}

#[test]
fn the_local_apics_timer_fires_once_for_each_deadline() {
    const TSC_DEADLINE: u32 = 0x6e0;
    let arm = |asm: &mut CodeAssembler| {
        asm.rdtsc()?;
        asm.add(eax, 100_000)?;
        asm.adc(edx, 0)?;
        asm.mov(ecx, TSC_DEADLINE)?;
        asm.wrmsr()
    };
    assert_three_ticks(ticking(
        0x41,
        |asm| {
            store(asm, SPURIOUS, 0x1ff)?;
            store(asm, LVT_TIMER, 0x4_0041)?;
            arm(asm)
        },
        |asm| {
            store(asm, EOI, 0)?;
            arm(asm)
        },
    ));
}

/// Programs the interval timer to interrupt about every millisecond.
fn start_interval_timer(asm: &mut CodeAssembler) -> Assembled {
    out8(asm, 0x43, 0x34)?;
    out8(asm, 0x40, 0xa9)?;
    out8(asm, 0x40, 0x04)
}

#[test]
fn the_interval_timer_interrupts_through_the_8259a() {
    assert_three_ticks(ticking(
        0x20,
        |asm| {
            set_up_pics(asm, 1)?;
            start_interval_timer(asm)
        },
        |asm| out8(asm, 0x20, 0x20),
    ));
}

#[test]
fn the_interval_timer_interrupts_through_the_io_apic() {
    assert_three_ticks(ticking(
        0x50,
        |asm| {
            set_up_pics(asm, 0)?;
            store(asm, SPURIOUS, 0x1ff)?;
            // Input 2: vector 0x50, edge, fixed, to processor 0.
            for (register, value) in [(0x15, 0), (0x14, 0x50)] {
                store(asm, IO_APIC, register)?;
                store(asm, IO_APIC + 0x10, value)?;
            }
            start_interval_timer(asm)
        },
        |asm| store(asm, EOI, 0),
    ));
}

#[test]
fn the_serial_port_interrupts_for_what_it_receives() {
    let image = image(|asm| {
        set_up_interrupts(asm, 0x24, |asm| {
            asm.mov(dx, 0x3f8)?;
            asm.in_(al, dx)?;
            asm.out(dx, al)?;
            power_off(asm)
        })?;
        set_up_pics(asm, 1 << 4)?;
        out8(asm, 0x3f9, 1)?;
        out8(asm, 0x3fc, 8)?;
        print(asm, ">")?;
        asm.sti()?;
        halt(asm)
    });
    let machine = Running::start(image, |_| ());
    machine.printed.wait_for(1);
    assert!(machine.input.send(b"k"));
    let (outcome, printed) = machine.end();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, ">k");
}

/// Where application processors start: real mode at this page.
const TRAMPOLINE: u32 = 0x8000;

/// Real-mode code that counts the processor and halts.
fn trampoline() -> Vec<u8> {
    let mut asm = CodeAssembler::new(16).unwrap();
    asm.xor(ax, ax).unwrap();
    asm.mov(ds, ax).unwrap();
    asm.lock().inc(word_ptr(COUNT)).unwrap();
    asm.cli().unwrap();
    halt(&mut asm).unwrap();
    asm.assemble(0).unwrap()
}

/// Copies the trampoline and starts all other processors, by INIT and two start-up messages.
fn start_others(asm: &mut CodeAssembler) -> Assembled {
    for (index, byte) in trampoline().into_iter().enumerate() {
        asm.mov(byte_ptr(TRAMPOLINE + index as u32), u32::from(byte))?;
    }
    store(asm, SPURIOUS, 0x1ff)?;
    for command in [0xc_4500, 0xc_4608, 0xc_4608] {
        store(asm, ICR, command)?;
    }
    Ok(())
}

/// Waits until the 16-bit count is `count`.
fn await_count(asm: &mut CodeAssembler, count: u32) -> Assembled {
    let mut again = asm.create_label();
    asm.set_label(&mut again)?;
    asm.pause()?;
    asm.cmp(word_ptr(COUNT), count)?;
    asm.jne(again)
}

#[test]
fn init_and_start_up_start_every_other_processor_once() {
    let image = image(|asm| {
        store(asm, COUNT, 0)?;
        start_others(asm)?;
        await_count(asm, 3)?;
        // Again: INIT stops them, and they start anew.
        start_others(asm)?;
        await_count(asm, 6)?;
        print(asm, "all")?;
        power_off(asm)
    });
    let (outcome, printed) = run(image, |config| config.cpus = 4);
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "all");
}

#[test]
fn an_interprocessor_interrupt_to_itself_is_taken() {
    let image = image(|asm| {
        set_up_interrupts(asm, 0x60, |asm| {
            print(asm, "self")?;
            power_off(asm)
        })?;
        store(asm, SPURIOUS, 0x1ff)?;
        asm.sti()?;
        store(asm, ICR, 0x4_4060)?;
        halt(asm)
    });
    let (outcome, printed) = run(image, |_| ());
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(printed, "self");
}
