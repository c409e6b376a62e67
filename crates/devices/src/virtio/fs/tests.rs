//! The device with a directory, as a driver sees it.

use super::super::testing::{Driver, NEXT, Piece, SIZE, WRITE, wait};
use super::super::{COMMON_FEATURES, VirtioDevice};
use super::*;
use crate::pci::Function;
use belljar_memory::GuestPhysAddr;
use belljar_share::MOST_REQUEST;
use proptest::prelude::*;
use std::path::Path;

const OUT: u64 = 0x40_0000;
const IN: u64 = 0x60_0000;

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const WRITE_FILE: u32 = 16;
const INIT: u32 = 26;
const EIO: i32 = 5;
const EINVAL: i32 = 22;

fn driver(directory: &Path) -> Driver<Fs> {
    let config: ShareConfig = format!("{},tag=data", directory.display()).parse().unwrap();
    let mut driver = Driver::new(Fs::new(&config).unwrap());
    driver.start(COMMON_FEATURES, 2);
    let body: Vec<u8> = [7_u32, 31, 0, 0]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let answer = send(&mut driver, 1, &message(INIT, 0, &body), 80);
    assert_eq!((answer.len(), error(&answer)), (80, 0));
    driver
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut message = (40 + body.len() as u32).to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(9_u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// Sends a message, and gives what comes back into `room` bytes.
fn send(driver: &mut Driver<Fs>, queue: u16, message: &[u8], room: u32) -> Vec<u8> {
    driver.memory.write(GuestPhysAddr(OUT), message).unwrap();
    let mut pieces: Vec<Piece> = vec![(OUT, 40.min(message.len() as u32), 0)];
    if message.len() > 40 {
        pieces.push((OUT + 40, message.len() as u32 - 40, 0));
    }
    if room > 0 {
        pieces.push((IN, room.min(16), WRITE));
    }
    if room > 16 {
        pieces.push((IN + 16, room - 16, WRITE));
    }
    let count = driver.transfer(queue, &pieces);
    driver.bytes(IN, count as usize)
}

fn error(answer: &[u8]) -> i32 {
    assert_eq!(answer[8..16], 9_u64.to_le_bytes());
    -i32::from_le_bytes(answer[4..8].try_into().unwrap())
}

#[test]
fn the_configuration_has_the_tag_and_one_queue_of_requests() {
    let directory = tempfile::tempdir().unwrap();
    let driver = driver(directory.path());
    let mut data = [0xff; 44];
    driver.device.read_memory(0, 0x2000, &mut data);
    assert_eq!(data[..5], *b"data\0");
    assert_eq!(data[36..], [1, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn messages_are_answered_in_both_queues() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path());
    let message = message(GETATTR, 1, &[0; 16]);
    for queue in [1, 0] {
        let answer = send(&mut driver, queue, &message, 120);
        assert_eq!((answer.len(), error(&answer)), (120, 0));
        // A directory.
        assert_eq!(answer[16 + 16 + 61] & 0xf0, 0x40);
    }
}

#[test]
fn what_needs_no_answer_or_leaves_no_room_for_one_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path());
    assert_eq!(send(&mut driver, 0, &message(FORGET, 1, &[0; 8]), 0), []);
    assert_eq!(send(&mut driver, 1, &message(FORGET, 1, &[]), 80), []);
    assert_eq!(send(&mut driver, 1, &message(GETATTR, 1, &[0; 16]), 15), []);
    assert_eq!(send(&mut driver, 1, &[1; 39], 80), []);
}

#[test]
fn a_message_that_is_too_long_or_cut_off_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path());
    let long = message(WRITE_FILE, 1, &vec![0; MOST_REQUEST]);
    assert_eq!(error(&send(&mut driver, 1, &long, 80)), EINVAL);
    let cut = &message(GETATTR, 1, &[0; 16])[..50];
    assert_eq!(error(&send(&mut driver, 1, cut, 80)), EINVAL);
}

#[test]
fn a_reset_unmounts_and_a_pause_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut driver = driver(directory.path());
    driver.device.pause();
    driver.device.resume();
    let ask = message(GETATTR, 1, &[0; 16]);
    assert_eq!(error(&send(&mut driver, 1, &ask, 120)), 0);
    driver.reset();
    driver.start(COMMON_FEATURES, 2);
    assert_eq!(error(&send(&mut driver, 1, &ask, 120)), EIO);
}

#[test]
fn a_restored_device_is_mounted_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let config = ShareConfig::new(directory.path());
    let device = Fs::new(&config).unwrap();
    let mut reply = Vec::new();
    let init = message(INIT, 0, &[7, 0, 0, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    lock(&device.server).handle(&init, 80, &mut reply);
    let restored = Fs::restore(device.save(), &config).unwrap();
    assert_eq!(restored.save(), device.save());
    lock(&restored.server).handle(&message(GETATTR, 1, &[0; 16]), 120, &mut reply);
    assert_eq!(error(&reply), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any rings and messages in both queues: no panic, no hang, and the device works after a
    /// reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        rings in proptest::collection::vec(any::<u8>(), 0x40),
        descriptors in proptest::collection::vec(
            (0_u64..0x90_0000, any::<u32>(), 0_u16..8, 0_u16..20), 32),
        head in proptest::collection::vec(any::<u8>(), 80),
        opcode in 0_u32..60,
        heads in proptest::collection::vec((0_u16..2, 0_u16..SIZE), 0..40),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut driver = driver(directory.path());
        driver.memory.write(GuestPhysAddr(OUT), &message(opcode, 1, &head)).unwrap();
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            let (queue, number) = (number / SIZE, number % SIZE);
            let at = if number == 0 { OUT } else { at };
            let len = if number == 0 { 120 } else { len >> (number * 2) };
            let flags = flags & !NEXT | (flags & number);
            driver.descriptor(Driver::<Fs>::ring(queue), number, (at, len, flags), next);
        }
        for (queue, head) in heads {
            driver.offer(queue, head);
        }
        let available = Driver::<Fs>::ring(1) + 0x1000;
        driver.memory.write(GuestPhysAddr(available), &rings).unwrap();
        driver.notify(1);
        driver.reset();
        driver.start(COMMON_FEATURES, 2);
        let before = driver.used(1);
        send(&mut driver, 1, &message(GETATTR, 1, &[0; 16]), 120);
        wait(|| driver.used(1) == before + 1);
    }
}
