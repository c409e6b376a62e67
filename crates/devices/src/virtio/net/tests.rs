//! The card with a network that sends everything back.

use super::super::testing::{Driver, NEXT, Piece, SIZE, WRITE, wait};
use super::super::{COMMON_FEATURES, VirtioDevice};
use super::*;
use crate::pci::Function;
use belljar_clock::{ManualClock, Nanos};
use belljar_memory::GuestPhysAddr;
use belljar_net::{Guest, Progress, Transmit, VnetHeader};
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const OUT: u64 = 0x40_0000;
const IN: u64 = 0x50_0000;
const ALL: u64 = u64::MAX;

/// A network that sends every frame back.
#[derive(Debug)]
struct Mirror {
    frames: VecDeque<(VnetHeader, Vec<u8>)>,
    fd: OwnedFd,
}

impl Mirror {
    fn new() -> Self {
        Self {
            frames: VecDeque::new(),
            fd: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
        }
    }
}

impl Backend for Mirror {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn transmit(&mut self, header: VnetHeader, frame: &[u8], _: &mut dyn Guest) -> Transmit {
        if self.frames.len() >= 64 {
            return Transmit::Busy;
        }
        self.frames.push_back((header, frame.to_vec()));
        Transmit::Taken
    }

    fn poll(&mut self, guest: &mut dyn Guest) -> Progress {
        while let Some((header, frame)) = self.frames.front() {
            if !guest.deliver(*header, &[frame]) {
                return Progress::Starved;
            }
            self.frames.pop_front();
        }
        Progress::Idle
    }

    fn reset(&mut self) {
        self.frames.clear();
    }
}

fn net(rate: Option<u64>) -> Net {
    Net::new(
        MAC,
        rate,
        Box::new(Mirror::new()),
        Arc::new(ManualClock::new(0)),
    )
    .unwrap()
}

/// A driver that has started the card with what it offers among `features`.
fn driver(features: u64) -> Driver<Net> {
    let net = net(None);
    let features = (net.features() & features) | COMMON_FEATURES;
    let driver = Driver::new(net);
    driver.start(features, 3);
    driver
}

/// Offers a chain to receive into, in descriptor `number` alone.
fn offer_buffer(driver: &mut Driver<Net>, number: u16, len: u32) {
    let at = IN + u64::from(number) * 0x1000;
    driver.descriptor(Driver::<Net>::ring(0), number, (at, len, WRITE), 0);
    driver.offer(0, number);
}

/// Sends a frame behind a header that says nothing.
fn send(driver: &mut Driver<Net>, frame: &[u8]) {
    let message = [&[0; 12][..], frame].concat();
    driver.memory.write(GuestPhysAddr(OUT), &message).unwrap();
    let pieces: [Piece; 2] = [(OUT, 12, 0), (OUT + 12, frame.len() as u32, 0)];
    assert_eq!(driver.transfer(1, &pieces), 0);
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|n| n as u8).collect()
}

#[test]
fn a_frame_takes_as_many_buffers_as_it_needs() {
    let mut driver = driver(ALL);
    for number in 0..6 {
        offer_buffer(&mut driver, number, 64);
    }
    send(&mut driver, &frame(200));
    wait(|| driver.used(0) == 4);
    let got: Vec<u8> = (0..4)
        .flat_map(|n| driver.bytes(IN + n * 0x1000, 64))
        .collect();
    assert_eq!(got[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]);
    assert_eq!(got[12..212], frame(200));
}

#[test]
fn a_driver_never_sees_a_part_of_a_frames_buffers() {
    let mut driver = driver(ALL);
    let memory = driver.memory.clone();
    let done = Arc::new(AtomicBool::new(false));
    let watcher = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let part_is_seen = || !Driver::<Net>::used_in(&memory, 0).is_multiple_of(4);
            while !done.load(Ordering::Acquire) {
                if part_is_seen() {
                    return true;
                }
            }
            part_is_seen()
        }
    });
    for round in 1..=3000_u16 {
        for number in 0..4 {
            offer_buffer(&mut driver, number, 64);
        }
        send(&mut driver, &frame(200));
        wait(|| driver.used(0) == 4 * round);
    }
    done.store(true, Ordering::Release);
    assert!(!watcher.join().unwrap());
    // Where the ring begins anew, too.
    assert_eq!(driver.bytes(IN + 12, 52), frame(200)[..52]);
}

#[test]
fn without_mergeable_buffers_a_frame_needs_one_that_is_large_enough() {
    let mut driver = driver(!feature::MRG_RXBUF);
    for number in 0..4 {
        offer_buffer(&mut driver, number, 128);
    }
    send(&mut driver, &frame(200));
    send(&mut driver, &frame(100));
    wait(|| driver.used(0) == 1);
    assert_eq!(driver.bytes(IN + 10, 2), [1, 0]);
    assert_eq!(driver.bytes(IN + 12, 100), frame(100));
}

#[test]
fn frames_wait_for_buffers() {
    let mut driver = driver(ALL);
    offer_buffer(&mut driver, 0, 64);
    send(&mut driver, &frame(200));
    assert_eq!(driver.used(0), 0);
    for number in 1..4 {
        offer_buffer(&mut driver, number, 64);
    }
    wait(|| driver.used(0) == 4);
    assert_eq!(driver.bytes(IN + 12, 52), frame(200)[..52]);
}

