//! The transport and the queues, by the entropy device, which is the simplest.

use super::rng::Rng;
use super::testing::{Driver, INDIRECT, NEXT, SIZE, WRITE, stays, wait};
use super::*;
use crate::pci::Function;
use belljar_clock::SeededEntropy;
use belljar_memory::GuestPhysAddr;
use proptest::prelude::*;

const BUFFER: u64 = 0x20_0000;
const TABLE: u64 = 0x30_0000;
/// DRIVER_OK with the bits before it, and with DEVICE_NEEDS_RESET.
const READY: u8 = 15;
const BROKEN: u8 = READY | 0x40;

fn rng() -> Rng {
    Rng::new(Arc::new(SeededEntropy::new(1))).unwrap()
}

fn driver() -> Driver<Rng> {
    Driver::new(rng())
}

/// Offsets of capabilities of type `kind` (vendor) or with `id`.
fn capability(driver: &Driver<Rng>, id: u8, kind: Option<u8>) -> usize {
    let byte = |at| {
        let mut data = [0];
        driver.device.read_configuration(at, &mut data);
        data[0]
    };
    let mut at = usize::from(byte(0x34));
    while at != 0 {
        if byte(at) == id && kind.is_none_or(|kind| byte(at + 3) == kind) {
            return at;
        }
        at = usize::from(byte(at + 1));
    }
    panic!("no such capability");
}

/// Enables MSI-X and gives vector 1 to queue 0.
fn enable_messages(driver: &Driver<Rng>) {
    driver.write(0x4010, &0xfee0_0000_u64.to_le_bytes());
    driver.write(0x4018, &0x41_u64.to_le_bytes());
    let at = capability(driver, 0x11, None);
    driver.device.write_configuration(at + 3, &[0x80]);
    driver.write(22, &[0, 0]);
    driver.write(26, &[1, 0]);
    assert_eq!(driver.read::<2>(26), [1, 0]);
}

#[test]
fn a_driver_gets_random_bytes_and_a_message() {
    let mut driver = driver();
    enable_messages(&driver);
    driver.start(COMMON_FEATURES, 1);
    assert_eq!(
        driver.transfer(0, &[(BUFFER, 64, WRITE), (BUFFER + 0x100, 8, WRITE)]),
        72
    );
    assert_ne!(driver.bytes(BUFFER, 64), [0; 64]);
    assert_eq!(driver.bytes(BUFFER + 64, 1), [0]);
    wait(|| !driver.arrivals.messages.lock().unwrap().is_empty());
    assert_eq!(driver.arrivals.take_messages(), [(0xfee0_0000, 0x41)]);
    assert_eq!(driver.arrivals.take_lines(), []);
}

#[test]
fn without_messages_the_line_is_asserted_until_the_status_is_read() {
    let mut driver = driver();
    driver.start(FEATURE_VERSION_1, 1);
    driver.transfer(0, &[(BUFFER, 16, WRITE)]);
    wait(|| !driver.arrivals.lines.lock().unwrap().is_empty());
    assert_eq!(driver.read::<1>(0x1000), [1]);
    assert_eq!(driver.read::<1>(0x1000), [0]);
    assert_eq!(driver.arrivals.take_lines(), [(16, true), (16, false)]);
}

#[test]
fn features_that_were_not_offered_are_not_accepted() {
    let driver = driver();
    driver.write(20, &[3]);
    driver.write(8, &[1, 0, 0, 0]);
    for half in [0_u32, 3] {
        driver.write(12, &half.to_le_bytes());
        driver.write(20, &[11]);
        assert_eq!(driver.status(), 3, "{half:#x}");
    }
}

#[test]
fn a_reset_ends_the_work_and_the_device_can_be_used_again() {
    let mut driver = driver();
    for _ in 0..3 {
        driver.start(COMMON_FEATURES, 1);
        assert_eq!(driver.transfer(0, &[(BUFFER, 16, WRITE)]), 16);
        driver.reset();
        assert_eq!(driver.read::<2>(28), [0, 0], "no queue is enabled");
    }
}

#[test]
fn a_paused_device_does_nothing_until_it_goes_on() {
    let mut driver = driver();
    driver.start(COMMON_FEATURES, 1);
    driver.transfer(0, &[(BUFFER, 16, WRITE)]);
    driver.device.pause();
    driver.offer(0, 0);
    assert_eq!(driver.used(0), 1);
    driver.device.resume();
    wait(|| driver.used(0) == 2);
}

