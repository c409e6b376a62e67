use super::*;
use crate::disk::testing::MemoryDisk;
use crate::disk::{Done, Request};
use crate::timers::lock;
use crate::virtio::testing::{Driver, INDIRECT, NEXT, Piece, WRITE, wait};
use crate::virtio::{COMMON_FEATURES, FEATURE_VERSION_1};
use belljar_memory::GuestPhysAddr;
use proptest::prelude::*;
use std::sync::Mutex;
use std::time::Duration;

const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x20_1000;
const STATUS: u64 = 0x20_0800;
const SIZE: usize = 64 << 10;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// A disk whose backend is made later, because it needs the driver's memory.
#[derive(Debug, Default)]
struct Later(Mutex<Option<Arc<MemoryDisk>>>);

impl Later {
    fn get(&self) -> Arc<MemoryDisk> {
        Arc::clone(lock(&self.0).as_ref().unwrap())
    }
}

impl Disk for Later {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn is_read_only(&self) -> bool {
        lock(&self.0).as_ref().is_some_and(|disk| disk.read_only)
    }

    fn submit(&self, request: Request, done: Done) {
        self.get().submit(request, done);
    }
}

struct Bench {
    driver: Driver<Block>,
    disk: Arc<MemoryDisk>,
}

fn bench(change: impl FnOnce(&mut MemoryDisk), features: u64) -> Bench {
    let later = Arc::new(Later::default());
    let block = Block::new(Arc::clone(&later) as _, "belljar-1", 2).unwrap();
    let driver = Driver::new(block);
    let mut disk = MemoryDisk::new(driver.memory.dma().unwrap(), SIZE);
    change(&mut disk);
    let disk = Arc::new(disk);
    *lock(&later.0) = Some(Arc::clone(&disk));
    driver.start(features, 2);
    Bench { driver, disk }
}

const ALL: u64 = COMMON_FEATURES
    | FEATURE_FLUSH
    | FEATURE_DISCARD
    | FEATURE_WRITE_ZEROES
    | FEATURE_QUEUES
    | FEATURE_SEG_MAX;

impl Bench {
    /// Makes a request by `queue`; gives the bytes written and the status.
    fn request(&mut self, queue: u16, kind: u32, sector: u64, data: &[Piece]) -> (u32, u8) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        let memory = &self.driver.memory;
        memory.write(GuestPhysAddr(HEADER), &header).unwrap();
        memory.write(GuestPhysAddr(STATUS), &[0xee]).unwrap();
        let mut pieces = vec![(HEADER, 16, 0)];
        pieces.extend(data);
        pieces.push((STATUS, 1, WRITE));
        let written = self.driver.transfer(queue, &pieces);
        (written, self.driver.bytes(STATUS, 1)[0])
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut range = sector.to_le_bytes().to_vec();
        range.extend(sectors.to_le_bytes());
        range.extend(flags.to_le_bytes());
        let memory = &self.driver.memory;
        memory.write(GuestPhysAddr(DATA), &range).unwrap();
        self.request(0, kind, 0, &[(DATA, 16, 0)]).1
    }
}

#[test]
fn what_is_written_is_read_back_from_another_queue() {
    let mut bench = bench(|_| (), ALL);
    let text: Vec<u8> = (0..1024).map(|i| (i / 7) as u8).collect();
    let memory = bench.driver.memory.clone();
    memory.write(GuestPhysAddr(DATA), &text).unwrap();
    let pieces = [(DATA, 100, 0), (DATA + 100, 924, 0)];
    assert_eq!(bench.request(0, 1, 3, &pieces), (1, OK));
    assert_eq!(lock(&bench.disk.bytes)[1536..2560], text);
    let pieces = [(DATA + 0x1000, 512, WRITE), (DATA + 0x2000, 512, WRITE)];
    assert_eq!(bench.request(1, 0, 3, &pieces), (1025, OK));
    assert_eq!(bench.driver.bytes(DATA + 0x2000, 512), text[512..]);
}

