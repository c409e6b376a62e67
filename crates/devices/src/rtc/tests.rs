use super::*;
use crate::irq::testing::Probe;
use crate::timers::testing::NoWake;
use belljar_clock::ManualClock;
use proptest::prelude::*;

struct Bench {
    rtc: Rtc,
    irq: Arc<Probe>,
    clock: Arc<ManualClock>,
}

impl Bench {
    /// A clock that shows `seconds` since 1970.
    fn at(seconds: u64) -> Self {
        let (irq, line) = Probe::line();
        let clock = Arc::new(ManualClock::new(seconds * Nanos::SECOND));
        let rtc = Rtc::new(
            line,
            Arc::<ManualClock>::clone(&clock),
            NoWake::shared(),
            5 << 30,
        );
        Self { rtc, irq, clock }
    }

    fn read(&mut self, index: usize) -> u8 {
        self.rtc.write(0, &[index as u8]);
        let mut data = [0];
        self.rtc.read(1, &mut data);
        data[0]
    }

    fn write(&mut self, index: usize, value: u8) {
        self.rtc.write(0, &[index as u8]);
        self.rtc.write(1, &[value]);
    }

    /// Century, year, month, day, hours, minutes, seconds.
    fn time(&mut self) -> [u8; 7] {
        [
            index::CENTURY,
            index::YEAR,
            index::MONTH,
            index::DAY,
            index::HOURS,
            index::MINUTES,
            index::SECONDS,
        ]
        .map(|index| self.read(index))
    }

    /// Serves deadlines for `nanos`.
    fn serve(&mut self, nanos: u64) {
        let end = self.clock.now().after(nanos);
        while let Some(at) = self.rtc.deadline().filter(|at| *at <= end) {
            self.clock.advance(at.since(self.clock.now()));
            self.rtc.expire(at);
        }
        self.clock.advance(end.since(self.clock.now()));
    }
}

/// 1999-12-31 23:59:58 UTC.
const END_OF_1999: u64 = 946_684_798;

#[test]
fn the_century_rolls_over() {
    let mut b = Bench::at(END_OF_1999);
    assert_eq!(b.time(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58]);
    assert_eq!(b.read(index::WEEKDAY), 6);
    b.clock.advance(2 * Nanos::SECOND);
    assert_eq!(b.time(), [0x20, 0, 1, 1, 0, 0, 0]);
    assert_eq!(b.read(index::WEEKDAY), 7);
}

#[test]
fn a_leap_day_comes_before_march() {
    // 2024-02-28 23:59:59 UTC.
    let mut b = Bench::at(1_709_164_799);
    b.clock.advance(Nanos::SECOND);
    assert_eq!(b.time(), [0x20, 0x24, 2, 0x29, 0, 0, 0]);
    b.clock.advance(86_400 * Nanos::SECOND);
    assert_eq!(b.time(), [0x20, 0x24, 3, 1, 0, 0, 0]);
}

#[test]
fn binary_and_12_hour_modes_are_kept() {
    let mut b = Bench::at(END_OF_1999);
    b.write(index::B, reg_b::BINARY);
    assert_eq!(b.time(), [0x19, 99, 12, 31, 0x0b | PM, 59, 58]);
    b.clock.advance(2 * Nanos::SECOND);
    assert_eq!(b.read(index::HOURS), 12);
}

#[test]
fn the_time_stands_still_while_it_is_set_and_goes_on_from_there() {
    let mut b = Bench::at(END_OF_1999);
    // As Linux does: set, hold the divider, write, let go.
    b.write(index::B, reg_b::SET | reg_b::HOURS_24);
    b.write(index::A, 0x76);
    for (index, value) in [
        (index::CENTURY, 0x20),
        (index::YEAR, 0x30),
        (index::MONTH, 0x07),
        (index::DAY, 0x15),
        (index::HOURS, 0x12),
        (index::MINUTES, 0x34),
        (index::SECONDS, 0x56),
    ] {
        b.write(index, value);
    }
    b.clock.advance(10 * Nanos::SECOND);
    let set = [0x20, 0x30, 0x07, 0x15, 0x12, 0x34, 0x56];
    assert_eq!(b.time(), set);
    b.write(index::B, reg_b::HOURS_24);
    b.write(index::A, 0x26);
    b.clock.advance(499_000_000);
    assert_eq!(b.time(), set);
    b.clock.advance(1_000_000);
    assert_eq!(
        b.read(index::SECONDS),
        0x57,
        "half a second after the divider"
    );
}

#[test]
fn a_register_written_while_the_clock_runs_changes_it_alone() {
    let mut b = Bench::at(END_OF_1999);
    b.write(index::MINUTES, 0x10);
    b.clock.advance(3 * Nanos::SECOND);
    assert_eq!(b.time(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x11, 0x01]);
}