#[test]
fn a_device_serves_its_queues_only_while_it_is_a_bus_master() {
    let mut driver = driver();
    driver.set_bus_master(false);
    driver.start(COMMON_FEATURES, 1);
    driver.descriptor(Driver::<Rng>::ring(0), 0, (BUFFER, 16, WRITE), 0);
    driver.offer(0, 0);
    stays(|| driver.status() == READY && driver.used(0) == 0);
    driver.set_bus_master(true);
    wait(|| driver.used(0) == 1);
    driver.set_bus_master(false);
    wait(|| !has_pending_transactions(&driver));
    driver.memory.zero(GuestPhysAddr(BUFFER), 16).unwrap();
    driver.offer(0, 0);
    stays(|| driver.used(0) == 1 && driver.bytes(BUFFER, 16) == [0; 16]);
    driver.set_bus_master(true);
    wait(|| driver.used(0) == 2);
    assert_ne!(driver.bytes(BUFFER, 16), [0; 16]);
}

/// The bit of PCI Express's device status.
fn has_pending_transactions(driver: &Driver<Rng>) -> bool {
    let mut status = [0; 2];
    let at = capability(driver, 0x10, None) + 0x0a;
    driver.device.read_configuration(at, &mut status);
    status[0] & 1 << 5 != 0
}

#[test]
fn a_device_that_is_no_bus_master_is_reset_paused_and_saved_all_the_same() {
    let mut driver = driver();
    driver.start(COMMON_FEATURES, 1);
    driver.transfer(0, &[(BUFFER, 16, WRITE)]);
    driver.set_bus_master(false);
    driver.reset();
    driver.start(COMMON_FEATURES, 1);
    driver.device.pause();
    let state = driver.device.save();
    driver.restore(state, rng());
    driver.device.resume();
    driver.offer(0, 0);
    assert_eq!((driver.status(), driver.used(0)), (READY, 0));
    driver.set_bus_master(true);
    wait(|| driver.used(0) == 1);
}

#[test]
fn a_message_waits_until_the_device_is_a_bus_master_again() {
    let driver = driver();
    enable_messages(&driver);
    driver.start(COMMON_FEATURES, 1);
    driver.set_bus_master(false);
    driver.device.signals().configuration_changed();
    driver.device.signals().queue(0);
    assert_eq!(driver.arrivals.take_messages(), []);
    driver.set_bus_master(true);
    wait(|| driver.arrivals.take_messages() == [(0xfee0_0000, 0x41)]);
}

/// The bit changes while the worker runs, is being stopped or is about to be reset, in any order.
#[test]
fn whatever_happens_to_the_bus_master_bit_the_device_goes_on_or_is_reset() {
    let mut driver = driver();
    for round in 0..50 {
        driver.start(COMMON_FEATURES, 1);
        driver.descriptor(Driver::<Rng>::ring(0), 0, (BUFFER, 16, WRITE), 0);
        driver.offer(0, 0);
        for change in 0..round % 7 {
            driver.set_bus_master(change % 2 != 0);
        }
        driver.set_bus_master(true);
        wait(|| driver.used(0) == 1);
        driver.set_bus_master(round % 2 == 0);
        driver.reset();
        driver.set_bus_master(true);
    }
}

#[test]
fn a_saved_device_goes_on_where_it_was() {
    let mut driver = driver();
    enable_messages(&driver);
    driver.start(COMMON_FEATURES, 1);
    driver.transfer(0, &[(BUFFER, 16, WRITE)]);
    driver.device.pause();
    let state = driver.device.save();
    driver.restore(state, rng());
    driver.device.resume();
    assert_eq!(driver.status(), READY);
    driver.arrivals.take_messages();
    assert_eq!(driver.transfer(0, &[(BUFFER, 32, WRITE)]), 32);
    wait(|| driver.arrivals.take_messages() == [(0xfee0_0000, 0x41)]);
}