#[test]
fn a_flush_reaches_the_disk() {
    let mut bench = bench(|_| (), ALL);
    assert_eq!(bench.request(0, 4, 0, &[]), (1, OK));
    assert_eq!(*lock(&bench.disk.flushes), 1);
}

#[test]
fn writes_of_a_driver_that_knows_no_flush_are_flushed() {
    for at_once in [false, true] {
        let mut bench = bench(|disk| disk.at_once = at_once, FEATURE_VERSION_1);
        assert_eq!(bench.request(0, 1, 0, &[(DATA, 512, 0)]), (1, OK));
        assert_eq!(*lock(&bench.disk.flushes), 1);
        assert_eq!(bench.request(0, 0, 0, &[(DATA, 512, WRITE)]), (513, OK));
        assert_eq!(*lock(&bench.disk.flushes), 1);
    }
}

#[test]
fn a_queue_that_is_never_empty_leaves_the_others_their_turn() {
    let mut bench = bench(|disk| disk.at_once = true, ALL);
    let memory = bench.driver.memory.clone();
    // A header of zeros reads the first sector.
    let ring = Driver::<Block>::ring(0);
    bench
        .driver
        .descriptor(ring, 0, (HEADER + 0x400, 16, NEXT), 1);
    bench
        .driver
        .descriptor(ring, 1, (DATA, 512, WRITE | NEXT), 2);
    bench.driver.descriptor(ring, 2, (STATUS + 1, 1, WRITE), 0);
    let ended = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let other = std::thread::spawn({
        let (memory, ended) = (memory.clone(), Arc::clone(&ended));
        move || {
            // A driver that makes a new request for each that comes back, so that there are always 8.
            while !ended.load(std::sync::atomic::Ordering::SeqCst) {
                let made = Driver::<Block>::used_in(&memory, 0).wrapping_add(8);
                memory
                    .write(GuestPhysAddr(ring + 0x1002), &made.to_le_bytes())
                    .unwrap();
            }
        }
    });
    bench.driver.notify(0);
    for _ in 0..20 {
        assert_eq!(
            bench.request(1, 0, 0, &[(DATA + 0x1000, 512, WRITE)]),
            (513, OK)
        );
    }
    ended.store(true, std::sync::atomic::Ordering::SeqCst);
    other.join().unwrap();
    bench.driver.reset();
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    let mut bench = bench(|disk| lock(&disk.bytes).fill(7), ALL);
    assert_eq!(bench.range(13, 1, 2, 1), OK);
    assert_eq!(bench.range(11, 8, 8, 0), OK);
    {
        let bytes = lock(&bench.disk.bytes);
        let zero = |sector: usize| bytes[sector * 512..][..512].iter().all(|b| *b == 0);
        assert!(zero(1) && zero(2) && zero(8) && !zero(0) && !zero(3));
    }
    assert_eq!(bench.range(11, 0, 8, 1), UNSUPPORTED);
    assert_eq!(bench.range(13, 0, MOST_SECTORS + 1, 0), IO_ERROR);
    assert_eq!(bench.range(13, 127, 2, 0), IO_ERROR);
}

#[test]
fn the_serial_number_is_told() {
    let mut bench = bench(|_| (), ALL);
    assert_eq!(bench.request(0, 8, 0, &[(DATA, 20, WRITE)]), (21, OK));
    assert_eq!(
        bench.driver.bytes(DATA, 20),
        *b"belljar-1\0\0\0\0\0\0\0\0\0\0\0"
    );
}

#[test]
fn requests_beyond_the_disk_or_of_broken_sectors_are_errors() {
    let mut bench = bench(|disk| disk.broken = Some(512), ALL);
    let read = |len| [(DATA, len, WRITE)];
    for (sector, len) in [
        (127, 1024),
        (128, 512),
        (u64::MAX, 512),
        (1 << 55, 512),
        (0, 100),
    ] {
        assert_eq!(
            bench.request(0, 0, sector, &read(len)).1,
            IO_ERROR,
            "{sector:#x}"
        );
    }
    assert_eq!(bench.request(0, 0, 1, &read(512)), (1, IO_ERROR));
    assert_eq!(bench.request(0, 77, 1, &read(512)).1, UNSUPPORTED);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let features = COMMON_FEATURES | FEATURE_READ_ONLY;
    let mut bench = bench(|disk| disk.read_only = true, features);
    assert_eq!(bench.request(0, 1, 0, &[(DATA, 512, 0)]), (1, IO_ERROR));
    assert_eq!(bench.range(13, 0, 1, 0), IO_ERROR);
}

