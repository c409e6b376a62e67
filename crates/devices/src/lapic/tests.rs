use super::*;
use belljar_clock::ManualClock;
use proptest::prelude::*;

fn lapic(id: u32) -> (Lapic, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::new(0));
    let mut lapic = Lapic::new(id, Arc::<ManualClock>::clone(&clock));
    write(&mut lapic, 0xf0, 0x1ff);
    (lapic, clock)
}

/// Writes by MMIO offset.
fn write(lapic: &mut Lapic, offset: u32, value: u32) -> Effect {
    lapic.write_xapic(Register((offset >> 4) as u8), value)
}

fn read(lapic: &mut Lapic, offset: u32) -> u32 {
    lapic.read_xapic(Register((offset >> 4) as u8))
}

fn fixed(vector: u8, level: bool) -> Message {
    Message {
        destination: Message::BROADCAST,
        logical: false,
        mode: DeliveryMode::Fixed,
        vector,
        level,
    }
}

fn to_x2apic(lapic: &mut Lapic) {
    lapic.set_base(lapic.base() | apic_base::X2APIC).unwrap();
}

#[test]
fn registers_after_reset_are_the_manuals() {
    let mut lapic = Lapic::new(3, Arc::new(ManualClock::new(0)));
    assert_eq!(read(&mut lapic, 0x20), 0x0300_0000);
    assert_eq!(read(&mut lapic, 0x30), 0x0005_0014);
    assert_eq!(read(&mut lapic, 0xe0), 0xffff_ffff);
    assert_eq!(read(&mut lapic, 0xf0), 0xff);
    for entry in (0x320..=0x370).step_by(16) {
        assert_eq!(read(&mut lapic, entry), 0x1_0000);
    }
    assert_eq!(lapic.base(), layout::LAPIC_BASE | apic_base::ENABLE);
}

#[test]
fn interrupts_nest_by_priority_class() {
    let (mut lapic, _) = lapic(0);
    lapic.accept(&fixed(0x41, false));
    assert_eq!(lapic.acknowledge(), Some(0x41));
    lapic.accept(&fixed(0x4f, false));
    assert_eq!(lapic.acknowledge(), None, "the same class waits");
    lapic.accept(&fixed(0x51, false));
    assert_eq!(lapic.acknowledge(), Some(0x51));
    assert_eq!(read(&mut lapic, 0xa0), 0x50);
    write(&mut lapic, 0xb0, 0);
    assert!(!lapic.interrupt_pending());
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.acknowledge(), Some(0x4f));
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let (mut lapic, _) = lapic(0);
    lapic.accept(&fixed(0x81, false));
    lapic.set_task_priority(8);
    assert_eq!(read(&mut lapic, 0x80), 0x80);
    assert!(!lapic.interrupt_pending());
    lapic.set_task_priority(7);
    assert!(lapic.interrupt_pending());
}

#[test]
fn only_level_triggered_interrupts_tell_their_end() {
    let (mut lapic, _) = lapic(0);
    for (vector, level, effect) in [
        (0x41, false, Effect::None),
        (0x42, true, Effect::EndOfInterrupt(0x42)),
    ] {
        lapic.accept(&fixed(vector, level));
        assert_eq!(lapic.acknowledge(), Some(vector));
        assert_eq!(write(&mut lapic, 0xb0, 0), effect);
    }
}

#[test]
fn software_disable_masks_the_vector_table_and_refuses_interrupts() {
    let (mut lapic, _) = lapic(0);
    write(&mut lapic, 0x350, 0x700);
    write(&mut lapic, 0xf0, 0xff);
    assert_eq!(read(&mut lapic, 0x350), 0x1_0700);
    write(&mut lapic, 0x350, 0x700);
    assert_eq!(read(&mut lapic, 0x350), 0x1_0700);
    lapic.accept(&fixed(0x41, false));
    assert!(!lapic.interrupt_pending());
    assert_eq!(
        lapic.accept(&Message {
            mode: DeliveryMode::Nmi,
            ..fixed(0, false)
        }),
        Signal::Nmi
    );
}

