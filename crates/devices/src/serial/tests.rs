use super::*;
use crate::irq::testing::Probe;
use crate::timers::testing::NoWake;
use belljar_clock::ManualClock;
use proptest::prelude::*;
use std::sync::Mutex;

#[derive(Clone, Default)]
struct Peer(Arc<Mutex<(Vec<u8>, u32)>>);

impl SerialBackend for Peer {
    fn write(&mut self, data: &[u8]) {
        self.0.lock().unwrap().0.extend(data);
    }

    fn room(&mut self) {
        self.0.lock().unwrap().1 += 1;
    }
}

struct Bench {
    serial: Serial,
    peer: Peer,
    irq: Arc<Probe>,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new() -> Self {
        let (irq, line) = Probe::line();
        let (peer, clock) = (Peer::default(), Arc::new(ManualClock::new(0)));
        let serial = Serial::new(
            Box::new(peer.clone()),
            line,
            Arc::<ManualClock>::clone(&clock),
            NoWake::shared(),
        );
        Self {
            serial,
            peer,
            irq,
            clock,
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        let mut data = [0];
        self.serial.read(offset, &mut data);
        data[0]
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.serial.write(offset, &[value]);
    }
}

#[test]
fn what_the_guest_sends_reaches_the_peer() {
    let mut b = Bench::new();
    for byte in b"ok" {
        b.write(0, *byte);
    }
    assert_eq!(b.peer.0.lock().unwrap().0, b"ok");
    assert_eq!(b.read(5), 0x60);
}

#[test]
fn enabling_the_transmitter_interrupt_causes_one_and_reading_ends_it() {
    let mut b = Bench::new();
    b.write(4, mcr::OUT2);
    b.write(1, ier::TRANSMITTER);
    assert!(b.irq.level());
    assert_eq!(b.read(2), iir::TRANSMITTER);
    assert!(!b.irq.level());
    assert_eq!(b.read(2), iir::NONE);
    b.write(0, b'x');
    assert!(b.irq.level());
    b.write(1, 0);
    b.write(1, ier::TRANSMITTER);
    assert_eq!(b.read(2), iir::TRANSMITTER, "as kernels probe it");
}

#[test]
fn out2_gates_the_interrupt() {
    let mut b = Bench::new();
    b.write(1, ier::TRANSMITTER);
    assert!(!b.irq.level());
    b.write(4, mcr::OUT2);
    assert!(b.irq.level());
    b.write(4, mcr::OUT2 | mcr::LOOPBACK);
    assert!(!b.irq.level());
}

#[test]
fn fewer_bytes_than_the_trigger_interrupt_after_four_characters() {
    let mut b = Bench::new();
    b.write(3, 0x83);
    b.write(0, 1);
    b.write(1, 0);
    b.write(3, 0x03);
    b.write(4, mcr::OUT2);
    b.write(1, ier::RECEIVED);
    b.write(2, 0x81);
    assert_eq!(b.serial.receive(b"abc"), 3);
    assert!(!b.irq.level());
    let at = b.serial.deadline().unwrap();
    assert_eq!(at, Nanos(40 * Nanos::SECOND / BASE_BAUD));
    b.clock.advance(at.0);
    b.serial.expire(at);
    assert!(b.irq.level());
    assert_eq!(b.read(2), iir::FIFOS | iir::TIMEOUT);
    assert_eq!(b.read(0), b'a');
    assert!(!b.irq.level(), "reading a byte ends the timeout");
    assert!(b.serial.deadline().is_some(), "the rest times out anew");
}

#[test]
fn the_fifo_refuses_what_it_cannot_hold_and_tells_of_room() {
    let mut b = Bench::new();
    b.write(2, 0x01);
    assert_eq!(b.serial.receive(&[7; 20]), 16);
    assert_eq!(b.peer.0.lock().unwrap().1, 0);
    assert_eq!(b.read(0), 7);
    assert_eq!(b.peer.0.lock().unwrap().1, 1);
    assert_eq!(b.serial.receive_room(), 1);
    b.read(0);
    assert_eq!(b.peer.0.lock().unwrap().1, 1, "told once");
}

#[test]
fn loopback_returns_bytes_and_modem_lines() {
    let mut b = Bench::new();
    b.write(4, mcr::LOOPBACK | 0x0a);
    assert_eq!(
        b.read(6) & 0xf0,
        0x90,
        "as Linux's autoconfiguration wants it"
    );
    b.write(0, 0x5a);
    assert_eq!(b.read(5) & 1, 1);
    assert_eq!(b.read(0), 0x5a);
    assert!(b.peer.0.lock().unwrap().0.is_empty());
    assert_eq!(b.serial.receive(b"x"), 0);
    b.write(4, 0);
    assert_eq!(b.peer.0.lock().unwrap().1, 1);
}

#[test]
fn a_full_receiver_overruns_in_loopback() {
    let mut b = Bench::new();
    b.write(1, ier::LINE);
    b.write(4, mcr::LOOPBACK);
    b.write(0, 1);
    b.write(0, 2);
    assert_eq!(b.read(2), iir::LINE);
    assert_eq!(b.read(5) & lsr::OVERRUN, lsr::OVERRUN);
    assert_eq!(b.read(5) & lsr::OVERRUN, 0);
    assert_eq!(b.read(0), 2);
}

#[test]
fn the_divisor_lies_behind_its_bit() {
    let mut b = Bench::new();
    b.write(3, lcr::DIVISOR);
    b.write(0, 0x34);
    b.write(1, 0x12);
    assert_eq!((b.read(0), b.read(1)), (0x34, 0x12));
    b.write(3, 0);
    assert_eq!((b.read(0), b.read(1)), (0, 0));
}

#[test]
fn a_saved_port_goes_on_where_it_was() {
    let mut b = Bench::new();
    b.write(4, mcr::OUT2);
    b.write(1, ier::RECEIVED);
    b.serial.receive(b"a");
    let (irq, line) = Probe::line();
    let clock = Arc::<ManualClock>::clone(&b.clock);
    let mut again = Serial::restore(
        b.serial.save(),
        Box::new(Peer::default()),
        line,
        clock,
        NoWake::shared(),
    );
    assert!(irq.level());
    assert_eq!(again.read_register(0), b'a');
}

proptest! {
    #[test]
    fn random_use_never_panics_and_the_line_follows_the_cause(
        steps in proptest::collection::vec((0u8..5, any::<u64>(), any::<u8>()), 0..300)
    ) {
        let mut b = Bench::new();
        for (what, offset, value) in steps {
            match what {
                0 | 1 => b.write(offset & 7, value),
                2 => { b.read(offset); }
                3 => { b.serial.receive(&vec![value; value as usize]); }
                _ => {
                    b.clock.advance(offset & 0xf_ffff);
                    b.serial.expire(b.clock.now());
                }
            }
            prop_assert!(b.serial.state.received.len() <= b.serial.capacity());
            let gate = b.serial.state.mcr & 0x18 == 8;
            prop_assert_eq!(b.irq.level(), gate && b.serial.cause() != iir::NONE);
        }
    }
}
