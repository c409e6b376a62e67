use super::*;
use crate::irq::testing::Probe;
use crate::timers::testing::NoWake;
use belljar_clock::ManualClock;
use proptest::prelude::*;

struct Bench {
    pit: Pit,
    irq: Arc<Probe>,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new() -> Self {
        let (irq, line) = Probe::line();
        let clock = Arc::new(ManualClock::new(0));
        let pit = Pit::new(line, Arc::<ManualClock>::clone(&clock), NoWake::shared());
        Self { pit, irq, clock }
    }

    /// Moves time to the beginning of `tick`.
    fn go_to(&mut self, tick: u64) {
        self.clock.advance(time_of(tick).0 - self.clock.now().0);
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.pit.write(offset, &[value]);
    }

    fn read(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.pit.read(offset, &mut data);
        data[0]
    }

    fn start(&mut self, counter: u8, mode: u8, count: u16) {
        self.write(CONTROL, counter << 6 | 0x30 | mode << 1);
        for byte in count.to_le_bytes() {
            self.write(u64::from(counter), byte);
        }
    }

    fn count(&mut self, counter: u8) -> u16 {
        self.write(CONTROL, counter << 6);
        let low = self.read(u64::from(counter));
        u16::from_le_bytes([low, self.read(u64::from(counter))])
    }

    /// Output and null count, by the read-back command.
    fn status(&mut self, counter: u8) -> u8 {
        self.write(CONTROL, 0xe0 | 2 << counter);
        self.read(u64::from(counter))
    }

    /// Serves deadlines until `tick`.
    fn serve_until(&mut self, tick: u64) {
        while let Some(at) = self.pit.deadline().filter(|at| *at <= time_of(tick)) {
            self.clock.advance(at.0 - self.clock.now().0);
            self.pit.expire(at);
        }
        self.go_to(tick);
    }
}

#[test]
fn mode_0_rises_once_at_the_terminal_count_and_counts_on() {
    let mut b = Bench::new();
    b.start(0, 0, 1000);
    assert_eq!(b.status(0) & 0xc0, 0);
    b.go_to(999);
    assert_eq!((b.count(0), b.status(0) & 0x80), (1, 0));
    b.serve_until(1000);
    assert_eq!((b.count(0), b.status(0) & 0x80), (0, 0x80));
    assert_eq!(b.irq.edges(), 1);
    b.serve_until(1001);
    assert_eq!(b.count(0), 0xffff);
    b.serve_until(200_000);
    assert_eq!(b.irq.edges(), 1);
}

#[test]
fn mode_2_interrupts_each_period() {
    let mut b = Bench::new();
    b.start(0, 2, 1193);
    b.go_to(1192);
    assert_eq!((b.count(0), b.status(0) & 0x80), (1, 0));
    b.serve_until(1193);
    assert_eq!((b.count(0), b.status(0) & 0x80), (1193, 0x80));
    b.serve_until(11_930);
    assert_eq!(b.irq.edges(), 10);
}

#[test]
fn mode_2_takes_a_new_count_at_the_end_of_the_period() {
    let mut b = Bench::new();
    b.start(0, 2, 100);
    b.go_to(10);
    for byte in 50u16.to_le_bytes() {
        b.write(0, byte);
    }
    assert_eq!(b.count(0), 90);
    assert_eq!(b.status(0) & 0x40, 0x40, "not taken yet");
    b.go_to(100);
    assert_eq!(b.count(0), 50);
    assert_eq!(b.status(0) & 0x40, 0);
    b.go_to(151);
    assert_eq!(b.count(0), 49);
}

#[test]
fn mode_3_is_a_square_wave_that_counts_by_two() {
    let mut b = Bench::new();
    b.start(0, 3, 7);
    let mut wave = Vec::new();
    for tick in 0..14 {
        b.go_to(tick);
        let status = b.status(0);
        wave.push((status >> 7, b.count(0)));
    }
    let period = [(1, 6), (1, 4), (1, 2), (1, 0), (0, 6), (0, 4), (0, 2)];
    assert_eq!(wave, [period, period].concat());
}

#[test]
fn mode_3_interrupts_once_each_period() {
    let mut b = Bench::new();
    b.start(0, 3, 0);
    b.serve_until(3 * 65_536);
    assert_eq!(b.irq.edges(), 3);
}

#[test]
fn mode_4_strobes_for_one_tick() {
    let mut b = Bench::new();
    b.start(1, 4, 5);
    let mut low = Vec::new();
    for tick in 0..70_000 {
        if !(20..65_530).contains(&tick) {
            b.go_to(tick);
            if b.status(1) & 0x80 == 0 {
                low.push(tick);
            }
        }
    }
    assert_eq!(low, [5]);
}