#[test]
fn logical_destinations_match_by_model() {
    let to = |destination, logical| Message {
        destination,
        logical,
        ..fixed(0x41, false)
    };
    let (mut lapic, _) = lapic(2);
    write(&mut lapic, 0xd0, 0x0400_0000);
    assert!(lapic.matches(&to(0x0c, true)));
    assert!(!lapic.matches(&to(0x03, true)));
    write(&mut lapic, 0xe0, 0x0fff_ffff);
    write(&mut lapic, 0xd0, 0x3400_0000);
    assert!(lapic.matches(&to(0x3c, true)));
    assert!(!lapic.matches(&to(0x2c, true)));
    assert!(lapic.matches(&to(2, false)));
    assert!(!lapic.matches(&to(3, false)));
    to_x2apic(&mut lapic);
    assert!(lapic.matches(&to(0x0000_0004, true)));
    assert!(!lapic.matches(&to(0x0001_0004, true)));
    assert!(lapic.matches(&to(Message::BROADCAST, true)));
}

#[test]
fn modes_change_only_as_the_manual_draws() {
    let (mut lapic, _) = lapic(0);
    let xapic = lapic.base();
    let disabled = xapic & !apic_base::ENABLE;
    let x2apic = xapic | apic_base::X2APIC;
    assert!(lapic.set_base(disabled | apic_base::X2APIC).is_err());
    assert!(lapic.set_base(1).is_err());
    let too_high = xapic | 1 << 46;
    assert!(
        lapic.set_base(too_high).is_err(),
        "beyond the address width"
    );
    lapic.set_base(x2apic).unwrap();
    assert!(lapic.set_base(xapic).is_err(), "x2APIC does not fall back");
    lapic.set_base(disabled).unwrap();
    assert!(lapic.set_base(x2apic).is_err(), "not in one step");
    lapic.set_base(xapic).unwrap();
    assert_eq!(read(&mut lapic, 0xf0), 0xff, "disabling reset it");
    lapic.set_base(0x1234_5000 | apic_base::ENABLE).unwrap();
    assert_eq!(lapic.page(), Some(0x1234_5000));
}

#[test]
fn x2apic_registers_refuse_what_they_cannot_hold() {
    let (mut lapic, _) = lapic(5);
    to_x2apic(&mut lapic);
    assert_eq!(lapic.read_x2apic(Register(0x02)), Ok(5));
    assert_eq!(lapic.read_x2apic(Register(0x0d)), Ok(0x20));
    for (register, value) in [
        (0x02, 0),
        (0x0b, 1),
        (0x08, 0x100),
        (0x28, 1),
        (0x31, 0),
        (0x3f, 0x100),
    ] {
        assert_eq!(
            lapic.write_x2apic(Register(register), value),
            Err(RegisterRefused)
        );
    }
    for register in [0x09, 0x0b, 0x0c, 0x0e, 0x31, 0x3f, 0x40] {
        assert_eq!(lapic.read_x2apic(Register(register)), Err(RegisterRefused));
    }
}

#[test]
fn an_icr_write_is_the_message_it_describes() {
    let (mut lapic, _) = lapic(0);
    write(&mut lapic, 0x310, 0x0200_0000);
    assert_eq!(
        write(&mut lapic, 0x300, 0x0000_4500),
        Effect::Send(
            Shorthand::None,
            Message {
                destination: 2,
                logical: false,
                mode: DeliveryMode::Init,
                vector: 0,
                level: false
            }
        )
    );
    assert_eq!(
        write(&mut lapic, 0x300, 0x0000_8500),
        Effect::None,
        "de-assert"
    );
    assert_eq!(read(&mut lapic, 0x300), 0x8500);
    let Effect::Send(Shorthand::Others, message) = write(&mut lapic, 0x300, 0x000c_0699) else {
        panic!("no message to the others");
    };
    assert_eq!(
        (message.mode, message.vector),
        (DeliveryMode::StartUp, 0x99)
    );
}

#[test]
fn illegal_vectors_and_registers_are_errors_that_interrupt() {
    let (mut lapic, _) = lapic(0);
    write(&mut lapic, 0x370, 0xfe);
    assert_eq!(write(&mut lapic, 0x300, 0x05), Effect::None);
    assert_eq!(lapic.acknowledge(), Some(0xfe));
    lapic.accept(&fixed(3, false));
    read(&mut lapic, 0x3f0);
    assert_eq!(read(&mut lapic, 0x280), 0, "not before a write");
    write(&mut lapic, 0x280, 0);
    assert_eq!(read(&mut lapic, 0x280), 0xe0);
    write(&mut lapic, 0x280, 0);
    assert_eq!(read(&mut lapic, 0x280), 0);
}

