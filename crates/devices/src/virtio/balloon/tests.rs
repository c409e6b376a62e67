//! The balloon with a driver that does what it is told to, and worse.

use super::super::COMMON_FEATURES;
use super::super::testing::{Driver, SIZE, WRITE, wait};
use super::*;
use crate::pci::Function;
use belljar_memory::GuestPhysAddr;
use proptest::prelude::*;

const NUMBERS: u64 = 0x40_0000;
const PAGES: u64 = 0x50_0000;
const PAGE: u64 = 1 << PAGE_SHIFT;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS_QUEUE: u16 = 2;
const REPORT: u16 = 4;
const ALL: u64 = COMMON_FEATURES
    | feature::STATS_VQ
    | feature::DEFLATE_ON_OOM
    | feature::PAGE_POISON
    | feature::PAGE_REPORTING;
/// Status: the driver is ready, and the device wants a reset.
const BROKEN: u8 = 0x4f;
const LIMIT: Duration = Duration::from_mins(1);

/// A driver with the memory of the balloon, whose pages from [`PAGES`] on are full of ones.
fn driver() -> Driver<Balloon> {
    let driver = Driver::of_memory(|memory| Balloon::new(memory.clone()).unwrap());
    fill(&driver);
    driver
}

fn started(features: u64) -> Driver<Balloon> {
    let driver = driver();
    driver.start(features, QUEUES as u16);
    driver
}

fn fill(driver: &Driver<Balloon>) {
    let ones = vec![1; 16 * PAGE as usize];
    driver.memory.write(GuestPhysAddr(PAGES), &ones).unwrap();
}

/// Which of the sixteen pages still have their content.
fn kept(driver: &Driver<Balloon>) -> Vec<u64> {
    let byte = |page: u64| driver.bytes(PAGES + page * PAGE, 1)[0];
    (0..16).filter(|page| byte(*page) == 1).collect()
}

fn put_numbers(driver: &Driver<Balloon>, numbers: &[u32]) -> u32 {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    driver.memory.write(GuestPhysAddr(NUMBERS), &bytes).unwrap();
    bytes.len() as u32
}

fn page(number: u64) -> u32 {
    ((PAGES + number * PAGE) >> PAGE_SHIFT) as u32
}

#[test]
fn inflated_pages_are_discarded_and_others_are_not() {
    let mut driver = started(ALL);
    let len = put_numbers(&driver, &[page(3), page(4), page(9), page(8), page(3)]);
    assert_eq!(driver.transfer(INFLATE, &[(NUMBERS, len, 0)]), 0);
    let expected: Vec<u64> = (0..16).filter(|n| ![3, 4, 8, 9].contains(n)).collect();
    assert_eq!(kept(&driver), expected);
    assert_eq!(driver.transfer(DEFLATE, &[(NUMBERS, len, 0)]), 0);
}

#[test]
fn numbers_may_be_scattered_over_buffers() {
    let mut driver = started(ALL);
    put_numbers(&driver, &[page(0), page(1)]);
    let pieces = [(NUMBERS, 3, 0), (NUMBERS + 3, 5, 0)];
    driver.transfer(INFLATE, &pieces);
    assert_eq!(kept(&driver), (2..16).collect::<Vec<_>>());
}