#[test]
fn configuration_space_reaches_the_registers() {
    let driver = driver();
    let at = capability(&driver, 9, Some(5));
    driver
        .device
        .write_configuration(at + 8, &20_u32.to_le_bytes());
    driver
        .device
        .write_configuration(at + 12, &1_u32.to_le_bytes());
    driver.device.write_configuration(at + 16, &[3]);
    assert_eq!(driver.status(), 3);
    let mut data = [0];
    driver.device.read_configuration(at + 16, &mut data);
    assert_eq!(data, [3]);
}

#[test]
fn chains_that_break_the_rules_make_the_device_ask_for_a_reset() {
    let table = (TABLE, 32, INDIRECT);
    let cases: [(&str, &[testing::Piece]); 7] = [
        ("a loop", &[(BUFFER, 4, WRITE | NEXT)]),
        ("outside RAM", &[(0xa_0000, 4, WRITE)]),
        (
            "at the end of the address space",
            &[(u64::MAX - 1, 4, WRITE)],
        ),
        ("longer than RAM", &[(BUFFER, u32::MAX, WRITE)]),
        ("a table in a table", &[table]),
        ("a table of odd length", &[(TABLE, 17, INDIRECT)]),
        ("a table outside RAM", &[(0xb_0000, 32, INDIRECT)]),
    ];
    let mut driver = driver();
    for (case, pieces) in cases {
        driver.reset();
        driver.start(COMMON_FEATURES, 1);
        driver.descriptor(TABLE, 0, (TABLE, 32, INDIRECT), 0);
        for (number, piece) in (0..).zip(pieces) {
            // The next of each is itself.
            driver.descriptor(Driver::<Rng>::ring(0), number, *piece, number);
        }
        driver.offer(0, 0);
        driver.wait_for_status(BROKEN);
        assert_eq!(driver.used(0), 0, "{case}");
    }
}

#[test]
fn an_index_beyond_the_queue_makes_the_device_ask_for_a_reset() {
    let mut driver = driver();
    driver.start(COMMON_FEATURES, 1);
    let available = Driver::<Rng>::ring(0) + 0x1002;
    let beyond = (SIZE + 1).to_le_bytes();
    driver
        .memory
        .write(GuestPhysAddr(available), &beyond)
        .unwrap();
    driver.notify(0);
    driver.wait_for_status(BROKEN);
    driver.reset();
    driver.start(COMMON_FEATURES, 1);
    assert_eq!(driver.transfer(0, &[(BUFFER, 16, WRITE)]), 16);
}

#[test]
fn rings_outside_ram_are_not_used() {
    for at in [0xa_0000, 0x80_0000, u64::MAX - 0xfff, 0x10_0001] {
        let mut driver = driver();
        driver.write(20, &[3]);
        driver.write(8, &[1, 0, 0, 0]);
        driver.write(12, &[1, 0, 0, 0]);
        driver.write(20, &[11]);
        driver.enable(0, SIZE, at);
        driver.write(20, &[15]);
        assert_eq!(driver.status(), BROKEN, "{at:#x}");
        driver.reset();
    }
}

fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let interesting = prop_oneof![
        0_u64..0x40,
        0x3000_u64..0x3010,
        0x4000_u64..0x4040,
        0_u64..0x8000
    ];
    let data = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..9),
        proptest::collection::vec(0_u8..16, 1..2),
    ];
    (interesting, data)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any rings and registers: no panic, no hang, and the device works after a reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        rings in proptest::collection::vec(any::<u8>(), 0x300),
        descriptors in proptest::collection::vec((0_u64..0x90_0000, any::<u32>(), 0_u16..8, 0_u16..20), 16),
        accesses in proptest::collection::vec(access(), 0..60),
        started: bool,
    ) {
        let mut driver = driver();
        if started {
            driver.start(COMMON_FEATURES, 1);
        }
        let ring = Driver::<Rng>::ring(0);
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            driver.descriptor(ring, number, (at, len >> (number * 2), flags), next);
        }
        driver.memory.write(GuestPhysAddr(ring + 0x1000), &rings).unwrap();
        driver.notify(0);
        for (offset, data) in accesses {
            driver.write(offset, &data);
            let mut back = data;
            driver.device.read_memory(0, offset, &mut back);
        }
        driver.reset();
        driver.start(COMMON_FEATURES, 1);
        prop_assert_eq!(driver.transfer(0, &[(BUFFER, 16, WRITE)]), 16);
    }
}