#[test]
fn a_reset_waits_for_requests_in_flight() {
    let mut bench = bench(|disk| disk.delay = Duration::from_millis(50), ALL);
    let memory = bench.driver.memory.clone();
    memory
        .write(GuestPhysAddr(HEADER), &1_u32.to_le_bytes())
        .unwrap();
    let ring = Driver::<Block>::ring(0);
    bench.driver.descriptor(ring, 0, (HEADER, 16, NEXT), 1);
    bench.driver.descriptor(ring, 1, (DATA, 512, NEXT), 2);
    bench.driver.descriptor(ring, 2, (STATUS, 1, WRITE), 0);
    memory.write(GuestPhysAddr(DATA), &[9; 512]).unwrap();
    bench.driver.offer(0, 0);
    // The worker has taken the request when the driver may be notified again.
    wait(|| memory.load_u16(GuestPhysAddr(ring + 0x2004 + 8 * 16)) == Some(1));
    bench.driver.reset();
    assert_eq!(lock(&bench.disk.bytes)[0], 9);
    bench.driver.start(ALL, 2);
    assert_eq!(bench.request(0, 0, 0, &[(DATA, 512, WRITE)]), (513, OK));
}

#[test]
fn a_chain_without_room_for_the_status_makes_the_device_ask_for_a_reset() {
    for pieces in [
        &[(HEADER, 16, 0)][..],
        &[(HEADER, 8, NEXT), (STATUS, 1, WRITE)],
    ] {
        let mut bench = bench(|_| (), ALL);
        for (number, piece) in (0..).zip(pieces) {
            bench
                .driver
                .descriptor(Driver::<Block>::ring(0), number, *piece, number + 1);
        }
        bench.driver.offer(0, 0);
        bench.driver.wait_for_status(0x4f);
    }
}

#[test]
fn the_configuration_tells_size_and_limits() {
    let bench = bench(|_| (), ALL);
    assert_eq!(u64::from_le_bytes(bench.driver.read(0x2000)), 128);
    assert_eq!(u32::from_le_bytes(bench.driver.read(0x200c)), SEGMENTS);
    assert_eq!(bench.driver.read::<2>(0x2022), [2, 0]);
    assert_eq!(bench.driver.read::<4>(0x2ffc), [0; 4]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any requests and rings: no panic, no hang, and the disk works after a reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        header in proptest::collection::vec(prop_oneof![0_u8..16, any::<u8>()], 16),
        descriptors in proptest::collection::vec(
            (0x1f_f000_u64..0x20_3000, 0_u32..2048, 0_u16..8, 0_u16..18), 16),
        available in proptest::collection::vec((0_u16..18).prop_map(u16::to_le_bytes), 20),
        at_once: bool,
    ) {
        let mut bench = bench(|disk| disk.at_once = at_once, ALL);
        let ring = Driver::<Block>::ring(0);
        let memory = bench.driver.memory.clone();
        memory.write(GuestPhysAddr(HEADER), &header).unwrap();
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            let flags = if number % 4 == 0 { flags & !INDIRECT } else { flags };
            bench.driver.descriptor(ring, number, (at, len, flags), next);
        }
        memory.write(GuestPhysAddr(ring + 0x1002), &available.concat()).unwrap();
        bench.driver.notify(0);
        bench.driver.notify(1);
        bench.driver.reset();
        bench.driver.start(ALL, 2);
        prop_assert_eq!(bench.request(0, 0, 0, &[(DATA, 512, WRITE)]), (513, OK));
    }
}