#[test]
fn reported_pages_are_discarded_but_not_parts_of_pages() {
    let mut driver = started(ALL);
    let pieces = [
        (PAGES, 2 * PAGE as u32, WRITE),
        (PAGES + 4 * PAGE + 1, 2 * PAGE as u32, WRITE),
    ];
    driver.transfer(REPORT, &pieces);
    assert_eq!(kept(&driver), [2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
}

#[test]
fn whichever_queue_follows_the_statistics_is_that_of_the_reports() {
    for (features, queue) in [(ALL, 3), (ALL & !feature::STATS_VQ, 2)] {
        let mut driver = started(features);
        driver.transfer(queue, &[(PAGES, 16 * PAGE as u32, WRITE)]);
        assert!(kept(&driver).is_empty(), "{queue}");
    }
}

#[test]
fn pages_that_the_driver_has_poisoned_keep_what_they_hold() {
    let mut driver = started(ALL);
    driver.write(0x200c, &0xaa_u32.to_le_bytes());
    driver.transfer(REPORT, &[(PAGES, 16 * PAGE as u32, WRITE)]);
    assert_eq!(kept(&driver).len(), 16);
    driver.write(0x200c, &0_u32.to_le_bytes());
    driver.transfer(REPORT, &[(PAGES, 16 * PAGE as u32, WRITE)]);
    assert!(kept(&driver).is_empty());
}

#[test]
fn code_of_discarded_pages_is_dropped() {
    let mut driver = started(ALL);
    let index = driver.memory.page_index(GuestPhysAddr(PAGES)).unwrap();
    let (generation, _) = driver.memory.code().mark(index);
    let len = put_numbers(&driver, &[page(0)]);
    driver.transfer(INFLATE, &[(NUMBERS, len, 0)]);
    assert_ne!(driver.memory.code().generation(index), generation);
}

#[test]
fn pages_that_are_no_ram_break_the_rules() {
    let mut driver = driver();
    for numbers in [
        &[0xa0][..],
        &[page(0), 0x800],
        &[u32::MAX],
        &[0x9f, 0xa0, 0xa1],
        &[0xf_ffff],
    ] {
        driver.start(ALL, QUEUES as u16);
        let len = put_numbers(&driver, numbers);
        driver.descriptor(Driver::<Balloon>::ring(INFLATE), 0, (NUMBERS, len, 0), 0);
        driver.offer(INFLATE, 0);
        driver.wait_for_status(BROKEN);
        assert_eq!(driver.used(INFLATE), 0, "{numbers:x?}");
        driver.reset();
    }
}

#[test]
fn lists_of_odd_length_and_endless_ones_break_the_rules() {
    let mut driver = driver();
    for (queue, piece) in [
        (INFLATE, (NUMBERS, 7, 0)),
        (INFLATE, (0x10_0000, 0x60_0000, 0)),
        (REPORT, (0, 0x9_0000, WRITE)),
    ] {
        driver.start(ALL, QUEUES as u16);
        // The same range so many times.
        let count = SIZE - 1;
        let ring = Driver::<Balloon>::ring(queue);
        for number in 0..count {
            let flags = piece.2 | u16::from(number + 1 < count);
            driver.descriptor(ring, number, (piece.0, piece.1, flags), number + 1);
        }
        driver.offer(queue, 0);
        driver.wait_for_status(BROKEN);
        driver.reset();
    }
}

/// Puts statistics into memory; gives their length.
fn put_statistics(driver: &Driver<Balloon>, entries: &[(u16, u64)]) -> u32 {
    let mut bytes = Vec::new();
    for (tag, value) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    driver.memory.write(GuestPhysAddr(NUMBERS), &bytes).unwrap();
    bytes.len() as u32
}

#[test]
fn statistics_are_asked_for_and_arrive() {
    let mut driver = started(ALL);
    let host = driver.device.device().host();
    let len = put_statistics(&driver, &[(4, 100), (5, 200), (77, 1)]);
    let ring = Driver::<Balloon>::ring(STATISTICS_QUEUE);
    driver.descriptor(ring, 0, (NUMBERS, len, 0), 0);
    driver.offer(STATISTICS_QUEUE, 0);
    let arrivals = |driver: &Driver<Balloon>| lock(&driver.device.device().shared.book).arrivals;
    wait(|| arrivals(&driver) == 1);
    let asking = std::thread::spawn(move || host.statistics(LIMIT));
    wait(|| driver.used(STATISTICS_QUEUE) >= 1);
    let len = put_statistics(&driver, &[(4, 50), (6, 60), (4, 55)]);
    driver.descriptor(ring, 0, (NUMBERS, len, 0), 0);
    driver.offer(STATISTICS_QUEUE, 0);
    let told = asking.join().unwrap();
    assert_eq!(
        told.iter().collect::<Vec<_>>(),
        [("free", 55), ("available", 60)]
    );
}

#[test]
fn nobody_waits_for_a_guest_that_has_no_driver_or_is_paused() {
    let driver = driver();
    let host = driver.device.device().host();
    assert_eq!(host.statistics(LIMIT), GuestStatistics::default());
    driver.start(ALL, QUEUES as u16);
    let asking = std::thread::spawn(move || host.statistics(LIMIT));
    driver.device.pause();
    assert_eq!(asking.join().unwrap(), GuestStatistics::default());
}

#[test]
fn the_target_is_told_and_the_size_is_known() {
    let mut driver = driver();
    let host = driver.device.device().host();
    let words = |driver: &Driver<Balloon>| driver.read::<16>(0x2000);
    host.set_target(3 * PAGE + 5);
    driver.start(ALL, QUEUES as u16);
    assert_eq!(words(&driver)[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.read::<1>(0x1000), [2], "it was set before the start");
    host.set_target(u64::MAX);
    assert_eq!(driver.read::<1>(0x1000), [2]);
    assert_eq!(words(&driver)[..4], 2048_u32.to_le_bytes());
    driver.write(0x2004, &7_u32.to_le_bytes());
    driver.write(0x2000, &9_u32.to_le_bytes());
    driver.write(0x2004, &[1]);
    let size = BalloonSize {
        target: 8 << 20,
        actual: 7 * PAGE,
        most: 8 << 20,
    };
    assert_eq!(host.size(), size);
    driver.reset();
    assert_eq!(host.size().actual, 0);
    assert_eq!(host.size().target, 8 << 20);
}

#[test]
fn a_saved_balloon_goes_on_with_its_statistics() {
    let mut driver = started(ALL);
    driver.write(0x2004, &5_u32.to_le_bytes());
    driver.device.device().host().set_target(6 * PAGE);
    let len = put_statistics(&driver, &[(4, 100)]);
    driver.descriptor(
        Driver::<Balloon>::ring(STATISTICS_QUEUE),
        0,
        (NUMBERS, len, 0),
        0,
    );
    driver.offer(STATISTICS_QUEUE, 0);
    driver.device.pause();
    let state = driver.device.save();
    let device = Balloon::restore(state.device_state(), driver.memory.clone()).unwrap();
    driver.restore(state, device);
    driver.device.resume();
    let host = driver.device.device().host();
    wait(|| host.statistics(Duration::ZERO).get("free") == Some(100));
    let size = BalloonSize {
        target: 6 * PAGE,
        actual: 5 * PAGE,
        most: 8 << 20,
    };
    assert_eq!(host.size(), size);
    let mut data = [0; 4];
    driver.device.read_memory(0, 0x2000, &mut data);
    assert_eq!(data, [6, 0, 0, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any rings, numbers and statistics: no panic, no hang, and the balloon works after a reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        numbers in proptest::collection::vec(prop_oneof![0_u32..0x900, any::<u32>()], 0..64),
        descriptors in proptest::collection::vec(
            (0_u64..0x90_0000, any::<u32>(), 0_u16..4, 0_u16..20), 80),
        heads in proptest::collection::vec((0_u16..5, 0_u16..16), 0..60),
        writes in proptest::collection::vec((0_u64..20, any::<u32>()), 0..8),
        features: u64,
    ) {
        let mut driver = started(ALL & features | COMMON_FEATURES);
        let host = driver.device.device().host();
        put_numbers(&driver, &numbers);
        for (at, value) in writes {
            driver.write(0x2000 + at, &value.to_le_bytes());
        }
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            let (queue, number) = (number / 16, number % 16);
            let at = if number % 4 == 0 { NUMBERS } else { at };
            let ring = Driver::<Balloon>::ring(queue);
            driver.descriptor(ring, number, (at, len >> (number * 2), flags), next);
        }
        for (queue, head) in heads {
            driver.offer(queue, head);
            host.statistics(Duration::ZERO);
        }
        driver.reset();
        driver.start(ALL, QUEUES as u16);
        fill(&driver);
        driver.write(0x200c, &[0; 4]);
        driver.transfer(REPORT, &[(PAGES, 16 * PAGE as u32, WRITE)]);
        prop_assert!(kept(&driver).is_empty());
    }
}