#[test]
fn a_one_shot_timer_counts_down_and_fires_once() {
    let (mut lapic, clock) = lapic(0);
    write(&mut lapic, 0x320, 0x30);
    write(&mut lapic, 0x3e0, 0x3);
    write(&mut lapic, 0x380, 1000);
    assert_eq!(lapic.deadline(), Some(Nanos(16_000)));
    clock.advance(8_000);
    assert_eq!(read(&mut lapic, 0x390), 500);
    clock.advance(8_000);
    lapic.expire(clock.now());
    assert_eq!(lapic.acknowledge(), Some(0x30));
    assert_eq!(read(&mut lapic, 0x390), 0);
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn a_timer_that_has_run_out_stays_so_when_it_becomes_periodic() {
    let (mut lapic, clock) = lapic(0);
    write(&mut lapic, 0x320, 0x30);
    write(&mut lapic, 0x3e0, 0xb);
    write(&mut lapic, 0x380, 1000);
    clock.advance(600);
    write(&mut lapic, 0x320, 0x2_0030);
    assert_eq!(read(&mut lapic, 0x390), 400, "a running one goes on");
    write(&mut lapic, 0x320, 0x30);
    clock.advance(1000);
    lapic.expire(clock.now());
    write(&mut lapic, 0x320, 0x2_0030);
    clock.advance(10);
    write(&mut lapic, 0x3e0, 0x3);
    clock.advance(10);
    assert_eq!(read(&mut lapic, 0x390), 0);
    assert_eq!(lapic.deadline(), None);
    write(&mut lapic, 0x380, 1000);
    assert_eq!(read(&mut lapic, 0x390), 1000);
}

#[test]
fn a_periodic_timer_keeps_its_phase_when_served_late() {
    let (mut lapic, clock) = lapic(0);
    write(&mut lapic, 0x320, 0x2_0030);
    write(&mut lapic, 0x3e0, 0xb);
    write(&mut lapic, 0x380, 100_000);
    clock.advance(250_000);
    lapic.expire(clock.now());
    assert_eq!(lapic.acknowledge(), Some(0x30));
    assert_eq!(lapic.deadline(), Some(Nanos(300_000)));
    assert_eq!(read(&mut lapic, 0x390), 50_000);
}

#[test]
fn a_periodic_timer_too_fast_to_serve_does_not_flood_the_timer_thread() {
    let (mut lapic, clock) = lapic(0);
    write(&mut lapic, 0x320, 0x2_0030);
    write(&mut lapic, 0x3e0, 0xb);
    write(&mut lapic, 0x380, 1);
    let mut served = 0;
    while clock.now().0 < 1_000_000 {
        let at = lapic.deadline().unwrap();
        clock.advance(at.since(clock.now()));
        lapic.expire(clock.now());
        served += 1;
    }
    assert!(served <= 60, "{served}");
}

#[test]
fn a_masked_timer_runs_out_in_silence() {
    let (mut lapic, clock) = lapic(0);
    write(&mut lapic, 0x320, 0x1_0030);
    write(&mut lapic, 0x380, 10);
    clock.advance(20);
    lapic.expire(clock.now());
    assert!(!lapic.interrupt_pending());
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn a_tsc_deadline_fires_when_the_counter_reaches_it() {
    let (mut lapic, clock) = lapic(0);
    lapic.set_tsc_deadline(500, 0);
    assert_eq!(lapic.tsc_deadline(), 0, "ignored in other modes");
    write(&mut lapic, 0x320, 0x4_00ec);
    // The vCPU's counter is 100 ahead.
    lapic.set_tsc_deadline(500, 100);
    assert_eq!(lapic.deadline(), Some(Nanos(400)));
    assert_eq!(lapic.tsc_deadline(), 500);
    clock.advance(400);
    lapic.expire(clock.now());
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.tsc_deadline(), 0);
}

#[test]
fn a_tsc_deadline_that_has_passed_fires_at_once() {
    let (mut lapic, clock) = lapic(0);
    clock.advance(1_000);
    write(&mut lapic, 0x320, 0x4_00ec);
    lapic.set_tsc_deadline(999, 0);
    assert_eq!(lapic.acknowledge(), Some(0xec));
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn leaving_the_tsc_deadline_mode_disarms() {
    let (mut lapic, _) = lapic(0);
    write(&mut lapic, 0x320, 0x4_00ec);
    lapic.set_tsc_deadline(1_000, 0);
    write(&mut lapic, 0x320, 0x0_00ec);
    assert_eq!(lapic.deadline(), None);
}

#[test]
fn a_level_triggered_lint_repeats_until_it_falls() {
    let (mut lapic, _) = lapic(0);
    write(&mut lapic, 0x350, 0x8041);
    lapic.set_lint(Lint::Lint0, true);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    assert_ne!(read(&mut lapic, 0x350) & 0x4000, 0);
    write(&mut lapic, 0xb0, 0);
    assert_eq!(lapic.acknowledge(), Some(0x41));
    lapic.set_lint(Lint::Lint0, false);
    write(&mut lapic, 0xb0, 0);
    assert!(!lapic.interrupt_pending());
}

#[test]
fn init_keeps_base_and_mode() {
    let (mut lapic, _) = lapic(9);
    to_x2apic(&mut lapic);
    lapic.accept(&fixed(0x41, false));
    let init = Message {
        mode: DeliveryMode::Init,
        ..fixed(0, false)
    };
    assert_eq!(lapic.accept(&init), Signal::Init);
    assert!(lapic.x2apic() && !lapic.interrupt_pending());
    assert_eq!(lapic.read_x2apic(Register(0x0d)), Ok(0x200));
}

/// One random step: MMIO, MSR, message, input, time, acknowledgement.
fn step(lapic: &mut Lapic, clock: &ManualClock, what: u8, register: u8, value: u64) {
    let register = Register(register & 0x3f);
    match what {
        0 | 1 if lapic.x2apic() => drop(lapic.write_x2apic(register, value)),
        0 | 1 => drop(lapic.write_xapic(register, value as u32)),
        2 => drop(lapic.read_x2apic(register)),
        3 => drop(lapic.read_xapic(register)),
        4 => drop(lapic.accept(&fixed(value as u8, value & 256 != 0))),
        5 => drop(lapic.set_lint(Lint::Lint0, value & 1 != 0)),
        6 => {
            clock.advance(value >> 34);
            lapic.expire(clock.now());
        }
        7 => lapic.set_tsc_deadline(value, value >> 60),
        8 => drop(lapic.set_base(lapic.base() & !0xc00 | value & 0xc00)),
        _ => {
            let before = lapic.processor_priority();
            if let Some(vector) = lapic.acknowledge() {
                assert!(vector >> 4 > before >> 4);
                assert_eq!(lapic.processor_priority(), vector & 0xf0);
            }
        }
    }
}

proptest! {
    #[test]
    fn random_use_never_panics_and_priorities_hold(
        steps in proptest::collection::vec((0u8..12, any::<u8>(), any::<u64>()), 0..300)
    ) {
        let (mut lapic, clock) = lapic(1);
        for (what, register, value) in steps {
            step(&mut lapic, &clock, what, register, value);
            let state = &lapic.state;
            let serving = state.isr.highest().unwrap_or(0) & 0xf0;
            let priority = lapic.processor_priority();
            prop_assert_eq!(priority >> 4, (state.tpr >> 4).max(serving >> 4));
            let waits = state.irr.highest().unwrap_or(0) >> 4 > priority >> 4;
            let own = waits && lapic.enabled();
            prop_assert_eq!(lapic.interrupt_pending(), lapic.ext_int_pending() || own);
            prop_assert!(state.irr.0[0] & 0xffff == 0, "no illegal vector is requested");
        }
    }

    #[test]
    fn the_count_never_rises_between_periods(
        initial in 1u32..,
        divide in 0u32..16,
        spans in proptest::collection::vec(0u64..1 << 30, 1..20),
    ) {
        let (mut lapic, clock) = lapic(0);
        write(&mut lapic, 0x3e0, divide);
        write(&mut lapic, 0x380, initial);
        let mut last = initial;
        for span in spans {
            clock.advance(span);
            let count = read(&mut lapic, 0x390);
            prop_assert!(count <= last);
            prop_assert_eq!(lapic.deadline().is_some(), count != 0);
            last = count;
        }
    }
}