#[test]
fn a_paused_card_goes_on_with_the_buffers_that_it_had_taken() {
    let mut driver = driver(ALL);
    for number in 0..3 {
        offer_buffer(&mut driver, number, 64);
    }
    send(&mut driver, &frame(200));
    driver.device.pause();
    driver.device.resume();
    offer_buffer(&mut driver, 3, 64);
    wait(|| driver.used(0) == 4);
    assert_eq!(driver.bytes(IN + 12, 52), frame(200)[..52]);
}

#[test]
fn a_reset_forgets_what_was_under_way() {
    let mut driver = driver(ALL);
    send(&mut driver, &frame(200));
    driver.reset();
    driver.start(COMMON_FEATURES, 3);
    offer_buffer(&mut driver, 0, 2000);
    send(&mut driver, &frame(60));
    wait(|| driver.used(0) == 1);
    assert_eq!(driver.bytes(IN + 12, 60), frame(60));
}

#[test]
fn frames_that_are_too_small_or_too_large_are_lost() {
    let mut driver = driver(ALL);
    offer_buffer(&mut driver, 0, 2000);
    assert_eq!(driver.transfer(1, &[(OUT, 5, 0)]), 0);
    assert_eq!(driver.transfer(1, &[(OUT, 100_000, 0)]), 0);
    send(&mut driver, &frame(60));
    wait(|| driver.used(0) == 1);
    assert_eq!(driver.bytes(IN + 12, 60), frame(60));
}

#[test]
fn receive_modes_are_accepted_and_other_commands_refused() {
    let mut driver = driver(ALL);
    for (command, answer) in [([0, 0, 1], 0), ([1, 1, 0], 1), ([9, 9, 9], 1)] {
        driver.memory.write(GuestPhysAddr(OUT), &command).unwrap();
        let pieces: [Piece; 3] = [(OUT, 2, 0), (OUT + 2, 1, 0), (IN, 1, WRITE)];
        assert_eq!(driver.transfer(2, &pieces), 1);
        assert_eq!(driver.bytes(IN, 1), [answer]);
    }
}

#[test]
fn a_rate_holds_frames_back_until_their_time() {
    let clock = Arc::new(ManualClock::new(0));
    // 8 Mbit/s: a byte in a microsecond; the bucket holds 20 ms of them.
    let shared = Arc::<ManualClock>::clone(&clock);
    let net = Net::new(MAC, Some(8_000_000), Box::new(Mirror::new()), shared).unwrap();
    let features = net.features() | COMMON_FEATURES;
    let mut driver = Driver::new(net);
    driver.start(features, 3);
    for number in 0..SIZE {
        offer_buffer(&mut driver, number, 2000);
    }
    // Far more than the bucket holds, in one frame of 40 kB that leaves it in debt by 20 ms.
    let message = vec![0; 12 + 34 + 20_001];
    driver.memory.write(GuestPhysAddr(OUT), &message).unwrap();
    assert_eq!(driver.transfer(1, &[(OUT, message.len() as u32, 0)]), 0);
    wait(|| driver.used(0) == 11);
    driver.descriptor(Driver::<Net>::ring(1), 0, (OUT, 100, 0), 0);
    driver.offer(1, 0);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(driver.used(1), 1, "the frame is held back");
    clock.advance(Nanos::SECOND);
    driver.notify(1);
    wait(|| driver.used(1) == 2);
}

#[test]
fn the_configuration_tells_the_address() {
    let driver = Driver::new(net(None));
    let mut data = [0; 16];
    driver.device.read_memory(0, 0x2000, &mut data);
    assert_eq!(data[..6], MAC.0);
    assert_eq!(data[6..12], [1, 0, 1, 0, 0xdc, 5]);
    assert_eq!(data[12..], [0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any rings and headers in all queues: no panic, no hang, and the card works after a reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        rings in proptest::collection::vec(any::<u8>(), 0x40),
        descriptors in proptest::collection::vec(
            (0_u64..0x90_0000, any::<u32>(), 0_u16..8, 0_u16..20), 48),
        header in proptest::collection::vec(any::<u8>(), 12),
        heads in proptest::collection::vec((0_u16..3, 0_u16..16), 0..40),
        features: u64,
    ) {
        let mut driver = driver(features);
        driver.memory.write(GuestPhysAddr(OUT), &header).unwrap();
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            let (queue, number) = (number / 16, number % 16);
            let at = if number == 0 { OUT } else { at };
            let ring = Driver::<Net>::ring(queue);
            driver.descriptor(ring, number, (at, len >> (number * 2), flags & !NEXT | (flags & number)), next);
        }
        for (queue, head) in heads {
            driver.offer(queue, head);
        }
        let available = Driver::<Net>::ring(0) + 0x1000;
        driver.memory.write(GuestPhysAddr(available), &rings).unwrap();
        driver.notify(0);
        driver.reset();
        driver.start(COMMON_FEATURES, 3);
        offer_buffer(&mut driver, 0, 2000);
        send(&mut driver, &frame(60));
        wait(|| driver.used(0) == 1);
        prop_assert_eq!(driver.bytes(IN + 12, 60), frame(60));
    }
}