#[test]
fn counter_2_is_gated_and_shown_by_port_61() {
    let mut b = Bench::new();
    // As kernels calibrate: mode 0, gate high, wait for the output.
    b.write(PORT_61, 0x01);
    b.start(2, 0, 11_932);
    b.go_to(6_000);
    assert_eq!(b.read(PORT_61) & 0x21, 0x01);
    b.write(PORT_61, 0x00);
    b.go_to(20_000);
    assert_eq!(b.count(2), 5_932, "the gate stopped it");
    b.write(PORT_61, 0x01);
    b.go_to(25_931);
    assert_eq!(b.read(PORT_61) & 0x20, 0);
    b.go_to(25_932);
    assert_eq!(b.read(PORT_61) & 0x20, 0x20);
}

#[test]
fn the_gate_triggers_mode_1() {
    let mut b = Bench::new();
    b.start(2, 1, 100);
    assert_eq!(b.read(PORT_61) & 0x20, 0x20);
    b.go_to(10);
    b.write(PORT_61, 1);
    assert_eq!(b.read(PORT_61) & 0x20, 0);
    b.go_to(109);
    assert_eq!(b.read(PORT_61) & 0x20, 0);
    b.go_to(110);
    assert_eq!(b.read(PORT_61) & 0x20, 0x20);
}

#[test]
fn port_61_toggles_with_the_refresh() {
    let mut b = Bench::new();
    let first = b.read(PORT_61) & port_61::REFRESH;
    b.clock.advance(REFRESH_TOGGLE);
    assert_ne!(b.read(PORT_61) & port_61::REFRESH, first);
}

#[test]
fn decimal_counts_count_decimally() {
    let mut b = Bench::new();
    b.write(CONTROL, 0x35);
    b.write(0, 0x00);
    b.write(0, 0x10);
    b.go_to(1);
    b.write(CONTROL, 0);
    assert_eq!((b.read(0), b.read(0)), (0x99, 0x09));
}

#[test]
fn a_latched_count_stands_until_it_is_read() {
    let mut b = Bench::new();
    b.start(0, 2, 1000);
    b.go_to(100);
    b.write(CONTROL, 0);
    b.go_to(200);
    b.write(CONTROL, 0);
    assert_eq!(u16::from_le_bytes([b.read(0), b.read(0)]), 900);
    assert_eq!(u16::from_le_bytes([b.read(0), b.read(0)]), 800);
}

#[test]
fn a_period_too_short_to_serve_does_not_flood_the_timer_thread() {
    let mut b = Bench::new();
    b.start(0, 2, 2);
    let mut served = 0;
    while let Some(at) = b.pit.deadline().filter(|at| at.0 <= 1_000_000) {
        b.clock.advance(at.0 - b.clock.now().0);
        b.pit.expire(at);
        served += 1;
    }
    assert!((40..=60).contains(&served), "{served}");
}

#[test]
fn a_saved_timer_goes_on_where_it_was() {
    let mut b = Bench::new();
    b.start(0, 2, 1000);
    b.go_to(300);
    let (irq, line) = Probe::line();
    let clock = Arc::<ManualClock>::clone(&b.clock);
    let mut again = Pit::restore(b.pit.save(), line, clock, NoWake::shared());
    assert_eq!(again.deadline(), Some(time_of(1000)));
    b.go_to(1000);
    again.expire(b.clock.now());
    assert_eq!(irq.edges(), 1);
}

proptest! {
    #[test]
    fn counts_of_the_periodic_modes_follow_the_formula(
        count in 2u16..=u16::MAX, tick in 0u64..10_000_000, square in any::<bool>()
    ) {
        let mut b = Bench::new();
        b.start(0, 2 + u8::from(square), count);
        b.go_to(tick);
        let (n, phase) = (u64::from(count), tick % u64::from(count));
        let expected = if square {
            let half = n.div_ceil(2);
            let phase = if phase < half { phase } else { phase - half };
            (n & !1) - 2 * phase
        } else {
            n - phase
        };
        prop_assert_eq!(u64::from(b.count(0)), expected);
    }

    #[test]
    fn random_use_never_panics_and_deadlines_lie_ahead(
        steps in proptest::collection::vec((0u8..4, 0u64..6, any::<u8>(), any::<u32>()), 0..200)
    ) {
        let mut b = Bench::new();
        for (what, offset, value, span) in steps {
            let offset = [0, 1, 2, CONTROL, PORT_61, 0x99][offset as usize];
            match what {
                0 | 1 => b.write(offset, value),
                2 => { b.read(offset); }
                _ => {
                    b.clock.advance(u64::from(span));
                    b.pit.expire(b.clock.now());
                    let now = b.clock.now();
                    prop_assert!(b.pit.deadline().is_none_or(|at| at > now));
                }
            }
        }
    }
}