#[test]
fn the_update_is_announced() {
    let mut b = Bench::at(END_OF_1999);
    assert_eq!(b.read(index::A), 0x26);
    b.clock.advance(Nanos::SECOND - 244_000);
    assert_eq!(b.read(index::A), 0xa6);
    b.clock.advance(244_000);
    assert_eq!(b.read(index::A), 0x26);
}

#[test]
fn the_update_interrupt_comes_each_second_until_it_is_read() {
    let mut b = Bench::at(END_OF_1999);
    b.read(index::C);
    b.write(index::B, reg_b::UPDATE | reg_b::HOURS_24);
    b.serve(Nanos::SECOND);
    assert!(b.irq.level());
    assert_eq!(b.rtc.deadline(), None, "nothing new until it is read");
    assert_eq!(b.read(index::C) & 0x90, 0x90);
    assert!(!b.irq.level());
    b.serve(Nanos::SECOND);
    assert!(b.irq.level());
}

#[test]
fn the_periodic_interrupt_has_its_rate() {
    let mut b = Bench::at(END_OF_1999);
    b.write(index::A, 0x26);
    b.write(index::B, reg_b::PERIODIC | reg_b::HOURS_24);
    b.read(index::C);
    let mut count = 0;
    for _ in 0..1024 {
        b.serve(Nanos::SECOND / 1024 + 1);
        count += u32::from(b.read(index::C) & 0xc0 == 0xc0);
    }
    assert_eq!(count, 1024);
}

#[test]
fn the_alarm_rings_at_its_time_with_wildcards() {
    let mut b = Bench::at(END_OF_1999);
    b.write(index::SECONDS_ALARM, 0x01);
    b.write(index::MINUTES_ALARM, 0x00);
    b.write(index::HOURS_ALARM, 0xff);
    b.read(index::C);
    b.write(index::B, reg_b::ALARM | reg_b::HOURS_24);
    b.serve(2_999_999_999);
    assert!(!b.irq.level());
    b.serve(1);
    assert!(b.irq.level());
    assert_eq!(b.read(index::C) & 0xa0, 0xa0);
    b.serve(3_599 * Nanos::SECOND);
    assert!(!b.irq.level());
    b.serve(Nanos::SECOND);
    assert!(b.irq.level());
}

#[test]
fn memory_sizes_are_in_the_ram() {
    let mut b = Bench::at(0);
    assert_eq!([b.read(0x15), b.read(0x16)], 640u16.to_le_bytes());
    assert_eq!([b.read(0x30), b.read(0x31)], [0xff, 0xff]);
    assert_eq!([b.read(0x34), b.read(0x35)], 0xbf00u16.to_le_bytes());
    assert_eq!([b.read(0x5b), b.read(0x5c), b.read(0x5d)], [0, 0x80, 0]);
}

#[test]
fn the_index_port_masks_nmis() {
    let mut b = Bench::at(0);
    b.rtc.write(0, &[0x8f]);
    assert!(b.rtc.nmi_masked());
    b.rtc.write(1, &[0x0a]);
    assert_eq!(b.read(0x0f), 0x0a);
    assert!(!b.rtc.nmi_masked());
}

proptest! {
    #[test]
    fn a_time_that_is_set_reads_back(
        year in 1970u64..2200, day in 0u64..365, second in 0u64..86_400, b_mode in 0u8..4
    ) {
        let seconds = (year - 1970) * 31_556_952 + day * 86_400 + second;
        let mut source = Bench::at(seconds);
        let mode = b_mode << 1;
        source.write(index::B, mode);
        let mut target = Bench::at(0);
        target.write(index::B, reg_b::SET | mode);
        for index in [index::CENTURY, index::YEAR, index::MONTH, index::DAY, index::HOURS,
                      index::MINUTES, index::SECONDS] {
            let value = source.read(index);
            target.write(index, value);
        }
        target.write(index::B, mode);
        prop_assert_eq!(target.time(), source.time());
        prop_assert_eq!(target.read(index::WEEKDAY), source.read(index::WEEKDAY));
    }

    #[test]
    fn random_use_never_panics_and_deadlines_lie_ahead(
        steps in proptest::collection::vec((0u8..4, any::<u8>(), any::<u8>(), any::<u32>()), 0..200)
    ) {
        let mut b = Bench::at(END_OF_1999);
        for (what, index, value, span) in steps {
            let index = usize::from(if index & 1 == 0 { index & 0xf } else { index });
            match what {
                0 | 1 => b.write(index, value),
                2 => { b.read(index); }
                _ => {
                    b.clock.advance(u64::from(span) * 4);
                    b.rtc.expire(b.clock.now());
                    let now = b.clock.now();
                    prop_assert!(b.rtc.deadline().is_none_or(|at| at > now));
                }
            }
            let flags = b.rtc.ram(index::C);
            let wanted = flags & b.rtc.ram(index::B) & reg_b::INTERRUPTS != 0;
            prop_assert_eq!(b.irq.level(), wanted);
        }
    }
}
